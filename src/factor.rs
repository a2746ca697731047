//! The factor V of a batch of Hessians and its inverse U: `kernels/factor_cholesky.cu`, `kernels/factor_invert.cu`.
//!
//! Both are recursions over blocks of 128 columns, driven from here: nearly all operations are products of halves by halves.

use crate::device::{Device, arguments, blocks};
use crate::hessian::Prepared;
use crate::module::{
    Entry, FACTOR_CHOLESKY, FACTOR_DIVIDE_ROWS, FACTOR_DIVIDE_SHARED, FACTOR_INVERT, FACTOR_SHARED,
    FACTOR_SUBTRACT_SHARED, FACTOR_SUBTRACT_TILE, FACTOR_THREADS, FLAT_THREADS, PANEL, SQUARE,
};
use crate::product::{Entries, Operand, Product, Region};
use crate::{Error, MatrixMut};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use std::ops::Range;

const UPDATE: Entries = Entries::new(
    &FACTOR_CHOLESKY,
    Region::Upper,
    "factor_update_f32",
    "factor_update_f32_any",
    "factor_update_sum_f32",
);
const SOLVE: Entries =
    Entries::new(&FACTOR_CHOLESKY, Region::Full, "factor_solve_f32", "factor_solve_f32_any", "factor_solve_sum_f32");
const MULTIPLY: Entries = Entries::new(
    &FACTOR_INVERT,
    Region::Full,
    "factor_multiply_f32",
    "factor_multiply_f32_any",
    "factor_multiply_sum_f32",
);
const BLOCK: Entry = Entry::new(&FACTOR_CHOLESKY, "factor_block_f32", FACTOR_THREADS, FACTOR_SHARED);
const SAVE: Entry = Entry::new(&FACTOR_CHOLESKY, "factor_save_f32", FLAT_THREADS, 0);
const RESTORE: Entry = Entry::new(&FACTOR_CHOLESKY, "factor_restore_f32", FLAT_THREADS, 0);
const BLOCK_INVERT: Entry = Entry::new(&FACTOR_INVERT, "factor_block_invert_f32", FACTOR_THREADS, FACTOR_SHARED);
const BLOCK_PLACE: Entry = Entry::new(&FACTOR_INVERT, "factor_block_place_f32", FACTOR_THREADS, 0);

/// For operands whose rows begin at multiples of 16 bytes, and for all.
const DIVIDE: [Entry; 2] = [
    Entry::new(&FACTOR_CHOLESKY, "factor_divide_f32", FACTOR_THREADS, FACTOR_DIVIDE_SHARED),
    Entry::new(&FACTOR_CHOLESKY, "factor_divide_f32_any", FACTOR_THREADS, FACTOR_DIVIDE_SHARED),
];
const SUBTRACT: [Entry; 2] = [
    Entry::new(&FACTOR_CHOLESKY, "factor_subtract_f32", FACTOR_THREADS, FACTOR_SUBTRACT_SHARED),
    Entry::new(&FACTOR_CHOLESKY, "factor_subtract_f32_any", FACTOR_THREADS, FACTOR_SUBTRACT_SHARED),
];
const SOLVE_THIN: [Entry; 2] = [
    Entry::new(&FACTOR_CHOLESKY, "factor_solve_thin_f32", FACTOR_THREADS, FACTOR_SUBTRACT_SHARED),
    Entry::new(&FACTOR_CHOLESKY, "factor_solve_thin_f32_any", FACTOR_THREADS, FACTOR_SUBTRACT_SHARED),
];

/// Columns of a block.
const WIDTH: usize = PANEL as usize;

/// Up to this square of the number of blocks, over the batch, blocks are factored one by one, with products as deep as a block:
/// 16 blocks of one matrix. What they read and write stays in L2, each step is three short launches, and its products are at
/// most two rounds of thin tiles for an A100. A model of the launches has n = 4096 at 1.8 ms with 256, at 2.2 with 64.
const ONE_BY_ONE: usize = 256;

