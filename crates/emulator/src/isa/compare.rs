//! Comparison and selection: PTX ISA 9.7.6 and 9.7.7 (`set`, `setp`, `selp`, `slct`), for numbers of every kind.

use super::Decoded;
use super::forms::{Source, check, no_type, operands};
use super::rounding::{bf16_to_f32, f16_to_f32, flush};
use crate::machine::registers::{D, P, Registers, W, mask_of};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    /// `setp`; of packed halves p is of the lower and q of the upper, else q is of the opposite.
    SetPredicate {
        comparison: Comparison,
        combine: Option<(Bool, Source)>,
        p: P,
        q: Option<P>,
    },
    /// `set`: what is written where it holds; `packed` into each half on its own.
    Set {
        comparison: Comparison,
        combine: Option<(Bool, Source)>,
        d: W,
        value: u32,
        packed: bool,
    },
    /// `selp`.
    SelectWord(W, W, W, Source),
    SelectDouble(D, D, D, Source),
    /// `slct`: by the sign of an integer, or of a single with or without `.ftz`.
    ChooseWord(W, W, W, W, Sign),
    ChooseDouble(D, D, D, W, Sign),
}

/// How `slct` reads its last operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sign {
    S32,
    F32,
    F32Flushed,
}

/// `.and`, `.or`, `.xor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bool {
    And,
    Or,
    Xor,
}

/// What is asked of two numbers.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    relation: Relation,
    numbers: Numbers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    EqualOrNan,
    NotEqualOrNan,
    LessOrNan,
    LessEqualOrNan,
    GreaterOrNan,
    GreaterEqualOrNan,
    Numbers,
    SomeNan,
}

/// Two operands with their kind; the flag is `.ftz`.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Also shorter ones, which are zero-extended.
    U32(W, W),
    S16(W, W),
    S32(W, W),
    U64(D, D),
    S64(D, D),
    F32(W, W, bool),
    F64(D, D),
    F16(W, W, bool),
    Bf16(W, W),
    F16x2(W, W, bool),
    Bf16x2(W, W),
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let op = match instruction.opcode.as_str() {
        "setp" => set_predicate(scope, instruction)?,
        "set" => set(scope, instruction)?,
        "selp" => select(scope, instruction)?,
        "slct" => choose(scope, instruction)?,
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Compare(op)))
}

impl Relation {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "eq" => Self::Equal,
            "ne" => Self::NotEqual,
            "lt" | "lo" => Self::Less,
            "le" | "ls" => Self::LessEqual,
            "gt" | "hi" => Self::Greater,
            "ge" | "hs" => Self::GreaterEqual,
            "equ" => Self::EqualOrNan,
            "neu" => Self::NotEqualOrNan,
            "ltu" => Self::LessOrNan,
            "leu" => Self::LessEqualOrNan,
            "gtu" => Self::GreaterOrNan,
            "geu" => Self::GreaterEqualOrNan,
            "num" => Self::Numbers,
            "nan" => Self::SomeNan,
            _ => return None,
        })
    }
}

