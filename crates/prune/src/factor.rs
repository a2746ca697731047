//! The factor V of the damped Hessian, H + damp·I = V·Vᵀ with V upper triangular, and the inverses of V's diagonal
//! blocks.
//!
//! V is a Cholesky factorization that runs from the last column to the first. It is made recursively, so that nearly all
//! of its n³/3 operations are large products:
//! ```text
//!        ┌───────────┐   factor  H₂₂ = V₂₂·V₂₂ᵀ
//!   H =  │ H₁₁   H₁₂ │   solve   V₁₂·V₂₂ᵀ = H₁₂
//!        │       H₂₂ │   update  H₁₁ ← H₁₁ − V₁₂·V₁₂ᵀ
//!        └───────────┘   factor  H₁₁ = V₁₁·V₁₁ᵀ
//! ```

use crate::solve::panels;
use crate::{Collective, Disconnected, Error, Hessian};
use linalg::{MatrixMut, MatrixRef, Part, Region, gemm, gemm_within, vectorized};
use rayon::prelude::*;
use std::ops::Range;

/// How often the damping is raised tenfold before a Hessian is given up.
pub const RAISES: u32 = 3;

/// Below this size a block is factored directly, in f64: few operations, and the accuracy of V begins here.
const BASE: usize = 64;

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
        loop {
            for (j, &value) in diagonal.iter().enumerate() {
                values[j * n + j] = (f64::from(value) + damping * mean) as f32;
            }
            let mut cholesky = Cholesky { values: &mut values, n, inverses: Vec::with_capacity(n.div_ceil(BASE)) };
            match cholesky.factor(0..n) {
                Ok(()) => break,
                Err((column, pivot)) if raises == RAISES => {
                    return Err(Error::Pivot { column, pivot, damping, raises });
                }
                Err(_) => {
                    mirror(&mut values, n, Triangle::Lower);
                    damping *= 10.0;
                    raises += 1;
                }
            }
        }
        let inverses = invert_diagonal(&values, n, panel_width);
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

/// Where a block of `range` is split: what follows is a multiple of [`BASE`] wide.
fn middle(range: &Range<usize>) -> usize {
    range.end - (range.len() / 2).next_multiple_of(BASE).min((range.len() - 1) / BASE * BASE)
}

/// H → V in place, with what it needs on the way.
struct Cholesky<'a> {
    values: &'a mut [f32],
    n: usize,
    /// V_bb⁻ᵀ of the base blocks, counted from the last column.
    inverses: Vec<Vec<f32>>,
}

impl Cholesky<'_> {
    /// H[range, range] → V[range, range], given that all columns after the range are done. The error is the column
    /// whose pivot is not positive, and that pivot.
    fn factor(&mut self, range: Range<usize>) -> Result<(), (usize, f64)> {
        if range.len() <= BASE {
            factor_directly(self.values, self.n, range.clone())?;
            self.inverses.push(invert(self.values, self.n, &range));
            return Ok(());
        }
        let middle = middle(&range);
        let (head, tail) = (range.start..middle, middle..range.end);
        self.factor(tail.clone())?;
        self.divide(head.clone(), tail.clone());
        let part = |columns: &Range<usize>| Part { rows: head.clone(), columns: columns.clone() };
        let matrix = MatrixMut::new(self.values, self.n, self.n);
        gemm_within(matrix, -1.0, part(&tail), part(&tail), 1.0, part(&head), Region::Upper);
        self.factor(head)
    }

    /// H[rows, range] → V[rows, range]: the solution of V[rows, range] · V[range, range]ᵀ = H[rows, range].
    fn divide(&mut self, rows: Range<usize>, range: Range<usize>) {
        let n = self.n;
        if range.len() <= BASE {
            let width = range.len();
            let mut right = vec![0.0; rows.len() * width];
            for (to, from) in right.chunks_exact_mut(width).zip(self.values[rows.start * n..].chunks_exact(n)) {
                to.copy_from_slice(&from[range.clone()]);
            }
            let start = rows.start * n + range.start;
            let target = MatrixMut::with_stride(&mut self.values[start..], rows.len(), width, n);
            let inverse = MatrixRef::new(&self.inverses[(n - range.end) / BASE], width, width);
            return gemm(1.0, MatrixRef::new(&right, rows.len(), width), inverse, 0.0, target, Region::Full);
        }
        let middle = middle(&range);
        let (head, tail) = (range.start..middle, middle..range.end);
        self.divide(rows.clone(), tail.clone());
        gemm_within(
            MatrixMut::new(self.values, n, n),
            -1.0,
            Part { rows: rows.clone(), columns: tail.clone() },
            Part { rows: head.clone(), columns: tail },
            1.0,
            Part { rows: rows.clone(), columns: head.clone() },
            Region::Full,
        );
        self.divide(rows, head);
    }
}

