//! A prune on a GPU holds what `driver plan` says: measured on emulated devices, whose memory pools count what is allocated,
//! with models that are OPT-175B in everything by 1/64: 192 for its 12288 columns, sequences of 32 tokens for 2048, chunks of
//! 128 for 8192, 785 tokens for 50272. Three of its 96 blocks, which are pruned one after another.

mod common;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use checkpoint::{Checkpoint, Dtype, Output};
use clap::Parser;
use common::opt::Opt;
use common::{Place, Run, demo_text};
use driver::backend::gpu::GpuShard;
use driver::backend::{Solver, panels};
use driver::blocks::{Job, prune_blocks};
use driver::cli::{Cli, Command, Verbosity};
use driver::forecast::memory::Device as Plan;
use driver::forecast::request::{Place as Kept, Request};
use driver::forecast::{Choice, Forecast, Shapes};
use driver::progress::Progress;
use driver::report::Clock;
use emulator::loader::{Loaded, load, load_cublas, load_nccl};
use emulator::options::Options;
use half::f16;
use model::Model;
use model::calibration::Sequences;
use prune::{Method, Pattern, run_shards};
use prune_cuda::Device;
use serde_json::{Value, json};
use testkit::generate::Random;

const OPT: Opt = Opt { vocabulary: 785, positions: 32, hidden: 192, feed_forward: 768, blocks: 3 };

/// How far from what is planned a run may be, as a share: what is not in the plan is a flag of 512 bytes for each chunk whose
/// activations were stored, and the norms of the embedding and the head.
const TOLERANCE: f64 = 0.01;

/// The emulated driver, set up with devices of so much memory each for as long as the guard lives.
fn machine(devices: usize, memory: u64) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static DRIVER: OnceLock<Loaded> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = DRIVER.get_or_init(|| {
        let driver = load(&Options::default()).expect("the emulated driver");
        load_cublas().expect("its cuBLAS");
        load_nccl().expect("its NCCL");
        driver
    });
    driver.configure(&Options { devices, memory, log: false, ..Options::default() }).expect("options");
    turn
}

/// A folder with a model in `model`.
fn with_model(opt: &Opt) -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("model")).expect("a folder");
    let mut config = json!({ "model_type": "opt", "torch_dtype": "float16" });
    opt.configure(&mut config);
    place.write("model/config.json", config.to_string());
    opt.write_weights(&place.path("model"));
    place
}

/// A prune to plan and to run.
#[derive(Clone, Copy, Debug)]
struct Case {
    devices: usize,
    sequences: usize,
    choice: Choice,
    solver: Solver,
}

impl Case {
    /// What a plan is asked for.
    fn request(&self, place: &Place) -> Request {
        let config = place.path("model/config.json");
        let [sequences, devices] = [self.sequences, self.devices].map(|count| count.to_string());
        let flags =
            ["driver", "plan", config.to_str().expect("a path"), "--sequences", &sequences, "--shards", &devices];
        let Some(Command::Plan(args)) = Cli::try_parse_from(flags).expect("flags").command else { panic!("a plan") };
        let request = Request::resolve(args).expect("a request");
        let panels = panels(self.solver.pattern, self.solver.panel_width);
        let bits = self.solver.bits.is_some();
        Request { program: 0, method: self.solver.method, panels, bits, ..request }
    }

    /// What a device would hold, moment by moment.
    fn plan(&self, place: &Place) -> Plan {
        let request = self.request(place);
        Plan::of(&request, &Shapes::read(&request.config).expect("shapes"), self.choice)
    }

    /// Prunes all of the model on devices of so much memory, and returns the most that each held.
    fn run(&self, place: &Place, memory: u64) -> anyhow::Result<Vec<u64>> {
        let _turn = machine(self.devices, memory);
        let checkpoint = Checkpoint::open(&place.path("model"))?;
        let model = Model::open(&checkpoint)?;
        let length = model.max_sequence_length();
        let mut random = Random::new(7);
        let vocabulary = model.description().vocabulary as f64;
        let tokens = (0..self.sequences * length).map(|_| (random.uniform() * vocabulary) as u32).collect();
        let output = Output::create(&checkpoint, &place.path("pruned"), true)?;
        let progress = Progress::start(Verbosity { quiet: true, verbose: 0 });
        let job = Job {
            model: &model,
            solver: self.solver,
            sequences: Some(&Sequences { tokens, length }),
            activations: Dtype::F16,
            selects: &|_, _| true,
            blocks: model.blocks(),
            local_shards: self.devices,
            output: output.writer(),
            task: &progress.task("pruning"),
        };
        run_shards(self.devices, |collective| {
            let kept = match self.choice.place {
                Kept::Device => cuda::Place::Device,
                Kept::Host => cuda::Place::Host,
                Kept::File => cuda::Place::File(place.path(".")),
            };
            let device = Device::open(collective.rank())?;
            device.reset_peak()?;
            let shard = GpuShard::<f16>::new(device.clone(), collective, kept, self.choice.chunk)?;
            prune_blocks(&job, shard, collective, &Mutex::new(Clock::start()))?;
            Ok(device.peak()?.expect("a pool"))
        })
    }
}

