//! C = α · op(A) · op(B) + β · C, all column-major.

use crate::numbers::{Number, Real};

/// A matrix in device memory: column-major, columns `leading` elements apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) number: Number,
    pub(crate) leading: u64,
    /// Whether it is used transposed.
    pub(crate) transposed: bool,
}

/// Sizes: op(A) is `m` × `k`, op(B) `k` × `n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// The tile of C that stays in registers: 16 rows (two AVX registers of f32) by 6 columns.
const ROWS: usize = 16;
const COLUMNS: usize = 6;
/// The panel of A that stays in the second-level cache, [`PANEL_ROWS`] × [`DEPTH`].
const PANEL_ROWS: usize = 8 * ROWS;
const DEPTH: usize = 256;

/// Carries a product out.
///
/// # Safety
/// The matrices are there, C not part of A or B.
pub(crate) unsafe fn gemm<T: Real>(sizes: Sizes, alpha: T, a: Matrix, b: Matrix, beta: T, c: Matrix) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has these instructions; the rest as the caller promises.
        unsafe { with_avx2(sizes, alpha, a, b, beta, c) };
        return;
    }
    // SAFETY: as the caller promises.
    unsafe { blocked(sizes, alpha, a, b, beta, c) };
}

/// [`blocked`], compiled for AVX2: [`Real::fused`] is one instruction then, of eight lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<T: Real>(sizes: Sizes, alpha: T, a: Matrix, b: Matrix, beta: T, c: Matrix) {
    // SAFETY: as the caller promises.
    unsafe { blocked(sizes, alpha, a, b, beta, c) };
}

#[inline(always)]
unsafe fn blocked<T: Real>(sizes: Sizes, alpha: T, a: Matrix, b: Matrix, beta: T, c: Matrix) {
    let Sizes { m, n, k } = sizes;
    let tiles = n.div_ceil(COLUMNS);
    let mut sum = vec![T::default(); m * n];
    let mut packed_a = vec![T::default(); PANEL_ROWS * DEPTH];
    let mut packed_b = vec![T::default(); tiles * COLUMNS * DEPTH];
    let mut line = Vec::new();
    // With α = 0 cuBLAS reads neither A nor B.
    for from in (0..if alpha.is_zero() { 0 } else { k }).step_by(DEPTH) {
        let depth = DEPTH.min(k - from);
        // SAFETY: columns `from..from + depth` of op(A) and rows of op(B) are there.
        unsafe { pack::<T, COLUMNS>(b, !b.transposed, 0..n, from..from + depth, &mut line, &mut packed_b) };
        for top in (0..m).step_by(PANEL_ROWS) {
            let rows = PANEL_ROWS.min(m - top);
            // SAFETY: likewise.
            unsafe { pack::<T, ROWS>(a, a.transposed, top..top + rows, from..from + depth, &mut line, &mut packed_a) };
            for left in 0..tiles {
                let right = &packed_b[left * COLUMNS * depth..][..COLUMNS * depth];
                for strip in 0..rows.div_ceil(ROWS) {
                    let tile = product(&packed_a[strip * ROWS * depth..][..ROWS * depth], right);
                    let (top, rows) = (top + strip * ROWS, ROWS.min(rows - strip * ROWS));
                    let columns = COLUMNS.min(n - left * COLUMNS);
                    for (column, values) in tile.iter().enumerate().take(columns) {
                        let start = (left * COLUMNS + column) * m + top;
                        for (sum, &value) in sum[start..start + rows].iter_mut().zip(values) {
                            *sum = T::of(1.0).fused(value, *sum);
                        }
                    }
                }
            }
        }
    }
    let mut before = vec![T::default(); m];
    for (column, sum) in sum.chunks_exact_mut(m.max(1)).enumerate() {
        let address = c.address + column as u64 * c.leading * c.number.size();
        // SAFETY: this is a column of C. With β = 0 it need not be initialized, and what is there does not count.
        unsafe {
            if beta.is_zero() {
                sum.iter_mut().for_each(|sum| *sum = alpha.times(*sum));
            } else {
                T::read_all(c.number, address, &mut before);
                for (sum, &before) in sum.iter_mut().zip(&before) {
                    *sum = alpha.fused(*sum, beta.times(before));
                }
            }
            T::write_all(c.number, address, sum);
        }
    }
}

