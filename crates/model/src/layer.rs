//! Linear layers: their weights as stored, their products, and what tells a layer apart when numbers go wrong.

use std::borrow::Cow;

use checkpoint::{Dtype, Values};
use half::{bf16, f16};
use linalg::{Element, MatrixMut, MatrixRef, Region, gemm};
use rayon::prelude::*;

use crate::forward::LoadedLayer;
use crate::norm::add;
use crate::simd::{all_finite, first_not_finite};
use crate::{Cpu, Error};

/// Elements of one task of a pass over memory.
const RUN: usize = 1 << 15;

/// A linear layer of a block, without its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The full name of its weight in the checkpoint, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

/// The linear layers of a block that read the same input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// In the order of the architecture: q, k, v; gate, up.
    pub layers: Vec<Layer>,
    /// Columns of the input they share.
    pub width: usize,
}

impl Stage {
    /// Whether the output of a block's stage of this number joins the residual stream.
    pub fn absorbs(number: usize) -> bool {
        number % 2 == 1
    }
}

/// A weight, row-major, in the type it is stored in; borrowed from a checkpoint's memory map or owned.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight<'a> {
    /// Single precision.
    F32(Cow<'a, [f32]>),
    /// Half precision.
    F16(Cow<'a, [f16]>),
    /// bfloat16.
    Bf16(Cow<'a, [bf16]>),
}

impl<'a> From<Values<'a>> for Weight<'a> {
    fn from(values: Values<'a>) -> Self {
        match values {
            Values::F32(values) => Self::F32(values.into()),
            Values::F16(values) => Self::F16(values.into()),
            Values::Bf16(values) => Self::Bf16(values.into()),
        }
    }
}

impl Weight<'static> {
    /// A weight of so many elements, all zero.
    ///
    /// # Errors
    /// [`checkpoint::Error::NarrowDtype`] if `dtype` is not F32, F16 or BF16.
    pub fn zeros(elements: usize, dtype: Dtype) -> Result<Self, checkpoint::Error> {
        Ok(match dtype {
            Dtype::F32 => Self::F32(vec![0.0; elements].into()),
            Dtype::F16 => Self::F16(vec![f16::ZERO; elements].into()),
            Dtype::BF16 => Self::Bf16(vec![bf16::ZERO; elements].into()),
            Dtype::Other(_) => return Err(checkpoint::Error::NarrowDtype { dtype }),
        })
    }
}

impl Weight<'_> {
    /// Its bytes, as a checkpoint has them; a copy of them first, where they are borrowed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice_mut(values.to_mut()),
            Self::F16(values) => bytemuck::cast_slice_mut(values.to_mut()),
            Self::Bf16(values) => bytemuck::cast_slice_mut(values.to_mut()),
        }
    }

    /// The elements where they lie.
    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(values) => Values::F32(values),
            Self::F16(values) => Values::F16(values),
            Self::Bf16(values) => Values::Bf16(values),
        }
    }

    /// Fails at the first element that is NaN or infinite; `tensor` is the name to blame.
    ///
    /// # Errors
    /// [`Error::WeightNotFinite`].
    pub fn check_finite(&self, tensor: &str) -> Result<(), Error> {
        fn check<T: Element>(values: &[T], tensor: &str) -> Result<(), Error> {
            let first = values.par_iter().with_min_len(RUN).position_first(|value| !value.to_f32().is_finite());
            first.map_or(Ok(()), |position| {
                let value = values[position].to_f32();
                Err(Error::WeightNotFinite { tensor: tensor.to_owned(), position, value })
            })
        }
        match self.values() {
            Values::F32(values) => check(values, tensor),
            Values::F16(values) => check(values, tensor),
            Values::Bf16(values) => check(values, tensor),
        }
    }
}

/// `output ← β·output + inputs·Wᵀ` over rows `rows` of W: inputs [tokens, columns], output [tokens, rows.len()].
pub(crate) fn multiply(
    weight: Values<'_>,
    rows: std::ops::Range<usize>,
    columns: usize,
    inputs: Values<'_>,
    beta: f32,
    output: &mut [f32],
) {
    fn go<W: Element, X: Element>(weight: &[W], columns: usize, inputs: &[X], beta: f32, output: &mut [f32]) {
        let (tokens, rows) = (inputs.len() / columns, weight.len() / columns);
        let weight = MatrixRef::new(weight, rows, columns).transposed();
        let inputs = MatrixRef::new(inputs, tokens, columns);
        gemm(1.0, inputs, weight, beta, MatrixMut::new(output, tokens, rows), Region::Full);
    }
    fn with<W: Element>(weight: &[W], columns: usize, inputs: Values<'_>, beta: f32, output: &mut [f32]) {
        match inputs {
            Values::F32(inputs) => go(weight, columns, inputs, beta, output),
            Values::F16(inputs) => go(weight, columns, inputs, beta, output),
            Values::Bf16(inputs) => go(weight, columns, inputs, beta, output),
        }
    }
    let part = rows.start * columns..rows.end * columns;
    match weight {
        Values::F32(weight) => with(&weight[part], columns, inputs, beta, output),
        Values::F16(weight) => with(&weight[part], columns, inputs, beta, output),
        Values::Bf16(weight) => with(&weight[part], columns, inputs, beta, output),
    }
}

impl LoadedLayer<'_, Cpu> {
    /// W·x + b for inputs [tokens, columns].
    pub(crate) fn apply(&self, inputs: Values<'_>) -> Result<Vec<f32>, Error> {
        let mut output = vec![0.0; inputs.len() / self.layer.columns * self.layer.rows];
        self.product(inputs, 0.0, &mut output)?;
        Ok(output)
    }

    /// x ← x + W·x' + b for inputs x' [tokens, columns] and x [tokens, rows].
    pub(crate) fn add_to(&self, x: &mut [f32], inputs: Values<'_>) -> Result<(), Error> {
        self.product(inputs, 1.0, x)
    }

    fn product(&self, inputs: Values<'_>, beta: f32, output: &mut [f32]) -> Result<(), Error> {
        let Layer { rows, columns, .. } = self.layer;
        multiply(self.weight.values(), 0..rows, columns, inputs, beta, output);
        if let Some(bias) = &self.bias {
            output.par_chunks_mut(rows).with_min_len(RUN.div_ceil(rows)).for_each(|row| add(row, bias));
        }
        match not_finite(output, rows) {
            None => Ok(()),
            Some((token, column, value)) => {
                self.weight.check_finite(&self.layer.name)?;
                Err(Error::ActivationNotFinite { block: None, layer: self.layer.name.clone(), token, column, value })
            }
        }
    }
}

/// Each value rounded to nearest.
pub(crate) fn round(values: &[f32]) -> Vec<bf16> {
    let mut rounded = vec![bf16::ZERO; values.len()];
    rounded.par_chunks_mut(RUN).zip(values.par_chunks(RUN)).for_each(|(to, from)| bf16::narrow(from, to));
    rounded
}

/// The first (token, column, value) of activations [tokens, columns] that is NaN or infinite.
pub fn not_finite(activations: &[f32], columns: usize) -> Option<(usize, usize, f32)> {
    if activations.par_chunks(RUN).all(all_finite) {
        return None;
    }
    first_not_finite(activations).map(|(position, value)| (position / columns, position % columns, value))
}
