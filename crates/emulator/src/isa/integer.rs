//! Integer arithmetic: PTX ISA 9.7.1 (integer) and 9.7.2 (extended precision).
//!
//! Words of 16 bits come zero-extended and leave so. Division by zero, whose result the ISA leaves open, gives all ones
//! for quotient and remainder alike, as the code does that ptxas makes.

use super::Decoded;
use super::forms::{check, no_type, operands};
use crate::machine::registers::{D, LANES, P, Registers, W};
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
                Op::Double2(kind, scope.double_to(d)?, scope.double(a, ty)?, scope.double(b, ty)?)
            } else {
                let kind = if packed { packed2(instruction)? } else { word2(instruction, ty)? };
                Op::Word2(kind, scope.word_to(d)?, scope.word(a, ty)?, scope.word(b, ty)?)
            }
        }
        "mad" | "mad24" | "sad" => {
            check(instruction, if opcode == "sad" { &[] } else { &["lo", "hi", "sat"] }, 1)?;
            let [d, a, b, c] = operands(instruction)?;
            if ty.size() == 8 {
                let kind = double3(instruction, ty)?;
                let d = scope.double_to(d)?;
                Op::Double3(kind, d, scope.double(a, ty)?, scope.double(b, ty)?, scope.double(c, ty)?)
            } else {
                let kind = word3(instruction, ty)?;
                Op::Word3(kind, scope.word_to(d)?, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?)
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
            Op::Word3(kind, scope.word_to(d)?, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?)
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
            return Ok(Op::Double1(kind, scope.double_to(d)?, scope.double(a, ty)?));
        }
        _ => return no_type(instruction),
    };
    Ok(Op::Word1(kind, scope.word_to(d)?, scope.word(a, ty)?))
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
                    Op::Word3(kind, scope.word_to(d)?, a, b, scope.word(c, sum)?)
                }
                // The product of two zero-extended halves is that of words.
                None if !signed => Op::Word2(Word2::MulLow32, scope.word_to(d)?, a, b),
                None => Op::Word2(Word2::MulWideS16, scope.word_to(d)?, a, b),
            })
        }
        (Type::U32 | Type::S32, Some((a, b))) => {
            let sum = if signed { Type::S64 } else { Type::U64 };
            let d = scope.double_to(d)?;
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
            d: scope.word_to(d)?,
            a: scope.word(a, ty)?,
            b: scope.word(b, ty)?,
            c: scope.word(c, ty)?,
        }),
        8 => Ok(Op::CarryDouble {
            kind,
            flag,
            d: scope.double_to(d)?,
            a: scope.double(a, ty)?,
            b: scope.double(b, ty)?,
            c: scope.double(c, ty)?,
        }),
        _ => no_type(instruction),
    }
}

/// A 16-bit word as a signed number.
#[inline(always)]
fn s16(a: u32) -> i32 {
    i32::from(a as i16)
}

/// The low 24 bits as an unsigned number.
#[inline(always)]
fn u24(a: u32) -> u64 {
    u64::from(a & 0xff_ffff)
}

/// The low 24 bits as a signed number.
#[inline(always)]
fn s24(a: u32) -> i64 {
    i64::from((a << 8) as i32 >> 8)
}

#[inline(always)]
fn high_u32(a: u32, b: u32) -> u32 {
    (u64::from(a) * u64::from(b) >> 32) as u32
}

#[inline(always)]
fn high_s32(a: u32, b: u32) -> u32 {
    (i64::from(a as i32) * i64::from(b as i32) >> 32) as u32
}

#[inline(always)]
fn high_u64(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) >> 64) as u64
}

#[inline(always)]
fn high_s64(a: u64, b: u64) -> u64 {
    (i128::from(a as i64) * i128::from(b as i64) >> 64) as u64
}

#[inline(always)]
fn clamp_s32(value: i64) -> u32 {
    value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
}

/// `f` on both halves of a word.
#[inline(always)]
fn halves(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a & 0xffff, b & 0xffff) & 0xffff | f(a >> 16, b >> 16) << 16
}

