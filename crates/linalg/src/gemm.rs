//! `C ← βC + αA·B`, blocked for the caches and spread over the threads of the current rayon pool.
//!
//! ```text
//! for columns of C by COLUMNS, for k by DEPTH:      both operands packed once per slice, by all threads
//!   for rows of C by ROWS:                          A: 12 × 384 floats of a panel stay in L1
//!     tasks of [rows, 192] of C                     B: 192 × 384 floats stay in L2
//! ```
//! Every element of C is summed in one order whatever the number of threads: the same operands give the same bits.

use crate::kernel::{Kernel, LARGEST_TILE, Update};
use crate::pack::{Buffer, GROUP, Operand, pack_panels};
use crate::{Element, MatrixMut, MatrixRef};
use rayon::prelude::*;
use std::ops::Range;

/// Depth of a slice: a panel of A (12 · 384 · 4 bytes) fills half of a 32 KiB L1.
const DEPTH: usize = 384;
/// Columns of one task: with DEPTH 288 KiB of B, half of the smallest L2 (512 KiB) in use.
const TASK_COLUMNS: usize = 192;
/// Rows and columns packed at a time: bounds the packing buffers to 3 MiB each.
const ROWS: usize = 2040;
const COLUMNS: usize = 2016;
/// Below this many operations waking other threads costs more than it brings.
const WORTH_SHARING: usize = 1 << 21;

/// Which part of C is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// All of it.
    Full,
    /// Elements (i, j) with i ≤ j; what lies below the diagonal is left as it is.
    Upper,
}

/// `C ← βC + αA·B` on `region` of C, with A [m, k], B [k, n] and C [m, n]. With β = 0, C need not be initialized to
/// numbers. Runs on all threads of the current rayon pool.
///
/// # Panics
/// If the shapes do not fit.
pub fn gemm<A: Element, B: Element>(
    alpha: f32,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    beta: f32,
    c: MatrixMut<'_>,
    region: Region,
) {
    separate(Kernel::get(), Update { alpha, beta }, a, b, c, region, |shape| shape.worth_sharing());
}

/// [`gemm`] over all of C on the calling thread alone, for use inside a parallel task.
///
/// # Panics
/// If the shapes do not fit.
pub fn gemm_serial<A: Element, B: Element>(
    alpha: f32,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    beta: f32,
    c: MatrixMut<'_>,
) {
    separate(Kernel::get(), Update { alpha, beta }, a, b, c, Region::Full, |_| false);
}

/// The address of C, given to tasks that write disjoint parts of it.
#[derive(Clone, Copy)]
struct Target {
    data: *mut f32,
    row_stride: usize,
}

// SAFETY: tasks write disjoint tiles (each tile of C belongs to exactly one task of a slice, and slices follow one
// another), so sharing the address races with nobody.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `C ← βC + αA·Bᵀ` where A, B and C are parts of one matrix: what a blocked factorization in place is made of.
/// On `region` of C, whose rows and columns are counted from its own first ones.
///
/// # Panics
/// If a part lies outside the matrix, the shapes do not fit, or C overlaps A or B.
pub fn gemm_within(matrix: MatrixMut<'_>, alpha: f32, a: Part, b: Part, beta: f32, c: Part, region: Region) {
    for part in [&a, &b, &c] {
        part.assert_inside(&matrix);
    }
    assert!(c.is_disjoint(&a) && c.is_disjoint(&b), "C ({c:?}) overlaps A ({a:?}) or B ({b:?})");
    let shape = Shape { rows: a.rows.len(), depth: a.columns.len(), columns: b.rows.len() };
    assert!(
        b.columns.len() == shape.depth && c.rows.len() == shape.rows && c.columns.len() == shape.columns,
        "{a:?} · {b:?}ᵀ into {c:?}"
    );
    let stride = matrix.row_stride;
    let data = matrix.data.as_mut_ptr();
    let operand =
        |part: &Part| Operand { data: part.start(data, stride).cast_const(), extent_stride: stride, depth_stride: 1 };
    let target = Target { data: c.start(data, stride), row_stride: stride };
    let update = Update { alpha, beta };
    // SAFETY: the parts lie inside the matrix, which is borrowed mutably, and C shares no element with A or B.
    unsafe { product(Kernel::get(), update, operand(&a), operand(&b), target, shape, region, shape.worth_sharing()) };
}

