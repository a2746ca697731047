//! Where a shard works: the arithmetic of its stages, and the memory of what lies between them. [`crate::blocks`] says in
//! which order things happen, once for all backends.

mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;

use std::ops::Range;

use checkpoint::{Dtype, Tensor};
use model::{Block, Forward, Stage};
use prune::{Method, Pattern};
use roofline::room::{self, Panels};

use crate::plan::product;

pub use cpu::{ATTENTION_TOKENS, CpuShard, FEED_FORWARD, FEED_FORWARD_TOKENS};

/// The residual stream of some tokens, as a backend computes with it.
pub type Stream<B> = <<B as Backend>::Forward as Forward>::Stream;

/// Inputs of a stage.
pub type Inputs<B> = <<B as Backend>::Forward as Forward>::Inputs;

/// How layers are pruned: the same for all.
#[derive(Clone, Copy, Debug)]
pub struct Solver {
    /// How weights are chosen.
    pub method: Method,
    /// How many go.
    pub pattern: Pattern,
    /// Bits of the grid for those that stay.
    pub bits: Option<u32>,
    /// The damping to begin with.
    pub damping: f64,
    /// Columns handled together.
    pub panel_width: usize,
}

/// Columns handled together, as a device has them.
pub fn panels(pattern: Pattern, panel_width: usize) -> Panels {
    match pattern {
        Pattern::Unstructured { .. } => Panels::Of(panel_width),
        Pattern::NOfM { group, .. } => Panels::Groups(group),
    }
}

/// Bytes that a device takes for a layer beside what its inputs are gathered into.
#[derive(Clone, Copy, Debug)]
pub struct LayerBytes {
    /// While that becomes what the layer is pruned with.
    pub preparing: u64,
    /// What remains of it then; for Wanda instead of H.
    pub prepared: u64,
    /// To prune the layer: its rows in f32, and all else.
    pub pruning: u64,
}

impl LayerBytes {
    /// Of rows [rows, columns], some of them on a `grid`.
    pub fn of(method: Method, panels: Panels, grid: bool, rows: usize, columns: usize) -> Self {
        let weight = room::allocated(product(&[rows, columns, size_of::<f32>()]));
        let norms = room::allocated(product(&[columns, size_of::<f32>()]));
        let (preparing, prepared, beside) = match method {
            Method::Sparsegpt => {
                (room::factor(columns), room::factored(columns), room::solve(rows, columns, panels, grid))
            }
            Method::Wanda => (norms, norms, room::selection(rows, columns)),
            Method::Magnitude => (0, 0, room::selection(rows, columns)),
        };
        Self { preparing, prepared, pruning: weight.saturating_add(beside) }
    }
}

/// One shard's place of work.
pub trait Backend {
    /// Its forward pass, to which blocks are loaded from another thread.
    type Forward: Forward<Error: std::error::Error + Send + Sync + 'static> + Send + 'static;
    /// The residual stream of all tokens of the shard between stages, one row a token.
    type Activations;
    /// Room for the inputs of a stage, of as many tokens as fit.
    type Kept;
    /// What the inputs of a stage are gathered into.
    type Statistics;
    /// What the layers of a stage are pruned with.
    type Prepared;

    /// The forward pass.
    fn forward(&self) -> &Self::Forward;

