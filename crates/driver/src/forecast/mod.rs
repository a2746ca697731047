//! `driver plan`: what pruning a model on GPUs would hold, where, and how long it would take, from `config.json` alone.
//!
//! The pipeline planned for is that of [`crate::blocks`], with its stages on devices:
//!
//! ```text
//! disk ─▶ host ─▶ block b+1's weights ┐
//!                 block b's weights   ├─▶ x ─▶ H ─▶ (summed) V (broadcast) ─▶ own rows pruned ─▶ gathered ─▶ host ─▶ disk
//!                 x, kept inputs      ┘
//! ```
//! Every device has all weights of the block in hand and of the next, which travel while it computes; its sequences'
//! activations; H of the stage, whose memory V takes over; a chunk of tokens; and of the layer being pruned its rows. [`memory`]
//! says what is counted in bytes, which emulated devices are held to; [`time`] what in seconds, which is a model.

pub mod memory;
pub mod request;
mod table;
pub mod time;

use std::path::Path;

use anyhow::{bail, ensure};
use checkpoint::Dtype;
use model::Description;
use model::description::{Attention, NormKind, Positions};
use roofline::room::allocated;
use serde_json::Value;

use crate::plan::{Plan, product};
use crate::summary::size;
use memory::{Device, Host};
use request::{Place, Request};
use time::Times;

/// Tokens on their way through a block together. Fewer let H be read and written more often, and below 256 a product no
/// longer fills a device.
const CHUNKS: [usize; 6] = [8192, 4096, 2048, 1024, 512, 256];

/// Shard counts that a refusal proposes.
const PROPOSED_SHARDS: [usize; 7] = [2, 4, 8, 16, 32, 64, 128];

/// The shapes that count.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// The architecture, as `model_type` names it.
    pub architecture: &'static str,
    /// Decoder blocks, all alike.
    pub blocks: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// The longest sequence that the model has positions for, or was made for.
    pub longest: usize,
    /// Whether positions end there.
    pub positions_end: bool,
    /// Columns of all heads together.
    pub attention: usize,
    /// How weights are stored.
    pub dtype: Dtype,
    /// The stages of a block, in order.
    pub stages: Vec<Stage>,
    /// Weights outside the blocks: embedding, positions, projections and a head of its own.
    pub outer: u64,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Columns of the embedding.
    pub width: usize,
    /// Rows of the table of positions, if there is one.
    pub positions: usize,
    /// Columns of a head, where heads are rotated.
    pub rotated: usize,
    /// The lengths of a block's biases, norms and slopes.
    pub vectors: Vec<usize>,
}

/// Layers with one input.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it is called.
    pub name: &'static str,
    /// Rows of each layer.
    pub rows: Vec<usize>,
    /// Columns of all of them.
    pub columns: usize,
    /// Rows of those that are pruned.
    pub pruned: Vec<usize>,
}

impl Shapes {
    /// The shapes of a model whose prune is planned, its linear layers read as `dtype` on a device: of stages that only some
    /// blocks prune, the rows that any does; of blocks, those up to the last that is pruned.
    pub fn of_plan(plan: &Plan, description: &Description, dtype: Dtype) -> Self {
        let mut shapes = Self::of(description, dtype);
        for (index, stage) in shapes.stages.iter_mut().enumerate() {
            let rows = plan.stages().filter(|planned| planned.index == index).flat_map(|planned| planned.layers);
            stage.pruned = rows.map(|layer| layer.rows).collect();
        }
        shapes.blocks = plan.stages().map(|stage| stage.block + 1).max().unwrap_or(0);
        shapes
    }
}

impl Stage {
    /// Rows of all layers.
    pub fn all_rows(&self) -> usize {
        self.rows.iter().sum()
    }
}

