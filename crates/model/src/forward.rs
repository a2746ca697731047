//! What a forward pass is made of. [`Model`](crate::Model) and [`Block`](crate::Block) say what is done in which order, once
//! for all architectures; a [`Forward`] does it, on the processor ([`Cpu`](crate::Cpu)) or on a device.

use std::ops::Range;
use std::sync::Arc;

use crate::description::Norm;
use crate::rope::Rotation;
use crate::{Activation, Error, Layer, Weight};

/// Where a forward pass runs: its numbers, and what is done with them. Clones work in the same place.
///
/// Functions may return before their work is done, and then tell of numbers that are not finite later, or leave them in their
/// results.
pub trait Forward: Clone {
    /// The residual stream x of some tokens, f32 [tokens, columns].
    type Stream;
    /// What linear layers read, [tokens, columns], in the type in which they read it.
    type Inputs;
    /// Inputs that lie somewhere, among them those that were kept.
    type View<'i>: Copy;
    /// What a linear layer puts out, [tokens, rows].
    type Outputs;
    /// Parameters for the columns of activations, f32.
    type Vector: Clone + Send + Sync;
    /// The weight of a linear layer, or a table of rows; it may lie in a checkpoint.
    type Weight<'a>: Clone + Send + Sync;
    /// What can go wrong.
    type Error: From<Error>;

    /// How many f32 there is room for, as far as is known before they are allocated.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Takes parameters over.
    ///
    /// # Errors
    /// If there is no room for them.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, Self::Error>;