/// How often [`factor_damped`] raises the damping tenfold before a Hessian is given up.
pub const RAISES: u32 = 3;

/// What [`factor`] leaves beside V.
#[derive(Debug)]
pub struct Factored {
    /// f32 [batch, n / 128 rounded up, 128, 128]: U_kk = V_kk⁻¹ of every block on the diagonal, row-major, with zeros below the
    /// diagonal and beyond n. Not written for matrices that failed.
    pub inverses: CudaSlice<f32>,
    /// f32 `[batch]`: for matrices that failed, the pivot. [`failures`] reads it.
    pub pivots: CudaSlice<f32>,
}

/// A matrix of a batch that has no factor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("matrix {matrix} of the batch is not positive definite: the pivot of column {column} is {pivot:e}")]
pub struct Failure {
    /// Its number in the batch.
    pub matrix: usize,
    /// The first column, from the right, whose pivot is not a positive finite number.
    pub column: usize,
    /// What is left of that column's diagonal entry once the columns after it are eliminated. NaN where the diagonal was not
    /// finite from the start.
    pub pivot: f32,
}

/// Which matrices of a batch failed, in order. Waits for the work before it.
///
/// # Errors
/// What the driver says.
pub fn failures(device: &Device, failed: &CudaSlice<i32>, factored: &Factored) -> Result<Vec<Failure>, Error> {
    let (failed, pivots) = (device.download(failed)?, device.download(&factored.pivots)?);
    let all = failed.into_iter().zip(pivots).enumerate();
    Ok(all
        .filter_map(|(matrix, (failed, pivot))| {
            let column = usize::try_from(failed).ok()?.checked_sub(1)?;
            Some(Failure { matrix, column, pivot })
        })
        .collect())
}

/// A batch of square matrices in one buffer, checked and ready for launches.
#[derive(Clone, Copy)]
struct Batch<'a> {
    device: &'a Device,
    matrix: Operand,
    /// U_kk: a row every [`WIDTH`], all blocks of a matrix one after the other.
    inverses: Operand,
    failed: u64,
    n: usize,
    batch: usize,
}

/// n of the matrices [n, n] that follow each other in `[batch · n, n]`.
fn size(what: &'static str, matrices: &MatrixMut<'_, f32>, batch: usize) -> Result<usize, Error> {
    /// gridDim.z has 16 bits.
    const MOST: usize = 65_535;
    let n = matrices.columns();
    if batch.checked_mul(n) != Some(matrices.rows()) {
        return Err(Error::shape(what, matrices.shape(), format!("[{batch} · {n}, {n}]")));
    }
    if batch > MOST {
        return Err(Error::shape("batch", batch, format!("at most {MOST}")));
    }
    Ok(n)
}

/// Checks that a buffer has one element, or some, for each matrix.
fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found < expected { Err(Error::shape(what, found, format!("at least {expected}"))) } else { Ok(()) }
}

/// Elements of U_kk of all blocks of a batch.
fn inverses_length(n: usize, batch: usize) -> usize {
    batch * n.div_ceil(WIDTH) * WIDTH * WIDTH
}

/// Where a range of blocks is split.
fn halves(range: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = range.start + range.len().div_ceil(2);
    (range.start..middle, middle..range.end)
}

