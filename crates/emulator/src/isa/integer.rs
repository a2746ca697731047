//! Integer arithmetic: PTX ISA 9.7.1 (integer) and 9.7.2 (extended precision).
//!
//! Words of 16 bits come zero-extended and leave so. Division by zero, whose result the ISA leaves open, gives all ones
//! for quotient and remainder alike, as the code does that ptxas makes.

mod execute;
#[cfg(test)]
mod tests;

use super::Decoded;
use super::forms::{check, no_type, operands};
use crate::machine::registers::{D, P, W};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    Word1(Word1, W, W),
    Word2(Word2, W, W, W),
    Word3(Word3, W, W, W, W),
    Double1(Double1, D, D),
    Double2(Double2, D, D, D),
    Double3(Double3, D, D, D, D),
    /// `mul.wide` of 32-bit factors: d, a, b.
    Wide {
        signed: bool,
        d: D,
        a: W,
        b: W,
    },
    /// `mad.wide` of 32-bit factors: d, a, b, c.
    WideAdd {
        signed: bool,
        d: D,
        a: W,
        b: W,
        c: D,
    },
    /// With the carry flag, on words.
    CarryWord {
        kind: Carry,
        flag: Flag,
        d: W,
        a: W,
        b: W,
        c: W,
    },
    /// With the carry flag, on doubles.
    CarryDouble {
        kind: Carry,
        flag: Flag,
        d: D,
        a: D,
        b: D,
        c: D,
    },
}

/// Operations on one word; the number is the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word1 {
    Abs16,
    Abs32,
    Neg16,
    Neg32,
}

/// Operations on two words; unsigned and signed ones are told apart where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word2 {
    Add16,
    Add32,
    AddSaturated,
    AddPacked,
    Sub16,
    Sub32,
    SubSaturated,
    MulLow16,
    MulHighU16,
    MulHighS16,
    MulWideS16,
    MulLow32,
    MulHighU32,
    MulHighS32,
    Mul24LowU,
    Mul24LowS,
    Mul24HighU,
    Mul24HighS,
    DivU16,
    DivU32,
    DivS16,
    DivS32,
    RemU16,
    RemU32,
    RemS16,
    RemS32,
    MinU,
    MinS16,
    MinS32,
    MinRelu,
    MaxU,
    MaxS16,
    MaxS32,
    MaxRelu,
    MinPackedU,
    MinPackedS,
    MinPackedRelu,
    MaxPackedU,
    MaxPackedS,
    MaxPackedRelu,
}

/// Operations on three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word3 {
    MadLow16,
    MadHighU16,
    MadHighS16,
    MadWideU16,
    MadWideS16,
    MadLow32,
    MadHighU32,
    MadHighS32,
    MadHighSaturated,
    Mad24LowU,
    Mad24LowS,
    Mad24HighU,
    Mad24HighS,
    Mad24HighSaturated,
    SadU16,
    SadS16,
    SadU32,
    SadS32,
    /// Whether the bytes of a and of b are signed.
    Dp4a(bool, bool),
    /// The same for the halves of a and the bytes of b; then whether it takes the upper two bytes.
    Dp2a(bool, bool, bool),
}

/// Operations on one double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Double1 {
    Abs,
    Neg,
}

/// Operations on two doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Double2 {
    Add,
    Sub,
    MulLow,
    MulHighU,
    MulHighS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
}

/// Operations on three doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Double3 {
    MadLow,
    MadHighU,
    MadHighS,
    SadU,
    SadS,
}

/// Operations that use the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Carry {
    Add,
    Sub,
    MadLow,
    MadHighU,
    MadHighS,
}

