//! The recursions of the factorization and of the inverse over blocks of 128 columns, as launches.

use crate::Error;
use crate::device::{Device, arguments, blocks};
use crate::module::{
    Entry, FACTOR_CHOLESKY, FACTOR_DIVIDE_ROWS, FACTOR_DIVIDE_SHARED, FACTOR_INVERT, FACTOR_SHARED,
    FACTOR_SUBTRACT_SHARED, FACTOR_SUBTRACT_TILE, FACTOR_THREADS, PANEL, TILE,
};
use crate::product::{Entries, Operand, Product, Region};
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
pub(super) const WIDTH: usize = PANEL as usize;

/// Up to this square of the number of blocks, over the batch, blocks are factored one by one, with products as deep as
/// a block: 16 blocks of one matrix. What they read and write stays in L2, each step is three short launches, and its
/// products are at most two rounds of thin tiles for an A100. A model of the launches has n = 4096 at 1.8 ms with 256,
/// at 2.2 with 64.
const ONE_BY_ONE: usize = 256;

/// A batch of square matrices in one buffer, checked and ready for launches.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) device: &'a Device,
    pub(super) matrix: Operand,
    /// U_kk: a row every [`WIDTH`], all blocks of a matrix one after the other.
    pub(super) inverses: Operand,
    pub(super) failed: u64,
    pub(super) n: usize,
    pub(super) batch: usize,
}

/// The matrices of `address` with their inverses at `inverses`.
pub(super) fn operands(address: u64, inverses: u64, stride: usize, n: usize) -> (Operand, Operand) {
    let (stride, blocks, width) = (stride as u64, n.div_ceil(WIDTH) as u64, WIDTH as u64);
    (
        Operand { address, stride, batch_stride: stride * n as u64 },
        Operand { address: inverses, stride: width, batch_stride: blocks * width * width },
    )
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
    /// All addresses are memory of the device, as large as the shapes say, that lives until the work is done; `pivots`
    /// likewise, f32 `[batch]`.
    pub(super) unsafe fn factor(&self, range: Range<usize>, pivots: u64) -> Result<(), Error> {
        if range.len() == 1 || range.len().pow(2) * self.batch <= ONE_BY_ONE {
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
        // SAFETY: the caller's promise. X is its own result: a thread block reads its rows wholly before it writes
        // them, and no other's.
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
        // SAFETY: the caller's promise. The product writes [rows, head] and reads [rows, tail] and [head, tail]; rows
        // lie before the range.
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
    pub(super) unsafe fn invert(&self, range: Range<usize>) -> Result<(), Error> {
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
            // SAFETY: the caller's promise. B is its own result: with a single tile of rows, the thread block that
            // writes a tile is the only one to read it; so short a depth is not split.
            return unsafe {
                self.product(&MULTIPLY, [b, self.inverse(range.start), b], &range, columns, &range, -1.0, 0.0)
            };
        }
        let (head, tail) = halves(&range);
        let (q, below) = (self.at(head.start, tail.start), self.at(tail.start, columns.start));
        // SAFETY: the caller's promise. The product writes [head, columns] and reads [head, tail] and [tail, columns];
        // columns lie after the range.
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
        // SAFETY: the caller's promise. The product writes [rows, tail] and reads [rows, head] and [head, tail]; rows
        // lie before the range.
        unsafe {
            self.multiply_right(rows, tail.clone())?;
            self.product(&MULTIPLY, [right, b, q], rows, &tail, &head, 1.0, 1.0)?;
            self.multiply_right(rows, head)
        }
    }
}

// One tile spans the depth of a product with U_kk.
const _: () = assert!(WIDTH == TILE as usize);