impl Batch<'_> {
    /// Where the block (row, column) begins.
    fn at(&self, row: usize, column: usize) -> Operand {
        self.matrix.at(row * WIDTH, column * WIDTH)
    }

    /// U_kk of block k.
    fn inverse(&self, block: usize) -> Operand {
        self.inverses.at(block * WIDTH, 0)
    }

    /// How many columns a range of blocks has.
    fn columns(&self, range: &Range<usize>) -> usize {
        (range.end * WIDTH).min(self.n) - range.start * WIDTH
    }

    /// `c ← beta · c + alpha · a · b` for blocks [rows, columns] over `depth`.
    ///
    /// # Safety
    /// As [`Product::launch`].
    #[expect(clippy::too_many_arguments, reason = "a product is three operands, three shapes and two factors")]
    unsafe fn product(
        &self,
        entries: &Entries,
        [c, a, b]: [Operand; 3],
        rows: &Range<usize>,
        columns: &Range<usize>,
        depth: &Range<usize>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), Error> {
        let [rows, columns, depth] = [rows, columns, depth].map(|range| self.columns(range));
        let (batch, failed) = (self.batch, self.failed);
        // SAFETY: the caller's promise.
        unsafe { Product { a, b, c, rows, columns, depth, batch, failed, alpha, beta }.launch(self.device, entries) }
    }

    /// The products of which a thread block computes little.
    ///
    /// # Safety
    /// As [`Product::launch`].
    unsafe fn thin(&self, entries: &[Entry; 2], tiles: u64, product: Product) -> Result<(), Error> {
        let [aligned, any] = entries;
        let Product { a, b, c, .. } = product;
        let entry = if [a, b, c].into_iter().all(Operand::is_aligned) { aligned } else { any };
        let parameters = product.parameters(0, 1);
        // SAFETY: the kernel's only argument, and the caller's promise about what it points to.
        unsafe { self.device.launch(entry, (blocks(tiles, 1)?, 1, self.batch as u32), arguments![parameters]) }
    }

    /// H → V of the blocks in `range`, given that all columns after them are done.
    ///
    /// # Safety
    /// All addresses are memory of the device, as large as the shapes say, that lives until the work is done; `pivots` likewise,
    /// f32 `[batch]`.
    unsafe fn factor(&self, range: Range<usize>, pivots: u64) -> Result<(), Error> {
        if range.len().pow(2) * self.batch <= ONE_BY_ONE {
            for block in range.clone().rev() {
                let head = range.start..block;
                // SAFETY: the caller's promise.
                unsafe {
                    self.factor_block(block, pivots)?;
                    if !head.is_empty() {
                        self.divide(&head, block)?;
                        self.subtract(&head, block)?;
                    }
                }
            }
            return Ok(());
        }
        let (head, tail) = halves(&range);
        let right = self.at(head.start, tail.start);
        // SAFETY: the caller's promise. The update writes blocks [head, head] and reads [head, tail], which are others.
        unsafe {
            self.factor(tail.clone(), pivots)?;
            self.solve(&head, tail.clone())?;
            let target = self.at(head.start, head.start);
            self.product(&UPDATE, [target, right, right], &head, &head, &tail, -1.0, 1.0)?;
            self.factor(head, pivots)
        }
    }

    /// H_kk → V_kk, U_kk of one block.
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn factor_block(&self, block: usize, pivots: u64) -> Result<(), Error> {
        let (h, inverse) = (self.at(block, block), self.inverse(block));
        let (first, size) = ((block * WIDTH) as u32, self.columns(&(block..block + 1)) as u32);
        // SAFETY: the arguments of the kernel, and the caller's promise.
        unsafe {
            let arguments = arguments![
                h.address,
                inverse.address,
                self.failed,
                pivots,
                h.stride,
                h.batch_stride,
                inverse.batch_stride,
                first,
                size
            ];
            self.device.launch(&BLOCK, (self.batch as u32, 1, 1), arguments)
        }
    }

    /// X ← X·U_kkᵀ for X the blocks [rows, block].
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn divide(&self, rows: &Range<usize>, block: usize) -> Result<(), Error> {
        let (x, inverse, batch, failed) = (self.at(rows.start, block), self.inverse(block), self.batch, self.failed);
        let (rows, width) = (self.columns(rows), self.columns(&(block..block + 1)));
        let tiles = rows.div_ceil(FACTOR_DIVIDE_ROWS as usize) as u64;
        let product = Product {
            a: x,
            b: inverse,
            c: x,
            rows,
            columns: width,
            depth: width,
            batch,
            failed,
            alpha: 1.0,
            beta: 0.0,
        };
        // SAFETY: the caller's promise. X is its own result: a thread block reads its rows wholly before it writes them, and no
        // other's.
        unsafe { self.thin(&DIVIDE, tiles, product) }
    }

    /// H[head, head] −= V[head, block]·V[head, block]ᵀ.
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn subtract(&self, head: &Range<usize>, block: usize) -> Result<(), Error> {
        let (v, h) = (self.at(head.start, block), self.at(head.start, head.start));
        let (rows, depth) = (self.columns(head), self.columns(&(block..block + 1)));
        let (batch, failed) = (self.batch, self.failed);
        let across = rows.div_ceil(FACTOR_SUBTRACT_TILE as usize) as u64;
        let product = Product { a: v, b: v, c: h, rows, columns: rows, depth, batch, failed, alpha: -1.0, beta: 1.0 };
        // SAFETY: the caller's promise; the block lies after the head.
        unsafe { self.thin(&SUBTRACT, across * (across + 1) / 2, product) }
    }

    /// The solution X of X · V[range, range]ᵀ = H[rows, range], in its place.
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn solve(&self, rows: &Range<usize>, range: Range<usize>) -> Result<(), Error> {
        if range.len() == 1 {
            // SAFETY: the caller's promise.
            return unsafe { self.divide(rows, range.start) };
        }
        let (head, tail) = halves(&range);
        let [target, x, v] =
            [(rows.start, head.start), (rows.start, tail.start), (head.start, tail.start)].map(|(i, j)| self.at(i, j));
        // SAFETY: the caller's promise. The product writes [rows, head] and reads [rows, tail] and [head, tail]; rows lie before
        // the range.
        unsafe {
            self.solve(rows, tail.clone())?;
            if tail.len() > 1 {
                self.product(&SOLVE, [target, x, v], rows, &head, &tail, -1.0, 1.0)?;
            } else {
                let [rows, columns, depth] = [rows, &head, &tail].map(|range| self.columns(range));
                let (batch, failed) = (self.batch, self.failed);
                let across = |count: usize| count.div_ceil(FACTOR_SUBTRACT_TILE as usize) as u64;
                let product =
                    Product { a: x, b: v, c: target, rows, columns, depth, batch, failed, alpha: -1.0, beta: 1.0 };
                self.thin(&SOLVE_THIN, across(rows) * across(columns), product)?;
            }
            self.solve(rows, head)
        }
    }

    /// V → U of all blocks off the diagonal in `range`.
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn invert(&self, range: Range<usize>) -> Result<(), Error> {
        if range.len() < 2 {
            return Ok(());
        }
        let (head, tail) = halves(&range);
        // SAFETY: the caller's promise.
        unsafe {
            self.invert(head.clone())?;
            self.invert(tail.clone())?;
            self.multiply_left(head.clone(), &tail)?;
            self.multiply_right(&head, tail)
        }
    }

    /// B ← −U[range, range]·B for B the blocks [range, columns].
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn multiply_left(&self, range: Range<usize>, columns: &Range<usize>) -> Result<(), Error> {
        let b = self.at(range.start, columns.start);
        if range.len() == 1 {
            // SAFETY: the caller's promise. B is its own result: with a single tile of rows, the thread block that writes a tile
            // is the only one to read it; so short a depth is not split.
            return unsafe {
                self.product(&MULTIPLY, [b, self.inverse(range.start), b], &range, columns, &range, -1.0, 0.0)
            };
        }
        let (head, tail) = halves(&range);
        let (q, below) = (self.at(head.start, tail.start), self.at(tail.start, columns.start));
        // SAFETY: the caller's promise. The product writes [head, columns] and reads [head, tail] and [tail, columns]; columns lie
        // after the range.
        unsafe {
            self.multiply_left(head.clone(), columns)?;
            self.product(&MULTIPLY, [b, q, below], &head, columns, &tail, -1.0, 1.0)?;
            self.multiply_left(tail, columns)
        }
    }

    /// B ← B·U[range, range] for B the blocks [rows, range].
    ///
    /// # Safety
    /// As [`Batch::factor`].
    unsafe fn multiply_right(&self, rows: &Range<usize>, range: Range<usize>) -> Result<(), Error> {
        let b = self.at(rows.start, range.start);
        if range.len() == 1 {
            // SAFETY: the caller's promise, and as in `solve`.
            return unsafe {
                self.product(&MULTIPLY, [b, b, self.inverse(range.start)], rows, &range, &range, 1.0, 0.0)
            };
        }
        let (head, tail) = halves(&range);
        let (q, right) = (self.at(head.start, tail.start), self.at(rows.start, tail.start));
        // SAFETY: the caller's promise. The product writes [rows, tail] and reads [rows, head] and [head, tail]; rows lie before
        // the range.
        unsafe {
            self.multiply_right(rows, tail.clone())?;
            self.product(&MULTIPLY, [right, b, q], rows, &tail, &head, 1.0, 1.0)?;
            self.multiply_right(rows, head)
        }
    }
}

