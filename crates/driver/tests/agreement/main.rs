//! The same prune on the processor and on an emulated GPU: all golden models, each in two of three number types, and a cut of the
//! demonstration.
//!
//! Masks are compared layer by layer, and each layer on the same problem: the GPU's run is led, its layers read what the processor's
//! weights before them put out. Both answers are then judged by the problem of the processor's inputs in f64, with doubts by how far
//! the GPU's inputs are from those, and that by how often numbers are rounded on their way.
//!
//! Perplexities are those of runs that nobody leads.

mod judge;
mod watched;

use std::path::Path;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use checkpoint::{Checkpoint, Output};
use cuda::{Element, Gpu, Place};
use driver::backend::gpu::{CHUNK, GpuShard};
use driver::backend::{Backend, CpuShard, Solver};
use driver::blocks::{Job, prune_blocks};
use driver::cli::Verbosity;
use driver::progress::Progress;
use driver::report::{Clock, LayerReport};
use emulator::loader::{self, Loaded};
use emulator::options::Options;
use half::{bf16, f16};
use judge::{Doubts, Judge};
use model::calibration::{Sequences, TextTokenizer};
use model::{Cpu, Forward, Model};
use prune::{Method, Pattern, Solo};
use safetensors::Dtype;
use tempfile::TempDir;
use testkit::generate::Random;
use testkit::golden::{model_names, rounded_model};
use testkit::tolerance::{BF16, F16, F32, forward_tolerance, rounded_forward_tolerance};
use watched::{Layer, Watch, Watched};

/// The widest product of the golden models and the demonstration.
const COLUMNS: usize = 1024;

const HALF: Solver = solver(Method::Sparsegpt, Pattern::Unstructured { sparsity: 0.5 }, None);
const TWO_OF_FOUR: Solver = solver(Method::Sparsegpt, Pattern::NOfM { keep: 2, group: 4 }, None);
const FOUR_BITS: Solver = solver(Method::Sparsegpt, Pattern::NOfM { keep: 2, group: 4 }, Some(4));

/// Panels of 64 columns: the golden models have several.
const fn solver(method: Method, pattern: Pattern, bits: Option<u32>) -> Solver {
    Solver { method, pattern, bits, damping: 0.01, panel_width: 64 }
}

/// The emulated device, for one test at a time.
fn device() -> (MutexGuard<'static, ()>, prune_cuda::Device) {
    static TURN: Mutex<()> = Mutex::new(());
    static EMULATOR: OnceLock<Loaded> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    EMULATOR.get_or_init(|| {
        // Named, so that the library is built.
        std::hint::black_box(emulator_cublas::cublasGetStatusString(0));
        let loaded = loader::load(&Options::default()).expect("the emulated driver loads");
        loader::load_cublas().expect("the emulated cuBLAS loads");
        loaded
    });
    (turn, prune_cuda::Device::open(0).expect("a device"))
}

/// The numbers of a model's linear layers.
trait Number: Element {
    const DTYPE: Dtype;
    /// The type in which activations are kept by default.
    const ACTIVATIONS: checkpoint::Dtype;
    /// Of weights, as [`testkit::tolerance::stored_tolerance`] takes it.
    const STORED: (f64, f64);
    /// What the GPU rounds to, and how often between a block's input and the inputs of each stage, and the output:
    /// `crates/cuda/tests/forward.rs` counts.
    const UNIT: f64;
    const ROUNDINGS: [usize; 5];
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
    const ACTIVATIONS: checkpoint::Dtype = checkpoint::Dtype::F16;
    const STORED: (f64, f64) = F32;
    const UNIT: f64 = F16.0;
    const ROUNDINGS: [usize; 5] = [0, 5, 5, 5, 5];
}

impl Number for f16 {
    const DTYPE: Dtype = Dtype::F16;
    const ACTIVATIONS: checkpoint::Dtype = checkpoint::Dtype::F16;
    const STORED: (f64, f64) = F16;
    const UNIT: f64 = F16.0;
    const ROUNDINGS: [usize; 5] = [1, 6, 7, 8, 8];
}

impl Number for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    const ACTIVATIONS: checkpoint::Dtype = checkpoint::Dtype::BF16;
    const STORED: (f64, f64) = BF16;
    const UNIT: f64 = BF16.0;
    const ROUNDINGS: [usize; 5] = [1, 6, 7, 8, 8];
}

/// A prune of some blocks of a model.
struct Case<'a> {
    what: String,
    model: &'a Model<'a>,
    sequences: &'a Sequences,
    blocks: usize,
    solver: Solver,
}

