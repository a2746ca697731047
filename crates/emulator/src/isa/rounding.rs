//! Rounding to the floating-point formats of PTX, in every direction.
//!
//! Three ways lead to a result that was rounded exactly once:
//! - the host's own operation, for f32 and f64 to nearest even;
//! - the host's operation in a wider format, made *odd*: where it was inexact, the last bit is set. A number rounded to
//!   odd with at least two bits more than the target can be rounded again, in any direction, as if it were exact
//!   (Boldo & Melquiond, *Emulation of FMA and correctly rounded sums*, 2008);
//! - integers, for everything else: directed rounding of f64, conversions from 64-bit integers, narrow formats.

/// The direction of a rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Nearest,
    /// `.rna`: to nearest, ties away from zero.
    Away,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards −∞.
    Down,
    /// `.rp`: towards +∞.
    Up,
}

impl Rounding {
    /// The direction of this modifier, if it is one that floating-point results have.
    pub fn parse(modifier: &str) -> Option<Self> {
        Some(match modifier {
            "rn" => Self::Nearest,
            "rna" => Self::Away,
            "rz" => Self::Zero,
            "rm" => Self::Down,
            "rp" => Self::Up,
            _ => return None,
        })
    }

    /// A number rounded to an integer in this direction.
    #[inline(always)]
    pub fn integral(self, x: f64) -> f64 {
        match self {
            Self::Nearest => x.round_ties_even(),
            Self::Away => x.round(),
            Self::Zero => x.trunc(),
            Self::Down => x.floor(),
            Self::Up => x.ceil(),
        }
    }
}

/// A binary format: sign, exponent, fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the fraction.
    fraction: u32,
    /// Bits of the exponent.
    exponent: u32,
    /// The encoding of the largest finite number; the next one is infinity, or in E4M3, which has none, NaN.
    largest: u64,
}

impl Format {
    /// IEEE half precision.
    pub const F16: Self = Self::ieee(10, 5);
    /// The upper half of a single.
    pub const BF16: Self = Self::ieee(7, 8);
    /// Single precision.
    pub const F32: Self = Self::ieee(23, 8);
    /// Double precision.
    pub const F64: Self = Self::ieee(52, 11);
    /// The upper 19 bits of a single.
    pub const TF32: Self = Self::ieee(10, 8);
    /// Eight bits with infinities.
    pub const E5M2: Self = Self::ieee(2, 5);
    /// Eight bits without infinities, up to 448.
    pub const E4M3: Self = Self { fraction: 3, exponent: 4, largest: 0x7e };

    const fn ieee(fraction: u32, exponent: u32) -> Self {
        Self { fraction, exponent, largest: (((1 << exponent) - 1) << fraction) - 1 }
    }

    /// The encoding of the largest finite number.
    pub const fn largest(self) -> u64 {
        self.largest
    }

    /// The canonical NaN: all ones but the sign.
    pub const fn nan(self) -> u64 {
        (1 << (self.fraction + self.exponent)) - 1
    }

    /// The sign bit.
    pub const fn sign(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }

