//! Variables: alignment, shape, and the bytes and addresses that they begin with.

use super::constant::{self, Constant};
use super::{Linking, Parser, Result};
use crate::ptx::ast::{Space, Type, Variable};
use crate::ptx::lexer::Token;
use half::f16;

/// The largest variable, in bytes. No device has as much memory, and sums of such sizes fit into 64 bits.
const LARGEST: usize = 1 << 40;
/// The largest alignment.
const COARSEST: usize = 1 << 20;
/// More dimensions than anyone needs.
const DIMENSIONS: usize = 16;

/// What stands before the names of a declaration.
pub(super) struct Kind {
    pub(super) ty: Type,
    /// Elements of a vector, 1 for none.
    lanes: usize,
    pub(super) align: usize,
}

/// A byte of an address, `0xFF00(generic(name)+4)`.
struct Masked {
    at: usize,
    mask: u64,
    name: String,
    offset: i64,
}

/// An initializer while it is read.
struct Initial {
    ty: Type,
    bytes: Vec<u8>,
    addresses: Vec<(usize, String, i64)>,
    masked: Vec<Masked>,
    /// How far it may reach, where that is known.
    end: Option<usize>,
}

impl<'a> Parser<'a> {
    /// `.global .align 4 .f32 a[2] = {…}, b;`, from the state space on.
    pub(super) fn variables(&mut self, space: Space, linking: Linking, give: &mut dyn FnMut(Variable)) -> Result<()> {
        self.advance()?;
        let kind = self.kind()?;
        loop {
            let line = self.line;
            let (name, dimensions) = self.declarator()?;
            let mut size = self.declared_size(&kind, &dimensions)?;
            // `.extern .shared .b8 s[0]` is an older way to write `s[]`.
            if linking.external && size == Some(0) {
                size = None;
            }
            let mut initial =
                Initial { ty: kind.ty, bytes: Vec::new(), addresses: Vec::new(), masked: Vec::new(), end: size };
            if self.take("=")? {
                if !matches!(space, Space::Global | Space::Constant) {
                    return Err(self.unsupported("an initial value outside of .global and .const"));
                }
                let mut shape = dimensions;
                if kind.lanes > 1 {
                    shape.push(Some(kind.lanes));
                }
                self.initializer(&mut initial, &shape)?;
                if size.is_none() {
                    size = Some(initial.bytes.len());
                }
            }
            let addresses = self.addresses(initial.addresses, &initial.masked)?;
            give(Variable {
                name: name.to_owned(),
                space,
                align: kind.align,
                size,
                initial: initial.bytes,
                addresses,
                external: linking.external,
                line,
            });
            if !self.take(",")? {
                return self.expect(";");
            }
        }
    }

    /// Type, vector length and alignment, in any order. (What a pointer parameter points to is not needed.)
    pub(super) fn kind(&mut self) -> Result<Kind> {
        let (mut ty, mut lanes, mut align) = (None, 1, None);
        while let Token::Directive(name) = self.token {
            match name {
                "align" => {
                    self.advance()?;
                    align = Some(self.alignment()?);
                }
                "v2" | "v4" | "v8" => {
                    lanes = usize::from(name.as_bytes()[1] - b'0');
                    self.advance()?;
                }
                "attribute" => self.attribute()?,
                "ptr" => {
                    self.advance()?;
                    if let Token::Directive("global" | "const" | "shared" | "local" | "param") = self.token {
                        self.advance()?;
                    }
                    if self.token == Token::Directive("align") {
                        self.advance()?;
                        self.alignment()?;
                    }
                }
                "texref" | "samplerref" | "surfref" => return Err(self.unsupported(format!("`.{name}`"))),
                _ => ty = Some(self.fundamental_type()?),
            }
        }
        let Some(ty) = ty else { return Err(self.unexpected("a type")) };
        Ok(Kind { ty, lanes, align: align.unwrap_or(ty.size() * lanes) })
    }

