//! Loops over rows that must run at the width of the machine's vectors: exponentials, sums, maxima, softmax.
//!
//! The compiler vectorizes them as they stand: no reduction depends on the order in which it adds, since every one of
//! them keeps [`LANES`] partial results, and no branch depends on a value. Both copies of a loop, for any processor and
//! for AVX2, round alike, so results do not depend on the machine.

use linalg::vectorized;

/// Partial results of a reduction: two AVX2 vectors, to hide the latency of an addition.
const LANES: usize = 16;

/// eˣ to 2 units in the last place for −87.3 ≤ x ≤ 88.3, constant outside, NaN for NaN. After `expf` of the Cephes
/// library (S. Moshier): x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial of degree 7 in r, n in the exponent.
#[inline(always)]
#[allow(clippy::excessive_precision)] // as published
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_40e-4;
    let p = 1.987_569_150_0e-4;
    let p = p * r + 1.398_199_950_7e-3;
    let p = p * r + 8.333_451_907_3e-3;
    let p = p * r + 4.166_579_589_4e-2;
    let p = p * r + 1.666_666_545_9e-1;
    let p = p * r + 5.000_000_120_1e-1;
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

/// The error function to 2 units in the last place, NaN for NaN. Minimax polynomials by N. Juffa
/// (<https://stackoverflow.com/a/35148199>): x·P(x²) near zero, 1 − exp(P(|x|)) further out.
#[inline(always)]
#[allow(clippy::excessive_precision)] // as published
pub(crate) fn erf(x: f32) -> f32 {
    let (t, s) = (x.abs(), x * x);
    let far = (-1.728_534_70e-5 * t + 3.831_971_26e-4) * s + (-3.883_964_38e-3 * t + 2.425_462_19e-2);
    let far = ((far * t - 1.067_778_77e-1) * t - 6.348_468_67e-1) * t - 1.287_175_12e-1;
    // Beyond 4 the result is 1, and the polynomial is no longer one that falls.
    let far = (1.0 - exp(if t > 4.0 { -20.0 } else { far * t - t })).copysign(x);
    let near = -5.967_617_03e-4 * s + 4.991_194_23e-3;
    let near = ((near * s - 2.676_813_49e-2) * s + 1.128_199_25e-1) * s - 3.761_253_36e-1;
    let near = (near * s + 1.283_791_66e-1) * x + x;
    if t > 0.921_875 { far } else { near }
}

