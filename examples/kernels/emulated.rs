//! What kernels do to memory, counted in the emulated driver: bytes moved against the fewest that tiles of their size could
//! move, sectors against the fewest that could hold those bytes, and bank conflicts.

use emulator::loader::Loaded;
use emulator::options::Options;
use emulator::profile::Profile;
use prune_cuda::{
    Activation, Attention, Block, Device, Error, Heads, MatrixMut, MatrixRef, Norm, Score, Selector, Stays, Swept,
    bring_errors, factor, invert, multiply_bitmask, multiply_two_four, pack_bitmask, pack_two_four, sweep,
};

/// One kernel at one shape.
pub(crate) struct Workload {
    /// The kernel that is looked at; others may run as well.
    pub(crate) kernel: &'static str,
    /// The shape, for people.
    pub(crate) shape: &'static str,
    /// The fewest bytes of global memory that a kernel with these tiles can read and write; zero where the launch is one of a
    /// recursion, whose shape is not looked at here.
    pub(crate) fewest_bytes: u64,
    /// Whether which banks are read depends on the data, so that conflicts cannot be ruled out.
    pub(crate) by_data: bool,
    /// What runs it.
    pub(crate) run: fn(&Device) -> Result<(), Error>,
}

/// What was counted.
pub(crate) struct Counted {
    /// The launch.
    pub(crate) profile: Profile,
    /// Of the workload.
    pub(crate) fewest_bytes: u64,
}

impl Counted {
    /// Bytes of global memory that were moved, in whole sectors of 32.
    pub(crate) fn bytes(&self) -> u64 {
        (self.profile.global_loads.sectors + self.profile.global_stores.sectors) * 32
    }

    /// Sectors beyond those that could hold what each request asked for, as a share.
    pub(crate) fn wasted_sectors(&self) -> f64 {
        let (loads, stores) = (self.profile.global_loads, self.profile.global_stores);
        let ideal = loads.ideal_sectors + stores.ideal_sectors;
        (loads.sectors + stores.sectors) as f64 / ideal.max(1) as f64 - 1.0
    }

    /// Passes over shared memory that bank conflicts cost.
    pub(crate) fn conflicts(&self) -> u64 {
        self.profile.shared_loads.conflicts() + self.profile.shared_stores.conflicts()
    }
}

/// Runs a workload on a fresh emulated device with multiprocessors as an A100 has them.
///
/// # Errors
/// What the driver says, or that the kernel was not launched.
pub(crate) fn count(emulator: &Loaded, workload: &Workload) -> Result<Counted, String> {
    let options = Options { profile: true, ..Options::default() };
    emulator.configure(&options).map_err(|error| error.to_string())?;
    let device = Device::open(0).map_err(|error| error.to_string())?;
    (workload.run)(&device)
        .and_then(|()| device.synchronize())
        .map_err(|error| format!("{}: {error}", workload.kernel))?;
    let mut profiles = emulator.profiles();
    profiles.retain(|profile| profile.geometry.kernel == workload.kernel);
    // Of several launches the largest.
    let largest = profiles.into_iter().max_by_key(|profile| profile.instructions);
    let profile = largest.ok_or_else(|| format!("{} was not launched", workload.kernel))?;
    Ok(Counted { profile, fewest_bytes: workload.fewest_bytes })
}

/// Bytes that an upper triangle of square tiles of 128 reads and writes: for each tile two strips of 128 by `depth` elements
/// of `size` bytes, on the diagonal as many as the kernel takes there, and the f32 result once.
const fn upper_tiles_bytes(columns: u64, depth: u64, size: u64, strips_on_diagonal: u64) -> u64 {
    let across = columns / 128;
    let off_diagonal = across * (across - 1) / 2;
    (off_diagonal * 2 + across * strips_on_diagonal) * 128 * depth * size + (columns * (columns + 1) / 2) * 4
}

fn hessian<T: prune_cuda::Input + Copy>(device: &Device, one: T) -> Result<(), Error> {
    let (tokens, columns) = (512, 512);
    let inputs = device.upload(&vec![one; tokens * columns])?;
    let mut hessian = device.zeros::<f32>(columns * columns)?;
    let inputs = MatrixRef::new(inputs.slice(..), tokens, columns)?;
    prune_cuda::accumulate(device, &inputs, &mut MatrixMut::new(hessian.slice_mut(..), columns, columns)?, 1.0, 0.0)
}

