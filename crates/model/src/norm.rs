//! Norms over rows.

use rayon::prelude::*;

use crate::description::NormKind;
use crate::forward::LoadedNorm;
use crate::simd::{sum, sum_of_squares};
use linalg::vectorized;

/// Rows of one task.
const ROWS: usize = 16;

impl LoadedNorm<Vec<f32>> {
    /// x ← norm(x), for rows of as many columns as there are scales.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        let columns = self.scale.len();
        x.par_chunks_mut(ROWS * columns).for_each(|rows| {
            for row in rows.chunks_exact_mut(columns) {
                self.apply_to_row(row);
            }
        });
    }

    /// One row, on the calling thread.
    pub(crate) fn apply_to_row(&self, row: &mut [f32]) {
        let columns = row.len() as f32;
        let center = match self.norm.kind {
            NormKind::Layer => sum(row) / columns,
            NormKind::Rms => 0.0,
        };
        let mean_square = sum_of_squares(row, center) / columns;
        let factor = 1.0 / (mean_square + self.norm.epsilon).sqrt();
        rescale(row, center, factor, &self.scale);
        if let Some(shift) = &self.shift {
            add(row, shift);
        }
    }
}

vectorized! {
    /// x ← (x − center)·factor·scale.
    fn rescale(row: &mut [f32], center: f32, factor: f32, scale: &[f32]) {
        for (x, scale) in row.iter_mut().zip(scale) {
            *x = (*x - center) * factor * scale;
        }
    }
}

vectorized! {
    /// x ← x + y.
    pub(crate) fn add(row: &mut [f32], other: &[f32]) {
        for (x, y) in row.iter_mut().zip(other) {
            *x += y;
        }
    }
}
