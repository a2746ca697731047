//! From tokens to the syntax tree: this file reads what stands at module level, and holds the cursor that all parts
//! share. Nothing that the text says can make the parser panic, overflow its stack, or allocate out of proportion to the
//! length of the text.

mod body;
mod constant;
mod function;
mod operand;
#[cfg(test)]
mod tests;
mod variable;

use super::ast::{Function, Module, Operand, Space, Statement, Target, Variable};
use super::error::ParseError;
use super::lexer::{Lexer, Token};
use std::collections::{HashMap, HashSet};

/// Registers that `%r<n>` may declare in a module, however short its text is. (Whoever uses them must write them down,
/// so that a text of n bytes never needs more than n.)
const REGISTERS: usize = 1 << 20;
/// Bytes that initializers may fill beyond those they list, in a module.
const INITIAL_BYTES: usize = 1 << 26;
/// The deepest nesting of scopes, of braces in an initializer and of parentheses in an expression.
const NESTING: usize = 64;

type Result<T> = std::result::Result<T, ParseError>;

/// Takes a PTX text apart.
///
/// Accepted is ISA 8.0 to 9.x for sm_80 and later, with 64-bit addresses. Debug sections and pragmas are skipped;
/// an `.alias` is replaced by what it stands for. What instructions mean is not looked at.
///
/// # Errors
/// If the text is not PTX, or PTX that cannot be run here (textures, 32-bit addresses, older versions and targets), with
/// the line at fault.
pub fn parse(text: &str) -> Result<Module> {
    let mut parser = Parser::new(text)?;
    parser.module()
}

