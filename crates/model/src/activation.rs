//! The functions between the way up and the way down of a feed-forward half.

use rayon::prelude::*;

use crate::Error;
use crate::config::Config;
use crate::simd::{erf, exp};
use linalg::vectorized;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x·σ(x).
    Silu,
    /// x·Φ(x) = x/2·(1 + erf(x/√2)).
    Gelu,
    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715 x³))), which is x·σ of twice the argument.
    GeluTanh,
}

/// The names of activations in `config.json`. `gelu_fast`, `gelu_new` and `gelu_pytorch_tanh` are one function whose
/// order of operations differs.
const NAMES: [(&str, Activation); 7] = [
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
];

/// Elements of one task.
const RUN: usize = 1 << 14;

impl Activation {
    pub(crate) fn read(config: &Config, key: &str, default: &str) -> Result<Self, Error> {
        let found = config.text(key, default)?;
        let known = NAMES.iter().find(|(name, _)| *name == found);
        known
            .map(|&(_, activation)| activation)
            .ok_or_else(|| config.unexpected(key, format!("one of {}", NAMES.map(|(name, _)| name).join(", "))))
    }

    /// x ← f(x).
    pub(crate) fn apply(self, x: &mut [f32]) {
        x.par_chunks_mut(RUN).for_each(|x| match self {
            Self::Relu => relu(x),
            Self::Silu => silu(x),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
        });
    }

    /// gate ← f(gate)·up.
    pub(crate) fn apply_gated(self, gate: &mut [f32], up: &[f32]) {
        self.apply(gate);
        gate.par_chunks_mut(RUN).zip(up.par_chunks(RUN)).for_each(|(gate, up)| {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate *= up;
            }
        });
    }
}

vectorized! {
    fn relu(x: &mut [f32]) {
        for x in x {
            // Not `max`, which would turn NaN into 0.
            *x = if *x < 0.0 { 0.0 } else { *x };
        }
    }
}

vectorized! {
    fn silu(x: &mut [f32]) {
        for x in x {
            *x /= 1.0 + exp(-*x);
        }
    }
}

vectorized! {
    fn gelu(x: &mut [f32]) {
        for x in x {
            *x *= 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorized! {
    fn gelu_tanh(x: &mut [f32]) {
        const SCALE: f32 = -2.0 * 0.797_884_6; // −2·√(2/π)
        for x in x {
            *x /= 1.0 + exp(SCALE * (*x + 0.044_715 * *x * *x * *x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_match_their_definitions() {
        let tanh_gelu = |x: f64| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        };
        let definitions: [(Activation, &dyn Fn(f64) -> f64); 3] = [
            (Activation::Relu, &|x: f64| x.max(0.0)),
            (Activation::Silu, &|x: f64| x / (1.0 + (-x).exp())),
            (Activation::GeluTanh, &tanh_gelu),
        ];
        let inputs: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 100.0).collect();
        for (activation, exact) in definitions {
            let mut x = inputs.clone();
            activation.apply(&mut x);
            for (&got, &x) in x.iter().zip(&inputs) {
                let want = exact(f64::from(x));
                // Ten roundings, of which those in the argument of exp count |argument| times; relative to x where
                // the function itself cancels.
                let tolerance = 10.0 / f64::from(1u32 << 24) * f64::from(x).abs().max(1.0) * (1.0 + want.abs());
                assert!((f64::from(got) - want).abs() <= tolerance, "{activation:?}({x}) = {got}, want {want}");
            }
        }
    }

    #[test]
    fn gelu_is_known_at_points() {
        // x·Φ(x), with Φ from tables (Abramowitz & Stegun, table 26.1).
        let mut x = [-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 9.0];
        Activation::Gelu.apply(&mut x);
        let want = [
            -3.0 * (1.0 - 0.998_650_101_968_37),
            -(1.0 - 0.841_344_746_068_54),
            0.0,
            0.5 * 0.691_462_461_274_01,
            0.841_344_746_068_54,
            2.0 * 0.977_249_868_051_82,
            9.0,
        ];
        for (got, want) in x.into_iter().zip(want) {
            assert!((f64::from(got) - want).abs() < 4e-7, "{got} {want}");
        }
    }

    #[test]
    fn nan_is_kept() {
        for (_, activation) in NAMES {
            let mut x = [f32::NAN, 1.0];
            activation.apply(&mut x);
            assert!(x[0].is_nan() && x[1] > 0.0, "{activation:?}");
        }
    }
}
