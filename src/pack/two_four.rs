//! 2:4 weights in the form that `mma.sp` reads: `kernels/pack_two_four.cu`.

use super::check_keep;
use crate::device::{Device, arguments, blocks};
use crate::module::{
    Entry, PACK_THREADS, PACK_TWO_FOUR, TWO_FOUR_NARROW_ROWS, TWO_FOUR_NARROW_SHARED, TWO_FOUR_NARROW_THREADS,
    TWO_FOUR_NARROW_TOKENS, TWO_FOUR_PAD, TWO_FOUR_ROWS, TWO_FOUR_SHARED, TWO_FOUR_THREADS, TWO_FOUR_TOKENS,
};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, DevicePtrMut, DeviceRepr};
use half::{bf16, f16};

const fn packing(name: &'static str) -> Entry {
    Entry::new(&PACK_TWO_FOUR, name, PACK_THREADS, 0)
}

const PACK: [Entry; 2] = [packing("pack_two_four_pack"), packing("pack_two_four_pack_any")];
const UNPACK: [Entry; 2] = [packing("pack_two_four_unpack"), packing("pack_two_four_unpack_any")];

const PAD: usize = TWO_FOUR_PAD as usize;

/// From as many wide tiles on, those are faster. A wide tile takes 1024 cycles of a multiprocessor for 64 columns, whether
/// others have one or not; the 16 narrow ones that do the same, 8 KiB each at 47 bytes a cycle from L2, take 26 cycles of the
/// 108 of an A100. Both add up in the same order: this is not seen in the result.
const FEWEST_WIDE: u64 = 40;

/// What 2:4 weights and their inputs may be made of: f16, bf16.
pub trait TwoFourInput: DeviceRepr + sealed::Sealed {}

impl TwoFourInput for f16 {}
impl TwoFourInput for bf16 {}

/// What a product of 2:4 weights of type `T` may be written as: `T` or f32.
pub trait TwoFourOutput<T>: DeviceRepr + sealed::Output<T> {}

impl<T: TwoFourInput> TwoFourOutput<T> for f32 where f32: sealed::Output<T> {}
impl TwoFourOutput<f16> for f16 {}
impl TwoFourOutput<bf16> for bf16 {}

mod sealed {
    use super::*;

    pub trait Sealed {}

    impl Sealed for f16 {}
    impl Sealed for bf16 {}

    /// Products for many tokens, for few, and for every stride.
    pub trait Output<T> {
        const MULTIPLY: [&'static str; 3];
    }

    macro_rules! names {
        ($input:ty, $output:ty, $name:literal) => {
            impl Output<$input> for $output {
                const MULTIPLY: [&'static str; 3] = [
                    concat!("pack_two_four_multiply_", $name),
                    concat!("pack_two_four_multiply_", $name, "_narrow"),
                    concat!("pack_two_four_multiply_", $name, "_any"),
                ];
            }
        };
    }

    names!(f16, f16, "f16");
    names!(f16, f32, "f16_f32");
    names!(bf16, bf16, "bf16");
    names!(bf16, f32, "bf16_f32");
}

/// A weight [rows, columns] of which at most two of every four consecutive columns are kept, as values and metadata: 9/16 of
/// the memory. The kernel's file has a picture. R and C are rows and columns up to multiples of 64.
#[derive(Debug)]
pub struct TwoFour<T> {
    rows: usize,
    columns: usize,
    values: CudaSlice<T>,
    metadata: CudaSlice<u32>,
}

impl<T> TwoFour<T> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// [R, C / 2]: two numbers of every four columns, in order; zeros where fewer are kept.
    pub fn values(&self) -> &CudaSlice<T> {
        &self.values
    }

    /// u32 [R / 64, C / 64, 32, 4]: for every 64 × 64 numbers, 16 bytes for each lane of a warp.
    pub fn metadata(&self) -> &CudaSlice<u32> {
        &self.metadata
    }
}

/// Packs `weight` W [rows, columns]: what `keep`, u32 [rows, ⌈columns / 32⌉], has a bit for (`j % 32` of word `j / 32`), be it
/// zero, or without a mask all that is neither 0 nor −0. Waits until it is known that no group keeps more than two.
///
/// # Errors
/// [`Error::NotTwoFour`] with the first group that keeps more than two; [`Error::Shape`] if the mask is not of the weight's
/// shape; [`Error::OtherDevice`], [`Error::OutOfMemory`]; or what the driver says.
pub fn pack_two_four<T: TwoFourInput>(
    device: &Device,
    weight: &MatrixRef<'_, T>,
    keep: Option<&MatrixRef<'_, u32>>,
) -> Result<TwoFour<T>, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    check_keep(keep, rows, columns)?;
    let parts = rows.div_ceil(PAD) * columns.div_ceil(PAD);
    let mut values = device.scratch::<T>((parts * PAD * PAD / 2).max(1))?;
    let mut metadata = device.scratch::<u32>((parts * 128).max(1))?;
    let mut crowded = device.upload(&[u64::MAX])?;
    {
        let (stride, keep_stride) = (weight.stride() as u64, keep.map_or(0, MatrixRef::stride) as u64);
        let (w, _reading) = device.address("weight", &weight.data)?;
        let (keep, _keep) = match keep {
            Some(keep) => {
                let (address, guard) = device.address("keep", &keep.data)?;
                (address, Some(guard))
            }
            None => (0, None),
        };
        let (values, _values) = values.device_ptr_mut(device.stream());
        let (metadata, _metadata) = metadata.device_ptr_mut(device.stream());
        let (crowded, _crowded) = crowded.device_ptr_mut(device.stream());
        let is_aligned = w.is_multiple_of(16) && stride.is_multiple_of(8);
        let grid = (blocks(parts as u64, PACK_THREADS / 32)?, 1, 1);
        let (rows, columns) = (rows as u32, columns as u32);
        // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say. Numbers of 16
        // bits are taken as such.
        unsafe {
            let arguments = arguments![w, keep, values, metadata, crowded, stride, keep_stride, rows, columns];
            device.launch(&PACK[usize::from(!is_aligned)], grid, arguments)?;
        }
    }
    match device.download(&crowded)?.first() {
        Some(&first) if first != u64::MAX => {
            Err(Error::NotTwoFour { row: (first >> 32) as usize, group: (first & u64::from(u32::MAX)) as usize })
        }
        _ => Ok(TwoFour { rows, columns, values, metadata }),
    }
}

