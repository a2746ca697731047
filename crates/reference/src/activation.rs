//! The functions between the way up and the way down of a feed-forward half.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x.
    Identity,
    /// max(x, 0).
    Relu,
    /// x / (1 + e⁻ˣ).
    Silu,
    /// x · Φ(x), with Φ the normal distribution function.
    Gelu,
    /// x/2 · (1 + tanh(√(2/π)·(x + 0.044715 x³))).
    GeluTanh,
}

/// f(x).
pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x / 2.0 * (1.0 + erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => x / 2.0 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
    }
}

/// erf(x) = 2/√π · e^(−x²) · Σ_n 2ⁿ·x²ⁿ⁺¹ / (1·3·5·…·(2n + 1)) (Abramowitz & Stegun, 7.1.6): all terms have one sign, so
/// nothing is lost. Beyond 6 it is 1 in f64.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    let mut n = 1.0;
    while term.abs() > sum.abs() * 1e-17 {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_known_at_points() {
        // Abramowitz & Stegun, table 7.1.
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - want).abs() < 1e-10, "{x}");
            assert!((erf(-x) + want).abs() < 1e-10, "{x}");
        }
        assert_eq!(erf(7.0), 1.0);
    }
}