    /// ±significand · 2^exponent, rounded. The significand is below 2^127; its last bit may stand for any number of
    /// bits below it ("sticky") if it has at least two bits more than the format.
    pub fn round(self, negative: bool, significand: u128, exponent: i32, mode: Rounding) -> u64 {
        let sign = if negative { self.sign() } else { 0 };
        if significand == 0 {
            return sign;
        }
        let bias = (1 << (self.exponent - 1)) - 1;
        let lowest = 1 - bias;
        let top = exponent + 127 - significand.leading_zeros() as i32;
        // The place of the result's last bit.
        let last = top.max(lowest) - self.fraction as i32;
        let shift = last - exponent;
        let (kept, rest, half) = match shift {
            ..=0 => (significand << -shift.max(-127), 0, 1),
            1..=127 => (significand >> shift, significand & ((1 << shift) - 1), 1 << (shift - 1)),
            // All of it is below half of the last place.
            _ => (0, 1, 2),
        };
        let up = match mode {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::Away => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        let kept = kept as u64 + u64::from(up);
        let bits = if top > bias + 1 {
            u64::MAX
        } else if top < lowest {
            kept
        } else {
            // The leading bit of `kept` adds one to the exponent field, and so does a carry out of the fraction.
            (((top - lowest) as u64) << self.fraction) + kept
        };
        if bits > self.largest { sign | self.overflow(negative, mode) } else { sign | bits }
    }

    /// What becomes of a magnitude beyond the largest.
    fn overflow(self, negative: bool, mode: Rounding) -> u64 {
        let stays = match mode {
            Rounding::Nearest | Rounding::Away => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        self.largest + u64::from(!stays)
    }

    /// A double, rounded.
    pub fn round_f64(self, x: f64, mode: Rounding) -> u64 {
        if x.is_nan() {
            return self.nan();
        }
        let parts = Parts::of(x);
        if x.is_infinite() {
            return if parts.negative { self.sign() } else { 0 } | (self.largest + 1);
        }
        self.round(parts.negative, u128::from(parts.significand), parts.exponent, mode)
    }
}

/// A finite double as ±significand · 2^exponent.
#[derive(Clone, Copy, Debug)]
struct Parts {
    negative: bool,
    significand: u64,
    exponent: i32,
}

impl Parts {
    fn of(x: f64) -> Self {
        let bits = x.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        Self {
            negative: x.is_sign_negative(),
            significand: if field == 0 { fraction } else { fraction | 1 << 52 },
            exponent: field.max(1) - 1075,
        }
    }

    /// The same number with its highest bit at bit 52.
    fn normalized(self) -> Self {
        let shift = self.significand.leading_zeros().saturating_sub(11);
        Self { significand: self.significand << shift, exponent: self.exponent - shift as i32, ..self }
    }
}

/// a + b, rounded to nearest, and what that leaves out, exactly (Dekker). Nothing is left out of an infinity.
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let swap = a.abs() < b.abs();
    let (large, small) = if swap { (b, a) } else { (a, b) };
    let sum = large + small;
    let rest = small - (sum - large);
    (sum, if sum.is_finite() { rest } else { 0.0 })
}

/// [`two_sum`] in single precision.
#[inline(always)]
pub fn two_sum_f32(a: f32, b: f32) -> (f32, f32) {
    let swap = a.abs() < b.abs();
    let (large, small) = if swap { (b, a) } else { (a, b) };
    let sum = large + small;
    let rest = small - (sum - large);
    (sum, if sum.is_finite() { rest } else { 0.0 })
}

/// sum + rest, where `rest` is at most half a last place of `sum`: rounded to odd.
#[inline(always)]
pub fn odd((sum, rest): (f64, f64)) -> f64 {
    let bits = sum.to_bits();
    let inward = u64::from((sum < 0.0) != (rest < 0.0));
    if rest == 0.0 { sum } else { f64::from_bits(bits.wrapping_sub(inward) | 1) }
}

/// [`odd`] in single precision.
#[inline(always)]
pub fn odd_f32((sum, rest): (f32, f32)) -> f32 {
    let bits = sum.to_bits();
    let inward = u32::from((sum < 0.0) != (rest < 0.0));
    if rest == 0.0 { sum } else { f32::from_bits(bits.wrapping_sub(inward) | 1) }
}

/// A double to single precision, rounded to odd.
#[inline(always)]
pub fn narrow_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let wide = f64::from(nearest);
    let bits = nearest.to_bits();
    let outward = u32::from(wide.abs() > x.abs());
    if wide == x || x.is_nan() { nearest } else { f32::from_bits(bits.wrapping_sub(outward) | 1) }
}

/// A double to single precision.
#[inline(always)]
pub fn narrow(x: f64, mode: Rounding) -> f32 {
    let nearest = x as f32;
    let wide = f64::from(nearest);
    match mode {
        Rounding::Nearest => nearest,
        Rounding::Away => f32::from_bits(Format::F32.round_f64(x, mode) as u32),
        Rounding::Zero if wide.abs() > x.abs() => f32::from_bits(nearest.to_bits() - 1),
        Rounding::Down if wide > x => nearest.next_down(),
        Rounding::Up if wide < x => nearest.next_up(),
        _ => nearest,
    }
}