/// Folds `row` into one number: `step` for every element, `join` for the partial results.
#[inline(always)]
fn fold(row: &[f32], start: f32, step: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let (lines, rest) = row.as_chunks::<LANES>();
    let mut partial = [start; LANES];
    for line in lines {
        for (partial, &value) in partial.iter_mut().zip(line) {
            *partial = step(*partial, value);
        }
    }
    for (partial, &value) in partial.iter_mut().zip(rest) {
        *partial = step(*partial, value);
    }
    partial.into_iter().reduce(join).unwrap_or(start)
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

vectorized! {
    /// Σ x.
    pub(crate) fn sum(row: &[f32]) -> f32 {
        fold(row, 0.0, |sum, x| sum + x, |a, b| a + b)
    }
}

vectorized! {
    /// Σ (x − center)².
    pub(crate) fn sum_of_squares(row: &[f32], center: f32) -> f32 {
        fold(row, 0.0, |sum, x| sum + (x - center) * (x - center), |a, b| a + b)
    }
}

vectorized! {
    /// The largest element; −∞ for none.
    pub(crate) fn max(row: &[f32]) -> f32 {
        fold(row, f32::NEG_INFINITY, greater, greater)
    }
}

vectorized! {
    /// Σ exp(x − center).
    pub(crate) fn sum_of_exponentials(row: &[f32], center: f32) -> f32 {
        fold(row, 0.0, |sum, x| sum + exp(x - center), |a, b| a + b)
    }
}

vectorized! {
    /// Whether every element is a number, and not an infinite one.
    pub(crate) fn all_finite(row: &[f32]) -> bool {
        // 0·x is 0, or NaN where x is not finite, and NaN stays in a sum.
        fold(row, 0.0, |sum, x| sum + 0.0 * x, |a, b| a + b) == 0.0
    }
}

vectorized! {
    /// x ← exp(x − largest of its column) in a row-major matrix of `columns`, a multiple of 16, and the sums of the
    /// columns: a softmax but for the division.
    pub(crate) fn exponentials(matrix: &mut [f32], columns: usize, sums: &mut [f32]) {
        for (sums, first) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip((0..columns).step_by(LANES)) {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for row in matrix.chunks_exact(columns).filter_map(|row| row[first..].first_chunk::<LANES>()) {
                for (largest, &x) in largest.iter_mut().zip(row) {
                    *largest = greater(*largest, x);
                }
            }
            let mut partial = [0.0; LANES];
            for row in matrix.chunks_exact_mut(columns).filter_map(|row| row[first..].first_chunk_mut::<LANES>()) {
                for ((x, largest), sum) in row.iter_mut().zip(&largest).zip(&mut partial) {
                    *x = exp(*x - largest);
                    *sum += *x;
                }
            }
            *sums = partial;
        }
    }
}

/// The first element that is NaN or infinite.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().copied().enumerate().find(|(_, value)| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance between neighbours of f32 at `value`.
    fn unit_in_the_last_place(value: f64) -> f64 {
        let value = (value.abs() as f32).max(f32::MIN_POSITIVE);
        f64::from(f32::from_bits(value.to_bits() + 1)) - f64::from(value)
    }

    fn assert_accurate(approximate: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32, units: f64) {
        let steps = 400_000;
        for step in 0..=steps {
            let x = from + (to - from) * step as f32 / steps as f32;
            let (got, want) = (f64::from(approximate(x)), exact(f64::from(x)));
            assert!((got - want).abs() <= units * unit_in_the_last_place(want), "f({x:e}) = {got:e}, want {want:e}");
        }
    }

    /// The error function by its Maclaurin series, or by the continued fraction of its complement (Abramowitz & Stegun
    /// 7.1.5 and 7.1.14).
    fn exact_erf(x: f64) -> f64 {
        if x.abs() < 2.5 {
            let mut term = x;
            let mut sum = x;
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let t = x.abs();
        let fraction = (1..200).rev().fold(t, |tail, k| t + f64::from(k) / 2.0 / tail);
        (1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        assert_accurate(exp, f64::exp, -87.2, 88.2, 2.0);
        assert_accurate(exp, f64::exp, -1.0, 1.0, 2.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(f32::INFINITY) > 2e38);
    }

    #[test]
    fn erf_is_accurate_to_two_units_in_the_last_place() {
        assert_accurate(erf, exact_erf, -6.0, 6.0, 2.0);
        assert_accurate(erf, exact_erf, -0.01, 0.01, 2.0);
        assert!(erf(f32::NAN).is_nan());
        assert_eq!((erf(f32::INFINITY), erf(-1e30)), (1.0, -1.0));
    }

    #[test]
    fn reductions_see_every_element() {
        for length in [1, 15, 16, 17, 100] {
            for position in 0..length {
                let mut row = vec![1.0; length];
                row[position] = 3.0;
                assert_eq!(sum(&row), length as f32 + 2.0);
                assert_eq!(sum_of_squares(&row, 1.0), 4.0);
                assert_eq!(max(&row), 3.0);
                assert!(all_finite(&row));
                for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    row[position] = poison;
                    assert!(!all_finite(&row));
                    assert_eq!(first_not_finite(&row).map(|(at, _)| at), Some(position));
                }
            }
        }
    }

    #[test]
    fn columns_of_exponentials_are_those_of_a_softmax_and_keep_nan() {
        for columns in [16, 32] {
            let score = |row: usize, column: usize| (row * row * (column + 3) % 11) as f32 * 30.0 - column as f32;
            let mut matrix: Vec<f32> = (0..37 * columns).map(|at| score(at / columns, at % columns)).collect();
            matrix[5 * columns + 7] = f32::NAN;
            let mut sums = vec![0.0; columns];
            exponentials(&mut matrix, columns, &mut sums);
            for column in 0..columns {
                if column == 7 {
                    assert!(sums[column].is_nan() && matrix[5 * columns + 7].is_nan());
                    continue;
                }
                let scores = || (0..37).map(|row| f64::from(score(row, column)));
                let largest = scores().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores().map(|score| (score - largest).exp()).sum();
                for (row, want) in scores().map(|score| (score - largest).exp() / total).enumerate() {
                    let got = f64::from(matrix[row * columns + column] / sums[column]);
                    // Below e⁻⁸⁷ the exponential is constant.
                    assert!((got - want).abs() <= 1e-6 * want + 2e-38, "{row} {column}: {got} {want}");
                }
            }
        }
    }
}
