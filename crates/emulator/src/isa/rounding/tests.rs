//! Every rounding against exact arithmetic on fractions of big integers, written as plainly as possible.

use super::*;
use proptest::prelude::*;
use std::cmp::Ordering;

const MODES: [Rounding; 5] = [Rounding::Nearest, Rounding::Away, Rounding::Zero, Rounding::Down, Rounding::Up];

/// A natural number of any size, from the lowest digit on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Natural(Vec<u32>);

impl Natural {
    fn new(mut x: u128) -> Self {
        let mut digits = Vec::new();
        while x > 0 {
            digits.push(x as u32);
            x >>= 32;
        }
        Self(digits)
    }

    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    fn shifted(&self, bits: u32) -> Self {
        let mut digits = vec![0; bits as usize / 32];
        let mut carry = 0;
        for &digit in &self.0 {
            let wide = u64::from(digit) << (bits % 32) | carry;
            digits.push(wide as u32);
            carry = wide >> 32;
        }
        digits.push(carry as u32);
        Self(digits).trimmed()
    }

    fn digit(&self, index: usize) -> u64 {
        u64::from(self.0.get(index).copied().unwrap_or(0))
    }

    fn plus(&self, other: &Self) -> Self {
        let mut carry = 0;
        let mut digits = Vec::new();
        for index in 0..=self.0.len().max(other.0.len()) {
            let sum = self.digit(index) + other.digit(index) + carry;
            digits.push(sum as u32);
            carry = sum >> 32;
        }
        Self(digits).trimmed()
    }

    /// Where `other` is not larger.
    fn minus(&self, other: &Self) -> Self {
        let mut borrow = 0;
        let mut digits = Vec::new();
        for index in 0..self.0.len() {
            let difference = self.digit(index) as i64 - other.digit(index) as i64 - borrow;
            digits.push(difference as u32);
            borrow = i64::from(difference < 0);
        }
        Self(digits).trimmed()
    }

    fn times(&self, other: &Self) -> Self {
        let mut result = Self(Vec::new());
        for (index, &digit) in self.0.iter().enumerate() {
            let mut carry = 0;
            let mut digits = vec![0; index];
            for &factor in &other.0 {
                let wide = u64::from(digit) * u64::from(factor) + carry;
                digits.push(wide as u32);
                carry = wide >> 32;
            }
            digits.push(carry as u32);
            result = result.plus(&Self(digits));
        }
        result
    }

    fn compare(&self, other: &Self) -> Ordering {
        let length = self.0.len().max(other.0.len());
        (0..length).rev().map(|i| self.digit(i).cmp(&other.digit(i))).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    }
}

/// ±natural · 2^exponent.
#[derive(Clone, Debug)]
struct Exact {
    negative: bool,
    natural: Natural,
    exponent: i32,
}

impl Exact {
    fn of(x: f64) -> Self {
        let parts = Parts::of(x);
        Self { negative: parts.negative, natural: Natural::new(parts.significand.into()), exponent: parts.exponent }
    }

    fn at(&self, exponent: i32) -> Natural {
        self.natural.shifted((self.exponent - exponent) as u32)
    }

    fn times(&self, other: &Self) -> Self {
        Self {
            negative: self.negative != other.negative,
            natural: self.natural.times(&other.natural),
            exponent: self.exponent + other.exponent,
        }
    }

    fn plus(&self, other: &Self) -> Self {
        let exponent = self.exponent.min(other.exponent);
        let (a, b) = (self.at(exponent), other.at(exponent));
        let (negative, natural) = if self.negative == other.negative {
            (self.negative, a.plus(&b))
        } else if a.compare(&b).is_ge() {
            (self.negative, a.minus(&b))
        } else {
            (other.negative, b.minus(&a))
        };
        Self { negative, natural, exponent }
    }

    fn is_zero(&self) -> bool {
        self.natural.0.is_empty()
    }

    /// Of magnitudes.
    fn compare(&self, other: &Self) -> Ordering {
        let exponent = self.exponent.min(other.exponent);
        self.at(exponent).compare(&other.at(exponent))
    }
}

/// The value of finite encoding `bits` of a magnitude, and of the one where infinity is, as if exponents went on.
fn magnitude(format: Format, bits: u64) -> Exact {
    let bias = (1 << (format.exponent - 1)) - 1;
    let field = (bits >> format.fraction) as i32;
    let fraction = bits & ((1 << format.fraction) - 1);
    let significand = if field == 0 { fraction } else { fraction | 1 << format.fraction };
    Exact {
        negative: false,
        natural: Natural::new(significand.into()),
        exponent: field.max(1) - bias - format.fraction as i32,
    }
}

