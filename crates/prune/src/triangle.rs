//! The small triangles on the diagonal of V: factored and inverted in f64, a few operations on which the accuracy of
//! all others rests.
//!
//! A block is kept transposed, L = V_bbᵀ, lower triangular and row-major: what the two loops read lies side by side then,
//! and L⁻¹ = U_bᵀ comes out as the sweep wants it.

use linalg::vectorized;
use std::ops::Range;

/// Rows that are worked on together, so that what they all need is read once.
const ROWS: usize = 4;
/// Numbers of each such row that are summed in registers.
const RUN: usize = 8;

vectorized! {
    /// H[range, range] → V[range, range] in place, `values` being the rows of the range in a matrix of `n` columns. The
    /// error is the column, counted from the range's first, whose pivot is not positive, and that pivot.
    pub(crate) fn factor(values: &mut [f32], n: usize, range: &Range<usize>) -> Result<(), (usize, f64)> {
        let size = range.len();
        let padded = size.next_multiple_of(RUN);
        let mut block = turned(values, n, range, padded);
        for first in (0..size).step_by(ROWS).rev() {
            let last = (first + ROWS).min(size);
            // What the rows below took these rows' columns with.
            let (done, below) = block.split_at_mut(last * padded);
            let (rows, below) = (&mut done[first * padded..], &*below);
            subtract(rows, padded, 0..last, below, |_| 0, |row, j| below[j * padded + first + row]);
            for k in (first..last).rev() {
                let (above, row) = rows.split_at_mut((k - first) * padded);
                let row = &mut row[..padded];
                let pivot = row[k];
                if pivot.is_nan() || pivot <= 0.0 || pivot.is_infinite() {
                    return Err((k, pivot));
                }
                let scale = 1.0 / pivot.sqrt();
                row[..=k].iter_mut().for_each(|value| *value *= scale);
                for (i, above) in (first..k).zip(above.chunks_exact_mut(padded)) {
                    let factor = row[i];
                    for (value, &other) in above[..=i].iter_mut().zip(&row[..=i]) {
                        *value -= factor * other;
                    }
                }
            }
        }
        for i in 0..size {
            let row = &mut values[i * n + range.start..][..size];
            for (value, line) in row.iter_mut().zip(block.chunks_exact(padded)).skip(i) {
                *value = line[i] as f32;
            }
        }
        Ok(())
    }
}

vectorized! {
    /// V[range, range]⁻ᵀ [width, width], row-major, lower triangular with zeros above, `values` being the rows of the
    /// range in a matrix of `n` columns: by substitution in f64, from the first row down.
    pub(crate) fn invert(values: &[f32], n: usize, range: &Range<usize>) -> Vec<f32> {
        let size = range.len();
        let padded = size.next_multiple_of(RUN);
        let block = turned(values, n, range, padded);
        let mut inverse = vec![0f64; size * padded];
        for first in (0..size).step_by(ROWS) {
            let last = (first + ROWS).min(size);
            let (done, rows) = inverse.split_at_mut(first * padded);
            let rows = &mut rows[..(last - first) * padded];
            // Row j ends at its own column: in a run it is zero if j comes before the run.
            subtract(rows, padded, 0..first, done, |start| start, |row, j| block[(first + row) * padded + j]);
            for k in first..last {
                let (above, row) = rows.split_at_mut((k - first) * padded);
                let row = &mut row[..padded];
                let line = &block[k * padded..][..=k];
                for (j, above) in (first..k).zip(above.chunks_exact(padded)) {
                    for (value, &other) in row[..=j].iter_mut().zip(&above[..=j]) {
                        *value -= line[j] * other;
                    }
                }
                row[k] = 1.0;
                let scale = 1.0 / line[k];
                row[..=k].iter_mut().for_each(|value| *value *= scale);
            }
        }
        let mut result = vec![0f32; size * size];
        for (to, from) in result.chunks_exact_mut(size.max(1)).zip(inverse.chunks_exact(padded.max(1))) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = from as f32;
            }
        }
        result
    }
}

/// The upper triangle of a block, transposed and widened: lines of `padded` numbers, zero to the right of the diagonal.
#[inline(always)]
fn turned(values: &[f32], n: usize, range: &Range<usize>, padded: usize) -> Vec<f64> {
    let mut block = vec![0f64; range.len() * padded];
    for i in 0..range.len() {
        let row = &values[i * n + range.start..][..range.len()];
        for (&value, line) in row.iter().zip(block.chunks_exact_mut(padded)).skip(i) {
            line[i] = f64::from(value);
        }
    }
    block
}

/// `rows[r][i] −= Σ_j coefficient(r, j) · lines[j][i]` for at most [`ROWS`] rows and the columns i of `columns`, rounded up
/// to whole runs; rows and lines are `padded` apart. j counts from `from(i)` of a run's first column i.
#[inline(always)]
fn subtract(
    rows: &mut [f64],
    padded: usize,
    columns: Range<usize>,
    lines: &[f64],
    from: impl Fn(usize) -> usize,
    coefficient: impl Fn(usize, usize) -> f64,
) {
    for start in columns.step_by(RUN) {
        let mut sums = [[0f64; RUN]; ROWS];
        for (sums, row) in sums.iter_mut().zip(rows.chunks_exact(padded)) {
            sums.copy_from_slice(&row[start..start + RUN]);
        }
        let count = rows.len() / padded;
        for (j, line) in lines.chunks_exact(padded).enumerate().skip(from(start)) {
            let mut run = [0f64; RUN];
            run.copy_from_slice(&line[start..start + RUN]);
            for (row, sums) in sums.iter_mut().enumerate().take(count) {
                let factor = coefficient(row, j);
                for (sum, value) in sums.iter_mut().zip(run) {
                    *sum -= factor * value;
                }
            }
        }
        for (sums, row) in sums.iter().zip(rows.chunks_exact_mut(padded)) {
            row[start..start + RUN].copy_from_slice(sums);
        }
    }
}
