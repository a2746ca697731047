//! Heads of kernels and device functions: returned values, parameters, and directives about performance.

use super::{Parser, Result};
use crate::ptx::ast::{Function, Parameter};
use crate::ptx::lexer::Token;

impl Parser<'_> {
    /// From `.entry` or `.func` to the end of the body, or the semicolon of a declaration.
    pub(super) fn function(&mut self, is_entry: bool) -> Result<Function> {
        self.advance()?;
        self.names.clear();
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
            function.body = Some(self.body()?);
        }
        Ok(function)
    }

    /// What may stand between the parts of a head, in any number and order.
    fn directives(&mut self, function: &mut Function) -> Result<()> {
        loop {
            let Token::Directive(name) = self.token else { return Ok(()) };
            function.clustered |=
                matches!(name, "reqnctapercluster" | "maxclusterrank" | "explicitcluster" | "blocksareclusters");
            match name {
                "maxntid" => function.max_threads = Some(self.extents(1)?),
                "reqntid" => function.required_threads = Some(self.extents(1)?),
                "reqnctapercluster" => function.cluster = Some(self.extents(0)?),
                "minnctapersm" => function.min_blocks = Some(self.count(1)?),
                "maxnreg" => drop(self.count(1)?),
                "maxnctapersm" | "maxclusterrank" | "abi_preserve" | "abi_preserve_control" => drop(self.count(0)?),
                "noreturn" | "explicitcluster" | "blocksareclusters" => drop(self.advance()?),
                "pragma" => self.pragma()?,
                "attribute" => drop(self.attribute()?),
                _ => return Err(self.unexpected("a directive of a function")),
            }
            if function.max_threads.is_some() && function.required_threads.is_some() {
                return Err(self.unexpected("not both `.maxntid` and `.reqntid` before it"));
            }
        }
    }

    /// A directive with a number, which is not below `least`.
    fn count(&mut self, least: u32) -> Result<u32> {
        self.advance()?;
        self.at_least(least)
    }

    fn at_least(&mut self, least: u32) -> Result<u32> {
        let too_small = self.unexpected("a number above zero");
        let number = self.number()?;
        if number < least { Err(too_small) } else { Ok(number) }
    }

    /// `.maxntid x, y, z`, none of them below `least`; what is not said is 1.
    fn extents(&mut self, least: u32) -> Result<[u32; 3]> {
        self.advance()?;
        let mut extents = [1; 3];
        for (axis, extent) in extents.iter_mut().enumerate() {
            if axis > 0 && !self.take(",")? {
                break;
            }
            *extent = self.at_least(least)?;
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
        let line = self.line;
        let (name, dimensions) = self.declarator()?;
        self.define(name, line)?;
        let Some(size) = self.declared_size(&kind, &dimensions)? else {
            return Err(self.unsupported("a function with any number of arguments"));
        };
        Ok(Parameter { name: name.to_owned(), size, align: kind.align, register: in_register.then_some(kind.ty) })
    }
}
