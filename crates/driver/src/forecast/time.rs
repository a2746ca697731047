//! How long a plan takes, in seconds: kernels by `roofline`, everything that travels by its bytes and the bandwidth given.

use roofline::{PANEL, Roofline};

use crate::forecast::request::{Place, Request};
use crate::forecast::{Choice, Shapes};

/// Seconds until a small message is summed over all shards: what a collective of NCCL takes whatever it carries, within a
/// machine. An assumption to be replaced by a measurement.
pub const LATENCY: f64 = 20e-6;

/// Passes of the selection over a panel's scores: three find the threshold, each with a sum over all shards, one marks.
const SELECT_PASSES: f64 = 4.0;

/// How often the activations of all tokens cross between device and where they are kept, in one block: the stream is read
/// to gather each stage's inputs (4), and the stages that end a half of the block write the inputs they keep, read them,
/// read the stream and write it (2 · 4).
const CROSSINGS: f64 = 12.0;

/// Seconds of one block on the device that has most to do, by phase; and of what is done once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// The checkpoint is read once before anything else, for NaN: bytes of all / disk.
    pub check: f64,
    /// What is not in a block is copied: its bytes, twice / disk.
    pub outer: f64,
    /// A block's weights from the disk, read once for all devices.
    pub read: f64,
    /// Products with the weights, and attention.
    pub forward: f64,
    /// XᵀX.
    pub hessian: f64,
    /// V, on one device while the others wait.
    pub factor: f64,
    /// Selection and sweep, and the updates between panels.
    pub solve: f64,
    /// H reduced, V broadcast, pruned rows gathered, histograms summed.
    pub collectives: f64,
    /// Pruned layers to the disk.
    pub write: f64,
    /// Activations kept outside, to the device and back, on the stream of the work, which waits for them; in a file for the disk,
    /// too.
    pub crossing: f64,
    /// What else crosses between host and device: a block's weights, and from the first device the pruned ones.
    pub host_link: f64,
    /// Activations kept in a file, to the disk and back.
    pub spill: f64,
    /// Blocks.
    pub blocks: f64,
}

impl Times {
    /// How long each phase takes.
    pub fn of(request: &Request, shapes: &Shapes, choice: Choice) -> Self {
        let roofline = Roofline { device: &request.device, share: request.share };
        let (shards, length) = (request.shards as f64, request.sequence_length(shapes) as f64);
        let tokens = request.shard_tokens(shapes) as f64;
        let block = shapes.block_bytes() as f64;
        let outer = shapes.outer as f64 * shapes.dtype.size() as f64;
        let mut times = Self {
            check: (block * shapes.blocks as f64 + outer) / request.disk,
            outer: 2.0 * outer / request.disk,
            read: block / request.disk,
            write: block / request.disk,
            blocks: shapes.blocks as f64,
            ..Self::default()
        };
        // What the stage before took, in which its successor's inputs are made.
        let mut before = 0.0;
        for (index, stage) in shapes.stages.iter().enumerate() {
            let (rows, columns) = (stage.all_rows() as f64, stage.columns as f64);
            let mut forward = roofline.forward(tokens, rows, columns);
            if index == 0 {
                forward += roofline.attention(tokens, length, shapes.attention as f64);
            }
            times.forward += forward;
            // Stages that end a half of the block keep as many inputs as fit a buffer as wide as the residual stream, and
            // make the others again.
            if model::Stage::absorbs(index) {
                times.forward += (1.0 - shapes.hidden as f64 / columns).max(0.0) * before;
            }
            before = forward;
            times.hessian += roofline.hessian(tokens, columns, choice.chunk as f64);
            times.factor += roofline.factor(columns);
            for &rows in &stage.rows {
                let own = rows.div_ceil(request.shards) as f64;
                times.solve += roofline.update(own, columns)
                    + roofline.sweep(own, columns)
                    + roofline.select(own, columns, SELECT_PASSES);
                if request.shards > 1 {
                    let gathered = rows as f64 * columns * shapes.dtype.size() as f64 * (1.0 - 1.0 / shards);
                    let sums = (columns / PANEL).ceil() * (SELECT_PASSES - 1.0);
                    times.collectives += gathered / request.link + sums * LATENCY;
                }
            }
            if request.shards > 1 {
                // Reduced to one device and broadcast from it, in a pipelined ring: each link carries the matrix once.
                times.collectives += 2.0 * 4.0 * columns * columns / request.link;
            }
        }
        let crossing = CROSSINGS * shapes.hidden as f64 * request.activation as f64;
        times.host_link = 2.0 * block / request.host_link;
        if choice.place == Place::File {
            times.spill = crossing * request.tokens(shapes) as f64 / request.disk;
        }
        if choice.place != Place::Device {
            times.crossing = crossing * tokens / request.host_link + times.spill;
        }
        times
    }

    /// What devices do one after another in a block.
    pub fn compute(&self) -> f64 {
        self.forward + self.hessian + self.factor + self.solve + self.collectives + self.crossing
    }

    /// What the disk does in the time of a block: it reads the next, writes the last, and may hold activations.
    pub fn disk(&self) -> f64 {
        self.read + self.write + self.spill
    }

    /// A block, its weights and results travelling beside the work on others: the slowest of devices, disk and host link.
    pub fn block(&self) -> f64 {
        self.compute().max(self.disk()).max(self.host_link)
    }

    /// What a block waits for.
    pub fn bound(&self) -> &'static str {
        match self.block() {
            slowest if slowest == self.compute() => "the devices",
            slowest if slowest == self.disk() => "the disk",
            _ => "the host links",
        }
    }

    /// All: the first block is waited for, and the last one's results.
    pub fn total(&self) -> f64 {
        self.check + self.outer + self.read + self.blocks * self.block() + self.write
    }
}
