//! The decoder blocks of a model, pruned one after another, stage by stage, by one shard of several.
//!
//! ```text
//! for each block, for each stage:
//!   x ─▶ the stage's inputs ─▶ H (this shard's sequences)      H ─▶ summed over shards ─▶ factor
//!   W (this shard's rows) ─▶ pruned ─▶ rounded ─▶ gathered from all shards ─▶ the block, the checkpoint
//!   x ─▶ x + the stage's output with the pruned weights        (after stages that end a half-block)
//! ```
//! x is the residual stream of this shard's sequences. Between the pass that fills H and the pass that updates x, the
//! inputs of a stage are kept, as far as one more buffer of the size of x holds them; those of the other tokens are
//! computed again. So a run holds two activation buffers, whatever the widths in a block.

use crate::activations::Activations;
use crate::architecture::STAGES;
use crate::memory;
use crate::progress::Task;
use crate::report::{Clock, LayerReport, Phase};
use anyhow::{Context, bail};
use checkpoint::{Dtype, Values, Writer, narrow};
use linalg::{Element, MatrixRef};
use model::calibration::Sequences;
use model::{Block, Layer, Model, Stage};
use prune::{
    Collective, ColumnNorms, Factor, Hessian, Method, Pattern, Selection, Settings, Weight, effective_panel_width,
    share,
};
use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

/// Tokens that pass through the attention half of a block together, unless one sequence is longer.
pub const ATTENTION_TOKENS: usize = 2048;

/// Tokens that pass through the feed-forward half together: it does not care for sequences, and its intermediate
/// activations are the widest. Fewer would have the products with W and into H read and write those more often.
pub const FEED_FORWARD_TOKENS: usize = 768;

/// The first stage of the feed-forward half.
pub const FEED_FORWARD: usize = 2;

/// What is pruned, and how: the same for all shards.
pub struct Job<'a> {
    /// The dense model.
    pub model: &'a Model<'a>,
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
    /// What to calibrate on; only magnitude pruning does without.
    pub sequences: Option<&'a Sequences>,
    /// The number type of activations between stages.
    pub activations: Dtype,
    /// Whether a layer of a block is to be pruned.
    pub selects: &'a (dyn Fn(usize, &str) -> bool + Sync),
    /// How many blocks to go through: up to the last that has a layer to prune.
    pub blocks: usize,
    /// Shards of this process: the first of them writes for all.
    pub local_shards: usize,
    /// Where pruned tensors go.
    pub output: &'a Writer,
    /// Told of the work done.
    pub task: &'a Task<'a>,
}

/// Prunes this shard's part of the job and reports the layers, in the order they were pruned. What the first shard
/// spends its time on is booked to `clock`.
///
/// # Errors
/// If a weight or an activation is not finite, a Hessian cannot be factored, a result cannot be written, or another
/// shard failed.
pub fn prune_blocks(
    job: &Job<'_>,
    collective: &dyn Collective,
    clock: &Mutex<Clock>,
) -> anyhow::Result<Vec<LayerReport>> {
    let mut shard = Shard::new(job, collective, clock)?;
    for block in 0..job.blocks {
        shard.prune_block(block)?;
        if collective.rank() == 0 {
            job.task.milestone(&format!("block {} of {}", block + 1, job.blocks));
        }
    }
    Ok(shard.reports)
}

/// One shard at work.
struct Shard<'a> {
    job: &'a Job<'a>,
    collective: &'a dyn Collective,
    clock: &'a Mutex<Clock>,
    /// Tokens per sequence, and tokens of this shard.
    length: usize,
    tokens: usize,
    /// The residual stream.
    stream: Activations,
    /// The inputs of the present stage, of as many tokens as fit.
    kept: Activations,
    reports: Vec<LayerReport>,
    /// Chunks and layers that were begun, and how many there are in all.
    steps: usize,
    all_steps: usize,
}

/// The passes over this shard's tokens that a stage takes.
#[derive(Clone, Copy)]
struct Passes {
    /// Computes the stage's inputs.
    gathers: bool,
    /// Updates the residual stream with its output.
    absorbs: bool,
}

/// What the inputs of a stage are gathered into.
enum Statistics {
    Hessian(Hessian),
    Norms(ColumnNorms),
    Nothing,
}

/// What a layer is pruned with.
enum Prepared {
    Factor(Factor),
    Norms(Vec<f32>),
    Nothing,
}

