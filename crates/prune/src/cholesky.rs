//! H → V in place: a Cholesky factorization from the last column to the first.
//!
//! Large matrices are split in halves, so that nearly all of the n³/3 operations are large products:
//! ```text
//!        ┌───────────┐   factor  H₂₂ = V₂₂·V₂₂ᵀ
//!   H =  │ H₁₁   H₁₂ │   solve   V₁₂·V₂₂ᵀ = H₁₂
//!        │       H₂₂ │   update  H₁₁ ← H₁₁ − V₁₂·V₁₂ᵀ
//!        └───────────┘   factor  H₁₁ = V₁₁·V₁₁ᵀ
//! ```
//! Small ones go block by block of [`BASE`] columns. There the block on the diagonal, which one thread works on, would
//! take as long as all products, so the next one is factored beside the product that updates what lies above it:
//! ```text
//!   all threads, by rows       V_{<b,b} = (H_{<b,b} − V_{<b,b+1}·V_{b,b+1}ᵀ)·U_bᵀ
//!   one thread                 H_aa ← H_aa − V_ab·V_abᵀ,  V_aa, U_a               for the block a before b
//!   the others, meanwhile      H_{<a,<a} ← H_{<a,<a} − V_{<a,b}·V_{<a,b}ᵀ
//! ```

use crate::triangle;
use linalg::{MatrixMut, MatrixRef, Part, Region, gemm_serial, gemm_within, gemm_within_serial};
use rayon::prelude::*;
use std::ops::Range;

/// The width of a block, which is factored and inverted in f64.
pub(crate) const BASE: usize = 128;

/// Up to this size block by block: the products are [`BASE`] deep then, and their results stay in the caches.
const BLOCKED: usize = 1024;

/// Up to this size the solution is found for some rows at a time, each by one thread with products of its own.
const BY_ROWS: usize = 512;

/// H → V in place, with what it needs on the way.
pub(crate) struct Cholesky<'a> {
    values: &'a mut [f32],
    n: usize,
    /// V_bb⁻ᵀ of the blocks, as far as they are done.
    inverses: Vec<Vec<f32>>,
}

/// A column whose pivot is not positive, and that pivot.
type Pivot = (usize, f64);

impl<'a> Cholesky<'a> {
    /// The upper triangle of H [n, n] → V, with V_bb⁻ᵀ of each block of [`BASE`] columns, row-major; what lies below the
    /// diagonal stays.
    pub(crate) fn factor(values: &'a mut [f32], n: usize) -> Result<Vec<Vec<f32>>, Pivot> {
        let mut cholesky = Self { values, n, inverses: vec![Vec::new(); n.div_ceil(BASE)] };
        cholesky.halves(0..n)?;
        Ok(cholesky.inverses)
    }

    /// H[range, range] → V[range, range], given that it was updated by all columns after the range.
    fn halves(&mut self, range: Range<usize>) -> Result<(), Pivot> {
        if range.len() <= BLOCKED {
            return self.blocks(range);
        }
        let middle = middle(&range);
        let (head, tail) = (range.start..middle, middle..range.end);
        self.halves(tail.clone())?;
        self.divide(head.clone(), tail.clone());
        let part = |columns: &Range<usize>| Part { rows: head.clone(), columns: columns.clone() };
        let matrix = MatrixMut::new(self.values, self.n, self.n);
        gemm_within(matrix, -1.0, part(&tail), part(&tail), 1.0, part(&head), Region::Upper);
        self.halves(head)
    }

