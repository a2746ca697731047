//! What a run is to do, once and for all: flags over a settings file over defaults, checked.
//!
//! A run leaves its settings beside the checkpoint as `pruning.toml`; given as `--config`, that file repeats the run.
//! Where the result goes and what is printed are not among the settings stored.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use model::calibration::Sampling;
use prune::{Method, Pattern};
use regex::Regex;

use crate::cli::{Activations, Choices, EvaluateArgs, PruneArgs};
use crate::device::Choice;
use crate::forecast::request::Room;

/// The settings used, in the folder of the result.
pub const FILE_NAME: &str = "pruning.toml";

/// Sequences are no longer than this unless the user says so; the published results are for this length.
pub(crate) const LONGEST_DEFAULT: usize = 2048;

/// Why there are no settings to run with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A flag, or the same key in a settings file, has a value that cannot be.
    #[error("--{flag} {value}: {why}")]
    BadValue {
        /// The flag without dashes.
        flag: &'static str,
        /// The value found.
        value: String,
        /// What it should be.
        why: String,
    },
    /// Something is missing, or does not go together.
    #[error("{0}")]
    Inconsistent(&'static str),
    /// A folder stands where a text should.
    #[error("{path} is a folder, not a text; if it is the MODEL, name it before --calibration and --evaluate", path = .path.display())]
    FolderAsText {
        /// The folder.
        path: PathBuf,
    },
    /// The settings file cannot be read.
    #[error("cannot read the settings {path}", path = .path.display())]
    Unreadable {
        /// The settings file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The settings file is not TOML, or holds a key or a type that is unknown.
    #[error("bad settings in {path}, line {line}: {why}", path = .path.display())]
    BadFile {
        /// The settings file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// The demonstration model is not where it was when the program was built.
    #[error(
        "no MODEL given, and the demonstration model is neither in {built} nor in assets/demo here; give a Hugging Face \
         folder, or run in the program's repository",
        built = .built.display()
    )]
    NoDemonstration {
        /// Where it was when the program was built.
        built: PathBuf,
    },
}

impl SettingsError {
    /// 2 where a flag or setting is at fault, 1 where it is a file.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadValue { .. } | Self::Inconsistent(_) | Self::FolderAsText { .. } | Self::BadFile { .. } => 2,
            Self::Unreadable { .. } | Self::NoDemonstration { .. } => 1,
        }
    }
}

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The dense model's folder.
    pub model: PathBuf,
    /// The folder of the result.
    pub output: PathBuf,
    /// Whether a result that stands there may be replaced.
    pub overwrite: bool,
    /// How weights are chosen.
    pub method: Method,
    /// How many go.
    pub pattern: Pattern,
    /// Bits of the grid for those that stay, 2 to 8.
    pub bits: Option<u32>,
    /// The share of the mean of the Hessian's diagonal that is added to it, above 0.
    pub damping: f64,
    /// Columns handled together, at least 1.
    pub panel_width: usize,
    /// How activations are kept between stages.
    pub activations: Activations,
    /// Texts to calibrate on; see [`Settings::require_calibration`].
    pub calibration: Vec<PathBuf>,
    /// Calibration sequences, at least 1.
    pub sequences: usize,
    /// Tokens per sequence, if given; see [`Settings::sequence_length`].
    pub given_length: Option<usize>,
    /// How sequences are taken from the texts.
    pub sampling: Sampling,
    /// The seed of random sampling.
    pub seed: u64,
    /// Texts to measure perplexity on.
    pub evaluate: Vec<PathBuf>,
    /// Whether the other methods are measured as well.
    pub baselines: bool,
    /// Layers must match this.
    pub only: Option<Regex>,
    /// Layers must not match this.
    pub skip: Option<Regex>,
    /// Blocks to prune; the end may be `usize::MAX` for all that there are.
    pub blocks: Range<usize>,
    /// Workers among which the job is divided, at least 1.
    pub shards: usize,
    /// What they work on.
    pub device: Choice,
    /// How the memory of GPUs is used.
    pub room: Room,
    /// Threads, if given.
    pub threads: Option<usize>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
}

