//! Logic, shifts and bit fields: PTX ISA 9.7.1.14 to 9.7.1.22 (`popc` to `bmsk`), 9.7.8 (logic and shift) and `prmt`.

use super::Decoded;
use super::forms::{Source, check, no_type, operands};
use crate::machine::registers::{D, P, Registers, W};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    Word1(Word1, W, W),
    Word2(Word2, W, W, W),
    Word3(Word3, W, W, W, W),
    /// `bfi` of words: what is inserted, into what, position, length.
    Insert(W, W, W, W, W),
    /// `lop3` whose result is also tested: p = (d ≠ 0) op q, where op is `or`, else `and`.
    LogicTest {
        table: u8,
        d: W,
        a: W,
        b: W,
        c: W,
        p: P,
        q: Source,
        or: bool,
    },
    Double1(Double1, D, D),
    Logic(Logic, D, D, D),
    Shift(Shift, D, D, W),
    /// `popc`, `clz` and `bfind` of a double.
    Count(Count, W, D),
    /// `bfe` of doubles: signed or not; from what, position, length.
    Extract(bool, D, D, W, W),
    /// `bfi` of doubles.
    InsertDouble(D, D, D, W, W),
    Predicate2(Logic, P, Source, Source),
    Predicate1(P, Source),
}

/// Operations on one word; the number is the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word1 {
    Not16,
    Not32,
    /// Of any width, since what lies above it is zero.
    Cnot,
    Popc,
    Clz,
    Brev,
    FindU,
    FindS,
    FindShiftU,
    FindShiftS,
}

/// Operations on two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word2 {
    And,
    Or,
    Xor,
    Left16,
    Left32,
    RightU,
    RightS16,
    RightS32,
    MaskClamp,
    MaskWrap,
    /// `szext`: signed or not.
    ExtendClamp(bool),
    ExtendWrap(bool),
}

/// Operations on three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Word3 {
    /// `lop3` with its table.
    Logic(u8),
    FunnelLeftClamp,
    FunnelLeftWrap,
    FunnelRightClamp,
    FunnelRightWrap,
    ExtractU,
    ExtractS,
    FindNth,
    Permute,
    Forward4,
    Backward4,
    Replicate8,
    ClampLeft,
    ClampRight,
    Replicate16,
}

/// Operations on one double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Double1 {
    Not,
    Cnot,
    Brev,
}

/// Bitwise operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Logic {
    And,
    Or,
    Xor,
}

/// Shifts of doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shift {
    Left,
    RightU,
    RightS,
}

/// What is counted in a double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Count {
    Popc,
    Clz,
    FindU,
    FindS,
    FindShiftU,
    FindShiftS,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let Some(ty) = instruction.last_type() else { return Ok(None) };
    let op = match instruction.opcode.as_str() {
        "and" | "or" | "xor" => logic(scope, instruction, ty)?,
        "not" | "cnot" | "brev" => unary(scope, instruction, ty)?,
        "popc" | "clz" | "bfind" => count(scope, instruction, ty)?,
        "shl" | "shr" => shift(scope, instruction, ty)?,
        "bfe" => extract(scope, instruction, ty)?,
        "bfi" => insert(scope, instruction, ty)?,
        "lop3" => lop3(scope, instruction, ty)?,
        "bmsk" | "szext" => mask(scope, instruction, ty)?,
        "shf" | "prmt" | "fns" => word3(scope, instruction, ty)?,
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Bits(op)))
}

fn logic(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a, b] = operands(instruction)?;
    let kind = match instruction.opcode.as_str() {
        "and" => Logic::And,
        "or" => Logic::Or,
        _ => Logic::Xor,
    };
    Ok(match ty {
        Type::Pred => {
            Op::Predicate2(kind, scope.predicate_to(d)?, Source::decode(scope, a)?, Source::decode(scope, b)?)
        }
        Type::B64 => Op::Logic(kind, scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?),
        Type::B16 | Type::B32 => {
            let kind = match kind {
                Logic::And => Word2::And,
                Logic::Or => Word2::Or,
                Logic::Xor => Word2::Xor,
            };
            Op::Word2(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?)
        }
        _ => return no_type(instruction),
    })
}