vectorized! {
    /// A small block of the factorization in f64: column after column from the last, each taken out of those before it.
    fn factor_directly(values: &mut [f32], n: usize, range: Range<usize>) -> Result<(), (usize, f64)> {
        let size = range.len();
        let mut block = [[0f64; BASE]; BASE];
        for (i, row) in block[..size].iter_mut().enumerate() {
            for j in i..size {
                row[j] = f64::from(values[(range.start + i) * n + range.start + j]);
            }
        }
        for j in (0..size).rev() {
            let pivot = block[j][j];
            if pivot.is_nan() || pivot <= 0.0 || pivot.is_infinite() {
                return Err((range.start + j, pivot));
            }
            let mut column = [0f64; BASE];
            for (i, value) in column[..=j].iter_mut().enumerate() {
                *value = block[i][j] / pivot.sqrt();
                block[i][j] = *value;
            }
            for (i, row) in block[..j].iter_mut().enumerate() {
                let factor = column[i];
                // Below the diagonal nothing is read again, so whole rows may be updated.
                for (value, other) in row[..j].iter_mut().zip(&column[..j]) {
                    *value -= factor * other;
                }
            }
        }
        for (i, row) in block[..size].iter().enumerate() {
            for j in i..size {
                values[(range.start + i) * n + range.start + j] = row[j] as f32;
            }
        }
        Ok(())
    }
}

vectorized! {
    /// V[range, range]⁻ᵀ [width, width], row-major, lower triangular: by substitution in f64, from the last row of V⁻¹ up.
    fn invert(values: &[f32], n: usize, range: &Range<usize>) -> Vec<f32> {
        let width = range.len();
        let mut inverse = vec![0f64; width * width];
        for i in (0..width).rev() {
            let row = &values[(range.start + i) * n + range.start..][..width];
            let (own, below) = inverse[i * width..].split_at_mut(width);
            for (k, below) in (i + 1..).zip(below.chunks_exact(width)) {
                let v = row[k];
                for (value, other) in own[k..].iter_mut().zip(&below[k..]) {
                    *value -= f64::from(v) * other;
                }
            }
            own[i] = 1.0;
            for value in &mut own[i..] {
                *value /= f64::from(row[i]);
            }
        }
        let mut turned = vec![0f32; width * width];
        for (i, row) in inverse.chunks_exact(width.max(1)).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                turned[j * width + i] = value as f32;
            }
        }
        turned
    }
}

/// The inverse of every panel's diagonal block.
fn invert_diagonal(values: &[f32], n: usize, panel_width: usize) -> Vec<Vec<f32>> {
    panels(n, panel_width).collect::<Vec<_>>().par_iter().map(|panel| invert(values, n, panel)).collect()
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

    #[test]
    fn blocks_split_at_multiples_of_the_base_from_the_end() {
        for length in BASE + 1..1000 {
            let at = middle(&(0..length));
            assert!(at > 0 && at < length && (length - at).is_multiple_of(BASE), "{length} at {at}");
        }
    }
}