/// The sum of two doubles of which the singles among them are exact: as a single. For a sum that is exactly zero the
/// direction decides the sign (IEEE 754, 6.3).
#[inline(always)]
pub fn add_narrow(a: f64, b: f64, mode: Rounding) -> f32 {
    let (sum, rest) = two_sum(a, b);
    let signed =
        if mode == Rounding::Down && sum == 0.0 && (a.is_sign_negative() || b.is_sign_negative()) { -0.0 } else { sum };
    narrow(odd((signed, rest)), mode)
}

/// Directed arithmetic of doubles.
impl Rounding {
    /// a + b.
    pub fn add_f64(self, a: f64, b: f64) -> f64 {
        if self == Self::Nearest { a + b } else { self.fma_f64(a, 1.0, b) }
    }

    /// a · b.
    pub fn mul_f64(self, a: f64, b: f64) -> f64 {
        let nearest = a * b;
        if self == Self::Nearest || !a.is_finite() || !b.is_finite() {
            return nearest;
        }
        let (x, y) = (Parts::of(a), Parts::of(b));
        let product = u128::from(x.significand) * u128::from(y.significand);
        f64::from_bits(Format::F64.round(x.negative != y.negative, product, x.exponent + y.exponent, self))
    }

    /// a · b + c.
    pub fn fma_f64(self, a: f64, b: f64, c: f64) -> f64 {
        let nearest = a.mul_add(b, c);
        if self == Self::Nearest || !(a.is_finite() && b.is_finite() && c.is_finite()) {
            return nearest;
        }
        let (x, y, z) = (Parts::of(a), Parts::of(b), Parts::of(c));
        let product = u128::from(x.significand) * u128::from(y.significand);
        let negative = x.negative != y.negative;
        let zero = |signs_agree: bool| {
            if signs_agree {
                nearest
            } else if self == Self::Down {
                -0.0
            } else {
                0.0
            }
        };
        match (product == 0, z.significand == 0) {
            (true, true) => return zero(negative == z.negative),
            (true, false) => return c,
            (false, true) => {
                return f64::from_bits(Format::F64.round(negative, product, x.exponent + y.exponent, self));
            }
            (false, false) => {}
        }
        // Both with their highest bit at bit 125; the smaller one is shifted down to the place of the larger, and what
        // falls off is gathered in the last bit. That happens only where more than 19 bits of zeros are shifted out
        // before, and then at most one bit cancels, so it stays far below the last place of the result.
        let align = |significand: u128, exponent: i32| {
            let shift = significand.leading_zeros() - 2;
            (significand << shift, exponent - shift as i32)
        };
        let product = (negative, align(product, x.exponent + y.exponent));
        let addend = (z.negative, align(u128::from(z.significand), z.exponent));
        let (large, small) = if product.1.1 >= addend.1.1 { (product, addend) } else { (addend, product) };
        let (large_sign, (large, exponent)) = large;
        let (small_sign, (small, small_exponent)) = small;
        let shift = exponent - small_exponent;
        let small = if shift > 126 { 1 } else { small >> shift | u128::from(small & ((1 << shift) - 1) != 0) };
        let (negative, sum) = if large_sign == small_sign {
            (large_sign, large + small)
        } else if large >= small {
            (large_sign, large - small)
        } else {
            (small_sign, small - large)
        };
        if sum == 0 { zero(false) } else { f64::from_bits(Format::F64.round(negative, sum, exponent, self)) }
    }