impl Settings {
    /// Brings flags, settings file and defaults together.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn resolve(args: &PruneArgs) -> Result<Self, SettingsError> {
        let mut choices = match &args.config {
            Some(path) => over(&args.choices, read_file(path)?),
            None => args.choices.clone(),
        };
        // The texts of a flag end only at the next flag, and would take a model for one of them.
        if let Some(path) = choices.calibration.iter().chain(&choices.evaluate).find(|path| path.is_dir()) {
            return Err(SettingsError::FolderAsText { path: path.clone() });
        }
        let demonstration = choices.model.is_none();
        if demonstration {
            demonstrate(&mut choices)?;
        }
        let model = choices.model.unwrap_or_default();
        let method = choices.method.unwrap_or(Method::Sparsegpt);
        let pattern = pattern(choices.sparsity, choices.pattern.as_deref())?;
        let bits = choices.bits.map(bits).transpose()?;
        if bits.is_some() && method != Method::Sparsegpt {
            return Err(SettingsError::Inconsistent(
                "--bits needs --method sparsegpt: the other methods do not quantize",
            ));
        }
        let baselines = choices.baselines.unwrap_or(false);
        if baselines && choices.evaluate.is_empty() {
            return Err(SettingsError::Inconsistent("--baselines compares perplexities: give --evaluate TEXT as well"));
        }
        let device = Choice::parse(&args.device)?;
        let (output, overwrite) = match choices.output {
            Some(output) => (output, args.overwrite),
            // The demonstration's own folder is written by nothing else.
            None if demonstration => (Path::new("pruned").join("demo"), true),
            None => (default_output(&model, method, &pattern, bits), args.overwrite),
        };
        Ok(Self {
            model,
            output,
            overwrite,
            method,
            pattern,
            bits,
            damping: damping(choices.damping.unwrap_or(0.01))?,
            panel_width: at_least_one("panel-width", choices.panel_width.unwrap_or(128))?,
            activations: choices.activations.unwrap_or_default(),
            calibration: choices.calibration,
            sequences: at_least_one("sequences", choices.sequences.unwrap_or(128))?,
            given_length: choices.sequence_length.map(sequence_length).transpose()?,
            sampling: choices.sampling.unwrap_or_default(),
            seed: choices.seed.unwrap_or(0),
            evaluate: choices.evaluate,
            baselines,
            only: choices.only.map(|pattern| regex("only", &pattern)).transpose()?,
            skip: choices.skip.map(|pattern| regex("skip", &pattern)).transpose()?,
            blocks: choices.blocks.as_deref().map_or(Ok(0..usize::MAX), blocks)?,
            shards: shards(choices.shards, &device)?,
            room: Room::resolve(&args.room, &device)?,
            device,
            threads: choices.threads.map(|count| workers("threads", count)).transpose()?,
            report: args.report.clone(),
        })
    }

    /// Whether any of the methods that are run looks at inputs.
    pub fn calibrates(&self) -> bool {
        self.method != Method::Magnitude || self.baselines
    }

    /// Fails where a calibration text is needed and none is given. Not a part of [`Settings::resolve`], so that whoever
    /// mistypes the model is told of that first, and not of a text for a model that is not there.
    ///
    /// # Errors
    /// [`SettingsError::Inconsistent`].
    pub fn require_calibration(&self) -> Result<(), SettingsError> {
        if self.calibrates() && self.calibration.is_empty() {
            return Err(SettingsError::Inconsistent(
                "no calibration text: give --calibration FILE, some hundred kilobytes of text such as the model is used on",
            ));
        }
        Ok(())
    }

    /// Tokens per sequence, for a model whose positions end at `longest`: as given, or the smaller of 2048 and that.
    pub fn sequence_length(&self, longest: usize) -> usize {
        self.given_length.unwrap_or(longest.min(LONGEST_DEFAULT))
    }

    /// Whether a layer is to be pruned. `name` is the layer's full name, such as `model.layers.0.mlp.up_proj`.
    pub fn selects(&self, block: usize, name: &str) -> bool {
        self.blocks.contains(&block)
            && self.only.as_ref().is_none_or(|only| only.is_match(name))
            && self.skip.as_ref().is_none_or(|skip| !skip.is_match(name))
    }

    /// The settings as `pruning.toml`, with the sequence length that was used and with absolute paths, so that the run
    /// can be repeated from anywhere on this machine.
    ///
    /// # Errors
    /// If the current folder is gone, or a path is not UTF-8.
    pub fn to_toml(&self, sequence_length: usize) -> anyhow::Result<String> {
        let absolute = |paths: &[PathBuf]| paths.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>();
        let (sparsity, pattern) = match self.pattern {
            Pattern::Unstructured { sparsity } => (Some(sparsity), None),
            Pattern::NOfM { .. } => (None, Some(self.pattern.to_string())),
        };
        let blocks = match (self.blocks.start, self.blocks.end) {
            (0, usize::MAX) => None,
            (start, usize::MAX) => Some(format!("{start}..")),
            (start, end) => Some(format!("{start}..{end}")),
        };
        let count = |count: usize| Some(i64::try_from(count).unwrap_or(i64::MAX));
        let choices = Choices {
            model: Some(std::path::absolute(&self.model)?),
            output: None,
            method: Some(self.method),
            sparsity,
            pattern,
            bits: self.bits.map(i64::from),
            only: self.only.as_ref().map(|only| only.as_str().to_owned()),
            skip: self.skip.as_ref().map(|skip| skip.as_str().to_owned()),
            blocks,
            damping: Some(self.damping),
            panel_width: count(self.panel_width),
            activations: Some(self.activations),
            calibration: absolute(&self.calibration)?,
            sequences: count(self.sequences),
            sequence_length: count(sequence_length),
            sampling: Some(self.sampling),
            seed: Some(self.seed),
            evaluate: absolute(&self.evaluate)?,
            baselines: Some(self.baselines),
            shards: count(self.shards),
            threads: self.threads.and_then(count),
        };
        let version = env!("CARGO_PKG_VERSION");
        Ok(format!(
            "# What made this checkpoint; `driver prune --config pruning.toml --output FOLDER` makes it again (driver {version}).\n{}",
            toml::to_string(&choices)?
        ))
    }
}