impl Shapes {
    /// The shapes that a `config.json` describes. Without a dtype in it, weights are taken to have 16 bits.
    ///
    /// # Errors
    /// If the file cannot be read, or describes no model that is known.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let config = checkpoint::read_config(path)?;
        Ok(Self::of(&Description::of_config(path, &config)?, dtype(&config)))
    }

    /// The shapes of a model with weights of this type.
    pub fn of(description: &Description, dtype: Dtype) -> Self {
        let Description { vocabulary, hidden, max_sequence_length, embedding, blocks, head, norm, .. } = description;
        let stages = blocks.stages.iter().zip(crate::architecture::STAGES).map(|(layers, name)| {
            let rows: Vec<usize> = layers.iter().map(|layer| layer.rows).collect();
            Stage { name, columns: layers.first().map_or(0, |layer| layer.columns), pruned: rows.clone(), rows }
        });
        let table = *vocabulary as u64 * embedding.width as u64;
        let positions = embedding.positions.map_or(0, |table| max_sequence_length + table.offset);
        let projections =
            [embedding.project_in, head.project_out].into_iter().flatten().count() * embedding.width * hidden;
        let Attention { heads, head_dim, .. } = blocks.attention;
        let biases = blocks.stages.iter().flatten().filter(|layer| layer.bias).map(|layer| layer.rows);
        let shifts = norm.affine && norm.kind == NormKind::Layer;
        let norms = blocks.norms.iter().flat_map(|_| [*hidden].repeat(1 + usize::from(shifts)));
        let head_norms = blocks.attention.qk_norm.into_iter().flatten().map(|_| head_dim);
        let slopes = (blocks.attention.positions == Positions::Alibi).then_some(heads);
        Self {
            architecture: description.architecture,
            blocks: blocks.windows.len(),
            hidden: *hidden,
            longest: *max_sequence_length,
            positions_end: embedding.positions.is_some(),
            attention: heads * head_dim,
            dtype,
            stages: stages.collect(),
            outer: if head.tied { table } else { 2 * table } + (positions * hidden + projections) as u64,
            vocabulary: *vocabulary,
            width: embedding.width,
            positions,
            rotated: if matches!(blocks.attention.positions, Positions::Rope(_)) { head_dim } else { 0 },
            vectors: biases.chain(norms).chain(head_norms).chain(slopes).collect(),
        }
    }

    /// The largest number of columns.
    pub fn widest(&self) -> usize {
        self.stages.iter().map(|stage| stage.columns).max().unwrap_or(0)
    }

    /// Weights of the linear layers of a block.
    pub fn block_weights(&self) -> u64 {
        self.stages.iter().map(|stage| product(&[stage.all_rows(), stage.columns])).sum()
    }

    /// Bytes of the linear layers of a block, as they are stored.
    pub fn block_bytes(&self) -> u64 {
        self.block_weights().saturating_mul(self.dtype.size() as u64)
    }

    /// Bytes of a number that linear layers read on a device, and of a weight there.
    pub fn element(&self) -> usize {
        if matches!(self.dtype, Dtype::F16 | Dtype::BF16) { 2 } else { 4 }
    }

    /// Bytes of a block on a device, with the rotation of its heads.
    pub fn block_on_device(&self, length: usize) -> u64 {
        let weights = self.stages.iter().flat_map(|stage| stage.rows.iter().map(|&rows| [rows, stage.columns]));
        let weights = weights.map(|[rows, columns]| product(&[rows, columns, self.element()]));
        let vectors = self.vectors.iter().map(|&length| product(&[length, 4]));
        // Cosines and sines.
        let tables = [product(&[length, self.rotated / 2, 4]); 2].into_iter().filter(|&table| table > 0);
        weights.chain(vectors).chain(tables).map(allocated).fold(0, u64::saturating_add)
    }

    /// Bytes on a device of what precedes the first block.
    pub fn embedding(&self) -> u64 {
        let projection = if self.width == self.hidden { [0; 2] } else { [self.hidden, self.width] };
        let tables = [[self.vocabulary, self.width], [self.positions, self.hidden], projection];
        let tables = tables.map(|[rows, columns]| product(&[rows, columns, self.element()]));
        tables.into_iter().filter(|&table| table > 0).map(allocated).fold(0, u64::saturating_add)
    }
}

/// The dtype that `transformers` writes down.
fn dtype(config: &Value) -> Dtype {
    let name = config.get("dtype").or_else(|| config.get("torch_dtype")).and_then(Value::as_str);
    match name {
        Some("float32") => Dtype::F32,
        Some("bfloat16") => Dtype::BF16,
        _ => Dtype::F16,
    }
}

/// A way to run: what is chosen by what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where activations are kept.
    pub place: Place,
    /// Tokens of a chunk.
    pub chunk: usize,
}

/// The plan of a run that fits.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// What was asked for.
    pub request: Request,
    /// The model.
    pub shapes: Shapes,
    /// How it is run.
    pub choice: Choice,
    /// What each device holds: the one with the most sequences and rows.
    pub device: Device,
    /// What the host holds.
    pub host: Host,
    /// How long it takes.
    pub times: Times,
}

impl Forecast {
    /// Plans the fastest run that fits: where activations are kept and how large chunks are is chosen, unless given.
    ///
    /// # Errors
    /// If `config.json` is no known model's, if sequences are longer than its positions, or if nothing fits: then the
    /// error says what would.
    pub fn new(request: Request) -> anyhow::Result<Self> {
        let shapes = Shapes::read(&request.config)?;
        let length = request.sequence_length(&shapes);
        ensure!(
            !shapes.positions_end || length <= shapes.longest,
            "--sequence-length {length} is longer than the {} positions that {} has",
            shapes.longest,
            request.config.display()
        );
        let Some(choice) = fitting(&request, &shapes) else { bail!(refusal(&request, &shapes, true)) };
        Ok(Self::of(request, shapes, choice))
    }

    /// Plans the run of a prune. One whose place and chunk are both given is run as told, with a warning where that does not
    /// fit: there is still what it gives up where it finds no room.
    ///
    /// # Errors
    /// If nothing fits: then the error says what would.
    pub fn of_prune(request: Request, shapes: Shapes) -> anyhow::Result<Self> {
        let choice = match (fitting(&request, &shapes), request.place, request.chunk) {
            (Some(choice), ..) => choice,
            (None, Some(place), Some(chunk)) => {
                tracing::warn!("{}", refusal(&request, &shapes, false));
                Choice { place, chunk }
            }
            (None, ..) => bail!(refusal(&request, &shapes, false)),
        };
        Ok(Self::of(request, shapes, choice))
    }