fn unary(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a] = operands(instruction)?;
    let opcode = instruction.opcode.as_str();
    let word = match (opcode, ty) {
        ("not", Type::Pred) => return Ok(Op::Predicate1(scope.predicate_to(d)?, Source::decode(scope, a)?)),
        (_, Type::B64) => {
            let kind = match opcode {
                "not" => Double1::Not,
                "cnot" => Double1::Cnot,
                _ => Double1::Brev,
            };
            return Ok(Op::Double1(kind, scope.double_to(d, ty)?, scope.double(a, ty)?));
        }
        ("not", Type::B16) => Word1::Not16,
        ("not", Type::B32) => Word1::Not32,
        ("cnot", Type::B16 | Type::B32) => Word1::Cnot,
        ("brev", Type::B32) => Word1::Brev,
        _ => return no_type(instruction),
    };
    Ok(Op::Word1(word, scope.word_to(d, ty)?, scope.word(a, ty)?))
}

fn count(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    let finds = instruction.opcode == "bfind";
    check(instruction, if finds { &["shiftamt"] } else { &[] }, 1)?;
    let [d, a] = operands(instruction)?;
    let kind = match (instruction.opcode.as_str(), ty, instruction.has("shiftamt")) {
        ("popc", Type::B32 | Type::B64, _) => Count::Popc,
        ("clz", Type::B32 | Type::B64, _) => Count::Clz,
        ("bfind", Type::U32 | Type::U64, false) => Count::FindU,
        ("bfind", Type::U32 | Type::U64, true) => Count::FindShiftU,
        ("bfind", Type::S32 | Type::S64, false) => Count::FindS,
        ("bfind", Type::S32 | Type::S64, true) => Count::FindShiftS,
        _ => return no_type(instruction),
    };
    let d = scope.word_to(d, Type::U32)?;
    if ty.size() == 8 {
        return Ok(Op::Count(kind, d, scope.double(a, ty)?));
    }
    let kind = match kind {
        Count::Popc => Word1::Popc,
        Count::Clz => Word1::Clz,
        Count::FindU => Word1::FindU,
        Count::FindS => Word1::FindS,
        Count::FindShiftU => Word1::FindShiftU,
        Count::FindShiftS => Word1::FindShiftS,
    };
    Ok(Op::Word1(kind, d, scope.word(a, ty)?))
}

fn shift(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a, b] = operands(instruction)?;
    let left = instruction.opcode == "shl";
    // The amount is a 32-bit number whatever the type.
    let b = scope.word(b, Type::U32)?;
    let kind = match (left, ty) {
        (true, Type::B64) => return Ok(Op::Shift(Shift::Left, scope.double_to(d, ty)?, scope.double(a, ty)?, b)),
        (false, Type::B64 | Type::U64) => {
            return Ok(Op::Shift(Shift::RightU, scope.double_to(d, ty)?, scope.double(a, ty)?, b));
        }
        (false, Type::S64) => return Ok(Op::Shift(Shift::RightS, scope.double_to(d, ty)?, scope.double(a, ty)?, b)),
        (true, Type::B16) => Word2::Left16,
        (true, Type::B32) => Word2::Left32,
        (false, Type::B16 | Type::U16 | Type::B32 | Type::U32) => Word2::RightU,
        (false, Type::S16) => Word2::RightS16,
        (false, Type::S32) => Word2::RightS32,
        _ => return no_type(instruction),
    };
    Ok(Op::Word2(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, b))
}

fn extract(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a, b, c] = operands(instruction)?;
    let (b, c) = (scope.word(b, Type::U32)?, scope.word(c, Type::U32)?);
    Ok(match ty {
        Type::U32 => Op::Word3(Word3::ExtractU, scope.word_to(d, ty)?, scope.word(a, ty)?, b, c),
        Type::S32 => Op::Word3(Word3::ExtractS, scope.word_to(d, ty)?, scope.word(a, ty)?, b, c),
        Type::U64 | Type::S64 => Op::Extract(ty.is_signed(), scope.double_to(d, ty)?, scope.double(a, ty)?, b, c),
        _ => return no_type(instruction),
    })
}