/// How an operation uses the carry flag: a predicate of the program's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    register: P,
    reads: bool,
    writes: bool,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let packed = instruction.has("u16x2") || instruction.has("s16x2");
    let Some(ty) = instruction.types().next().or(packed.then_some(Type::B32)) else { return Ok(None) };
    if !ty.is_integer() && !packed {
        return Ok(None);
    }
    let opcode = instruction.opcode.as_str();
    let op = match opcode {
        "addc" | "subc" | "madc" => carry(scope, instruction, ty)?,
        "add" | "sub" | "mad" if instruction.has("cc") => carry(scope, instruction, ty)?,
        "abs" | "neg" => unary(scope, instruction, ty)?,
        "mul" | "mad" if instruction.has("wide") => wide(scope, instruction, ty)?,
        "add" | "sub" | "mul" | "mul24" | "div" | "rem" | "min" | "max" => {
            let allowed: &[&str] = match opcode {
                "add" | "sub" => &["sat", "u16x2", "s16x2"],
                "mul" | "mul24" => &["lo", "hi"],
                "min" | "max" => &["relu", "u16x2", "s16x2"],
                _ => &[],
            };
            check(instruction, allowed, usize::from(!packed))?;
            let [d, a, b] = operands(instruction)?;
            if ty.size() == 8 {
                let kind = double2(instruction, ty)?;
                Op::Double2(kind, scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?)
            } else {
                let kind = if packed { packed2(instruction)? } else { word2(instruction, ty)? };
                Op::Word2(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?)
            }
        }
        "mad" | "mad24" | "sad" => {
            check(instruction, if opcode == "sad" { &[] } else { &["lo", "hi", "sat"] }, 1)?;
            let [d, a, b, c] = operands(instruction)?;
            if ty.size() == 8 {
                let kind = double3(instruction, ty)?;
                let d = scope.double_to(d, ty)?;
                Op::Double3(kind, d, scope.double(a, ty)?, scope.double(b, ty)?, scope.double(c, ty)?)
            } else {
                let kind = word3(instruction, ty)?;
                Op::Word3(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?)
            }
        }
        "dp4a" | "dp2a" => {
            let mut types = instruction.types();
            let (Some(first), Some(second)) = (types.next(), types.next()) else { return no_type(instruction) };
            if first.size() != 4 || !second.is_integer() || second.size() != 4 {
                return no_type(instruction);
            }
            let kind = if opcode == "dp4a" {
                check(instruction, &[], 2)?;
                Word3::Dp4a(first.is_signed(), second.is_signed())
            } else {
                check(instruction, &["lo", "hi"], 2)?;
                Word3::Dp2a(first.is_signed(), second.is_signed(), high(instruction)?)
            };
            let [d, a, b, c] = operands(instruction)?;
            Op::Word3(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?)
        }
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Integer(op)))
}

/// `.hi` against `.lo`; one of them must be there.
fn high(instruction: &Instruction) -> Result<bool, Reason> {
    match (instruction.has("hi"), instruction.has("lo")) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        _ => Err(format!("{} takes one of .lo and .hi", instruction.opcode)),
    }
}

fn unary(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a] = operands(instruction)?;
    let negate = instruction.opcode == "neg";
    let kind = match ty {
        Type::S16 if negate => Word1::Neg16,
        Type::S16 => Word1::Abs16,
        Type::S32 if negate => Word1::Neg32,
        Type::S32 => Word1::Abs32,
        Type::S64 => {
            let kind = if negate { Double1::Neg } else { Double1::Abs };
            return Ok(Op::Double1(kind, scope.double_to(d, ty)?, scope.double(a, ty)?));
        }
        _ => return no_type(instruction),
    };
    Ok(Op::Word1(kind, scope.word_to(d, ty)?, scope.word(a, ty)?))
}

fn wide(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &["wide"], 1)?;
    let signed = ty.is_signed();
    let adds = instruction.opcode == "mad";
    let (d, a, b, c) = if adds {
        let [d, a, b, c] = operands(instruction)?;
        (d, a, b, Some(c))
    } else {
        let [d, a, b] = operands(instruction)?;
        (d, a, b, None)
    };
    let sources = (ty.size() <= 4).then(|| Ok::<_, Reason>((scope.word(a, ty)?, scope.word(b, ty)?)));
    match (ty, sources.transpose()?) {
        (Type::U16 | Type::S16, Some((a, b))) => {
            let sum = if signed { Type::S32 } else { Type::U32 };
            Ok(match c {
                Some(c) => {
                    let kind = if signed { Word3::MadWideS16 } else { Word3::MadWideU16 };
                    Op::Word3(kind, scope.word_to(d, sum)?, a, b, scope.word(c, sum)?)
                }
                // The product of two zero-extended halves is that of words.
                None if !signed => Op::Word2(Word2::MulLow32, scope.word_to(d, sum)?, a, b),
                None => Op::Word2(Word2::MulWideS16, scope.word_to(d, sum)?, a, b),
            })
        }
        (Type::U32 | Type::S32, Some((a, b))) => {
            let sum = if signed { Type::S64 } else { Type::U64 };
            let d = scope.double_to(d, sum)?;
            Ok(match c {
                Some(c) => Op::WideAdd { signed, d, a, b, c: scope.double(c, sum)? },
                None => Op::Wide { signed, d, a, b },
            })
        }
        _ => no_type(instruction),
    }
}

