//! Floating-point arithmetic: PTX ISA 9.7.3, here of single precision; [`super::double`] has double precision.
//!
//! Each operation is rounded once in its direction; a NaN that comes out is 0x7fffffff.

use super::forms::{check, no_type, operands};
use super::rounding::{Rounding, canonical, flush, saturate};
use super::{Decoded, approximate, double};
use crate::machine::Class;
use crate::machine::registers::{D, P, Registers, W, mask_of};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    One(One, Style, W, W),
    Two(Two, Style, W, W, W),
    Fma(Style, W, W, W, W),
    /// The extreme of two or three numbers.
    Extreme(Extreme, W, W, W, Option<W>),
    Test(Test, P, W),
    /// `.f32x2`: two singles in a double.
    Packed(Packed, Style, D, D, D, D),
    Double(double::Op),
}

/// Modifiers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// The direction of rounding.
    pub mode: Rounding,
    /// `.ftz`: subnormal sources and results are zeros.
    pub ftz: bool,
    /// `.sat`: clamped to [0, 1].
    pub sat: bool,
}

/// Operations on one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum One {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

/// Operations on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Two {
    Add,
    Sub,
    Mul,
    Div,
    DivApproximate,
    CopySign,
}

/// Operations on pairs of singles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Packed {
    Add,
    Sub,
    Mul,
    Fma,
}

/// `min` and `max` with their modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extreme {
    /// `max`.
    pub max: bool,
    /// `.NaN`: a NaN among the sources is the result; else the other source is.
    pub nan: bool,
    /// `.abs`: of magnitudes.
    pub abs: bool,
    /// `.xorsign`: the result has the product's sign.
    pub xorsign: bool,
    /// `.ftz`.
    pub ftz: bool,
}

impl Extreme {
    /// Reads the modifiers.
    pub fn decode(instruction: &Instruction) -> Self {
        Self {
            max: instruction.opcode == "max",
            nan: instruction.has("NaN"),
            abs: instruction.has("abs"),
            xorsign: instruction.has("xorsign"),
            ftz: instruction.has("ftz"),
        }
    }

    /// Of two numbers; −0 is below +0. The NaN that may come out is any.
    #[inline(always)]
    pub fn of(self, a: f32, b: f32) -> f32 {
        let (a, b) = (flush(a, self.ftz), flush(b, self.ftz));
        let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
        let (a, b) = if self.abs { (a.abs(), b.abs()) } else { (a, b) };
        let first =
            if self.max { a > b || a == b && a.is_sign_positive() } else { a < b || a == b && a.is_sign_negative() };
        let result = if first || b.is_nan() { a } else { b };
        let result = if self.xorsign { f32::from_bits(result.to_bits() | sign) } else { result };
        if self.nan && (a.is_nan() || b.is_nan()) { f32::NAN } else { result }
    }
}

/// What `testp` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Test {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

impl Test {
    /// The question of a `testp`.
    ///
    /// # Errors
    /// If there is none.
    pub fn decode(instruction: &Instruction) -> Result<Self, Reason> {
        Ok(match instruction.modifiers.first().map_or("", String::as_str) {
            "finite" => Self::Finite,
            "infinite" => Self::Infinite,
            "number" => Self::Number,
            "notanumber" => Self::NotANumber,
            "normal" => Self::Normal,
            "subnormal" => Self::Subnormal,
            other => return Err(format!("testp has no .{other}")),
        })
    }
}

/// The modifiers of `testp`.
pub(super) const TESTS: &[&str] = &["finite", "infinite", "number", "notanumber", "normal", "subnormal"];

impl Style {
    /// The modifiers of an instruction; the direction is to nearest where none is given.
    ///
    /// # Errors
    /// If two directions are given.
    pub fn decode(instruction: &Instruction) -> Result<Self, Reason> {
        let mut modes = instruction.modifiers.iter().filter_map(|modifier| Rounding::parse(modifier));
        let mode = modes.next().unwrap_or(Rounding::Nearest);
        if modes.next().is_some() {
            return Err(format!("{} is given two roundings", instruction.opcode));
        }
        Ok(Self { mode, ftz: instruction.has("ftz"), sat: instruction.has("sat") })
    }

    /// Sources as they enter.
    #[inline(always)]
    fn source(self, x: f32) -> f32 {
        flush(x, self.ftz)
    }

