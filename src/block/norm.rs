//! Norms over rows: `kernels/block_norm.cu`.

use super::{GROUP, Rounds, check_length, check_shape, is_aligned, optional};
use crate::device::{Device, arguments, blocks};
use crate::module::{BLOCK_NORM, BLOCK_THREADS, Entry};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::CudaView;

/// A norm and its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Whether the mean is subtracted first: a layer norm; without, an RMS norm.
    pub centered: bool,
    /// What is added to the mean square.
    pub epsilon: f32,
    /// f32 `[columns]`.
    pub scale: &'a CudaView<'a, f32>,
    /// f32 `[columns]`; none for no shift.
    pub shift: Option<&'a CudaView<'a, f32>>,
}

/// Y ← norm(X), row by row: `inputs` and `outputs` [rows, columns]. Computed in f32, rounded once.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other; [`Error::OtherDevice`]; or what the driver says.
pub fn normalize<I: Rounds<O>, O>(
    device: &Device,
    inputs: &MatrixRef<'_, I>,
    outputs: &mut MatrixMut<'_, O>,
    norm: &Norm<'_>,
) -> Result<(), Error> {
    let shape = (inputs.rows(), inputs.columns());
    check_shape("outputs", (outputs.rows(), outputs.columns()), shape)?;
    let strides = [inputs.stride(), outputs.stride()];
    let (x, _inputs) = device.address("inputs", &inputs.data)?;
    let (y, _outputs) = device.address_mut("outputs", &mut outputs.data)?;
    launch::<I, O>(device, [x, y], strides, shape, norm)
}

/// X ← norm(X), row by row: `x` [rows, columns].
///
/// # Errors
/// As [`normalize`].
pub fn normalize_in_place<T: Rounds<T>>(
    device: &Device,
    x: &mut MatrixMut<'_, T>,
    norm: &Norm<'_>,
) -> Result<(), Error> {
    let (shape, stride) = ((x.rows(), x.columns()), x.stride());
    let (address, _x) = device.address_mut("x", &mut x.data)?;
    launch::<T, T>(device, [address; 2], [stride; 2], shape, norm)
}

fn launch<I: Rounds<O>, O>(
    device: &Device,
    [x, y]: [u64; 2],
    [input_stride, output_stride]: [usize; 2],
    (rows, columns): (usize, usize),
    norm: &Norm<'_>,
) -> Result<(), Error> {
    check_length("scale", Some(norm.scale), columns)?;
    check_length("shift", norm.shift, columns)?;
    if columns == 0 {
        return Ok(());
    }
    let (scale, _scale) = device.address("scale", norm.scale)?;
    let (shift, _shift) = optional(device, "shift", norm.shift)?;
    let aligned = columns.is_multiple_of(GROUP)
        && is_aligned(x, input_stride, size_of::<I>())
        && is_aligned(y, output_stride, size_of::<O>())
        && is_aligned(scale | shift, 0, size_of::<f32>());
    let entry = Entry::new(&BLOCK_NORM, I::NORM[usize::from(!aligned)], BLOCK_THREADS, 0);
    let (input_stride, output_stride, columns) = (input_stride as u64, output_stride as u64, columns as u32);
    let (centered, epsilon) = (u32::from(norm.centered), norm.epsilon);
    // SAFETY: the arguments of `NORM_ENTRY` in the kernel's file. The callers hold X and Y, of this device and as large as their
    // shapes and strides say; the parameters are as long as was checked.
    unsafe {
        let arguments = arguments![x, y, scale, shift, input_stride, output_stride, columns, centered, epsilon];
        device.launch(&entry, (blocks(rows as u64, 1)?, 1, 1), arguments)
    }
}