/// Part `index` of `bits` bits, signed or not.
#[inline(always)]
fn part(a: u32, index: u32, bits: u32, signed: bool) -> i32 {
    let top = a << (32 - bits * (index + 1));
    if signed { top as i32 >> (32 - bits) } else { (top >> (32 - bits)) as i32 }
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::Word1(kind, d, a) => kind.execute(r, m, d, a),
            Self::Word2(kind, d, a, b) => kind.execute(r, m, d, a, b),
            Self::Word3(kind, d, a, b, c) => kind.execute(r, m, d, a, b, c),
            Self::Double1(Double1::Abs, d, a) => r.double_map1(d, m, a, |a| (a as i64).wrapping_abs() as u64),
            Self::Double1(Double1::Neg, d, a) => r.double_map1(d, m, a, u64::wrapping_neg),
            Self::Double2(kind, d, a, b) => kind.execute(r, m, d, a, b),
            Self::Double3(kind, d, a, b, c) => kind.execute(r, m, d, a, b, c),
            Self::Wide { signed, d, a, b } => {
                let (a, b) = (r.word(a), r.word(b));
                let values = if signed {
                    std::array::from_fn(|lane| (i64::from(a[lane] as i32) * i64::from(b[lane] as i32)) as u64)
                } else {
                    std::array::from_fn(|lane| u64::from(a[lane]) * u64::from(b[lane]))
                };
                r.set_double(d, m, &values);
            }
            Self::WideAdd { signed, d, a, b, c } => {
                let (a, b, c) = (r.word(a), r.word(b), r.double(c));
                let values = if signed {
                    std::array::from_fn(|lane| {
                        c[lane].wrapping_add((i64::from(a[lane] as i32) * i64::from(b[lane] as i32)) as u64)
                    })
                } else {
                    std::array::from_fn(|lane| c[lane].wrapping_add(u64::from(a[lane]) * u64::from(b[lane])))
                };
                r.set_double(d, m, &values);
            }
            Self::CarryWord { kind, flag, d, a, b, c } => {
                let input = if flag.reads { r.predicate(flag.register) } else { 0 };
                let (a, b, c) = (r.word(a), r.word(b), r.word(c));
                let mut values = [0; LANES];
                let mut output = 0;
                for lane in 0..LANES {
                    let (a, b, c, carry) = (a[lane], b[lane], c[lane], input >> lane & 1 == 1);
                    let (value, out) = match kind {
                        Carry::Add => a.carrying(b, carry),
                        Carry::Sub => a.borrowing(b, carry),
                        Carry::MadLow => a.wrapping_mul(b).carrying(c, carry),
                        Carry::MadHighU => high_u32(a, b).carrying(c, carry),
                        Carry::MadHighS => high_s32(a, b).carrying(c, carry),
                    };
                    values[lane] = value;
                    output |= u32::from(out) << lane;
                }
                r.set_word(d, m, &values);
                if flag.writes {
                    r.set_predicate(flag.register, m, output);
                }
            }
            Self::CarryDouble { kind, flag, d, a, b, c } => {
                let input = if flag.reads { r.predicate(flag.register) } else { 0 };
                let (a, b, c) = (r.double(a), r.double(b), r.double(c));
                let mut values = [0; LANES];
                let mut output = 0;
                for lane in 0..LANES {
                    let (a, b, c, carry) = (a[lane], b[lane], c[lane], input >> lane & 1 == 1);
                    let (value, out) = match kind {
                        Carry::Add => a.carrying(b, carry),
                        Carry::Sub => a.borrowing(b, carry),
                        Carry::MadLow => a.wrapping_mul(b).carrying(c, carry),
                        Carry::MadHighU => high_u64(a, b).carrying(c, carry),
                        Carry::MadHighS => high_s64(a, b).carrying(c, carry),
                    };
                    values[lane] = value;
                    output |= u32::from(out) << lane;
                }
                r.set_double(d, m, &values);
                if flag.writes {
                    r.set_predicate(flag.register, m, output);
                }
            }
        }
    }
}

