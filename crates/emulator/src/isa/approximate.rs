//! The functions that hardware approximates. Here they are computed in double precision and rounded once, which is
//! within the error that the ISA allows for each of them, and mostly nearer to the truth than hardware is.
//!
//! Exponential and logarithm are polynomials without branches, so that lanes run side by side.

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// 2^x; the ISA allows a relative error of 2^-22 (`ex2.approx`).
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    exp2_wide(f64::from(x)) as f32
}

/// 2^x for −1000 < x < 1000, with x clamped into that; relative error below 1e-11.
#[inline(always)]
fn exp2_wide(x: f64) -> f64 {
    let x = x.clamp(-1000.0, 1000.0);
    let whole = x.round_ties_even();
    // |y| ≤ ln 2 / 2: the series of e^y up to y^10.
    let y = (x - whole) * LN_2;
    let mut series = 1.0;
    for term in (1..=10).rev() {
        series = 1.0 + series * y * (1.0 / f64::from(term));
    }
    // Added to 1.5·2^52 an integer lies in the low bits, without a conversion.
    let shifted = (whole + 6_755_399_441_055_744.0).to_bits();
    let power = f64::from_bits(shifted.wrapping_add(1023) << 52);
    series * power
}

/// log₂ x; the ISA allows an error of 2^-22, absolute between ½ and 2, else relative (`lg2.approx`).
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    let wide = f64::from(x);
    let bits = wide.to_bits();
    let fraction = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let above = fraction > SQRT_2;
    let m = if above { fraction * 0.5 } else { fraction };
    let exponent = (bits >> 52) as i32 - 1023 + i32::from(above);
    // ln m = 2 artanh s, |s| ≤ 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 1.0 / 15.0;
    for term in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = 1.0 / term + series * square;
    }
    let value = (f64::from(exponent) + 2.0 * LOG2_E * s * series) as f32;
    if x == f32::INFINITY {
        x
    } else if x > 0.0 {
        value
    } else if x == 0.0 {
        f32::NEG_INFINITY
    } else {
        f32::NAN
    }
}

/// tanh x; the ISA allows a relative error of 2^-11 (`tanh.approx`).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let wide = f64::from(x);
    let magnitude = wide.abs();
    let far = 1.0 - 2.0 / (exp2_wide(2.0 * LOG2_E * magnitude) + 1.0);
    // Near zero the difference above cancels, and two terms of the series are exact.
    let near = magnitude - magnitude * magnitude * magnitude / 3.0;
    (if magnitude < 1e-3 { near } else { far }).copysign(wide) as f32
}

/// 1/√x; the ISA allows a relative error of 2^-22.9 (`rsqrt.approx`).
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    (1.0 / f64::from(x).sqrt()) as f32
}

/// sin x; the ISA allows an absolute error of 2^-20.5 within ±2π (`sin.approx`).
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    f64::from(x).sin() as f32
}

/// cos x, as [`sin`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    f64::from(x).cos() as f32
}

/// a / b, or zero where |b| > 2^126 (the reciprocal is then flushed), for an infinite a NaN: PTX ISA 9.7.3
/// (`div.approx`), which allows an error of two last places for other b.
#[inline(always)]
pub fn div(a: f32, b: f32) -> f32 {
    let huge = b.abs() > f32::from_bits(0x7e80_0000);
    if huge { a * 0f32.copysign(b) } else { a / b }
}
