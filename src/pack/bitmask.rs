//! Any mask as bits, with the values that it keeps: `kernels/pack_bitmask.cu`.

use super::{Element, check_keep};
use crate::device::{Device, arguments, blocks};
use crate::module::{BITMASK_MOST_VECTORS, Entry, PACK_BITMASK, PACK_THREADS, REDUCE_THREADS};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

const KEEP: Entry = Entry::new(&PACK_BITMASK, "pack_bitmask_keep", PACK_THREADS, 0);
const OFFSETS: Entry = Entry::new(&PACK_BITMASK, "pack_bitmask_offsets", REDUCE_THREADS, 0);

/// Rows of a thread block: a warp each.
const ROWS: u32 = PACK_THREADS / 32;

const fn entry(name: &'static str) -> Entry {
    Entry::new(&PACK_BITMASK, name, PACK_THREADS, 0)
}

/// A weight [rows, columns] as a bit for each of its numbers and those that are kept: at half of 16-bit weights, 9/16 of the
/// memory, and of the time of a product with one vector.
#[derive(Debug)]
pub struct Bitmask<T> {
    rows: usize,
    columns: usize,
    kept: usize,
    bits: CudaSlice<u32>,
    offsets: CudaSlice<u64>,
    values: CudaSlice<T>,
}

impl<T> Bitmask<T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How many numbers are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// u32 [rows, ⌈columns / 32⌉]: bit `j % 32` of word `j / 32` of a row says whether column j is kept; beyond the columns 0.
    pub fn bits(&self) -> &CudaSlice<u32> {
        &self.bits
    }

    /// u64 [rows + 1]: where the values of each row begin, and behind the last one their number.
    pub fn offsets(&self) -> &CudaSlice<u64> {
        &self.offsets
    }

    /// What is kept, row by row in order of columns. The first [`Bitmask::kept`] are meant.
    pub fn values(&self) -> &CudaSlice<T> {
        &self.values
    }
}

/// Packs `weight` Q [rows, columns]: what `keep`, u32 [rows, ⌈columns / 32⌉], has a bit for (`j % 32` of word `j / 32`), be it
/// zero, or without a mask all that is neither 0 nor −0. Waits for the number of values, before it makes room for them.
///
/// # Errors
/// [`Error::Shape`] if the mask is not of the weight's shape; [`Error::OtherDevice`], [`Error::OutOfMemory`]; or what the
/// driver says.
pub fn pack_bitmask<T: Element>(
    device: &Device,
    weight: &MatrixRef<'_, T>,
    keep: Option<&MatrixRef<'_, u32>>,
) -> Result<Bitmask<T>, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    check_keep(keep, rows, columns)?;
    let [find, collect, _] = T::PACK.map(entry);
    let words = columns.div_ceil(32);
    let mut bits = device.scratch::<u32>((rows * words).max(1))?;
    let mut offsets = device.scratch::<u64>(rows + 1)?;
    let grid = (blocks(rows as u64, ROWS)?, 1, 1);
    let (own_rows, own_columns, stride) = (rows as u32, columns as u32, weight.stride() as u64);
    let (w, _reading) = device.address("weight", &weight.data)?;
    {
        let mut counts = device.scratch::<u32>(rows.max(1))?;
        let (bits, _bits) = bits.device_ptr_mut(device.stream());
        let (counts, _counts) = counts.device_ptr_mut(device.stream());
        let (offsets, _offsets) = offsets.device_ptr_mut(device.stream());
        match keep {
            Some(keep) => {
                let keep_stride = keep.stride() as u64;
                let (keep, _keep) = device.address("keep", &keep.data)?;
                // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say.
                unsafe {
                    let arguments = arguments![keep, bits, counts, keep_stride, own_rows, own_columns];
                    device.launch(&KEEP, grid, arguments)?;
                }
            }
            // SAFETY: likewise.
            None => unsafe {
                device.launch(&find, grid, arguments![w, bits, counts, stride, own_rows, own_columns])?;
            },
        }
        // SAFETY: likewise.
        unsafe { device.launch(&OFFSETS, (1, 1, 1), arguments![counts, offsets, own_rows]) }?;
    }
    let kept = device.download(&offsets.slice(rows..))?.first().map_or(0, |&kept| kept as usize);
    let mut values = device.scratch::<T>(kept.max(1))?;
    {
        let (bits, _bits) = bits.device_ptr(device.stream());
        let (offsets, _offsets) = offsets.device_ptr(device.stream());
        let (values, _values) = values.device_ptr_mut(device.stream());
        // SAFETY: likewise; there are as many values as the offsets count.
        unsafe {
            device.launch(&collect, grid, arguments![w, bits, offsets, values, stride, own_rows, own_columns])?;
        }
    }
    Ok(Bitmask { rows, columns, kept, bits, offsets, values })
}

