//! Norms and rotations of heads: `kernels/block_rotary.cu`.

use super::{Number, check_length, check_sequences, optional};
use crate::device::{Device, arguments, blocks};
use crate::module::{BLOCK_ROTARY, BLOCK_THREADS, Entry};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::CudaView;

/// The widest head.
const WIDEST: usize = 256;

/// Cosines and sines of all positions of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// f32 [sequence length, head_dim / 2], without gaps.
    pub cosines: &'a MatrixRef<'a, f32>,
    /// Likewise.
    pub sines: &'a MatrixRef<'a, f32>,
}

/// An RMS norm of every head.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// f32 `[head_dim]`.
    pub scale: &'a CudaView<'a, f32>,
    /// What is added to the mean square.
    pub epsilon: f32,
}

/// What happens to heads before attention, and where they lie: head h in the columns from `first + h · step` on.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// How many.
    pub heads: usize,
    /// Columns of a head, even, at most 256.
    pub head_dim: usize,
    /// The column in which head 0 begins.
    pub first: usize,
    /// Columns from head to head.
    pub step: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// The norm, first.
    pub norm: Option<HeadNorm<'a>>,
    /// The rotation, after it.
    pub rotation: Option<Rotation<'a>>,
}

/// Normalizes and turns all heads of x [tokens, …], tokens of whole sequences. Computed in f32, rounded once.
///
/// Columns j and j + head_dim / 2 of a head are one complex number, which is multiplied by `cosine + i·sine` of the token's
/// position in its sequence.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other, or heads are odd or too wide; [`Error::OtherDevice`]; or what the driver
/// says.
pub fn rotate_in_place<T: Number>(device: &Device, x: &mut MatrixMut<'_, T>, rotary: &Rotary<'_>) -> Result<(), Error> {
    let Rotary { heads, head_dim, first, step, sequence_length, norm, rotation } = *rotary;
    let (tokens, half) = (x.rows(), head_dim / 2);
    check_sequences(tokens, sequence_length)?;
    if !(2..=WIDEST).contains(&head_dim) || !head_dim.is_multiple_of(2) {
        return Err(Error::shape("columns of a head", head_dim, "an even number from 2 to 256"));
    }
    if tokens == 0 || heads == 0 {
        return Ok(());
    }
    let needed = first + (heads - 1) * step + head_dim;
    if x.columns() < needed || (heads > 1 && step < head_dim) {
        let expected = format!("[{tokens}, {needed} or more]: {heads} heads of {head_dim} columns, {step} apart");
        return Err(Error::shape("x", x.shape(), expected));
    }
    check_length("the scale of heads", norm.map(|norm| norm.scale), head_dim)?;
    for (what, table) in rotation.iter().flat_map(|r| [("cosines", r.cosines), ("sines", r.sines)]) {
        if table.rows() < sequence_length || table.columns() != half || table.stride() != half {
            let expected = format!("[{sequence_length}, {half}] without gaps");
            return Err(Error::shape(what, format!("{} every {}", table.shape(), table.stride()), expected));
        }
    }
    let stride = x.stride() as u64;
    let (address, _x) = device.address_mut("x", &mut x.data)?;
    let address = address + (first * size_of::<T>()) as u64;
    let (scale, _scale) = optional(device, "the scale of heads", norm.as_ref().map(|norm| norm.scale))?;
    let (cosines, _cosines) = optional(device, "cosines", rotation.as_ref().map(|r| &r.cosines.data))?;
    let (sines, _sines) = optional(device, "sines", rotation.as_ref().map(|r| &r.sines.data))?;
    let entry = Entry::new(&BLOCK_ROTARY, T::ROTARY, BLOCK_THREADS, 0);
    let grid = (blocks((tokens * heads) as u64, BLOCK_THREADS / 32)?, 1, 1);
    let step = step as u64;
    let (tokens, heads, half, length) = (tokens as u32, heads as u32, half as u32, sequence_length as u32);
    let epsilon = norm.map_or(0.0, |norm| norm.epsilon);
    // SAFETY: the arguments of `ROTARY` in the kernel's file; everything is of this device, borrowed until the launch is
    // enqueued, and as large as was checked.
    unsafe {
        let arguments = arguments![
            address, address, scale, cosines, sines, stride, step, stride, step, tokens, heads, half, length, epsilon
        ];
        device.launch(&entry, grid, arguments)
    }
}
