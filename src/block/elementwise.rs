//! Embeddings, activations, residuals and conversions: `kernels/block_elementwise.cu`.

use super::{GROUP, Number, Rounds, check_length, check_sequences, check_shape, is_aligned, optional};
use crate::device::{Device, arguments, blocks};
use crate::module::{BLOCK_ELEMENTWISE, BLOCK_THREADS, Entry};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, CudaView, DevicePtrMut};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// x.
    Identity,
    /// max(x, 0).
    Relu,
    /// x·σ(x).
    Silu,
    /// x/2·(1 + erf(x/√2)).
    Gelu,
    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715 x³))).
    GeluTanh,
}

/// Four numbers a thread where everything is aligned, else one: the kernel and its launch.
fn plan(
    names: [&'static str; 2],
    aligned: bool,
    (rows, columns): (usize, usize),
) -> Result<(Entry, (u32, u32, u32)), Error> {
    let aligned = aligned && columns.is_multiple_of(GROUP);
    let each = BLOCK_THREADS * if aligned { GROUP as u32 } else { 1 };
    let across = blocks(columns as u64, each)?;
    if across > u32::from(u16::MAX) {
        return Err(Error::shape("columns", columns, format!("at most {} · 65535", each)));
    }
    Ok((
        Entry::new(&BLOCK_ELEMENTWISE, names[usize::from(!aligned)], BLOCK_THREADS, 0),
        (blocks(rows as u64, 1)?, across, 1),
    ))
}

/// X ← table of tokens + positions: f32 [tokens, columns], from `table` [vocabulary, columns] and, where there are learned
/// positions, their table [positions, columns] and the row of position 0. A token that is not in the vocabulary makes a row of
/// NaN.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other; [`Error::OtherDevice`]; or what the driver says.
pub fn embed<T: Number>(
    device: &Device,
    tokens: &CudaView<'_, u32>,
    table: &MatrixRef<'_, T>,
    positions: Option<(&MatrixRef<'_, T>, usize)>,
    sequence_length: usize,
    outputs: &mut MatrixMut<'_, f32>,
) -> Result<(), Error> {
    let shape = (tokens.len(), table.columns());
    check_sequences(tokens.len(), sequence_length)?;
    check_shape("outputs", (outputs.rows(), outputs.columns()), shape)?;
    if let Some((places, offset)) = positions
        && (places.columns() != shape.1 || places.rows() < offset + sequence_length)
    {
        let expected = format!("[{} or more, {}]", offset + sequence_length, shape.1);
        return Err(Error::shape("positions", places.shape(), expected));
    }
    let strides = [table.stride(), positions.map_or(0, |(places, _)| places.stride()), outputs.stride()];
    let (ids, _tokens) = device.address("tokens", tokens)?;
    let (t, _table) = device.address("table", &table.data)?;
    let (p, _positions) = optional(device, "positions", positions.as_ref().map(|(places, _)| &places.data))?;
    let (x, _outputs) = device.address_mut("outputs", &mut outputs.data)?;
    let aligned = is_aligned(t, strides[0], size_of::<T>())
        && is_aligned(p, strides[1], size_of::<T>())
        && is_aligned(x, strides[2], size_of::<f32>());
    let (entry, grid) = plan(T::EMBED, aligned, shape)?;
    let [table_stride, position_stride, output_stride] = strides.map(|stride| stride as u64);
    let (vocabulary, columns, length) = (table.rows() as u32, shape.1 as u32, sequence_length as u32);
    let offset = positions.map_or(0, |(_, offset)| offset as u32);
    // SAFETY: the arguments of `EMBED_ENTRY` in the kernel's file; everything is of this device, borrowed until the launch is
    // enqueued, and as large as was checked. Rows that tokens ask for beyond the table are not read.
    unsafe {
        let arguments =
            arguments![ids, t, p, x, table_stride, position_stride, output_stride, vocabulary, columns, length, offset];
        device.launch(&entry, grid, arguments)
    }
}

/// X ← X + (Y + bias): `stream` f32 [rows, columns], `inputs` likewise, `bias` f32 `[columns]`.
///
/// # Errors
/// As [`embed`].
pub fn add<T: Number>(
    device: &Device,
    stream: &mut MatrixMut<'_, f32>,
    inputs: &MatrixRef<'_, T>,
    bias: Option<&CudaView<'_, f32>>,
) -> Result<(), Error> {
    let shape = (stream.rows(), stream.columns());
    check_shape("inputs", (inputs.rows(), inputs.columns()), shape)?;
    check_length("bias", bias, shape.1)?;
    let strides = [stream.stride(), inputs.stride()];
    let (x, _stream) = device.address_mut("stream", &mut stream.data)?;
    let (y, _inputs) = device.address("inputs", &inputs.data)?;
    let (b, _bias) = optional(device, "bias", bias)?;
    let aligned = is_aligned(x | b, strides[0], size_of::<f32>()) && is_aligned(y, strides[1], size_of::<T>());
    let (entry, grid) = plan(T::ADD, aligned, shape)?;
    let [stream_stride, input_stride] = strides.map(|stride| stride as u64);
    let columns = shape.1 as u32;
    // SAFETY: the arguments of `ADD_ENTRY` in the kernel's file, as in `embed`.
    unsafe { device.launch(&entry, grid, arguments![x, y, b, stream_stride, input_stride, columns]) }
}

/// Y ← f(X + bias), or f(X + bias) · (up + up_bias) where there is a gate: all [rows, columns], biases f32 `[columns]`. Computed
/// in f32, rounded once. With the identity it adds a bias.
///
/// # Errors
/// As [`embed`].
pub fn activate<I: Rounds<O>, O>(
    device: &Device,
    activation: Activation,
    (inputs, bias): (&MatrixRef<'_, I>, Option<&CudaView<'_, f32>>),
    up: Option<(&MatrixRef<'_, I>, Option<&CudaView<'_, f32>>)>,
    outputs: &mut MatrixMut<'_, O>,
) -> Result<(), Error> {
    let shape = (outputs.rows(), outputs.columns());
    check_shape("inputs", (inputs.rows(), inputs.columns()), shape)?;
    let strides = [inputs.stride(), outputs.stride()];
    let (x, _inputs) = device.address("inputs", &inputs.data)?;
    let (y, _outputs) = device.address_mut("outputs", &mut outputs.data)?;
    launch_activate::<I, O>(device, activation, ([x, y], strides, shape), bias, up)
}

/// X ← f(X + bias), or f(X + bias) · (up + up_bias), as [`activate`].
///
/// # Errors
/// As [`embed`].
pub fn activate_in_place<T: Rounds<T>>(
    device: &Device,
    activation: Activation,
    (x, bias): (&mut MatrixMut<'_, T>, Option<&CudaView<'_, f32>>),
    up: Option<(&MatrixRef<'_, T>, Option<&CudaView<'_, f32>>)>,
) -> Result<(), Error> {
    let (shape, stride) = ((x.rows(), x.columns()), x.stride());
    let (address, _x) = device.address_mut("x", &mut x.data)?;
    launch_activate::<T, T>(device, activation, ([address; 2], [stride; 2], shape), bias, up)
}

/// Addresses, strides and shape of X and Y.
type Places = ([u64; 2], [usize; 2], (usize, usize));

fn launch_activate<I: Rounds<O>, O>(
    device: &Device,
    activation: Activation,
    ([x, y], strides, shape): Places,
    bias: Option<&CudaView<'_, f32>>,
    up: Option<(&MatrixRef<'_, I>, Option<&CudaView<'_, f32>>)>,
) -> Result<(), Error> {
    let (up, up_bias) = (up.map(|(up, _)| up), up.and_then(|(_, bias)| bias));
    if let Some(up) = up {
        check_shape("up", (up.rows(), up.columns()), shape)?;
    }
    check_length("bias", bias, shape.1)?;
    check_length("the bias of up", up_bias, shape.1)?;
    let up_stride = up.map_or(0, MatrixRef::stride);
    let (u, _up) = optional(device, "up", up.map(|up| &up.data))?;
    let (b, _bias) = optional(device, "bias", bias)?;
    let (c, _up_bias) = optional(device, "the bias of up", up_bias)?;
    let aligned = is_aligned(x, strides[0], size_of::<I>())
        && is_aligned(u, up_stride, size_of::<I>())
        && is_aligned(y, strides[1], size_of::<O>())
        && is_aligned(b | c, 0, size_of::<f32>());
    let (entry, grid) = plan(I::ACTIVATE, aligned, shape)?;
    let ([input_stride, output_stride], up_stride) = (strides.map(|stride| stride as u64), up_stride as u64);
    let (columns, kind) = (shape.1 as u32, activation as u32);
    // SAFETY: the arguments of `ACTIVATE_ENTRY` in the kernel's file, as in `embed`; the callers hold X and Y.
    unsafe {
        let arguments = arguments![x, u, y, b, c, input_stride, up_stride, output_stride, columns, kind];
        device.launch(&entry, grid, arguments)
    }
}

/// Y ← X rounded: [rows, columns]. What is returned holds one number: `row · columns + column` of the first result that is not
/// finite, be it for its size or because X was not, or `u64::MAX`.
///
/// # Errors
/// As [`embed`].
pub fn convert<I: Rounds<O>, O>(
    device: &Device,
    inputs: &MatrixRef<'_, I>,
    outputs: &mut MatrixMut<'_, O>,
) -> Result<CudaSlice<u64>, Error> {
    let shape = (inputs.rows(), inputs.columns());
    check_shape("outputs", (outputs.rows(), outputs.columns()), shape)?;
    let mut first = device.upload(&[u64::MAX])?;
    {
        let strides = [inputs.stride(), outputs.stride()];
        let (x, _inputs) = device.address("inputs", &inputs.data)?;
        let (y, _outputs) = device.address_mut("outputs", &mut outputs.data)?;
        let (flag, _first) = first.device_ptr_mut(device.stream());
        let aligned = is_aligned(x, strides[0], size_of::<I>()) && is_aligned(y, strides[1], size_of::<O>());
        let (entry, grid) = plan(I::CONVERT, aligned, shape)?;
        let [input_stride, output_stride] = strides.map(|stride| stride as u64);
        let columns = shape.1 as u32;
        // SAFETY: the arguments of `CONVERT_ENTRY` in the kernel's file, as in `embed`.
        unsafe { device.launch(&entry, grid, arguments![x, y, flag, input_stride, output_stride, columns]) }?;
    }
    Ok(first)
}