    /// As `halves`, block by block.
    fn blocks(&mut self, range: Range<usize>) -> Result<(), Pivot> {
        let n = self.n;
        let Some(mut block) = last_block(&range) else { return Ok(()) };
        self.inverses[block.start / BASE] = diagonal(&mut self.values[block.start * n..block.end * n], n, &block)?;
        let mut after = block.end..block.end;
        while let Some(next) = last_block(&(range.start..block.start)) {
            let inverses = &mut self.inverses;
            let (above, own) = self.values.split_at_mut(block.start * n);
            let above = &mut above[range.start * n..];
            divide_block(above, n, &block, &after, own, &inverses[block.start / BASE]);

            let (above, own) = above.split_at_mut((next.start - range.start) * n);
            let head = range.start..next.start;
            let (inverse, ()) = rayon::join(
                || {
                    let right = copied(own, n, &block);
                    let own_part = |columns: &Range<usize>| Part { rows: 0..next.len(), columns: columns.clone() };
                    let (a, c) = (own_part(&block), own_part(&next));
                    let b = MatrixRef::new(&right, next.len(), block.len()).transposed();
                    gemm_within_serial(MatrixMut::new(own, next.len(), n), -1.0, a, b, 1.0, c, Region::Upper);
                    diagonal(own, n, &next)
                },
                || {
                    let part = |columns: &Range<usize>| Part { rows: 0..head.len(), columns: columns.clone() };
                    let matrix = MatrixMut::new(above, head.len(), n);
                    gemm_within(matrix, -1.0, part(&block), part(&block), 1.0, part(&head), Region::Upper);
                },
            );
            inverses[next.start / BASE] = inverse?;
            (after, block) = (block, next);
        }
        Ok(())
    }

