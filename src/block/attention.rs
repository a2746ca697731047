//! Causal attention: `kernels/block_attention.cu`.

use super::{Stored, check_sequences};
use crate::device::{Device, arguments};
use crate::module::{
    ATTENTION_QUERIES, ATTENTION_SHARED_32, ATTENTION_SHARED_64, ATTENTION_SHARED_96, ATTENTION_SHARED_128,
    ATTENTION_SHARED_256, ATTENTION_THREADS, ATTENTION_WIDE_QUERIES, BLOCK_ATTENTION, Entry,
};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::CudaView;

/// Widths that heads are padded to in shared memory, with what they take of it and how many queries share a thread block.
const WIDTHS: [(usize, u32, u32); 5] = [
    (32, ATTENTION_SHARED_32, ATTENTION_QUERIES),
    (64, ATTENTION_SHARED_64, ATTENTION_QUERIES),
    (96, ATTENTION_SHARED_96, ATTENTION_QUERIES),
    (128, ATTENTION_SHARED_128, ATTENTION_QUERIES),
    (256, ATTENTION_SHARED_256, ATTENTION_WIDE_QUERIES),
];

/// A window that hides nothing.
const WHOLE: u32 = 1 << 31;

/// Where the heads of queries, keys or values lie: head h of a token in the columns from `first + h · step` on of its row.
#[derive(Debug)]
pub struct Heads<'a, T> {
    /// A row for each token.
    pub matrix: &'a MatrixRef<'a, T>,
    /// The column in which head 0 begins.
    pub first: usize,
    /// Columns from head to head.
    pub step: usize,
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values: as many, or a divisor of it.
    pub kv_heads: usize,
    /// Columns of a head, 1 to 256.
    pub head_dim: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// How many keys a query sees, its own included; none for all before it.
    pub window: Option<usize>,
    /// f32 `[heads]`: what is subtracted from a score per token of distance (ALiBi); none for nothing.
    pub slopes: Option<&'a CudaView<'a, f32>>,
}

/// O ← softmax(Q·Kᵀ / √d)·V of all heads, each query over the keys that it sees.
///
/// `queries`, `keys`, `values`: [tokens, …] of whole sequences, one after another; `output` [tokens, heads · head_dim].
/// Scores and sums are f32; the softmax is rounded to `T` for its product with V, and so is the result. A number that is not
/// finite makes those results NaN or infinite that depend on it, and may do so with queries that it is hidden from, near by.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other, or heads are wider than 256 columns; [`Error::OtherDevice`]; or what the
/// driver says.
pub fn attention<T: Stored>(
    device: &Device,
    queries: &Heads<'_, T>,
    keys: &Heads<'_, T>,
    values: &Heads<'_, T>,
    output: &mut MatrixMut<'_, T>,
    shape: &Attention<'_>,
) -> Result<(), Error> {
    let Attention { heads, kv_heads, head_dim, sequence_length, window, slopes } = *shape;
    let tokens = output.rows();
    check_sequences(tokens, sequence_length)?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::shape("heads of keys", kv_heads, format!("a divisor of the {heads} heads")));
    }
    let width = WIDTHS.iter().position(|&(width, ..)| head_dim <= width).filter(|_| head_dim > 0);
    let Some(width) = width else {
        return Err(Error::shape("columns of a head", head_dim, "1 to 256"));
    };
    if output.columns() != heads * head_dim {
        let expected = format!("[{tokens}, {}]: {heads} heads of {head_dim} columns", heads * head_dim);
        return Err(Error::shape("output", output.shape(), expected));
    }
    if window == Some(0) {
        return Err(Error::shape("window", 0, "at least 1: a query sees itself"));
    }
    if let Some(slopes) = slopes
        && slopes.len() < heads
    {
        return Err(Error::shape("slopes", slopes.len(), format!("{heads}: one for each head")));
    }
    let sequences = tokens / sequence_length;
    for (what, count) in [("sequences", sequences), ("heads", heads)] {
        if count > usize::from(u16::MAX) {
            return Err(Error::shape(what, count, "at most 65535: fewer at a time"));
        }
    }
    if tokens == 0 || heads == 0 {
        return Ok(());
    }
    check("queries", queries, tokens, heads, head_dim)?;
    check("keys", keys, tokens, kv_heads, head_dim)?;
    check("values", values, tokens, kv_heads, head_dim)?;

    let strides = [queries, keys, values].map(|heads| [heads.matrix.stride() as u64, heads.step as u64]);
    let output_stride = output.stride() as u64;
    let (q, _queries) = device.address("queries", &queries.matrix.data)?;
    let (k, _keys) = device.address("keys", &keys.matrix.data)?;
    let (v, _values) = device.address("values", &values.matrix.data)?;
    let (o, _output) = device.address_mut("output", &mut output.data)?;
    let slopes = slopes.map(|slopes| device.address("slopes", slopes)).transpose()?;
    let slope_address = slopes.as_ref().map_or(0, |(address, _)| *address);
    let [q, k, v] = [(q, queries), (k, keys), (v, values)].map(|(address, heads)| address + 2 * heads.first as u64);

    let is_aligned = [q, k, v, o].iter().all(|address| address.is_multiple_of(16))
        && strides.as_flattened().iter().all(|stride| stride.is_multiple_of(8))
        && output_stride.is_multiple_of(8)
        && head_dim.is_multiple_of(8);
    let chosen = if is_aligned { width } else { WIDTHS.len() };
    let (_, shared, tile) = WIDTHS[chosen.min(WIDTHS.len() - 1)];
    let entry = Entry::new(&BLOCK_ATTENTION, T::ATTENTION[chosen], ATTENTION_THREADS, shared);
    let grid = ((sequence_length as u32).div_ceil(tile), heads as u32, sequences as u32);
    let window = window.and_then(|window| u32::try_from(window).ok()).map_or(WHOLE, |window| window.min(WHOLE));
    let scale = (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32;
    let (length, columns, group) = (sequence_length as u32, head_dim as u32, (heads / kv_heads) as u32);
    let [[q_stride, q_step], [k_stride, k_step], [v_stride, v_step]] = strides;
    // SAFETY: the arguments of `ATTENTION` in the kernel's file. All memory is of this device and borrowed until the launch is
    // enqueued, and as large as was checked: a row for each token of whole sequences, with all heads in it.
    unsafe {
        let arguments = arguments![
            q,
            k,
            v,
            o,
            slope_address,
            q_stride,
            q_step,
            k_stride,
            k_step,
            v_stride,
            v_step,
            output_stride,
            length,
            columns,
            group,
            window,
            scale
        ];
        device.launch(&entry, grid, arguments)
    }
}

/// Checks that a matrix holds all heads of all tokens.
fn check<T>(
    what: &'static str,
    heads: &Heads<'_, T>,
    tokens: usize,
    count: usize,
    head_dim: usize,
) -> Result<(), Error> {
    let Heads { matrix, first, step } = heads;
    let needed = first + (count - 1) * step + head_dim;
    if matrix.rows() != tokens || matrix.columns() < needed {
        let expected = format!("[{tokens}, {needed} or more]: {count} heads of {head_dim} columns, {step} apart");
        return Err(Error::shape(what, matrix.shape(), expected));
    }
    Ok(())
}