const SPARSEGPT: Solver = Solver {
    method: Method::Sparsegpt,
    pattern: Pattern::Unstructured { sparsity: 0.5 },
    bits: None,
    damping: 0.01,
    panel_width: 128,
};

const QUANTIZED: Solver = Solver { pattern: Pattern::NOfM { keep: 2, group: 4 }, bits: Some(4), ..SPARSEGPT };
const WANDA: Solver = Solver { method: Method::Wanda, ..SPARSEGPT };

/// Runs a case on devices with more memory than it needs, and compares what each held with what was planned.
fn assert_planned(place: &Place, case: Case, worst: (&str, &str)) {
    let plan = case.plan(place);
    let held = case.run(place, 1 << 30).expect("a prune");
    assert_eq!((plan.worst().stage, plan.worst().moment), worst, "{case:?}: {plan:?}");
    let Case { devices, sequences, choice: Choice { place, chunk }, solver } = case;
    eprintln!(
        "{devices} devices, {sequences} sequences, activations {}, chunks of {chunk}, {}: `{}` of {} holds {held:?}, planned {}",
        place.name(),
        solver.method,
        worst.1,
        worst.0,
        plan.peak()
    );
    for held in held {
        let share = held as f64 / plan.peak() as f64;
        assert!((share - 1.0).abs() < TOLERANCE, "{case:?}: {held} bytes, planned {}: {:?}", plan.peak(), plan.worst());
    }
}

fn case(devices: usize, sequences: usize, kept: Kept, chunk: usize) -> Case {
    Case { devices, sequences, choice: Choice { place: kept, chunk }, solver: SPARSEGPT }
}

#[test]
fn devices_hold_what_was_planned() {
    let place = with_model(&OPT);
    // As many tokens for each column as one device has of OPT-175B, and one of eight; in a few chunks, or in one.
    let (gather, solve) = (("down", "gather"), ("down", "solve"));
    assert_planned(&with_model(&Opt { blocks: 2, ..OPT }), case(1, 128, Kept::Device, 128), solve);
    assert_planned(&place, case(1, 16, Kept::Device, 512), gather);
    assert_planned(&place, case(1, 8, Kept::Host, 128), solve);
    assert_planned(&place, case(1, 8, Kept::File, 64), solve);
    assert_planned(&place, case(2, 32, Kept::Device, 512), gather);
    assert_planned(&place, case(2, 8, Kept::Host, 32), solve);
    assert_planned(&place, Case { solver: QUANTIZED, ..case(1, 4, Kept::Host, 32) }, solve);
    assert_planned(&place, Case { solver: WANDA, ..case(1, 8, Kept::Device, 32) }, gather);
}

#[test]
fn other_moments_are_planned_as_well() {
    // Of wide tables, and of a block without a wide half.
    let place = with_model(&Opt { vocabulary: 8192, feed_forward: 192, blocks: 1, ..OPT });
    assert_planned(&place, case(1, 4, Kept::Host, 64), ("embedding", "embed"));
    let place = with_model(&Opt { feed_forward: 192, blocks: 1, ..OPT });
    assert_planned(&place, case(1, 16, Kept::Device, 512), ("attention out", "gather"));
    assert_planned(&place, case(1, 16, Kept::File, 256), ("attention out", "gather"));
}

#[test]
fn the_planned_memory_is_enough_and_with_less_something_is_given_up() {
    let place = with_model(&Opt { blocks: 2, ..OPT });
    let case = case(1, 16, Kept::Device, 512);
    let planned = case.plan(&place).peak();
    let with = |share: f64| case.run(&place, (share * planned as f64) as u64);
    // Nothing is given up where as much is held as was planned.
    let held = with(1.0 + TOLERANCE).expect("room enough")[0];
    assert!(held as f64 > (1.0 - TOLERANCE) * planned as f64, "{held} of {planned}");
    // Blocks that are loaded in turn do with less, with smaller chunks less still, and then with activations in host memory.
    for share in [0.9, 0.8, 0.75] {
        let held = with(share).expect("something to give up")[0];
        assert!(held as f64 <= share * planned as f64, "{held} of {planned}");
    }
    // H, V and the layer alone are more than this.
    let error = with(0.3).expect_err("too little");
    let lacks = |error: &(dyn std::error::Error + 'static)| {
        matches!(error.downcast_ref(), Some(prune_cuda::Error::OutOfMemory { .. }))
            || error.downcast_ref().is_some_and(cuda::Error::lacks_room)
    };
    assert!(error.chain().any(lacks), "{error:#}");
}

