//! The flags. Parsing has no side effects: what the flags and a settings file come to is decided in
//! [`crate::settings`].

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use model::calibration::Sampling;
use prune::Method;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Serialize};

const LONG_ABOUT: &str = "\
Prunes large language models in one shot with SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774).

A Hugging Face checkpoint and a few calibration texts go in; the same checkpoint comes out with half of the weights of \
its linear layers set to zero, or two of every four, and the others corrected. Tensors and files that are not pruned \
are kept byte for byte, and `transformers` loads the result unchanged.

Without a subcommand the program prunes, and without a model it prunes the demonstration model that comes with it and \
compares the methods on it.";

const EXAMPLES: &str = "\
Examples:
  driver                                             the demonstration: a small OPT, pruned three ways and compared
  driver prune opt-125m --calibration c4.json.gz --evaluate wiki.test.txt
                                                     half of the weights, and the perplexity before and after
  driver prune opt-125m --calibration c4.json.gz --pattern 2:4 --bits 4
                                                     2 of every 4 weights stay, and those are quantized to 4 bits
  driver prune opt-125m --calibration c4.json.gz --skip 'fc2$' --blocks 0..6 --dry-run
                                                     what would be done, what it costs, and nothing else
  driver prune --config pruned/opt-125m-sparsegpt-50/pruning.toml --output again
                                                     the same run once more, from what it left behind
  driver evaluate pruned/opt-125m-sparsegpt-50 wiki.test.txt
  driver inspect pruned/opt-125m-sparsegpt-50

Perplexity is computed as the field does: each text is encoded whole, the encodings are joined and cut into windows of \
--sequence-length tokens that do not overlap (the tail is dropped), every token of a window but the first is predicted \
from those before it in the window, and the perplexity is exp of the mean negative log-likelihood over all predicted \
tokens.

Exit codes: 0 done, 1 the input or the machine is at fault, 2 a flag or a setting is.";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "driver",
    version,
    about = "Prunes large language models in one shot with SparseGPT",
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    after_help = "--help says more, with examples.",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do; pruning if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of pruning.
    #[command(flatten)]
    pub prune: PruneArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prune a model (the default)
    #[command(after_long_help = EXAMPLES, after_help = "--help says more, with examples.")]
    Prune(Box<PruneArgs>),
    /// Measure the perplexity of a model on texts
    Evaluate(EvaluateArgs),
    /// Show a checkpoint: architecture, stages, tensors, sizes, sparsity and n:m conformity, NaN and -0.0
    Inspect(InspectArgs),
    /// Say what pruning a model on GPUs would hold and how long it would take, from its config.json alone
    #[command(after_long_help = PLAN_ABOUT, after_help = "--help says more, with examples.")]
    Plan(PlanArgs),
}

const PLAN_ABOUT: &str = "\
All numbers are modelled: memory by formulas that the table names, times from the operations and bytes of every kernel at a \
share of the device's ceilings, and from the bandwidths given. Where activations are kept and how many tokens pass through a \
block together is chosen: the fastest that fits. Sizes take KiB, MiB, GiB, TiB or KB, MB, GB, TB; bandwidths the same with \
/s.

Examples:
  driver plan opt-175b/config.json
  driver plan opt-175b/config.json --shards 8 --device-memory 80GiB --disk 7GB/s
  driver plan bloom/config.json --shards 8 --device h100 --activations-in host
  driver plan bloom/config.json --device 312,52,19.5,2039

Exit codes: 0 it fits, 1 it does not (the error says what would) or config.json is at fault, 2 a flag is.";

/// Everything that `prune` takes.
#[derive(Args, Clone, Debug, Default)]
pub struct PruneArgs {
    /// The settings that a file may hold as well.
    #[command(flatten)]
    pub choices: Choices,

    /// Take settings from a TOML file, whose keys are the long flags without dashes; flags win over it
    ///
    /// Paths in the file are relative to its folder. Every run leaves the settings it used in the output folder as
    /// `pruning.toml`, from which it can be repeated. Where to work is no setting: --device and what goes with it are flags only, and
    /// a GPU prunes as the processor does up to near-ties.
    #[arg(long, value_name = "FILE.toml", help_heading = "Running")]
    pub config: Option<PathBuf>,

    /// Print the plan (stages, shapes, estimated operations, memory peak) and stop; no weight is read
    #[arg(long, help_heading = "Running")]
    pub dry_run: bool,

    /// Replace an existing output folder, if an earlier run wrote it
    ///
    /// All that is in the folder is deleted, files that you added to it included.
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,

    /// Write a report, layer by layer
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    pub report: Option<PathBuf>,

