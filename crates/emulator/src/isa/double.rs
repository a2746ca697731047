//! Floating-point arithmetic of double precision: PTX ISA 9.7.3. Subnormal numbers are kept, and so are the payloads of
//! NaNs as far as the host keeps them.

use super::float::{TESTS, Test, need_one};
use super::forms::{check, operands};
use super::rounding::Rounding;
use crate::machine::registers::{D, P, Registers, mask_of};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Type};

/// A decoded operation of double precision.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    One(One, Rounding, D, D),
    Two(Two, Rounding, D, D, D),
    Fma(Rounding, D, D, D, D),
    Test(Test, P, D),
}

/// Operations on one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum One {
    Neg,
    Abs,
    Rcp,
    /// `rcp.approx.ftz`: upper halves only.
    RcpUpper,
    Sqrt,
    Rsqrt,
    /// `rsqrt.approx.ftz`: upper halves only.
    RsqrtUpper,
}

/// Operations on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Two {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    CopySign,
}

/// Decodes what is of double precision.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub(super) fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Option<Op>, Reason> {
    const MODES: &[&str] = &["rn", "rz", "rm", "rp"];
    let ty = Type::F64;
    let mode = instruction.modifiers.iter().find_map(|name| Rounding::parse(name)).unwrap_or(Rounding::Nearest);
    let opcode = instruction.opcode.as_str();
    let two = match opcode {
        "add" => Two::Add,
        "sub" => Two::Sub,
        "mul" => Two::Mul,
        "div" => Two::Div,
        "min" => Two::Min,
        "max" => Two::Max,
        "copysign" => Two::CopySign,
        "fma" | "mad" => {
            check(instruction, MODES, 1)?;
            need_one(instruction, MODES)?;
            let [d, a, b, c] = operands(instruction)?;
            let d = scope.double_to(d, ty)?;
            return Ok(Some(Op::Fma(mode, d, scope.double(a, ty)?, scope.double(b, ty)?, scope.double(c, ty)?)));
        }
        "testp" => {
            check(instruction, TESTS, 1)?;
            let [p, a] = operands(instruction)?;
            return Ok(Some(Op::Test(Test::decode(instruction)?, scope.predicate_to(p)?, scope.double(a, ty)?)));
        }
        _ => {
            let upper = instruction.has("approx") && instruction.has("ftz");
            let kind = match opcode {
                "neg" | "abs" => {
                    check(instruction, &[], 1)?;
                    if opcode == "neg" { One::Neg } else { One::Abs }
                }
                "rcp" if upper => One::RcpUpper,
                "rsqrt" if upper => One::RsqrtUpper,
                "rcp" | "sqrt" => {
                    check(instruction, MODES, 1)?;
                    need_one(instruction, MODES)?;
                    if opcode == "rcp" { One::Rcp } else { One::Sqrt }
                }
                "rsqrt" => {
                    need_one(instruction, &["approx"])?;
                    One::Rsqrt
                }
                _ => return Ok(None),
            };
            if matches!(kind, One::RcpUpper | One::RsqrtUpper | One::Rsqrt) {
                check(instruction, &["approx", "ftz"], 1)?;
            }
            let [d, a] = operands(instruction)?;
            return Ok(Some(Op::One(kind, mode, scope.double_to(d, ty)?, scope.double(a, ty)?)));
        }
    };
    match two {
        Two::Div => {
            check(instruction, MODES, 1)?;
            need_one(instruction, MODES)?;
        }
        Two::Min | Two::Max | Two::CopySign => check(instruction, &[], 1)?,
        _ => {
            check(instruction, MODES, 1)?;
            if instruction.modifiers.len() > 1 {
                need_one(instruction, MODES)?;
            }
        }
    }
    let [d, a, b] = operands(instruction)?;
    Ok(Some(Op::Two(two, mode, scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?)))
}

/// The smaller of two; −0 is below +0, and a NaN gives way to a number.
#[inline(always)]
fn minimum(a: f64, b: f64) -> f64 {
    if a < b || a == b && a.is_sign_negative() || b.is_nan() { a } else { b }
}

/// The larger of two, as [`minimum`].
#[inline(always)]
fn maximum(a: f64, b: f64) -> f64 {
    if a > b || a == b && a.is_sign_positive() || b.is_nan() { a } else { b }
}

