//! Heads of kernels and device functions: returned values, parameters, and directives about performance.

use super::{Parser, Result};
use crate::ptx::ast::{Function, Parameter};
use crate::ptx::lexer::Token;

impl Parser<'_> {
    /// From `.entry` or `.func` to the end of the body, or the semicolon of a declaration.
    pub(super) fn function(&mut self, is_entry: bool) -> Result<Function> {
        self.advance()?;
        let mut function = Function { is_entry, line: self.line, ..Function::default() };
        self.directives(&mut function)?;
        if !is_entry {
            function.returns = self.parameters()?;
            self.directives(&mut function)?;
        }
        function.line = self.line;
        function.name = self.word("the name of a function")?.to_owned();
        function.parameters = self.parameters()?;
        self.directives(&mut function)?;
        if !self.take(";")? {
            if self.token != Token::Symbol("{") {
                return Err(self.unexpected("the body of a function, or `;`"));
            }
            function.body = Some(self.scope()?);
        }
        Ok(function)
    }

    /// What may stand between the parts of a head, in any number and order.
    fn directives(&mut self, function: &mut Function) -> Result<()> {
        loop {
            let Token::Directive(name) = self.token else { return Ok(()) };
            match name {
                "maxntid" => function.max_threads = Some(self.extents()?),
                "reqntid" => function.required_threads = Some(self.extents()?),
                "reqnctapercluster" => function.cluster = Some(self.extents()?),
                "minnctapersm" => {
                    self.advance()?;
                    function.min_blocks = Some(self.number()?);
                }
                "maxnctapersm" | "maxnreg" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control" => {
                    self.advance()?;
                    self.number::<u32>()?;
                }
                "noreturn" | "explicitcluster" | "blocksareclusters" => drop(self.advance()?),
                "pragma" => self.pragma()?,
                "attribute" => drop(self.attribute()?),
                _ => return Err(self.unexpected("a directive of a function")),
            }
        }
    }

    /// `.maxntid x, y, z`; what is not said is 1.
    fn extents(&mut self) -> Result<[u32; 3]> {
        self.advance()?;
        let mut extents = [1; 3];
        for (axis, extent) in extents.iter_mut().enumerate() {
            if axis > 0 && !self.take(",")? {
                break;
            }
            *extent = self.number()?;
        }
        Ok(extents)
    }

    /// `(.param .u64 a, .param .align 8 .b8 b[16])`, or nothing.
    fn parameters(&mut self) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        if !self.take("(")? || self.take(")")? {
            return Ok(parameters);
        }
        loop {
            parameters.push(self.parameter()?);
            if !self.take(",")? {
                self.expect(")")?;
                return Ok(parameters);
            }
        }
    }

    fn parameter(&mut self) -> Result<Parameter> {
        let in_register = match self.token {
            Token::Directive("param") => false,
            Token::Directive("reg") => true,
            _ => return Err(self.unexpected("`.param` or `.reg`")),
        };
        self.advance()?;
        let kind = self.kind()?;
        let (name, dimensions) = self.declarator()?;
        let Some(size) = self.declared_size(&kind, &dimensions)? else {
            return Err(self.unsupported("a function with any number of arguments"));
        };
        Ok(Parameter { name: name.to_owned(), size, align: kind.align, register: in_register.then_some(kind.ty) })
    }
}
