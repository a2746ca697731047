//! What a plan holds, in bytes. t tokens are those of the shard with the most sequences, a their size (2), w that of a
//! stored weight, n the shards.

use crate::forecast::request::{Place, Request};
use crate::forecast::{Choice, Shapes, Stage};
use crate::plan::{chunk_bytes, product};

/// Bytes of an activation between stages.
pub const ACTIVATION: usize = 2;

/// Columns of a panel, for which the solver holds Δ·V and W̃ of all rows, and of the inverted diagonal blocks of V.
const PANEL: usize = 128;

/// Taken before any buffer: a CUDA context with its modules (about half a GiB on these devices), cuBLAS's workspace and
/// NCCL's channels. An assumption to be replaced by a measurement.
pub const DEVICE_PROGRAM: u64 = 3 << 29;

/// The same on the side of the host, for each device.
pub const HOST_PROGRAM: u64 = 1 << 29;

/// Pinned memory through which weights travel, for each device: two pieces, one filled while the other travels.
pub const STAGING: u64 = 2 * (128 << 20);

/// What a device holds at the worst moment of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The stage.
    pub stage: &'static str,
    /// The moment: `gather` fills H, `solve` prunes a layer, `absorb` updates the residual stream.
    pub moment: &'static str,
    /// Two blocks as they are stored, this one and the next: 2 · w · weights of a block.
    pub weights: u64,
    /// The residual stream and the kept inputs, 2 · t · hidden · a; outside the device, two chunks of each, of which one
    /// travels.
    pub activations: u64,
    /// H or V, columns² in f32; with V the inverses of its diagonal blocks, columns · 128 in f32, and a byte a column.
    pub hessian: u64,
    /// A chunk of tokens on its way through the block: `plan::chunk_bytes`.
    pub chunk: u64,
    /// W and Δ of this device's rows of the largest layer in f32, Δ·V and W̃ of one panel, a bit a weight for what stays,
    /// and the rows' losses. The result takes the place of W in the block.
    pub layer: u64,
    /// [`DEVICE_PROGRAM`].
    pub program: u64,
}

impl Moment {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, activations, hessian, chunk, layer, program, .. } = *self;
        [weights, activations, hessian, chunk, layer, program].into_iter().fold(0, u64::saturating_add)
    }
}

/// What a device holds, stage by stage.
#[derive(Clone, Debug)]
pub struct Device {
    /// The worst moment of each stage.
    pub stages: Vec<Moment>,
}

impl Device {
    /// What each device holds.
    pub fn of(request: &Request, shapes: &Shapes, choice: Choice) -> Self {
        let length = request.sequence_length(shapes);
        // Attention takes whole sequences; where those are longer than a chunk, one at a time.
        let chunk = |index: usize| {
            match index < crate::backend::FEED_FORWARD {
                true => (choice.chunk / length).max(1) * length,
                false => choice.chunk,
            }
            .min(request.shard_tokens(shapes))
        };
        let activations = match choice.place {
            Place::Device => product(&[2, request.shard_tokens(shapes), shapes.hidden, ACTIVATION]),
            Place::Host | Place::File => product(&[2, chunk(0), shapes.hidden + shapes.widest(), ACTIVATION]),
        };
        let common = Moment {
            weights: shapes.block_bytes().saturating_mul(2),
            activations,
            program: DEVICE_PROGRAM,
            ..Moment::default()
        };
        let worst = |(index, stage): (usize, &Stage)| {
            let passing = Moment {
                stage: stage.name,
                chunk: chunk_bytes(chunk(index), shapes.hidden, stage.all_rows(), stage.columns),
                ..common.clone()
            };
            let hessian = product(&[stage.columns, stage.columns, 4]);
            let gather = Moment { moment: "gather", hessian, ..passing };
            let rows = stage.rows.iter().map(|rows| rows.div_ceil(request.shards)).max().unwrap_or(0);
            let solve = Moment {
                stage: stage.name,
                moment: "solve",
                hessian: hessian + product(&[stage.columns.div_ceil(PANEL), PANEL, PANEL, 4]) + stage.columns as u64,
                layer: product(&[rows, 2 * 4 * stage.columns + 2 * 4 * PANEL + 4 * stage.columns.div_ceil(32) + 8]),
                ..common.clone()
            };
            // `absorb` holds what `gather` does, without H.
            if gather.total() >= solve.total() { gather } else { solve }
        };
        Self { stages: shapes.stages.iter().enumerate().map(worst).collect() }
    }

    /// The worst moment of all.
    pub fn worst(&self) -> Moment {
        self.stages.iter().max_by_key(|moment| moment.total()).cloned().unwrap_or_default()
    }

    /// What is held then.
    pub fn peak(&self) -> u64 {
        self.worst().total()
    }
}

/// What the host holds, all shards being on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Pages of the block that is being read, w · weights of a block. They are clean: the system can drop them.
    pub pages: u64,
    /// [`STAGING`] for each device.
    pub staging: u64,
    /// Pruned layers on their way to the disk: a block's, w · weights.
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
        let block = shapes.block_bytes();
        let each = |bytes: u64| bytes.saturating_mul(request.shards as u64);
        let activations = match choice.place {
            Place::Device => 0,
            Place::Host => product(&[2, request.tokens(shapes), shapes.hidden, ACTIVATION]),
            Place::File => each(product(&[2, choice.chunk, shapes.hidden + shapes.widest(), ACTIVATION])),
        };
        Self {
            pages: block,
            staging: each(STAGING),
            results: block,
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
