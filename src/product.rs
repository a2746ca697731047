//! `kernels/product.cuh` from the host: operands, splits, and the launch of an f32 product.

use crate::device::{Device, arguments, blocks};
use crate::error::Error;
use crate::module::{Entry, FLAT_THREADS, PRODUCT_DEPTH, PRODUCT_SHARED, PRODUCT_THREADS, Source, TILE};
use cudarc::driver::DevicePtrMut;
pub(crate) use roofline::room::{RESIDENT, splits};

/// As in product.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Operand {
    /// Where element (0, 0) of the first matrix is; on the device that the product runs on.
    pub(crate) address: u64,
    /// Elements from row to row.
    pub(crate) stride: u64,
    /// Elements from matrix to matrix.
    pub(crate) batch_stride: u64,
}

impl Operand {
    /// The part that begins at (row, column).
    pub(crate) fn at(self, row: usize, column: usize) -> Self {
        let elements = row as u64 * self.stride + column as u64;
        Self { address: self.address + elements * size_of::<f32>() as u64, ..self }
    }

    /// Whether every row begins at a multiple of 16 bytes.
    pub(crate) fn is_aligned(self) -> bool {
        self.address.is_multiple_of(16) && self.stride.is_multiple_of(4) && self.batch_stride.is_multiple_of(4)
    }
}

/// As in product.cuh.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Parameters {
    a: Operand,
    b: Operand,
    c: Operand,
    partial: u64,
    failed: u64,
    rows: u32,
    columns: u32,
    depth: u32,
    splits: u32,
    alpha: f32,
    beta: f32,
}

/// Which part of C is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    Full,
    Upper,
}

/// The entries of one kind of product.
#[derive(Debug)]
pub(crate) struct Entries {
    region: Region,
    aligned: Entry,
    any: Entry,
    sum: Entry,
}

impl Entries {
    /// `aligned` and `any` from the macro `PRODUCT`, `sum` for the same region.
    pub(crate) const fn new(
        source: &'static Source,
        region: Region,
        aligned: &'static str,
        any: &'static str,
        sum: &'static str,
    ) -> Self {
        Self {
            region,
            aligned: Entry::new(source, aligned, PRODUCT_THREADS, PRODUCT_SHARED),
            any: Entry::new(source, any, PRODUCT_THREADS, PRODUCT_SHARED),
            sum: Entry::new(source, sum, FLAT_THREADS, 0),
        }
    }
}

/// C ← β · C + α · A · B for a batch of matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    pub(crate) batch: usize,
    /// Address of i32 `[batch]`, non-zero for matrices to leave alone; 0 for none.
    pub(crate) failed: u64,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
}

/// How many tiles a result of this shape has.
pub(crate) fn tiles(region: Region, rows: usize, columns: usize) -> u64 {
    let across = |count: usize| count.div_ceil(TILE as usize) as u64;
    match region {
        Region::Full => across(rows) * across(columns),
        Region::Upper => across(columns) * (across(columns) + 1) / 2,
    }
}

impl Product {
    /// What the kernels are given.
    pub(crate) fn parameters(self, partial: u64, splits: u32) -> Parameters {
        let Self { a, b, c, failed, alpha, beta, .. } = self;
        let [rows, columns, depth] = [self.rows, self.columns, self.depth].map(|count| count as u32);
        Parameters { a, b, c, partial, failed, rows, columns, depth, splits, alpha, beta }
    }

    /// Enqueues the product.
    ///
    /// # Safety
    /// The operands must be memory of the device that lives until the work is done. C may be A or B only where every
    /// tile of C is read by the thread block alone that writes it.
    pub(crate) unsafe fn launch(self, device: &Device, entries: &Entries) -> Result<(), Error> {
        let Self { a, b, c, rows, columns, depth, batch, .. } = self;
        let tiles = tiles(entries.region, rows, columns) * u64::from(rows > 0);
        let splits = splits(tiles * batch as u64, depth.div_ceil(PRODUCT_DEPTH as usize) as u32);
        let partial_size = rows * columns.next_multiple_of(4);
        let mut partial = match splits {
            1 => None,
            _ => Some(device.scratch::<f32>(splits as usize * batch * partial_size)?),
        };
        let (partial, _guard) = match &mut partial {
            Some(partial) => {
                let (address, guard) = partial.device_ptr_mut(device.stream());
                (address, Some(guard))
            }
            None => (0, None),
        };
        let parameters = self.parameters(partial, splits);
        let entry = if [a, b, c].into_iter().all(Operand::is_aligned) { &entries.aligned } else { &entries.any };
        let grid = (blocks(tiles, 1)?, splits, batch as u32);
        // SAFETY: the kernel's only argument, and the caller's promise about what it points to.
        unsafe { device.launch(entry, grid, arguments![parameters]) }?;
        if splits > 1 {
            let grid = (blocks(partial_size as u64, FLAT_THREADS)?, 1, batch as u32);
            // SAFETY: likewise.
            unsafe { device.launch(&entries.sum, grid, arguments![parameters]) }?;
        }
        Ok(())
    }
}