    /// Room for the residual stream of `tokens`, `width` values each.
    ///
    /// # Errors
    /// If there is none.
    fn activations(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Self::Activations>;

    /// Some tokens' residual stream.
    ///
    /// # Errors
    /// If there is no room for it.
    fn load(&self, from: &Self::Activations, tokens: Range<usize>) -> anyhow::Result<Stream<Self>>;

    /// Keeps some tokens' residual stream, rounded.
    ///
    /// # Errors
    /// If a value overflows the type that activations are kept in, unless [`Backend::settle`] tells of it.
    fn store(&self, to: &mut Self::Activations, tokens: Range<usize>, x: &Stream<Self>) -> anyhow::Result<()>;

    /// Tells of values that did not fit since the last time.
    ///
    /// # Errors
    /// If there are any.
    fn settle(&self, _activations: &mut Self::Activations) -> anyhow::Result<()> {
        Ok(())
    }

    /// Room for inputs of stages: as much as for the residual stream of `tokens`, `width` values each.
    ///
    /// # Errors
    /// If there is none.
    fn room(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Self::Kept>;

    /// Uses the room for inputs of `width` values and says how many tokens fit. What was kept is lost.
    fn reshape(&self, kept: &mut Self::Kept, width: usize) -> usize;

    /// Keeps the inputs of some tokens.
    ///
    /// # Errors
    /// As [`Backend::store`].
    fn keep(&self, to: &mut Self::Kept, tokens: Range<usize>, inputs: &Inputs<Self>) -> anyhow::Result<()>;

    /// [`Block::absorb`] of inputs that were kept.
    ///
    /// # Errors
    /// As there.
    fn absorb_kept(
        &self,
        block: &Block<'_, Self::Forward>,
        stage: usize,
        x: &mut Stream<Self>,
        kept: &Self::Kept,
        tokens: Range<usize>,
    ) -> anyhow::Result<()>;

    /// Statistics of no tokens over inputs of `width` values; `None` for a stage that is not pruned.
    ///
    /// # Errors
    /// If there is no room for them.
    fn statistics(&self, method: Option<Method>, width: usize) -> anyhow::Result<Self::Statistics>;

    /// Adds the inputs [tokens, width] of some tokens.
    ///
    /// # Errors
    /// If they are not finite and that is known, or there is no room for the work.
    fn accumulate(
        &self,
        statistics: &mut Self::Statistics,
        inputs: &Inputs<Self>,
        tokens: usize,
        width: usize,
    ) -> anyhow::Result<()>;

    /// The statistics of all shards, in place.
    ///
    /// # Errors
    /// If another shard ended early.
    fn sum(&self, statistics: &mut Self::Statistics) -> anyhow::Result<()>;

    /// Makes sure that there is room for [`Backend::prepare`] and [`Backend::prune`], of a stage of so many columns and layers of
    /// which this shard has at most so many rows, and for so many weights that are on their way.
    ///
    /// # Errors
    /// If there is none.
    fn reserve(&self, _rows: usize, _columns: usize, _solver: &Solver, _weights: usize) -> anyhow::Result<()> {
        Ok(())
    }

    /// What all shards prune with.
    ///
    /// # Errors
    /// If a Hessian is not finite or cannot be factored, there is no room, or another shard ended early.
    fn prepare(&self, statistics: Self::Statistics, solver: &Solver) -> anyhow::Result<Self::Prepared>;

    /// What is known of the factor, if there is one.
    fn factored(prepared: &Self::Prepared) -> Option<Factored>;

    /// Prunes this shard's rows of a layer and takes those of the others; the block computes with the result from then on.
    ///
    /// # Errors
    /// If a weight is not finite, there is no room, or another shard ended early.
    fn prune<'b>(
        &self,
        block: &'b mut Block<'_, Self::Forward>,
        layer: &LayerTask<'_>,
        prepared: &Self::Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Pruned<'b>>;

    /// Tokens that pass through a stage together, unless one sequence is longer.
    fn chunk_tokens(&self, stage: usize) -> usize;

    /// Whether an error says that there was no room, so that it is worth trying again with more of it.
    fn lacks_room(&self, _error: &anyhow::Error) -> bool {
        false
    }

    /// Gives something up, so that there is more room: whether there was anything left.
    ///
    /// # Errors
    /// If what is moved elsewhere has no room there either.
    fn relieve(&mut self, _activations: &mut Self::Activations, _kept: &mut Self::Kept) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// Waits for what was begun, so that it can be timed.
    ///
    /// # Errors
    /// If any of it failed.
    fn wait(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Parts from the other shards, all of which have done their work.
    ///
    /// # Errors
    /// If any of it failed, or another shard ended early.
    fn close(self) -> anyhow::Result<()>
    where
        Self: Sized,
    {
        Ok(())
    }
}

/// A layer to prune.
#[derive(Clone, Debug)]
pub struct LayerTask<'t> {
    /// The tensor that holds its weight.
    pub stored: Tensor<'t>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The rows of each shard, in the order of ranks.
    pub parts: Vec<Range<usize>>,
    /// This shard's rows.
    pub own: Range<usize>,
    /// Whether this shard writes the result.
    pub writes: bool,
}

/// What is known of a factor.
#[derive(Clone, Copy, Debug)]
pub struct Factored {
    /// The damping that was needed.
    pub damping: f64,
    /// How often it was raised tenfold.
    pub raises: u32,
    /// Columns that no token ever reached.
    pub dead: usize,
}

/// A pruned layer.
pub struct Pruned<'b> {
    /// Σ e²/2 over this shard's rows.
    pub obs_loss: Option<f64>,
    /// The layer as the checkpoint stores it, where this shard writes it.
    pub whole: Option<Whole<'b>>,
}

/// A layer's bytes: here, or on their way.
pub enum Whole<'b> {
    /// Here, in the block.
    Here(&'b [u8]),
    /// To be waited for, by a thread that writes while others compute.
    Coming(Coming),
}

/// Waits for bytes and hands them to whoever writes them.
pub type Coming = Box<dyn FnOnce(&mut dyn FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> + Send>;

/// How a stage is called in messages: by its layers.
pub fn stage_name(stage: &Stage) -> String {
    stage.layers.iter().map(|layer| layer_name(&layer.name)).collect::<Vec<_>>().join(", ")
}

/// The name of a layer whose weight is `tensor`.
pub fn layer_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}