fn insert(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let [d, a, b, c, length] = operands(instruction)?;
    let (c, length) = (scope.word(c, Type::U32)?, scope.word(length, Type::U32)?);
    Ok(match ty {
        Type::B32 => Op::Insert(scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, c, length),
        Type::B64 => Op::InsertDouble(scope.double_to(d, ty)?, scope.double(a, ty)?, scope.double(b, ty)?, c, length),
        _ => return no_type(instruction),
    })
}

fn lop3(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &["or", "and"], 1)?;
    if ty != Type::B32 {
        return no_type(instruction);
    }
    let table = |operand: &Operand| match operand {
        Operand::Integer(value) => {
            u8::try_from(*value).map_err(|_| format!("a lookup table has 8 bits, and {value} more"))
        }
        _ => Err("a lookup table must be a constant".to_owned()),
    };
    if !instruction.has("or") && !instruction.has("and") {
        let [d, a, b, c, lookup] = operands(instruction)?;
        let (a, b, c) = (scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?);
        return Ok(Op::Word3(Word3::Logic(table(lookup)?), scope.word_to(d, ty)?, a, b, c));
    }
    let [pair, a, b, c, lookup, q] = operands(instruction)?;
    let Operand::Pair(d, p) = pair else { return Err("a register and a predicate were expected: d|p".to_owned()) };
    Ok(Op::LogicTest {
        table: table(lookup)?,
        d: scope.word_to_named(d, ty)?,
        a: scope.word(a, ty)?,
        b: scope.word(b, ty)?,
        c: scope.word(c, ty)?,
        p: scope.predicate_to_named(p)?,
        q: Source::decode(scope, q)?,
        or: instruction.has("or"),
    })
}

fn mask(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    check(instruction, &["clamp", "wrap"], 1)?;
    let [d, a, b] = operands(instruction)?;
    let kind = match (instruction.opcode.as_str(), instruction.has("clamp"), instruction.has("wrap"), ty) {
        ("bmsk", true, false, Type::B32) => Word2::MaskClamp,
        ("bmsk", false, true, Type::B32) => Word2::MaskWrap,
        ("szext", true, false, Type::U32 | Type::S32) => Word2::ExtendClamp(ty.is_signed()),
        ("szext", false, true, Type::U32 | Type::S32) => Word2::ExtendWrap(ty.is_signed()),
        _ => return no_type(instruction),
    };
    Ok(Op::Word2(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, Type::U32)?))
}

fn word3(scope: &mut Scope<'_>, instruction: &Instruction, ty: Type) -> Result<Op, Reason> {
    if ty != Type::B32 {
        return no_type(instruction);
    }
    let names: Vec<&str> = instruction.modifiers.iter().map(String::as_str).filter(|name| *name != "b32").collect();
    let kind = match (instruction.opcode.as_str(), names.as_slice()) {
        ("shf", ["l", "clamp"]) => Word3::FunnelLeftClamp,
        ("shf", ["l", "wrap"]) => Word3::FunnelLeftWrap,
        ("shf", ["r", "clamp"]) => Word3::FunnelRightClamp,
        ("shf", ["r", "wrap"]) => Word3::FunnelRightWrap,
        ("prmt", []) => Word3::Permute,
        ("prmt", ["f4e"]) => Word3::Forward4,
        ("prmt", ["b4e"]) => Word3::Backward4,
        ("prmt", ["rc8"]) => Word3::Replicate8,
        ("prmt", ["ecl"]) => Word3::ClampLeft,
        ("prmt", ["ecr"]) => Word3::ClampRight,
        ("prmt", ["rc16"]) => Word3::Replicate16,
        ("fns", []) => Word3::FindNth,
        (opcode, names) => return Err(format!("{opcode} has no mode .{}", names.join("."))),
    };
    let [d, a, b, c] = operands(instruction)?;
    Ok(Op::Word3(kind, scope.word_to(d, ty)?, scope.word(a, ty)?, scope.word(b, ty)?, scope.word(c, ty)?))
}

