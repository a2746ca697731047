//! The decoder blocks of a model, pruned one after another, stage by stage, by one shard of several.
//!
//! ```text
//! for each block, for each stage:
//!   x ─▶ the stage's inputs ─▶ H (this shard's sequences)      H ─▶ summed over shards ─▶ factor
//!   W (this shard's rows) ─▶ pruned ─▶ rounded ─▶ exchanged between all shards ─▶ the block, the checkpoint
//!   x ─▶ x + the stage's output with the pruned weights        (after stages that end a half-block)
//! ```
//! x is the residual stream of this shard's sequences. Between the pass that fills H and the pass that updates x, the
//! inputs of a stage are kept, as far as one more buffer of the size of x holds them; those of the other tokens are
//! computed again. So a run holds two activation buffers, whatever the widths in a block.
//!
//! Where the arithmetic is done is a [`Backend`]'s business. While it prunes a block, another thread takes the next one there,
//! and layers that are on their way back are written by one more.

use std::ops::Range;
use std::sync::Mutex;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use anyhow::Context;
use checkpoint::{Dtype, Writer};
use model::calibration::Sequences;
use model::forward::Forward;
use model::{Block, Layer, Model, Stage};
use prune::{Collective, Method, share};

use crate::architecture::STAGES;
use crate::backend::{Backend, FEED_FORWARD, LayerTask, Solver, layer_name, stage_name};
use crate::memory;
use crate::progress::Task;
use crate::report::{Clock, LayerReport, Phase};
use crate::results::Results;

/// What is pruned, and how: the same for all shards.
pub struct Job<'a> {
    /// The dense model.
    pub model: &'a Model<'a>,
    /// How layers are pruned.
    pub solver: Solver,
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
/// If a weight or an activation is not finite, a Hessian cannot be factored, a result cannot be written, there is no room, or
/// another shard failed.
pub fn prune_blocks<B: Backend>(
    job: &Job<'_>,
    backend: B,
    collective: &dyn Collective,
    clock: &Mutex<Clock>,
) -> anyhow::Result<Vec<LayerReport>> {
    std::thread::scope(|scope| {
        let mut shard = Shard::new(scope, job, backend, collective, clock)?;
        for block in 0..job.blocks {
            shard.prune_block(block)?;
            if collective.rank() == 0 {
                job.task.milestone(&format!("block {} of {}", block + 1, job.blocks));
            }
        }
        let Shard { backend, results, mut reports, .. } = shard;
        results.finish(&mut reports)?;
        backend.close()?;
        Ok(reports)
    })
}

/// A block of a model that was taken to a backend, or for which there was no room.
type Taken<'a, F> = Result<Block<'a, F>, <F as Forward>::Error>;

/// The next block: on its way, or there.
enum Ahead<'scope, 'a, F: Forward> {
    Loading(ScopedJoinHandle<'scope, Taken<'a, F>>),
    Loaded(Taken<'a, F>),
}

impl<'a, F: Forward> Ahead<'_, 'a, F> {
    /// Whether it is still taking memory.
    fn is_loading(&self) -> bool {
        matches!(self, Self::Loading(thread) if !thread.is_finished())
    }

    /// Waits for it.
    fn taken(self) -> Taken<'a, F> {
        match self {
            Self::Loading(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Loaded(taken) => taken,
        }
    }
}

/// One shard at work.
struct Shard<'scope, 'a, B: Backend> {
    scope: &'scope Scope<'scope, 'a>,
    job: &'a Job<'a>,
    backend: B,
    collective: &'a dyn Collective,
    clock: &'a Mutex<Clock>,
    /// Tokens per sequence, and tokens of this shard.
    length: usize,
    tokens: usize,
    /// The residual stream.
    stream: B::Activations,
    /// The inputs of the present stage, of as many tokens as fit.
    kept: B::Kept,
    /// Whether there was room so far for the next block beside the present one, and that block.
    loads_ahead: bool,
    ahead: Option<Ahead<'scope, 'a, B::Forward>>,
    results: Results<'scope>,
    reports: Vec<LayerReport>,
    /// Tokens that passed, and layers, and what there is of both in all.
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

impl<'scope, 'a, B: Backend> Shard<'scope, 'a, B> {
    /// Embeds this shard's sequences.
    fn new(
        scope: &'scope Scope<'scope, 'a>,
        job: &'a Job<'a>,
        mut backend: B,
        collective: &'a dyn Collective,
        clock: &'a Mutex<Clock>,
    ) -> anyhow::Result<Self> {
        let hidden = job.model.description().hidden;
        let (sequences, length) = match job.sequences {
            Some(sequences) => {
                let own = share(sequences.count(), collective.rank(), collective.size());
                (&sequences.tokens[own.start * sequences.length..own.end * sequences.length], sequences.length)
            }
            None => (&[][..], 1),
        };
        let tokens = sequences.len();
        let stream = backend.activations(job.activations, tokens, hidden)?;
        let kept = backend.room(job.activations, tokens, hidden)?;
        let mut shard = Self {
            results: Results::start(scope, job.output),
            reports: Vec::new(),
            steps: 0,
            all_steps: 0,
            loads_ahead: true,
            ahead: None,
            scope,
            job,
            backend,
            collective,
            clock,
            length,
            tokens,
            stream,
            kept,
        };
        shard.all_steps = shard.count_steps();
        if tokens > 0 {
            shard.embed(sequences)?;
        }
        Ok(shard)
    }