/// Sums and differences with a carry in and out.
trait Carrying: Sized {
    fn carrying(self, other: Self, carry: bool) -> (Self, bool);
    fn borrowing(self, other: Self, borrow: bool) -> (Self, bool);
}

macro_rules! carrying {
    ($($integer:ty)*) => {$(
        impl Carrying for $integer {
            #[inline(always)]
            fn carrying(self, other: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = self.overflowing_add(other);
                let (sum, second) = sum.overflowing_add(Self::from(carry));
                (sum, first | second)
            }

            #[inline(always)]
            fn borrowing(self, other: Self, borrow: bool) -> (Self, bool) {
                let (difference, first) = self.overflowing_sub(other);
                let (difference, second) = difference.overflowing_sub(Self::from(borrow));
                (difference, first | second)
            }
        }
    )*};
}

carrying!(u32 u64);

impl Word1 {
    #[inline(always)]
    fn execute(self, r: &mut Registers, m: u32, d: W, a: W) {
        match self {
            Self::Abs16 => r.map1(d, m, a, |a| s16(a).wrapping_abs() as u32 & 0xffff),
            Self::Abs32 => r.map1(d, m, a, |a| (a as i32).wrapping_abs() as u32),
            Self::Neg16 => r.map1(d, m, a, |a| a.wrapping_neg() & 0xffff),
            Self::Neg32 => r.map1(d, m, a, u32::wrapping_neg),
        }
    }
}

impl Word2 {
    #[inline(always)]
    fn execute(self, r: &mut Registers, m: u32, d: W, a: W, b: W) {
        let signed = |f: fn(i16, i16) -> i16| move |a: u32, b: u32| u32::from(f(a as i16, b as i16) as u16);
        match self {
            Self::Add16 => r.map2(d, m, a, b, |a, b| a.wrapping_add(b) & 0xffff),
            Self::Add32 => r.map2(d, m, a, b, u32::wrapping_add),
            Self::AddSaturated => r.map2(d, m, a, b, |a, b| (a as i32).saturating_add(b as i32) as u32),
            Self::AddPacked => r.map2(d, m, a, b, |a, b| halves(a, b, u32::wrapping_add)),
            Self::Sub16 => r.map2(d, m, a, b, |a, b| a.wrapping_sub(b) & 0xffff),
            Self::Sub32 => r.map2(d, m, a, b, u32::wrapping_sub),
            Self::SubSaturated => r.map2(d, m, a, b, |a, b| (a as i32).saturating_sub(b as i32) as u32),
            Self::MulLow16 => r.map2(d, m, a, b, |a, b| a.wrapping_mul(b) & 0xffff),
            Self::MulHighU16 => r.map2(d, m, a, b, |a, b| a.wrapping_mul(b) >> 16),
            Self::MulHighS16 => r.map2(d, m, a, b, |a, b| (s16(a) * s16(b)) as u32 >> 16),
            Self::MulWideS16 => r.map2(d, m, a, b, |a, b| (s16(a) * s16(b)) as u32),
            Self::MulLow32 => r.map2(d, m, a, b, u32::wrapping_mul),
            Self::MulHighU32 => r.map2(d, m, a, b, high_u32),
            Self::MulHighS32 => r.map2(d, m, a, b, high_s32),
            Self::Mul24LowU => r.map2(d, m, a, b, |a, b| (u24(a) * u24(b)) as u32),
            Self::Mul24LowS => r.map2(d, m, a, b, |a, b| (s24(a) * s24(b)) as u32),
            Self::Mul24HighU => r.map2(d, m, a, b, |a, b| (u24(a) * u24(b) >> 16) as u32),
            Self::Mul24HighS => r.map2(d, m, a, b, |a, b| (s24(a) * s24(b) >> 16) as u32),
            Self::DivU16 => r.map2(d, m, a, b, |a, b| a.checked_div(b).unwrap_or(0xffff)),
            Self::DivU32 => r.map2(d, m, a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
            Self::DivS16 => r.map2(d, m, a, b, signed(|a, b| if b == 0 { -1 } else { a.wrapping_div(b) })),
            Self::DivS32 => {
                r.map2(d, m, a, b, |a, b| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 })
            }
            Self::RemU16 => r.map2(d, m, a, b, |a, b| a.checked_rem(b).unwrap_or(0xffff)),
            Self::RemU32 => r.map2(d, m, a, b, |a, b| a.checked_rem(b).unwrap_or(u32::MAX)),
            Self::RemS16 => r.map2(d, m, a, b, signed(|a, b| if b == 0 { -1 } else { a.wrapping_rem(b) })),
            Self::RemS32 => {
                r.map2(d, m, a, b, |a, b| if b == 0 { u32::MAX } else { (a as i32).wrapping_rem(b as i32) as u32 })
            }
            Self::MinU => r.map2(d, m, a, b, u32::min),
            Self::MinS16 => r.map2(d, m, a, b, signed(i16::min)),
            Self::MinS32 => r.map2(d, m, a, b, |a, b| (a as i32).min(b as i32) as u32),
            Self::MinRelu => r.map2(d, m, a, b, |a, b| (a as i32).min(b as i32).max(0) as u32),
            Self::MaxU => r.map2(d, m, a, b, u32::max),
            Self::MaxS16 => r.map2(d, m, a, b, signed(i16::max)),
            Self::MaxS32 => r.map2(d, m, a, b, |a, b| (a as i32).max(b as i32) as u32),
            Self::MaxRelu => r.map2(d, m, a, b, |a, b| (a as i32).max(b as i32).max(0) as u32),
            Self::MinPackedU => r.map2(d, m, a, b, |a, b| halves(a, b, u32::min)),
            Self::MinPackedS => r.map2(d, m, a, b, |a, b| halves(a, b, |a, b| s16(a).min(s16(b)) as u32)),
            Self::MinPackedRelu => r.map2(d, m, a, b, |a, b| halves(a, b, |a, b| s16(a).min(s16(b)).max(0) as u32)),
            Self::MaxPackedU => r.map2(d, m, a, b, |a, b| halves(a, b, u32::max)),
            Self::MaxPackedS => r.map2(d, m, a, b, |a, b| halves(a, b, |a, b| s16(a).max(s16(b)) as u32)),
            Self::MaxPackedRelu => r.map2(d, m, a, b, |a, b| halves(a, b, |a, b| s16(a).max(s16(b)).max(0) as u32)),
        }
    }
}