fn packed2(instruction: &Instruction) -> Result<Word2, Reason> {
    let signed = instruction.has("s16x2");
    let relu = instruction.has("relu");
    Ok(match instruction.opcode.as_str() {
        "add" if !instruction.has("sat") => Word2::AddPacked,
        "min" if relu && signed => Word2::MinPackedRelu,
        "max" if relu && signed => Word2::MaxPackedRelu,
        "min" if !relu => {
            if signed {
                Word2::MinPackedS
            } else {
                Word2::MinPackedU
            }
        }
        "max" if !relu => {
            if signed {
                Word2::MaxPackedS
            } else {
                Word2::MaxPackedU
            }
        }
        _ => return no_type(instruction),
    })
}

fn word2(instruction: &Instruction, ty: Type) -> Result<Word2, Reason> {
    use Type::{S16, S32, U16, U32};
    let saturated = instruction.has("sat");
    let relu = instruction.has("relu");
    if (saturated || relu) && ty != S32 {
        return Err(format!("{} has .sat and .relu for s32 only", instruction.opcode));
    }
    Ok(match (instruction.opcode.as_str(), ty) {
        ("add", U16 | S16) => Word2::Add16,
        ("add", S32) if saturated => Word2::AddSaturated,
        ("add", U32 | S32) => Word2::Add32,
        ("sub", U16 | S16) => Word2::Sub16,
        ("sub", S32) if saturated => Word2::SubSaturated,
        ("sub", U32 | S32) => Word2::Sub32,
        ("mul", _) => match (ty, high(instruction)?) {
            (U16 | S16, false) => Word2::MulLow16,
            (U16, true) => Word2::MulHighU16,
            (S16, true) => Word2::MulHighS16,
            (U32 | S32, false) => Word2::MulLow32,
            (U32, true) => Word2::MulHighU32,
            (S32, true) => Word2::MulHighS32,
            _ => return no_type(instruction),
        },
        ("mul24", _) => match (ty, high(instruction)?) {
            (U32, false) => Word2::Mul24LowU,
            (U32, true) => Word2::Mul24HighU,
            (S32, false) => Word2::Mul24LowS,
            (S32, true) => Word2::Mul24HighS,
            _ => return no_type(instruction),
        },
        ("div", U16) => Word2::DivU16,
        ("div", U32) => Word2::DivU32,
        ("div", S16) => Word2::DivS16,
        ("div", S32) => Word2::DivS32,
        ("rem", U16) => Word2::RemU16,
        ("rem", U32) => Word2::RemU32,
        ("rem", S16) => Word2::RemS16,
        ("rem", S32) => Word2::RemS32,
        ("min", U16 | U32) => Word2::MinU,
        ("min", S16) => Word2::MinS16,
        ("min", S32) if relu => Word2::MinRelu,
        ("min", S32) => Word2::MinS32,
        ("max", U16 | U32) => Word2::MaxU,
        ("max", S16) => Word2::MaxS16,
        ("max", S32) if relu => Word2::MaxRelu,
        ("max", S32) => Word2::MaxS32,
        _ => return no_type(instruction),
    })
}