/// The linking directives before a declaration.
#[derive(Clone, Copy, Default)]
struct Linking {
    external: bool,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` stands.
    line: u32,
    /// What is left of the limits.
    registers: usize,
    initial_bytes: usize,
    nesting: usize,
    /// What is defined in the module.
    defined: HashMap<String, Definition>,
    /// What is defined in the scope that is being read.
    names: HashSet<String>,
}

/// What a name of the module stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Definition {
    /// A kernel or a device function; whether it has its body.
    Function { is_entry: bool, whole: bool },
    /// A variable; whether it is defined elsewhere.
    Variable { external: bool },
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        let mut lexer = Lexer::new(text);
        let (registers, initial_bytes) = (REGISTERS.max(lexer.text_len()), INITIAL_BYTES);
        let (token, line) = lexer.next()?;
        let (defined, names) = (HashMap::new(), HashSet::new());
        Ok(Self { lexer, token, line, registers, initial_bytes, nesting: NESTING, defined, names })
    }

    fn module(&mut self) -> Result<Module> {
        let version = self.version()?;
        let mut module = Module { version, target: self.target(version)?, ..Module::default() };
        let mut aliases = HashMap::new();
        loop {
            match self.token {
                Token::End => break,
                Token::Directive("address_size") => {
                    self.advance()?;
                    if self.token != Token::Number("64") {
                        return Err(self.unsupported("an address size other than 64"));
                    }
                    self.advance()?;
                }
                Token::Directive("file") => module.files.push(self.file()?),
                Token::Directive("section") => self.section()?,
                Token::Directive("loc") => drop(self.location()?),
                Token::Directive("pragma") => self.pragma()?,
                Token::Directive("alias") => {
                    self.advance()?;
                    let alias = self.word("the alias")?;
                    self.expect(",")?;
                    aliases.insert(alias, self.word("a function")?.to_owned());
                    self.expect(";")?;
                }
                _ => self.declaration(&mut module)?,
            }
        }
        replace_aliases(&mut module, &aliases);
        Ok(module)
    }

    fn version(&mut self) -> Result<(u32, u32)> {
        self.expect_directive("version")?;
        let line = self.line;
        let Token::Number(text) = self.token else { return Err(self.unexpected("a version")) };
        let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some((major, minor)) = parts else { return Err(self.unexpected("a version such as 9.0")) };
        self.advance()?;
        if !(8..=9).contains(&major) {
            return Err(ParseError::UnsupportedVersion { line, major, minor });
        }
        Ok((major, minor))
    }

    fn target(&mut self, version: (u32, u32)) -> Result<Target> {
        self.expect_directive("target")?;
        let mut target = None;
        loop {
            let line = self.line;
            let word = self.word("a target")?;
            if let Some(name) = word.strip_prefix("sm_") {
                let digits = name.bytes().take_while(u8::is_ascii_digit).count();
                let suffix = match &name[digits..] {
                    "" => Some(None),
                    "a" => Some(Some('a')),
                    "f" => Some(Some('f')),
                    _ => None,
                };
                match (name[..digits].parse(), suffix) {
                    (Ok(architecture), Some(suffix)) => {
                        let named = Target { architecture, suffix };
                        match named.first_version() {
                            Some(first) if first <= version => target = Some(named),
                            Some(first) => {
                                return Err(ParseError::TargetNeedsVersion { line, target: named, first, version });
                            }
                            None => return Err(ParseError::UnsupportedTarget { line, target: word.to_owned() }),
                        }
                    }
                    _ => return Err(ParseError::UnsupportedTarget { line, target: word.to_owned() }),
                }
            } else if !matches!(word, "debug" | "texmode_unified" | "texmode_independent") {
                return Err(ParseError::UnsupportedTarget { line, target: word.to_owned() });
            }
            if !self.take(",")? {
                break;
            }
        }
        target.ok_or_else(|| self.unexpected("a target architecture such as sm_80"))
    }

    /// `.file 1 "name"`, perhaps with time and size.
    fn file(&mut self) -> Result<(u32, String)> {
        self.advance()?;
        let index = self.number()?;
        let Token::Text(name) = self.token else { return Err(self.unexpected("the name of a file in quotes")) };
        self.advance()?;
        while self.take(",")? {
            self.number::<u64>()?;
        }
        Ok((index, name.to_owned()))
    }

    /// `.section .debug_info { … }`, which nothing here reads.
    fn section(&mut self) -> Result<()> {
        self.advance()?;
        self.advance()?;
        self.expect("{")?;
        let mut depth = 1_usize;
        while depth > 0 {
            match self.advance()? {
                Token::Symbol("{") => depth += 1,
                Token::Symbol("}") => depth -= 1,
                Token::End => return Err(self.unexpected("`}`")),
                _ => {}
            }
        }
        Ok(())
    }

    fn pragma(&mut self) -> Result<()> {
        self.advance()?;
        loop {
            let Token::Text(_) = self.token else { return Err(self.unexpected("a pragma in quotes")) };
            self.advance()?;
            if !self.take(",")? {
                return self.expect(";");
            }
        }
    }

    /// `.loc file line column`, perhaps with `, function_name label+offset, inlined_at file line column`.
    fn location(&mut self) -> Result<Statement> {
        self.advance()?;
        let (file, line) = (self.number()?, self.number()?);
        self.number::<u64>()?;
        let mut inlined_at = None;
        while self.take(",")? {
            match self.word("function_name or inlined_at")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.take("+")? {
                        self.number::<u64>()?;
                    }
                }
                "inlined_at" => {
                    inlined_at = Some((self.number()?, self.number()?));
                    self.number::<u64>()?;
                }
                _ => return Err(self.unexpected("function_name or inlined_at before it")),
            }
        }
        Ok(Statement::Location { file, line, inlined_at })
    }

    /// A variable or a function.
    fn declaration(&mut self, module: &mut Module) -> Result<()> {
        let linking = self.linking()?;
        match self.token {
            Token::Directive(kind @ ("entry" | "func")) => {
                let function = self.function(kind == "entry")?;
                self.define_function(&function)?;
                module.functions.push(function);
            }
            Token::Directive(name) => match space(name) {
                Some(Space::Parameter) | None => return Err(self.unexpected("a directive of a module")),
                Some(space) => {
                    let before = module.variables.len();
                    self.variables(space, linking, &mut |variable| module.variables.push(variable))?;
                    for variable in &module.variables[before..] {
                        self.define_variable(variable)?;
                    }
                }
            },
            _ => return Err(self.unexpected("a directive of a module")),
        }
        Ok(())
    }

    /// A function may be declared as often as one likes, and defined once.
    fn define_function(&mut self, function: &Function) -> Result<()> {
        let (is_entry, whole) = (function.is_entry, function.body.is_some());
        let before = self.defined.get(&function.name).copied();
        let whole = match before {
            None => whole,
            Some(Definition::Function { is_entry: same, whole: already })
                if same == is_entry && !(already && whole) =>
            {
                already || whole
            }
            Some(_) => return Err(self.duplicate(&function.name, function.line)),
        };
        self.defined.insert(function.name.clone(), Definition::Function { is_entry, whole });
        Ok(())
    }

    /// The same of a variable, of which `.extern` is the declaration.
    fn define_variable(&mut self, variable: &Variable) -> Result<()> {
        let external = match self.defined.get(&variable.name) {
            None => variable.external,
            Some(Definition::Variable { external }) if *external || variable.external => *external && variable.external,
            Some(_) => return Err(self.duplicate(&variable.name, variable.line)),
        };
        self.defined.insert(variable.name.clone(), Definition::Variable { external });
        Ok(())
    }

    /// Takes a name into the scope that is being read.
    fn define(&mut self, name: &str, line: u32) -> Result<()> {
        if self.names.insert(name.to_owned()) { Ok(()) } else { Err(self.duplicate(name, line)) }
    }

    fn duplicate(&self, name: &str, line: u32) -> ParseError {
        ParseError::Duplicate { line, name: name.to_owned(), text: self.lexer.quote(line) }
    }

    fn linking(&mut self) -> Result<Linking> {
        let mut linking = Linking::default();
        loop {
            match self.token {
                Token::Directive("extern") => linking.external = true,
                Token::Directive("visible" | "weak" | "common") => {}
                _ => return Ok(linking),
            }
            self.advance()?;
        }
    }

    /// Goes to the next token, and gives the one that was current.
    fn advance(&mut self) -> Result<Token<'a>> {
        let current = self.token;
        (self.token, self.line) = self.lexer.next()?;
        Ok(current)
    }

    /// The token after the current one.
    fn peek(&self) -> Result<Token<'a>> {
        Ok(self.lexer.clone().next()?.0)
    }

    /// Steps over a symbol if it is the current token.
    fn take(&mut self, symbol: &str) -> Result<bool> {
        let there = matches!(self.token, Token::Symbol(found) if found == symbol);
        if there {
            self.advance()?;
        }
        Ok(there)
    }

    fn expect(&mut self, symbol: &str) -> Result<()> {
        if self.take(symbol)? { Ok(()) } else { Err(self.unexpected(&format!("`{symbol}`"))) }
    }

    fn expect_directive(&mut self, name: &str) -> Result<()> {
        match self.token {
            Token::Directive(found) if found == name => self.advance().map(drop),
            _ => Err(self.unexpected(&format!("`.{name}`"))),
        }
    }

    fn word(&mut self, expected: &str) -> Result<&'a str> {
        let Token::Word(word) = self.token else { return Err(self.unexpected(expected)) };
        self.advance()?;
        Ok(word)
    }

    /// A number without sign that fits.
    fn number<T: TryFrom<u64>>(&mut self) -> Result<T> {
        let Token::Number(text) = self.token else { return Err(self.unexpected("a number")) };
        let value = constant::literal(text).and_then(constant::Constant::unsigned);
        let Some(value) = value.and_then(|value| T::try_from(value).ok()) else {
            return Err(self.unexpected("a number without sign that fits"));
        };
        self.advance()?;
        Ok(value)
    }

    /// Does `inner` one level deeper.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Some(left) = self.nesting.checked_sub(1) else {
            return Err(self.excessive(format!("nested deeper than {NESTING} levels")));
        };
        self.nesting = left;
        let result = inner(self);
        self.nesting += 1;
        result
    }

    /// The error that the current token is not what should be here.
    fn unexpected(&self, expected: &str) -> ParseError {
        ParseError::Unexpected {
            line: self.line,
            found: self.token.to_string(),
            expected: expected.to_owned(),
            text: self.lexer.quote(self.line),
        }
    }

    fn unsupported(&self, what: impl Into<String>) -> ParseError {
        ParseError::Unsupported { line: self.line, what: what.into(), text: self.lexer.quote(self.line) }
    }

    fn excessive(&self, what: impl Into<String>) -> ParseError {
        ParseError::Excessive { line: self.line, what: what.into(), text: self.lexer.quote(self.line) }
    }
}

/// The space that a directive names.
fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Constant,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Parameter,
        _ => return None,
    })
}

/// Puts functions in the place of their aliases, in calls and in initializers. An alias of an alias is none: PTX demands
/// a function that is defined.
fn replace_aliases(module: &mut Module, aliases: &HashMap<&str, String>) {
    fn replace(name: &mut String, aliases: &HashMap<&str, String>) {
        if let Some(function) = aliases.get(name.as_str()) {
            name.clone_from(function);
        }
    }
    fn walk(statements: &mut [Statement], aliases: &HashMap<&str, String>) {
        for statement in statements {
            match statement {
                Statement::Scope(inner) => walk(inner, aliases),
                Statement::Instruction(instruction) if instruction.opcode == "call" => {
                    for operand in &mut instruction.operands {
                        if let Operand::Name(name) = operand {
                            replace(name, aliases);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    if aliases.is_empty() {
        return;
    }
    for variable in &mut module.variables {
        for (_, name, _) in &mut variable.addresses {
            replace(name, aliases);
        }
    }
    module.functions.retain(|Function { name, body, .. }| body.is_some() || !aliases.contains_key(name.as_str()));
    for function in &mut module.functions {
        walk(function.body.as_deref_mut().unwrap_or_default(), aliases);
    }
}
