//! What a plan holds, in bytes. t tokens are those of the shard with the most sequences, c those of a chunk, a the size of an
//! activation between stages, w that of a stored weight, s that of a number that linear layers read: of 16 bits, or 4 where a
//! checkpoint holds f32. n are the devices. What kernels take beside their operands is in [`roofline::room`].
//!
//! The device's part is measured: `tests/room.rs` prunes models shaped like OPT-175B on emulated devices, whose memory pools
//! count what is allocated.

use prune::Method;
use roofline::room::{self, allocated};

use crate::backend::{FEED_FORWARD, LayerBytes};
use crate::forecast::request::{Place, Request};
use crate::forecast::{Choice, Shapes, Stage};
use crate::plan::product;

/// Blocks of which a device holds the weights at a time: that in hand and the next one, which is loaded meanwhile.
const BLOCKS: usize = 2;

/// Taken before any buffer: a CUDA context with its modules (about half a GiB on these devices), cuBLAS's workspace and
/// NCCL's channels. An assumption to be replaced by a measurement.
pub const DEVICE_PROGRAM: u64 = 3 << 29;

/// What of that is still to come when a device is open: all but the context.
pub const LOADED_LATER: u64 = 1 << 30;

/// The same on the side of the host, for each device.
pub const HOST_PROGRAM: u64 = 1 << 29;

/// Pinned memory through which weights travel, for each device: two pieces, one filled while the other travels.
pub const STAGING: u64 = 2 * (128 << 20);

/// Pruned layers that are on their way to the disk at a time: one is written, one waits, one leaves the device.
const LEAVING: u64 = 3;

/// What a device holds at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The stage; the embedding before the first.
    pub stage: &'static str,
    /// The moment: `embed`; then of each stage `gather`, which fills H, `factor`, `solve`, which prunes a layer, and `absorb`,
    /// which updates the residual stream.
    pub moment: &'static str,
    /// The blocks that are held, s · weights and 4 · biases and norms each, and the tables of a rotation, 4 · length · columns of
    /// a head. While tokens are embedded, s · (vocabulary · width + positions · hidden) instead.
    pub weights: u64,
    /// The residual stream and the kept inputs, 2 · t · hidden · a, where they are kept on the device.
    pub activations: u64,
    /// H or V, 4 · columns²; while it is factored [`room::factor`], and then [`room::factored`].
    pub hessian: u64,
    /// A chunk of tokens on its way through the block, in bytes a token as in `Passing`; and while it is added to H
    /// [`room::accumulate`].
    pub chunk: u64,
    /// This device's rows of the layer being solved, 4 · rows / n · columns, and [`room::solve`] of those. The result takes the
    /// place of W in the block.
    pub layer: u64,
    /// What the program takes before anything else: [`DEVICE_PROGRAM`].
    pub program: u64,
}

impl Moment {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, activations, hessian, chunk, layer, program, .. } = *self;
        [weights, activations, hessian, chunk, layer, program].into_iter().fold(0, u64::saturating_add)
    }
}

/// What a token takes on its way through a block, at most, in bytes. The residual stream and what layers put out are f32, what
/// they read has s bytes, and what attention reads and writes 2. Where activations are kept outside the device, a copy of a
/// bytes a number comes in and goes out.
struct Passing<'a> {
    shapes: &'a Shapes,
    request: &'a Request,
    outside: bool,
}

