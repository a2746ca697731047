//! The factor V of the damped Hessian, H + damp·I = V·Vᵀ with V upper triangular, and the inverses of V's diagonal
//! blocks.
//!
//! The factorization itself is in `cholesky`; here is what surrounds it: dead columns, damping, and what the sweep needs.

use crate::cholesky::{BASE, Cholesky};
use crate::solve::panels;
use crate::triangle::invert;
use crate::{Collective, Disconnected, Error, Hessian};
use linalg::MatrixRef;
use rayon::prelude::*;
use std::ops::Range;

/// How often the damping is raised tenfold before a Hessian is given up.
pub const RAISES: u32 = 3;

/// V [columns, columns] with H + damp·I = V·Vᵀ, and what the sweep needs beside it.
#[derive(Clone, Debug)]
pub struct Factor {
    columns: usize,
    panel_width: usize,
    /// Row-major; what lies below the diagonal is not V's.
    values: Vec<f32>,
    /// Per panel b, U_bᵀ = V_bb⁻ᵀ [width, width], row-major, lower triangular with zeros above.
    inverses: Vec<Vec<f32>>,
    dead: Vec<bool>,
    damping: f64,
    raises: u32,
}

impl Factor {
    /// Factors `hessian` in its own memory: dead columns get a one on the diagonal, `damping` times the mean of the
    /// diagonal is added, and should a pivot not be positive, the damping is multiplied by ten, at most [`RAISES`]
    /// times. Panels of `panel_width` columns will be swept.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if H is not, [`Error::Pivot`] if the largest damping is not enough.
    ///
    /// # Panics
    /// If `panel_width` is zero.
    pub fn new(hessian: Hessian, damping: f64, panel_width: usize) -> Result<Self, Error> {
        let Hessian { columns: n, mut values } = hessian;
        let mut diagonal: Vec<f32> = (0..n).map(|j| values[j * n + j]).collect();
        if let Some(column) = diagonal.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { column, value: diagonal[column] });
        }
        let dead: Vec<bool> = diagonal.iter().map(|&value| value == 0.0).collect();
        for (value, &dead) in diagonal.iter_mut().zip(&dead) {
            *value += f32::from(u8::from(dead));
        }
        let mean = diagonal.iter().map(|&value| f64::from(value)).sum::<f64>() / n.max(1) as f64;
        // H is kept below the diagonal, where V has nothing, in case it must be factored again.
        mirror(&mut values, n, Triangle::Upper);
        let mut damping = damping;
        let mut raises = 0;
        let inverses = loop {
            for (j, &value) in diagonal.iter().enumerate() {
                values[j * n + j] = (f64::from(value) + damping * mean) as f32;
            }
            match Cholesky::factor(&mut values, n) {
                // The blocks of the factorization are the usual panels.
                Ok(inverses) if panel_width == BASE => break inverses,
                Ok(_) => break invert_diagonal(&values, n, panel_width),
                Err((column, pivot)) if raises == RAISES => {
                    return Err(Error::Pivot { column, pivot, damping, raises });
                }
                Err(_) => {
                    mirror(&mut values, n, Triangle::Lower);
                    damping *= 10.0;
                    raises += 1;
                }
            }
        };
        Ok(Self { columns: n, panel_width, values, inverses, dead, damping, raises })
    }

    /// [`Factor::new`] of the same `hessian` on all shards, done by the first and sent to the others.
    ///
    /// # Errors
    /// As [`Factor::new`] on the first shard; [`Error::Disconnected`] on the others when it or another one fails.
    pub fn shared(
        hessian: Hessian,
        damping: f64,
        panel_width: usize,
        collective: &dyn Collective,
    ) -> Result<Self, Error> {
        if collective.rank() == 0 {
            let mut factor = Self::new(hessian, damping, panel_width)?;
            factor.send(collective)?;
            return Ok(factor);
        }
        let Hessian { columns, values } = hessian;
        let mut factor =
            Self { columns, panel_width, values, inverses: Vec::new(), dead: vec![false; columns], damping, raises: 0 };
        factor.send(collective)?;
        factor.inverses = invert_diagonal(&factor.values, columns, panel_width);
        Ok(factor)
    }

    /// Broadcasts the first shard's factor into this one's.
    fn send(&mut self, collective: &dyn Collective) -> Result<(), Disconnected> {
        if collective.size() == 1 {
            return Ok(());
        }
        let first_damping = self.damping / 10f64.powi(self.raises as i32);
        let mut small: Vec<f32> = self.dead.iter().map(|&dead| f32::from(u8::from(dead))).collect();
        small.push(self.raises as f32);
        collective.broadcast(0, &mut small)?;
        self.raises = small.pop().unwrap_or_default() as u32;
        self.damping = first_damping * 10f64.powi(self.raises as i32);
        self.dead = small.iter().map(|&dead| dead == 1.0).collect();
        collective.broadcast(0, &mut self.values)
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The width of the panels that its inverses are made for.
    pub fn panel_width(&self) -> usize {
        self.panel_width
    }

    /// The damping that was needed, as a fraction of the mean of the diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// How often the damping was raised tenfold.
    pub fn raises(&self) -> u32 {
        self.raises
    }

    /// Which columns no token ever reached: their weights go.
    pub fn dead(&self) -> &[bool] {
        &self.dead
    }

    /// V[i, j] for i ≤ j, zero below the diagonal.
    ///
    /// # Panics
    /// If (i, j) lies outside V.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        if i > j { 0.0 } else { self.values[i * self.columns + j] }
    }

    /// V[rows, columns], which lies above the diagonal.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> MatrixRef<'_> {
        let start = rows.start * self.columns + columns.start;
        MatrixRef::with_stride(&self.values[start..], rows.len(), columns.len(), self.columns)
    }

    /// U_bᵀ of panel number `index`, [width, width], row-major.
    pub(crate) fn inverse(&self, index: usize) -> &[f32] {
        &self.inverses[index]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Triangle {
    Upper,
    Lower,
}

/// Copies what lies strictly in the triangle `from` of a square matrix to its mirror image.
fn mirror(values: &mut [f32], n: usize, from: Triangle) {
    const STRIP: usize = 256;
    /// Rows a task: as many as a cache line of the source has floats.
    const LINES: usize = 16;
    for strip in (0..n).step_by(STRIP) {
        let rows = strip..(strip + STRIP).min(n);
        // The strip's part of the target triangle mirrors columns of the rows above it, or below it.
        let (target, source, first) = match from {
            Triangle::Upper => {
                let (above, own) = values.split_at_mut(rows.start * n);
                (&mut own[..rows.len() * n], &*above, 0)
            }
            Triangle::Lower => {
                let (own, below) = values.split_at_mut(rows.end * n);
                (&mut own[rows.start * n..], &*below, rows.end)
            }
        };
        target.par_chunks_mut(LINES * n).enumerate().for_each(|(chunk, target)| {
            let column = rows.start + chunk * LINES;
            let lines = target.len() / n;
            // Square by square: lines n apart share cache sets where n is a power of two.
            let mut square = [[0f32; LINES]; LINES];
            for (number, source) in source.chunks(LINES * n).enumerate() {
                for (square, source) in square.iter_mut().zip(source.chunks_exact(n)) {
                    square[..lines].copy_from_slice(&source[column..column + lines]);
                }
                let (start, count) = (first + number * LINES, source.len() / n);
                for (i, target) in target.chunks_exact_mut(n).enumerate() {
                    for (value, square) in target[start..start + count].iter_mut().zip(&square) {
                        *value = square[i];
                    }
                }
            }
        });
        for i in rows.clone() {
            for j in i + 1..rows.end {
                let (upper, lower) = (i * n + j, j * n + i);
                match from {
                    Triangle::Upper => values[lower] = values[upper],
                    Triangle::Lower => values[upper] = values[lower],
                }
            }
        }
    }
}

/// The inverse of every panel's diagonal block.
fn invert_diagonal(values: &[f32], n: usize, panel_width: usize) -> Vec<Vec<f32>> {
    let panels: Vec<_> = panels(n, panel_width).collect();
    panels.par_iter().map(|panel| invert(&values[panel.start * n..panel.end * n], n, panel)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirroring_there_and_back_changes_nothing() {
        for n in [1, 2, 63, 64, 65, 200] {
            let original: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
            let mut values = original.clone();
            mirror(&mut values, n, Triangle::Upper);
            for i in 0..n {
                for j in i..n {
                    assert_eq!((values[i * n + j], values[j * n + i]), (original[i * n + j], original[i * n + j]));
                    values[i * n + j] = f32::NAN;
                }
            }
            mirror(&mut values, n, Triangle::Lower);
            for i in 0..n {
                assert!((i + 1..n).all(|j| values[i * n + j] == original[i * n + j]));
            }
        }
    }
}
