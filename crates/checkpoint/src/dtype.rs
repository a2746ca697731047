//! The number types of tensors, and the one rounding on the way into a file.

use std::fmt;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::Error;

/// How the elements of a tensor are stored. Displays as the format's name, such as `BF16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision number.
    BF16,
    /// A type that is copied, but not computed with.
    Other(safetensors::Dtype),
}

impl Dtype {
    /// Bytes per element; 1 for types of less than a byte.
    pub fn size(&self) -> usize {
        self.bits().div_ceil(8)
    }

    /// Bits per element.
    pub(crate) fn bits(&self) -> usize {
        self.stored().bitsize()
    }

    /// The format's own type.
    fn stored(&self) -> safetensors::Dtype {
        match *self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::BF16 => safetensors::Dtype::BF16,
            Self::Other(dtype) => dtype,
        }
    }
}

impl From<safetensors::Dtype> for Dtype {
    fn from(dtype: safetensors::Dtype) -> Self {
        match dtype {
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::F16 => Self::F16,
            safetensors::Dtype::BF16 => Self::BF16,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stored().fmt(f)
    }
}

/// Values rounded together, so that `half` can use the processor's conversions: 4 KiB of results, which stay in L1.
const RUN: usize = 2048;

/// Rounds `values` once to `dtype`, to the nearest with ties to even, as little-endian bytes. Every zero becomes +0.0,
/// values that round to zero included, so that a pruned weight is all zero bits.
///
/// # Errors
/// [`Error::NotFinite`] at the first value that is NaN or infinite or overflows `dtype`; [`Error::NarrowDtype`] where
/// `dtype` is not F32, F16 or BF16.
pub fn narrow(values: &[f32], dtype: &Dtype) -> Result<Vec<u8>, Error> {
    let not_finite = |position: usize| Error::NotFinite {
        position,
        value: values.get(position).copied().unwrap_or(f32::NAN),
        dtype: *dtype,
    };
    match dtype {
        Dtype::F32 => {
            if let Some(position) = values.iter().position(|value| !value.is_finite()) {
                return Err(not_finite(position));
            }
            // -0.0 + 0.0 is +0.0 when rounding to nearest, and every other value is unchanged.
            Ok(values.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect())
        }
        Dtype::F16 => {
            let round = |values: &[f32], bits: &mut [u16]| {
                bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
            };
            narrow_half(values, f16::INFINITY.to_bits(), round).map_err(not_finite)
        }
        Dtype::BF16 => {
            let round = |values: &[f32], bits: &mut [u16]| {
                bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values);
            };
            narrow_half(values, bf16::INFINITY.to_bits(), round).map_err(not_finite)
        }
        Dtype::Other(_) => Err(Error::NarrowDtype { dtype: *dtype }),
    }
}

/// [`narrow`] for a 16-bit type whose infinity has the bits `infinity`; `round` converts so many values at once. The error is the position of the first value without a finite counterpart.
fn narrow_half(values: &[f32], infinity: u16, round: impl Fn(&[f32], &mut [u16])) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(values.len() * 2);
    let mut run = [0; RUN];
    for values in values.chunks(RUN) {
        let run = &mut run[..values.len()];
        round(values, run);
        for &bits in run.iter() {
            let magnitude = bits & 0x7fff;
            if magnitude >= infinity {
                return Err(bytes.len() / 2);
            }
            let bits = if magnitude == 0 { 0 } else { bits };
            bytes.extend_from_slice(&bits.to_le_bytes());
        }
    }
    Ok(bytes)
}