/// One tile: both operands packed, column after column of A and row after row of B.
#[inline(always)]
fn product<T: Real>(a: &[T], b: &[T]) -> [[T; ROWS]; COLUMNS] {
    let mut tile = [[T::default(); ROWS]; COLUMNS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLUMNS>().0) {
        for (tile, &b) in tile.iter_mut().zip(b) {
            for row in 0..ROWS {
                tile[row] = a[row].fused(b, tile[row]);
            }
        }
    }
    tile
}

/// Packs a part of a matrix into strips of `WIDTH` along its free dimension, zeros where the last one ends. With
/// `along_depth` a stored column runs along the summed dimension, else along the free one.
///
/// # Safety
/// This part of the matrix is there.
#[inline(always)]
unsafe fn pack<T: Real, const WIDTH: usize>(
    matrix: Matrix,
    along_depth: bool,
    free: std::ops::Range<usize>,
    summed: std::ops::Range<usize>,
    line: &mut Vec<T>,
    to: &mut [T],
) {
    let depth = summed.len();
    let at = |row: usize, column: usize| {
        matrix.address + (column as u64 * matrix.leading + row as u64) * matrix.number.size()
    };
    if along_depth {
        line.resize(depth, T::default());
        for index in 0..free.len().next_multiple_of(WIDTH) {
            if index < free.len() {
                // SAFETY: a stored column of the part.
                unsafe { T::read_all(matrix.number, at(summed.start, free.start + index), line) };
            } else {
                line.fill(T::default());
            }
            let strip = &mut to[index / WIDTH * WIDTH * depth..][..WIDTH * depth];
            for (row, &value) in strip.chunks_exact_mut(WIDTH).zip(line.iter()) {
                row[index % WIDTH] = value;
            }
        }
    } else {
        line.clear();
        line.resize(free.len().next_multiple_of(WIDTH), T::default());
        for index in 0..depth {
            // SAFETY: a stored column of the part.
            unsafe {
                T::read_all(matrix.number, at(free.start, summed.start + index), &mut line[..free.len()]);
            }
            for (strip, values) in line.chunks_exact(WIDTH).enumerate() {
                to[strip * WIDTH * depth + index * WIDTH..][..WIDTH].copy_from_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiples of 1/8 small enough that every product and sum is exact in f32.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as f32 - 128.0) / 8.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn equals_plain_loops_for_every_shape_and_transposition() {
        for &(m, n, k) in &[(1, 1, 1), (16, 6, 4), (17, 7, 3), (130, 13, 300), (5, 40, 257), (3, 2, 0)] {
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let (lda, ldb, ldc) = (if ta { k } else { m } + 3, if tb { n } else { k } + 1, m + 2);
                let a = numbers(lda * if ta { m } else { k }.max(1), 1);
                let b = numbers(ldb * if tb { k } else { n }.max(1), 2);
                let mut c = numbers(ldc * n, 3);
                let mut expected = c.clone();
                for column in 0..n {
                    for row in 0..m {
                        let of_a = |i| if ta { a[row * lda + i] } else { a[i * lda + row] };
                        let of_b = |i| if tb { b[i * ldb + column] } else { b[column * ldb + i] };
                        let sum: f32 = (0..k).map(|i| of_a(i) * of_b(i)).sum();
                        let old = &mut expected[column * ldc + row];
                        *old = 0.5 * sum + 2.0 * *old;
                    }
                }
                let matrix = |address, leading: usize, transposed| Matrix {
                    address,
                    number: Number::F32,
                    leading: leading as u64,
                    transposed,
                };
                let (a, b) = (matrix(a.as_ptr() as u64, lda, ta), matrix(b.as_ptr() as u64, ldb, tb));
                let to = matrix(c.as_mut_ptr() as u64, ldc, false);
                // SAFETY: the matrices have these sizes.
                unsafe { gemm::<f32>(Sizes { m, n, k }, 0.5, a, b, 2.0, to) };
                assert_eq!(c, expected, "{m} {n} {k} {ta} {tb}");
            }
        }
    }

    #[test]
    fn beta_zero_ignores_what_was_there_and_alpha_zero_what_is_multiplied() {
        let nan = [f32::NAN; 4];
        let mut c = [f32::NAN; 4];
        let matrix = |address: *const f32| Matrix {
            address: address as u64,
            number: Number::F32,
            leading: 2,
            transposed: false,
        };
        let sizes = Sizes { m: 2, n: 2, k: 2 };
        // SAFETY: 2 × 2 matrices.
        unsafe { gemm::<f32>(sizes, 0.0, matrix(nan.as_ptr()), matrix(nan.as_ptr()), 0.0, matrix(c.as_mut_ptr())) };
        assert_eq!(c, [0.0; 4]);
    }
}
