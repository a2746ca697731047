//! A whole run: a planned prune in; perplexities, baselines, the pruned checkpoint and the report out.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{bail, ensure};
use checkpoint::Checkpoint;
use model::Model;
use prune::{Collective, Method, share};

use crate::backend::Solver;
use crate::blocks::Job;
use crate::device::Device;
use crate::evaluate::measure;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::memory;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::report::{Clock, LayerReport, Perplexity, Phase, Report};
use crate::settings;
use crate::staging::{Place, Staged};
use crate::summary::size;

/// The report, in the folder of the result.
pub const REPORT_NAME: &str = "pruning.json";

/// Prunes as planned, together with all other ranks. The output folder appears when everything in it is complete; rank 0
/// has the report.
///
/// # Errors
/// Whatever is wrong with the model, the texts or the disk, or if another rank failed; nothing is left behind then.
pub fn prune(
    plan: &Plan,
    checkpoint: &Checkpoint,
    device: &Device,
    progress: &Progress,
    ranks: &Ranks,
) -> anyhow::Result<Option<Report>> {
    let settings = &plan.settings;
    let clock = Mutex::new(Clock::start());
    let model = Model::open(checkpoint)?;
    let stored = settings.to_toml(plan.sequence_length)?;
    // What a GPU lacks room for is moved out of it.
    if device.is_processor() {
        check_memory(plan, ranks.on_this_machine())?;
    }
    check_replaced(&settings.output, settings.overwrite)?;
    check_finite(&model, &ranks.collective())?;
    if let Some(warning) = idle_shards(plan) {
        tracing::warn!("{warning}");
    }
    let place = Place { checkpoint, folder: &settings.output, overwrite: settings.overwrite, ranks };
    // Made first, so that an output that cannot be is refused before the work.
    let (staged, run) = place.stage(|staged| {
        let inputs = time(&clock, Phase::Embed, || Inputs::read(plan, &ranks.collective()))?;
        let run = Run { plan, device, model: &model, inputs: &inputs, progress, clock: &clock, ranks };
        let mut perplexities = Vec::new();
        perplexities.extend(run.evaluate(&settings.model, None)?);
        for method in [Method::Magnitude, Method::Wanda] {
            if settings.baselines && settings.method != method {
                // A baseline is a checkpoint that is measured and never published.
                let (baseline, perplexity) = place.stage(|baseline| Ok(run.prune(method, baseline)?.1))?;
                baseline.close(ranks)?;
                perplexities.extend(perplexity);
            }
        }
        let (layers, perplexity) = run.prune(settings.method, staged)?;
        perplexities.extend(perplexity);
        Ok((layers, perplexities, inputs.calibration.map_or(0, |sequences| sequences.count())))
    })?;
    let Some((_guard, output)) = staged.close(ranks)? else { return Ok(None) };
    let (layers, perplexities, sequences) = run;
    let clock = clock.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: settings.model.clone(),
        architecture: plan.layout.architecture.clone(),
        output: settings.output.clone(),
        method: settings.method,
        pattern: settings.pattern.to_string(),
        bits: settings.bits,
        sequences,
        sequence_length: plan.sequence_length,
        shards: plan.shards(),
        ranks: plan.ranks,
        device: device.name()?,
        perplexities,
        warnings: idle_shards(plan).into_iter().chain(raised_dampings(&layers)).collect(),
        layers,
        phases: clock.phases(),
        seconds: clock.seconds(),
        peak_memory: clock.peak_memory(),
        device_memory: device.memory(),
    };
    output.write_file(settings::FILE_NAME, stored.as_bytes())?;
    output.write_file(REPORT_NAME, report.to_json()?.as_bytes())?;
    // The long wait for the disk may be interrupted; the exchange of a result for another may not.
    output.flush()?;
    interrupt::undivided(|| output.publish())?;
    Ok(Some(report))
}

/// Fails where the plan needs more memory than there is for the ranks of this machine, before the system has to end the
/// program.
fn check_memory(plan: &Plan, ranks: usize) -> anyhow::Result<()> {
    let needed = plan.memory().peak().saturating_mul(ranks as u64);
    if let Some(available) = memory::available().filter(|&available| available < needed) {
        bail!(
            "the prune needs about {} of memory{}, and {} are free: fewer --sequences, a smaller --sequence-length or \
             fewer --shards need less",
            size(needed),
            if ranks > 1 { format!(" for {ranks} ranks on one machine") } else { String::new() },
            size(available)
        );
    }
    Ok(())
}

