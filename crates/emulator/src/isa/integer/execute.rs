//! What integer arithmetic does, lane by lane.

use super::{Carry, Double1, Double2, Double3, Op, Word1, Word2, Word3};
use crate::machine::registers::{D, LANES, Registers, W};

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
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

#[inline(always)]
fn high_s32(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

#[inline(always)]
fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

#[inline(always)]
fn high_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
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
            Self::Mul24HighU => r.map2(d, m, a, b, |a, b| ((u24(a) * u24(b)) >> 16) as u32),
            Self::Mul24HighS => r.map2(d, m, a, b, |a, b| ((s24(a) * s24(b)) >> 16) as u32),
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
                r.map3(d, m, a, b, c, |a, b, c| (((s16(a) * s16(b)) >> 16) as u32).wrapping_add(c) & 0xffff)
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
            Self::Mad24HighU => r.map3(d, m, a, b, c, |a, b, c| (((u24(a) * u24(b)) >> 16) as u32).wrapping_add(c)),
            Self::Mad24HighS => r.map3(d, m, a, b, c, |a, b, c| (((s24(a) * s24(b)) >> 16) as u32).wrapping_add(c)),
            Self::Mad24HighSaturated => {
                r.map3(d, m, a, b, c, |a, b, c| clamp_s32(((s24(a) * s24(b)) >> 16) + i64::from(c as i32)));
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
