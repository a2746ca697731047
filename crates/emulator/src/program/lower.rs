//! A kernel's statements, one after another, with the functions that they call in their places.

use super::guesses::guesses;
use super::layout::Layout;
use super::{DecodeError, Label, Location, Program, Reason, Scope, Step, Symbol};
use crate::isa::{self, Op};
use crate::machine::registers::P;
use crate::ptx::ast::{Function, Instruction, Operand, Parameter, Space, Statement, Type};
use crate::report::Place;
use std::collections::HashMap;

/// Bytes of local memory that a thread has at most (CUDA C++ Programming Guide, compute capabilities).
const MOST_LOCAL: usize = 512 << 10;

/// Bytes of shared memory that can be declared; more is only given by the launch.
const MOST_SHARED: usize = 48 << 10;

/// Operations of a kernel with all that it calls, which a short text can multiply without end: each function that
/// calls another twice doubles them.
const MOST_STEPS: usize = 1 << 20;

/// Calls that are replaced by what they call, for the same reason.
const MOST_CALLS: usize = 1 << 16;

/// Scopes within scopes and calls within calls, which the decoder's own stack must hold.
const DEEPEST: usize = 256;

impl<'a> Scope<'a> {
    pub(super) fn error(line: u32, text: impl Into<String>, message: impl Into<String>) -> DecodeError {
        DecodeError { line, text: text.into(), message: message.into() }
    }

    pub(super) fn kernel(&mut self, entry: &'a Function) -> Result<(), DecodeError> {
        // What the launch gives comes after what is declared, so all of that is laid out first.
        let shared = || self.module.variables.iter().filter(|variable| variable.space == Space::Shared);
        self.shared = Layout::of(self.module, entry);
        let dynamic = shared().filter(|variable| variable.size.is_none());
        let align = dynamic.map(|variable| variable.align).fold(16, usize::max);
        self.dynamic_shared = self.shared.end.next_multiple_of(align);
        for variable in shared() {
            let address = match variable.size {
                Some(_) => self.shared.address(variable),
                None => self.dynamic_shared,
            };
            self.declare(&variable.name, Symbol::Variable(Space::Shared, address as u64));
        }
        for (parameter, &(offset, _)) in entry.parameters.iter().zip(&self.parameters.clone()) {
            self.declare(&parameter.name, Symbol::Parameter(offset as u64));
        }
        let Some(body) = &entry.body else {
            return Err(Self::error(entry.line, entry.name.clone(), "the kernel has no body"));
        };
        if entry.clustered {
            let (target, version) = (&self.module.target, self.module.version);
            isa::requirements::check_needs("a cluster", isa::requirements::CLUSTERS, target, version)
                .map_err(|reason| Self::error(entry.line, entry.name.clone(), reason))?;
        }
        self.line = entry.line;
        self.calls.push(&entry.name);
        self.guesses.push(guesses(body));
        self.statements(body)?;
        self.guesses.pop();
        self.calls.pop();
        // A body may end without `ret`.
        self.push(isa::control::exit(), None, Place::default());
        Ok(())
    }

