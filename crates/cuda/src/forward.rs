//! The forward pass on a device: what a [`Forward`] must do, each by a kernel or a product enqueued on the device's stream.
//! Weights and parameters come on the stream of what travels ([`Gpu::travel`]); the work waits for them when it reads them.
//!
//! Nothing here waits but [`Forward::losses`], which hands numbers to the host, and [`Forward::weight`], until the last pieces of
//! a weight are on their way. Numbers that are not finite are not looked for on the way, which would take a wait each: they stay
//! what they are until a loss is not finite.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use model::description::NormKind;
use model::forward::{Attend, Heads, LoadedLayer, LoadedNorm, Table};
use model::{Activation, Forward};
use prune_cuda::{Attention, HeadNorm, Losses, MatrixRef, Norm, Rotary, Rotation};

use crate::error::{driver, shape};
use crate::gpu::Tables;
use crate::{Element, Error, Gpu, Outputs, Rows, Stream, Vector, View, Weight};

impl<T: Element> Forward for Gpu<T> {
    type Stream = Stream;
    type Inputs = Rows<T>;
    type View<'i> = View<'i, T>;
    type Outputs = Outputs;
    type Vector = Vector;
    type Weight<'a> = Weight<T>;
    type Error = Error;

    fn room(&self) -> usize {
        // What cannot be asked for will say so when it is taken.
        self.device().available().map_or(usize::MAX, |bytes| bytes / size_of::<f32>())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vector, Error> {
        Ok(Vector(Arc::new(self.travel().upload(&values)?)))
    }

    fn weight<'a>(&self, weight: model::Weight<'a>, rows: usize, columns: usize) -> Result<Weight<T>, Error> {
        Weight::new(self.upload_weight(&weight)?, rows, columns)
    }

