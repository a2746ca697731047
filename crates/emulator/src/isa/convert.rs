//! Conversions: `cvt` and `cvt.pack` of PTX ISA 9.7.9.
//!
//! Registers may be wider than the types of the instruction: of a source the low bits are taken; a result is extended to
//! the destination, with its sign if it has one.

use super::Decoded;
use super::forms::{check, no_type, operands};
use super::rounding::{
    Format, Rounding, bf16_to_f32, canonical, f16_to_f32, f32_to_bf16, f32_to_f16, flush, narrow, saturate,
};
use crate::machine::registers::{D, Double, LANES, Registers, W, Word};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    /// Between integers.
    Integers { d: To, a: From, from: Integer, to: Integer, clamp: bool },
    /// From an integer to a floating-point number.
    FromInteger { d: To, a: From, from: Integer, to: Float, mode: Rounding, sat: bool },
    /// From a floating-point number to an integer.
    ToInteger { d: To, a: From, from: Float, to: Integer, mode: Rounding, ftz: bool },
    /// Between floating-point numbers.
    Floats { d: To, a: From, from: Float, to: Float, style: Style },
    /// Two singles into one register, the first of them into the upper half.
    Pair { d: W, a: W, b: W, to: Float, style: Style },
    /// Two halves into two bytes.
    Shorten { d: W, a: W, to: Float, relu: bool },
    /// Two bytes into two halves.
    Lengthen { d: W, a: W, from: Float, relu: bool },
    /// `cvt.pack.sat`: a above b, clamped, above what c has.
    Pack { d: W, a: W, b: W, c: Option<W>, to: Integer },
}

/// Where a source lies.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum From {
    Word(W),
    Double(D),
}

/// Where a result goes; of a word with the mask of the bits that its register has.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum To {
    Word(W, u32),
    Double(D),
}

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer {
    bits: u32,
    signed: bool,
}

/// A floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Float {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    E4m3,
    E5m2,
}

/// Modifiers of a conversion between floating-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    mode: Rounding,
    /// To an integral value, in the direction `mode`.
    integral: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
    /// What is beyond the largest finite number becomes that.
    satfinite: bool,
}

impl Float {
    fn of(ty: Type) -> Option<Self> {
        Some(match ty {
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
            Type::Tf32 => Self::Tf32,
            Type::F32 => Self::F32,
            Type::F64 => Self::F64,
            _ => return None,
        })
    }

    /// Whether every number of this format is one of `other`.
    fn fits_into(self, other: Self) -> bool {
        let rank = |float| match float {
            Self::F64 => 3,
            Self::F32 => 2,
            _ => 1,
        };
        self == other || rank(self) < rank(other)
    }

    #[inline(always)]
    const fn format(self) -> Format {
        match self {
            Self::F16 => Format::F16,
            Self::Bf16 => Format::BF16,
            Self::Tf32 => Format::TF32,
            Self::F32 => Format::F32,
            Self::F64 => Format::F64,
            Self::E4m3 => Format::E4M3,
            Self::E5m2 => Format::E5M2,
        }
    }
}

impl Integer {
    fn of(ty: Type) -> Option<Self> {
        ty.is_integer().then(|| Self { bits: 8 * ty.size() as u32, signed: ty.is_signed() })
    }

    /// The low bits of a word as this integer, sign- or zero-extended.
    #[inline(always)]
    fn extend_word(self, x: u32) -> u32 {
        let above = 32 - self.bits.min(32);
        if self.signed { ((x << above) as i32 >> above) as u32 } else { x << above >> above }
    }

    /// The low bits of a double, as [`Integer::extend_word`].
    #[inline(always)]
    fn extend(self, x: u64) -> u64 {
        let above = 64 - self.bits;
        if self.signed { ((x << above) as i64 >> above) as u64 } else { x << above >> above }
    }

    #[inline(always)]
    fn largest(self) -> u64 {
        u64::MAX >> (64 - self.bits + u32::from(self.signed))
    }

    #[inline(always)]
    fn smallest(self) -> i64 {
        if self.signed { -1 << (self.bits - 1) } else { 0 }
    }

    /// A number, of which `signed` says how it is to be read, clamped into this type.
    #[inline(always)]
    fn clamp(self, x: u64, signed: bool) -> u64 {
        if signed && (x as i64) < 0 { (x as i64).max(self.smallest()) as u64 } else { x.min(self.largest()) }
    }
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    if instruction.opcode != "cvt" {
        return Ok(None);
    }
    let op = if instruction.has("pack") {
        pack(scope, instruction)?
    } else if let Some(op) = pair(scope, instruction)? {
        op
    } else {
        scalar(scope, instruction)?
    };
    Ok(Some(super::Op::Convert(op)))
}