impl<'a> Shard<'a> {
    /// Embeds this shard's sequences.
    fn new(job: &'a Job<'a>, collective: &'a dyn Collective, clock: &'a Mutex<Clock>) -> anyhow::Result<Self> {
        let hidden = job.model.description().hidden;
        let (sequences, length) = match job.sequences {
            Some(sequences) => {
                let own = share(sequences.count(), collective.rank(), collective.size());
                (&sequences.tokens[own.start * sequences.length..own.end * sequences.length], sequences.length)
            }
            None => (&[][..], 1),
        };
        let tokens = sequences.len();
        let stream = Activations::new(job.activations, tokens, hidden);
        let kept = Activations::new(job.activations, tokens, hidden);
        let (reports, steps, all_steps) = (Vec::new(), 0, 0);
        let mut shard = Self { job, collective, clock, length, tokens, stream, kept, reports, steps, all_steps };
        shard.all_steps = shard.count_steps();
        for chunk in shard.chunks(0).0 {
            let embedded = shard.time(Phase::Embed, || job.model.embed(&sequences[chunk.clone()], length))?;
            shard.stream.store(chunk, &embedded).context("in the embedding")?;
        }
        // The rows of the embedding that were read need not stay in memory.
        job.model.checkpoint().tensors().for_each(|tensor| job.model.checkpoint().release(tensor.name));
        Ok(shard)
    }

    /// The layers of a stage that are to be pruned.
    fn chosen<'s>(&'s self, block: usize, stage: &'s Stage) -> impl Iterator<Item = &'s Layer> {
        stage.layers.iter().filter(move |layer| (self.job.selects)(block, layer_name(&layer.name)))
    }

    /// The passes that a stage of a block takes. What comes after the last layer to prune is read by nobody.
    fn passes(&self, block: usize, stages: &[Stage], number: usize) -> Passes {
        let chooses = |stage: &Stage| self.chosen(block, stage).next().is_some();
        let read = block + 1 < self.job.blocks || stages[number + 1..].iter().any(chooses);
        let absorbs = Block::absorbs(number) && read;
        let calibrates = self.job.method != Method::Magnitude && chooses(&stages[number]);
        Passes { gathers: absorbs || calibrates, absorbs }
    }

    /// Chunks and layers of the whole job.
    fn count_steps(&self) -> usize {
        let in_block = |block: usize| {
            let stages = self.job.model.stages(block);
            let in_stage = |number: usize| {
                let Passes { gathers, absorbs } = self.passes(block, &stages, number);
                let passes = usize::from(gathers) + usize::from(absorbs);
                passes * self.chunks(number).0.len() + self.chosen(block, &stages[number]).count()
            };
            (0..stages.len()).map(in_stage).sum::<usize>()
        };
        (0..self.job.blocks).map(in_block).sum()
    }

    /// Says that another chunk or layer is begun.
    fn step(&mut self) {
        self.steps += 1;
        if self.collective.rank() == 0 {
            self.job.task.reach(self.steps as u64, self.all_steps as u64);
        }
    }