/// Fails where `--overwrite` would replace a folder that no prune wrote.
fn check_replaced(output: &Path, overwrite: bool) -> anyhow::Result<()> {
    let foreign = overwrite && output.join("config.json").exists() && !output.join(settings::FILE_NAME).exists();
    ensure!(
        !foreign,
        "{} has no {}: it is not the result of a prune, and --overwrite replaces nothing else; choose another --output",
        output.display(),
        settings::FILE_NAME
    );
    Ok(())
}

/// Fails at the first tensor of the model that holds NaN or infinity, pruned or not: a result with one is of no use to
/// anybody, and better refused now than after hours. Other tensors may: old checkpoints keep attention masks. Each rank
/// looks at its share.
fn check_finite(model: &Model<'_>, ranks: &dyn Collective) -> anyhow::Result<()> {
    let checkpoint = model.checkpoint();
    let names: Vec<_> = model.tensor_names().collect();
    for name in &names[share(names.len(), ranks.rank(), ranks.size())] {
        model::Weight::from(checkpoint.tensor(name)?.values()?).check_finite(name)?;
        checkpoint.release(name);
    }
    Ok(())
}

fn time<T>(clock: &Mutex<Clock>, phase: Phase, work: impl FnOnce() -> T) -> T {
    clock.lock().unwrap_or_else(PoisonError::into_inner).time(phase, work)
}

/// That more shards are asked for than have anything to do, if so.
fn idle_shards(plan: &Plan) -> Option<String> {
    let (asked, used) = (plan.settings.shards.saturating_mul(plan.ranks), plan.shards());
    (used < asked).then(|| format!("{} of {asked} shards have nothing to do, {used} are used", asked - used))
}

/// The layers whose damping is not the one asked for, a line each.
fn raised_dampings(layers: &[LayerReport]) -> Vec<String> {
    let raised = layers.iter().filter(|layer| layer.retries > 0);
    let line = |layer: &LayerReport| {
        let damping = layer.damping.unwrap_or_default();
        format!("{}: the damping was raised to {damping} for its Hessian to be positive definite", layer.name)
    };
    raised.map(line).collect()
}

/// What the parts of a run share.
struct Run<'a> {
    plan: &'a Plan,
    device: &'a Device,
    model: &'a Model<'a>,
    inputs: &'a Inputs,
    progress: &'a Progress,
    clock: &'a Mutex<Clock>,
    ranks: &'a Ranks,
}

impl Run<'_> {
    /// Prunes the model by some method into `staged`, and measures the result.
    fn prune(&self, method: Method, staged: &Staged) -> anyhow::Result<(Vec<LayerReport>, Option<Perplexity>)> {
        let settings = &self.plan.settings;
        let calibration = self.inputs.calibration.as_ref().filter(|_| method != Method::Magnitude);
        let selects = |block: usize, name: &str| settings.selects(block, name);
        let blocks = self.plan.stages().map(|stage| stage.block + 1).max().unwrap_or(0);
        let task = self.progress.task(&format!("pruning, {method}"));
        let local_shards = self.plan.local_shards();
        let job = Job {
            model: self.model,
            solver: Solver {
                method,
                pattern: settings.pattern,
                bits: settings.bits.filter(|_| method == Method::Sparsegpt),
                damping: settings.damping,
                panel_width: settings.panel_width,
            },
            sequences: calibration,
            activations: self.plan.activations,
            selects: &selects,
            blocks,
            local_shards,
            output: staged.writer(),
            task: &task,
        };
        let mut reports =
            self.ranks.run_shards(local_shards, |collective| self.device.prune_blocks(&job, collective, self.clock))?;
        drop(task);
        time(self.clock, Phase::Write, || staged.complete(self.ranks))?;
        Ok((reports.swap_remove(0), self.evaluate(staged.folder(), Some(method))?))
    }

    /// The perplexity of a checkpoint on the evaluation texts, if there are any.
    fn evaluate(&self, folder: &Path, method: Option<Method>) -> anyhow::Result<Option<Perplexity>> {
        let Some(windows) = &self.inputs.evaluation else { return Ok(None) };
        let measured = time(self.clock, Phase::Evaluate, || {
            let checkpoint = Checkpoint::open(folder)?;
            measure(&Model::open(&checkpoint)?, method, windows, self.device, self.progress, &self.ranks.collective())
        });
        measured.map(Some)
    }
}