/// What an evaluation needs to know.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The model's folder.
    pub model: PathBuf,
    /// The texts.
    pub texts: Vec<PathBuf>,
    /// Tokens per window, if given.
    given_length: Option<usize>,
    /// Threads, if given.
    pub threads: Option<usize>,
}

impl Evaluation {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`SettingsError::BadValue`].
    pub fn resolve(args: EvaluateArgs) -> Result<Self, SettingsError> {
        Ok(Self {
            model: args.model,
            texts: args.texts,
            given_length: args.sequence_length.map(sequence_length).transpose()?,
            threads: threads(args.threads)?,
        })
    }

    /// Tokens per window, for a model whose positions end at `longest`: as given, or the smaller of 2048 and that.
    pub fn sequence_length(&self, longest: usize) -> usize {
        self.given_length.unwrap_or(longest.min(LONGEST_DEFAULT))
    }
}

/// The flag `--threads`.
///
/// # Errors
/// [`SettingsError::BadValue`].
pub fn threads(given: Option<i64>) -> Result<Option<usize>, SettingsError> {
    given.map(|count| workers("threads", count)).transpose()
}

/// Reads a settings file; relative paths in it start at its folder.
fn read_file(path: &Path) -> Result<Choices, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::Unreadable { path: path.into(), source })?;
    let mut choices: Choices = toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        SettingsError::BadFile { path: path.into(), line, why: error.message().replace('\n', " ") }
    })?;
    if choices.sparsity.is_some() && choices.pattern.is_some() {
        return Err(SettingsError::Inconsistent("the settings file has both sparsity and pattern: one of them"));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let texts = choices.calibration.iter_mut().chain(&mut choices.evaluate);
    for path in texts.chain(&mut choices.model).chain(&mut choices.output) {
        *path = folder.join(&*path);
    }
    Ok(choices)
}