/// `C ← βC + αA·B` on the calling thread alone, where A and C are parts of one matrix and B is not.
///
/// # Panics
/// As [`gemm_within`].
pub fn gemm_within_serial(
    matrix: MatrixMut<'_>,
    alpha: f32,
    a: Part,
    b: MatrixRef<'_>,
    beta: f32,
    c: Part,
    region: Region,
) {
    for part in [&a, &c] {
        part.assert_inside(&matrix);
    }
    assert!(c.is_disjoint(&a), "C ({c:?}) overlaps A ({a:?})");
    let shape = Shape { rows: a.rows.len(), depth: a.columns.len(), columns: b.columns };
    assert!(
        b.rows == shape.depth && c.rows.len() == shape.rows && c.columns.len() == shape.columns,
        "{a:?} · [{}, {}] into {c:?}",
        b.rows,
        b.columns
    );
    let stride = matrix.row_stride;
    let data = matrix.data.as_mut_ptr();
    let left = Operand { data: a.start(data, stride).cast_const(), extent_stride: stride, depth_stride: 1 };
    let right = Operand { data: b.data.as_ptr(), extent_stride: b.column_stride, depth_stride: b.row_stride };
    let target = Target { data: c.start(data, stride), row_stride: stride };
    // SAFETY: A and C lie inside the matrix, which is borrowed mutably, and share no element; B is borrowed beside it,
    // with its shape and strides checked when it was made.
    unsafe { product(Kernel::get(), Update { alpha, beta }, left, right, target, shape, region, false) };
}

/// A rectangle of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub columns: Range<usize>,
}

impl Part {
    fn assert_inside(&self, matrix: &MatrixMut<'_>) {
        let inside = self.rows.end <= matrix.rows && self.columns.end <= matrix.columns;
        assert!(inside, "{self:?} of a [{}, {}] matrix", matrix.rows, matrix.columns);
    }

    /// The address of its first element in a matrix at `data`.
    fn start(&self, data: *mut f32, stride: usize) -> *mut f32 {
        // An empty part may start one past the end of its matrix; `wrapping_add` allows to say so.
        data.wrapping_add(self.rows.start * stride + self.columns.start)
    }

    fn is_disjoint(&self, other: &Part) -> bool {
        let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start || b.end <= a.start;
        apart(&self.rows, &other.rows) || apart(&self.columns, &other.columns)
    }
}

/// The sizes of a product: A [rows, depth], B [depth, columns].
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    depth: usize,
    columns: usize,
}

impl Shape {
    fn worth_sharing(&self) -> bool {
        2 * self.rows * self.depth * self.columns >= WORTH_SHARING && rayon::current_num_threads() > 1
    }
}

/// The product of two matrices that are borrowed one by one.
fn separate<A: Element, B: Element>(
    kernel: Kernel,
    update: Update,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    c: MatrixMut<'_>,
    region: Region,
    shared: impl FnOnce(Shape) -> bool,
) {
    let shape = Shape { rows: a.rows, depth: a.columns, columns: b.columns };
    assert!(
        b.rows == shape.depth && c.rows == shape.rows && c.columns == shape.columns,
        "[{}, {}] · [{}, {}] into [{}, {}]",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        c.rows,
        c.columns
    );
    let left = Operand { data: a.data.as_ptr(), extent_stride: a.row_stride, depth_stride: a.column_stride };
    let right = Operand { data: b.data.as_ptr(), extent_stride: b.column_stride, depth_stride: b.row_stride };
    let target = Target { data: c.data.as_mut_ptr(), row_stride: c.row_stride };
    if let (Some(kernel), Some(left), Some(right)) =
        (Kernel::pairs(), left.pairs(shape.depth), right.pairs(shape.depth))
    {
        let halved = Shape { depth: shape.depth / 2, ..shape };
        // SAFETY: as below; pairs lie where their elements do.
        return unsafe { product(kernel, update, left, right, target, halved, region, shared(halved)) };
    }
    // SAFETY: the three are borrowed as what they are used for, with shapes and strides checked when they were made.
    unsafe { product(kernel, update, left, right, target, shape, region, shared(shape)) };
}