impl Case<'_> {
    fn run<B: Backend>(&self, shard: B, activations: checkpoint::Dtype, folder: &Path) -> Vec<LayerReport> {
        let output = Output::create(self.model.checkpoint(), folder, false).expect("an output");
        let progress = Progress::start(Verbosity { quiet: true, verbose: 0 });
        let job = Job {
            model: self.model,
            solver: self.solver,
            sequences: Some(self.sequences),
            activations,
            selects: &|_, _| true,
            blocks: self.blocks,
            local_shards: 1,
            output: output.writer(),
            task: &progress.task("pruning"),
        };
        let reports = prune_blocks(&job, shard, &Solo, &Mutex::new(Clock::start()));
        let reports = reports.unwrap_or_else(|error| panic!("{}: {error:#}", self.what));
        output.publish().expect("a finished output");
        reports
    }

    /// On the processor, into this folder.
    fn on_cpu<T: Number>(&self, folder: &Path) -> (Vec<LayerReport>, Vec<Layer>) {
        let watch = Watch::default();
        let shard = CpuShard::new(&Solo, T::ACTIVATIONS);
        let reports =
            self.run(Watched { shard, watch: &watch, read: |_, inputs| inputs.clone() }, T::ACTIVATIONS, folder);
        (reports, watch.into_layers())
    }

    /// On the GPU, likewise, each layer after those that led it there, if any did.
    fn on_gpu<T: Number>(
        &self,
        device: &prune_cuda::Device,
        led: &[Layer],
        folder: &Path,
    ) -> (Vec<LayerReport>, Vec<Layer>) {
        let watch = Watch::following(led);
        let shard = GpuShard::<T>::new(device.clone(), &Solo, Place::Device, CHUNK).expect("cuBLAS");
        let read = |shard: &GpuShard<'_, T>, inputs: &cuda::Rows<T>| {
            let values = shard.forward().device().download(inputs.values()).expect("a copy");
            let mut wide = vec![0.0; values.len()];
            T::widen(&values, &mut wide);
            wide
        };
        let reports = self.run(Watched { shard, watch: &watch, read }, T::ACTIVATIONS, folder);
        (reports, watch.into_layers())
    }

    /// Asserts that both sides prune the same: each layer alike on the same problem, as the module says.
    fn assert_agreement<T: Number>(&self, device: &prune_cuda::Device) {
        let folder = TempDir::new().expect("a temporary folder");
        let (cpu_reports, on_cpu) = self.on_cpu::<T>(&folder.path().join("cpu"));
        let (gpu_reports, on_gpu) = self.on_gpu::<T>(device, &on_cpu, &folder.path().join("gpu"));
        assert_eq!((cpu_reports.len(), on_cpu.len()), (gpu_reports.len(), on_gpu.len()), "{}", self.what);
        for (cpu, gpu) in cpu_reports.iter().zip(&gpu_reports) {
            let what = format!("{}, {}", self.what, cpu.name);
            let of = |report: &LayerReport| {
                (report.name.clone(), report.stage.clone(), report.dead_columns, report.damping, report.retries)
            };
            assert_eq!(of(cpu), of(gpu), "{what}");
            // A grid rounds to zero as well, and its ties lie elsewhere.
            if self.solver.bits.is_none() {
                assert_eq!(cpu.zeros, gpu.zeros, "{what}: zeros");
            }
        }
        if self.solver.method == Method::Magnitude {
            assert!(on_cpu.iter().zip(&on_gpu).all(|(cpu, gpu)| cpu.bytes == gpu.bytes), "{}: weights", self.what);
            return;
        }
        let (mut stage, mut judge) = (0, None::<Judge>);
        let (mut differ, mut doubtful, mut weights) = (0, 0, 0);
        for (at, (cpu, gpu)) in on_cpu.iter().zip(&on_gpu).enumerate() {
            let before = at.checked_sub(1).map(|before| &on_cpu[before]);
            if judge.is_none() || before.is_some_and(|before| !Rc::ptr_eq(&before.inputs, &cpu.inputs)) {
                stage = if before.is_some_and(|before| before.block == cpu.block) { stage + 1 } else { 0 };
                judge = Some(Judge::new(cpu));
            }
            let Some(judge) = &judge else { continue };
            let what = format!("{}, {}", self.what, cpu.name);
            let moved = judge.moved(cpu, gpu);
            let (share, allowed) = (judge.share(&moved), apart_tolerance::<T>(cpu.block, stage));
            assert!(share <= allowed, "{what}: inputs are {share:e} apart, and {allowed:e} is allowed");
            let of = |what: &str, layer: &Layer, moved: Vec<f64>| {
                let doubts = Doubts { moved, stored: T::STORED };
                match self.solver.method {
                    Method::Wanda => judge.assert_wanda(what, layer, self.solver.pattern, &doubts),
                    _ => judge.assert_pruned(what, layer, &self.solver, &doubts),
                }
            };
            of(&format!("{what} on the processor"), cpu, vec![0.0; cpu.columns]);
            // Roundings before a product are off in all that comes of it, so that columns are not independent: twice as far.
            doubtful += of(&format!("{what} on the GPU"), gpu, moved.iter().map(|moved| 4.0 * moved).collect());
            differ += cpu.pruned.iter().zip(&gpu.pruned).filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count();
            weights += cpu.pruned.len();
        }
        let share = |count: usize| count as f64 / weights as f64;
        println!("{}: masks differ in {:.1e}, {:.1e} are near-ties", self.what, share(differ), share(doubtful));
        assert!(share(doubtful) < 0.1, "{}: {} are near-ties: nothing would be tested", self.what, share(doubtful));
    }
}