    /// a / b.
    pub fn div_f64(self, a: f64, b: f64) -> f64 {
        let nearest = a / b;
        if self == Self::Nearest || !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
            return nearest;
        }
        let (x, y) = (Parts::of(a).normalized(), Parts::of(b).normalized());
        let dividend = u128::from(x.significand) << 66;
        let (quotient, rest) = (dividend / u128::from(y.significand), dividend % u128::from(y.significand));
        let sticky = quotient << 1 | u128::from(rest != 0);
        f64::from_bits(Format::F64.round(x.negative != y.negative, sticky, x.exponent - y.exponent - 67, self))
    }

    /// √a.
    pub fn sqrt_f64(self, a: f64) -> f64 {
        let nearest = a.sqrt();
        if self == Self::Nearest || !a.is_finite() || a <= 0.0 {
            return nearest;
        }
        let x = Parts::of(a).normalized();
        // Of an even power of two the root is one.
        let shift = if x.exponent % 2 == 0 { 66 } else { 67 };
        let square = u128::from(x.significand) << shift;
        let root = square.isqrt();
        let sticky = root << 1 | u128::from(root * root != square);
        f64::from_bits(Format::F64.round(false, sticky, (x.exponent - shift) / 2 - 1, self))
    }
}

/// Arithmetic of singles, rounded once.
impl Rounding {
    /// a + b.
    #[inline(always)]
    pub fn add_f32(self, a: f32, b: f32) -> f32 {
        if self == Self::Nearest { a + b } else { add_narrow(f64::from(a), f64::from(b), self) }
    }

    /// a · b. The product of two singles is exact in double precision.
    #[inline(always)]
    pub fn mul_f32(self, a: f32, b: f32) -> f32 {
        if self == Self::Nearest { a * b } else { narrow(f64::from(a) * f64::from(b), self) }
    }

    /// a · b + c.
    #[inline(always)]
    pub fn fma_f32(self, a: f32, b: f32, c: f32) -> f32 {
        if self == Self::Nearest {
            a.mul_add(b, c)
        } else {
            add_narrow(f64::from(a) * f64::from(b), f64::from(c), self)
        }
    }

    /// a / b. An inexact quotient of singles lies further from every single, and from the middle between two, than the
    /// error of the division in double precision, so rounding twice does no harm; the same for the root.
    #[inline(always)]
    pub fn div_f32(self, a: f32, b: f32) -> f32 {
        if self == Self::Nearest { a / b } else { narrow(f64::from(a) / f64::from(b), self) }
    }

    /// √a.
    #[inline(always)]
    pub fn sqrt_f32(self, a: f32) -> f32 {
        if self == Self::Nearest { a.sqrt() } else { narrow(f64::from(a).sqrt(), self) }
    }
}

/// A half as a single; a NaN as some NaN.
#[inline(always)]
pub fn f16_to_f32(bits: u32) -> f32 {
    let magnitude = bits & 0x7fff;
    // Moved into the place of a single's fields it is too small by the difference of the biases, 112.
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude << 13 | 0x7f80_0000;
    f32::from_bits(if magnitude >= 0x7c00 { special } else { scaled } | (bits & 0x8000) << 16)
}

/// A single to the nearest half, without branches so that lanes run side by side.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Half of the last place less a hair, and the hair where the last bit is odd.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    // Beside 0.5 the last place of a single is that of a subnormal half.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let result = if magnitude >= 0x4780_0000 { 0x7c00 } else { finite };
    if magnitude > 0x7f80_0000 { 0x7fff } else { result | bits >> 16 & 0x8000 }
}

/// A bfloat16 as a single.
#[inline(always)]
pub fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// A single to the nearest bfloat16.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { nearest }
}

/// The canonical NaN of single precision for every NaN (PTX ISA 9.7.3: payloads are not kept).
#[inline(always)]
pub fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// Subnormal singles as zeros of their sign, where `ftz` asks for it.
#[inline(always)]
pub fn flush(x: f32, ftz: bool) -> f32 {
    let bits = x.to_bits();
    if ftz && bits & 0x7f80_0000 == 0 { f32::from_bits(bits & 0x8000_0000) } else { x }
}

/// Clamped to [0, 1], NaN to +0, where `sat` asks for it.
#[inline(always)]
pub fn saturate(x: f32, sat: bool) -> f32 {
    // Written so that NaN and −0 fail the first comparison.
    let clamped = if x > 0.0 { if x > 1.0 { 1.0 } else { x } } else { 0.0 };
    if sat { clamped } else { x }
}

#[cfg(test)]
pub(crate) mod tests;