/// The directions of rounding to an integral value.
fn integral(instruction: &Instruction) -> Option<Rounding> {
    instruction.modifiers.iter().find_map(|modifier| match modifier.as_str() {
        "rni" => Some(Rounding::Nearest),
        "rzi" => Some(Rounding::Zero),
        "rmi" => Some(Rounding::Down),
        "rpi" => Some(Rounding::Up),
        _ => None,
    })
}

fn rounding(instruction: &Instruction) -> Option<Rounding> {
    instruction.modifiers.iter().find_map(|modifier| Rounding::parse(modifier))
}

fn source(scope: &mut Scope<'_>, operand: &Operand, ty: Type) -> Result<From, Reason> {
    let wide = scope.register_type(operand).map_or(ty.size(), Type::size) == 8;
    if wide { Ok(From::Double(scope.double_any(operand, ty)?)) } else { Ok(From::Word(scope.word_any(operand, ty)?)) }
}

fn destination(scope: &mut Scope<'_>, operand: &Operand, ty: Type) -> Result<To, Reason> {
    match scope.register_type(operand).map_or(ty.size(), Type::size) {
        own if own < ty.size() => Err("the destination is too small for the type".to_owned()),
        8 => Ok(To::Double(scope.double_to_any(operand, ty)?)),
        own => Ok(To::Word(scope.word_to_any(operand, ty)?, u32::MAX >> (32 - 8 * own as u32))),
    }
}

/// `cvt` of one value.
fn scalar(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    const ALL: &[&str] =
        &["rn", "rna", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "satfinite", "relu"];
    check(instruction, ALL, 2)?;
    let mut types = instruction.types();
    let (Some(to), Some(from)) = (types.next(), types.next()) else { return no_type(instruction) };
    let [d, a] = operands(instruction)?;
    let refuse = |names: &[&str]| match names.iter().find(|name| instruction.has(name)) {
        Some(name) => Err(format!("cvt does not take .{name} for these types")),
        None => Ok(()),
    };
    let (mode, whole) = (rounding(instruction), integral(instruction));
    let (ftz, sat) = (instruction.has("ftz"), instruction.has("sat"));
    let given = instruction
        .modifiers
        .iter()
        .filter(|name| Rounding::parse(name).is_some() || matches!(name.as_str(), "rni" | "rzi" | "rmi" | "rpi"));
    if given.count() > 1 {
        return Err("cvt is given two roundings".to_owned());
    }
    if ftz && to != Type::F32 && from != Type::F32 {
        refuse(&["ftz"])?;
    }
    if to == Type::Bf16 {
        refuse(&["sat"])?;
    }
    if (to == Type::Bf16 && from.size() == 1) || (from == Type::Bf16 && to.size() == 1) {
        return no_type(instruction);
    }
    match (Integer::of(to), Float::of(to), Integer::of(from), Float::of(from)) {
        (Some(into), _, Some(of), _) => {
            refuse(&["rn", "rna", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "satfinite", "relu"])?;
            let (a, d) = (source(scope, a, from)?, destination(scope, d, to)?);
            Ok(Op::Integers { d, a, from: of, to: into, clamp: sat })
        }
        (_, Some(into), Some(of), _) if into != Float::Tf32 => {
            refuse(&["rna", "rni", "rzi", "rmi", "rpi", "satfinite", "relu"])?;
            let mode = mode.ok_or("cvt from an integer takes one of .rn, .rz, .rm, .rp")?;
            Ok(Op::FromInteger {
                d: same_size(scope, d, to)?,
                a: source(scope, a, from)?,
                from: of,
                to: into,
                mode,
                sat,
            })
        }
        (Some(into), _, _, Some(of)) if of != Float::Tf32 => {
            refuse(&["rn", "rna", "rz", "rm", "rp", "satfinite", "relu"])?;
            let mode = whole.ok_or("cvt to an integer takes one of .rni, .rzi, .rmi, .rpi")?;
            // `.sat` changes nothing, since the result is clamped anyway.
            let (a, d) = (source(scope, a, from)?, destination(scope, d, to)?);
            Ok(Op::ToInteger { d, a, from: of, to: into, mode, ftz })
        }
        (_, Some(into), _, Some(of)) if of != Float::Tf32 => {
            let narrows = !of.fits_into(into);
            if narrows {
                refuse(&["rni", "rzi", "rmi", "rpi"])?;
                if mode.is_none() {
                    return Err("cvt to a shorter format takes a rounding".to_owned());
                }
            } else {
                refuse(&["rn", "rna", "rz", "rm", "rp", "satfinite", "relu"])?;
                if whole.is_some() && of != into {
                    return Err("cvt to a longer format takes no rounding".to_owned());
                }
            }
            if into != Float::Tf32 {
                refuse(&["rna"])?;
            }
            if matches!(into, Float::F32 | Float::F64) {
                refuse(&["satfinite", "relu"])?;
            }
            let style = Style {
                mode: whole.or(mode).unwrap_or(Rounding::Nearest),
                integral: whole.is_some(),
                ftz,
                sat,
                relu: instruction.has("relu"),
                satfinite: instruction.has("satfinite"),
            };
            Ok(Op::Floats { d: same_size(scope, d, to)?, a: source(scope, a, from)?, from: of, to: into, style })
        }
        _ => no_type(instruction),
    }
}

