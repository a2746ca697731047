//! What a decoder block does between its linear layers, and what comes before the first block and after the last: the kernels
//! `kernels/block_*.cu`, one function each.

mod attention;
mod elementwise;
mod loss;
mod norm;
mod rotary;

pub use attention::{Attention, Heads, attention};
pub use elementwise::{Activation, activate, activate_in_place, add, convert, embed};
pub use loss::Losses;
pub use norm::{Norm, normalize, normalize_in_place};
pub use rotary::{HeadNorm, Rotary, Rotation, rotate_in_place};

use crate::{Device, Error};
use cudarc::driver::{CudaView, DeviceRepr, SyncOnDrop};
use half::{bf16, f16};

/// What activations are stored in where linear layers read them: f16, bf16.
pub trait Stored: DeviceRepr + sealed::Sealed {}

impl Stored for f16 {}
impl Stored for bf16 {}

/// What activations may be made of beside that: f32, f16, bf16.
pub trait Number: Sized + sealed::Single + Rounds<Self> {}

impl Number for f32 {}
impl Number for f16 {}
impl Number for bf16 {}

/// Activations that kernels read, and write as `O`: each type as itself, f32 as a type of 16 bits, and the other way round.
pub trait Rounds<O>: DeviceRepr + sealed::Pair<O> {}

impl<I: DeviceRepr + sealed::Pair<O>, O> Rounds<O> for I {}

mod sealed {
    use super::*;

    /// Kernels for one type: for rows that begin at multiples of four numbers, and for all.
    pub trait Single {
        const EMBED: [&'static str; 2];
        const ADD: [&'static str; 2];
    }

    macro_rules! single {
        ($type:ty, $name:literal) => {
            impl Single for $type {
                const EMBED: [&'static str; 2] =
                    [concat!("block_embed_", $name), concat!("block_embed_", $name, "_any")];
                const ADD: [&'static str; 2] = [concat!("block_add_", $name), concat!("block_add_", $name, "_any")];
            }
        };
    }

    single!(f32, "f32");
    single!(f16, "f16");
    single!(bf16, "bf16");

    /// Kernels that read one type and write another, likewise.
    pub trait Pair<O> {
        const NORM: [&'static str; 2];
        const ACTIVATE: [&'static str; 2];
        const CONVERT: [&'static str; 2];
        const ROTARY: &'static str;
    }

    macro_rules! pair {
        ($input:ty, $output:ty, $name:literal) => {
            impl Pair<$output> for $input {
                const NORM: [&'static str; 2] = [concat!("block_norm_", $name), concat!("block_norm_", $name, "_any")];
                const ACTIVATE: [&'static str; 2] =
                    [concat!("block_activate_", $name), concat!("block_activate_", $name, "_any")];
                const CONVERT: [&'static str; 2] =
                    [concat!("block_convert_", $name), concat!("block_convert_", $name, "_any")];
                const ROTARY: &'static str = concat!("block_rotary_", $name);
            }
        };
    }

    pair!(f32, f32, "f32");
    pair!(f32, f16, "f32_f16");
    pair!(f32, bf16, "f32_bf16");
    pair!(f16, f16, "f16");
    pair!(f16, f32, "f16_f32");
    pair!(bf16, bf16, "bf16");
    pair!(bf16, f32, "bf16_f32");

    pub trait Sealed {
        /// Attention with heads of up to 32, 64, 96, 128 and 256 columns, and for every alignment.
        const ATTENTION: [&'static str; 6];
    }

    macro_rules! names {
        ($type:ty, $name:literal) => {
            impl Sealed for $type {
                const ATTENTION: [&'static str; 6] = [
                    concat!("block_attention_", $name, "_32"),
                    concat!("block_attention_", $name, "_64"),
                    concat!("block_attention_", $name, "_96"),
                    concat!("block_attention_", $name, "_128"),
                    concat!("block_attention_", $name, "_256"),
                    concat!("block_attention_", $name, "_any"),
                ];
            }
        };
    }

    names!(f16, "f16");
    names!(bf16, "bf16");
}

/// Checks that tokens are whole sequences.
fn check_sequences(tokens: usize, length: usize) -> Result<(), Error> {
    if length == 0 || !tokens.is_multiple_of(length) {
        return Err(Error::shape("the sequence length", length, format!("a divisor of {tokens} tokens")));
    }
    Ok(())
}

/// Numbers that aligned kernels read at a time.
const GROUP: usize = 4;

/// Whether rows begin at multiples of [`GROUP`] numbers of `size` bytes, for an address and a stride.
fn is_aligned(address: u64, stride: usize, size: usize) -> bool {
    address.is_multiple_of((GROUP * size) as u64) && stride.is_multiple_of(GROUP)
}

/// Checks that a vector of parameters has a number for each column.
fn check_length<T>(what: &'static str, vector: Option<&CudaView<'_, T>>, columns: usize) -> Result<(), Error> {
    match vector {
        Some(vector) if vector.len() < columns => {
            Err(Error::shape(what, vector.len(), format!("{columns}: one for each column")))
        }
        _ => Ok(()),
    }
}

/// Checks that a matrix has the shape of another.
fn check_shape(what: &'static str, found: (usize, usize), expected: (usize, usize)) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    let text = |(rows, columns): (usize, usize)| format!("[{rows}, {columns}]");
    Err(Error::shape(what, text(found), text(expected)))
}

/// The address of what a kernel may do without, zero for nothing.
fn optional<'a, T>(
    device: &'a Device,
    what: &'static str,
    vector: Option<&'a CudaView<'_, T>>,
) -> Result<(u64, Option<SyncOnDrop<'a>>), Error> {
    Ok(match vector {
        Some(vector) => {
            let (address, guard) = device.address(what, vector)?;
            (address, Some(guard))
        }
        None => (0, None),
    })
}