/// Bytes that square tiles of 128 read and write: two strips of 128 by `depth` f32 for each, and the result once for every part
/// of the depth that is summed apart.
const fn tiles_bytes(rows: u64, columns: u64, depth: u64, splits: u64) -> u64 {
    (rows / 128) * (columns / 128) * 2 * 128 * depth * 4 + splits * rows * columns * 4
}

/// Identity matrices with a little beside the diagonal, [batch · n, n].
fn definite(n: usize, batch: usize) -> Vec<f32> {
    let entry = |i: usize, j: usize| if i == j { 2.0 } else { 0.5 / n as f32 };
    (0..batch * n * n).map(|at| entry(at / n % n, at % n)).collect()
}

fn factored(device: &Device, n: usize, batch: usize, inverse: bool) -> Result<(), Error> {
    let mut matrices = device.upload(&definite(n, batch))?;
    let mut matrices = MatrixMut::new(matrices.slice_mut(..), batch * n, n)?;
    let mut failed = device.zeros::<i32>(batch)?;
    let factored = factor(device, &mut matrices, batch, &mut failed)?;
    if inverse { invert(device, &mut matrices, &factored.inverses, batch, &failed) } else { Ok(()) }
}

const PANEL: usize = 128;
/// Rows of a panel for which every multiprocessor of an A100 has two thread blocks: with fewer, rows are shared by threads.
const ROWS: usize = 216 * 128;

/// Rows, and columns before the panel, of an update.
const UPDATED: usize = 512;

/// Bytes of a sweep: W̃, W and the bits, Q and Δ, the losses in and out, and for each thread block of 128 rows U_b from its
/// diagonal pieces of 16 rows on, and the pivots.
const SWEEP_BYTES: u64 = {
    let rows = ROWS as u64;
    let pieces = 16 * 4 * (128 + 112 + 96 + 80 + 64 + 48 + 32 + 16);
    rows * (4 * 128 * 4 + 16 + 16) + rows / 128 * (pieces + 128 * 4)
};

fn panel(device: &Device, stays: Option<Stays>) -> Result<(), Error> {
    let values: Vec<f32> = (0..ROWS * PANEL).map(|at| (at % 251) as f32 - 125.0).collect();
    let mut weights = device.upload(&values)?;
    let pivots = device.upload(&[1.0f32; PANEL])?;
    let pivots = MatrixRef::new(pivots.slice(..), PANEL, 1)?;
    let mut keep = device.upload(&vec![0x5555_5555u32; ROWS * PANEL / 32])?;
    let mut keep = MatrixMut::new(keep.slice_mut(..), ROWS, PANEL / 32)?;
    let Some(stays) = stays else {
        let weights = MatrixRef::new(weights.slice(..), ROWS, PANEL)?;
        let count = (ROWS * PANEL / 2) as u64;
        return Selector::new(device)?.select(device, &weights, Score::Obs(&pivots), count, &mut keep, 0, None);
    };
    let inverse = device.upload(&definite(PANEL, 1))?;
    let inverse = MatrixRef::new(inverse.slice(..), PANEL, PANEL)?;
    let (mut losses, mut delta) = (device.zeros::<f64>(ROWS)?, device.zeros::<f32>(ROWS * PANEL)?);
    let swept = Swept {
        keep,
        first: 0,
        losses: losses.slice_mut(..),
        delta: Some(MatrixMut::new(delta.slice_mut(..), ROWS, PANEL)?),
        errors: None,
    };
    let block = Block { inverse: &inverse, pivots: &pivots, stays, grid: None };
    let current = device.upload(&values)?;
    let current = MatrixRef::new(current.slice(..), ROWS, PANEL)?;
    sweep(device, Some(&current), &mut MatrixMut::new(weights.slice_mut(..), ROWS, PANEL)?, &block, swept)
}