/// `exact` rounded: by bisection over the encodings, whose order is that of the numbers, with `beside(encoding)` saying
/// how the exact magnitude compares with it.
fn bisect(format: Format, negative: bool, mode: Rounding, beside: impl Fn(&Exact) -> Ordering) -> u64 {
    let sign = if negative { format.sign() } else { 0 };
    let infinity = format.largest + 1;
    let (mut low, mut high) = (0, infinity);
    if beside(&magnitude(format, infinity)).is_ge() {
        low = infinity;
    }
    while low + 1 < high {
        let middle = (low + high) / 2;
        if beside(&magnitude(format, middle)).is_ge() {
            low = middle;
        } else {
            high = middle;
        }
    }
    let inexact = low == infinity || beside(&magnitude(format, low)).is_ne();
    if !inexact {
        return sign | low;
    }
    if low == infinity {
        low = format.largest;
    }
    let two = magnitude(format, low).plus(&magnitude(format, low + 1));
    let half = Exact { exponent: two.exponent - 1, ..two };
    let up = match mode {
        Rounding::Nearest => match beside(&half) {
            Ordering::Equal => low & 1 == 1,
            order => order.is_gt(),
        },
        Rounding::Away => beside(&half).is_ge(),
        Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
    };
    sign | (low + u64::from(up))
}

fn round(format: Format, exact: &Exact, mode: Rounding) -> u64 {
    bisect(format, exact.negative, mode, |other| exact.compare(other))
}

/// The sum's sign where it is zero: IEEE 754, 6.3.
fn round_sum(format: Format, a: &Exact, b: &Exact, mode: Rounding) -> u64 {
    let sum = a.plus(b);
    if !sum.is_zero() {
        return round(format, &sum, mode);
    }
    let both = a.is_zero() && b.is_zero() && a.negative == b.negative;
    let negative = if both { a.negative } else { mode == Rounding::Down };
    if negative { format.sign() } else { 0 }
}

/// Numbers of all magnitudes, near to each other often enough to cancel, with few bits often enough for ties.
fn doubles() -> impl Strategy<Value = f64> {
    let sparse = (any::<bool>(), 0u64..2047, 0u64..64, 0u32..6).prop_map(|(negative, exponent, top, low)| {
        f64::from_bits(u64::from(negative) << 63 | exponent << 52 | top << 46 | u64::from(low))
    });
    let near = (any::<bool>(), 1015u64..1031, any::<u64>())
        .prop_map(|(negative, exponent, bits)| f64::from_bits(u64::from(negative) << 63 | exponent << 52 | bits >> 12));
    let tiny = any::<u64>().prop_map(|bits| f64::from_bits(bits & 0x800f_ffff_ffff_ffff));
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |x| x.is_finite()),
        sparse,
        near,
        tiny,
        Just(0.0),
        Just(-0.0),
        Just(f64::MAX),
    ]
}

/// As [`doubles`].
fn singles() -> impl Strategy<Value = f32> {
    let sparse = (any::<bool>(), 0u32..255, 0u32..64, 0u32..6).prop_map(|(negative, exponent, top, low)| {
        f32::from_bits(u32::from(negative) << 31 | exponent << 23 | top << 17 | low)
    });
    let near = (any::<bool>(), 120u32..136, any::<u32>())
        .prop_map(|(negative, exponent, bits)| f32::from_bits(u32::from(negative) << 31 | exponent << 23 | bits >> 9));
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()),
        sparse,
        near,
        Just(0.0),
        Just(-0.0),
        Just(f32::MAX),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn conversion_from_double(x in doubles(), small in singles()) {
        for x in [x, f64::from(small)] {
            let exact = Exact::of(x);
            for format in [Format::F16, Format::BF16, Format::TF32, Format::F32, Format::F64, Format::E5M2, Format::E4M3] {
                for mode in MODES {
                    prop_assert_eq!(format.round_f64(x, mode), round(format, &exact, mode), "{:?} {:?} {}", format, mode, x);
                }
            }
            for mode in MODES {
                prop_assert_eq!(u64::from(narrow(x, mode).to_bits()), round(Format::F32, &exact, mode));
            }
        }
    }

    #[test]
    fn arithmetic_of_doubles(a in doubles(), b in doubles(), c in doubles()) {
        let (x, y, z) = (Exact::of(a), Exact::of(b), Exact::of(c));
        let product = x.times(&y);
        for mode in [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up] {
            let format = Format::F64;
            prop_assert_eq!(mode.add_f64(a, b).to_bits(), round_sum(format, &x, &y, mode), "{:?}", mode);
            prop_assert_eq!(mode.mul_f64(a, b).to_bits(), round(format, &product, mode), "{:?}", mode);
            prop_assert_eq!(mode.fma_f64(a, b, c).to_bits(), round_sum(format, &product, &z, mode), "{:?}", mode);
            if a != 0.0 && b != 0.0 {
                // a / b against q is a against b·q.
                let quotient = bisect(format, x.negative != y.negative, mode, |q| x.compare(&y.times(q)));
                prop_assert_eq!(mode.div_f64(a, b).to_bits(), quotient, "{:?}", mode);
                let root = bisect(format, false, mode, |q| x.compare(&q.times(q)));
                prop_assert_eq!(mode.sqrt_f64(a.abs()).to_bits(), root, "{:?}", mode);
            }
        }
    }

    #[test]
    fn arithmetic_of_singles(a in singles(), b in singles(), c in singles()) {
        let (x, y, z) = (Exact::of(a.into()), Exact::of(b.into()), Exact::of(c.into()));
        let product = x.times(&y);
        let bits = |x: f32| u64::from(x.to_bits());
        for mode in [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up] {
            let format = Format::F32;
            prop_assert_eq!(bits(mode.add_f32(a, b)), round_sum(format, &x, &y, mode), "{:?}", mode);
            prop_assert_eq!(bits(mode.mul_f32(a, b)), round(format, &product, mode), "{:?}", mode);
            prop_assert_eq!(bits(mode.fma_f32(a, b, c)), round_sum(format, &product, &z, mode), "{:?}", mode);
            if a != 0.0 && b != 0.0 {
                let quotient = bisect(format, x.negative != y.negative, mode, |q| x.compare(&y.times(q)));
                prop_assert_eq!(bits(mode.div_f32(a, b)), quotient, "{:?}", mode);
                let root = bisect(format, false, mode, |q| x.compare(&q.times(q)));
                prop_assert_eq!(bits(mode.sqrt_f32(a.abs())), root, "{:?}", mode);
            }
        }
    }
}

