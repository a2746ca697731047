//! A tensor as it lies in its file, and its values.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::{Dtype, Error};

/// A tensor, borrowed from the memory map of its file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its extents, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// Its elements, row-major, little endian.
    pub bytes: &'a [u8],
}

/// The elements of a tensor, row-major, in the type they are stored in.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Tensor<'a> {
    /// The elements where they lie; nothing is copied.
    ///
    /// # Errors
    /// [`Error::TensorDtype`] if they are not F32, F16 or BF16. [`Error::TensorBytes`] if the bytes are misaligned or
    /// no whole number of elements, which a tensor of a [`Checkpoint`](crate::Checkpoint) never is.
    pub fn values(&self) -> Result<Values<'a>, Error> {
        let cast = match self.dtype {
            Dtype::F32 => bytemuck::try_cast_slice(self.bytes).map(Values::F32),
            Dtype::F16 => bytemuck::try_cast_slice(self.bytes).map(Values::F16),
            Dtype::BF16 => bytemuck::try_cast_slice(self.bytes).map(Values::Bf16),
            Dtype::Other(_) => return Err(Error::TensorDtype { tensor: self.name.to_owned(), dtype: self.dtype }),
        };
        cast.map_err(|reason| Error::TensorBytes {
            tensor: self.name.to_owned(),
            dtype: self.dtype,
            length: self.bytes.len(),
            reason,
        })
    }

    /// The elements as single precision, which holds each of the three types exactly.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        Ok(match self.values()? {
            Values::F32(values) => values.to_vec(),
            Values::F16(values) => values.to_f32_vec(),
            Values::Bf16(values) => values.to_f32_vec(),
        })
    }
}