/// The matrices of `address` with their inverses at `inverses`.
fn operands(address: u64, inverses: u64, stride: usize, n: usize) -> (Operand, Operand) {
    let (stride, blocks, width) = (stride as u64, n.div_ceil(WIDTH) as u64, WIDTH as u64);
    (
        Operand { address, stride, batch_stride: stride * n as u64 },
        Operand { address: inverses, stride: width, batch_stride: blocks * width * width },
    )
}

/// H → V, H = V·Vᵀ with V upper triangular, for a batch of matrices that follow each other in one buffer, in place.
///
/// `hessians` [batch · n, n]: only the upper triangles are read and written. `failed` i32 `[batch]`, as
/// [`crate::prepare`] leaves it: matrices with an entry that is not zero are left alone; where a pivot is not a positive finite
/// number, the entry becomes 1 + its column (the first from the right), and the upper triangle of that matrix is of no use
/// any more. Other matrices do not notice. The same matrices give the same bits.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or `failed` is too short; [`Error::OtherDevice`]; or what the driver says. A matrix
/// without a factor is no error here: see [`failures`].
pub fn factor(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    failed: &mut CudaSlice<i32>,
) -> Result<Factored, Error> {
    let n = size("hessians", hessians, batch)?;
    let mut factored = Factored {
        inverses: device.scratch(inverses_length(n, batch).max(1))?,
        pivots: device.upload(&vec![f32::NAN; batch.max(1)])?,
    };
    factor_into(device, hessians, batch, failed, &mut factored)?;
    Ok(factored)
}