    /// The result as it leaves.
    #[inline(always)]
    fn result(self, x: f32) -> u32 {
        canonical(saturate(flush(x, self.ftz), self.sat))
    }
}

/// The one direction or approximation that an instruction must name.
pub(super) fn need_one(instruction: &Instruction, choices: &[&str]) -> Result<(), Reason> {
    match instruction.modifiers.iter().filter(|modifier| choices.contains(&modifier.as_str())).count() {
        1 => Ok(()),
        _ => Err(format!("{} takes one of .{} here", instruction.opcode, choices.join(", ."))),
    }
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let op = if instruction.has("f32x2") {
        packed(scope, instruction)?
    } else {
        match instruction.types().next() {
            Some(Type::F32) => single(scope, instruction)?,
            Some(Type::F64) => double::decode(scope, instruction)?.map(Op::Double),
            _ => None,
        }
    };
    Ok(op.map(super::Op::Float))
}

fn packed(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Option<Op>, Reason> {
    let kind = match instruction.opcode.as_str() {
        "add" => Packed::Add,
        "sub" => Packed::Sub,
        "mul" => Packed::Mul,
        "fma" => Packed::Fma,
        _ => return Ok(None),
    };
    check(instruction, &["rn", "rz", "rm", "rp", "ftz", "f32x2"], 0)?;
    let style = Style::decode(instruction)?;
    let (d, a, b, c) = if kind == Packed::Fma {
        need_one(instruction, &["rn", "rz", "rm", "rp"])?;
        let [d, a, b, c] = operands(instruction)?;
        (d, a, b, c)
    } else {
        let [d, a, b] = operands(instruction)?;
        (d, a, b, b)
    };
    let ty = Type::B64;
    let (d, a, b, c) = (scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?, scope.double(c, ty)?);
    Ok(Some(Op::Packed(kind, style, d, a, b, c)))
}

fn single(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Option<Op>, Reason> {
    const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];
    let ty = Type::F32;
    let opcode = instruction.opcode.as_str();
    let one = |kind| Ok::<_, Reason>((kind, operands::<2>(instruction)?));
    let (kind, [d, a]) = match opcode {
        "add" | "sub" | "mul" | "div" | "copysign" => return two(scope, instruction).map(Some),
        "fma" | "mad" => {
            check(instruction, &["rn", "rz", "rm", "rp", "ftz", "sat"], 1)?;
            need_one(instruction, &MODES)?;
            let [d, a, b, c] = operands(instruction)?;
            let style = Style::decode(instruction)?;
            let d = scope.word_to(d, ty)?;
            return Ok(Some(Op::Fma(style, d, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?)));
        }
        "min" | "max" => return extreme(scope, instruction).map(Some),
        "testp" => {
            check(instruction, TESTS, 1)?;
            let [p, a] = operands(instruction)?;
            return Ok(Some(Op::Test(Test::decode(instruction)?, scope.predicate_to(p)?, scope.word(a, ty)?)));
        }
        "neg" | "abs" => {
            check(instruction, &["ftz"], 1)?;
            one(if opcode == "neg" { One::Neg } else { One::Abs })?
        }
        "rcp" | "sqrt" => {
            check(instruction, &["approx", "rn", "rz", "rm", "rp", "ftz"], 1)?;
            need_one(instruction, &["approx", "rn", "rz", "rm", "rp"])?;
            one(if opcode == "rcp" { One::Rcp } else { One::Sqrt })?
        }
        "rsqrt" | "sin" | "cos" | "lg2" | "ex2" => {
            check(instruction, &["approx", "ftz"], 1)?;
            need_one(instruction, &["approx"])?;
            one(match opcode {
                "rsqrt" => One::Rsqrt,
                "sin" => One::Sin,
                "cos" => One::Cos,
                "lg2" => One::Lg2,
                _ => One::Ex2,
            })?
        }
        "tanh" => {
            check(instruction, &["approx"], 1)?;
            need_one(instruction, &["approx"])?;
            one(One::Tanh)?
        }
        _ => return Ok(None),
    };
    Ok(Some(Op::One(kind, Style::decode(instruction)?, scope.word_to(d, ty)?, scope.word(a, ty)?)))
}

fn two(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let kind = match instruction.opcode.as_str() {
        "copysign" => {
            check(instruction, &[], 1)?;
            Two::CopySign
        }
        "div" => {
            check(instruction, &["approx", "full", "rn", "rz", "rm", "rp", "ftz"], 1)?;
            need_one(instruction, &["approx", "full", "rn", "rz", "rm", "rp"])?;
            // `.full` allows an error of two last places over the whole range: the quotient itself will do.
            if instruction.has("approx") { Two::DivApproximate } else { Two::Div }
        }
        opcode => {
            check(instruction, &["rn", "rz", "rm", "rp", "ftz", "sat"], 1)?;
            match opcode {
                "add" => Two::Add,
                "sub" => Two::Sub,
                "mul" => Two::Mul,
                _ => return no_type(instruction),
            }
        }
    };
    let [d, a, b] = operands(instruction)?;
    let style = Style::decode(instruction)?;
    Ok(Op::Two(kind, style, scope.word_to(d, Type::F32)?, scope.word(a, Type::F32)?, scope.word(b, Type::F32)?))
}

fn extreme(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(instruction, &["ftz", "NaN", "xorsign", "abs"], 1)?;
    let kind = Extreme::decode(instruction);
    let (d, a, b, c): (_, _, _, Option<&Operand>) = match instruction.operands.as_slice() {
        [d, a, b, c] => (d, a, b, Some(c)),
        _ => {
            let [d, a, b] = operands(instruction)?;
            (d, a, b, None)
        }
    };
    // Of two numbers `.xorsign.abs` comes together; of three there is `.abs` alone.
    if kind.xorsign && (c.is_some() || !kind.abs) || kind.abs && !kind.xorsign && c.is_none() {
        return Err(format!("{} of two takes .xorsign.abs, of three .abs", instruction.opcode));
    }
    let c = c.map(|c| scope.word(c, Type::F32)).transpose()?;
    Ok(Op::Extreme(kind, scope.word_to(d, Type::F32)?, scope.word(a, Type::F32)?, scope.word(b, Type::F32)?, c))
}

#[inline(always)]
fn map1(r: &mut Registers, m: u32, style: Style, d: W, a: W, f: impl Fn(f32) -> f32) {
    r.map1(d, m, a, |a| style.result(f(style.source(f32::from_bits(a)))));
}

/// Without modifiers, which is what nearly all programs use, there is nothing to do before and after.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn map2(r: &mut Registers, m: u32, style: Style, d: W, a: W, b: W, f: impl Fn(f32, f32) -> f32) {
    if style.ftz || style.sat {
        r.map2(d, m, a, b, |a, b| style.result(f(style.source(f32::from_bits(a)), style.source(f32::from_bits(b)))));
    } else {
        r.map2(d, m, a, b, |a, b| canonical(f(f32::from_bits(a), f32::from_bits(b))));
    }
}