    /// Where to work: auto, cpu, cuda, cuda:NUMBERS or emulated; auto takes GPUs where there are enough
    ///
    /// Each shard takes a GPU: of `cuda` the first ones, of `cuda:0,2` those, of `emulated:8` so many, and --shards need not be
    /// given then. Under `mpirun` the ranks of a machine divide its GPUs. Several GPUs need NCCL. GPUs need a program built with the
    /// feature `cuda`, emulated ones, which are slow and for learning and debugging, a program built with the feature `emulator`.
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_default_value = true, help_heading = "Running")]
    pub device: String,

    /// What GPUs may use, and how.
    #[command(flatten)]
    pub room: RoomArgs,

    /// How much to say.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// How the memory of GPUs is used. Not stored with the settings: results are the same, up to the order of sums.
#[derive(Args, Clone, Debug, Default)]
pub struct RoomArgs {
    /// Where a GPU keeps activations between stages: device, host, file (beside the output), or auto, the fastest that fits
    #[arg(
        long, value_name = "PLACE", value_parser = PossibleValuesParser::new(["auto", "device", "host", "file"]),
        help_heading = "Running"
    )]
    pub activations_in: Option<String>,

    /// Tokens that pass through a block on a GPU together, at least 256 [default: the fastest that fits, from 256 to 8192]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, help_heading = "Running")]
    pub chunk: Option<i64>,

    /// How much of each GPU's memory the plan may use, such as 40GiB; emulated GPUs have just that [default: what is free]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Running")]
    pub device_memory: Option<String>,
}

/// The settings of a run as flags or a settings file give them; absent means the default.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Choices {
    /// Hugging Face folder (config.json, safetensors, tokenizer.json); the demonstration model if absent
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,

    /// Folder for the pruned checkpoint; it appears complete or not at all [default: pruned/MODEL-METHOD-AMOUNT]
    #[arg(short, long, value_name = "FOLDER", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,

    /// How the weights that go are chosen and whether the others are corrected [default: sparsegpt]
    #[arg(
        long,
        value_name = "METHOD",
        value_parser = one_of::<Method, 3>(["sparsegpt", "wanda", "magnitude"]),
        help_heading = "What is pruned"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,

    /// Share of the weights of each layer that is set to zero, in [0, 1) [default: 0.5]
    #[arg(
        short,
        long,
        value_name = "SHARE",
        conflicts_with = "pattern",
        allow_negative_numbers = true,
        help_heading = "What is pruned"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,

    /// Keep N of every M consecutive weights of a row, for example 2:4
    #[arg(short, long, value_name = "N:M", allow_hyphen_values = true, help_heading = "What is pruned")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,

    /// Quantize the weights that stay, in the same pass, to a grid of 2 to 8 bits per row (sparsegpt only)
    ///
    /// The result keeps its dtype; its weights lie on the grid.
    #[arg(long, value_name = "BITS", allow_negative_numbers = true, help_heading = "What is pruned")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<i64>,

    /// Prune only layers whose name matches, for example 'self_attn'
    #[arg(long, value_name = "REGEX", help_heading = "What is pruned")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,

    /// Prune no layer whose name matches, for example 'fc2$'
    #[arg(long, value_name = "REGEX", help_heading = "What is pruned")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<String>,

    /// Prune only the blocks from A up to, not including, B; counted from 0, either may be left out
    #[arg(long, value_name = "A..B", allow_hyphen_values = true, help_heading = "What is pruned")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<String>,

    /// Added to the diagonal of the Hessian, as a share of the diagonal's mean [default: 0.01]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "How it is solved")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,

    /// Columns that are handled together; the unstructured threshold is taken per panel [default: 128]
    #[arg(long, value_name = "COLUMNS", allow_negative_numbers = true, help_heading = "How it is solved")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panel_width: Option<i64>,

    /// How activations are kept between stages; auto: bf16 for a bf16 checkpoint, f16 for others [default: auto]
    #[arg(
        long, value_name = "DTYPE", value_parser = one_of::<Activations, 4>(["auto", "f32", "f16", "bf16"]),
        help_heading = "How it is solved"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,

    /// Texts to calibrate on: plain text, or JSON lines with a `text` field; gzip or zstd is unpacked
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calibration: Vec<PathBuf>,

    /// Calibration sequences [default: 128]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequences: Option<i64>,

    /// Tokens per sequence, for calibration and evaluation [default: the smaller of 2048 and the model's own]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<i64>,

    /// Take the beginning of the texts, or random windows of them by --seed [default: contiguous]
    #[arg(long, value_name = "HOW", value_parser = one_of::<Sampling, 2>(["contiguous", "random"]), help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,

    /// Seed of random sampling [default: 0]
    // TOML, in which the settings are stored, has signed numbers only.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64),
        allow_negative_numbers = true,
        help_heading = "Calibration"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,

    /// Texts to measure the perplexity on, before and after
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Evaluation")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluate: Vec<PathBuf>,

    /// Compare with the other methods on the same texts (default for the demonstration)
    #[arg(
        long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        help_heading = "Evaluation"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baselines: Option<bool>,

    /// Split the work: sequences and rows are divided among so many workers [default: 1]
    ///
    /// Under `mpirun`, with a program built with the feature `mpi`: so many in each rank.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, help_heading = "Running")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<i64>,

    /// Threads of all shards together, at most as many as the machine has [default: all of those]
    #[arg(short, long, value_name = "COUNT", allow_negative_numbers = true, help_heading = "Running")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<i64>,
}