/// # Safety
/// The operands and the target are matrices of this shape in memory that is borrowed for the call; no element of the
/// target belongs to an operand.
#[allow(clippy::too_many_arguments)] // the eight things that a product is
unsafe fn product<A: Element, B: Element>(
    kernel: Kernel,
    Update { alpha, beta }: Update,
    left: Operand<A>,
    right: Operand<B>,
    target: Target,
    Shape { rows, depth, columns }: Shape,
    region: Region,
    shared: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        // SAFETY: as the caller promises.
        return unsafe { scale(beta, target, rows, columns, region) };
    }
    let packed_rows = rows.min(ROWS).next_multiple_of(kernel.rows);
    let packed_columns = columns.min(COLUMNS).next_multiple_of(kernel.columns);
    let slice = depth.min(DEPTH);
    let (mut packed_a, mut packed_b) = (Buffer::take(packed_rows * slice), Buffer::take(packed_columns * slice));

    for first_column in (0..columns).step_by(COLUMNS) {
        let some_columns = COLUMNS.min(columns - first_column);
        for from in (0..depth).step_by(DEPTH) {
            let slice = DEPTH.min(depth - from);
            let update = Update { alpha, beta: if from == 0 { beta } else { 1.0 } };
            let panels_b = packed_b.floats_mut();
            // SAFETY: the slice lies inside the operand, whose elements nobody writes.
            unsafe { pack(right, (first_column, some_columns), (from, slice), kernel.columns, panels_b, shared) };
            for first_row in (0..rows).step_by(ROWS) {
                if region == Region::Upper && first_row >= first_column + some_columns {
                    break; // wholly below the diagonal, and so is all that follows
                }
                let some_rows = ROWS.min(rows - first_row);
                let panels_a = packed_a.floats_mut();
                // SAFETY: as for the right operand.
                unsafe { pack(left, (first_row, some_rows), (from, slice), kernel.rows, panels_a, shared) };
                let block = Block {
                    kernel,
                    update,
                    target,
                    region,
                    depth: slice,
                    panels_a,
                    panels_b,
                    rows: (first_row, some_rows),
                    columns: (first_column, some_columns),
                };
                block.multiply(shared);
            }
        }
    }
}

/// Packs `extent` (first, count) of an operand over `depth` (first, count) into panels of `width`.
///
/// # Safety
/// These elements belong to the operand and nobody writes them meanwhile.
pub(crate) unsafe fn pack<T: Element>(
    operand: Operand<T>,
    (first, count): (usize, usize),
    depth: (usize, usize),
    width: usize,
    panels: &mut [f32],
    shared: bool,
) {
    let panels = &mut panels[..count.next_multiple_of(width) * depth.1];
    let group = GROUP * width;
    let pack_group = |(index, panels): (usize, &mut [f32])| {
        let start = index * group;
        // SAFETY: as the caller promises.
        unsafe { pack_panels(operand, (first + start, group.min(count - start)), depth, width, panels) };
    };
    if shared {
        panels.par_chunks_mut(group * depth.1).enumerate().for_each(pack_group);
    } else {
        panels.chunks_mut(group * depth.1).enumerate().for_each(pack_group);
    }
}

/// A block of C whose operands are packed.
struct Block<'a> {
    kernel: Kernel,
    update: Update,
    target: Target,
    region: Region,
    depth: usize,
    panels_a: &'a [f32],
    panels_b: &'a [f32],
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Block<'_> {
    fn multiply(&self, shared: bool) {
        if !shared {
            for column in (0..self.columns.1).step_by(TASK_COLUMNS) {
                self.task((0, self.rows.1), (column, TASK_COLUMNS.min(self.columns.1 - column)));
            }
            return;
        }
        // Several tasks a thread, so that one delayed thread does not delay the product.
        let across = self.columns.1.div_ceil(TASK_COLUMNS);
        let down = (8 * rayon::current_num_threads()).div_ceil(across);
        let task_rows = self.rows.1.div_ceil(down).next_multiple_of(self.kernel.rows).max(4 * self.kernel.rows);
        let down = self.rows.1.div_ceil(task_rows);
        (0..across * down).into_par_iter().with_max_len(1).for_each(|index| {
            let (column, row) = (index / down * TASK_COLUMNS, index % down * task_rows);
            let rows = (row, task_rows.min(self.rows.1 - row));
            self.task(rows, (column, TASK_COLUMNS.min(self.columns.1 - column)));
        });
    }

    /// Multiplies `rows` × `columns` of the block, both (first, count) from the block's own first.
    fn task(&self, rows: (usize, usize), columns: (usize, usize)) {
        let (height, width) = (self.kernel.rows, self.kernel.columns);
        for row in (rows.0..rows.0 + rows.1).step_by(height) {
            for column in (columns.0..columns.0 + columns.1).step_by(width) {
                let a = &self.panels_a[row * self.depth..(row + height) * self.depth];
                let b = &self.panels_b[column * self.depth..(column + width) * self.depth];
                let size = (height.min(self.rows.1 - row), width.min(self.columns.1 - column));
                self.tile(a, b, (self.rows.0 + row, self.columns.0 + column), size);
            }
        }
    }

    /// Computes the tile whose first element is (i, j) of C and of which [rows, columns] lie inside C.
    fn tile(&self, a: &[f32], b: &[f32], (i, j): (usize, usize), (rows, columns): (usize, usize)) {
        let Kernel { rows: height, columns: width, run } = self.kernel;
        let above = self.region == Region::Full || i + rows <= j + 1;
        if !above && i >= j + columns {
            return;
        }
        let stride = self.target.row_stride;
        // SAFETY: (i, j) is an element of C.
        let c = unsafe { self.target.data.add(i * stride + j) };
        if above && rows == height && columns == width {
            // SAFETY: the panels hold `depth` lines each, the whole tile lies inside C and belongs to this task.
            unsafe { run(self.depth, a.as_ptr(), b.as_ptr(), c, stride, self.update) };
            return;
        }
        let mut tile = [0f32; LARGEST_TILE];
        // SAFETY: the panels hold `depth` lines each, and no kernel's tile is larger than the largest.
        unsafe { run(self.depth, a.as_ptr(), b.as_ptr(), tile.as_mut_ptr(), width, Update { alpha: 1.0, beta: 0.0 }) };
        for (y, sums) in tile.chunks_exact(width).take(rows).enumerate() {
            let from = if above { 0 } else { (i + y).saturating_sub(j).min(columns) };
            for (x, sum) in sums.iter().enumerate().take(columns).skip(from) {
                // SAFETY: (i + y, j + x) lies inside C and belongs to this task.
                let c = unsafe { &mut *c.add(y * stride + x) };
                let kept = if self.update.beta == 0.0 { 0.0 } else { self.update.beta * *c };
                *c = kept + self.update.alpha * sum;
            }
        }
    }
}

