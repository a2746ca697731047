//! Shards that are threads of the processor.

use std::ops::Range;

use anyhow::{Context, bail};
use checkpoint::{Dtype, Values, narrow};
use linalg::{Element, MatrixRef};
use model::{Block, Cpu};
use prune::{Collective, ColumnNorms, Factor, Hessian, Method, Selection, Settings, Weight, effective_panel_width};

use crate::activations::Activations;
use crate::backend::{Backend, Factored, LayerTask, Pruned, Solver, Whole, layer_name};
use crate::memory;

/// Tokens that pass through the attention half of a block together, unless one sequence is longer.
pub const ATTENTION_TOKENS: usize = 2048;

/// Tokens that pass through the feed-forward half together: it does not care for sequences, and its intermediate
/// activations are the widest. Fewer would have the products with W and into H read and write those more often.
pub const FEED_FORWARD_TOKENS: usize = 768;

/// The first stage of the feed-forward half.
pub const FEED_FORWARD: usize = 2;

/// A shard that shares the processor with others.
pub struct CpuShard<'a> {
    forward: Cpu,
    collective: &'a dyn Collective,
}

impl<'a> CpuShard<'a> {
    /// One of a group of shards whose residual streams are kept as `activations`.
    pub fn new(collective: &'a dyn Collective, activations: Dtype) -> Self {
        let forward = if activations == Dtype::BF16 { Cpu::rounding_inputs() } else { Cpu::default() };
        Self { forward, collective }
    }
}

/// What the inputs of a stage are gathered into.
pub enum Statistics {
    Hessian(Hessian),
    Norms(ColumnNorms),
    Nothing,
}

/// What a layer is pruned with.
pub enum Prepared {
    Factor(Factor),
    Norms(Vec<f32>),
    Nothing,
}