impl Op {
    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match self {
            Self::Double(_) => Class::Float64,
            _ => Class::Float32,
        }
    }

    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::One(kind, style, d, a) => kind.execute(r, m, style, d, a),
            Self::Two(kind, style, d, a, b) => kind.execute(r, m, style, d, a, b),
            Self::Fma(Style { mode: Rounding::Nearest, ftz: false, sat: false }, d, a, b, c) => {
                r.map3(d, m, a, b, c, |a, b, c| {
                    canonical(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)))
                });
            }
            Self::Fma(style, d, a, b, c) => {
                let source = |x| style.source(f32::from_bits(x));
                if style.mode == Rounding::Nearest {
                    r.map3(d, m, a, b, c, |a, b, c| style.result(source(a).mul_add(source(b), source(c))));
                } else {
                    r.map3(d, m, a, b, c, |a, b, c| style.result(style.mode.fma_f32(source(a), source(b), source(c))));
                }
            }
            Self::Extreme(kind, d, a, b, None) => {
                r.map2(d, m, a, b, |a, b| canonical(kind.of(f32::from_bits(a), f32::from_bits(b))));
            }
            Self::Extreme(kind, d, a, b, Some(c)) => r.map3(d, m, a, b, c, |a, b, c| {
                canonical(kind.of(kind.of(f32::from_bits(a), f32::from_bits(b)), f32::from_bits(c)))
            }),
            Self::Test(test, p, a) => {
                let a = r.word(a);
                let lanes = match test {
                    Test::Finite => mask_of(|lane| f32::from_bits(a[lane]).is_finite()),
                    Test::Infinite => mask_of(|lane| f32::from_bits(a[lane]).is_infinite()),
                    Test::Number => mask_of(|lane| !f32::from_bits(a[lane]).is_nan()),
                    Test::NotANumber => mask_of(|lane| f32::from_bits(a[lane]).is_nan()),
                    Test::Normal => mask_of(|lane| f32::from_bits(a[lane]).is_normal()),
                    Test::Subnormal => mask_of(|lane| f32::from_bits(a[lane]).is_subnormal()),
                };
                r.set_predicate(p, m, lanes);
            }
            Self::Packed(kind, style, d, a, b, c) => {
                let source = |x: u64| style.source(f32::from_bits(x as u32));
                let both = |a: u64, b: u64, c: u64, f: &dyn Fn(f32, f32, f32) -> f32| {
                    let low = style.result(f(source(a), source(b), source(c)));
                    let high = style.result(f(source(a >> 32), source(b >> 32), source(c >> 32)));
                    u64::from(high) << 32 | u64::from(low)
                };
                let mode = style.mode;
                match kind {
                    Packed::Add => r.double_map2(d, m, a, b, |a, b| both(a, b, 0, &|a, b, _| mode.add_f32(a, b))),
                    Packed::Sub => r.double_map2(d, m, a, b, |a, b| both(a, b, 0, &|a, b, _| mode.add_f32(a, -b))),
                    Packed::Mul => r.double_map2(d, m, a, b, |a, b| both(a, b, 0, &|a, b, _| mode.mul_f32(a, b))),
                    Packed::Fma => {
                        r.double_map3(d, m, a, b, c, |a, b, c| both(a, b, c, &|a, b, c| mode.fma_f32(a, b, c)));
                    }
                }
            }
            Self::Double(ref op) => op.execute(r, m),
        }
    }
}

