//! What shards work on: the processor, or a GPU each where the program is built with the feature `cuda`.

#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;

#[cfg(not(feature = "cuda"))]
pub use disabled::Device;
#[cfg(feature = "cuda")]
pub use enabled::{Device, Gpus};

use checkpoint::Checkpoint;

use crate::plan::Plan;
use crate::settings::{SettingsError, bad_value, workers};

/// How reports call the processor.
const PROCESSOR: &str = "the processor";

/// What is said where there is no emulated GPU.
#[cfg(not(feature = "emulator"))]
const NOT_EMULATED: &str =
    "--device emulated: this program is built without the emulated GPU; build it with --features emulator";

/// What `--device` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// GPUs where there are enough of them and they can do the job, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// GPUs, as many as there are shards.
    Cuda,
    /// The GPUs of these numbers, one for each shard.
    Numbers(Vec<usize>),
    /// As many emulated GPUs as there are shards, or so many.
    Emulated(Option<usize>),
}

impl Choice {
    /// The flag's value.
    ///
    /// # Errors
    /// [`SettingsError::BadValue`].
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let bad = |why: &str| bad_value("device", text, why);
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda),
            "emulated" => return Ok(Self::Emulated(None)),
            _ => {}
        }
        if let Some(count) = text.strip_prefix("emulated:").and_then(|count| count.parse().ok()) {
            let count = workers("device", count).map_err(|_| bad("1 to 1024 emulated GPUs"))?;
            return Ok(Self::Emulated(Some(count)));
        }
        let numbers = text.strip_prefix("cuda:").map(|list| list.split(',').map(str::parse::<usize>));
        let numbers: Option<Vec<_>> = numbers.and_then(|numbers| numbers.collect::<Result<_, _>>().ok());
        let numbers = numbers
            .ok_or_else(|| bad("one of auto, cpu, cuda, cuda:NUMBERS (as in cuda:0,2), emulated or emulated:COUNT"))?;
        if (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at])) {
            return Err(bad("a GPU is named twice, and takes one shard only"));
        }
        Ok(Self::Numbers(numbers))
    }

    /// How many devices it names, if it does.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Numbers(numbers) => Some(numbers.len()),
            &Self::Emulated(count) => count,
            Self::Auto | Self::Cpu | Self::Cuda => None,
        }
    }
}

/// Says that the processor has no use for what was said of the memory of GPUs, by somebody who does not know what there is.
fn warn_of_room(prune: Option<(&Plan, &Checkpoint)>) {
    if prune.is_some_and(|(plan, _)| plan.settings.room.is_given()) {
        tracing::warn!(
            "working on the processor: --activations-in, --chunk and --device-memory are for GPUs and not used"
        );
    }
}

/// Why GPUs cannot do a job that the processor could.
#[cfg(feature = "cuda")]
fn unsuited(settings: &crate::settings::Settings) -> Option<SettingsError> {
    let width = settings.panel_width;
    let unstructured = matches!(settings.pattern, prune::Pattern::Unstructured { .. });
    (unstructured && ![32, 64, 128].contains(&width))
        .then(|| bad_value("panel-width", width, "32, 64 or 128 on a GPU; any on --device cpu"))
}
