//! Activations between stages: one row a token, kept in 16 bits (or f32) and worked on in f32.

use anyhow::bail;
use checkpoint::{Dtype, Values};
use half::{bf16, f16};
use linalg::Element;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens' activations [tokens, width] in the number type they are kept in.
pub struct Activations {
    width: usize,
    values: Stored,
}

enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Values converted by one task.
const RUN: usize = 1 << 14;

impl Activations {
    /// Room for `tokens` of `width` values each, all zero.
    pub fn new(dtype: Dtype, tokens: usize, width: usize) -> Self {
        let count = tokens * width;
        let values = match dtype {
            Dtype::F32 => Stored::F32(vec![0.0; count]),
            Dtype::BF16 => Stored::Bf16(vec![bf16::ZERO; count]),
            _ => Stored::F16(vec![f16::ZERO; count]),
        };
        Self { width, values }
    }

    /// Uses the same room for tokens of another width, of which fewer or more may fit. What was kept is lost.
    pub fn reshape(&mut self, width: usize) {
        self.width = width;
    }

    /// How many tokens fit.
    pub fn capacity(&self) -> usize {
        let count = match &self.values {
            Stored::F32(values) => values.len(),
            Stored::F16(values) => values.len(),
            Stored::Bf16(values) => values.len(),
        };
        count / self.width.max(1)
    }

    /// The activations of some tokens as they are kept.
    pub fn values(&self, tokens: Range<usize>) -> Values<'_> {
        let range = tokens.start * self.width..tokens.end * self.width;
        match &self.values {
            Stored::F32(values) => Values::F32(&values[range]),
            Stored::F16(values) => Values::F16(&values[range]),
            Stored::Bf16(values) => Values::Bf16(&values[range]),
        }
    }

    /// The activations of some tokens in f32.
    pub fn load(&self, tokens: Range<usize>) -> Vec<f32> {
        let values = self.values(tokens);
        let mut loaded = vec![0.0; values.len()];
        match values {
            Values::F32(values) => widen(values, &mut loaded),
            Values::F16(values) => widen(values, &mut loaded),
            Values::Bf16(values) => widen(values, &mut loaded),
        }
        loaded
    }

    /// Keeps the activations of some tokens, rounded.
    ///
    /// # Errors
    /// If a finite value overflows the type that activations are kept in.
    pub fn store(&mut self, tokens: Range<usize>, activations: &[f32]) -> anyhow::Result<()> {
        let range = tokens.start * self.width..tokens.end * self.width;
        match &mut self.values {
            Stored::F32(values) => narrow(activations, &mut values[range]),
            Stored::Bf16(values) => narrow(activations, &mut values[range]),
            Stored::F16(values) => {
                if let Some(value) = activations.par_iter().find_any(|value| value.abs() >= 65520.0) {
                    bail!(
                        "an activation of {value} overflows f16, whose largest value is 65504; keep activations in \
                         another type: --activations bf16, or f32 with twice the memory"
                    );
                }
                narrow(activations, &mut values[range]);
            }
        }
        Ok(())
    }
}

fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    to.par_chunks_mut(RUN).zip(from.par_chunks(RUN)).for_each(|(to, from)| T::widen(from, to));
}

fn narrow<T: Element>(from: &[f32], to: &mut [T]) {
    to.par_chunks_mut(RUN).zip(from.par_chunks(RUN)).for_each(|(to, from)| T::narrow(from, to));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_come_back_rounded_once() {
        let values: Vec<f32> = (0..40).map(|i| (i as f32 - 20.0) * 0.123_456_7).collect();
        for (dtype, unit) in [(Dtype::F32, 0.0), (Dtype::F16, 1.0 / 2048.0), (Dtype::BF16, 1.0 / 256.0)] {
            let mut kept = Activations::new(dtype, 10, 8);
            kept.store(3..8, &values).unwrap();
            for (now, was) in kept.load(3..8).iter().zip(&values) {
                // Half a unit in the last place, relative to the value.
                assert!((now - was).abs() <= unit * was.abs(), "{dtype}: {was} came back as {now}");
            }
            assert!(kept.load(0..3).iter().all(|&value| value == 0.0));
            kept.reshape(20);
            assert_eq!(kept.capacity(), 4);
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_an_error() {
        let mut kept = Activations::new(Dtype::F16, 1, 2);
        assert!(kept.store(0..1, &[65504.0, -65519.0]).is_ok());
        assert!(kept.store(0..1, &[1.0, -65520.0]).is_err());
    }
}