/// How activations are kept between stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// In 16 bits: bfloat16 for a bfloat16 checkpoint, float16 for any other.
    #[default]
    Auto,
    /// float32: twice the memory.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
}

/// Everything that `evaluate` takes.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "The texts are read, and the perplexity is computed, as `driver --help` says.")]
pub struct EvaluateArgs {
    /// Hugging Face folder
    pub model: PathBuf,

    /// Texts: plain, or JSON lines with a `text` field; gzip or zstd is unpacked
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<PathBuf>,

    /// Tokens per window [default: the smaller of 2048 and the model's own]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub sequence_length: Option<i64>,

    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "COUNT", allow_negative_numbers = true)]
    pub threads: Option<i64>,

    /// Where to work: auto, cpu, cuda, cuda:NUMBERS or emulated; auto takes a GPU where there is one
    ///
    /// The GPUs of `cuda:0,2` share the texts, and so do those of `emulated:8`. GPUs need a program built with the feature `cuda`,
    /// emulated ones a program built with the feature `emulator`.
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_default_value = true)]
    pub device: String,

    /// How much to say.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// Everything that `inspect` takes.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Hugging Face folder
    pub model: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "COUNT", allow_negative_numbers = true)]
    pub threads: Option<i64>,

    /// How much to say.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// Everything that `plan` takes.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// The config.json of a model, or the folder that holds it; no weights are needed
    #[arg(value_name = "CONFIG.json")]
    pub config: PathBuf,

    /// Devices, all in one machine [default: 1]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub shards: Option<i64>,

    /// a100, h100, or four ceilings: TFLOP/s of 16-bit products, of f32 products in three of tf32, of f32; GB/s of memory
    #[arg(long, value_name = "DEVICE", default_value = "a100", allow_hyphen_values = true)]
    pub device: String,

    /// The share of its ceiling that every kernel reaches, above 0 and at most 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.7, allow_negative_numbers = true)]
    pub share: f64,

    /// Memory of each device
    #[arg(long, value_name = "SIZE", default_value = "80GiB", allow_hyphen_values = true)]
    pub device_memory: String,

    /// Memory of the machine
    #[arg(long, value_name = "SIZE", default_value = "512GiB", allow_hyphen_values = true)]
    pub host_memory: String,

    /// Bandwidth of the disk that is read from and written to, shared by all devices
    #[arg(long, value_name = "RATE", default_value = "2GB/s", allow_hyphen_values = true)]
    pub disk: String,

    /// Bandwidth from one device to the others, in one direction: NVLink of an A100
    #[arg(long, value_name = "RATE", default_value = "300GB/s", allow_hyphen_values = true)]
    pub link: String,

    /// Bandwidth between each device and the host, in both directions together: what 16 lanes of PCIe 4 reach
    #[arg(long, value_name = "RATE", default_value = "25GB/s", allow_hyphen_values = true)]
    pub host_link: String,

    /// Where activations are kept between stages: device, host, file, or auto
    #[arg(
        long, value_name = "PLACE", default_value = "auto",
        value_parser = PossibleValuesParser::new(["auto", "device", "host", "file"])
    )]
    pub activations_in: String,

    /// Tokens that pass through a block together, at least 256 [default: the fastest that fits, from 256 to 8192]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub chunk: Option<i64>,

    /// Calibration sequences [default: 128]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub sequences: Option<i64>,

    /// Tokens per sequence [default: the smaller of 2048 and the model's own]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub sequence_length: Option<i64>,
}

/// How much is said on the way; results and errors are printed in any case.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Verbosity {
    /// Say more; twice, everything
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Running")]
    pub verbose: u8,

    /// No progress, and only errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Running")]
    pub quiet: bool,
}

/// A parser of the names by which serde knows a type's variants; lists them in `--help` and in errors.
fn one_of<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| {
        let name: serde::de::value::StringDeserializer<serde::de::value::Error> = name.into_deserializer();
        T::deserialize(name)
    })
}
