//! Hessian accumulation, dead columns and damping: `kernels/hessian_accumulate.cu`.

use crate::device::{Device, arguments, blocks};
use crate::module::{Entry, FLAT_THREADS, HESSIAN_ACCUMULATE, HESSIAN_SHARED, HESSIAN_THREADS, REDUCE_THREADS, TILE};
use crate::product::{Entries, Operand, Product, Region, splits, tiles};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, DevicePtrMut, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

const F32: Entries = Entries::new(
    &HESSIAN_ACCUMULATE,
    Region::Upper,
    "hessian_accumulate_f32",
    "hessian_accumulate_f32_any",
    "hessian_sum_f32",
);
const SUM: Entry = Entry::new(&HESSIAN_ACCUMULATE, "hessian_sum_f32", FLAT_THREADS, 0);
const PREPARE: Entry = Entry::new(&HESSIAN_ACCUMULATE, "hessian_prepare_f32", REDUCE_THREADS, 0);

/// Tokens of a slab, as in the kernel.
const SLAB_TOKENS: u32 = 32;

/// What inputs may be made of.
pub trait Input: DeviceRepr + sealed::Sealed {}

impl Input for f16 {}
impl Input for bf16 {}
impl Input for f32 {}

mod sealed {
    use super::*;

    /// The kernels for a type: for rows that begin at multiples of 16 bytes, and for all. `None` for f32, which goes
    /// through the product.
    pub trait Sealed {
        const ENTRIES: Option<[&'static str; 2]>;
    }

    impl Sealed for f16 {
        const ENTRIES: Option<[&'static str; 2]> = Some(["hessian_accumulate_f16", "hessian_accumulate_f16_any"]);
    }

    impl Sealed for bf16 {
        const ENTRIES: Option<[&'static str; 2]> = Some(["hessian_accumulate_bf16", "hessian_accumulate_bf16_any"]);
    }