/// Bit i of the table answers for the bits of a, b and c that read `abc` = i: one choice by c, then by b, then by a.
#[inline(always)]
fn choose(table: u8) -> impl Fn(u32, u32, u32) -> u32 {
    let bit: [u32; 8] = std::array::from_fn(|index| 0u32.wrapping_sub(u32::from(table >> index & 1)));
    let select = |by: u32, zero: u32, one: u32| zero ^ (by & (zero ^ one));
    move |a, b, c| {
        let without = select(b, select(c, bit[0], bit[1]), select(c, bit[2], bit[3]));
        let with = select(b, select(c, bit[4], bit[5]), select(c, bit[6], bit[7]));
        select(a, without, with)
    }
}

/// The position of the highest bit, or all ones where there is none.
#[inline(always)]
fn find32(a: u32) -> u32 {
    31u32.wrapping_sub(a.leading_zeros())
}

/// As [`find32`].
#[inline(always)]
fn find64(a: u64) -> u32 {
    63u32.wrapping_sub(a.leading_zeros())
}

/// The highest bit that differs from the sign.
#[inline(always)]
fn beside_sign32(a: u32) -> u32 {
    a ^ ((a as i32 >> 31) as u32)
}

/// As [`beside_sign32`].
#[inline(always)]
fn beside_sign64(a: u64) -> u64 {
    a ^ ((a as i64 >> 63) as u64)
}

/// A position as the amount by which that bit is shifted to the top.
#[inline(always)]
fn to_shift(position: u32, top: u32) -> u32 {
    if position == u32::MAX { position } else { top - position }
}

/// So many low bits, up to all.
#[inline(always)]
fn low_bits(length: u32) -> u64 {
    if length >= 64 { u64::MAX } else { (1 << length) - 1 }
}

/// `bfe` of an unsigned number.
#[inline(always)]
fn extract_unsigned(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= 64 { 0 } else { a >> position & low_bits(length) }
}

/// `bfe` of a signed number: bits above it are its sign, and so are those above the field.
#[inline(always)]
fn extract_signed(a: i64, position: u32, length: u32) -> i64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let shifted = a >> position.min(63);
    match length {
        0 => 0,
        1..=63 => shifted << (64 - length) >> (64 - length),
        _ => shifted,
    }
}

/// `bfi`: the low bits of `a` placed into `b`.
#[inline(always)]
fn place(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= 64 {
        return b;
    }
    let field = low_bits(length) << position;
    b & !field | a << position & field
}

/// `bmsk`, as the ISA writes it down.
#[inline(always)]
fn bit_mask(a: u32, b: u32, clamp: bool) -> u32 {
    let (position, width) = (a & 31, b & 31);
    if clamp && a >= 32 {
        return 0;
    }
    let from = u32::MAX << position;
    let end = position + width;
    let beyond = if end >= 32 || clamp && b >= 32 { 0 } else { u32::MAX << end };
    from & !beyond
}

/// `szext`, as the ISA writes it down.
#[inline(always)]
fn extend(a: u32, b: u32, clamp: bool, signed: bool) -> u32 {
    if clamp && b >= 32 {
        return a;
    }
    let width = b & 31;
    let above = u32::MAX << width;
    let negative = signed && width > 0 && a >> (width.wrapping_sub(1) & 31) & 1 == 1;
    a & !above | if negative { above } else { 0 }
}

/// `fns`: the position of the n-th set bit from a base on, upwards or downwards.
#[inline(always)]
fn find_nth(mask: u32, base: u32, offset: i32) -> u32 {
    let set = |position: u32| mask >> position & 1 == 1;
    if base > 31 {
        return u32::MAX;
    }
    if offset == 0 {
        return if set(base) { base } else { u32::MAX };
    }
    let mut rest = offset.unsigned_abs() - 1;
    let mut position = base;
    loop {
        if set(position) {
            if rest == 0 {
                return position;
            }
            rest -= 1;
        }
        if position == if offset > 0 { 31 } else { 0 } {
            return u32::MAX;
        }
        position = if offset > 0 { position + 1 } else { position - 1 };
    }
}

/// Four bytes out of the eight of b:a, each by its number.
#[inline(always)]
fn pick(a: u32, b: u32, number: impl Fn(u32) -> u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |word, i| word | ((bytes >> (8 * (number(i) & 7))) as u32 & 0xff) << (8 * i))
}