/// Reads the relation and the numbers it is about.
fn comparison(
    scope: &mut Scope<'_>,
    instruction: &Instruction,
    ty: Type,
    a: &Operand,
    b: &Operand,
) -> Result<Comparison, Reason> {
    let name = instruction.modifiers.first().map_or("", String::as_str);
    let Some(relation) = Relation::parse(name) else {
        return Err(format!("{} has no comparison .{name}", instruction.opcode));
    };
    let fits = match ty {
        Type::B16 | Type::B32 | Type::B64 => matches!(name, "eq" | "ne"),
        _ if ty.is_signed() => matches!(name, "eq" | "ne" | "lt" | "le" | "gt" | "ge"),
        _ if ty.is_integer() => {
            matches!(name, "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "lo" | "ls" | "hi" | "hs")
        }
        _ => !matches!(name, "lo" | "ls" | "hi" | "hs"),
    };
    if !fits {
        return Err(format!("{} has no comparison .{name} for this type", instruction.opcode));
    }
    let ftz = instruction.has("ftz");
    if ftz && !matches!(ty, Type::F32 | Type::F16 | Type::F16x2) {
        return Err(format!("{} has no .ftz for this type", instruction.opcode));
    }
    let numbers = if ty.size() == 8 {
        let (a, b) = (scope.double(a, ty)?, scope.double(b, ty)?);
        match ty {
            Type::U64 | Type::B64 => Numbers::U64(a, b),
            Type::S64 => Numbers::S64(a, b),
            _ => Numbers::F64(a, b),
        }
    } else {
        let (a, b) = (scope.word(a, ty)?, scope.word(b, ty)?);
        match ty {
            Type::U16 | Type::B16 | Type::U32 | Type::B32 => Numbers::U32(a, b),
            Type::S16 => Numbers::S16(a, b),
            Type::S32 => Numbers::S32(a, b),
            Type::F32 => Numbers::F32(a, b, ftz),
            Type::F16 => Numbers::F16(a, b, ftz),
            Type::Bf16 => Numbers::Bf16(a, b),
            Type::F16x2 => Numbers::F16x2(a, b, ftz),
            Type::Bf16x2 => Numbers::Bf16x2(a, b),
            _ => return no_type(instruction),
        }
    };
    Ok(Comparison { relation, numbers })
}

/// The operation on a further predicate, if one is named.
fn combination(
    scope: &mut Scope<'_>,
    instruction: &Instruction,
    operand: Option<&Operand>,
) -> Result<Option<(Bool, Source)>, Reason> {
    let kind = match instruction.modifiers.get(1).map(String::as_str) {
        Some("and") => Bool::And,
        Some("or") => Bool::Or,
        Some("xor") => Bool::Xor,
        _ if operand.is_some() => return Err(format!("{} has an operand too many", instruction.opcode)),
        _ => return Ok(None),
    };
    let operand = operand.ok_or_else(|| format!("{} lacks the predicate to combine with", instruction.opcode))?;
    Ok(Some((kind, Source::decode(scope, operand)?)))
}

/// Modifiers after the first, which is the relation.
fn check_rest(instruction: &Instruction, types: usize) -> Result<(), Reason> {
    let rest = instruction.modifiers.get(1..).unwrap_or_default().to_vec();
    check(&Instruction { modifiers: rest, ..instruction.clone() }, &["and", "or", "xor", "ftz"], types)
}

/// Destination, a, b and maybe a predicate.
fn two_and_predicate(instruction: &Instruction) -> Result<(&Operand, &Operand, &Operand, Option<&Operand>), Reason> {
    match instruction.operands.as_slice() {
        [d, a, b] => Ok((d, a, b, None)),
        [d, a, b, c] => Ok((d, a, b, Some(c))),
        other => Err(format!("{} takes 3 or 4 operands, not {}", instruction.opcode, other.len())),
    }
}

fn set_predicate(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check_rest(instruction, 1)?;
    let Some(ty) = instruction.last_type() else { return no_type(instruction) };
    let (d, a, b, c) = two_and_predicate(instruction)?;
    let comparison = comparison(scope, instruction, ty, a, b)?;
    let combine = combination(scope, instruction, c)?;
    let (p, q) = match d {
        Operand::Pair(p, q) => (scope.predicate_to_named(p)?, Some(scope.predicate_to_named(q)?)),
        _ => (scope.predicate_to(d)?, None),
    };
    if matches!(ty, Type::F16x2 | Type::Bf16x2) && q.is_none() {
        return Err("setp of two halves takes two predicates: p|q".to_owned());
    }
    Ok(Op::SetPredicate { comparison, combine, p, q })
}

fn set(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check_rest(instruction, 2)?;
    let mut types = instruction.types();
    let (Some(to), Some(from)) = (types.next(), types.next()) else { return no_type(instruction) };
    let halves = matches!(from, Type::F16x2 | Type::Bf16x2);
    let half = halves || matches!(from, Type::F16 | Type::Bf16);
    let (value, packed) = match to {
        Type::U32 | Type::S32 if halves => (0xffff, true),
        Type::U32 | Type::S32 => (u32::MAX, false),
        Type::U16 | Type::S16 if half && !halves => (0xffff, false),
        Type::F32 if !half => (1f32.to_bits(), false),
        Type::F16 if !halves && from != Type::Bf16 => (0x3c00, false),
        Type::Bf16 if !halves => (0x3f80, false),
        Type::F16x2 if from == Type::F16x2 => (0x3c00, true),
        Type::Bf16x2 if from == Type::Bf16x2 => (0x3f80, true),
        _ => return no_type(instruction),
    };
    let (d, a, b, c) = two_and_predicate(instruction)?;
    let comparison = comparison(scope, instruction, from, a, b)?;
    let combine = combination(scope, instruction, c)?;
    Ok(Op::Set { comparison, combine, d: scope.word_to(d, to)?, value, packed })
}

fn select(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let Some(ty) = instruction.last_type() else { return no_type(instruction) };
    let [d, a, b, p] = operands(instruction)?;
    let p = Source::decode(scope, p)?;
    Ok(match ty {
        Type::B64 | Type::U64 | Type::S64 | Type::F64 => {
            Op::SelectDouble(scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?, p)
        }
        Type::B16 | Type::U16 | Type::S16 | Type::B32 | Type::U32 | Type::S32 | Type::F32 => {
            Op::SelectWord(scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, p)
        }
        _ => return no_type(instruction),
    })
}

fn choose(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(instruction, &["ftz"], 2)?;
    let mut types = instruction.types();
    let (Some(ty), Some(by)) = (types.next(), types.next()) else { return no_type(instruction) };
    let sign = match (by, instruction.has("ftz")) {
        (Type::S32, false) => Sign::S32,
        (Type::F32, false) => Sign::F32,
        (Type::F32, true) => Sign::F32Flushed,
        _ => return no_type(instruction),
    };
    let [d, a, b, c] = operands(instruction)?;
    let c = scope.word(c, by)?;
    Ok(match ty {
        Type::B64 | Type::U64 | Type::S64 | Type::F64 => {
            Op::ChooseDouble(scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?, c, sign)
        }
        Type::B16 | Type::U16 | Type::S16 | Type::B32 | Type::U32 | Type::S32 | Type::F32 => {
            Op::ChooseWord(scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, c, sign)
        }
        _ => return no_type(instruction),
    })
}

/// The lanes whose numbers are so related.
#[inline(always)]
fn related<T: PartialOrd + Copy>(relation: Relation, a: impl Fn(usize) -> T, b: impl Fn(usize) -> T) -> u32 {
    // What compares with itself is a number.
    #[allow(clippy::eq_op)]
    let number = |x: T| x == x;
    // What holds of a NaN as well is what fails to hold the other way round.
    let (relation, flip) = match relation {
        Relation::EqualOrNan => (Relation::NotEqual, u32::MAX),
        Relation::NotEqualOrNan => (Relation::Equal, u32::MAX),
        Relation::LessOrNan => (Relation::GreaterEqual, u32::MAX),
        Relation::LessEqualOrNan => (Relation::Greater, u32::MAX),
        Relation::GreaterOrNan => (Relation::LessEqual, u32::MAX),
        Relation::GreaterEqualOrNan => (Relation::Less, u32::MAX),
        Relation::SomeNan => (Relation::Numbers, u32::MAX),
        relation => (relation, 0),
    };
    let lanes = match relation {
        Relation::Equal => mask_of(|lane| a(lane) == b(lane)),
        Relation::NotEqual => mask_of(|lane| a(lane) < b(lane) || a(lane) > b(lane)),
        Relation::Less => mask_of(|lane| a(lane) < b(lane)),
        Relation::LessEqual => mask_of(|lane| a(lane) <= b(lane)),
        Relation::Greater => mask_of(|lane| a(lane) > b(lane)),
        Relation::GreaterEqual => mask_of(|lane| a(lane) >= b(lane)),
        _ => mask_of(|lane| number(a(lane)) && number(b(lane))),
    };
    lanes ^ flip
}

/// A half of this format as a single.
#[inline(always)]
fn half(bits: u32, ftz: bool) -> f32 {
    f16_to_f32(if ftz && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits & 0xffff })
}