impl Backend for CpuShard<'_> {
    type Forward = Cpu;
    type Activations = Activations;
    type Kept = Activations;
    type Statistics = Statistics;
    type Prepared = Prepared;

    fn forward(&self) -> &Cpu {
        &self.forward
    }

    fn activations(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Activations> {
        Ok(Activations::new(dtype, tokens, width))
    }

    fn load(&self, from: &Activations, tokens: Range<usize>) -> anyhow::Result<Vec<f32>> {
        Ok(from.load(tokens))
    }

    fn store(&self, to: &mut Activations, tokens: Range<usize>, x: &Vec<f32>) -> anyhow::Result<()> {
        to.store(tokens, x)
    }

    fn room(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Activations> {
        Ok(Activations::new(dtype, tokens, width))
    }

    fn reshape(&self, kept: &mut Activations, width: usize) -> usize {
        kept.reshape(width);
        kept.capacity()
    }

    fn keep(&self, to: &mut Activations, tokens: Range<usize>, inputs: &Vec<f32>) -> anyhow::Result<()> {
        to.store(tokens, inputs)
    }

    fn absorb_kept(
        &self,
        block: &Block<'_>,
        stage: usize,
        x: &mut Vec<f32>,
        kept: &Activations,
        tokens: Range<usize>,
    ) -> anyhow::Result<()> {
        Ok(block.absorb(stage, x, kept.values(tokens))?)
    }

    fn statistics(&self, method: Option<Method>, width: usize) -> anyhow::Result<Statistics> {
        Ok(match method {
            Some(Method::Sparsegpt) => Statistics::Hessian(Hessian::new(width)),
            Some(Method::Wanda) => Statistics::Norms(ColumnNorms::new(width)),
            Some(Method::Magnitude) | None => Statistics::Nothing,
        })
    }

    fn accumulate(
        &self,
        statistics: &mut Statistics,
        inputs: &Vec<f32>,
        tokens: usize,
        width: usize,
    ) -> anyhow::Result<()> {
        if let Some((token, column, value)) = model::not_finite(inputs, width) {
            bail!("the inputs hold {value} at token {token} of a chunk, column {column}");
        }
        match statistics {
            Statistics::Hessian(hessian) => hessian.accumulate(MatrixRef::new(inputs, tokens, width)),
            Statistics::Norms(norms) => norms.accumulate(inputs),
            Statistics::Nothing => {}
        }
        Ok(())
    }

    fn sum(&self, statistics: &mut Statistics) -> anyhow::Result<()> {
        match statistics {
            Statistics::Hessian(hessian) => hessian.sum(self.collective)?,
            Statistics::Norms(norms) => norms.sum(self.collective)?,
            Statistics::Nothing => {}
        }
        Ok(())
    }

    fn prepare(&self, statistics: Statistics, solver: &Solver) -> anyhow::Result<Prepared> {
        Ok(match statistics {
            Statistics::Hessian(hessian) => {
                let width = effective_panel_width(solver.panel_width, solver.pattern.group());
                Prepared::Factor(Factor::shared(hessian, solver.damping, width, self.collective)?)
            }
            Statistics::Norms(norms) => Prepared::Norms(norms.norms()),
            Statistics::Nothing => Prepared::Nothing,
        })
    }

    fn factored(prepared: &Prepared) -> Option<Factored> {
        let Prepared::Factor(factor) = prepared else { return None };
        let dead = factor.dead().iter().filter(|&&dead| dead).count();
        Some(Factored { damping: factor.damping(), raises: factor.raises(), dead })
    }

    fn prune<'b>(
        &self,
        block: &'b mut Block<'_>,
        layer: &LayerTask<'_>,
        prepared: &Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Pruned<'b>> {
        let &LayerTask { ref stored, ref own, rows, columns, .. } = layer;
        let mut weight = match stored.values()? {
            Values::F32(values) => own_rows(values, own, columns),
            Values::F16(values) => own_rows(values, own, columns),
            Values::Bf16(values) => own_rows(values, own, columns),
        };
        if let Some((row, column)) = weight.not_finite() {
            let (tensor, value) = (stored.name, "NaN or infinity");
            bail!("{tensor} holds {value} at row {}, column {column}: the checkpoint is damaged", own.start + row);
        }
        let obs_loss = match prepared {
            Prepared::Factor(factor) => {
                let settings = Settings { selection: Selection::Pattern(solver.pattern), bits: solver.bits };
                let outcome = prune::sparsegpt(&mut weight, factor, &settings, self.collective)?;
                Some(outcome.obs_loss.iter().sum())
            }
            Prepared::Norms(norms) => {
                prune::wanda(&mut weight, solver.pattern, norms)?;
                None
            }
            Prepared::Nothing => {
                prune::magnitude(&mut weight, solver.pattern, self.collective)?;
                None
            }
        };
        // Here and below: what a step leaves with the allocator would lie beside what the next one takes.
        memory::give_back();
        let turned = weight.to_row_major();
        drop(weight);
        let bytes = narrow(&turned, &stored.dtype).with_context(|| layer_name(stored.name).to_owned())?;
        drop(turned);
        memory::give_back();
        // The whole layer, into which shards put their rows, is what the block gets: it lies in memory once.
        let whole = block.weight_mut(stored.name);
        *whole = model::Weight::zeros(rows * columns, stored.dtype)?;
        let size = columns * stored.dtype.size();
        let parts: Vec<_> = layer.parts.iter().map(|rows| rows.start * size..rows.end * size).collect();
        let whole = whole.bytes_mut();
        whole[own.start * size..own.end * size].copy_from_slice(&bytes);
        drop(bytes);
        self.collective.exchange(whole, &parts)?;
        Ok(Pruned { obs_loss, whole: layer.writes.then_some(Whole::Here(whole)) })
    }

    fn chunk_tokens(&self, stage: usize) -> usize {
        if stage < FEED_FORWARD { ATTENTION_TOKENS } else { FEED_FORWARD_TOKENS }
    }
}

fn own_rows<T: Element>(values: &[T], own: &Range<usize>, columns: usize) -> Weight {
    Weight::from_row_major(&values[own.start * columns..own.end * columns], own.len(), columns)
}