    /// Decodes the statements of a scope.
    pub(super) fn statements(&mut self, statements: &'a [Statement]) -> Result<(), DecodeError> {
        if self.depth == DEEPEST {
            let name = self.calls.last().copied().unwrap_or_default();
            return Err(Self::error(
                self.line,
                name,
                format!("scopes and calls are nested deeper than {DEEPEST} levels"),
            ));
        }
        self.depth += 1;
        self.names.push(HashMap::new());
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    let label = self.new_label();
                    self.declare(name, Symbol::Label(label.0));
                }
                Statement::BranchTargets(name, targets) => self.declare(name, Symbol::BranchTargets(targets.clone())),
                _ => {}
            }
        }
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    if let Ok(label) = self.label_named(name) {
                        self.place_label(label);
                    }
                }
                Statement::Registers(ty, names) => {
                    for name in names {
                        self.declare_register(*ty, name)
                            .map_err(|reason| Self::error(self.line, name.clone(), reason))?;
                    }
                }
                Statement::Variable(variable) => self
                    .declare_variable(variable)
                    .map_err(|reason| Self::error(variable.line, variable.name.clone(), reason))?,
                Statement::Instruction(instruction) => self.instruction(instruction)?,
                Statement::Location { file, line, inlined_at } => {
                    self.location = Location { at: (*file, *line), inlined_at: *inlined_at };
                }
                Statement::Scope(inner) => self.statements(inner)?,
                Statement::BranchTargets(..) => {}
            }
        }
        self.names.pop();
        self.depth -= 1;
        Ok(())
    }

    /// Whether a load of so many bytes into this register is a guess that a compare-and-swap verifies.
    pub(crate) fn is_guess(&self, register: &Operand, bytes: usize) -> bool {
        let Operand::Name(name) = register else { return false };
        self.guesses.last().is_some_and(|guesses| guesses.get(name) == Some(&bytes))
    }

    pub(super) fn new_label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub(super) fn place_label(&mut self, label: Label) {
        self.labels[label.0] = Some(self.steps.len());
    }

    pub(super) fn push(&mut self, op: Op, guard: Option<(P, bool)>, place: Place) {
        self.steps.push(Step { guard, op });
        self.places.push(place);
    }

    pub(super) fn instruction(&mut self, instruction: &'a Instruction) -> Result<(), DecodeError> {
        let fail = |message: Reason| Self::error(instruction.line, instruction.mnemonic(), message);
        self.line = instruction.line;
        if self.steps.len() >= MOST_STEPS {
            return Err(fail(format!("with what it calls, the kernel has more than {MOST_STEPS} operations")));
        }
        let named = |(file, line): (u32, u32)| {
            let name = self.module.files.iter().find(|(index, _)| *index == file).map(|(_, name)| name.clone());
            (line > 0).then(|| (name.unwrap_or_default(), line))
        };
        let place = Place {
            ptx_line: instruction.line,
            instruction: instruction.mnemonic(),
            source: named(self.location.at),
            inlined_at: self.location.inlined_at.and_then(named),
        };
        let guard = match &instruction.guard {
            Some((name, negated)) => Some((self.predicate_named(name).map_err(fail)?, *negated)),
            None => None,
        };
        if instruction.opcode == "call" && self.inline(instruction, guard, &place)? {
            return Ok(());
        }
        let op = isa::decode(self, instruction).map_err(fail)?;
        self.push(op, guard, place);
        Ok(())
    }

    /// Decodes the body of a called function in the place of the call; `false` for functions of the system.
    pub(super) fn inline(
        &mut self,
        instruction: &'a Instruction,
        guard: Option<(P, bool)>,
        place: &Place,
    ) -> Result<bool, DecodeError> {
        let fail = |message: String| Self::error(instruction.line, instruction.mnemonic(), message);
        let (results, name, arguments) = call_operands(&instruction.operands).map_err(fail)?;
        if isa::control::is_system_function(name) {
            return Ok(false);
        }
        let module = self.module;
        let function = module.functions.iter().find(|function| function.name == name && function.body.is_some());
        let Some((function, body)) = function.and_then(|function| Some((function, function.body.as_ref()?))) else {
            return Err(fail(match name {
                "malloc" | "free" => format!("{name} is not supported: kernels have no heap here"),
                _ if name.starts_with('%') => format!("a call of what {name} points to, which is not supported"),
                _ => format!("there is no function {name} in the module"),
            }));
        };
        self.inlined += 1;
        if self.inlined > MOST_CALLS {
            return Err(fail(format!("the kernel and what it calls have more than {MOST_CALLS} calls")));
        }
        if self.calls.contains(&name) {
            return Err(fail(format!("{name} calls itself, which is not supported")));
        }
        if (results.len(), arguments.len()) != (function.returns.len(), function.parameters.len()) {
            return Err(fail(format!(
                "{name} takes {} arguments and returns {} values",
                function.parameters.len(),
                function.returns.len()
            )));
        }
        let (end, after) = (self.new_label(), self.new_label());
        if let Some((predicate, negated)) = guard {
            // Lanes outside of the guard skip the body.
            self.push(isa::control::branch(after), Some((predicate, !negated)), place.clone());
        }
        // Parameters are the function's own, so that what it does to them does not reach the caller.
        self.names.push(HashMap::new());
        let mut names = HashMap::new();
        for (operand, parameter) in arguments.iter().zip(&function.parameters) {
            let (symbol, copy) = self.parameter(operand, parameter).map_err(fail)?;
            if let Some([take, _]) = copy {
                self.copy(&take, place).map_err(fail)?;
            }
            names.insert(parameter.name.clone(), symbol);
        }
        let mut given_back = Vec::new();
        for (operand, parameter) in results.iter().zip(&function.returns) {
            let (symbol, copy) = self.parameter(operand, parameter).map_err(fail)?;
            // Nothing is copied to where nobody looks.
            given_back.extend(copy.filter(|_| *operand != Operand::Sink).map(|[_, give]| give));
            names.insert(parameter.name.clone(), symbol);
        }
        // The body sees its parameters and the module, nothing of the caller.
        let outer = std::mem::take(&mut self.names);
        self.names = vec![outer.first().cloned().unwrap_or_default(), names];
        self.calls.push(name);
        self.returns.push(end);
        self.guesses.push(guesses(body));
        self.statements(body)?;
        self.guesses.pop();
        self.returns.pop();
        self.calls.pop();
        self.names = outer;
        self.place_label(end);
        for give in given_back {
            self.copy(&give, place).map_err(fail)?;
        }
        self.names.pop();
        self.place_label(after);
        Ok(true)
    }

    /// What a parameter of a function stands for when `operand` is given for it, and where that is a copy, the
    /// instructions that take it from the operand and give it back.
    pub(super) fn parameter(
        &mut self,
        operand: &Operand,
        parameter: &Parameter,
    ) -> Result<(Symbol, Option<[Instruction; 2]>), Reason> {
        let outer = match operand {
            Operand::Name(name) => self.find(name),
            _ => None,
        };
        // No name in a program has a colon.
        let own = format!("call:{}", parameter.name);
        let instruction = |opcode: &str, modifiers: &[&str], operands: [Operand; 2]| Instruction {
            guard: None,
            opcode: opcode.to_owned(),
            modifiers: modifiers.iter().map(|&name| name.to_owned()).collect(),
            operands: operands.into(),
            line: 0,
        };
        let size = parameter.register.map_or(parameter.size, Type::size);
        let bits = match (parameter.register, size) {
            (Some(Type::Pred), _) => "pred",
            (_, 1) => "b8",
            (_, 2) => "b16",
            (_, 4) => "b32",
            (_, 8) => "b64",
            _ => "",
        };
        match (parameter.register, outer) {
            (None, Some(variable @ Symbol::Variable(Space::Local, _))) => Ok((variable, None)),
            (Some(_), Some(Symbol::Variable(..) | Symbol::Parameter(_))) => {
                Err(format!("a variable given for the register {}", parameter.name))
            }
            (Some(ty), _) => {
                self.declare_register(ty, &own)?;
                let name = Operand::Name(own.clone());
                let take = instruction("mov", &[bits], [name.clone(), operand.clone()]);
                let give = instruction("mov", &[bits], [operand.clone(), name]);
                Ok((self.find(&own).ok_or("a parameter was expected")?, Some([take, give])))
            }
            (None, _) => {
                let symbol = Symbol::Variable(Space::Local, self.new_local(size, parameter.align.max(16)) as u64);
                self.declare(&own, symbol.clone());
                let address = Operand::Address(Some(own), 0);
                let take = instruction("st", &["param", bits], [address.clone(), operand.clone()]);
                let give = instruction("ld", &["param", bits], [operand.clone(), address]);
                Ok((symbol, Some([take, give])))
            }
        }
    }

    pub(super) fn copy(&mut self, instruction: &Instruction, place: &Place) -> Result<(), Reason> {
        let op = isa::decode(self, instruction)?;
        self.push(op, None, place.clone());
        Ok(())
    }

    pub(super) fn finish(mut self, entry: &Function) -> Result<Program, DecodeError> {
        let parameters = self.parameters.last().map_or(0, |&(offset, size)| offset + size);
        // PTX ISA, kernel function parameters.
        let most_parameters = if self.version() < (8, 1) { 4352 } else { 32764 };
        for (what, bytes, most) in [
            ("local memory", self.local, MOST_LOCAL),
            ("static shared memory", self.shared.end, MOST_SHARED),
            ("parameters", parameters, most_parameters),
        ] {
            if bytes > most {
                let message = format!("{bytes} bytes of {what}, of which there are at most {most}");
                return Err(Self::error(entry.line, entry.name.clone(), message));
            }
        }
        let end = self.steps.len();
        let targets: Vec<usize> = self.labels.iter().map(|label| label.unwrap_or(end)).collect();
        for step in &mut self.steps {
            step.op.resolve(&targets);
        }
        let threads = |[x, y, z]: [u32; 3]| x.saturating_mul(y).saturating_mul(z);
        Ok(Program {
            name: entry.name.clone(),
            steps: self.steps,
            places: self.places,
            registers: self.registers,
            specials: self.specials,
            parameters: self.parameters,
            static_shared: self.shared.end,
            dynamic_offset: self.dynamic_shared,
            local: self.local.next_multiple_of(16),
            max_threads: entry.max_threads.or(entry.required_threads).map_or(1024, threads).min(1024),
            required_threads: entry.required_threads,
            min_blocks: entry.min_blocks,
            target: self.module.target.clone(),
            barriers: self.barriers,
        })
    }
}

/// Results, name and arguments of a call.
pub(crate) fn call_operands(operands: &[Operand]) -> Result<(&[Operand], &str, &[Operand]), Reason> {
    match operands {
        [Operand::Name(name)] => Ok((&[], name, &[])),
        [Operand::Name(name), Operand::List(arguments), ..] => Ok((&[], name, arguments)),
        [Operand::List(results), Operand::Name(name)] => Ok((results, name, &[])),
        [Operand::List(results), Operand::Name(name), Operand::List(arguments), ..] => Ok((results, name, arguments)),
        _ => Err("a function's name was expected".to_owned()),
    }
}