/// The flags where given, and the file's settings elsewhere.
fn over(flags: &Choices, file: Choices) -> Choices {
    let flags = flags.clone();
    let texts = |flags: Vec<PathBuf>, file| if flags.is_empty() { file } else { flags };
    // The two ways to say how much goes exclude each other, so a flag for either replaces both.
    let (sparsity, pattern) = match (flags.sparsity, flags.pattern) {
        (None, None) => (file.sparsity, file.pattern),
        given => given,
    };
    Choices {
        model: flags.model.or(file.model),
        output: flags.output.or(file.output),
        method: flags.method.or(file.method),
        sparsity,
        pattern,
        bits: flags.bits.or(file.bits),
        only: flags.only.or(file.only),
        skip: flags.skip.or(file.skip),
        blocks: flags.blocks.or(file.blocks),
        damping: flags.damping.or(file.damping),
        panel_width: flags.panel_width.or(file.panel_width),
        activations: flags.activations.or(file.activations),
        calibration: texts(flags.calibration, file.calibration),
        sequences: flags.sequences.or(file.sequences),
        sequence_length: flags.sequence_length.or(file.sequence_length),
        sampling: flags.sampling.or(file.sampling),
        seed: flags.seed.or(file.seed),
        evaluate: texts(flags.evaluate, file.evaluate),
        baselines: flags.baselines.or(file.baselines),
        shards: flags.shards.or(file.shards),
        threads: flags.threads.or(file.threads),
    }
}

/// Fills in the demonstration: its model, its texts, and all methods compared.
fn demonstrate(choices: &mut Choices) -> Result<(), SettingsError> {
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"));
    let here = Path::new("assets/demo");
    let there = built.canonicalize().unwrap_or_else(|_| built.into());
    let Some(folder) = [&there, here].into_iter().find(|folder| folder.join("config.json").is_file()) else {
        return Err(SettingsError::NoDemonstration { built: built.into() });
    };
    choices.model = Some(folder.into());
    if choices.calibration.is_empty() {
        choices.calibration = vec![folder.join("calibration.txt")];
    }
    if choices.evaluate.is_empty() {
        choices.evaluate = vec![folder.join("evaluation.txt")];
    }
    choices.baselines.get_or_insert(true);
    Ok(())
}

/// `pruned/MODEL-METHOD-HOW MUCH`, such as `pruned/opt-125m-sparsegpt-2of4-4bit`.
fn default_output(model: &Path, method: Method, pattern: &Pattern, bits: Option<u32>) -> PathBuf {
    let much = match pattern {
        Pattern::Unstructured { sparsity } => format!("{}", (1e6 * sparsity).round() / 1e4),
        Pattern::NOfM { keep, group } => format!("{keep}of{group}"),
    };
    let grid = bits.map_or(String::new(), |bits| format!("-{bits}bit"));
    let method = method.to_string().to_lowercase();
    Path::new("pruned").join(format!("{}-{method}-{much}{grid}", model_name(model)))
}

/// The name of a model by its folder; in the Hub's cache (`models--OWNER--NAME/snapshots/HASH`) it is two levels up.
fn model_name(model: &Path) -> String {
    let model = model.canonicalize().unwrap_or_else(|_| model.into());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let cached = model.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent).and_then(name);
    match cached.as_deref().and_then(|name| name.strip_prefix("models--")) {
        Some(cached) => cached.rsplit("--").next().unwrap_or(cached).to_owned(),
        None => name(&model).unwrap_or_else(|| "model".to_owned()),
    }
}