    fn time<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        if self.collective.rank() > 0 {
            return work();
        }
        match self.clock.lock() {
            Ok(mut clock) => clock.time(phase, work),
            Err(_) => work(),
        }
    }

    /// This shard's tokens as a stage takes them, chunk by chunk, and the length of the sequences that a chunk consists
    /// of: for attention some whole sequences at a time, otherwise any tokens.
    fn chunks(&self, stage: usize) -> (Vec<Range<usize>>, usize) {
        let (step, length) = match stage {
            FEED_FORWARD.. => (FEED_FORWARD_TOKENS, 1),
            _ => ((ATTENTION_TOKENS / self.length).max(1) * self.length, self.length),
        };
        ((0..self.tokens).step_by(step).map(|start| start..(start + step).min(self.tokens)).collect(), length)
    }

    fn prune_block(&mut self, index: usize) -> anyhow::Result<()> {
        let mut block = self.job.model.block(index)?;
        if self.job.activations == Dtype::BF16 {
            block.round_inputs();
        }
        let stages = block.stages().to_vec();
        for (number, stage) in stages.iter().enumerate() {
            let passes = self.passes(index, &stages, number);
            let chosen: Vec<_> = self.chosen(index, stage).cloned().collect();
            self.prune_stage(&mut block, number, &chosen, passes)
                .with_context(|| format!("block {index}, {}", stage_name(stage)))?;
            // The next stage's chunks have other sizes, and would lie beside what the allocator keeps of this one's.
            memory::give_back();
        }
        self.job.model.release(index);
        Ok(())
    }

    fn prune_stage(
        &mut self,
        block: &mut Block<'_>,
        number: usize,
        chosen: &[Layer],
        passes: Passes,
    ) -> anyhow::Result<()> {
        let (statistics, kept) = self.gather(block, number, !chosen.is_empty(), passes)?;
        if !chosen.is_empty() {
            // What chunks leave with the allocator would lie beside the layers, once for each shard.
            memory::give_back();
            let prepared = self.prepare(statistics, &block.stages()[number])?;
            for layer in chosen {
                self.step();
                self.prune_layer(block, STAGES[number], &layer.name, &prepared)?;
            }
        }
        if passes.absorbs { self.absorb(block, number, kept) } else { Ok(()) }
    }

    /// Gathers the inputs of a stage into statistics, if they are `wanted`, and keeps those of as many tokens as fit, if
    /// they will be needed again; returns how many.
    fn gather(
        &mut self,
        block: &Block<'_>,
        number: usize,
        wanted: bool,
        passes: Passes,
    ) -> anyhow::Result<(Statistics, usize)> {
        let stage = &block.stages()[number];
        let mut statistics = match self.job.method {
            Method::Sparsegpt if wanted => Statistics::Hessian(Hessian::new(stage.width)),
            Method::Wanda if wanted => Statistics::Norms(ColumnNorms::new(stage.width)),
            _ => Statistics::Nothing,
        };
        if !passes.gathers {
            return Ok((statistics, 0));
        }
        self.kept.reshape(stage.width);
        let mut kept = 0;
        let (chunks, length) = self.chunks(number);
        for chunk in chunks {
            self.step();
            let stream = &self.stream;
            let load = || stream.load(chunk.clone());
            let inputs = self.time(Phase::Forward, || block.stage_inputs(number, &load(), length))?;
            if let Some((token, column, value)) = model::not_finite(&inputs, stage.width) {
                bail!("the inputs hold {value} at token {token} of a chunk, column {column}");
            }
            self.time(Phase::Hessian, || match &mut statistics {
                Statistics::Hessian(hessian) => hessian.accumulate(MatrixRef::new(&inputs, chunk.len(), stage.width)),
                Statistics::Norms(norms) => norms.accumulate(&inputs),
                Statistics::Nothing => {}
            });
            if passes.absorbs && kept == chunk.start && chunk.end <= self.kept.capacity() {
                self.kept.store(chunk.clone(), &inputs)?;
                kept = chunk.end;
            }
        }
        Ok((statistics, kept))
    }

    /// The statistics of all shards, ready to prune with.
    fn prepare(&self, statistics: Statistics, stage: &Stage) -> anyhow::Result<Prepared> {
        let job = self.job;
        Ok(match statistics {
            Statistics::Hessian(mut hessian) => {
                self.time(Phase::Hessian, || hessian.sum(self.collective))?;
                let width = effective_panel_width(job.panel_width, job.pattern.group());
                let factor =
                    self.time(Phase::Factor, || Factor::shared(hessian, job.damping, width, self.collective))?;
                if factor.raises() > 0 && self.collective.rank() == 0 {
                    tracing::warn!(
                        "{}: the damping had to be raised to {} for the Hessian to be positive definite",
                        stage_name(stage),
                        factor.damping()
                    );
                }
                Prepared::Factor(factor)
            }
            Statistics::Norms(mut norms) => {
                self.time(Phase::Hessian, || norms.sum(self.collective))?;
                Prepared::Norms(norms.norms())
            }
            Statistics::Nothing => Prepared::Nothing,
        })
    }

    /// Prunes this shard's rows of a layer, gathers the others', and puts the result into the block and the checkpoint.
    fn prune_layer(
        &mut self,
        block: &mut Block<'_>,
        stage: &'static str,
        tensor: &str,
        prepared: &Prepared,
    ) -> anyhow::Result<()> {
        let job = self.job;
        let started = Instant::now();
        let name = layer_name(tensor);
        let stored = job.model.checkpoint().tensor(tensor)?;
        let [rows, columns] = *stored.shape else {
            bail!("{tensor} has the shape {:?}, not two dimensions", stored.shape)
        };
        let own = share(rows, self.collective.rank(), self.collective.size());
        let mut weight = match stored.values()? {
            Values::F32(values) => own_rows(values, &own, columns),
            Values::F16(values) => own_rows(values, &own, columns),
            Values::Bf16(values) => own_rows(values, &own, columns),
        };
        if let Some((row, column)) = weight.not_finite() {
            let value = "NaN or infinity";
            bail!("{tensor} holds {value} at row {}, column {column}: the checkpoint is damaged", own.start + row);
        }
        let obs_loss = self.time(Phase::Solve, || -> anyhow::Result<Option<f64>> {
            Ok(match prepared {
                Prepared::Factor(factor) => {
                    let settings = Settings { selection: Selection::Pattern(job.pattern), bits: job.bits };
                    let outcome = prune::sparsegpt(&mut weight, factor, &settings, self.collective)?;
                    Some(outcome.obs_loss.iter().sum())
                }
                Prepared::Norms(norms) => {
                    prune::wanda(&mut weight, job.pattern, norms)?;
                    None
                }
                Prepared::Nothing => {
                    prune::magnitude(&mut weight, job.pattern, self.collective)?;
                    None
                }
            })
        })?;
        // Here and below: what a step leaves with the allocator would lie beside what the next one takes.
        memory::give_back();
        let bytes = self
            .time(Phase::Write, || {
                let turned = weight.to_row_major();
                drop(weight);
                narrow(&turned, &stored.dtype)
            })
            .with_context(|| name.to_owned())?;
        memory::give_back();
        // The whole layer, into which shards put their rows, is what the block gets: it lies in memory once.
        let size = stored.dtype.size();
        let mut whole = model::Weight::zeros(rows * columns, stored.dtype)?;
        let part = |rank| {
            let rows = share(rows, rank, self.collective.size());
            rows.start * columns * size..rows.end * columns * size
        };
        let parts: Vec<_> = (0..self.collective.size()).map(part).collect();
        whole.bytes_mut()[parts[self.collective.rank()].clone()].copy_from_slice(&bytes);
        drop(bytes);
        self.collective.exchange(whole.bytes_mut(), &parts)?;
        let mut loss = [obs_loss.unwrap_or(0.0)];
        self.collective.sum_f64(&mut loss)?;
        if self.collective.rank().is_multiple_of(job.local_shards) {
            self.time(Phase::Write, || job.output.write_tensor(tensor, whole.bytes_mut()))?;
        }
        if self.collective.rank() == 0 {
            let values = whole.bytes_mut().chunks_exact(size);
            let zeros = values.filter(|value| value.iter().all(|&byte| byte == 0)).count() as u64;
            let (damping, retries, dead) = match prepared {
                Prepared::Factor(f) => (Some(f.damping()), f.raises(), f.dead().iter().filter(|&&dead| dead).count()),
                _ => (None, 0, 0),
            };
            self.reports.push(LayerReport {
                name: name.to_owned(),
                block: block.index(),
                stage: stage.to_owned(),
                rows,
                columns,
                zeros,
                sparsity: zeros as f64 / (rows * columns).max(1) as f64,
                dead_columns: dead,
                damping,
                retries,
                obs_loss: obs_loss.map(|_| loss[0]),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        block.set_weight(tensor, whole);
        Ok(())
    }

    /// Updates the residual stream with the output of a stage, whose inputs are kept for the first `kept` tokens.
    fn absorb(&mut self, block: &Block<'_>, number: usize, kept: usize) -> anyhow::Result<()> {
        let (chunks, length) = self.chunks(number);
        for chunk in chunks {
            self.step();
            let (stream, inputs) = (&self.stream, &self.kept);
            let x = self.time(Phase::Forward, || -> anyhow::Result<_> {
                let mut x = stream.load(chunk.clone());
                if chunk.end <= kept {
                    block.absorb(number, &mut x, inputs.values(chunk.clone()))?;
                } else {
                    let inputs = block.stage_inputs(number, &x, length)?;
                    block.absorb(number, &mut x, Values::F32(&inputs))?;
                }
                Ok(x)
            })?;
            self.stream.store(chunk, &x)?;
        }
        Ok(())
    }
}

/// The name of a layer whose weight is `tensor`.
fn layer_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// How a stage is called in messages: by its layers.
fn stage_name(stage: &Stage) -> String {
    stage.layers.iter().map(|layer| layer_name(&layer.name)).collect::<Vec<_>>().join(", ")
}

fn own_rows<T: Element>(values: &[T], own: &Range<usize>, columns: usize) -> Weight {
    Weight::from_row_major(&values[own.start * columns..own.end * columns], own.len(), columns)
}