fn update(device: &Device) -> Result<(), Error> {
    let [weights, delta, above] = [PANEL, UPDATED, PANEL].map(|columns| device.zeros::<f32>(UPDATED * columns));
    let (weights, delta, above, inverse) = (weights?, delta?, above?, device.upload(&definite(PANEL, 1))?);
    let [mut owed, mut current] = [device.zeros::<f32>(UPDATED * PANEL)?, device.zeros::<f32>(UPDATED * PANEL)?];
    bring_errors(
        device,
        &MatrixRef::new(weights.slice(..), UPDATED, PANEL)?,
        (&MatrixRef::new(delta.slice(..), UPDATED, UPDATED)?, &MatrixRef::new(above.slice(..), UPDATED, PANEL)?),
        &MatrixRef::new(inverse.slice(..), PANEL, PANEL)?,
        &mut MatrixMut::new(owed.slice_mut(..), UPDATED, PANEL)?,
        &mut MatrixMut::new(current.slice_mut(..), UPDATED, PANEL)?,
    )
}

/// Of each four weights two stay.
fn packed(device: &Device, tokens: usize) -> Result<(), Error> {
    let (rows, columns) = (512, 512);
    let one = |at: usize| half::f16::from_f32(f32::from(u8::from(at % 4 < 2)));
    let weights = device.upload(&(0..rows * columns).map(one).collect::<Vec<_>>())?;
    let weights = MatrixRef::new(weights.slice(..), rows, columns)?;
    let inputs = device.upload(&vec![half::f16::ONE; tokens * columns])?;
    let inputs = MatrixRef::new(inputs.slice(..), tokens, columns)?;
    let mut outputs = device.zeros::<half::f16>(tokens * rows)?;
    let mut outputs = MatrixMut::new(outputs.slice_mut(..), tokens, rows)?;
    match tokens {
        1 => multiply_bitmask(device, &pack_bitmask(device, &weights, None)?, &inputs, &mut outputs),
        _ => multiply_two_four(device, &pack_two_four(device, &weights, None)?, &inputs, &mut outputs),
    }
}

/// Tokens and heads that attend.
const ATTENDING: (usize, usize) = (512, 2);

fn attend(device: &Device, head_dim: usize) -> Result<(), Error> {
    let (tokens, heads) = ATTENDING;
    let width = heads * head_dim;
    let data = device.upload(&vec![half::f16::ONE; tokens * width])?;
    let matrix = MatrixRef::new(data.slice(..), tokens, width)?;
    let [q, k, v] = [0; 3].map(|first| Heads { matrix: &matrix, first, step: head_dim });
    let mut output = device.zeros::<half::f16>(tokens * width)?;
    let shape = Attention { heads, kv_heads: heads, head_dim, sequence_length: tokens, window: None, slopes: None };
    prune_cuda::attention(device, &q, &k, &v, &mut MatrixMut::new(output.slice_mut(..), tokens, width)?, &shape)
}

/// For each tile of so many queries of a head: itself, keys and values up to its end, and its output.
const fn attention_bytes(head_dim: u64, tile: u64) -> u64 {
    let (tokens, heads) = (ATTENDING.0 as u64, ATTENDING.1 as u64);
    let tiles = tokens / tile;
    heads * head_dim * 2 * (2 * tokens + 2 * tile * tiles * (tiles + 1) / 2)
}

fn normalized(device: &Device) -> Result<(), Error> {
    let (rows, columns) = (64, 4096);
    let inputs = device.upload(&vec![1.0f32; rows * columns])?;
    let mut outputs = device.zeros::<half::f16>(rows * columns)?;
    let scale = inputs.slice(..columns);
    let norm = Norm { centered: true, epsilon: 1e-5, scale: &scale, shift: None };
    let inputs = MatrixRef::new(inputs.slice(..), rows, columns)?;
    prune_cuda::normalize(device, &inputs, &mut MatrixMut::new(outputs.slice_mut(..), rows, columns)?, &norm)
}

fn activated(device: &Device) -> Result<(), Error> {
    let (rows, columns) = (64, 4096);
    let inputs = device.upload(&vec![half::f16::ONE; rows * columns])?;
    let mut outputs = device.zeros::<half::f16>(rows * columns)?;
    let inputs = MatrixRef::new(inputs.slice(..), rows, columns)?;
    let mut outputs = MatrixMut::new(outputs.slice_mut(..), rows, columns)?;
    prune_cuda::activate(device, Activation::Silu, (&inputs, None), Some((&inputs, None)), &mut outputs)
}