    fn alignment(&mut self) -> Result<usize> {
        let literal = if let Token::Number(text) = self.token { constant::literal(text) } else { None };
        let align = literal.and_then(Constant::unsigned).and_then(|align| usize::try_from(align).ok());
        match align.filter(|align| align.is_power_of_two() && *align <= COARSEST) {
            Some(align) => self.advance().map(|_| align),
            None => Err(self.unexpected("an alignment, a power of two up to 2^20")),
        }
    }

    /// `.attribute(.managed)`, `.attribute(.unified(1, 2))`: what they ask for makes no difference here.
    pub(super) fn attribute(&mut self) -> Result<()> {
        self.advance()?;
        self.expect("(")?;
        let mut depth = 1_usize;
        while depth > 0 {
            match self.token {
                Token::Symbol("(") => depth += 1,
                Token::Symbol(")") => depth -= 1,
                Token::Directive(_) | Token::Number(_) | Token::Symbol(",") => {}
                _ => return Err(self.unexpected("an attribute")),
            }
            self.advance()?;
        }
        Ok(())
    }

    /// A name and its dimensions; `None` for `[]`, which only the first may be.
    pub(super) fn declarator(&mut self) -> Result<(&'a str, Vec<Option<usize>>)> {
        let name = self.word("a name")?;
        let mut dimensions = Vec::new();
        while self.take("[")? {
            if dimensions.len() == DIMENSIONS {
                return Err(self.excessive(format!("more than {DIMENSIONS} dimensions")));
            }
            if dimensions.is_empty() && self.take("]")? {
                dimensions.push(None);
                continue;
            }
            let extent = self.constant()?.unsigned().and_then(|extent| usize::try_from(extent).ok());
            dimensions.push(Some(extent.ok_or_else(|| self.unexpected("the size of an array before it"))?));
            self.expect("]")?;
        }
        Ok((name, dimensions))
    }

    /// Bytes of a variable of this shape; `None` without a first dimension.
    pub(super) fn declared_size(&self, kind: &Kind, dimensions: &[Option<usize>]) -> Result<Option<usize>> {
        let open = dimensions.first() == Some(&None);
        let element = kind.ty.size() * kind.lanes;
        let size = dimensions.iter().flatten().try_fold(element, |size, extent| size.checked_mul(*extent));
        match size.filter(|&size| size <= LARGEST) {
            Some(size) => Ok((!open).then_some(size)),
            None => Err(self.excessive("a variable of more than 2^40 bytes")),
        }
    }

    /// A value, or values in braces for a shape of which dimensions before the first are done.
    fn initializer(&mut self, initial: &mut Initial, shape: &[Option<usize>]) -> Result<()> {
        if shape.is_empty() {
            return self.element(initial, 0).map(drop);
        }
        self.expect("{")?;
        let end = self.braced(initial, shape, 0)?;
        // An array without length is as long as its rows, whole ones.
        if initial.end.is_none() {
            let row = self.extent(initial, &shape[1..])?;
            self.pad(initial, end.next_multiple_of(row.max(1)))?;
        }
        Ok(())
    }

    /// What follows `{`, from byte `start` on; gives the byte after the last that was set.
    fn braced(&mut self, initial: &mut Initial, shape: &[Option<usize>], start: usize) -> Result<usize> {
        let inner = shape.get(1..).unwrap_or_default();
        let part = self.extent(initial, inner)?;
        let end = match shape.first() {
            Some(Some(extent)) => Some(start.saturating_add(part.saturating_mul(*extent))),
            _ => initial.end,
        };
        let mut at = start;
        while !self.take("}")? {
            if end.is_some_and(|end| at >= end) {
                return Err(self.unexpected("`}`, since the array is full"));
            }
            if self.token == Token::Symbol("{") {
                if inner.is_empty() || !(at - start).is_multiple_of(part.max(1)) {
                    return Err(self.unexpected("a value"));
                }
                self.advance()?;
                self.nested(|parser| parser.braced(initial, inner, at))?;
                at = at.saturating_add(part);
            } else {
                at = self.element(initial, at)?;
            }
            if !self.take(",")? {
                self.expect("}")?;
                break;
            }
        }
        Ok(at)
    }