fn factor_into(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    failed: &mut CudaSlice<i32>,
    factored: &mut Factored,
) -> Result<(), Error> {
    let n = size("hessians", hessians, batch)?;
    check_length("failed", failed.len(), batch)?;
    if n == 0 || batch == 0 {
        return Ok(());
    }
    let stride = hessians.stride();
    let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
    let (failed, _failed) = device.address_mut("failed", failed)?;
    let (inverses, _inverses) = factored.inverses.device_ptr_mut(device.stream());
    let (pivots, _pivots) = factored.pivots.device_ptr_mut(device.stream());
    let (matrix, inverses) = operands(h, inverses, stride, n);
    let batch = Batch { device, matrix, inverses, failed, n, batch };
    // SAFETY: all of it is memory of this device, of the sizes that were checked or made above, and borrowed until everything is
    // enqueued.
    unsafe { batch.factor(0..n.div_ceil(WIDTH), pivots) }
}

/// V → U = V⁻¹, H⁻¹ = Uᵀ·U, for a batch of factors, in place.
///
/// `factors` [batch · n, n]: only the upper triangles are read and written. `inverses` from [`factor`] or
/// [`factor_diagonals`], `failed` i32 `[batch]`: matrices with an entry that is not zero are left alone. The same factors give the
/// same bits.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or another buffer is too short; [`Error::OtherDevice`]; or what the driver says.
pub fn invert(
    device: &Device,
    factors: &mut MatrixMut<'_, f32>,
    inverses: &CudaSlice<f32>,
    batch: usize,
    failed: &CudaSlice<i32>,
) -> Result<(), Error> {
    let n = size("factors", factors, batch)?;
    check_length("inverses", inverses.len(), inverses_length(n, batch))?;
    check_length("failed", failed.len(), batch)?;
    if n == 0 || batch == 0 {
        return Ok(());
    }
    let stride = factors.stride();
    let (v, _writing) = device.address_mut("factors", &mut factors.data)?;
    let (inverses, _inverses) = device.address("inverses", inverses)?;
    let (failed, _failed) = device.address("failed", failed)?;
    let (matrix, inverses) = operands(v, inverses, stride, n);
    let blocks = n.div_ceil(WIDTH);
    let grid = (blocks as u32, 1, batch as u32);
    let batch = Batch { device, matrix, inverses, failed, n, batch };
    // SAFETY: all of it is memory of this device, of the sizes that were checked, and borrowed until everything is enqueued.
    unsafe { batch.invert(0..blocks) }?;
    let n = n as u32;
    // SAFETY: the arguments of the kernel, and likewise.
    unsafe {
        let arguments = arguments![matrix.address, inverses.address, failed, matrix.stride, matrix.batch_stride, n];
        device.launch(&BLOCK_PLACE, grid, arguments)
    }
}

