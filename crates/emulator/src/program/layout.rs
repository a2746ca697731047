//! Where shared variables lie.

use super::lower::call_operands;
use crate::ptx::ast::{Function, Module, Operand, Space, Statement, Variable};
use std::collections::{HashMap, HashSet};

/// Where the shared variables of a kernel lie: those of its body, of the functions it calls (each once, however often it
/// is called), and those of the module that it names.
#[derive(Debug, Default)]
pub(super) struct Layout<'a> {
    /// By the variable itself: names may repeat.
    addresses: HashMap<*const Variable, usize>,
    pub(super) end: usize,
    functions: Vec<&'a str>,
    names: HashSet<&'a str>,
}

impl<'a> Layout<'a> {
    pub(super) fn of(module: &'a Module, entry: &'a Function) -> Self {
        let mut layout = Self::default();
        layout.function(module, entry);
        for variable in &module.variables {
            let is_sized = variable.space == Space::Shared && variable.size.is_some();
            if is_sized && layout.names.contains(variable.name.as_str()) {
                layout.add(variable);
            }
        }
        layout
    }

    /// The address of a variable; that of one which is not named does not matter.
    pub(super) fn address(&self, variable: &Variable) -> usize {
        self.addresses.get(&std::ptr::from_ref(variable)).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, variable: &Variable) {
        let start = self.end.next_multiple_of(variable.align.max(1));
        self.end = start + variable.size.unwrap_or(0);
        self.addresses.insert(std::ptr::from_ref(variable), start);
    }

    pub(super) fn function(&mut self, module: &'a Module, function: &'a Function) {
        if !self.functions.contains(&function.name.as_str()) {
            self.functions.push(&function.name);
            self.statements(module, function.body.as_deref().unwrap_or_default());
        }
    }

    pub(super) fn statements(&mut self, module: &'a Module, statements: &'a [Statement]) {
        for statement in statements {
            match statement {
                Statement::Variable(variable) if variable.space == Space::Shared => self.add(variable),
                Statement::Scope(inner) => self.statements(module, inner),
                Statement::Instruction(instruction) => {
                    instruction.operands.iter().for_each(|operand| self.operand(operand));
                    let name = call_operands(&instruction.operands).map(|(_, name, _)| name);
                    if instruction.opcode == "call"
                        && let Some(callee) = module.functions.iter().find(|f| Ok(f.name.as_str()) == name)
                    {
                        self.function(module, callee);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn operand(&mut self, operand: &'a Operand) {
        match operand {
            Operand::Name(name) | Operand::Offset(name, _) | Operand::Address(Some(name), _) => {
                self.names.insert(name);
            }
            Operand::Vector(inner) | Operand::List(inner) => inner.iter().for_each(|operand| self.operand(operand)),
            Operand::Tensor(map, inner) => {
                self.operand(map);
                inner.iter().for_each(|operand| self.operand(operand));
            }
            _ => {}
        }
    }
}