/// How far the inputs of a stage may be apart on both sides where weights before them are the same, as a share of their root mean
/// square: one standard deviation, a fifth of what the worst entry may be apart. The residual stream is rounded when it is kept, once after each half of a block.
fn apart_tolerance<T: Number>(block: usize, stage: usize) -> f64 {
    let roundings = block * (T::ROUNDINGS[4] + 2) + T::ROUNDINGS[stage] + stage / 2;
    (forward_tolerance(2 + 6 * (block + 1), COLUMNS) + rounded_forward_tolerance(roundings, T::UNIT)) / 5.0
}

/// Sequences of random tokens, so many at least.
fn random_tokens(model: &Model<'_>, seed: u64, count: usize) -> Sequences {
    let length = model.max_sequence_length().min(24);
    let mut random = Random::new(seed);
    let mut token = |_| random.below(model.description().vocabulary) as u32;
    Sequences { tokens: (0..count.div_ceil(length) * length).map(&mut token).collect(), length }
}

/// Columns of the widest Hessian.
fn widest(model: &Model<'_>) -> usize {
    model.stages(0).iter().map(|stage| stage.width).max().expect("four stages")
}

fn golden<T: Number>(name: &str, solvers: &[Solver]) {
    let (_turn, device) = device();
    let folder = rounded_model(name, T::DTYPE);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let sequences = random_tokens(&model, 5, 2 * widest(&model));
    for &solver in solvers {
        let Solver { method, pattern, bits, .. } = solver;
        let what = format!("{name} in {:?}, {method} {pattern} {bits:?}", T::DTYPE);
        let case = Case { what, model: &model, sequences: &sequences, blocks: model.blocks(), solver };
        case.assert_agreement::<T>(&device);
    }
}

#[test]
fn every_golden_model_is_pruned_alike() {
    let names = model_names();
    assert!(names.len() >= 18, "{names:?}");
    for (number, name) in names.iter().enumerate() {
        let [solver, other] = if number % 2 == 0 { [HALF, TWO_OF_FOUR] } else { [TWO_OF_FOUR, HALF] };
        golden::<f16>(name, &[solver]);
        // The other two types take turns, by pairs, so that each meets both patterns.
        if number % 4 < 2 {
            golden::<f32>(name, &[other]);
        } else {
            golden::<bf16>(name, &[other]);
        }
    }
}

#[test]
fn grids_and_baselines_are_alike() {
    let wanda = solver(Method::Wanda, HALF.pattern, None);
    let wanda_groups = solver(Method::Wanda, TWO_OF_FOUR.pattern, None);
    let magnitude = solver(Method::Magnitude, HALF.pattern, None);
    let magnitude_groups = solver(Method::Magnitude, TWO_OF_FOUR.pattern, None);
    golden::<f32>("models/llama", &[FOUR_BITS, wanda, magnitude]);
    golden::<f16>("models/opt", &[FOUR_BITS, wanda, wanda_groups, magnitude_groups]);
    golden::<bf16>("models/qwen3", &[FOUR_BITS, wanda_groups, magnitude]);
}

/// Its first block, on its own texts.
#[test]
fn the_demonstration_is_pruned_alike() {
    let (_turn, device) = device();
    let checkpoint = Checkpoint::open(&testkit::paths::demo()).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let texts = [testkit::paths::demo().join("calibration.txt")];
    let tokenizer = TextTokenizer::load(&testkit::paths::demo(), 2048).expect("a tokenizer");
    let mut tokens = tokenizer.stream(&texts, Some(2 * widest(&model))).expect("tokens");
    tokens.truncate(2 * widest(&model));
    let sequences = Sequences { tokens, length: 128 };
    for solver in [HALF, TWO_OF_FOUR] {
        let what = format!("the demonstration, {}", solver.pattern);
        let case = Case { what, model: &model, sequences: &sequences, blocks: 1, solver };
        case.assert_agreement::<f16>(&device);
    }
}