    fn view(inputs: &Rows<T>) -> View<'_, T> {
        View::of(inputs)
    }

    fn look_up(&self, table: &Table<'_, Self>, tokens: &[u32]) -> Result<Stream, Error> {
        self.embed(&table.values, tokens)
    }

    fn add_positions(
        &self,
        x: &mut Stream,
        table: &Table<'_, Self>,
        offset: usize,
        length: usize,
    ) -> Result<(), Error> {
        // Not where tokens are looked up: a projection may come between the two.
        let places: Vec<u32> = (0..x.tokens()).map(|token| (offset + token % length) as u32).collect();
        let rows = self.embed(&table.values, &places)?;
        Ok(prune_cuda::add(self.device(), &mut x.matrix_mut()?, &rows.matrix()?, None)?)
    }

    fn part(&self, x: &Stream, columns: usize, tokens: Range<usize>) -> Result<Stream, Error> {
        let elements = x.elements(columns, tokens.clone())?;
        let mut part = self.rows(tokens.len(), columns)?;
        self.copy(&x.values().slice(elements), &mut part.values_mut().as_view_mut())?;
        Ok(part)
    }

    fn put(&self, x: &mut Stream, columns: usize, first: usize, part: &Stream) -> Result<(), Error> {
        let from = part.elements(columns, 0..part.tokens())?;
        let to = x.elements(columns, first..first + part.tokens())?;
        self.copy(&part.values().slice(from), &mut x.values_mut().slice_mut(to))
    }

    fn norm(&self, norm: &LoadedNorm<Vector>, x: &Stream) -> Result<Rows<T>, Error> {
        let mut normed = self.rows(x.tokens(), x.columns())?;
        with_norm(norm, |norm| T::normalize(self.device(), &x.matrix()?, &mut normed.matrix_mut()?, norm))?;
        Ok(normed)
    }

    fn norm_in_place(&self, norm: &LoadedNorm<Vector>, x: &mut Stream) -> Result<(), Error> {
        with_norm(norm, |norm| prune_cuda::normalize_in_place(self.device(), &mut x.matrix_mut()?, norm))
    }

    fn inputs(&self, x: &Stream, _columns: usize) -> Result<Rows<T>, Error> {
        self.round(x, None)
    }

    fn apply(&self, layers: &[LoadedLayer<'_, Self>], inputs: View<'_, T>) -> Result<Vec<Outputs>, Error> {
        let apply = |layer: &LoadedLayer<'_, Self>| {
            let mut products = self.rows(inputs.tokens(), layer.layer.rows)?;
            self.multiply(layer, inputs, 0.0, &mut products)?;
            Ok(Outputs { products, bias: layer.bias.clone() })
        };
        layers.iter().map(apply).collect()
    }

    fn project(&self, layer: &LoadedLayer<'_, Self>, inputs: View<'_, T>) -> Result<Stream, Error> {
        let mut x = self.rows(inputs.tokens(), layer.layer.rows)?;
        self.multiply(layer, inputs, 0.0, &mut x)?;
        self.add_bias(&mut x, layer.bias.as_ref())?;
        Ok(x)
    }

    fn add(&self, x: &mut Stream, layers: &[LoadedLayer<'_, Self>], inputs: View<'_, T>) -> Result<(), Error> {
        for layer in layers {
            self.multiply(layer, inputs, 1.0, x)?;
            self.add_bias(x, layer.bias.as_ref())?;
        }
        Ok(())
    }

    fn attend(&self, projected: Vec<Outputs>, attend: &Attend<'_, Vector>) -> Result<Rows<T>, Error> {
        let device = self.device();
        let tables = attend.rotation.as_ref().map(|rotation| self.tables(rotation)).transpose()?;
        // One layer's f32 goes before the next one's 16 bits are made.
        let rounded = projected.into_iter().enumerate();
        let rounded = rounded.map(|(layer, outputs)| self.turned(layer, outputs, attend, tables.as_deref()));
        let rounded: Vec<Rows<T::Attention>> = rounded.collect::<Result<_, _>>()?;
        let matrices: Vec<MatrixRef<'_, T::Attention>> =
            rounded.iter().map(Rows::matrix).collect::<Result<_, prune_cuda::Error>>()?;
        let [q, k, v] = attend.heads.each_ref().map(|&Heads { layer, first, step, .. }| prune_cuda::Heads {
            matrix: &matrices[layer],
            first,
            step,
        });
        let slopes = attend.slopes.map(|slopes| slopes.0.as_view());
        let shape = Attention {
            heads: attend.heads[0].count,
            kv_heads: attend.heads[1].count,
            head_dim: attend.head_dim,
            sequence_length: attend.sequence_length,
            window: attend.window,
            slopes: slopes.as_ref(),
        };
        let (tokens, columns) = (q.matrix.rows(), shape.heads * shape.head_dim);
        let mut context = self.rows::<T::Attention>(tokens, columns)?;
        prune_cuda::attention(device, &q, &k, &v, &mut context.matrix_mut()?, &shape)?;
        drop(rounded);
        Rows::new(T::of_attention(device, context.into_values(), tokens, columns)?, tokens, columns)
    }

    fn activate(&self, activation: Activation, first: Outputs, up: Option<Outputs>) -> Result<Rows<T>, Error> {
        let kind = match activation {
            Activation::Relu => prune_cuda::Activation::Relu,
            Activation::Silu => prune_cuda::Activation::Silu,
            Activation::Gelu => prune_cuda::Activation::Gelu,
            Activation::GeluTanh => prune_cuda::Activation::GeluTanh,
        };
        let mut activated = self.rows(first.products.tokens(), first.products.columns())?;
        let biases = [Some(&first), up.as_ref()].map(|outputs| bias(outputs?.bias.as_ref()));
        let x = first.products.matrix()?;
        let up = up.as_ref().map(|up| up.products.matrix()).transpose()?;
        let up = up.as_ref().map(|up| (up, biases[1].as_ref()));
        T::activate(self.device(), kind, (&x, biases[0].as_ref()), up, &mut activated.matrix_mut()?)?;
        Ok(activated)
    }

    fn losses(
        &self,
        head: &LoadedLayer<'_, Self>,
        inputs: View<'_, T>,
        targets: &[Option<u32>],
    ) -> Result<Vec<f64>, Error> {
        let (tokens, vocabulary, width) = (targets.len(), head.weight.rows(), head.weight.columns());
        if (inputs.tokens(), inputs.columns()) != (tokens, width) {
            let found = format!("[{}, {}]", inputs.tokens(), inputs.columns());
            return Err(shape("inputs of the head", found, format!("[{tokens}, {width}]")));
        }
        let part = (self.logits() / tokens.max(1)).clamp(1, vocabulary.max(1));
        let mut losses = Losses::new(self.device(), targets)?;
        let mut logits = self.rows::<f32>(tokens, part)?;
        for first in (0..vocabulary).step_by(part) {
            let last = vocabulary.min(first + part);
            let weight = head.weight.values().slice(first * width..last * width);
            let mut of_part = logits.values_mut().slice_mut(..tokens * (last - first));
            self.cublas().multiply(&weight, &inputs.elements(), [tokens, last - first, width], 0.0, &mut of_part)?;
            losses.add(self.device(), &MatrixRef::new(of_part.as_view(), tokens, last - first)?, first)?;
        }
        let mut losses = self.device().download(&losses.finish(self.device())?)?;
        losses.truncate(tokens);
        Ok(losses)
    }
}

impl<T: Element> Gpu<T> {
    /// The rows of a table that these numbers ask for.
    fn embed(&self, table: &Weight<T>, numbers: &[u32]) -> Result<Stream, Error> {
        let mut x = self.rows(numbers.len(), table.columns())?;
        if !numbers.is_empty() {
            let numbers = self.device().upload(numbers)?;
            let table = table.matrix()?;
            prune_cuda::embed(self.device(), &numbers.as_view(), &table, None, 1, &mut x.matrix_mut()?)?;
        }
        Ok(x)
    }

