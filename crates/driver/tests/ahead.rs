//! Blocks are loaded ahead where there is room for two of them, and in their turn where there is not: pruned they are the same.

use std::sync::Mutex;

use checkpoint::{Checkpoint, Dtype, Writer};
use driver::backend::Solver;
use driver::backend::gpu::GpuShard;
use driver::blocks::{Job, prune_blocks};
use driver::cli::Verbosity;
use driver::progress::Progress;
use driver::report::Clock;
use emulator::loader;
use emulator::options::Options;
use model::Model;
use model::calibration::Sequences;
use prune::{Method, Pattern, Solo};
use prune_cuda::Device;

/// Tokens of a sequence, and of all of them.
const LENGTH: usize = 16;
const TOKENS: usize = 256;

const SOLVER: Solver = Solver {
    method: Method::Sparsegpt,
    pattern: Pattern::Unstructured { sparsity: 0.5 },
    bits: None,
    damping: 0.01,
    panel_width: 32,
};

/// Prunes the first blocks of a model, and returns the file of the result and the most that the device held. Activations lie
/// outside of it and chunks are the smallest, so that nothing is left to give up but what is loaded ahead.
fn prune(model: &Model<'_>, blocks: usize) -> anyhow::Result<(Vec<u8>, u64)> {
    let folder = tempfile::tempdir()?;
    let writer = Writer::create(model.checkpoint(), folder.path(), 0, 1)?;
    let vocabulary = model.description().vocabulary as u32;
    let tokens = (0..TOKENS as u32).map(|i| i * i % 1009 % vocabulary).collect();
    let progress = Progress::start(Verbosity { quiet: true, verbose: 0 });
    let job = Job {
        model,
        solver: SOLVER,
        sequences: Some(&Sequences { tokens, length: LENGTH }),
        activations: Dtype::F32,
        selects: &|_, _| true,
        blocks,
        local_shards: 1,
        output: &writer,
        task: &progress.task("pruning"),
    };
    let device = Device::open(0)?;
    device.reset_peak()?;
    let shard = GpuShard::<f32>::new(device.clone(), &Solo, cuda::Place::Host, 256)?;
    let layers = prune_blocks(&job, shard, &Solo, &Mutex::new(Clock::start()))?;
    assert_eq!(layers.iter().map(|layer| layer.block).max(), Some(blocks - 1));
    writer.complete()?;
    Ok((std::fs::read(folder.path().join("model.safetensors"))?, device.peak()?.unwrap_or_default()))
}

#[test]
fn blocks_are_loaded_in_their_turn_where_there_is_no_room_for_two() {
    let emulator = loader::load(&Options::default()).expect("the emulated driver");
    loader::load_cublas().expect("its cuBLAS");
    let checkpoint = Checkpoint::open(&testkit::paths::golden().join("models/llama")).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    assert_eq!(model.blocks(), 2);
    let layers = model.stages(1).into_iter().flat_map(|stage| stage.layers);
    let block: usize = layers.map(|layer| layer.rows * layer.columns * size_of::<f32>()).sum();
    let with = |memory: u64, blocks| {
        let options = Options { memory, log: false, ..Options::default() };
        emulator.configure(&options).expect("options");
        prune(&model, blocks)
    };
    let (roomy, _) = with(1 << 30, 2).expect("a prune");
    let (_, alone) = with(1 << 30, 1).expect("a prune");
    // Modules take some, too, which is not counted. What is left beside is at most a quarter of a block.
    let room = (0..)
        .map(|step| alone + step * block as u64 / 4)
        .find(|&memory| with(memory, 1).is_ok())
        .expect("some is enough");
    eprintln!("a block takes {block} bytes, pruning one {alone} of {room}");
    let (cramped, held) = with(room, 2).expect("a prune");
    assert!(cramped == roomy && held <= room);
    assert!(emulator.findings().is_empty());
}
