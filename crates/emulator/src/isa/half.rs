//! Half-precision arithmetic, one number a register or two (`x2`): PTX ISA 9.7.4 and the half forms of `min`, `max`,
//! `ex2` and `tanh`.
//!
//! Each result is rounded once. A single has more than twice the bits of a half and two, so sums and products may be
//! rounded to it before without harm (Figueroa 1995); what that does not cover is rounded to odd before.

use super::Decoded;
use super::float::{Extreme, need_one};
use super::forms::{check, operands};
use super::rounding::{
    bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, narrow_odd, odd, odd_f32, saturate, two_sum, two_sum_f32,
};
use super::{approximate, forms};
use crate::machine::registers::{Registers, W};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family: what, in which format, and destination and sources; those that an operation does
/// not have repeat another.
#[derive(Clone, Debug)]
pub struct Op {
    kind: Kind,
    format: Format,
    style: Style,
    d: W,
    a: W,
    b: W,
    c: W,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    Mul,
    Fma,
    Neg,
    Abs,
    Extreme(Extreme),
    Ex2,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F16,
    F16x2,
    Bf16,
    Bf16x2,
}

/// Modifiers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Style {
    /// Subnormal sources and results are zeros.
    ftz: bool,
    /// Clamped to [0, 1].
    sat: bool,
    /// Negative results are zero.
    relu: bool,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let Some(ty) = instruction.types().next() else { return Ok(None) };
    let format = match ty {
        Type::F16 => Format::F16,
        Type::F16x2 => Format::F16x2,
        Type::Bf16 => Format::Bf16,
        Type::Bf16x2 => Format::Bf16x2,
        _ => return Ok(None),
    };
    let brain = matches!(format, Format::Bf16 | Format::Bf16x2);
    let opcode = instruction.opcode.as_str();
    let (kind, allowed, sources): (_, &[&str], _) = match opcode {
        "add" | "sub" | "mul" => {
            let kind = match opcode {
                "add" => Kind::Add,
                "sub" => Kind::Sub,
                _ => Kind::Mul,
            };
            (kind, if brain { &["rn"] } else { &["rn", "ftz", "sat"] }, 2)
        }
        "fma" => (Kind::Fma, if brain { &["rn", "relu"] } else { &["rn", "ftz", "sat", "relu"] }, 3),
        "neg" | "abs" => (if opcode == "neg" { Kind::Neg } else { Kind::Abs }, if brain { &[] } else { &["ftz"] }, 1),
        "min" | "max" => {
            let allowed: &[&str] = if brain { &["NaN", "xorsign", "abs"] } else { &["ftz", "NaN", "xorsign", "abs"] };
            // Flushing is done here, where it is known what is subnormal.
            let extreme = Extreme { ftz: false, ..Extreme::decode(instruction) };
            if extreme.abs != extreme.xorsign {
                return Err(format!("{opcode} takes .xorsign.abs"));
            }
            (Kind::Extreme(extreme), allowed, 2)
        }
        "ex2" => (Kind::Ex2, if brain { &["approx", "ftz"] } else { &["approx"] }, 1),
        "tanh" => (Kind::Tanh, &["approx"], 1),
        _ => return Ok(None),
    };
    check(instruction, allowed, 1)?;
    match kind {
        Kind::Fma => need_one(instruction, &["rn"])?,
        Kind::Ex2 | Kind::Tanh => need_one(instruction, &["approx"])?,
        _ => {}
    }
    let style = Style { ftz: instruction.has("ftz"), sat: instruction.has("sat"), relu: instruction.has("relu") };
    if style.sat && style.relu {
        return Err("fma takes .sat or .relu, not both".to_owned());
    }
    let (d, [a, b, c]) = match sources {
        1 => {
            let [d, a] = operands(instruction)?;
            (d, [a, a, a])
        }
        2 => {
            let [d, a, b] = operands(instruction)?;
            (d, [a, b, b])
        }
        _ => {
            let [d, a, b, c] = operands(instruction)?;
            (d, [a, b, c])
        }
    };
    let mut source = |operand: &Operand| -> Result<W, Reason> {
        match operand {
            Operand::Single(_) | Operand::Double(_) => forms::no_type(instruction),
            _ => scope.word(operand, ty),
        }
    };
    let (a, b, c) = (source(a)?, source(b)?, source(c)?);
    Ok(Some(super::Op::Half(Op { kind, format, style, d: scope.word_to(d, ty)?, a, b, c })))
}

