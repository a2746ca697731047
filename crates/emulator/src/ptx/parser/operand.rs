//! Operands of instructions.

use super::{Parser, Result};
use crate::ptx::ast::Operand;
use crate::ptx::lexer::Token;

impl Parser<'_> {
    /// One operand; `call` says whether parentheses enclose a list, rather than a constant.
    pub(super) fn operand(&mut self, call: bool) -> Result<Operand> {
        match self.token {
            Token::Symbol("[") => self.address(),
            Token::Symbol("{") => Ok(Operand::Vector(self.listed("{", "}")?)),
            Token::Symbol("(") if call => Ok(Operand::List(self.listed("(", ")")?)),
            _ => self.simple_operand(),
        }
    }

    /// Elements between brackets, which are not lists themselves.
    fn listed(&mut self, open: &str, close: &str) -> Result<Vec<Operand>> {
        self.expect(open)?;
        let mut elements = Vec::new();
        if self.take(close)? {
            return Ok(elements);
        }
        loop {
            elements.push(self.simple_operand()?);
            if !self.take(",")? {
                self.expect(close)?;
                return Ok(elements);
            }
        }
    }

    fn simple_operand(&mut self) -> Result<Operand> {
        match self.token {
            Token::Symbol("!") if matches!(self.peek()?, Token::Word(word) if word != "WARP_SZ") => {
                self.advance()?;
                Ok(Operand::Not(self.name()?))
            }
            Token::Word(word) if word != "WARP_SZ" => {
                let name = self.name()?;
                if self.take("|")? {
                    return Ok(Operand::Pair(name, self.name()?));
                }
                if let Token::Symbol("+" | "-") = self.token {
                    return Ok(Operand::Offset(name, self.offset()?));
                }
                Ok(if name == "_" { Operand::Sink } else { Operand::Name(name) })
            }
            _ if self.starts_constant() => Ok(self.constant()?.operand()),
            _ => Err(self.unexpected("an operand")),
        }
    }

    fn starts_constant(&self) -> bool {
        matches!(self.token, Token::Number(_) | Token::Word("WARP_SZ") | Token::Symbol("-" | "+" | "~" | "!" | "("))
    }

    /// A name, with what follows its dots: `%tid.x`, `%r1.b0`.
    fn name(&mut self) -> Result<String> {
        let mut name = self.word("a name")?.to_owned();
        while let Token::Directive(component) = self.token {
            name.push('.');
            name.push_str(component);
            self.advance()?;
        }
        Ok(name)
    }

    /// `[name + 4]`, `[4]`, `[name, {x, y}]`.
    fn address(&mut self) -> Result<Operand> {
        self.expect("[")?;
        let address = match self.token {
            Token::Word(word) if word != "WARP_SZ" => {
                let name = self.name()?;
                Operand::Address(Some(name), self.offset()?)
            }
            _ => {
                let Some(bits) = self.constant()?.bits() else { return Err(self.unexpected("an integer before it")) };
                Operand::Address(None, bits as i64)
            }
        };
        let operand = match self.take(",")? {
            true => Operand::Tensor(Box::new(address), self.listed("{", "}")?),
            false => address,
        };
        self.expect("]")?;
        Ok(operand)
    }
}