const fn workload(
    kernel: &'static str,
    shape: &'static str,
    fewest_bytes: u64,
    run: fn(&Device) -> Result<(), Error>,
) -> Workload {
    Workload { kernel, shape, fewest_bytes, by_data: false, run }
}

/// All that is looked at, in the order of the data flow.
pub(crate) const WORKLOADS: &[Workload] = &[
    workload("hessian_accumulate_f16", "512 tokens, 512 columns", upper_tiles_bytes(512, 512, 2, 1), |device| {
        hessian(device, half::f16::ONE)
    }),
    workload("hessian_accumulate_bf16", "512 tokens, 512 columns", upper_tiles_bytes(512, 512, 2, 1), |device| {
        hessian(device, half::bf16::ONE)
    }),
    workload("hessian_accumulate_f32", "512 tokens, 512 columns", upper_tiles_bytes(512, 512, 4, 2), |device| {
        hessian(device, 1.0f32)
    }),
    workload("factor_block_f32", "n = 640", 0, |device| factored(device, 640, 1, false)),
    workload("factor_divide_f32", "n = 640", 0, |device| factored(device, 640, 1, false)),
    workload("factor_subtract_f32", "n = 640", 0, |device| factored(device, 640, 1, false)),
    workload("factor_update_f32", "16 of n = 640", 0, |device| factored(device, 640, 16, false)),
    workload("factor_multiply_f32", "n = 640", 0, |device| factored(device, 640, 1, true)),
    // Which bin a lane adds to is the data's choice.
    Workload {
        by_data: true,
        ..workload("prune_select_histogram", "27648 rows, 128 columns", 0, |device| panel(device, None))
    },
    workload("prune_sweep_given", "27648 rows, 128 columns", SWEEP_BYTES, |device| panel(device, Some(Stays::Given))),
    workload("prune_sweep_4", "27648 rows, 128 columns", SWEEP_BYTES, |device| {
        panel(device, Some(Stays::Groups { keep: 2, group: 4 }))
    }),
    workload("prune_trailing_f32", "512 rows, 128 columns, 512 before", tiles_bytes(512, 128, 512, 2), update),
    // Where a lane finds its value in the ring is the mask's.
    Workload { by_data: true, ..workload("pack_bitmask_multiply_f16_x1", "[512, 512]", 0, |device| packed(device, 1)) },
    workload("pack_two_four_multiply_f16", "[512, 512], 2560 tokens", TWO_FOUR_BYTES, |device| packed(device, 2560)),
    workload("block_attention_f16_32", "512 tokens, 2 heads of 32", attention_bytes(32, 128), |device| {
        attend(device, 32)
    }),
    workload("block_attention_f16_64", "512 tokens, 2 heads of 64", attention_bytes(64, 128), |device| {
        attend(device, 64)
    }),
    workload("block_attention_f16_96", "512 tokens, 2 heads of 96", attention_bytes(96, 128), |device| {
        attend(device, 96)
    }),
    workload("block_attention_f16_128", "512 tokens, 2 heads of 128", attention_bytes(128, 128), |device| {
        attend(device, 128)
    }),
    workload("block_attention_f16_256", "512 tokens, 2 heads of 256", attention_bytes(256, 64), |device| {
        attend(device, 256)
    }),
    workload("block_norm_f32_f16", "[64, 4096]", 64 * 4096 * (4 + 2 + 4), normalized),
    workload("block_activate_f16", "[64, 4096]", 64 * 4096 * (2 + 2 + 2), activated),
];

/// For each tile of 256 rows by 128 tokens, the values and metadata of its rows and the inputs of its tokens; the outputs once.
const TWO_FOUR_BYTES: u64 = {
    let (rows, columns, tokens) = (512, 512, 2560);
    let weights = 256 * (columns / 2 * 2 + columns / 8);
    (rows / 256) * (tokens / 128) * (weights + 128 * columns * 2) + tokens * rows * 2
};
