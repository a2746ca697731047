//! A job divided among emulated GPUs: the same numbers as among threads of the processor, while races and missing events are
//! looked for.

#[path = "../../cuda/tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{Checkpoint, Dtype, Output};
use cuda::Place;
use driver::backend::gpu::GpuShard;
use driver::backend::{CpuShard, Solver};
use driver::blocks::{Job, prune_blocks};
use driver::cli::Verbosity;
use driver::progress::Progress;
use driver::report::{Clock, LayerReport};
use emulator::options::Options;
use model::calibration::Sequences;
use model::{Cpu, Model};
use prune::{Collective, Method, Pattern, run_shards};
use prune_cuda::Device;
use safetensors::SafeTensors;
use support::on_machine;
use testkit::generate::Random;

const LENGTH: usize = 20;

/// Of which eight shards have two or one each, and the widest Hessian of these models four and a half tokens a column.
const SEQUENCES: usize = 25;

/// What a prune gives: the reports of its layers, and their weights.
#[derive(Default)]
struct Pruned {
    layers: Vec<LayerReport>,
    weights: Vec<Vec<f32>>,
}

/// Prunes with so many shards, into a new folder in this one.
fn try_prune(
    model: &Model<'_>,
    solver: Solver,
    shards: usize,
    folder: &Path,
    work: impl Fn(&Job<'_>, &dyn Collective, &Mutex<Clock>) -> anyhow::Result<Vec<LayerReport>> + Sync,
) -> anyhow::Result<Vec<LayerReport>> {
    let mut random = Random::new(3);
    let tokens = (0..SEQUENCES * LENGTH).map(|_| random.below(160) as u32).collect();
    let sequences = Sequences { tokens, length: LENGTH };
    let output = Output::create(model.checkpoint(), &folder.join("out"), false).expect("an output");
    let progress = Progress::start(Verbosity { quiet: true, verbose: 0 });
    let (task, clock) = (progress.task("a test"), Mutex::new(Clock::start()));
    let job = Job {
        model,
        solver,
        sequences: Some(&sequences),
        activations: Dtype::F32,
        selects: &|_, _| true,
        blocks: model.blocks(),
        local_shards: shards,
        output: output.writer(),
        task: &task,
    };
    let layers = run_shards(shards, |collective| work(&job, collective, &clock))?.swap_remove(0);
    output.publish()?;
    Ok(layers)
}

/// As [`try_prune`], which must not fail.
fn prune(
    model: &Model<'_>,
    solver: Solver,
    shards: usize,
    work: impl Fn(&Job<'_>, &dyn Collective, &Mutex<Clock>) -> anyhow::Result<Vec<LayerReport>> + Sync,
) -> Pruned {
    let folder = tempfile::tempdir().expect("a folder");
    let layers = try_prune(model, solver, shards, folder.path(), work).expect("a prune");
    let weights = layers.iter().map(|layer| weight(&folder.path().join("out"), &layer.name)).collect();
    Pruned { layers, weights }
}

fn weight(folder: &Path, layer: &str) -> Vec<f32> {
    let bytes = fs::read(folder.join("model.safetensors")).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = file.tensor(&format!("{layer}.weight")).expect("the weight").data();
    data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn on_gpus(model: &Model<'_>, solver: Solver, shards: usize) -> Pruned {
    prune(model, solver, shards, |job, collective, clock| {
        let device = Device::open(collective.rank())?;
        // Several chunks of one sequence each, so that there is something to be out of order.
        let shard = GpuShard::<f32>::new(device, collective, Place::Device, LENGTH)?;
        prune_blocks(job, shard, collective, clock)
    })
}

fn on_threads(model: &Model<'_>, solver: Solver, shards: usize) -> Pruned {
    prune(model, solver, shards, |job, collective, clock| {
        prune_blocks(job, CpuShard::new(collective, job.activations), collective, clock)
    })
}

/// The share of the weights that one has and the other lacks.
fn differing(one: &[f32], other: &[f32]) -> f64 {
    let count = one.iter().zip(other).filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count();
    count as f64 / one.len() as f64
}

/// H of several shards is added in another order, which moves its elements by some 2⁻²⁴ of the diagonal. What that does to V, and
/// by V to scores, grows with the condition of the damped H, 10³ here, to 10⁻⁴: of the weights, whose scores are spread over decades,
/// as few lie that close to a threshold. What those cost the layers behind them is as much again.
const NEAR_TIES: f64 = 1e-3;

#[test]
fn gpus_divide_a_job_as_threads_do() {
    let unstructured = Pattern::Unstructured { sparsity: 0.5 };
    let groups = Pattern::NOfM { keep: 2, group: 4 };
    let cases: [(_, _, _, &[usize]); 4] = [
        ("llama", Method::Sparsegpt, unstructured, &[2, 3, 8]),
        ("bloom", Method::Sparsegpt, groups, &[3]),
        ("opt", Method::Wanda, unstructured, &[2]),
        ("qwen3", Method::Magnitude, unstructured, &[3]),
    ];
    for (name, method, pattern, sizes) in cases {
        let checkpoint = Checkpoint::open(&testkit::paths::golden().join("models").join(name)).expect("a checkpoint");
        let model = Model::open(&checkpoint).expect("a model");
        let solver = Solver { method, pattern, bits: None, damping: 0.01, panel_width: 64 };
        let alone = on_machine(&Options::default(), || on_gpus(&model, solver, 1));
        for &shards in sizes {
            let threads = on_threads(&model, solver, shards);
            let machine =
                Options { devices: shards, memory: 1 << 28, deferred: shards % 2 == 0, ..Options::checked(5) };
            let divided = on_machine(&machine, || on_gpus(&model, solver, shards));
            assert_eq!(divided.layers.len(), threads.layers.len());
            for (number, layer) in divided.layers.iter().enumerate() {
                let what = format!("{name}, {method}, {pattern}, {shards} shards, {}", layer.name);
                let (one, thread) = (&alone.layers[number], &threads.layers[number]);
                let known = |layer: &LayerReport| (layer.name.clone(), layer.zeros, layer.dead_columns, layer.damping);
                assert_eq!(known(layer), known(thread), "{what}");
                assert_eq!(known(layer), known(one), "{what}");
                let loss = layer.obs_loss.zip(one.obs_loss).map_or(1.0, |(many, one)| many / one);
                assert!((loss - 1.0).abs() < NEAR_TIES, "{what}: {loss} of the loss on one GPU");
                let differing = differing(&divided.weights[number], &alone.weights[number]);
                assert!(differing < NEAR_TIES, "{what}: {differing} of the mask differ from that of one GPU");
            }
        }
    }
}

#[test]
fn gpus_share_the_windows_of_an_evaluation() {
    let checkpoint = Checkpoint::open(&testkit::paths::golden().join("models/qwen2")).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let mut random = Random::new(4);
    let tokens: Vec<u32> = (0..7 * LENGTH + 3).map(|_| random.below(160) as u32).collect();
    let on_cpu = model::evaluate(&Cpu::default(), &model, &tokens, LENGTH, |_, _| ()).expect("a perplexity");
    // More devices than windows, too.
    let on_gpus = [1, 2, 3, 8].map(|devices| {
        on_machine(&Options { devices, ..Options::default() }, || {
            let opened = (0..devices).map(Device::open).collect::<Result<_, _>>().expect("devices");
            let told = AtomicUsize::new(0);
            let tell = |done, all| assert_eq!((told.fetch_add(1, Ordering::Relaxed) + 1, all), (done, 3));
            let gpus = driver::device::Gpus::new(opened);
            let evaluation = driver::device::Device::Gpus(gpus).evaluate(&model, &tokens, LENGTH, tell);
            assert_eq!(told.into_inner(), 3, "two blocks and the head");
            evaluation.ok()
        })
        .expect("a perplexity")
    });
    for on_gpu in on_gpus {
        assert_eq!((on_gpu.windows, on_gpu.predicted), (7, 7 * (LENGTH - 1)));
        // The losses of a window are the same on each device; f64 sums of 133 of them, in another order.
        assert!((on_gpu.mean_loss / on_gpus[0].mean_loss - 1.0).abs() < 133.0 * f64::EPSILON, "{on_gpu:?}");
        assert!((on_gpu.perplexity / on_cpu.perplexity - 1.0).abs() < 1e-3, "{on_gpu:?}, {on_cpu:?} on the processor");
    }
}

#[test]
fn a_shard_that_fails_ends_the_others() {
    let checkpoint = Checkpoint::open(&testkit::paths::golden().join("models/llama")).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let pattern = Pattern::Unstructured { sparsity: 0.5 };
    let solver = Solver { method: Method::Sparsegpt, pattern, bits: None, damping: 0.01, panel_width: 64 };
    on_machine(&Options { devices: 3, ..Options::default() }, || {
        for failing in 0..3 {
            let folder = tempfile::tempdir().expect("a folder");
            let error = try_prune(&model, solver, 3, folder.path(), |job, collective, clock| {
                let device = Device::open(collective.rank())?;
                let rank = collective.rank();
                // One shard has no place for its activations, which it finds out when the others are connected.
                let place = if rank == failing { Place::File("/nowhere".into()) } else { Place::Device };
                prune_blocks(job, GpuShard::<f32>::new(device, collective, place, LENGTH)?, collective, clock)
            });
            let text = format!("{:#}", error.expect_err("a shard failed"));
            assert!(text.contains("/nowhere"), "shard {failing}: {text}");
        }
    });
}

/// Devices that get fuller and fuller: what a shard gives up it does by itself, and never while others wait for it. At last it says
/// that there is no room, and the others end with it.
#[test]
fn full_devices_give_up_what_they_can_and_then_say_so() {
    let checkpoint = Checkpoint::open(&testkit::paths::golden().join("models/llama")).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let pattern = Pattern::Unstructured { sparsity: 0.5 };
    let solver = Solver { method: Method::Sparsegpt, pattern, bits: None, damping: 0.01, panel_width: 64 };
    let with = |memory: u64| {
        let machine = Options { devices: 2, memory, log: false, ..Options::default() };
        on_machine(&machine, || {
            let folder = tempfile::tempdir().expect("a folder");
            let peaks = Mutex::new(0);
            let layers = try_prune(&model, solver, 2, folder.path(), |job, collective, clock| {
                let device = Device::open(collective.rank())?;
                device.reset_peak()?;
                // Small chunks: what is worst is to prune.
                let shard = GpuShard::<f32>::new(device.clone(), collective, Place::Device, LENGTH)?;
                let layers = prune_blocks(job, shard, collective, clock)?;
                let mut peaks = peaks.lock().expect("no shard panics");
                *peaks = device.peak()?.unwrap_or_default().max(*peaks);
                Ok(layers)
            });
            let peak = peaks.into_inner().expect("no shard panics");
            Some(layers.map(|layers| (peak, layers.iter().map(|layer| layer.zeros).collect::<Vec<_>>())))
        })
        .expect("a machine")
    };
    let (roomy, zeros) = with(1 << 30).expect("a prune");
    let (mut passed, mut least) = (0, roomy);
    // Down to where not even the weights of a block have room; modules take some memory beside what is counted.
    let shares = [21, 19, 17, 15, 13, 11, 9, 3];
    for share in shares {
        match with(roomy * share / 20) {
            Ok((peak, found)) => {
                assert_eq!(found, zeros, "{share}/20");
                passed += 1;
                least = least.min(peak);
            }
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("has no room for"), "{share}/20: {text}");
            }
        }
    }
    // Without what is reserved beforehand, a device that is full while layers are pruned is an error at once.
    assert!((4..shares.len()).contains(&passed), "{passed} passed");
    // The next block, and its two activation buffers, are what a device can do without.
    assert!(least < roomy * 3 / 4, "{least} of {roomy}");
}