    /// H[rows, range] → V[rows, range]: the solution of V[rows, range] · V[range, range]ᵀ = H[rows, range].
    fn divide(&mut self, rows: Range<usize>, range: Range<usize>) {
        let n = self.n;
        if range.len() <= BY_ROWS {
            let (above, own) = self.values.split_at_mut(range.start * n);
            let (above, inverses) = (&mut above[rows.start * n..rows.end * n], &self.inverses);
            by_rows(above, n, |band| divide_band(band, n, &range, own, range.start, inverses));
            return;
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

/// Where a range is split: at a multiple of [`BASE`].
fn middle(range: &Range<usize>) -> usize {
    range.start + (range.len() / 2).next_multiple_of(BASE)
}

/// The last block of a range that starts with a block.
fn last_block(range: &Range<usize>) -> Option<Range<usize>> {
    let start = range.end.checked_sub(1)? / BASE * BASE;
    (start >= range.start).then_some(start..range.end)
}

/// H[block, block] → V[block, block] in place, in the rows of the block; returns U_bᵀ.
fn diagonal(rows: &mut [f32], n: usize, block: &Range<usize>) -> Result<Vec<f32>, Pivot> {
    triangle::factor(rows, n, block).map_err(|(column, pivot)| (block.start + column, pivot))?;
    Ok(triangle::invert(rows, n, block))
}

/// Some columns of rows of `n`, copied.
fn copied(rows: &[f32], n: usize, columns: &Range<usize>) -> Vec<f32> {
    let mut copy = Vec::with_capacity(rows.len() / n * columns.len());
    rows.chunks_exact(n).for_each(|row| copy.extend_from_slice(&row[columns.clone()]));
    copy
}

/// Runs `work` on bands of rows of `n`, on all threads.
fn by_rows(rows: &mut [f32], n: usize, work: impl Fn(&mut [f32]) + Send + Sync) {
    /// A band packs the right operand of its products for itself: with fewer rows than these that would cost too much.
    const FEWEST: usize = 96;
    const MOST: usize = 384;
    let count = rows.len() / n;
    let band = count.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(12).clamp(FEWEST, MOST);
    rows.par_chunks_mut(band * n).for_each(work);
}

/// V_{<b,b} = (H_{<b,b} − V_{<b,c}·V_{b,c}ᵀ)·U_bᵀ in the rows `above`, for a block b and the columns c `after` it that have not
/// been subtracted; `own` are the rows from the block's first on, `inverse` is U_bᵀ.
fn divide_block(above: &mut [f32], n: usize, block: &Range<usize>, after: &Range<usize>, own: &[f32], inverse: &[f32]) {
    by_rows(above, n, |band| {
        subtract_band(band, n, after, block, own);
        multiply_band(band, n, block, inverse);
    });
}

/// The solution for a band of rows; `own` are the rows of the matrix from `first` on.
fn divide_band(band: &mut [f32], n: usize, range: &Range<usize>, own: &[f32], first: usize, inverses: &[Vec<f32>]) {
    if range.len() <= BASE {
        return multiply_band(band, n, range, &inverses[range.start / BASE]);
    }
    let middle = middle(range);
    let (head, tail) = (range.start..middle, middle..range.end);
    divide_band(band, n, &tail, own, first, inverses);
    subtract_band(band, n, &tail, &head, &own[(head.start - first) * n..]);
    divide_band(band, n, &head, own, first, inverses);
}

/// `band[:, head] −= band[:, tail] · V[head, tail]ᵀ`, `own` being the rows from the head's first on.
fn subtract_band(band: &mut [f32], n: usize, tail: &Range<usize>, head: &Range<usize>, own: &[f32]) {
    if tail.is_empty() {
        return;
    }
    let rows = band.len() / n;
    let part = |columns: &Range<usize>| Part { rows: 0..rows, columns: columns.clone() };
    let right = MatrixRef::with_stride(&own[tail.start..], head.len(), tail.len(), n).transposed();
    gemm_within_serial(MatrixMut::new(band, rows, n), -1.0, part(tail), right, 1.0, part(head), Region::Full);
}

/// `band[:, block] ← band[:, block] · U_bᵀ`, `inverse` being U_bᵀ.
fn multiply_band(band: &mut [f32], n: usize, block: &Range<usize>, inverse: &[f32]) {
    let left = copied(band, n, block);
    let rows = band.len() / n;
    let left = MatrixRef::new(&left, rows, block.len());
    let right = MatrixRef::new(inverse, block.len(), block.len());
    let target = MatrixMut::with_stride(&mut band[block.start..], rows, block.len(), n);
    gemm_serial(1.0, left, right, 0.0, target);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_split_at_blocks() {
        for length in BASE + 1..1500 {
            for start in [0, BASE, 3 * BASE] {
                let range = start..start + length;
                let at = middle(&range);
                assert!(range.contains(&at) && at > start && at.is_multiple_of(BASE), "{length} at {at}");
                let block = last_block(&range).unwrap();
                assert!(block.end == range.end && block.start.is_multiple_of(BASE) && block.len() <= BASE);
            }
        }
        assert_eq!(last_block(&(0..0)), None);
        assert_eq!(last_block(&(BASE..BASE)), None);
    }

    /// A size that takes every path: halves, shared and by rows, blocks, and a last block that is not whole.
    #[test]
    fn large_matrices_are_factored_and_repeat_on_any_number_of_threads() {
        let n = 1300;
        let at = |i: usize, j: usize| 1.0 / (1.0 + i.abs_diff(j) as f32) + f32::from(u8::from(i == j));
        let factored = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut values: Vec<f32> =
                (0..n * n).map(|k| if k / n <= k % n { at(k / n, k % n) } else { f32::NAN }).collect();
            let inverses = pool.install(|| Cholesky::factor(&mut values, n)).unwrap();
            (values, inverses)
        };
        let (values, inverses) = factored(1);
        for i in (0..n).step_by(7) {
            for j in (i..n).step_by(13) {
                let (row, other) = (&values[i * n + j..(i + 1) * n], &values[j * n + j..(j + 1) * n]);
                let product: f64 = row.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let residual = (product - f64::from(at(i, j))).abs();
                let allowed = testkit::tolerance::factor_residual(n, testkit::tolerance::UNIT_F32);
                assert!(residual <= allowed * f64::from(at(i, i)), "({i}, {j}) is off by {residual:e}");
            }
        }
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
        for threads in [2, 5] {
            let (again, inverses_again) = factored(threads);
            for i in 0..n {
                let row = i * n + i..(i + 1) * n;
                assert_eq!(bits(&again[row.clone()]), bits(&values[row]), "row {i} on {threads} threads");
            }
            for (a, b) in inverses_again.iter().zip(&inverses) {
                assert_eq!(bits(a), bits(b), "inverses on {threads} threads");
            }
        }
    }

    #[test]
    fn a_pivot_is_named_by_its_column() {
        let n = 300;
        let mut values: Vec<f32> = (0..n * n).map(|k| f32::from(u8::from(k / n == k % n))).collect();
        values[200 * n + 200] = -2.0;
        assert_eq!(Cholesky::factor(&mut values, n), Err((200, -2.0)));
    }
}