impl Passing<'_> {
    /// x alone, 4 · hidden, with its copy where it comes from outside.
    fn stream(&self) -> usize {
        let copied = if self.outside { self.request.activation } else { 0 };
        (4 + copied) * self.shapes.hidden
    }

    /// x and the inputs of a stage, which are made of it:
    /// - the first of a half: s · hidden, what its norm puts out;
    /// - attention out: that and 4 · rows of q, k and v; then q, k and v rounded one after another, 2 · rows for 4 · rows; then
    ///   those and 2 · attention columns;
    /// - down: s · hidden and 4 · rows of up (and gate); then those and s · columns.
    fn inputs(&self, index: usize) -> usize {
        let Shapes { hidden, stages, attention, .. } = self.shapes;
        let s = self.shapes.element();
        let normed = s * hidden;
        let all_before = index.checked_sub(1).map_or(0, |before| stages[before].all_rows());
        let beside = match index {
            1 => {
                let (mut wide, mut narrow, mut most) = (4 * all_before, 0, normed + 4 * all_before);
                for rows in &stages[0].rows {
                    most = most.max(wide + narrow + 2 * rows);
                    (wide, narrow) = (wide - 4 * rows, narrow + 2 * rows);
                }
                // f32 layers read f32, which attention does not write.
                let widened = if s == 4 { 6 * attention } else { 0 };
                most.max(narrow + 2 * attention).max(widened)
            }
            3 => 4 * all_before + normed.max(s * stages[3].columns),
            _ => normed,
        };
        self.stream().max(4 * hidden + beside)
    }

    /// x and the inputs of a stage, while its output is added; where they come from, and that x goes back.
    fn absorbed(&self, index: usize, all_kept: bool) -> usize {
        let Shapes { hidden, stages, .. } = self.shapes;
        let beside = self.shapes.element() * stages[index].columns;
        match (all_kept, self.outside) {
            (true, false) => self.stream(),
            (true, true) => self.stream().max(4 * hidden + beside),
            (false, _) => self.inputs(index).max(4 * hidden + beside),
        }
    }

    /// Embeddings, through a projection where there is one, and as many positions to be added.
    fn embedded(&self) -> usize {
        let Shapes { hidden, width, .. } = *self.shapes;
        let projected = if width == hidden { 0 } else { (4 + self.shapes.element()) * width + 4 * hidden };
        let positions = if self.shapes.positions > 0 { 8 * hidden } else { 4 * hidden };
        // The numbers of rows that are looked up.
        self.stream().max(projected).max(positions + 4)
    }
}

/// What a device holds, moment by moment.
#[derive(Clone, Debug)]
pub struct Device {
    /// All moments, in order.
    pub moments: Vec<Moment>,
}

impl Device {
    /// What each device holds.
    pub fn of(request: &Request, shapes: &Shapes, choice: Choice) -> Self {
        let tokens = request.shard_tokens(shapes);
        let length = request.sequence_length(shapes);
        let calibrates = request.method != Method::Magnitude;
        // Attention takes whole sequences; where those are longer than a chunk, one at a time.
        let chunk = |index: usize| {
            match index < FEED_FORWARD {
                true => (choice.chunk / length).max(1).saturating_mul(length),
                false => choice.chunk,
            }
            .min(tokens)
        };
        let outside = choice.place != Place::Device;
        let buffer = allocated(product(&[tokens, shapes.hidden, request.activation]));
        let resting = Moment {
            activations: if outside || !calibrates { 0 } else { buffer.saturating_mul(2) },
            program: request.program,
            ..Moment::default()
        };
        let passing = Passing { shapes, request, outside };
        let through = |index: usize, bytes: usize| product(&[chunk(index), bytes]);
        let mut moments = Vec::new();
        if calibrates {
            let (stage, moment) = ("embedding", "embed");
            let chunk = through(0, passing.embedded());
            moments.push(Moment { stage, moment, weights: shapes.embedding(), chunk, ..resting });
        }
        let resting = Moment {
            weights: shapes.block_on_device(length).saturating_mul(BLOCKS.min(shapes.blocks) as u64),
            ..resting
        };
        for (index, stage) in shapes.stages.iter().enumerate() {
            let moment = |moment| Moment { stage: stage.name, moment, ..resting.clone() };
            let (columns, is_f32) = (stage.columns, shapes.element() == 4);
            let pruned = stage.pruned.iter().max();
            let matrix = if pruned.is_some() { allocated(product(&[columns, columns, 4])) } else { 0 };
            if calibrates {
                let added = through(index, shapes.element() * columns).saturating_add(if pruned.is_some() {
                    room::accumulate(chunk(index), columns, is_f32)
                } else {
                    0
                });
                let chunk = through(index, passing.inputs(index)).max(added);
                moments.push(Moment { hessian: matrix, chunk, ..moment("gather") });
            }
            if let Some(rows) = pruned.map(|rows| rows.div_ceil(request.shards)) {
                moments.extend(solved(request, stage, rows, matrix).map(|part| Moment {
                    hessian: part.hessian,
                    layer: part.layer,
                    ..moment(part.moment)
                }));
            }
            if calibrates && model::Stage::absorbs(index) {
                let all_kept = columns * shapes.element() <= shapes.hidden * request.activation;
                let chunk = through(index, passing.absorbed(index, all_kept));
                moments.push(Moment { chunk, ..moment("absorb") });
            }
        }
        Self { moments }
    }