/// The default mode of `prmt`: a nibble per byte, whose top bit asks for the byte's sign instead.
#[inline(always)]
fn permute(a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |word, i| {
        let nibble = c >> (4 * i) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        word | u32::from(byte) << (8 * i)
    })
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::Word1(kind, d, a) => match kind {
                Word1::Not16 => r.map1(d, m, a, |a| !a & 0xffff),
                Word1::Not32 => r.map1(d, m, a, |a| !a),
                Word1::Cnot => r.map1(d, m, a, |a| u32::from(a == 0)),
                Word1::Popc => r.map1(d, m, a, u32::count_ones),
                Word1::Clz => r.map1(d, m, a, u32::leading_zeros),
                Word1::Brev => r.map1(d, m, a, u32::reverse_bits),
                Word1::FindU => r.map1(d, m, a, find32),
                Word1::FindS => r.map1(d, m, a, |a| find32(beside_sign32(a))),
                Word1::FindShiftU => r.map1(d, m, a, |a| to_shift(find32(a), 31)),
                Word1::FindShiftS => r.map1(d, m, a, |a| to_shift(find32(beside_sign32(a)), 31)),
            },
            Self::Word2(kind, d, a, b) => match kind {
                Word2::And => r.map2(d, m, a, b, |a, b| a & b),
                Word2::Or => r.map2(d, m, a, b, |a, b| a | b),
                Word2::Xor => r.map2(d, m, a, b, |a, b| a ^ b),
                Word2::Left16 => r.map2(d, m, a, b, |a, b| if b > 15 { 0 } else { a << b & 0xffff }),
                Word2::Left32 => r.map2(d, m, a, b, |a, b| if b > 31 { 0 } else { a << b }),
                Word2::RightU => r.map2(d, m, a, b, |a, b| if b > 31 { 0 } else { a >> b }),
                Word2::RightS16 => r.map2(d, m, a, b, |a, b| u32::from((a as i16 >> b.min(15)) as u16)),
                Word2::RightS32 => r.map2(d, m, a, b, |a, b| (a as i32 >> b.min(31)) as u32),
                Word2::MaskClamp => r.map2(d, m, a, b, |a, b| bit_mask(a, b, true)),
                Word2::MaskWrap => r.map2(d, m, a, b, |a, b| bit_mask(a, b, false)),
                Word2::ExtendClamp(signed) => r.map2(d, m, a, b, |a, b| extend(a, b, true, signed)),
                Word2::ExtendWrap(signed) => r.map2(d, m, a, b, |a, b| extend(a, b, false, signed)),
            },
            Self::Word3(kind, d, a, b, c) => kind.execute(r, m, d, a, b, c),
            Self::LogicTest { table, d, a, b, c, p, q, or } => {
                let f = choose(table);
                let (a, b, c) = (r.word(a), r.word(b), r.word(c));
                let values = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
                let set = crate::machine::registers::mask_of(|lane| values[lane] != 0);
                let q = q.lanes(r);
                r.set_word(d, m, &values);
                r.set_predicate(p, m, if or { set | q } else { set & q });
            }
            Self::Insert(d, a, b, position, length) => {
                let (a, b, position, length) = (r.word(a), r.word(b), r.word(position), r.word(length));
                let values = std::array::from_fn(|lane| {
                    place(u64::from(a[lane]), u64::from(b[lane]), position[lane], length[lane]) as u32
                });
                r.set_word(d, m, &values);
            }
            Self::Double1(kind, d, a) => match kind {
                Double1::Not => r.double_map1(d, m, a, |a| !a),
                Double1::Cnot => r.double_map1(d, m, a, |a| u64::from(a == 0)),
                Double1::Brev => r.double_map1(d, m, a, u64::reverse_bits),
            },
            Self::Logic(kind, d, a, b) => match kind {
                Logic::And => r.double_map2(d, m, a, b, |a, b| a & b),
                Logic::Or => r.double_map2(d, m, a, b, |a, b| a | b),
                Logic::Xor => r.double_map2(d, m, a, b, |a, b| a ^ b),
            },
            Self::Shift(kind, d, a, b) => {
                let (a, b) = (r.double(a), r.word(b));
                let values = match kind {
                    Shift::Left => std::array::from_fn(|lane| if b[lane] > 63 { 0 } else { a[lane] << b[lane] }),
                    Shift::RightU => std::array::from_fn(|lane| if b[lane] > 63 { 0 } else { a[lane] >> b[lane] }),
                    Shift::RightS => std::array::from_fn(|lane| (a[lane] as i64 >> b[lane].min(63)) as u64),
                };
                r.set_double(d, m, &values);
            }
            Self::Count(kind, d, a) => {
                let a = r.double(a);
                let values = match kind {
                    Count::Popc => std::array::from_fn(|lane| a[lane].count_ones()),
                    Count::Clz => std::array::from_fn(|lane| a[lane].leading_zeros()),
                    Count::FindU => std::array::from_fn(|lane| find64(a[lane])),
                    Count::FindS => std::array::from_fn(|lane| find64(beside_sign64(a[lane]))),
                    Count::FindShiftU => std::array::from_fn(|lane| to_shift(find64(a[lane]), 63)),
                    Count::FindShiftS => std::array::from_fn(|lane| to_shift(find64(beside_sign64(a[lane])), 63)),
                };
                r.set_word(d, m, &values);
            }
            Self::Extract(signed, d, a, b, c) => {
                let (a, b, c) = (r.double(a), r.word(b), r.word(c));
                let values = if signed {
                    std::array::from_fn(|lane| extract_signed(a[lane] as i64, b[lane], c[lane]) as u64)
                } else {
                    std::array::from_fn(|lane| extract_unsigned(a[lane], b[lane], c[lane]))
                };
                r.set_double(d, m, &values);
            }
            Self::InsertDouble(d, a, b, position, length) => {
                let (a, b, position, length) = (r.double(a), r.double(b), r.word(position), r.word(length));
                let values = std::array::from_fn(|lane| place(a[lane], b[lane], position[lane], length[lane]));
                r.set_double(d, m, &values);
            }
            Self::Predicate2(kind, d, a, b) => {
                let (a, b) = (a.lanes(r), b.lanes(r));
                let value = match kind {
                    Logic::And => a & b,
                    Logic::Or => a | b,
                    Logic::Xor => a ^ b,
                };
                r.set_predicate(d, m, value);
            }
            Self::Predicate1(d, a) => {
                let a = a.lanes(r);
                r.set_predicate(d, m, !a);
            }
        }
    }
}