/// U_kk = V_kk⁻¹ of every block on the diagonal of a batch of factors, as in [`Factored::inverses`], in one launch.
///
/// `factors` [batch · n, n], which is not changed; `failed` i32 `[batch]`: matrices with an entry that is not zero are left out.
///
/// # Errors
/// As [`invert`].
pub fn factor_diagonals(
    device: &Device,
    factors: &MatrixMut<'_, f32>,
    batch: usize,
    failed: &CudaSlice<i32>,
) -> Result<CudaSlice<f32>, Error> {
    let n = size("factors", factors, batch)?;
    check_length("failed", failed.len(), batch)?;
    let mut inverses = device.scratch::<f32>(inverses_length(n, batch).max(1))?;
    {
        let (v, _reading) = device.address("factors", &factors.data)?;
        let (u, _writing) = inverses.device_ptr_mut(device.stream());
        let (failed, _failed) = device.address("failed", failed)?;
        let (matrix, _) = operands(v, u, factors.stride(), n);
        let grid = (n.div_ceil(WIDTH) as u32, 1, batch as u32);
        let n = n as u32;
        // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked or made above.
        unsafe {
            device.launch(&BLOCK_INVERT, grid, arguments![v, u, failed, matrix.stride, matrix.batch_stride, n])?;
        }
    }
    Ok(inverses)
}

/// Squares of an upper triangle, for the kernels that mirror it.
fn squares(n: usize) -> Result<u32, Error> {
    let across = n.div_ceil(SQUARE as usize) as u64;
    blocks(across * (across + 1) / 2, 1)
}

/// Copies each matrix's upper triangle to below its diagonal, where [`factor`] and [`invert`] leave it alone, and its diagonal
/// to a vector f32 [batch, n], which is returned: [`restore`] needs no other copy of H.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices; [`Error::OtherDevice`]; or what the driver says.
pub fn save(device: &Device, hessians: &mut MatrixMut<'_, f32>, batch: usize) -> Result<CudaSlice<f32>, Error> {
    let n = size("hessians", hessians, batch)?;
    let mut diagonals = device.scratch::<f32>((batch * n).max(1))?;
    {
        let stride = hessians.stride() as u64;
        let batch_stride = stride * n as u64;
        let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
        let (diagonals, _diagonals) = diagonals.device_ptr_mut(device.stream());
        let (grid, n) = ((squares(n)?, 1, batch as u32), n as u32);
        // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked or made above.
        unsafe { device.launch(&SAVE, grid, arguments![h, diagonals, stride, batch_stride, n])? };
    }
    Ok(diagonals)
}