    /// The worst moment of each stage, in order.
    pub fn stages(&self) -> Vec<&Moment> {
        let mut worst: Vec<&Moment> = Vec::new();
        for moment in &self.moments {
            match worst.last_mut().filter(|last| last.stage == moment.stage) {
                Some(last) if last.total() >= moment.total() => {}
                Some(last) => *last = moment,
                None => worst.push(moment),
            }
        }
        worst
    }

    /// The worst moment of all.
    pub fn worst(&self) -> Moment {
        self.moments.iter().max_by_key(|moment| moment.total()).cloned().unwrap_or_default()
    }

    /// What is held then.
    pub fn peak(&self) -> u64 {
        self.worst().total()
    }
}

/// The statistics and the layer of a stage, whose largest has so many rows on this device, from when H is full.
fn solved(request: &Request, stage: &Stage, rows: usize, matrix: u64) -> impl Iterator<Item = Moment> + use<> {
    let LayerBytes { preparing, prepared, pruning: layer } =
        LayerBytes::of(request.method, request.panels, request.bits, rows, stage.columns);
    let prepares = request.method != Method::Magnitude;
    let hessian = matrix.saturating_add(preparing);
    let factor = prepares.then_some(Moment { moment: "factor", hessian, ..Moment::default() });
    // The norms of the columns take the place of H.
    let hessian = if request.method == Method::Sparsegpt { matrix.saturating_add(prepared) } else { prepared };
    factor.into_iter().chain([Moment { moment: "solve", hessian, layer, ..Moment::default() }])
}

/// What the host holds, all shards being on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Pages of the block that is being read, w · weights of a block. They are clean: the system can drop them.
    pub pages: u64,
    /// [`STAGING`] for each device.
    pub staging: u64,
    /// Pruned layers on their way to the disk: three of the largest, w · rows · columns.
    pub results: u64,
    /// The residual streams and the kept inputs of all tokens, 2 · tokens · hidden · a, where they are in host memory; in a
    /// file, two chunks of both for each device.
    pub activations: u64,
    /// The calibration tokens, 4 bytes each, and [`HOST_PROGRAM`] for each device.
    pub program: u64,
}

impl Host {
    /// What the host holds.
    pub fn of(request: &Request, shapes: &Shapes, choice: Choice) -> Self {
        let each = |bytes: u64| bytes.saturating_mul(request.shards as u64);
        let activations = match choice.place {
            Place::Device => 0,
            Place::Host => product(&[2, request.tokens(shapes), shapes.hidden, request.activation]),
            Place::File => each(product(&[2, choice.chunk, shapes.hidden + shapes.widest(), request.activation])),
        };
        let largest = |stage: &Stage| stage.rows.iter().map(|&rows| product(&[rows, stage.columns])).max();
        let largest = shapes.stages.iter().filter_map(largest).max().unwrap_or(0);
        Self {
            pages: shapes.block_bytes(),
            staging: each(STAGING),
            results: largest.saturating_mul(shapes.dtype.size() as u64).saturating_mul(LEAVING),
            activations,
            program: each(HOST_PROGRAM).saturating_add(product(&[request.tokens(shapes), 4])),
        }
    }

    /// All of it.
    pub fn peak(&self) -> u64 {
        let Self { pages, staging, results, activations, program } = *self;
        [pages, staging, results, activations, program].into_iter().fold(0, u64::saturating_add)
    }
}