/// The destination of a floating-point result: a half may lie in a wider word, other formats fill their register.
fn same_size(scope: &mut Scope<'_>, operand: &Operand, ty: Type) -> Result<To, Reason> {
    match (destination(scope, operand, ty)?, ty.size()) {
        (To::Double(_), size) if size < 8 => Err("the destination is larger than the type".to_owned()),
        (to, _) => Ok(to),
    }
}

/// `cvt` into or from two numbers in one register; nothing where there is one.
fn pair(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Option<Op>, Reason> {
    let names: Vec<&str> = instruction
        .modifiers
        .iter()
        .map(String::as_str)
        .filter(|name| matches!(*name, "f16x2" | "bf16x2" | "e4m3x2" | "e5m2x2" | "f32"))
        .collect();
    let relu = instruction.has("relu");
    let satfinite = instruction.has("satfinite");
    let short = |name: &str| if name == "e4m3x2" { Float::E4m3 } else { Float::E5m2 };
    Ok(Some(match names.as_slice() {
        [to @ ("f16x2" | "bf16x2"), "f32"] => {
            check(instruction, &["rn", "rz", "relu", "satfinite"], 2)?;
            let mode = rounding(instruction).ok_or("cvt to a pair takes .rn or .rz")?;
            let [d, a, b] = operands(instruction)?;
            let to = if *to == "f16x2" { Float::F16 } else { Float::Bf16 };
            let style = Style { mode, integral: false, ftz: false, sat: false, relu, satfinite };
            let (a, b) = (scope.word(a, Type::F32)?, scope.word(b, Type::F32)?);
            Op::Pair { d: scope.word_to(d, Type::B32)?, a, b, to, style }
        }
        [to @ ("e4m3x2" | "e5m2x2"), "f32"] => {
            check(instruction, &["rn", "relu", "satfinite", to], 1)?;
            need_rn_satfinite(instruction)?;
            let [d, a, b] = operands(instruction)?;
            let style =
                Style { mode: Rounding::Nearest, integral: false, ftz: false, sat: false, relu, satfinite: true };
            let (a, b) = (scope.word(a, Type::F32)?, scope.word(b, Type::F32)?);
            Op::Pair { d: scope.word_to(d, Type::B16)?, a, b, to: short(to), style }
        }
        [to @ ("e4m3x2" | "e5m2x2"), "f16x2"] => {
            check(instruction, &["rn", "relu", "satfinite", to], 1)?;
            need_rn_satfinite(instruction)?;
            let [d, a] = operands(instruction)?;
            Op::Shorten { d: scope.word_to(d, Type::B16)?, a: scope.word(a, Type::F16x2)?, to: short(to), relu }
        }
        ["f16x2", from @ ("e4m3x2" | "e5m2x2")] => {
            check(instruction, &["rn", "relu", from], 1)?;
            if !instruction.has("rn") {
                return Err("cvt from bytes takes .rn".to_owned());
            }
            let [d, a] = operands(instruction)?;
            Op::Lengthen { d: scope.word_to(d, Type::B32)?, a: scope.word(a, Type::B16)?, from: short(from), relu }
        }
        _ => return Ok(None),
    }))
}

fn need_rn_satfinite(instruction: &Instruction) -> Result<(), Reason> {
    if instruction.has("rn") && instruction.has("satfinite") {
        Ok(())
    } else {
        Err("cvt to bytes takes .rn.satfinite".to_owned())
    }
}

/// `cvt.pack.sat.to.s32 d, a, b` and, with types of up to 8 bits, `.b32 d, a, b, c`.
fn pack(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let names: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    let integer = |bits, signed| Integer { bits, signed };
    let (to, chained) = match names.as_slice() {
        ["pack", "sat", "u16", "s32"] => (integer(16, false), false),
        ["pack", "sat", "s16", "s32"] => (integer(16, true), false),
        ["pack", "sat", to, "s32", "b32"] => match *to {
            "u8" => (integer(8, false), true),
            "s8" => (integer(8, true), true),
            "u4" => (integer(4, false), true),
            "s4" => (integer(4, true), true),
            "u2" => (integer(2, false), true),
            "s2" => (integer(2, true), true),
            _ => return no_type(instruction),
        },
        _ => return no_type(instruction),
    };
    let (d, a, b, c) = if chained {
        let [d, a, b, c] = operands(instruction)?;
        (d, a, b, Some(c))
    } else {
        let [d, a, b] = operands(instruction)?;
        (d, a, b, None)
    };
    let c = c.map(|c| scope.word(c, Type::B32)).transpose()?;
    Ok(Op::Pack { d: scope.word_to(d, Type::B32)?, a: scope.word(a, Type::S32)?, b: scope.word(b, Type::S32)?, c, to })
}

/// The sources of all lanes as doubles, extended as `ty` says.
#[inline(always)]
fn load(r: &Registers, a: From, ty: Integer) -> Double {
    match a {
        From::Word(a) => {
            let a = r.word(a);
            std::array::from_fn(|lane| ty.extend(u64::from(a[lane])))
        }
        From::Double(a) => {
            let a = r.double(a);
            std::array::from_fn(|lane| ty.extend(a[lane]))
        }
    }
}

/// The low bits of all lanes of a source.
#[inline(always)]
fn load_word(r: &Registers, a: From) -> Word {
    match a {
        From::Word(a) => *r.word(a),
        From::Double(a) => {
            let a = r.double(a);
            std::array::from_fn(|lane| a[lane] as u32)
        }
    }
}

#[inline(always)]
fn store(r: &mut Registers, m: u32, d: To, values: &Double) {
    match d {
        To::Word(d, mask) => {
            let values = std::array::from_fn(|lane| values[lane] as u32 & mask);
            r.set_word(d, m, &values);
        }
        To::Double(d) => r.set_double(d, m, values),
    }
}

#[inline(always)]
fn store_word(r: &mut Registers, m: u32, d: To, f: impl Fn(usize) -> u32) {
    let values: Word = std::array::from_fn(f);
    match d {
        To::Word(d, _) => r.set_word(d, m, &values),
        To::Double(d) => r.set_double(d, m, &values.map(u64::from)),
    }
}

/// The sources of all lanes as floating-point numbers, exactly.
#[inline(always)]
fn load_float(r: &Registers, a: From, from: Float, ftz: bool) -> [f64; LANES] {
    if from == Float::F64 {
        let a = load(r, a, Integer { bits: 64, signed: false });
        return std::array::from_fn(|lane| f64::from_bits(a[lane]));
    }
    let a = load_word(r, a);
    match from {
        Float::F16 => std::array::from_fn(|lane| f64::from(f16_to_f32(a[lane] & 0xffff))),
        Float::Bf16 => std::array::from_fn(|lane| f64::from(bf16_to_f32(a[lane]))),
        _ => std::array::from_fn(|lane| f64::from(flush(f32::from_bits(a[lane]), ftz))),
    }
}

/// A number as an integer, clamped. A NaN is zero, or of a double or into 64 bits the sign bit alone (PTX ISA 9.0).
#[inline(always)]
fn integer(x: f64, to: Integer, nan: u64) -> u64 {
    if x.is_nan() {
        return nan;
    }
    if to.signed { (x as i64).clamp(to.smallest(), to.largest() as i64) as u64 } else { (x as u64).min(to.largest()) }
}

/// A number in a format, as its bits, by way of integers: for everything that is not worth a loop of its own.
#[inline(always)]
fn encode(x: f64, to: Float, style: Style) -> u64 {
    let x = if style.integral { style.mode.integral(x) } else { x };
    // What is done to the result can be done before it is rounded: 0, 1 and the sign stay what they are.
    let x = if style.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let x = if style.relu && x <= 0.0 { 0.0 } else { x };
    let format = to.format();
    let mode = if style.integral { Rounding::Nearest } else { style.mode };
    let bits = if to == Float::F64 { x.to_bits() } else { format.round_f64(x, mode) };
    let magnitude = bits & !format.sign();
    let bits = if style.satfinite && !x.is_nan() && magnitude > format.largest() {
        bits & format.sign() | format.largest()
    } else {
        bits
    };
    match to {
        // In the upper bits of a single.
        Float::Tf32 if x.is_nan() => 0x7fff_ffff,
        Float::Tf32 => bits << 13,
        Float::F32 if style.ftz && magnitude < 1 << 23 => bits & format.sign(),
        _ => bits,
    }
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::Integers { d: To::Word(d, mask), a: From::Word(a), from, to, clamp: false } => {
                r.map1(d, m, a, |a| to.extend_word(from.extend_word(a)) & mask);
            }
            Self::Integers { d, a, from, to, clamp } => {
                let a = load(r, a, from);
                let values = if clamp {
                    std::array::from_fn(|lane| to.clamp(a[lane], from.signed))
                } else {
                    std::array::from_fn(|lane| to.extend(a[lane]))
                };
                store(r, m, d, &values);
            }
            Self::FromInteger { d, a, from, to, mode, sat } => from_integer(r, m, d, a, from, to, mode, sat),
            Self::ToInteger { d, a, from, to, mode, ftz } => {
                let x = load_float(r, a, from, ftz);
                let nan = if from == Float::F64 || to.bits == 64 { 1 << (to.bits - 1) } else { 0 };
                let nan = to.extend(nan);
                let values = match mode {
                    Rounding::Zero => std::array::from_fn(|lane| integer(x[lane], to, nan)),
                    Rounding::Down => std::array::from_fn(|lane| integer(x[lane].floor(), to, nan)),
                    Rounding::Up => std::array::from_fn(|lane| integer(x[lane].ceil(), to, nan)),
                    _ => std::array::from_fn(|lane| integer(x[lane].round_ties_even(), to, nan)),
                };
                store(r, m, d, &values);
            }
            Self::Floats { d, a, from, to, style } => floats(r, m, d, a, from, to, style),
            Self::Pair { d, a, b, to, style } => {
                let plain = style.mode == Rounding::Nearest && !style.satfinite;
                let relu = |x: u32| {
                    let x = f32::from_bits(x);
                    if style.relu && x <= 0.0 { 0.0 } else { x }
                };
                match to {
                    Float::F16 if plain => r.map2(d, m, a, b, |a, b| f32_to_f16(relu(a)) << 16 | f32_to_f16(relu(b))),
                    Float::Bf16 if plain => {
                        r.map2(d, m, a, b, |a, b| f32_to_bf16(relu(a)) << 16 | f32_to_bf16(relu(b)));
                    }
                    _ => {
                        let bits = if matches!(to, Float::E4m3 | Float::E5m2) { 8 } else { 16 };
                        let part = |x: u32| encode(f64::from(f32::from_bits(x)), to, style) as u32;
                        r.map2(d, m, a, b, |a, b| part(a) << bits | part(b));
                    }
                }
            }
            Self::Shorten { d, a, to, relu } => {
                let mode = Rounding::Nearest;
                let style = Style { mode, integral: false, ftz: false, sat: false, relu, satfinite: true };
                let part = |x: u32| encode(f64::from(f16_to_f32(x & 0xffff)), to, style) as u32;
                r.map1(d, m, a, |a| part(a >> 16) << 8 | part(a));
            }
            Self::Lengthen { d, a, from, relu } => {
                let part = |x: u32| {
                    let half = lengthen(x, from == Float::E4m3);
                    if relu && half & 0x8000 != 0 { 0 } else { half }
                };
                r.map1(d, m, a, |a| part(a >> 8) << 16 | part(a));
            }
            Self::Pack { d, a, b, c, to } => {
                let below = u32::MAX >> (32 - to.bits);
                let part = |x: u32| to.clamp(i64::from(x as i32) as u64, true) as u32 & below;
                let zeros = [0; LANES];
                let c = c.map_or(&zeros, |c| r.word(c));
                let (a, b) = (r.word(a), r.word(b));
                let values = std::array::from_fn(|lane| {
                    let above = if to.bits < 16 { c[lane] << (2 * to.bits) } else { 0 };
                    above | part(a[lane]) << to.bits | part(b[lane])
                });
                r.set_word(d, m, &values);
            }
        }
    }
}

