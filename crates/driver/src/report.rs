//! What a run hands back: perplexities, layers, time and memory by phase.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use checkpoint::resolve;
use prune::Method;
use serde::Serialize;

use crate::memory;
use crate::settings::Settings;

/// Everything that is known at the end of a prune; what `--report` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// The dense model's folder.
    pub model: PathBuf,
    /// The kind of model, as `config.json` names it.
    pub architecture: String,
    /// The pruned model's folder.
    pub output: PathBuf,
    /// How weights were chosen.
    pub method: Method,
    /// Share of zeros asked for, or n:m.
    pub pattern: String,
    /// Bits of the grid of the weights that stay.
    pub bits: Option<u32>,
    /// Calibration sequences.
    pub sequences: usize,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// Workers among which the job was divided, over all ranks.
    pub shards: usize,
    /// Processes that they belonged to.
    pub ranks: usize,
    /// What each rank worked on.
    pub device: String,
    /// Perplexities in the order they are shown; empty without texts to evaluate on.
    pub perplexities: Vec<Perplexity>,
    /// The pruned layers, in the order they were pruned.
    pub layers: Vec<LayerReport>,
    /// Time and memory by phase, in the order of the data flow.
    pub phases: Vec<PhaseReport>,
    /// What went not as asked: damping raised, shards left without work.
    pub warnings: Vec<String>,
    /// From start to end, in seconds.
    pub seconds: f64,
    /// The most resident memory of all phases, in bytes.
    pub peak_memory: Option<u64>,
    /// That of GPUs, where there are any.
    pub device_memory: Option<DeviceMemory>,
}

/// The memory of the GPU that held most while it pruned, of those of this rank, without what the program takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeviceMemory {
    /// What was allocated at most, in bytes, if the device tells.
    pub peak: Option<u64>,
    /// What was planned, in bytes.
    pub planned: u64,
}

/// One measured perplexity.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// Of what: `None` for the dense model, else the method that pruned it.
    pub method: Option<Method>,
    /// exp of the mean negative log-likelihood over predicted tokens.
    pub perplexity: f64,
    /// Windows measured on.
    pub windows: usize,
    /// Tokens per window; one fewer are predicted.
    pub window_length: usize,
}

/// One pruned layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Its name, without `.weight`.
    pub name: String,
    /// The block it belongs to.
    pub block: usize,
    /// The stage of the block whose inputs it shares.
    pub stage: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Weights that are zero in the checkpoint written.
    pub zeros: u64,
    /// `zeros` as a share of all weights.
    pub sparsity: f64,
    /// Columns whose inputs were zero throughout.
    pub dead_columns: usize,
    /// The damping that the factorization succeeded with; `None` where there is no Hessian.
    pub damping: Option<f64>,
    /// How often the damping was raised tenfold.
    pub retries: u32,
    /// Σ e²/2 over all weights; `None` for methods that do not correct.
    pub obs_loss: Option<f64>,
    /// Time of the layer's own solve, in seconds.
    pub seconds: f64,
}

/// What the program is doing, in the order of the data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Texts to tokens to the first block's activations.
    Embed,
    /// Activations through stages.
    Forward,
    /// Inputs into Hessians.
    Hessian,
    /// Hessians into factors.
    Factor,
    /// The sweeps over the layers.
    Solve,
    /// The checkpoint.
    Write,
    /// Perplexities.
    Evaluate,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 7] =
        [Self::Embed, Self::Forward, Self::Hessian, Self::Factor, Self::Solve, Self::Write, Self::Evaluate];

    /// The name that is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Forward => "forward",
            Self::Hessian => "hessian",
            Self::Factor => "factor",
            Self::Solve => "solve",
            Self::Write => "write",
            Self::Evaluate => "evaluate",
        }
    }
}

/// Time and memory of one phase.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PhaseReport {
    /// The phase.
    pub phase: Phase,
    /// All its time together, in seconds.
    pub seconds: f64,
    /// The most resident memory while it ran, in bytes, if the system tells.
    pub peak_memory: Option<u64>,
}

/// Measures phases, which may alternate but not overlap.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    phases: [Option<PhaseReport>; Phase::ALL.len()],
}