    fn of(request: Request, shapes: Shapes, choice: Choice) -> Self {
        let device = Device::of(&request, &shapes, choice);
        let host = Host::of(&request, &shapes, choice);
        let times = Times::of(&request, &shapes, choice);
        Self { request, shapes, choice, device, host, times }
    }

    /// How a prune uses its devices, in a line.
    pub fn line(&self) -> String {
        let (Request { shards, device, device_memory, .. }, worst) = (&self.request, self.device.worst());
        format!(
            "{shards} × {}: activations {}, {} tokens in a chunk; {} of {} at most, at `{}` of {}",
            device.name,
            self.choice.place.name(),
            self.choice.chunk,
            size(worst.total()),
            size(*device_memory),
            worst.moment,
            worst.stage
        )
    }
}

/// The ways to run that a request allows: activations on the device and large chunks first.
fn choices(request: &Request) -> impl Iterator<Item = Choice> {
    let places = request.place.map_or(vec![Place::Device, Place::Host, Place::File], |place| vec![place]);
    let chunks = request.chunk.map_or(CHUNKS.to_vec(), |chunk| vec![chunk]);
    places.into_iter().flat_map(move |place| chunks.clone().into_iter().map(move |chunk| Choice { place, chunk }))
}

/// The fastest way to run that fits devices and host; of equals, the first.
fn fitting(request: &Request, shapes: &Shapes) -> Option<Choice> {
    let fits = |&choice: &Choice| {
        Device::of(request, shapes, choice).peak() <= request.device_memory
            && Host::of(request, shapes, choice).peak() <= request.host_memory
    };
    let total = |choice: &Choice| Times::of(request, shapes, *choice).total();
    choices(request).filter(fits).min_by(|a, b| total(a).total_cmp(&total(b)))
}

/// What is too large, and each change that by itself would make it fit: of a plan, or of a prune, whose host and devices are what
/// they are.
fn refusal(request: &Request, shapes: &Shapes, planned: bool) -> String {
    let Some(least) = choices(request).min_by_key(|&choice| Device::of(request, shapes, choice).peak()) else {
        return "no way to run is allowed".to_owned();
    };
    let device = Device::of(request, shapes, least);
    let host = choices(request).map(|choice| Host::of(request, shapes, choice).peak()).min().unwrap_or(0);
    let mut lines =
        vec![format!("{} does not fit {} × {}", request.config.display(), request.shards, request.device.name)];
    if device.peak() > request.device_memory {
        let worst = device.worst();
        lines.push(format!(
            "a device would hold {} while it does `{}` of {}, of {}, with chunks of {} tokens and activations {}",
            size(worst.total()),
            worst.moment,
            worst.stage,
            size(request.device_memory),
            least.chunk,
            least.place.name(),
        ));
    } else {
        lines.push(format!("the host would hold {} at least, of {}", size(host), size(request.host_memory)));
    }
    let mut ways = Vec::new();
    let fits = |change: &dyn Fn(&mut Request)| {
        let mut changed = request.clone();
        change(&mut changed);
        fitting(&changed, shapes)
    };
    for place in [Place::Host, Place::File] {
        if request.place.is_some() && fits(&|changed| changed.place = Some(place)).is_some() {
            ways.push(format!("--activations-in {}", place.flag()));
        }
    }
    if request.chunk.is_some()
        && let Some(choice) = fits(&|changed| changed.chunk = None)
    {
        ways.push(format!("--chunk {}", choice.chunk));
    }
    let more = PROPOSED_SHARDS.into_iter().filter(|&shards| shards > request.shards);
    if let Some(shards) = more.into_iter().find(|&shards| fits(&|changed| changed.shards = shards).is_some()) {
        let gpus = if planned { "" } else { " (a GPU each)" };
        ways.push(format!("--shards {shards}{gpus}"));
    }
    if device.peak() > request.device_memory && host <= request.host_memory {
        let free = if planned { "" } else { " (if so much is free)" };
        ways.push(format!("--device-memory {}{free}", whole(device.peak())));
    }
    if !planned {
        ways.push("--device cpu".to_owned());
    } else if host > request.host_memory && device.peak() <= request.device_memory {
        ways.push(format!("--host-memory {}", whole(host)));
    }
    lines.push(match ways.is_empty() {
        true => format!(
            "no single change is enough: it takes devices of {} and a host of {}",
            whole(device.peak()),
            whole(host)
        ),
        false => format!("each of these alone would make it fit: {}", ways.join(", ")),
    });
    lines.join("; ")
}

/// Bytes as a flag takes them, rounded up to whole MiB or, from 10 GiB on, GiB.
fn whole(bytes: u64) -> String {
    match bytes >> 30 {
        0..10 => format!("{}MiB", bytes.div_ceil(1 << 20)),
        _ => format!("{}GiB", bytes.div_ceil(1 << 30)),
    }
}