    /// Bytes of a part of this shape. (Their product is below [`LARGEST`] unless one of them is zero.)
    fn extent(&self, initial: &Initial, shape: &[Option<usize>]) -> Result<usize> {
        let size = shape.iter().try_fold(initial.ty.size(), |size, extent| size.checked_mul(extent.unwrap_or(0)));
        size.ok_or_else(|| self.excessive("an array of more than 2^64 bytes"))
    }

    /// Fills up with zeros to `length`.
    fn pad(&mut self, initial: &mut Initial, length: usize) -> Result<()> {
        let Some(left) = self.initial_bytes.checked_sub(length.saturating_sub(initial.bytes.len())) else {
            return Err(self.excessive(format!("more than {} bytes of initial values", super::INITIAL_BYTES)));
        };
        self.initial_bytes = left;
        initial.bytes.resize(length.max(initial.bytes.len()), 0);
        Ok(())
    }

    /// One value at byte `at`; gives the byte after it.
    fn element(&mut self, initial: &mut Initial, at: usize) -> Result<usize> {
        let ty = initial.ty;
        let size = ty.size();
        let end = at.saturating_add(size);
        if initial.end.is_some_and(|limit| end > limit) {
            return Err(self.unexpected("nothing more, since the variable is full"));
        }
        self.pad(initial, end)?;
        if let Token::Number(_) = self.token
            && self.peek()? == Token::Symbol("(")
        {
            let mask = self.number()?;
            self.expect("(")?;
            let (name, offset) = self.symbol_address()?;
            self.expect(")")?;
            if size != 1 {
                return Err(self.unsupported("part of an address in elements of more than one byte"));
            }
            initial.masked.push(Masked { at, mask, name, offset });
            return Ok(end);
        }
        if matches!(self.token, Token::Word(word) if word != "WARP_SZ") {
            let (name, offset) = self.symbol_address()?;
            if size != 8 {
                return Err(self.unsupported("an address that is not 8 bytes long"));
            }
            initial.addresses.push((at, name, offset));
            return Ok(end);
        }
        let value = self.constant()?;
        let bits = match (ty, value) {
            // Bits as they are, not by way of another type, which could change those of a NaN.
            (Type::F32 | Type::B32, Constant::Single(bits)) => u64::from(bits),
            (Type::F64 | Type::B64, Constant::Double(bits)) => bits,
            (Type::F16, value) => u64::from(f16::from_f64(value.real()).to_bits()),
            (Type::F32, value) => u64::from((value.real() as f32).to_bits()),
            (Type::F64, value) => value.real().to_bits(),
            (Type::B128 | Type::Pred, _) => return Err(self.unsupported("an initial value of this type")),
            (_, value) => value.bits().ok_or_else(|| self.unexpected("an integer before it"))?,
        };
        initial.bytes[at..end].copy_from_slice(&bits.to_le_bytes()[..size]);
        Ok(end)
    }

    /// `name`, `name + 4`, `generic(name) + 4`.
    fn symbol_address(&mut self) -> Result<(String, i64)> {
        let mut name = self.word("the name of a variable or function")?;
        if name == "generic" && self.take("(")? {
            name = self.word("the name of a variable")?;
            self.expect(")")?;
        }
        Ok((name.to_owned(), self.offset()?))
    }

    /// The addresses of an initializer, those included that are written byte by byte.
    fn addresses(
        &self,
        mut addresses: Vec<(usize, String, i64)>,
        masked: &[Masked],
    ) -> Result<Vec<(usize, String, i64)>> {
        for bytes in masked.chunks(8) {
            let first = &bytes[0];
            let whole = bytes.len() == 8
                && bytes.iter().enumerate().all(|(index, byte)| {
                    byte.mask == 0xFF << (8 * index)
                        && byte.at == first.at + index
                        && (&byte.name, byte.offset) == (&first.name, first.offset)
                });
            if !whole {
                return Err(self.unsupported("part of an address that is not followed by the rest of its bytes"));
            }
            addresses.push((first.at, first.name.clone(), first.offset));
        }
        Ok(addresses)
    }
}