pub(crate) fn bad_value(flag: &'static str, value: impl ToString, why: impl ToString) -> SettingsError {
    SettingsError::BadValue { flag, value: value.to_string(), why: why.to_string() }
}

fn pattern(sparsity: Option<f64>, pattern: Option<&str>) -> Result<Pattern, SettingsError> {
    match (sparsity.unwrap_or(0.5), pattern) {
        (_, Some(text)) => text.parse().map_err(|why| bad_value("pattern", text, why)),
        (sparsity, None) if (0.0..1.0).contains(&sparsity) => Ok(Pattern::Unstructured { sparsity: sparsity + 0.0 }),
        (sparsity, None) => Err(bad_value("sparsity", sparsity, "the share of weights that goes lies in [0, 1)")),
    }
}

fn bits(bits: i64) -> Result<u32, SettingsError> {
    match u32::try_from(bits) {
        Ok(bits @ 2..=8) => Ok(bits),
        _ => Err(bad_value("bits", bits, "a grid has 2 to 8 bits")),
    }
}

fn damping(damping: f64) -> Result<f64, SettingsError> {
    if damping > 0.0 && damping <= 1e6 {
        return Ok(damping);
    }
    Err(bad_value(
        "damping",
        damping,
        "the share of the diagonal's mean is a number above 0 and up to 1e6, usually 0.01",
    ))
}

/// More shards or threads than this are a slip of the hand: each costs the system a thread.
const MOST_WORKERS: usize = 1024;

pub(crate) fn workers(flag: &'static str, count: i64) -> Result<usize, SettingsError> {
    match at_least_one(flag, count)? {
        count @ ..=MOST_WORKERS => Ok(count),
        count => Err(bad_value(flag, count, "at most 1024")),
    }
}

/// As many shards as are asked for, or as there are devices named, each of which takes one.
fn shards(asked: Option<i64>, device: &Choice) -> Result<usize, SettingsError> {
    let asked = asked.map(|count| workers("shards", count)).transpose()?;
    match (asked, device.count()) {
        (Some(asked), Some(named)) if asked != named => {
            Err(bad_value("shards", asked, format!("--device names {named} of them, and each takes a shard")))
        }
        (asked, named) => Ok(asked.or(named).unwrap_or(1)),
    }
}

pub(crate) fn at_least_one(flag: &'static str, count: i64) -> Result<usize, SettingsError> {
    match usize::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(bad_value(flag, count, "at least 1")),
    }
}

pub(crate) fn sequence_length(length: i64) -> Result<usize, SettingsError> {
    match usize::try_from(length) {
        Ok(length @ 2..) => Ok(length),
        _ => Err(bad_value("sequence-length", length, "at least 2: the first token of a sequence is not predicted")),
    }
}

fn regex(flag: &'static str, pattern: &str) -> Result<Regex, SettingsError> {
    Regex::new(pattern).map_err(|error| {
        // The crate draws a picture over several lines, whose last one says what is wrong.
        let text = error.to_string();
        let why = text.lines().last().unwrap_or_default();
        bad_value(flag, pattern, format!("no regular expression: {}", why.trim_start_matches("error: ")))
    })
}

fn blocks(text: &str) -> Result<Range<usize>, SettingsError> {
    let bad = |why| bad_value("blocks", text, why);
    let form = "a range of blocks is A..B, A.. or ..B";
    let (start, end) = text.split_once("..").ok_or_else(|| bad(form))?;
    let bound = |digits: &str, open| match digits {
        "" => Ok(open),
        digits => digits.parse::<usize>().map_err(|_| bad(form)),
    };
    let range = bound(start, 0)?..bound(end, usize::MAX)?;
    if range.is_empty() { Err(bad("the range is empty: it begins at A and ends before B")) } else { Ok(range) }
}