impl Word3 {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn execute(self, r: &mut Registers, m: u32, d: W, a: W, b: W, c: W) {
        match self {
            Self::MadLow16 => r.map3(d, m, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xffff),
            Self::MadHighU16 => r.map3(d, m, a, b, c, |a, b, c| (a.wrapping_mul(b) >> 16).wrapping_add(c) & 0xffff),
            Self::MadHighS16 => {
                r.map3(d, m, a, b, c, |a, b, c| ((s16(a) * s16(b) >> 16) as u32).wrapping_add(c) & 0xffff)
            }
            Self::MadWideU16 | Self::MadLow32 => r.map3(d, m, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Self::MadWideS16 => r.map3(d, m, a, b, c, |a, b, c| ((s16(a) * s16(b)) as u32).wrapping_add(c)),
            Self::MadHighU32 => r.map3(d, m, a, b, c, |a, b, c| high_u32(a, b).wrapping_add(c)),
            Self::MadHighS32 => r.map3(d, m, a, b, c, |a, b, c| high_s32(a, b).wrapping_add(c)),
            Self::MadHighSaturated => {
                r.map3(d, m, a, b, c, |a, b, c| (high_s32(a, b) as i32).saturating_add(c as i32) as u32);
            }
            Self::Mad24LowU => r.map3(d, m, a, b, c, |a, b, c| ((u24(a) * u24(b)) as u32).wrapping_add(c)),
            Self::Mad24LowS => r.map3(d, m, a, b, c, |a, b, c| ((s24(a) * s24(b)) as u32).wrapping_add(c)),
            Self::Mad24HighU => r.map3(d, m, a, b, c, |a, b, c| ((u24(a) * u24(b) >> 16) as u32).wrapping_add(c)),
            Self::Mad24HighS => r.map3(d, m, a, b, c, |a, b, c| ((s24(a) * s24(b) >> 16) as u32).wrapping_add(c)),
            Self::Mad24HighSaturated => {
                r.map3(d, m, a, b, c, |a, b, c| clamp_s32((s24(a) * s24(b) >> 16) + i64::from(c as i32)));
            }
            Self::SadU16 => r.map3(d, m, a, b, c, |a, b, c| a.abs_diff(b).wrapping_add(c) & 0xffff),
            Self::SadS16 => r.map3(d, m, a, b, c, |a, b, c| s16(a).abs_diff(s16(b)).wrapping_add(c) & 0xffff),
            Self::SadU32 => r.map3(d, m, a, b, c, |a, b, c| a.abs_diff(b).wrapping_add(c)),
            Self::SadS32 => r.map3(d, m, a, b, c, |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c)),
            Self::Dp4a(left, right) => r.map3(d, m, a, b, c, |a, b, c| {
                (0..4).fold(c, |sum, i| sum.wrapping_add((part(a, i, 8, left) * part(b, i, 8, right)) as u32))
            }),
            Self::Dp2a(left, right, high) => r.map3(d, m, a, b, c, |a, b, c| {
                let first = if high { 2 } else { 0 };
                (0..2).fold(c, |sum, i| sum.wrapping_add((part(a, i, 16, left) * part(b, first + i, 8, right)) as u32))
            }),
        }
    }
}