/// What the two formats do differently. Bits are those of one number, in the low half of a word.
trait Number {
    fn widen(bits: u32) -> f32;
    /// To nearest; a NaN to the canonical one, 0x7fff.
    fn narrow(x: f32) -> u32;
    /// The bits of the exponent.
    const EXPONENT: u32;
    /// a · b + c, such that [`Number::narrow`] rounds it as if it were exact.
    fn fma(a: f32, b: f32, c: f32) -> f32;

    /// A subnormal number as the zero of its sign.
    #[inline(always)]
    fn flush(bits: u32, ftz: bool) -> u32 {
        if ftz && bits & Self::EXPONENT == 0 { bits & 0x8000 } else { bits }
    }
}

struct F16;
struct Bf16;

impl Number for F16 {
    const EXPONENT: u32 = 0x7c00;

    #[inline(always)]
    fn widen(bits: u32) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    fn narrow(x: f32) -> u32 {
        f32_to_f16(x)
    }

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        odd_f32(two_sum_f32(a * b, c))
    }
}

impl Number for Bf16 {
    const EXPONENT: u32 = 0x7f80;

    #[inline(always)]
    fn widen(bits: u32) -> f32 {
        bf16_to_f32(bits)
    }

    #[inline(always)]
    fn narrow(x: f32) -> u32 {
        f32_to_bf16(x)
    }

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        narrow_odd(odd(two_sum(f64::from(a) * f64::from(b), f64::from(c))))
    }
}

/// `f` on the number or the two numbers of words.
#[inline(always)]
fn each(packed: bool, a: u32, b: u32, c: u32, f: impl Fn(u32, u32, u32) -> u32) -> u32 {
    let low = f(a & 0xffff, b & 0xffff, c & 0xffff);
    if packed { low | f(a >> 16, b >> 16, c >> 16) << 16 } else { low }
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match self.format {
            Format::F16 => self.run::<F16>(r, m, false),
            Format::F16x2 => self.run::<F16>(r, m, true),
            Format::Bf16 => self.run::<Bf16>(r, m, false),
            Format::Bf16x2 => self.run::<Bf16>(r, m, true),
        }
    }

    #[inline(always)]
    fn run<N: Number>(&self, r: &mut Registers, m: u32, packed: bool) {
        let Self { kind, style, d, a, b, c, .. } = *self;
        let enter = |bits: u32| N::widen(N::flush(bits, style.ftz));
        // Clamping before the rounding is clamping after it, since 0 and 1 stay what they are.
        let leave = |x: f32| {
            let x = saturate(x, style.sat);
            let x = if style.relu && x <= 0.0 { 0.0 } else { x };
            N::flush(N::narrow(x), style.ftz)
        };
        match kind {
            Kind::Add => r.map2(d, m, a, b, |a, b| each(packed, a, b, 0, |a, b, _| leave(enter(a) + enter(b)))),
            Kind::Sub => r.map2(d, m, a, b, |a, b| each(packed, a, b, 0, |a, b, _| leave(enter(a) - enter(b)))),
            // Of 22 bits or 16 the product is exact as a single, but for one of bf16 below 2^-134, which is half of the
            // smallest number and becomes zero either way.
            Kind::Mul => r.map2(d, m, a, b, |a, b| each(packed, a, b, 0, |a, b, _| leave(enter(a) * enter(b)))),
            Kind::Fma => r.map3(d, m, a, b, c, |a, b, c| {
                each(packed, a, b, c, |a, b, c| leave(N::fma(enter(a), enter(b), enter(c))))
            }),
            Kind::Neg => r.map1(d, m, a, |a| each(packed, a, 0, 0, |a, _, _| N::flush(a, style.ftz) ^ 0x8000)),
            Kind::Abs => r.map1(d, m, a, |a| each(packed, a, 0, 0, |a, _, _| N::flush(a, style.ftz) & 0x7fff)),
            Kind::Extreme(extreme) => {
                r.map2(d, m, a, b, |a, b| each(packed, a, b, 0, |a, b, _| leave(extreme.of(enter(a), enter(b)))))
            }
            Kind::Ex2 => r.map1(d, m, a, |a| each(packed, a, 0, 0, |a, _, _| leave(approximate::exp2(enter(a))))),
            Kind::Tanh => r.map1(d, m, a, |a| each(packed, a, 0, 0, |a, _, _| leave(approximate::tanh(enter(a))))),
        }
    }
}

#[cfg(test)]
mod tests;