impl Comparison {
    /// The lanes in which it holds; of packed halves for the lower and the upper, else the same twice.
    #[inline(always)]
    fn lanes(self, r: &Registers) -> (u32, u32) {
        let relation = self.relation;
        let lanes = match self.numbers {
            Numbers::U32(a, b) => {
                let (a, b) = (r.word(a), r.word(b));
                related(relation, |lane| a[lane], |lane| b[lane])
            }
            Numbers::S16(a, b) => {
                let (a, b) = (r.word(a), r.word(b));
                related(relation, |lane| a[lane] as i16, |lane| b[lane] as i16)
            }
            Numbers::S32(a, b) => {
                let (a, b) = (r.word(a), r.word(b));
                related(relation, |lane| a[lane] as i32, |lane| b[lane] as i32)
            }
            Numbers::U64(a, b) => {
                let (a, b) = (r.double(a), r.double(b));
                related(relation, |lane| a[lane], |lane| b[lane])
            }
            Numbers::S64(a, b) => {
                let (a, b) = (r.double(a), r.double(b));
                related(relation, |lane| a[lane] as i64, |lane| b[lane] as i64)
            }
            Numbers::F32(a, b, ftz) => {
                let (a, b) = (r.word(a), r.word(b));
                let number = |bits| flush(f32::from_bits(bits), ftz);
                related(relation, |lane| number(a[lane]), |lane| number(b[lane]))
            }
            Numbers::F64(a, b) => {
                let (a, b) = (r.double(a), r.double(b));
                related(relation, |lane| f64::from_bits(a[lane]), |lane| f64::from_bits(b[lane]))
            }
            Numbers::F16(a, b, ftz) => {
                let (a, b) = (r.word(a), r.word(b));
                related(relation, |lane| half(a[lane], ftz), |lane| half(b[lane], ftz))
            }
            Numbers::Bf16(a, b) => {
                let (a, b) = (r.word(a), r.word(b));
                related(relation, |lane| bf16_to_f32(a[lane]), |lane| bf16_to_f32(b[lane]))
            }
            Numbers::F16x2(a, b, ftz) => {
                let (a, b) = (r.word(a), r.word(b));
                let low = related(relation, |lane| half(a[lane] & 0xffff, ftz), |lane| half(b[lane] & 0xffff, ftz));
                let high = related(relation, |lane| half(a[lane] >> 16, ftz), |lane| half(b[lane] >> 16, ftz));
                return (low, high);
            }
            Numbers::Bf16x2(a, b) => {
                let (a, b) = (r.word(a), r.word(b));
                let upper = |bits: u32| f32::from_bits(bits & 0xffff_0000);
                let low = related(relation, |lane| bf16_to_f32(a[lane]), |lane| bf16_to_f32(b[lane]));
                return (low, related(relation, |lane| upper(a[lane]), |lane| upper(b[lane])));
            }
        };
        (lanes, lanes)
    }