impl Double2 {
    #[inline(always)]
    fn execute(self, r: &mut Registers, m: u32, d: D, a: D, b: D) {
        match self {
            Self::Add => r.double_map2(d, m, a, b, u64::wrapping_add),
            Self::Sub => r.double_map2(d, m, a, b, u64::wrapping_sub),
            Self::MulLow => r.double_map2(d, m, a, b, u64::wrapping_mul),
            Self::MulHighU => r.double_map2(d, m, a, b, high_u64),
            Self::MulHighS => r.double_map2(d, m, a, b, high_s64),
            Self::DivU => r.double_map2(d, m, a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
            Self::DivS => {
                r.double_map2(
                    d,
                    m,
                    a,
                    b,
                    |a, b| {
                        if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }
                    },
                )
            }
            Self::RemU => r.double_map2(d, m, a, b, |a, b| a.checked_rem(b).unwrap_or(u64::MAX)),
            Self::RemS => {
                r.double_map2(
                    d,
                    m,
                    a,
                    b,
                    |a, b| {
                        if b == 0 { u64::MAX } else { (a as i64).wrapping_rem(b as i64) as u64 }
                    },
                )
            }
            Self::MinU => r.double_map2(d, m, a, b, u64::min),
            Self::MinS => r.double_map2(d, m, a, b, |a, b| (a as i64).min(b as i64) as u64),
            Self::MaxU => r.double_map2(d, m, a, b, u64::max),
            Self::MaxS => r.double_map2(d, m, a, b, |a, b| (a as i64).max(b as i64) as u64),
        }
    }
}

impl Double3 {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn execute(self, r: &mut Registers, m: u32, d: D, a: D, b: D, c: D) {
        match self {
            Self::MadLow => r.double_map3(d, m, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Self::MadHighU => r.double_map3(d, m, a, b, c, |a, b, c| high_u64(a, b).wrapping_add(c)),
            Self::MadHighS => r.double_map3(d, m, a, b, c, |a, b, c| high_s64(a, b).wrapping_add(c)),
            Self::SadU => r.double_map3(d, m, a, b, c, |a, b, c| a.abs_diff(b).wrapping_add(c)),
            Self::SadS => r.double_map3(d, m, a, b, c, |a, b, c| (a as i64).abs_diff(b as i64).wrapping_add(c)),
        }
    }
}

#[cfg(test)]
mod tests;
