//! Bodies of functions: declarations, labels, instructions and scopes.

use super::{Linking, Parser, Result, space};
use crate::ptx::ast::{Instruction, Statement, Type};
use crate::ptx::lexer::Token;

impl Parser<'_> {
    /// `{ … }` within a body, with names of its own.
    fn scope(&mut self) -> Result<Vec<Statement>> {
        let outer = std::mem::take(&mut self.names);
        let statements = self.body();
        self.names = outer;
        statements
    }

    /// `{ … }` of a function, whose parameters are names of the same scope.
    pub(super) fn body(&mut self) -> Result<Vec<Statement>> {
        self.expect("{")?;
        let mut statements = Vec::new();
        while !self.take("}")? {
            self.statement(&mut statements)?;
        }
        Ok(statements)
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Result<()> {
        match self.token {
            Token::Symbol("{") => statements.push(Statement::Scope(self.nested(Self::scope)?)),
            Token::Symbol("@") => statements.push(Statement::Instruction(self.instruction()?)),
            Token::Symbol(";") => drop(self.advance()?),
            Token::Word(_) if self.peek()? == Token::Symbol(":") => self.label(statements)?,
            Token::Word(_) => statements.push(Statement::Instruction(self.instruction()?)),
            Token::Directive("reg") => statements.push(self.registers()?),
            Token::Directive("loc") => statements.push(self.location()?),
            Token::Directive("pragma") => self.pragma()?,
            Token::Directive("section") => self.section()?,
            Token::Directive(_) => {
                let Linking { external } = self.linking()?;
                let Token::Directive(name) = self.token else { return Err(self.unexpected("a state space")) };
                let Some(space) = space(name) else { return Err(self.unexpected("a statement")) };
                let mut variables = Vec::new();
                self.variables(space, Linking { external }, &mut |variable| variables.push(variable))?;
                for variable in variables {
                    self.define(&variable.name, variable.line)?;
                    statements.push(Statement::Variable(variable));
                }
            }
            _ => return Err(self.unexpected("a statement")),
        }
        Ok(())
    }

    /// A label, or a list or prototype under its name. Prototypes serve indirect calls, which are refused when they are
    /// decoded, so they are only stepped over.
    fn label(&mut self, statements: &mut Vec<Statement>) -> Result<()> {
        let line = self.line;
        let name = self.word("a label")?.to_owned();
        self.expect(":")?;
        match self.token {
            Token::Directive("branchtargets") => {
                self.advance()?;
                let mut targets = Vec::new();
                loop {
                    targets.push(self.word("a label")?.to_owned());
                    if !self.take(",")? {
                        break;
                    }
                }
                self.expect(";")?;
                statements.push(Statement::BranchTargets(name, targets));
            }
            Token::Directive("callprototype" | "calltargets") => loop {
                match self.advance()? {
                    Token::Symbol(";") => break,
                    Token::End | Token::Symbol("{" | "}") => return Err(self.unexpected("`;` before it")),
                    _ => {}
                }
            },
            _ => {
                self.define(&name, line)?;
                statements.push(Statement::Label(name));
            }
        }
        Ok(())
    }

    /// `.reg .b32 %r<3>, %x;`.
    fn registers(&mut self) -> Result<Statement> {
        self.advance()?;
        if let Token::Directive("v2" | "v4") = self.token {
            return Err(self.unsupported("a vector register"));
        }
        let ty = self.fundamental_type()?;
        let mut names = Vec::new();
        loop {
            let line = self.line;
            let name = self.word("a register")?;
            let numbered = self.take("<")?;
            let count: usize = if numbered { self.number()? } else { 1 };
            let Some(left) = self.registers.checked_sub(count) else {
                let what = format!("{count} registers {name}, more than a module of this length can use");
                return Err(self.excessive(what));
            };
            self.registers = left;
            if numbered {
                self.expect(">")?;
                for index in 0..count {
                    names.push(format!("{name}{index}"));
                    self.define(&names[names.len() - 1], line)?;
                }
            } else {
                self.define(name, line)?;
                names.push(name.to_owned());
            }
            if !self.take(",")? {
                break;
            }
        }
        self.expect(";")?;
        Ok(Statement::Registers(ty, names))
    }

    pub(super) fn fundamental_type(&mut self) -> Result<Type> {
        let Token::Directive(name) = self.token else { return Err(self.unexpected("a type")) };
        // PTX ISA 5.2: the alternative floating-point formats are types of instructions only.
        let ty = Type::parse(name).filter(|ty| !matches!(ty, Type::Bf16 | Type::Bf16x2 | Type::Tf32));
        let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
        self.advance()?;
        Ok(ty)
    }

    fn instruction(&mut self) -> Result<Instruction> {
        let line = self.line;
        let guard = match self.take("@")? {
            true => {
                let negated = self.take("!")?;
                Some((self.word("a predicate")?.to_owned(), negated))
            }
            false => None,
        };
        let opcode = self.word("an instruction")?.to_owned();
        let mut modifiers = Vec::new();
        while let Token::Directive(modifier) = self.token {
            modifiers.push(modifier.to_owned());
            self.advance()?;
        }
        let call = opcode == "call";
        let mut operands = Vec::new();
        if !self.take(";")? {
            loop {
                operands.push(self.operand(call)?);
                if !self.take(",")? {
                    break;
                }
            }
            if !self.take(";")? {
                return Err(self.unexpected("`,` or `;`"));
            }
        }
        Ok(Instruction { guard, opcode, modifiers, operands, line })
    }
}