    /// Takes a weight [rows, columns] over.
    ///
    /// # Errors
    /// If there is no room for it.
    fn weight<'a>(&self, weight: Weight<'a>, rows: usize, columns: usize) -> Result<Self::Weight<'a>, Self::Error>;

    /// Inputs where they lie.
    fn view(inputs: &Self::Inputs) -> Self::View<'_>;

    /// The rows [tokens, columns] of `table` that `tokens` ask for, all of which it has.
    ///
    /// # Errors
    /// If there is no room for them.
    fn look_up(&self, table: &Table<'_, Self>, tokens: &[u32]) -> Result<Self::Stream, Self::Error>;

    /// x ← x + the row `offset + token % length` of `table`.
    ///
    /// # Errors
    /// If there is no room for the work.
    fn add_positions(
        &self,
        x: &mut Self::Stream,
        table: &Table<'_, Self>,
        offset: usize,
        length: usize,
    ) -> Result<(), Self::Error>;

    /// The residual stream of some of the tokens of x, whose rows have `columns`.
    ///
    /// # Errors
    /// If there is no room for it.
    fn part(&self, x: &Self::Stream, columns: usize, tokens: Range<usize>) -> Result<Self::Stream, Self::Error>;

    /// Puts a part of x, whose rows have `columns`, back at the token `first`.
    ///
    /// # Errors
    /// If a device fails.
    fn put(&self, x: &mut Self::Stream, columns: usize, first: usize, part: &Self::Stream) -> Result<(), Self::Error>;

    /// norm(x), as linear layers read it.
    ///
    /// # Errors
    /// If there is no room for it.
    fn norm(&self, norm: &LoadedNorm<Self::Vector>, x: &Self::Stream) -> Result<Self::Inputs, Self::Error>;

    /// x ← norm(x).
    ///
    /// # Errors
    /// If a device fails.
    fn norm_in_place(&self, norm: &LoadedNorm<Self::Vector>, x: &mut Self::Stream) -> Result<(), Self::Error>;

    /// x, whose rows have `columns`, as linear layers read it.
    ///
    /// # Errors
    /// If there is no room for it.
    fn inputs(&self, x: &Self::Stream, columns: usize) -> Result<Self::Inputs, Self::Error>;

    /// W·x + b of each layer.
    ///
    /// # Errors
    /// If a number is not finite and that is known, or there is no room.
    fn apply(
        &self,
        layers: &[LoadedLayer<'_, Self>],
        inputs: Self::View<'_>,
    ) -> Result<Vec<Self::Outputs>, Self::Error>;

    /// x ← W·inputs + b.
    ///
    /// # Errors
    /// As [`Forward::apply`].
    fn project(&self, layer: &LoadedLayer<'_, Self>, inputs: Self::View<'_>) -> Result<Self::Stream, Self::Error>;

    /// x ← x + W·inputs + b of each layer.
    ///
    /// # Errors
    /// As [`Forward::apply`].
    fn add(
        &self,
        x: &mut Self::Stream,
        layers: &[LoadedLayer<'_, Self>],
        inputs: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// softmax(q·kᵀ / √head_dim)·v of all heads, [tokens, heads · head_dim].
    ///
    /// # Errors
    /// If there is no room for it.
    fn attend(
        &self,
        projected: Vec<Self::Outputs>,
        attention: &Attend<'_, Self::Vector>,
    ) -> Result<Self::Inputs, Self::Error>;

    /// f(first), or f(first)·up where there is a gate.
    ///
    /// # Errors
    /// If there is no room for it.
    fn activate(
        &self,
        activation: Activation,
        first: Self::Outputs,
        up: Option<Self::Outputs>,
    ) -> Result<Self::Inputs, Self::Error>;

    /// −ln p(target) of each token that has a target, 0 of others, for logits W·inputs; not finite where those are not.
    ///
    /// # Errors
    /// As [`Forward::apply`].
    fn losses(
        &self,
        head: &LoadedLayer<'_, Self>,
        inputs: Self::View<'_>,
        targets: &[Option<u32>],
    ) -> Result<Vec<f64>, Self::Error>;

    /// Says where an error happened: in which block, and so many tokens after the first.
    fn locate(error: Self::Error, _block: Option<usize>, _tokens: usize) -> Self::Error {
        error
    }
}

/// A norm with its learned parameters.
#[derive(Clone, Debug)]
pub struct LoadedNorm<V> {
    /// What it computes.
    pub norm: Norm,
    /// `[columns]`; all ones where the norm has none.
    pub scale: V,
    /// `[columns]`.
    pub shift: Option<V>,
}

/// A linear layer with its numbers.
pub struct LoadedLayer<'a, F: Forward> {
    /// Its name and shape.
    pub layer: Layer,
    /// [rows, columns].
    pub weight: F::Weight<'a>,
    /// `[rows]`.
    pub bias: Option<F::Vector>,
}

impl<F: Forward> Clone for LoadedLayer<'_, F> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), weight: self.weight.clone(), bias: self.bias.clone() }
    }
}

/// A table that rows are looked up in.
pub struct Table<'a, F: Forward> {
    /// The tensor.
    pub name: String,
    /// [rows, columns].
    pub values: F::Weight<'a>,
    /// How many rows it has.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
}

/// Where the heads of q, k or v lie in what a stage puts out: head h in the columns from `first + h · step` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The number of the layer.
    pub layer: usize,
    /// Columns of all that the layer puts out.
    pub width: usize,
    /// The column in which head 0 begins.
    pub first: usize,
    /// Columns from head to head.
    pub step: usize,
    /// How many.
    pub count: usize,
}

/// An attention over whole sequences.
#[derive(Debug)]
pub struct Attend<'b, V> {
    /// Heads of queries, of keys, and of values.
    pub heads: [Heads; 3],
    /// Columns of a head.
    pub head_dim: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// How many keys a query sees, its own included; none for all before it.
    pub window: Option<usize>,
    /// Norms of each head of q and of k, first.
    pub norms: Option<&'b [LoadedNorm<V>; 2]>,
    /// What q and k are turned by, after them.
    pub rotation: Option<Arc<Rotation>>,
    /// `[heads]`: what is subtracted from a score per token of distance.
    pub slopes: Option<&'b V>,
}