/// `f` of the upper 32 bits of a number, subnormal ones being zero, and of its result as much (PTX ISA,
/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`: a start for Newton's iteration).
#[inline(always)]
fn upper(a: u64, f: impl Fn(f64) -> f64) -> u64 {
    let cut = |bits: u64| {
        let bits = bits & 0xffff_ffff_0000_0000;
        if bits & 0x7ff0_0000_0000_0000 == 0 { bits & 1 << 63 } else { bits }
    };
    // A NaN whose payload is cut off stays one.
    if f64::from_bits(a).is_nan() {
        return 0x7fff_ffff_0000_0000;
    }
    cut(f(f64::from_bits(cut(a))).to_bits())
}

#[inline(always)]
fn map1(r: &mut Registers, m: u32, d: D, a: D, f: impl Fn(f64) -> f64) {
    r.double_map1(d, m, a, |a| f(f64::from_bits(a)).to_bits());
}

#[inline(always)]
fn map2(r: &mut Registers, m: u32, d: D, a: D, b: D, f: impl Fn(f64, f64) -> f64) {
    r.double_map2(d, m, a, b, |a, b| f(f64::from_bits(a), f64::from_bits(b)).to_bits());
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::One(kind, mode, d, a) => match kind {
                One::Neg => r.double_map1(d, m, a, |a| a ^ 1 << 63),
                One::Abs => r.double_map1(d, m, a, |a| a & !(1 << 63)),
                One::Rcp => map1(r, m, d, a, |a| mode.div_f64(1.0, a)),
                One::RcpUpper => r.double_map1(d, m, a, |a| upper(a, |a| 1.0 / a)),
                One::Sqrt => map1(r, m, d, a, |a| mode.sqrt_f64(a)),
                One::Rsqrt => map1(r, m, d, a, |a| 1.0 / a.sqrt()),
                One::RsqrtUpper => r.double_map1(d, m, a, |a| upper(a, |a| 1.0 / a.sqrt())),
            },
            Self::Two(kind, mode, d, a, b) => match (kind, mode) {
                (Two::Add, Rounding::Nearest) => map2(r, m, d, a, b, |a, b| a + b),
                (Two::Sub, Rounding::Nearest) => map2(r, m, d, a, b, |a, b| a - b),
                (Two::Mul, Rounding::Nearest) => map2(r, m, d, a, b, |a, b| a * b),
                (Two::Div, Rounding::Nearest) => map2(r, m, d, a, b, |a, b| a / b),
                (Two::Add, _) => map2(r, m, d, a, b, |a, b| mode.add_f64(a, b)),
                (Two::Sub, _) => map2(r, m, d, a, b, |a, b| mode.add_f64(a, -b)),
                (Two::Mul, _) => map2(r, m, d, a, b, |a, b| mode.mul_f64(a, b)),
                (Two::Div, _) => map2(r, m, d, a, b, |a, b| mode.div_f64(a, b)),
                (Two::Min, _) => map2(r, m, d, a, b, minimum),
                (Two::Max, _) => map2(r, m, d, a, b, maximum),
                (Two::CopySign, _) => map2(r, m, d, a, b, |a, b| b.copysign(a)),
            },
            Self::Fma(mode, d, a, b, c) => {
                let numbers = |a, b, c| (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
                if mode == Rounding::Nearest {
                    r.double_map3(d, m, a, b, c, |a, b, c| {
                        let (a, b, c) = numbers(a, b, c);
                        a.mul_add(b, c).to_bits()
                    });
                } else {
                    r.double_map3(d, m, a, b, c, |a, b, c| {
                        let (a, b, c) = numbers(a, b, c);
                        mode.fma_f64(a, b, c).to_bits()
                    });
                }
            }
            Self::Test(test, p, a) => {
                let a = r.double(a);
                let lanes = match test {
                    Test::Finite => mask_of(|lane| f64::from_bits(a[lane]).is_finite()),
                    Test::Infinite => mask_of(|lane| f64::from_bits(a[lane]).is_infinite()),
                    Test::Number => mask_of(|lane| !f64::from_bits(a[lane]).is_nan()),
                    Test::NotANumber => mask_of(|lane| f64::from_bits(a[lane]).is_nan()),
                    Test::Normal => mask_of(|lane| f64::from_bits(a[lane]).is_normal()),
                    Test::Subnormal => mask_of(|lane| f64::from_bits(a[lane]).is_subnormal()),
                };
                r.set_predicate(p, m, lanes);
            }
        }
    }
}