    #[inline(always)]
    fn is_packed(self) -> bool {
        matches!(self.numbers, Numbers::F16x2(..) | Numbers::Bf16x2(..))
    }
}

/// A comparison's result combined with a predicate.
#[inline(always)]
fn combined(r: &Registers, combine: Option<(Bool, Source)>, lanes: u32) -> u32 {
    match combine {
        None => lanes,
        Some((Bool::And, source)) => lanes & source.lanes(r),
        Some((Bool::Or, source)) => lanes | source.lanes(r),
        Some((Bool::Xor, source)) => lanes ^ source.lanes(r),
    }
}

impl Sign {
    /// Whether the first operand is chosen: c ≥ 0, where −0 is and NaN is not.
    #[inline(always)]
    fn first(self, c: u32) -> bool {
        match self {
            Self::S32 => c as i32 >= 0,
            Self::F32 => f32::from_bits(c) >= 0.0,
            Self::F32Flushed => flush(f32::from_bits(c), true) >= 0.0,
        }
    }
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::SetPredicate { comparison, combine, p, q } => {
                let (first, second) = comparison.lanes(r);
                let second = if comparison.is_packed() { second } else { !second };
                let (first, second) = (combined(r, combine, first), combined(r, combine, second));
                r.set_predicate(p, m, first);
                if let Some(q) = q {
                    r.set_predicate(q, m, second);
                }
            }
            Self::Set { comparison, combine, d, value, packed } => {
                let (low, high) = comparison.lanes(r);
                let (low, high) = (combined(r, combine, low), combined(r, combine, high));
                let values = std::array::from_fn(|lane| {
                    let word = if low >> lane & 1 == 1 { value } else { 0 };
                    if packed && high >> lane & 1 == 1 { word | value << 16 } else { word }
                });
                r.set_word(d, m, &values);
            }
            Self::SelectWord(d, a, b, p) => {
                let (p, a, b) = (p.lanes(r), r.word(a), r.word(b));
                let values = std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] });
                r.set_word(d, m, &values);
            }
            Self::SelectDouble(d, a, b, p) => {
                let (p, a, b) = (p.lanes(r), r.double(a), r.double(b));
                let values = std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] });
                r.set_double(d, m, &values);
            }
            Self::ChooseWord(d, a, b, c, sign) => r.map3(d, m, a, b, c, |a, b, c| if sign.first(c) { a } else { b }),
            Self::ChooseDouble(d, a, b, c, sign) => {
                let (a, b, c) = (r.double(a), r.double(b), r.word(c));
                let values = std::array::from_fn(|lane| if sign.first(c[lane]) { a[lane] } else { b[lane] });
                r.set_double(d, m, &values);
            }
        }
    }
}

#[cfg(test)]
mod tests;
