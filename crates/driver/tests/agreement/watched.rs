//! A shard that is watched: what each stage reads and what becomes of its layers is noted, and its choices may be led.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use checkpoint::{Dtype, Tensor};
use driver::backend::{Backend, Factored, Inputs, LayerTask, Pruned, Solver, Stream, Whole};
use model::{Block, Forward};
use prune::Method;

/// A layer as it was pruned. Matrices are row-major.
#[derive(Clone)]
pub(crate) struct Layer {
    /// The tensor that holds its weight.
    pub(crate) name: String,
    /// In the model.
    pub(crate) block: usize,
    /// What was pruned, W [rows, columns].
    pub(crate) weight: Vec<f32>,
    /// What came of it, Q [rows, columns].
    pub(crate) pruned: Vec<f32>,
    /// As the checkpoint stores it.
    pub(crate) bytes: Vec<u8>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// X [tokens, columns], which all layers of a stage share.
    pub(crate) inputs: Rc<Vec<f32>>,
    /// The damping that was needed, if any was.
    pub(crate) damping: Option<f64>,
    /// Σ e²/2.
    pub(crate) obs_loss: Option<f64>,
}

/// What a watched run has done so far, and whom it follows.
#[derive(Default)]
pub(crate) struct Watch {
    /// The pruned layers, in order.
    pub(crate) layers: RefCell<Vec<Layer>>,
    /// Where a tensor is found here, the block computes with it from then on, whatever the pruning made of the layer: so
    /// layers behind it have the same problem as in the run that these come from.
    pub(crate) leader: HashMap<String, Vec<u8>>,
    inputs: RefCell<Rc<Vec<f32>>>,
}

impl Watch {
    /// A watch on a run that follows this one.
    pub(crate) fn following(leader: &[Layer]) -> Self {
        let leader = leader.iter().map(|layer| (layer.name.clone(), layer.bytes.clone())).collect();
        Self { leader, ..Self::default() }
    }

    /// The layers, when the run is over.
    pub(crate) fn into_layers(self) -> Vec<Layer> {
        self.layers.into_inner()
    }
}

/// A shard and its watch.
pub(crate) struct Watched<'w, B: Backend> {
    pub(crate) shard: B,
    pub(crate) watch: &'w Watch,
    /// Copies inputs to the host.
    pub(crate) read: fn(&B, &Inputs<B>) -> Vec<f32>,
}

impl<B: Backend> Backend for Watched<'_, B> {
    type Forward = B::Forward;
    type Activations = B::Activations;
    type Kept = B::Kept;
    type Statistics = B::Statistics;
    type Prepared = B::Prepared;

    fn statistics(&self, method: Option<Method>, width: usize) -> anyhow::Result<B::Statistics> {
        self.watch.inputs.replace(Rc::default());
        self.shard.statistics(method, width)
    }

    fn accumulate(
        &self,
        statistics: &mut B::Statistics,
        inputs: &Inputs<B>,
        tokens: usize,
        width: usize,
    ) -> anyhow::Result<()> {
        Rc::make_mut(&mut self.watch.inputs.borrow_mut()).extend(&(self.read)(&self.shard, inputs)[..tokens * width]);
        self.shard.accumulate(statistics, inputs, tokens, width)
    }

    fn prune<'b>(
        &self,
        block: &'b mut Block<'_, B::Forward>,
        layer: &LayerTask<'_>,
        prepared: &B::Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Pruned<'b>> {
        let &LayerTask { ref stored, rows, columns, .. } = layer;
        let pruned = self.shard.prune(block, layer, prepared, solver)?;
        let (obs_loss, mut bytes) = (pruned.obs_loss, Vec::new());
        match pruned.whole {
            Some(Whole::Here(here)) => bytes.extend(here),
            Some(Whole::Coming(coming)) => coming(&mut |coming| {
                bytes.extend(coming);
                Ok(())
            })?,
            None => {}
        }
        self.watch.layers.borrow_mut().push(Layer {
            name: stored.name.to_owned(),
            block: block.index(),
            weight: stored.to_f32()?,
            pruned: Tensor { bytes: &bytes, ..*stored }.to_f32()?,
            bytes: bytes.clone(),
            rows,
            columns,
            inputs: self.watch.inputs.borrow().clone(),
            damping: B::factored(prepared).map(|factored| factored.damping),
            obs_loss,
        });
        if let Some(led) = self.watch.leader.get(stored.name) {
            let mut weight = model::Weight::zeros(rows * columns, stored.dtype)?;
            weight.bytes_mut().copy_from_slice(led);
            *block.weight_mut(stored.name) = self.shard.forward().weight(weight, rows, columns)?;
        }
        Ok(Pruned { obs_loss, whole: Some(Whole::Coming(Box::new(move |sink| sink(&bytes)))) })
    }

    // The rest is the shard's own.

    fn forward(&self) -> &B::Forward {
        self.shard.forward()
    }

    fn activations(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<B::Activations> {
        self.shard.activations(dtype, tokens, width)
    }

    fn load(&self, from: &B::Activations, tokens: Range<usize>) -> anyhow::Result<Stream<Self>> {
        self.shard.load(from, tokens)
    }

    fn store(&self, to: &mut B::Activations, tokens: Range<usize>, x: &Stream<Self>) -> anyhow::Result<()> {
        self.shard.store(to, tokens, x)
    }

    fn settle(&self, activations: &mut B::Activations) -> anyhow::Result<()> {
        self.shard.settle(activations)
    }

    fn room(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<B::Kept> {
        self.shard.room(dtype, tokens, width)
    }

    fn reshape(&self, kept: &mut B::Kept, width: usize) -> usize {
        self.shard.reshape(kept, width)
    }

    fn keep(&self, to: &mut B::Kept, tokens: Range<usize>, inputs: &Inputs<Self>) -> anyhow::Result<()> {
        self.shard.keep(to, tokens, inputs)
    }

    fn absorb_kept(
        &self,
        block: &Block<'_, B::Forward>,
        stage: usize,
        x: &mut Stream<Self>,
        kept: &B::Kept,
        tokens: Range<usize>,
    ) -> anyhow::Result<()> {
        self.shard.absorb_kept(block, stage, x, kept, tokens)
    }

    fn sum(&self, statistics: &mut B::Statistics) -> anyhow::Result<()> {
        self.shard.sum(statistics)
    }

    fn prepare(&self, statistics: B::Statistics, solver: &Solver) -> anyhow::Result<B::Prepared> {
        self.shard.prepare(statistics, solver)
    }

    fn factored(prepared: &B::Prepared) -> Option<Factored> {
        B::factored(prepared)
    }

    fn chunk_tokens(&self, stage: usize) -> usize {
        self.shard.chunk_tokens(stage)
    }

    fn close(self) -> anyhow::Result<()> {
        self.shard.close()
    }
}