/// −ln p of each sequence.
fn losses<F: Forward<Error: std::fmt::Debug>>(forward: &F, model: &Model<'_>, sequences: &Sequences) -> Vec<f64> {
    let Sequences { tokens, length } = sequences;
    let mut x = model.embedding(forward).expect("a load").embed(tokens, *length).expect("embeddings");
    for index in 0..model.blocks() {
        let block = model.block(forward, index).expect("a block");
        block.forward(&mut x, tokens.len(), *length).expect("finite activations");
    }
    model.head(forward).expect("a load").losses(&x, tokens, *length).expect("finite losses")
}

/// The mean difference of the losses of tokens, and the standard deviation of a token's, as if tokens were independent.
fn difference(got: &[f64], want: &[f64], length: usize) -> (f64, f64) {
    let predicted = (length - 1) as f64;
    let differences: Vec<f64> = got.iter().zip(want).map(|(got, want)| got - want).collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / differences.len() as f64;
    (mean / predicted, (variance / predicted).sqrt())
}

/// Prunes a golden model on both sides, each by itself, and compares what the results predict.
fn perplexities<T: Number>(name: &str, solver: Solver, twice: bool) {
    let (_turn, device) = device();
    let folder = rounded_model(name, T::DTYPE);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let sequences = random_tokens(&model, 5, 2 * widest(&model));
    let evaluation = random_tokens(&model, 6, 600);
    let what = format!("{name} in {:?}, {}", T::DTYPE, solver.pattern);
    let case = Case { what: what.clone(), model: &model, sequences: &sequences, blocks: model.blocks(), solver };
    let outputs = TempDir::new().expect("a temporary folder");
    let folder = |name: &str| outputs.path().join(name);
    let (_, on_cpu) = case.on_cpu::<T>(&folder("cpu"));
    let (_, on_gpu) = case.on_gpu::<T>(&device, &[], &folder("gpu"));
    if twice {
        case.on_gpu::<T>(&device, &[], &folder("again"));
        let read = |name: &str| std::fs::read(folder(name).join("model.safetensors")).expect("a checkpoint");
        assert!(read("gpu") == read("again"), "{what}: another run, other bits");
    }

    let gpu = Gpu::<T>::new(device.clone()).expect("cuBLAS");
    let length = evaluation.length;
    let assert_close = |what: &str, got: &[f64], want: &[f64], allowed: f64| {
        let (mean, deviation) = difference(got, want, length);
        println!("{what}: losses {mean:+.1e} apart, of a token {deviation:.1e}, {allowed:.1e} allowed");
        // A relative difference of perplexities.
        assert!(mean.exp_m1().abs() < allowed, "{what}: perplexities are {mean:e} apart, and {allowed:e} is allowed");
    };
    let opened = ["cpu", "gpu"].map(|name| Checkpoint::open(&folder(name)).expect("a checkpoint"));
    let [cpu_model, gpu_model] = opened.each_ref().map(|opened| Model::open(opened).expect("a model"));
    let pruned = losses(&Cpu::default(), &cpu_model, &evaluation);
    assert_close(&format!("{what}, the same weights"), &losses(&gpu, &cpu_model, &evaluation), &pruned, 1e-3);
    let pairs = || on_cpu.iter().zip(&on_gpu).flat_map(|(cpu, gpu)| cpu.pruned.iter().zip(&gpu.pruned));
    let differ = pairs().filter(|(cpu, gpu)| (**cpu == 0.0) != (**gpu == 0.0)).count() as f64 / pairs().count() as f64;
    // Pruning is noise in the loss of each token. Other choices replace a share of it by other noise as large, and those of later
    // layers, which see them, do so again: twice √(2 · share) of its deviation. Tokens are independent, and the mean of so many is
    // off by four standard errors at most.
    let (_, noise) = difference(&pruned, &losses(&Cpu::default(), &model, &evaluation), length);
    let predicted = pruned.len() * (length - 1);
    let allowed = 1e-3 + 4.0 * 2.0 * (2.0 * differ).sqrt() * noise / (predicted as f64).sqrt();
    let what = format!("{what}, {differ:.1e} of the masks differ");
    assert_close(&what, &losses(&gpu, &gpu_model, &evaluation), &pruned, allowed);
}

#[test]
fn pruned_models_predict_alike_and_runs_repeat() {
    for (number, name) in model_names().iter().enumerate() {
        let solver = if number % 2 == 0 { HALF } else { TWO_OF_FOUR };
        let twice = number % 6 < 2;
        if number % 3 == 0 {
            perplexities::<f32>(name, solver, twice)
        } else {
            perplexities::<f16>(name, solver, twice)
        }
    }
}