/// Writes all of `weight` [rows, columns]: what was kept, bit by bit, and zeros.
///
/// # Errors
/// [`Error::Shape`] if the weight is of another shape; [`Error::OtherDevice`]; or what the driver says.
pub fn unpack_two_four<T: TwoFourInput>(
    device: &Device,
    packed: &TwoFour<T>,
    weight: &mut MatrixMut<'_, T>,
) -> Result<(), Error> {
    let TwoFour { rows, columns, .. } = *packed;
    if (weight.rows(), weight.columns()) != (rows, columns) {
        return Err(Error::shape("weight", weight.shape(), format!("[{rows}, {columns}]")));
    }
    let stride = weight.stride() as u64;
    let (values, _values) = device.address("packed", &packed.values)?;
    let (metadata, _metadata) = device.address("packed", &packed.metadata)?;
    let (w, _writing) = device.address_mut("weight", &mut weight.data)?;
    let is_aligned = w.is_multiple_of(16) && stride.is_multiple_of(8);
    let parts = rows.div_ceil(PAD) * columns.div_ceil(PAD);
    let grid = (blocks(parts as u64, PACK_THREADS / 32)?, 1, 1);
    let (rows, columns) = (rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say.
    unsafe {
        let arguments = arguments![values, metadata, w, stride, rows, columns];
        device.launch(&UNPACK[usize::from(!is_aligned)], grid, arguments)
    }
}

/// Y = X · Wᵀ on sparse tensor cores: `inputs` X [tokens, columns], `outputs` Y [tokens, rows]. Products are exact, sums f32,
/// in an order that depends on shapes only; Y is rounded once. Of a group that
/// keeps fewer than two, a zero meets an input: an infinity there gives NaN, as in a dense product.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; [`Error::OtherDevice`]; or what the driver says.
pub fn multiply_two_four<T: TwoFourInput, O: TwoFourOutput<T>>(
    device: &Device,
    packed: &TwoFour<T>,
    inputs: &MatrixRef<'_, T>,
    outputs: &mut MatrixMut<'_, O>,
) -> Result<(), Error> {
    let TwoFour { rows, columns, .. } = *packed;
    let tokens = inputs.rows();
    if inputs.columns() != columns {
        return Err(Error::shape("inputs", inputs.shape(), format!("[tokens, {columns}]")));
    }
    if (outputs.rows(), outputs.columns()) != (tokens, rows) {
        return Err(Error::shape("outputs", outputs.shape(), format!("[{tokens}, {rows}]")));
    }
    let (input_stride, output_stride) = (inputs.stride() as u64, outputs.stride() as u64);
    let (values, _values) = device.address("packed", &packed.values)?;
    let (metadata, _metadata) = device.address("packed", &packed.metadata)?;
    let (x, _reading) = device.address("inputs", &inputs.data)?;
    let (y, _writing) = device.address_mut("outputs", &mut outputs.data)?;
    let is_aligned = x.is_multiple_of(16)
        && input_stride.is_multiple_of(8)
        && y.is_multiple_of(16)
        && (output_stride * size_of::<O>() as u64).is_multiple_of(16);

    let tiles = |of_rows: u32, of_tokens: u32| {
        rows.div_ceil(of_rows as usize) as u64 * tokens.div_ceil(of_tokens as usize) as u64
    };
    let [wide, narrow, any] = O::MULTIPLY;
    let wide_tiles = tiles(TWO_FOUR_ROWS, TWO_FOUR_TOKENS);
    let (entry, tiles) = if is_aligned && wide_tiles >= FEWEST_WIDE {
        (Entry::new(&PACK_TWO_FOUR, wide, TWO_FOUR_THREADS, TWO_FOUR_SHARED), wide_tiles)
    } else {
        let name = if is_aligned { narrow } else { any };
        let entry = Entry::new(&PACK_TWO_FOUR, name, TWO_FOUR_NARROW_THREADS, TWO_FOUR_NARROW_SHARED);
        (entry, tiles(TWO_FOUR_NARROW_ROWS, TWO_FOUR_NARROW_TOKENS))
    };
    let (tokens, rows, columns) = (tokens as u32, rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say. The packed form was
    // allocated on its own, at a multiple of 256 bytes.
    unsafe {
        let arguments = arguments![values, metadata, x, y, input_stride, output_stride, tokens, rows, columns];
        device.launch(&entry, (blocks(tiles, 1)?, 1, 1), arguments)
    }
}