#[test]
fn the_smallest_plan_runs_and_four_fifths_of_it_are_refused() {
    let place = with_model(&Opt { blocks: 2, ..OPT });
    let request = case(1, 8, Kept::Device, 256).request(&place);
    let ways = [Kept::Device, Kept::Host, Kept::File].map(|kept| case(1, 8, kept, 256));
    let least = ways.iter().map(|way| way.plan(&place).peak()).min().expect("a way");
    let fitted = |memory| Forecast::new(Request { device_memory: memory, ..request.clone() });
    let forecast = fitted(least).expect("it fits");
    assert_eq!(forecast.choice.place, Kept::Host, "the first of two that are equal");
    let run = Case { choice: forecast.choice, ..ways[0] }.run(&place, ((1.0 + TOLERANCE) * least as f64) as u64);
    assert!(run.expect("a prune")[0] as f64 > (1.0 - TOLERANCE) * least as f64);
    let refused = fitted(least * 4 / 5).expect_err("too little").to_string();
    assert!(refused.contains("does not fit") && refused.contains("--device-memory"), "{refused}");
}

/// A prune of the demonstration model from the command line.
fn demonstrate(place: &Place, output: &str, more: &[&str]) -> Run {
    let text = demo_text("calibration.txt");
    let flags =
        ["prune", "model", "--calibration", &text, "--sequences", "32", "--sequence-length", "32", "--blocks", "..1"];
    let running = ["--device", "emulated", "--output", output, "--report", "report.json", "-v"];
    place.run(&[&flags[..], &running, more].concat())
}

/// What a GPU held, and what was planned, from the report.
fn reported(place: &Place) -> [u64; 2] {
    let report: Value = serde_json::from_slice(&place.read("report.json")).expect("JSON");
    ["peak", "planned"].map(|key| report["device_memory"][key].as_u64().expect("bytes"))
}

#[test]
fn flags_choose_and_the_report_compares() {
    let place = Place::with_demo();
    let run = demonstrate(&place, "free", &[]);
    let summary = &run.assert_success().stdout;
    assert!(summary.contains("of a GPU, pruning"), "{summary}");
    let chosen = "activations on the devices, 8192 tokens in a chunk";
    assert!(run.stderr.contains(chosen), "{}", run.stderr);
    let [peak, planned] = reported(&place);
    assert!((peak as f64 / planned as f64 - 1.0).abs() < TOLERANCE, "{peak} of {planned}");
    let dry = demonstrate(&place, "dry", &["--dry-run"]);
    assert!(dry.assert_success().stdout.contains(chosen), "{}", dry.stdout);
    // A device with a little less holds less of a chunk, or activations elsewhere, and prunes the same up to the order of sums.
    let memory = format!("{}KiB", (planned * 9 / 10) >> 10);
    let run = demonstrate(&place, "less", &["--device-memory", &memory]);
    assert!(!run.assert_success().stderr.contains(chosen) && !run.stderr.contains("is full"), "{}", run.stderr);
    // Told otherwise, it finds out by itself.
    let told = ["--device-memory", &memory, "--activations-in", "device", "--chunk", "8192"];
    let run = demonstrate(&place, "told", &told);
    let stderr = &run.assert_success().stderr;
    assert!(stderr.contains("does not fit") && stderr.contains("device 0 is full"), "{stderr}");
    // Where activations lie makes no difference at all.
    for kept in ["host", "file"] {
        demonstrate(&place, kept, &["--activations-in", kept, "--chunk", "8192"]).assert_success();
        assert!(place.read(&format!("{kept}/model.safetensors")) == place.read("free/model.safetensors"), "{kept}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let place = Place::with_demo();
    let refuses = |code, parts: &[&str], more: &[&str]| demonstrate(&place, "out", more).assert_error(code, parts);
    refuses(1, &["model does not fit 1 ×", "--device-memory"], &["--device-memory", "100KiB"]);
    refuses(2, &["--chunk 100", "256"], &["--chunk", "100"]);
    refuses(2, &["--device-memory 64", "a unit"], &["--device-memory", "64"]);
    refuses(2, &["--activations-in", "moon"], &["--activations-in", "moon"]);
    let text = demo_text("calibration.txt");
    let of_processor = ["prune", "model", "--calibration", &text, "--device", "cpu", "--chunk", "512"];
    place.run(&of_processor).assert_error(2, &["--device cpu", "--chunk"]);
}
