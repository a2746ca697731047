//! The element types of multiplicands, as they lie in 32-bit registers, and the rounding of sums.

/// How elements of a matrix lie in a register, and what their products are summed in.
pub trait Element {
    /// `f64` for floating-point elements, in which a product of two of them is exact; `i32` for integers, of which no
    /// shape has enough to overflow it.
    type Value: Copy + Default;
    /// Elements of a register.
    const PER_WORD: usize;
    /// Element `index` of a register, the lowest bits holding the first one.
    fn expand(word: u32, index: usize) -> Self::Value;
    /// `sum + a·b`.
    fn add_product(sum: Self::Value, a: Self::Value, b: Self::Value) -> Self::Value;
}

macro_rules! add_product {
    (f64, $sum:ident, $a:ident, $b:ident) => {
        $sum + $a * $b
    };
    (i32, $sum:ident, $a:ident, $b:ident) => {
        $sum.wrapping_add($a.wrapping_mul($b))
    };
}

macro_rules! element {
    ($($(#[$doc:meta])* $name:ident: $value:tt, $per:literal, |$word:ident, $index:ident| $expand:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Element for $name {
            type Value = $value;
            const PER_WORD: usize = $per;
            #[inline(always)]
            fn expand($word: u32, $index: usize) -> $value {
                $expand
            }
            #[inline(always)]
            fn add_product(sum: $value, a: $value, b: $value) -> $value {
                add_product!($value, sum, a, b)
            }
        }
    )*};
}

element! {
    /// `.f16`.
    F16: f64, 2, |word, index| f64::from(f16_to_f32(word >> (16 * index)));
    /// `.bf16`.
    Bf16: f64, 2, |word, index| f64::from(f32::from_bits(word >> (16 * index) << 16));
    /// `.tf32`: the upper 19 bits of an f32. Hardware ignores the others, and so is done here.
    Tf32: f64, 1, |word, _index| f64::from(f32::from_bits(word & !0x1fff));
    /// `.e4m3`.
    E4m3: f64, 4, |word, index| f64::from(e4m3_to_f32(word >> (8 * index)));
    /// `.e5m2`: the upper byte of an f16.
    E5m2: f64, 4, |word, index| f64::from(f16_to_f32((word >> (8 * index) & 0xff) << 8));
    /// `.s8`.
    S8: i32, 4, |word, index| i32::from((word >> (8 * index)) as i8);
    /// `.u8`.
    U8: i32, 4, |word, index| i32::from((word >> (8 * index)) as u8);
    /// `.s4`.
    S4: i32, 8, |word, index| ((word << (28 - 4 * index)) as i32) >> 28;
    /// `.u4`.
    U4: i32, 8, |word, index| (word >> (4 * index) & 15) as i32;
}

/// The f16 in the lower 16 bits, widened without branches so that loops over it vectorize.
#[inline(always)]
pub fn f16_to_f32(bits: u32) -> f32 {
    // The exponent's bias differs by 112; scaling, unlike adding it to the bits, is right for subnormal numbers as
    // well.
    let scaled = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x8000) << 16)
}

/// The e4m3 in the lower 8 bits: no infinity, and one NaN a sign.
#[inline(always)]
fn e4m3_to_f32(bits: u32) -> f32 {
    let scaled = f32::from_bits((bits & 0x7f) << 20) * f32::from_bits((120 + 127) << 23);
    let special = if bits & 0x7f == 0x7f { 0x7fff_ffff } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x80) << 24)
}

/// A sum, rounded to the bits of an f32; NaN is the canonical one.
#[inline(always)]
pub fn round_to_f32(sum: f64) -> u32 {
    if sum.is_nan() { 0x7fff_ffff } else { (sum as f32).to_bits() }
}

/// A sum, rounded once to the bits of an f16; NaN is the canonical one.
#[inline(always)]
pub fn round_to_f16(sum: f64) -> u32 {
    // Rounding to odd first: what an f32 cannot hold stays visible in its last bit, so the second rounding sees no tie
    // that is none.
    let nearest = sum as f32;
    let (back, bits) = (f64::from(nearest), nearest.to_bits());
    let toward = if back.abs() < sum.abs() { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let odd = if back != sum && bits & 1 == 0 { toward } else { bits };

    let magnitude = odd & 0x7fff_ffff;
    // Subnormal results: adding 1/2 leaves the f16's own last place as that of the sum.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0x0fff + (magnitude >> 13 & 1)) >> 13;
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    // From 65520 on, halfway between the greatest f16 and what would follow, all is infinite.
    let value = if magnitude >= 65520f32.to_bits() { 0x7c00 } else { finite };
    if sum.is_nan() { 0x7fff } else { value | odd >> 16 & 0x8000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(u32::from(bits)), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}");
        }
    }

    #[test]
    fn every_f16_and_every_tie_between_two_is_rounded() {
        for bits in 0..0x7c00u16 {
            let low = f64::from(half::f16::from_bits(bits).to_f32());
            let high = if bits == 0x7bff { 65536.0 } else { f64::from(half::f16::from_bits(bits + 1).to_f32()) };
            let (tie, even) = ((low + high) / 2.0, bits + (bits & 1));
            let (bits, even) = (u32::from(bits), u32::from(even));
            assert_eq!(round_to_f16(low), bits);
            assert_eq!(round_to_f16(-low), bits | 0x8000);
            assert_eq!(round_to_f16(tie), even, "{bits:#06x}");
            // Next to a tie by far less than an f32 shows.
            assert_eq!(round_to_f16(f64::from_bits(tie.to_bits() + 1)), bits + 1, "{bits:#06x}");
            assert_eq!(round_to_f16(f64::from_bits(tie.to_bits() - 1)), bits, "{bits:#06x}");
        }
        assert_eq!(round_to_f16(f64::INFINITY), 0x7c00);
        assert_eq!(round_to_f16(-1e300), 0xfc00);
        assert_eq!(round_to_f16(f64::NAN), 0x7fff);
        assert_eq!(round_to_f16(-1e-300), 0x8000);
    }

    /// Table of the OCP 8-bit formats: e4m3 has bias 7 and its greatest number is 448; e5m2 has bias 15, 57344.
    #[test]
    fn eight_bit_floats() {
        let e4m3 = |bits: u32| E4m3::expand(bits, 0);
        assert_eq!(e4m3(0x7e), 448.0);
        assert_eq!(e4m3(0x38), 1.0);
        assert_eq!(e4m3(0xb9), -1.125);
        assert_eq!(e4m3(0x01), 0.001953125);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = |bits: u32| E5m2::expand(bits, 0);
        assert_eq!(e5m2(0x7b), 57344.0);
        assert_eq!(e5m2(0x3c), 1.0);
        assert_eq!(e5m2(0x01), 2f64.powi(-16));
        assert_eq!(e5m2(0xfc), f64::NEG_INFINITY);
        assert!(e5m2(0x7d).is_nan());
    }

    #[test]
    fn integers_are_taken_from_the_lowest_bits_on() {
        let word = 0x80ff_7f01;
        assert_eq!([0, 1, 2, 3].map(|index| S8::expand(word, index)), [1, 127, -1, -128]);
        assert_eq!([0, 1, 2, 3].map(|index| U8::expand(word, index)), [1, 127, 255, 128]);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|index| S4::expand(word, index)), [1, 0, -1, 7, -1, -1, 0, -8]);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|index| U4::expand(word, index)), [1, 0, 15, 7, 15, 15, 0, 8]);
    }
}