/// Puts back what [`save`] kept, with `added` on the diagonal (f32 `[batch]`), for every matrix whose entry in `failed` is positive.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or another buffer is too short; [`Error::OtherDevice`]; or what the driver says.
pub fn restore(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    diagonals: &CudaSlice<f32>,
    added: &CudaSlice<f32>,
    failed: &CudaSlice<i32>,
) -> Result<(), Error> {
    let n = size("hessians", hessians, batch)?;
    check_length("diagonals", diagonals.len(), batch * n)?;
    check_length("added", added.len(), batch)?;
    check_length("failed", failed.len(), batch)?;
    let stride = hessians.stride() as u64;
    let batch_stride = stride * n as u64;
    let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
    let (diagonals, _diagonals) = device.address("diagonals", diagonals)?;
    let (added, _added) = device.address("added", added)?;
    let (failed, _failed) = failed.device_ptr(device.stream());
    let (grid, n) = ((squares(n)?, 1, batch as u32), n as u32);
    // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked.
    unsafe { device.launch(&RESTORE, grid, arguments![h, diagonals, added, failed, stride, batch_stride, n]) }
}

/// [`factor`] for Hessians that [`crate::prepare`] damped: where a pivot is not positive, the damping is multiplied by ten, at
/// most [`RAISES`] times, each time from the original H, which is kept below the diagonal. Returns beside the rest how often that
/// was done for each matrix. `prepared.failed` tells which have no factor even so. Waits for the work.
///
/// # Errors
/// As [`factor`].
pub fn factor_damped(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    prepared: &mut Prepared,
) -> Result<(Factored, Vec<u32>), Error> {
    if hessians.columns() == 0 || batch == 0 {
        return Ok((factor(device, hessians, batch, &mut prepared.failed)?, vec![0; batch]));
    }
    let diagonals = save(device, hessians, batch)?;
    let mut factored = factor(device, hessians, batch, &mut prepared.failed)?;
    let summaries = device.download(&prepared.summaries)?;
    let mut raises = vec![0; batch];
    for _ in 0..RAISES {
        let mut failed = device.download(&prepared.failed)?;
        // No damping helps a diagonal that is not finite: those keep their entry, and are skipped as those are that are done.
        let again: Vec<bool> =
            failed.iter().zip(&summaries).map(|(&failed, summary)| failed > 0 && summary.not_finite < 0).collect();
        if !again.contains(&true) {
            break;
        }
        let mut added = vec![0.0; batch];
        for (matrix, _) in again.iter().enumerate().filter(|&(_, &again)| again) {
            raises[matrix] += 1;
            // damp is in the diagonal already.
            added[matrix] = summaries[matrix].damp * (10f32.powi(raises[matrix] as i32) - 1.0);
        }
        let marks: Vec<i32> = again.iter().map(|&again| i32::from(again)).collect();
        restore(device, hessians, batch, &diagonals, &device.upload(&added)?, &device.upload(&marks)?)?;
        let skipped: Vec<i32> = marks.iter().map(|mark| mark - 1).collect();
        let mut attempt = device.upload(&skipped)?;
        factor_into(device, hessians, batch, &mut attempt, &mut factored)?;
        let attempt = device.download(&attempt)?;
        failed.iter_mut().zip(attempt).zip(again).filter(|(_, again)| *again).for_each(|((old, new), _)| *old = new);
        prepared.failed = device.upload(&failed)?;
    }
    Ok((factored, raises))
}

// One tile spans the depth of a product with U_kk.
const _: () = assert!(WIDTH == crate::module::TILE as usize);