    fn embed(&mut self, sequences: &[u32]) -> anyhow::Result<()> {
        let model = self.job.model;
        let embedding = self.with_room(|shard| Ok(model.embedding(shard.backend.forward())?))?;
        self.chunk_by_chunk(0, |shard, chunk, length| {
            let embedded = shard.time(Phase::Embed, || Ok(embedding.embed(&sequences[chunk.clone()], length)?))?;
            shard.backend.store(&mut shard.stream, chunk, &embedded).context("in the embedding")
        })?;
        self.backend.settle(&mut self.stream).context("in the embedding")?;
        // The rows of the embedding that were read need not stay in memory.
        model.checkpoint().tensors().for_each(|tensor| model.checkpoint().release(tensor.name));
        Ok(())
    }

    /// The layers of a stage that are to be pruned.
    fn chosen<'s>(&'s self, block: usize, stage: &'s Stage) -> impl Iterator<Item = &'s Layer> {
        stage.layers.iter().filter(move |layer| (self.job.selects)(block, layer_name(&layer.name)))
    }

    /// The passes that a stage of a block takes. What comes after the last layer to prune is read by nobody.
    fn passes(&self, block: usize, stages: &[Stage], number: usize) -> Passes {
        let chooses = |stage: &Stage| self.chosen(block, stage).next().is_some();
        let read = block + 1 < self.job.blocks || stages[number + 1..].iter().any(chooses);
        let absorbs = Stage::absorbs(number) && read;
        let calibrates = self.job.solver.method != Method::Magnitude && chooses(&stages[number]);
        Passes { gathers: absorbs || calibrates, absorbs }
    }

    /// Tokens and layers of the whole job.
    fn count_steps(&self) -> usize {
        let in_block = |block: usize| {
            let stages = self.job.model.stages(block);
            let in_stage = |number: usize| {
                let Passes { gathers, absorbs } = self.passes(block, &stages, number);
                let passes = usize::from(gathers) + usize::from(absorbs);
                passes * self.tokens + self.chosen(block, &stages[number]).count() * self.layer_steps()
            };
            (0..stages.len()).map(in_stage).sum::<usize>()
        };
        (0..self.job.blocks).map(in_block).sum()
    }

    /// What the work on a layer counts as: a pass of all tokens.
    fn layer_steps(&self) -> usize {
        self.tokens.max(1)
    }

    /// Says that so many tokens passed.
    fn step(&mut self, tokens: usize) {
        self.steps += tokens;
        if self.collective.rank() == 0 {
            self.job.task.reach(self.steps as u64, self.all_steps as u64);
        }
    }

    fn time<T>(&self, phase: Phase, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        book(self.collective, self.clock, phase, || {
            let done = work()?;
            // Of a shard that is not timed the host may hurry ahead.
            if self.collective.rank() == 0 {
                self.backend.wait()?;
            }
            Ok(done)
        })
    }

    /// Does work, again and again for as long as there is no room for it and something left to give up.
    fn with_room<T>(&mut self, mut work: impl FnMut(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        loop {
            match work(self) {
                Err(error) if self.backend.lacks_room(&error) && self.relieve(&error)? => {}
                done => return done,
            }
        }
    }

    /// Gives something up, if there is anything left: the block that is loaded ahead, then what the backend has. In this order, how
    /// many tokens a chunk has, and with it the bits of the result, does not hang on how far the next block has come.
    fn relieve(&mut self, error: &anyhow::Error) -> anyhow::Result<bool> {
        let Some(ahead) = self.ahead.take() else { return self.backend.relieve(&mut self.stream, &mut self.kept) };
        // What it failed of, it will fail of in its turn.
        drop(ahead.taken());
        self.load_in_turn(error);
        Ok(true)
    }

    /// Has each block loaded when it is needed, from here on.
    fn load_in_turn(&mut self, error: &anyhow::Error) {
        self.loads_ahead = false;
        tracing::warn!("blocks are not loaded ahead from here on: {error:#}");
    }

    /// Takes a block, and has the next one loaded meanwhile.
    fn take_block(&mut self, index: usize) -> anyhow::Result<Block<'a, B::Forward>> {
        let model = self.job.model;
        let block = match self.take_ahead()? {
            Some(block) => block,
            None => self.with_room(|shard| Ok(model.block(shard.backend.forward(), index)?))?,
        };
        let next = index + 1;
        if self.loads_ahead && next < self.job.blocks {
            let forward = self.backend.forward().clone();
            self.ahead = Some(Ahead::Loading(self.scope.spawn(move || model.block(&forward, next))));
        }
        Ok(block)
    }