impl One {
    #[inline(always)]
    fn execute(self, r: &mut Registers, m: u32, style: Style, d: W, a: W) {
        let mode = style.mode;
        match self {
            Self::Neg => r.map1(d, m, a, |a| flush(f32::from_bits(a), style.ftz).to_bits() ^ 0x8000_0000),
            Self::Abs => r.map1(d, m, a, |a| flush(f32::from_bits(a), style.ftz).to_bits() & 0x7fff_ffff),
            Self::Rcp => map1(r, m, style, d, a, |a| mode.div_f32(1.0, a)),
            Self::Sqrt => map1(r, m, style, d, a, |a| mode.sqrt_f32(a)),
            Self::Rsqrt => map1(r, m, style, d, a, approximate::rsqrt),
            Self::Sin => map1(r, m, style, d, a, approximate::sin),
            Self::Cos => map1(r, m, style, d, a, approximate::cos),
            Self::Lg2 => map1(r, m, style, d, a, approximate::log2),
            Self::Ex2 => map1(r, m, style, d, a, approximate::exp2),
            Self::Tanh => map1(r, m, style, d, a, approximate::tanh),
        }
    }
}

impl Two {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn execute(self, r: &mut Registers, m: u32, style: Style, d: W, a: W, b: W) {
        let mode = style.mode;
        match (self, mode) {
            (Self::Add, Rounding::Nearest) => map2(r, m, style, d, a, b, |a, b| a + b),
            (Self::Sub, Rounding::Nearest) => map2(r, m, style, d, a, b, |a, b| a - b),
            (Self::Mul, Rounding::Nearest) => map2(r, m, style, d, a, b, |a, b| a * b),
            (Self::Div, Rounding::Nearest) => map2(r, m, style, d, a, b, |a, b| a / b),
            (Self::Add, _) => map2(r, m, style, d, a, b, |a, b| mode.add_f32(a, b)),
            (Self::Sub, _) => map2(r, m, style, d, a, b, |a, b| mode.add_f32(a, -b)),
            (Self::Mul, _) => map2(r, m, style, d, a, b, |a, b| mode.mul_f32(a, b)),
            (Self::Div, _) => map2(r, m, style, d, a, b, |a, b| mode.div_f32(a, b)),
            (Self::DivApproximate, _) => map2(r, m, style, d, a, b, approximate::div),
            (Self::CopySign, _) => r.map2(d, m, a, b, |a, b| a & 0x8000_0000 | b & 0x7fff_ffff),
        }
    }
}

#[cfg(test)]
mod tests;