/// Writes all of `weight` [rows, columns]: what was kept, bit by bit, and zeros.
///
/// # Errors
/// [`Error::Shape`] if the weight is of another shape; [`Error::OtherDevice`]; or what the driver says.
pub fn unpack_bitmask<T: Element>(
    device: &Device,
    packed: &Bitmask<T>,
    weight: &mut MatrixMut<'_, T>,
) -> Result<(), Error> {
    let Bitmask { rows, columns, .. } = *packed;
    if (weight.rows(), weight.columns()) != (rows, columns) {
        return Err(Error::shape("weight", weight.shape(), format!("[{rows}, {columns}]")));
    }
    let stride = weight.stride() as u64;
    let (bits, _bits) = device.address("packed", &packed.bits)?;
    let (offsets, _offsets) = device.address("packed", &packed.offsets)?;
    let (values, _values) = device.address("packed", &packed.values)?;
    let (w, _writing) = device.address_mut("weight", &mut weight.data)?;
    let grid = (blocks(rows as u64, ROWS)?, 1, 1);
    let (rows, columns) = (rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say.
    unsafe { device.launch(&entry(T::PACK[2]), grid, arguments![bits, offsets, values, w, stride, rows, columns]) }
}

/// Y = X · Qᵀ for one to eight vectors: `inputs` X [vectors, columns], `outputs` Y [vectors, rows]. Sums in f32, in an order
/// that depends on the shape and on the number of vectors only; what is dropped is not multiplied, not even with an infinity.
///
/// # Errors
/// [`Error::Shape`] if there are more vectors, or shapes do not fit; [`Error::OtherDevice`]; or what the driver says.
pub fn multiply_bitmask<T: Element>(
    device: &Device,
    packed: &Bitmask<T>,
    inputs: &MatrixRef<'_, T>,
    outputs: &mut MatrixMut<'_, T>,
) -> Result<(), Error> {
    let Bitmask { rows, columns, .. } = *packed;
    let vectors = inputs.rows();
    if inputs.columns() != columns || vectors > BITMASK_MOST_VECTORS as usize {
        let expected = format!("[at most {BITMASK_MOST_VECTORS}, {columns}]");
        return Err(Error::shape("inputs", inputs.shape(), expected));
    }
    if (outputs.rows(), outputs.columns()) != (vectors, rows) {
        return Err(Error::shape("outputs", outputs.shape(), format!("[{vectors}, {rows}]")));
    }
    let (input_stride, output_stride) = (inputs.stride() as u64, outputs.stride() as u64);
    let (bits, _bits) = device.address("packed", &packed.bits)?;
    let (offsets, _offsets) = device.address("packed", &packed.offsets)?;
    let (values, _values) = device.address("packed", &packed.values)?;
    let (x, _reading) = device.address("inputs", &inputs.data)?;
    let (y, _writing) = device.address_mut("outputs", &mut outputs.data)?;
    let size = size_of::<T>() as u64;
    let is_aligned = x.is_multiple_of(8) && (vectors == 1 || (input_stride * size).is_multiple_of(8));
    let [one, two, four, eight, any] = T::MULTIPLY.map(entry);
    let (entry, each) = match (is_aligned, vectors) {
        (false, _) => (any, 1),
        (true, ..=1) => (one, 1),
        (true, 2) => (two, 2),
        (true, ..=4) => (four, 4),
        (true, _) => (eight, 8),
    };
    let grid = (blocks(rows as u64, ROWS)?, 1, 1);
    let (rows, columns) = (rows as u32, columns as u32);
    for first in (0..vectors as u64).step_by(each) {
        let (x, y) = (x + first * input_stride * size, y + first * output_stride * size);
        let vectors = each.min(vectors - first as usize) as u32;
        // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say. Values were
        // allocated on their own, at a multiple of 256 bytes.
        unsafe {
            let strides = (input_stride, output_stride);
            let arguments = arguments![bits, offsets, values, x, y, strides.0, strides.1, rows, columns, vectors];
            device.launch(&entry, grid, arguments)?;
        }
    }
    Ok(())
}