impl Word3 {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn execute(self, r: &mut Registers, m: u32, d: W, a: W, b: W, c: W) {
        let long = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
        match self {
            Self::Logic(table) => r.map3(d, m, a, b, c, choose(table)),
            Self::FunnelLeftClamp => r.map3(d, m, a, b, c, |a, b, c| (long(a, b) << c.min(32) >> 32) as u32),
            Self::FunnelLeftWrap => r.map3(d, m, a, b, c, |a, b, c| (long(a, b) << (c & 31) >> 32) as u32),
            Self::FunnelRightClamp => r.map3(d, m, a, b, c, |a, b, c| (long(a, b) >> c.min(32)) as u32),
            Self::FunnelRightWrap => r.map3(d, m, a, b, c, |a, b, c| (long(a, b) >> (c & 31)) as u32),
            Self::ExtractU => r.map3(d, m, a, b, c, |a, b, c| extract_unsigned(u64::from(a), b, c) as u32),
            Self::ExtractS => r.map3(d, m, a, b, c, |a, b, c| extract_signed(i64::from(a as i32), b, c) as u32),
            Self::FindNth => r.map3(d, m, a, b, c, |a, b, c| find_nth(a, b, c as i32)),
            Self::Permute => r.map3(d, m, a, b, c, permute),
            Self::Forward4 => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |i| (c & 3) + i)),
            Self::Backward4 => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |i| (c & 3).wrapping_sub(i))),
            Self::Replicate8 => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |_| c & 3)),
            Self::ClampLeft => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |i| i.max(c & 3))),
            Self::ClampRight => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |i| i.min(c & 3))),
            Self::Replicate16 => r.map3(d, m, a, b, c, |a, b, c| pick(a, b, |i| (c & 1) * 2 + (i & 1))),
        }
    }
}

#[cfg(test)]
mod tests;