/// Exact sums and products of two halves of a format, for the tests of half-precision arithmetic.
pub(crate) fn half_results(brain: bool, a: f32, b: f32, c: f32) -> [u64; 4] {
    let format = if brain { Format::BF16 } else { Format::F16 };
    let (x, y, z) = (Exact::of(a.into()), Exact::of(b.into()), Exact::of(c.into()));
    let minus = Exact { negative: !y.negative, ..y.clone() };
    let (product, mode) = (x.times(&y), Rounding::Nearest);
    [
        round_sum(format, &x, &y, mode),
        round_sum(format, &x, &minus, mode),
        round(format, &product, mode),
        round_sum(format, &product, &z, mode),
    ]
}

#[test]
fn every_half_survives_the_way_to_single_and_back() {
    for bits in 0..0x1_0000u32 {
        let x = f16_to_f32(bits);
        assert!(x.is_nan() || x.to_bits() == half::f16::from_bits(bits as u16).to_f32().to_bits());
        let back = if x.is_nan() { 0x7fff } else { bits };
        assert_eq!(f32_to_f16(x), back);
        let x = bf16_to_f32(bits);
        assert_eq!(f32_to_bf16(x), if x.is_nan() { 0x7fff } else { bits });
    }
}

/// At and beside the middle between all neighbours, where roundings differ.
#[test]
fn singles_to_the_nearest_half() {
    for bits in 0..0x1_0000u32 {
        for (widened, offsets) in [(f16_to_f32(bits).to_bits(), 0x1000u32), (bits << 16, 0x8000)] {
            for offset in [offsets - 1, offsets, offsets + 1, 1] {
                let x = f32::from_bits(widened.wrapping_add(offset));
                let wide = f64::from(x);
                assert_eq!(u64::from(f32_to_f16(x)), Format::F16.round_f64(wide, Rounding::Nearest), "{x:e}");
                assert_eq!(u64::from(f32_to_bf16(x)), Format::BF16.round_f64(wide, Rounding::Nearest), "{x:e}");
            }
        }
    }
}

#[test]
fn narrow_formats_end_where_they_should() {
    assert_eq!(Format::E4M3.round_f64(448.0, Rounding::Nearest), 0x7e);
    assert_eq!(Format::E4M3.round_f64(463.9, Rounding::Nearest), 0x7e);
    assert_eq!(Format::E4M3.round_f64(480.0, Rounding::Nearest), 0x7f);
    assert_eq!(Format::E5M2.round_f64(57344.0, Rounding::Nearest), 0x7b);
    assert_eq!(Format::E5M2.round_f64(-65536.0, Rounding::Nearest), 0xfc);
    assert_eq!(Format::F16.round_f64(65519.9, Rounding::Nearest), 0x7bff);
    assert_eq!(Format::F16.round_f64(65520.0, Rounding::Nearest), 0x7c00);
    assert_eq!(Format::F16.round_f64(1e9, Rounding::Zero), 0x7bff);
    assert_eq!(Format::F16.round_f64(-1e9, Rounding::Up), 0xfbff);
    assert_eq!(Format::F16.round_f64(-1e9, Rounding::Down), 0xfc00);
    assert_eq!(Format::F16.round_f64(f64::INFINITY, Rounding::Zero), 0x7c00);
}

#[test]
fn flushing_and_clamping() {
    assert_eq!(flush(-1e-40, true).to_bits(), 0x8000_0000);
    assert_eq!(flush(-1e-40, false), -1e-40);
    assert_eq!(saturate(f32::NAN, true).to_bits(), 0);
    assert_eq!(saturate(-0.0, true).to_bits(), 0);
    assert_eq!(saturate(3.0, true), 1.0);
    assert_eq!(canonical(-f32::NAN), 0x7fff_ffff);
}