impl Clock {
    /// Starts to measure.
    pub fn start() -> Self {
        Self { start: Instant::now(), phases: [None; Phase::ALL.len()] }
    }

    /// Does the work and books it to the phase.
    pub fn time<T>(&mut self, phase: Phase, work: impl FnOnce() -> T) -> T {
        memory::reset_peak();
        let start = Instant::now();
        let result = work();
        let entry = self.phases[phase as usize].get_or_insert(PhaseReport { phase, seconds: 0.0, peak_memory: None });
        entry.seconds += start.elapsed().as_secs_f64();
        entry.peak_memory = entry.peak_memory.max(memory::peak());
        result
    }

    /// The phases that occurred, in the order of the data flow.
    pub fn phases(&self) -> Vec<PhaseReport> {
        self.phases.iter().flatten().copied().collect()
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The most resident memory of all phases, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        self.phases.iter().flatten().filter_map(|phase| phase.peak_memory).max()
    }
}

impl Report {
    /// Weights of the pruned layers.
    pub fn weights(&self) -> u64 {
        self.layers.iter().map(|layer| (layer.rows * layer.columns) as u64).sum()
    }

    /// Zeros among them.
    pub fn zeros(&self) -> u64 {
        self.layers.iter().map(|layer| layer.zeros).sum()
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// If a path in it is not UTF-8.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Writes the report as JSON: under a temporary name first, so that it is there whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        let write = || {
            let mut builder = tempfile::Builder::new();
            // Readable as any file that this user makes, not private as temporary ones are.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file = builder.tempfile_in(folder_of(path))?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        };
        write().map(drop).with_context(|| format!("cannot write the report {}", path.display()))
    }
}

/// Refuses a path that no report can be written to, before the work is done that it would tell about. `config` is the file
/// that settings were read from.
///
/// # Errors
/// If the path is a folder, lies in the model or in the result, is the result's own or that of a file that the run reads,
/// links followed; or if nothing can be written beside it.
pub fn check_path(path: &Path, settings: &Settings, config: Option<&Path>) -> anyhow::Result<()> {
    let Settings { model, output, calibration, evaluate, .. } = settings;
    ensure!(!path.is_dir(), "the report {} is a folder", path.display());
    // A link is replaced, not followed: what it leads to would come to no harm, but is hardly what was meant.
    let places = [resolve(folder_of(path))?.join(path.file_name().unwrap_or_default()), resolve(path)?];
    let result = resolve(output)?;
    for place in &places {
        ensure!(!result.starts_with(place), "the report {} is where the result goes", path.display());
        ensure!(
            !place.starts_with(&result),
            "the report {} would lie in the result {}, which has its own",
            path.display(),
            output.display()
        );
    }
    ensure!(folder_of(path).is_dir(), "there is no folder for the report {}", path.display());
    // In the Hub's cache, the files of a model are links to other folders.
    let files = fs::read_dir(model).with_context(|| format!("cannot list {}", model.display()))?;
    let files = files.map(|file| file.map(|file| file.path())).collect::<Result<Vec<_>, _>>()?;
    for part in std::iter::once(model).chain(&files) {
        let real = resolve(part)?;
        ensure!(
            !places.iter().any(|place| place.starts_with(&real)),
            "the report {} would lie in the model's folder {}",
            path.display(),
            model.display()
        );
    }
    for input in calibration.iter().chain(evaluate).map(PathBuf::as_path).chain(config) {
        ensure!(
            !places.contains(&resolve(input)?),
            "the report {} would replace {}, which this run reads",
            path.display(),
            input.display()
        );
    }
    let tried = tempfile::tempfile_in(folder_of(path));
    tried.map(drop).with_context(|| format!("cannot write the report {}", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_and_keep_their_order() {
        let mut clock = Clock::start();
        assert_eq!(clock.time(Phase::Solve, || 3), 3);
        clock.time(Phase::Embed, || ());
        clock.time(Phase::Solve, || ());
        let phases: Vec<_> = clock.phases().iter().map(|report| report.phase).collect();
        assert_eq!(phases, [Phase::Embed, Phase::Solve]);
        assert!(clock.phases().iter().map(|report| report.seconds).sum::<f64>() <= clock.seconds());
        for (index, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
        }
    }
}