    fn copy(&self, from: &CudaView<'_, f32>, to: &mut CudaViewMut<'_, f32>) -> Result<(), Error> {
        self.device().stream().memcpy_dtod(from, to).map_err(driver)
    }

    /// f32 activations, and what is to be added to their columns, rounded to another type.
    fn round<N: Element>(&self, x: &Stream, bias: Option<&CudaView<'_, f32>>) -> Result<Rows<N>, Error> {
        let mut rounded = self.rows(x.tokens(), x.columns())?;
        let identity = prune_cuda::Activation::Identity;
        N::activate(self.device(), identity, (&x.matrix()?, bias), None, &mut rounded.matrix_mut()?)?;
        Ok(rounded)
    }

    /// y ← β·y + W·inputs.
    fn multiply(
        &self,
        layer: &LoadedLayer<'_, Self>,
        inputs: View<'_, T>,
        beta: f32,
        y: &mut Stream,
    ) -> Result<(), Error> {
        let (weight, tokens) = (&layer.weight, inputs.tokens());
        let (found, expected) =
            ((y.tokens(), y.columns(), inputs.columns()), (tokens, weight.rows(), weight.columns()));
        if found != expected {
            let text = |(tokens, rows, columns)| format!("{tokens} tokens, {columns} columns in, {rows} out");
            return Err(shape("activations of a linear layer", text(found), text(expected)));
        }
        let sizes = [tokens, weight.rows(), weight.columns()];
        let (weight, inputs) = (weight.values().as_view(), inputs.elements());
        self.cublas().multiply(&weight, &inputs, sizes, beta, &mut y.values_mut().as_view_mut())
    }

    fn add_bias(&self, x: &mut Stream, vector: Option<&Vector>) -> Result<(), Error> {
        let Some(bias) = bias(vector) else { return Ok(()) };
        let identity = prune_cuda::Activation::Identity;
        Ok(prune_cuda::activate_in_place(self.device(), identity, (&mut x.matrix_mut()?, Some(&bias)), None)?)
    }

    /// What a layer before attention puts out, as attention reads it: with its bias, and with those heads of q and k that lie in
    /// it normalized and turned, all in f32 and rounded once.
    fn turned(
        &self,
        layer: usize,
        outputs: Outputs,
        attend: &Attend<'_, Vector>,
        tables: Option<&Tables>,
    ) -> Result<Rows<T::Attention>, Error> {
        let Outputs { mut products, bias: vector } = outputs;
        let turns = |&part: &usize| attend.heads[part].layer == layer && (attend.norms.is_some() || tables.is_some());
        let parts: Vec<usize> = [0, 1].into_iter().filter(turns).collect();
        if parts.is_empty() {
            return self.round(&products, bias(vector.as_ref()).as_ref());
        }
        self.add_bias(&mut products, vector.as_ref())?;
        let half = attend.head_dim / 2;
        let table = |values| MatrixRef::new(slice(values), attend.sequence_length, half);
        let tables =
            tables.map(|tables| Ok::<_, Error>((table(&tables.cosines)?, table(&tables.sines)?))).transpose()?;
        let rotation = tables.as_ref().map(|(cosines, sines)| Rotation { cosines, sines });
        for part in parts {
            let norm = attend.norms.map(|norms| &norms[part]);
            if let Some(LoadedNorm { norm, shift, .. }) = norm
                && (norm.kind != NormKind::Rms || shift.is_some())
            {
                return Err(shape("the norm of heads", "a layer norm", "an RMS norm"));
            }
            let scale = norm.map(|norm| slice(&norm.scale.0));
            let epsilon = norm.map_or(0.0, |norm| norm.norm.epsilon);
            let Heads { first, step, count: heads, .. } = attend.heads[part];
            let rotary = Rotary {
                heads,
                head_dim: attend.head_dim,
                first,
                step,
                sequence_length: attend.sequence_length,
                norm: scale.as_ref().map(|scale| HeadNorm { scale, epsilon }),
                rotation,
            };
            prune_cuda::rotate_in_place(self.device(), &mut products.matrix_mut()?, &rotary)?;
        }
        self.round(&products, None)
    }
}

fn slice(values: &CudaSlice<f32>) -> CudaView<'_, f32> {
    values.as_view()
}

fn bias(vector: Option<&Vector>) -> Option<CudaView<'_, f32>> {
    vector.map(|vector| slice(&vector.0))
}

/// Hands a norm to a kernel, as kernels read it.
fn with_norm(
    norm: &LoadedNorm<Vector>,
    run: impl FnOnce(&Norm<'_>) -> Result<(), prune_cuda::Error>,
) -> Result<(), Error> {
    let (scale, shift) = (slice(&norm.scale.0), bias(norm.shift.as_ref()));
    let LoadedNorm { norm, .. } = norm;
    let centered = norm.kind == NormKind::Layer;
    Ok(run(&Norm { centered, epsilon: norm.epsilon, scale: &scale, shift: shift.as_ref() })?)
}