    impl Sealed for f32 {
        const ENTRIES: Option<[&'static str; 2]> = None;
    }
}

/// H ← β · H + α · XᵀX, of which only the upper triangle is read and written.
///
/// `inputs` X [tokens, columns]; `hessian` H [columns, columns]. With β = 0 nothing of H is read. α = β = 1 sums over calls;
/// α = 1 / (n + tokens), β = n / (n + tokens) keeps the mean over the n tokens so far and these. The same arguments give
/// the same bits.
///
/// # Errors
/// [`Error::Shape`] if H is not [columns, columns]; [`Error::OtherDevice`]; or what the driver says.
pub fn accumulate<T: Input>(
    device: &Device,
    inputs: &MatrixRef<'_, T>,
    hessian: &mut MatrixMut<'_, f32>,
    alpha: f32,
    beta: f32,
) -> Result<(), Error> {
    let (tokens, columns) = (inputs.rows(), inputs.columns());
    if (hessian.rows(), hessian.columns()) != (columns, columns) {
        return Err(Error::shape(
            "hessian",
            hessian.shape(),
            format!("[{columns}, {columns}] for inputs {}", inputs.shape()),
        ));
    }
    let (input_stride, hessian_stride) = (inputs.stride() as u64, hessian.stride() as u64);
    let (x, _reading) = device.address("inputs", &inputs.data)?;
    let (h, _writing) = device.address_mut("hessian", &mut hessian.data)?;
    let inputs = Operand { address: x, stride: input_stride, batch_stride: 0 };
    let hessian = Operand { address: h, stride: hessian_stride, batch_stride: 0 };
    let whole = Product {
        a: inputs,
        b: inputs,
        c: hessian,
        rows: columns,
        columns,
        depth: tokens,
        batch: 1,
        failed: 0,
        alpha,
        beta,
    };
    let Some([aligned, any]) = T::ENTRIES else {
        // SAFETY: X and H are of this device, borrowed until everything is enqueued, and not the same memory.
        return unsafe { whole.launch(device, &F32) };
    };

    let is_aligned = x.is_multiple_of(16)
        && input_stride.is_multiple_of(8)
        && h.is_multiple_of(16)
        && hessian_stride.is_multiple_of(4);
    let entry =
        Entry::new(&HESSIAN_ACCUMULATE, if is_aligned { aligned } else { any }, HESSIAN_THREADS, HESSIAN_SHARED);
    let tiles = tiles(Region::Upper, columns, columns);
    let splits = splits(tiles, tokens.div_ceil(SLAB_TOKENS as usize) as u32);
    let partial_size = columns * columns.next_multiple_of(4);
    let mut partial = device.scratch::<f32>(if splits > 1 { splits as usize * partial_size } else { 1 })?;
    let (partial, _guard) = partial.device_ptr_mut(device.stream());
    let grid = (blocks(tiles, 1)?, splits, 1);
    let (tokens, columns) = (tokens as u32, columns as u32);
    // SAFETY: the arguments of `HESSIAN` in the kernel's file. X and H are of this device, borrowed until everything is
    // enqueued, and their views are as large as their shapes and strides say; so is `partial`.
    unsafe {
        let arguments = arguments![x, h, partial, input_stride, hessian_stride, tokens, columns, splits, alpha, beta];
        device.launch(&entry, grid, arguments)?;
    }
    if splits > 1 {
        let parameters = whole.parameters(partial, splits);
        // SAFETY: the kernel's only argument; the memory is that of the launch before.
        unsafe { device.launch(&SUM, (blocks(partial_size as u64, FLAT_THREADS)?, 1, 1), arguments![parameters]) }?;
    }
    Ok(())
}

/// What preparing a Hessian found out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Summary {
    /// Mean of the diagonal, dead columns counting as one.
    pub mean: f32,
    /// What was added to the diagonal: `damping · mean`.
    pub damp: f32,
    /// How many columns no input ever touched.
    pub dead_columns: i32,
    /// The first column whose diagonal is not a finite number, or −1. Such a Hessian is left as it was.
    pub not_finite: i32,
}

// SAFETY: plain numbers, laid out as in C, for which all zeros is a value.
unsafe impl DeviceRepr for Summary {}
// SAFETY: likewise.
unsafe impl ValidAsZeroBits for Summary {}

/// What [`prepare`] leaves beside the Hessians.
#[derive(Debug)]
pub struct Prepared {
    /// u8 [batch, columns]: 1 for a dead column.
    pub dead: CudaSlice<u8>,
    /// One for each matrix.
    pub summaries: CudaSlice<Summary>,
    /// i32 `[batch]`: 0, or 1 + the column in which a matrix failed. [`crate::factor()`] goes on with it.
    pub failed: CudaSlice<i32>,
}

/// Dead columns and damping, for a batch of Hessians that follow each other in one buffer, in place: H_jj ← 1 where it is
/// zero, then H_jj ← H_jj + damping · mean(diag H).
///
/// `hessians` [batch · columns, columns].
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices; [`Error::OtherDevice`]; or what the driver says. A diagonal that is not finite is no
/// error here: its matrix is marked as failed.
pub fn prepare(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    damping: f32,
) -> Result<Prepared, Error> {
    let columns = hessians.columns();
    if batch.checked_mul(columns) != Some(hessians.rows()) {
        return Err(Error::shape("hessians", hessians.shape(), format!("[{batch} · {columns}, {columns}]")));
    }
    let mut dead = device.scratch::<u8>((batch * columns).max(1))?;
    let mut summaries = device.scratch::<Summary>(batch.max(1))?;
    let mut failed = device.scratch::<i32>(batch.max(1))?;
    {
        let stride = hessians.stride() as u64;
        let batch_stride = stride * columns as u64;
        let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
        let (dead, _dead) = dead.device_ptr_mut(device.stream());
        let (summaries, _summaries) = summaries.device_ptr_mut(device.stream());
        let (failed, _failed) = failed.device_ptr_mut(device.stream());
        let columns = columns as u32;
        // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say.
        unsafe {
            let arguments = arguments![h, dead, summaries, failed, stride, batch_stride, columns, damping];
            device.launch(&PREPARE, (batch as u32, 1, 1), arguments)?;
        }
    }
    Ok(Prepared { dead, summaries, failed })
}

// The tile of the 16-bit kernel and that of the product, whose counts `tiles` gives, are one.
const _: () = assert!(TILE == 128);