fn word3(instruction: &Instruction, ty: Type) -> Result<Word3, Reason> {
    use Type::{S16, S32, U16, U32};
    let saturated = instruction.has("sat");
    if saturated && (ty != S32 || !instruction.has("hi")) {
        return Err(format!("{} has .sat for .hi and s32 only", instruction.opcode));
    }
    Ok(match (instruction.opcode.as_str(), ty) {
        ("sad", U16) => Word3::SadU16,
        ("sad", S16) => Word3::SadS16,
        ("sad", U32) => Word3::SadU32,
        ("sad", S32) => Word3::SadS32,
        ("mad", _) => match (ty, high(instruction)?) {
            (U16 | S16, false) => Word3::MadLow16,
            (U16, true) => Word3::MadHighU16,
            (S16, true) => Word3::MadHighS16,
            (U32 | S32, false) => Word3::MadLow32,
            (U32, true) => Word3::MadHighU32,
            (S32, true) if saturated => Word3::MadHighSaturated,
            (S32, true) => Word3::MadHighS32,
            _ => return no_type(instruction),
        },
        ("mad24", _) => match (ty, high(instruction)?) {
            (U32, false) => Word3::Mad24LowU,
            (U32, true) => Word3::Mad24HighU,
            (S32, false) => Word3::Mad24LowS,
            (S32, true) if saturated => Word3::Mad24HighSaturated,
            (S32, true) => Word3::Mad24HighS,
            _ => return no_type(instruction),
        },
        _ => return no_type(instruction),
    })
}

fn double2(instruction: &Instruction, ty: Type) -> Result<Double2, Reason> {
    if instruction.has("sat") || instruction.has("relu") {
        return Err(format!("{} has .sat and .relu for s32 only", instruction.opcode));
    }
    let signed = ty.is_signed();
    Ok(match (instruction.opcode.as_str(), signed) {
        ("add", _) => Double2::Add,
        ("sub", _) => Double2::Sub,
        ("mul", _) => match (high(instruction)?, signed) {
            (false, _) => Double2::MulLow,
            (true, false) => Double2::MulHighU,
            (true, true) => Double2::MulHighS,
        },
        ("div", false) => Double2::DivU,
        ("div", true) => Double2::DivS,
        ("rem", false) => Double2::RemU,
        ("rem", true) => Double2::RemS,
        ("min", false) => Double2::MinU,
        ("min", true) => Double2::MinS,
        ("max", false) => Double2::MaxU,
        ("max", true) => Double2::MaxS,
        _ => return no_type(instruction),
    })
}

fn double3(instruction: &Instruction, ty: Type) -> Result<Double3, Reason> {
    if instruction.has("sat") {
        return Err(format!("{} has .sat for s32 only", instruction.opcode));
    }
    let signed = ty.is_signed();
    Ok(match instruction.opcode.as_str() {
        "sad" => {
            if signed {
                Double3::SadS
            } else {
                Double3::SadU
            }
        }
        "mad" => match (high(instruction)?, signed) {
            (false, _) => Double3::MadLow,
            (true, false) => Double3::MadHighU,
            (true, true) => Double3::MadHighS,
        },
        _ => return no_type(instruction),
    })
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
fn carry(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    let multiplies = instruction.opcode.starts_with("mad");
    check(instruction, if multiplies { &["cc", "lo", "hi"] } else { &["cc"] }, 1)?;
    let flag = Flag {
        register: scope.carry(),
        reads: matches!(instruction.opcode.as_str(), "addc" | "subc" | "madc"),
        writes: instruction.has("cc"),
    };
    let kind = match instruction.opcode.as_str() {
        "add" | "addc" => Carry::Add,
        "sub" | "subc" => Carry::Sub,
        _ => match (high(instruction)?, ty.is_signed()) {
            (false, _) => Carry::MadLow,
            (true, false) => Carry::MadHighU,
            (true, true) => Carry::MadHighS,
        },
    };
    let (d, a, b, c) = if multiplies {
        let [d, a, b, c] = operands(instruction)?;
        (d, a, b, c)
    } else {
        let [d, a, b] = operands(instruction)?;
        (d, a, b, b)
    };
    match ty.size() {
        4 => Ok(Op::CarryWord {
            kind,
            flag,
            d: scope.word_to(d, ty)?,
            a: scope.word(a, ty)?,
            b: scope.word(b, ty)?,
            c: scope.word(c, ty)?,
        }),
        8 => Ok(Op::CarryDouble {
            kind,
            flag,
            d: scope.double_to(d, ty)?,
            a: scope.double(a, ty)?,
            b: scope.double(b, ty)?,
            c: scope.double(c, ty)?,
        }),
        _ => no_type(instruction),
    }
}