/// `C ← βC`: what is left of the product when k = 0.
///
/// # Safety
/// The target is a [rows, columns] matrix that is borrowed for the call.
unsafe fn scale(beta: f32, target: Target, rows: usize, columns: usize, region: Region) {
    for i in 0..rows {
        for j in if region == Region::Upper { i } else { 0 }..columns {
            // SAFETY: (i, j) is an element of the target.
            let c = unsafe { &mut *target.data.add(i * target.row_stride + j) };
            *c = if beta == 0.0 { 0.0 } else { beta * *c };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers in f32: every order of summation gives the same exact result, so the comparison is exact too.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 17) as f32 - 8.0).collect()
    }

    fn expected(a: &MatrixRef<'_>, b: &MatrixRef<'_>, i: usize, j: usize) -> f32 {
        (0..a.columns)
            .map(|k| a.data[i * a.row_stride + k * a.column_stride] * b.data[k * b.row_stride + j * b.column_stride])
            .sum()
    }

    #[test]
    fn every_kernel_multiplies_every_shape_and_layout() {
        let sizes = [1, 2, 5, 12, 13, 31, 33, 100, 200];
        for (name, kernel) in Kernel::all() {
            for (m, n, k) in sizes.iter().flat_map(|&m| sizes.iter().map(move |&n| (m, n, (m * n) % 500 + 1))) {
                let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
                for layout in 0..4 {
                    let a =
                        if layout & 1 == 0 { MatrixRef::new(&a, m, k) } else { MatrixRef::new(&a, k, m).transposed() };
                    let b =
                        if layout & 2 == 0 { MatrixRef::new(&b, k, n) } else { MatrixRef::new(&b, n, k).transposed() };
                    for region in [Region::Full, Region::Upper] {
                        let stride = n + 3;
                        let mut c = numbers(m * stride, 3);
                        let before = c.clone();
                        let target = MatrixMut::with_stride(&mut c, m, n, stride);
                        let update = Update { alpha: -1.0, beta: 1.0 };
                        separate(kernel, update, a, b, target, region, |_| layout % 2 == 0);
                        for (at, (&now, &was)) in c.iter().zip(&before).enumerate() {
                            let (i, j) = (at / stride, at % stride);
                            let inside = j < n && (region == Region::Full || i <= j);
                            let want = if inside { was - expected(&a, &b, i, j) } else { was };
                            assert_eq!(
                                now, want,
                                "{name} [{m}, {k}]·[{k}, {n}] layout {layout} {region:?} at ({i}, {j})"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_larger_than_the_packing_buffers_fit_together() {
        let (m, n, k) = (ROWS + 5, COLUMNS + 7, 3);
        let (a, b) = (numbers(m * k, 4), numbers(k * n, 5));
        let (a, b) = (MatrixRef::new(&a, m, k), MatrixRef::new(&b, k, n));
        for region in [Region::Full, Region::Upper] {
            let mut c = vec![f32::NAN; m * n];
            gemm(2.0, a, b, 0.0, MatrixMut::new(&mut c, m, n), region);
            for (at, &now) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                if region == Region::Full || i <= j {
                    assert_eq!(now, 2.0 * expected(&a, &b, i, j), "{region:?} at ({i}, {j})");
                } else {
                    assert!(now.is_nan(), "({i}, {j}) lies below the diagonal");
                }
            }
        }
    }

    #[test]
    fn sixteen_bit_operands_are_widened_exactly() {
        let (m, n, k) = (19, 35, 50);
        let (a, b) = (numbers(m * k, 6), numbers(k * n, 7));
        let half_a: Vec<_> = a.iter().map(|&x| half::f16::from_f32(x)).collect();
        let bf16_b: Vec<_> = b.iter().map(|&x| half::bf16::from_f32(x)).collect();
        let mut c = vec![0.0; m * n];
        gemm_serial(
            1.0,
            MatrixRef::new(&half_a, m, k),
            MatrixRef::new(&bf16_b, k, n),
            0.0,
            MatrixMut::new(&mut c, m, n),
        );
        for (at, &now) in c.iter().enumerate() {
            assert_eq!(now, expected(&MatrixRef::new(&a, m, k), &MatrixRef::new(&b, k, n), at / n, at % n));
        }
    }

    #[test]
    fn bf16_operands_multiply_exactly_in_pairs_and_one_by_one() {
        let (m, n) = (25, 70);
        // Pairs at any depth that is even; the last one is not, nor does a transposed operand have any.
        for (k, turned) in [(2, false), (50, false), (900, false), (50, true), (51, false)] {
            let (a, b) = (numbers(m * k, 6), numbers(k * n, 7));
            let narrow = |x: &[f32]| x.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>();
            let (narrow_a, narrow_b) = (narrow(&a), narrow(&b));
            let mut c = vec![3.0; m * n];
            let right = |turned| match turned {
                true => (MatrixRef::new(&narrow_b, k, n), MatrixRef::new(&b, k, n)),
                false => (MatrixRef::new(&narrow_b, n, k).transposed(), MatrixRef::new(&b, n, k).transposed()),
            };
            let (narrow_right, right) = right(turned);
            gemm(2.0, MatrixRef::new(&narrow_a, m, k), narrow_right, -1.0, MatrixMut::new(&mut c, m, n), Region::Full);
            for (at, &now) in c.iter().enumerate() {
                let want = 2.0 * expected(&MatrixRef::new(&a, m, k), &right, at / n, at % n) - 3.0;
                assert_eq!(now, want, "depth {k}, {turned}, at {at}");
            }
        }
    }

    #[test]
    fn an_empty_depth_leaves_beta_times_c() {
        let mut c = vec![3.0; 4];
        gemm(
            1.0,
            MatrixRef::<f32>::new(&[], 2, 0),
            MatrixRef::<f32>::new(&[], 0, 2),
            2.0,
            MatrixMut::new(&mut c, 2, 2),
            Region::Upper,
        );
        assert_eq!(c, [6.0, 6.0, 3.0, 6.0]);
    }

    #[test]
    fn parts_of_one_matrix_multiply_as_separate_ones_do() {
        let n = 70;
        let matrix = numbers(n * n, 8);
        let (a, b) = (Part { rows: 0..40, columns: 40..70 }, Part { rows: 3..43, columns: 40..70 });
        let c = Part { rows: 0..40, columns: 0..40 };
        let mut got = matrix.clone();
        gemm_within(MatrixMut::new(&mut got, n, n), -1.0, a, b, 1.0, c, Region::Upper);
        for (at, (&now, &was)) in got.iter().zip(&matrix).enumerate() {
            let (i, j) = (at / n, at % n);
            let sum: f32 = (40..70).map(|k| matrix[i * n + k] * matrix[((j + 3) * n + k).min(n * n - 1)]).sum();
            assert_eq!(now, if i <= j && j < 40 { was - sum } else { was }, "({i}, {j})");
        }
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn parts_that_overlap_are_refused() {
        let part = |rows| Part { rows, columns: 0..4 };
        let mut matrix = vec![0.0; 64];
        gemm_within(MatrixMut::new(&mut matrix, 8, 8), 1.0, part(0..4), part(4..8), 0.0, part(3..7), Region::Full);
    }
}