/// The byte as a half, exactly.
#[inline(always)]
fn lengthen(byte: u32, e4m3: bool) -> u32 {
    let (sign, magnitude) = ((byte & 0x80) << 8, byte & 0x7f);
    if !e4m3 {
        return if magnitude > 0x7c { 0x7fff } else { sign | magnitude << 8 };
    }
    // In the place of a half's fields the number is too small by the difference of the biases, 8.
    let half = f32_to_f16(f16_to_f32(magnitude << 7) * 256.0);
    if magnitude == 0x7f { 0x7fff } else { sign | half }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn from_integer(r: &mut Registers, m: u32, d: To, a: From, from: Integer, to: Float, mode: Rounding, sat: bool) {
    let clamp = |x: u64| {
        if !sat {
            x
        } else if from.signed && (x as i64) < 0 {
            0
        } else {
            x.min(1)
        }
    };
    match (to, mode) {
        (Float::F32, Rounding::Nearest) if from.bits <= 32 && !sat => {
            let a = load_word(r, a);
            if from.signed {
                store_word(r, m, d, |lane| (from.extend_word(a[lane]) as i32 as f32).to_bits());
            } else {
                store_word(r, m, d, |lane| (from.extend_word(a[lane]) as f32).to_bits());
            }
        }
        // Of up to 32 bits it is exact, in whatever direction.
        (Float::F64, mode) if from.bits <= 32 || mode == Rounding::Nearest => {
            let a = load(r, a, from);
            let values = if from.signed {
                std::array::from_fn(|lane| (clamp(a[lane]) as i64 as f64).to_bits())
            } else {
                std::array::from_fn(|lane| (clamp(a[lane]) as f64).to_bits())
            };
            store(r, m, d, &values);
        }
        _ => {
            let a = load(r, a, from);
            let format = to.format();
            let values = std::array::from_fn(|lane| {
                let x = clamp(a[lane]);
                let negative = from.signed && (x as i64) < 0;
                let magnitude = if negative { x.wrapping_neg() } else { x };
                format.round(negative, u128::from(magnitude), 0, mode)
            });
            store(r, m, d, &values);
        }
    }
}

#[inline(always)]
fn floats(r: &mut Registers, m: u32, d: To, a: From, from: Float, to: Float, style: Style) {
    let Style { mode, integral, ftz, sat, .. } = style;
    let plain = !integral && !style.relu && !style.satfinite;
    match (from, to) {
        (Float::F16, Float::F32) if plain => {
            let a = load_word(r, a);
            let leave = |x: f32| canonical(saturate(flush(x, ftz), sat));
            store_word(r, m, d, |lane| leave(f16_to_f32(a[lane] & 0xffff)));
        }
        (Float::Bf16, Float::F32) if plain => {
            let a = load_word(r, a);
            let leave = |x: f32| canonical(saturate(flush(x, ftz), sat));
            store_word(r, m, d, |lane| leave(bf16_to_f32(a[lane])));
        }
        (Float::F32, Float::F16) if plain && mode == Rounding::Nearest => {
            let a = load_word(r, a);
            store_word(r, m, d, |lane| f32_to_f16(saturate(flush(f32::from_bits(a[lane]), ftz), sat)));
        }
        (Float::F32, Float::Bf16) if plain && mode == Rounding::Nearest => {
            let a = load_word(r, a);
            store_word(r, m, d, |lane| f32_to_bf16(saturate(flush(f32::from_bits(a[lane]), ftz), sat)));
        }
        (Float::F32, Float::F64) if plain && !sat => {
            let a = load_word(r, a);
            let values = std::array::from_fn(|lane| f64::from(flush(f32::from_bits(a[lane]), ftz)).to_bits());
            store(r, m, d, &values);
        }
        (Float::F64, Float::F32) if plain => {
            let x = load_float(r, a, from, false);
            store_word(r, m, d, |lane| canonical(saturate(flush(narrow(x[lane], mode), ftz), sat)));
        }
        _ => {
            let x = load_float(r, a, from, ftz);
            let values = std::array::from_fn(|lane| encode(x[lane], to, style));
            store(r, m, d, &values);
        }
    }
}

#[cfg(test)]
mod tests;