    /// The block that was loaded ahead; none if there was no room for it, or nobody loaded it.
    fn take_ahead(&mut self) -> anyhow::Result<Option<Block<'a, B::Forward>>> {
        match self.ahead.take().map(Ahead::taken).transpose().map_err(anyhow::Error::from) {
            Err(error) if self.backend.lacks_room(&error) => {
                self.load_in_turn(&error);
                Ok(None)
            }
            loaded => loaded,
        }
    }

    /// Takes this shard's tokens through a stage as many at a time as there is room for, which `work` is given with the
    /// length of the sequences that they consist of: for attention some whole sequences at a time, otherwise any tokens.
    fn chunk_by_chunk(
        &mut self,
        stage: usize,
        mut work: impl FnMut(&mut Self, Range<usize>, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut start = 0;
        while start < self.tokens {
            start = self.with_room(|shard| {
                let most = shard.backend.chunk_tokens(stage);
                let (step, length) = match stage {
                    FEED_FORWARD.. => (most, 1),
                    _ => ((most / shard.length).max(1) * shard.length, shard.length),
                };
                let end = (start + step).min(shard.tokens);
                work(shard, start..end, length)?;
                Ok(end)
            })?;
        }
        Ok(())
    }

    fn prune_block(&mut self, index: usize) -> anyhow::Result<()> {
        let mut block = self.take_block(index)?;
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
        block: &mut Block<'_, B::Forward>,
        number: usize,
        chosen: &[Layer],
        passes: Passes,
    ) -> anyhow::Result<()> {
        let (statistics, kept) = self.gather(block, number, !chosen.is_empty(), passes)?;
        if !chosen.is_empty() {
            // What chunks leave with the allocator would lie beside the layers, once for each shard.
            memory::give_back();
            self.reserve(block, number, chosen)?;
            let prepared = self.prepare(statistics, &block.stages()[number])?;
            for layer in chosen {
                self.prune_layer(block, STAGES[number], layer, &prepared)?;
                self.step(self.layer_steps());
            }
        }
        if passes.absorbs { self.absorb(block, number, kept) } else { Ok(()) }
    }

    /// Gathers the inputs of a stage into statistics, if they are `wanted`, and keeps those of as many tokens as fit, if
    /// they will be needed again; returns how many.
    fn gather(
        &mut self,
        block: &Block<'_, B::Forward>,
        number: usize,
        wanted: bool,
        passes: Passes,
    ) -> anyhow::Result<(B::Statistics, usize)> {
        let width = block.stages()[number].width;
        let method = wanted.then_some(self.job.solver.method);
        let mut statistics = self.with_room(|shard| shard.backend.statistics(method, width))?;
        if !passes.gathers {
            return Ok((statistics, 0));
        }
        let capacity = self.backend.reshape(&mut self.kept, width);
        let mut kept = 0;
        self.chunk_by_chunk(number, |shard, chunk, length| {
            let inputs = shard.time(Phase::Forward, || {
                let x = shard.backend.load(&shard.stream, chunk.clone())?;
                Ok(block.stage_inputs(number, &x, length)?)
            })?;
            // Before the inputs are added to anything: it may have to be tried again.
            if passes.absorbs && kept == chunk.start && chunk.end <= capacity {
                shard.backend.keep(&mut shard.kept, chunk.clone(), &inputs)?;
                kept = chunk.end;
            }
            shard.time(Phase::Hessian, || shard.backend.accumulate(&mut statistics, &inputs, chunk.len(), width))?;
            shard.step(chunk.len());
            Ok(())
        })?;
        Ok((statistics, kept))
    }

    /// Sees to it that there is room to factor a stage and to prune its layers. Once the shards do that together, none of them can
    /// give something up and try again.
    fn reserve(&mut self, block: &Block<'_, B::Forward>, number: usize, chosen: &[Layer]) -> anyhow::Result<()> {
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let rows = chosen.iter().map(|layer| share(layer.rows, rank, size).len()).max().unwrap_or(0);
        let (solver, columns) = (self.job.solver, block.stages()[number].width);
        if self.ahead.as_ref().is_some_and(Ahead::is_loading) {
            // Room for all of the next block as well is enough, however much of it has come. If there is less, it is waited for.
            let next = self.job.model.stages(block.index() + 1).into_iter().flat_map(|stage| stage.layers);
            let weights = next.map(|layer| layer.rows * layer.columns).sum();
            if self.backend.reserve(rows, columns, &solver, weights).is_ok() {
                return Ok(());
            }
            self.ahead = self.ahead.take().map(|ahead| Ahead::Loaded(ahead.taken()));
        }
        self.with_room(|shard| shard.backend.reserve(rows, columns, &solver, 0))
    }

    /// The statistics of all shards, ready to prune with.
    fn prepare(&mut self, mut statistics: B::Statistics, stage: &Stage) -> anyhow::Result<B::Prepared> {
        self.time(Phase::Hessian, || self.backend.sum(&mut statistics))?;
        let prepared = self.time(Phase::Factor, || self.backend.prepare(statistics, &self.job.solver))?;
        if let Some(factored) = B::factored(&prepared).filter(|factored| factored.raises > 0)
            && self.collective.rank() == 0
        {
            tracing::warn!(
                "{}: the damping had to be raised to {} for the Hessian to be positive definite",
                stage_name(stage),
                factored.damping
            );
        }
        Ok(prepared)
    }

    /// Prunes this shard's rows of a layer, and has the result in the block and the checkpoint.
    fn prune_layer(
        &mut self,
        block: &mut Block<'_, B::Forward>,
        stage: &'static str,
        layer: &Layer,
        prepared: &B::Prepared,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let (index, name) = (block.index(), layer_name(&layer.name));
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let parts: Vec<_> = (0..size).map(|rank| share(layer.rows, rank, size)).collect();
        let task = LayerTask {
            stored: self.job.model.checkpoint().tensor(&layer.name)?,
            rows: layer.rows,
            columns: layer.columns,
            own: parts[rank].clone(),
            parts,
            writes: rank.is_multiple_of(self.job.local_shards),
        };
        let pruned = self.time(Phase::Solve, || self.backend.prune(block, &task, prepared, &self.job.solver))?;
        let mut loss = [pruned.obs_loss.unwrap_or(0.0)];
        self.collective.sum_f64(&mut loss)?;
        if rank == 0 {
            let factored = B::factored(prepared);
            self.reports.push(LayerReport {
                name: name.to_owned(),
                block: index,
                stage: stage.to_owned(),
                rows: layer.rows,
                columns: layer.columns,
                // Known when it is written.
                zeros: 0,
                sparsity: 0.0,
                dead_columns: factored.map_or(0, |factored| factored.dead),
                damping: factored.map(|factored| factored.damping),
                retries: factored.map_or(0, |factored| factored.raises),
                obs_loss: pruned.obs_loss.map(|_| loss[0]),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        let Some(whole) = pruned.whole else { return Ok(()) };
        book(self.collective, self.clock, Phase::Write, || self.results.write(&task.stored, whole))
    }

    /// Updates the residual stream with the output of a stage, whose inputs are kept for the first `kept` tokens.
    fn absorb(&mut self, block: &Block<'_, B::Forward>, number: usize, kept: usize) -> anyhow::Result<()> {
        self.chunk_by_chunk(number, |shard, chunk, length| {
            let backend = &shard.backend;
            let x = shard.time(Phase::Forward, || {
                let mut x = backend.load(&shard.stream, chunk.clone())?;
                if chunk.end <= kept {
                    backend.absorb_kept(block, number, &mut x, &shard.kept, chunk.clone())?;
                } else {
                    let inputs = block.stage_inputs(number, &x, length)?;
                    block.absorb(number, &mut x, B::Forward::view(&inputs))?;
                }
                Ok(x)
            })?;
            let tokens = chunk.len();
            shard.backend.store(&mut shard.stream, chunk, &x)?;
            shard.step(tokens);
            Ok(())
        })?;
        self.backend.settle(&mut self.stream)
    }
}

/// Does work, and books its time if it is the first shard's.
fn book<T>(collective: &dyn Collective, clock: &Mutex<Clock>, phase: Phase, work: impl FnOnce() -> T) -> T {
    if collective.rank() > 0 {
        return work();
    }
    match clock.lock() {
        Ok(mut clock) => clock.time(phase, work),
        Err(_) => work(),
    }
}
