//! `driver plan` on the two largest open models, against numbers worked out by hand.

mod common;

use std::path::PathBuf;

use clap::Parser;
use common::Place;
use driver::cli::{Cli, Command};
use driver::forecast::memory::Moment;
use driver::forecast::request::{Place as Kept, Request};
use driver::forecast::{Forecast, memory};

const GIB: u64 = 1 << 30;

fn config(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/configs", name].iter().collect();
    path.to_str().unwrap().to_owned()
}

fn forecast(name: &str, flags: &[&str]) -> anyhow::Result<Forecast> {
    let path = config(name);
    let cli = Cli::try_parse_from(["driver", "plan", &path].iter().chain(flags)).unwrap();
    match cli.command {
        Some(Command::Plan(args)) => Forecast::new(Request::resolve(args)?),
        other => panic!("{other:?}"),
    }
}

fn moment(plan: &Forecast, stage: &str, moment: &str) -> Moment {
    let found = plan.device.moments.iter().find(|found| (found.stage, found.moment) == (stage, moment));
    found.expect("a moment").clone()
}

/// Within a thousandth: sums by hand keep four digits.
fn assert_close(what: &str, found: f64, by_hand: f64) {
    assert!((found / by_hand - 1.0).abs() < 1e-3, "{what}: {found}, by hand {by_hand}");
}

#[test]
fn opt_175b_on_one_device() {
    let plan = forecast("opt-175b.json", &[]).unwrap();
    // 96 blocks of 12 · 12288² weights; an embedding of 50272 and positions of 2048 + 2 rows of 12288.
    assert_eq!(plan.shapes.block_weights(), 12 * 12288 * 12288);
    assert_eq!(plan.shapes.outer, (50272 + 2050) * 12288);
    // `down`, while its only layer is solved. Of 12288 rows and 49152 columns: W and Δ, without its last panel, in f32, one bit a
    // weight, 8 · 128 bytes a row for a panel's sums, thrice half of that where they are split, and 8 for its loss.
    let worst = plan.device.worst();
    assert_eq!((worst.stage, worst.moment), ("down", "solve"));
    // Two blocks, with nine biases and two norms of a scale and a shift, all of 12288 but that of fc1.
    assert_eq!(worst.weights, 2 * (2 * 12 * 12288 * 12288 + 4 * (5 + 4 + 4) * 12288));
    assert_eq!(worst.activations, 2 * 128 * 2048 * 12288 * 2);
    assert_eq!(worst.hessian, 49152 * 49152 * 4 + 49152 * 128 * 4 + 49152);
    let histograms = 8 * (3 * 2048 + 8) + 2 * 1024 + 512 - 64;
    assert_eq!(worst.layer, 12288 * (49152 * 8 - 512 + 49152 / 8 + 1024 + 1536 + 8) + histograms);
    assert_eq!(worst.chunk, 0);
    assert_eq!(plan.device.peak() / GIB, 33);
    // `attention out` while H is filled, 8192 tokens at a time: x, q, k and v in f32, and one of those in 16 bits.
    let out = moment(&plan, "attention out", "gather");
    assert_eq!(out.chunk, 8192 * (4 * (1 + 3) + 2) * 12288);
    assert_eq!(out.hessian, 12288 * 12288 * 4);
    // The table of tokens and that of positions, and x with its positions: no block is there yet.
    let embed = moment(&plan, "embedding", "embed");
    assert_eq!(embed.weights, 2 * (50272 + 2050) * 12288);
    assert_eq!(embed.chunk, 8192 * (8 * 12288 + 4));
    // V, with what is left of H on its diagonal, and what it leaves behind.
    let factor = moment(&plan, "down", "factor");
    assert_eq!(factor.hessian - worst.hessian, 49152 * 4 + 3 * 512 + 4 * 216 * 128 * 128 * 4);
    // x in f32, updated where it is.
    assert_eq!(moment(&plan, "attention out", "absorb").chunk, 8192 * 4 * 12288);

    let times = plan.times;
    // 2^18 tokens. Products: 24 · 12288² · 2^18 operations; attention 2 · 2048 · 12288 · 2^18; three quarters of fc1 again,
    // whose outputs are four times as wide as what is kept, 0.75 · 8 · 12288² · 2^18: at 0.7 · 312 TFLOP/s.
    let tokens = 262_144.0;
    let square = 12288.0 * 12288.0;
    let forward = tokens * ((24.0 + 6.0) * square + 4096.0 * 12288.0);
    assert_close("forward", times.forward, forward / 218.4e12);
    // One triangle for each of four inputs: (1 + 1 + 1 + 16) · 12288².
    assert_close("Hessian", times.hessian, tokens * 19.0 * square / 218.4e12);
    // (1 + 1 + 1 + 64) · 12288³ / 3 at 0.7 · 52 TFLOP/s.
    assert_close("factor", times.factor, 67.0 * 12288_f64.powi(3) / 3.0 / 36.4e12);
    // Updates: (3 + 1 + 4 + 16) · 12288³ operations. Sweep and selection move 12 + 16 bytes a weight at 0.7 · 2039 GB/s, and
    // the sweep is as slow as its bytes: 12 B / 2039 GB/s = 5.9 ps, 128 operations / 19.5 TFLOP/s = 6.6 ps a weight.
    let weights = 12.0 * square;
    let solve = 24.0 * 12288_f64.powi(3) / 36.4e12 + weights * (128.0 / 13.65e12 + 16.0 / 1427.3e9);
    assert_close("solve", times.solve, solve);
    assert_eq!((times.collectives, times.spill), (0.0, 0.0));
    // 3.62 GB at 2 GB/s.
    assert_close("reading", times.read, 1.812);
    assert_close("host link", times.host_link, 2.0 * 3.624 / 25.0);
    // The whole checkpoint, 349.2 GB, is looked through first.
    assert_close("check", times.check, 174.59);
    assert_eq!(times.bound(), "the devices");
    let together = times.check + 2.0 * 2.0 * 0.6429 / 2.0 + 96.0 * times.compute() + 2.0 * 1.812;
    assert_close("together", times.total(), together);
}

#[test]
fn opt_175b_on_eight_devices() {
    let (one, eight) =
        (forecast("opt-175b.json", &[]).unwrap(), forecast("opt-175b.json", &["--shards", "8"]).unwrap());
    let (alone, shared) = (one.device.worst(), eight.device.worst());
    assert_eq!((shared.weights, shared.activations), (alone.weights, alone.activations / 8));
    assert_eq!((shared.stage, shared.moment), ("down", "gather"), "an eighth of the rows needs less than a chunk");
    // x, what fc1 puts out in f32, and after the activation in 16 bits.
    assert_eq!(shared.chunk, 8192 * (4 + 4 * 4 + 2 * 4) * 12288);
    assert_eq!(eight.device.peak() / GIB, 21);
    let (alone, shared) = (one.times, eight.times);
    assert_close("forward", shared.forward, alone.forward / 8.0);
    assert_close("solve", shared.solve, alone.solve / 8.0);
    assert_eq!(shared.factor, alone.factor, "one device's work");
    // H to one device and V from it, 8 · (3 + 16) · 12288² bytes; seven eighths of 24 · 12288² bytes of pruned rows; three
    // sums of 20 µs for each panel, 96 in each of q, k, v, out and fc1, and 384 in fc2.
    let square = 12288.0 * 12288.0;
    let collectives = (8.0 * 19.0 + 7.0 / 8.0 * 24.0) * square / 300e9 + 3.0 * (5.0 * 96.0 + 384.0) * 20e-6;
    assert_close("collectives", shared.collectives, collectives);
    assert_eq!(shared.bound(), "the disk");
    assert_close("block", shared.block(), 2.0 * 1.812);
    let fast = forecast("opt-175b.json", &["--shards", "8", "--disk", "20GB/s"]).unwrap();
    assert_eq!(fast.times.bound(), "the devices");
}

#[test]
fn bloom_176b_on_one_device_and_on_eight() {
    let plan = forecast("bloom-176b.json", &[]).unwrap();
    // 70 · 12 · 14336² + 250880 · 14336 weights; fused q, k, v is the tallest layer by f32 in hand.
    assert_eq!(70 * plan.shapes.block_weights() + plan.shapes.outer, 176_234_168_320);
    let rows = 3 * 14336;
    let solve = moment(&plan, "q, k, v", "solve").layer;
    assert!(solve > rows * (14336 * 8 - 512 + 14336 / 8 + 1024 + 8) && solve < rows * (14336 * 8 + 14336 / 8 + 2048));
    assert_eq!(moment(&plan, "down", "solve").hessian, 57344 * 57344 * 4 + 57344 * 128 * 4 + 57344);
    assert_eq!(plan.device.peak() / GIB, 43);
    assert_eq!(forecast("bloom-176b.json", &["--shards", "8"]).unwrap().device.peak() / GIB, 27);
}

#[test]
fn activations_move_out_where_they_do_not_fit() {
    let least = |flags: &[&str]| forecast("opt-175b.json", flags).unwrap();
    let host = least(&["--device-memory", "24GiB"]);
    assert_eq!(host.choice.place, Kept::Host);
    // Two buffers of 2^18 tokens; four chunks on the device.
    assert_eq!(host.host.activations, 2 * 262_144 * 12288 * 2);
    assert_eq!(host.device.worst().activations, 0, "what is there of them passes in chunks");
    let (out, absorb) = (moment(&host, "attention out", "gather"), moment(&host, "attention out", "absorb"));
    assert_eq!(out.chunk, host.choice.chunk as u64 * (4 * (1 + 3) + 2) * 12288);
    assert_eq!(absorb.chunk, host.choice.chunk as u64 * (4 + 2) * 12288, "x, and its copy or that of the inputs");
    // Twelve crossings of 6.44 GB, which the work waits for, and two of a block, for which it does not.
    assert_close("activations", host.times.crossing, 12.0 * 6.4425 / 25.0);
    assert_close("host link", host.times.host_link, 2.0 * 3.624 / 25.0);
    let file = least(&["--device-memory", "24GiB", "--host-memory", "12GiB"]);
    assert_eq!(file.choice.place, Kept::File);
    assert_close("spill", file.times.spill, 12.0 * 6.4425 / 2.0);
    assert!(file.host.peak() <= 12 * GIB);
    // Less than two blocks and H leave for a large chunk.
    let small = least(&["--shards", "8", "--device-memory", "18500MiB"]);
    assert!(small.choice.chunk < 8192 && small.device.peak() <= 18500 << 20, "{:?}", small.choice);
    assert!(small.device.peak() > memory::DEVICE_PROGRAM);
}

#[test]
fn what_cannot_fit_is_refused_with_what_would() {
    let place = Place::new();
    let opt = config("opt-175b.json");
    let run = |flags: &[&str]| place.run(&[&["plan", &opt], flags].concat());
    let refuses = |parts: &[&str], flags: &[&str]| run(flags).assert_error(1, parts);
    refuses(
        &["does not fit 1 × A100", "`solve` of down", "--shards 2", "--device-memory 22GiB"],
        &["--device-memory", "20GiB"],
    );
    refuses(
        &["--activations-in host", "--activations-in file"],
        &["--device-memory", "24GiB", "--activations-in", "device"],
    );
    refuses(&["host would hold", "--host-memory"], &["--host-memory", "4GiB"]);
    // Two blocks and H alone are more than this on any number of devices.
    let error = run(&["--device-memory", "16GiB"]);
    error.assert_error(1, &["--device-memory"]);
    assert!(!error.stderr.contains("--shards"), "{}", error.stderr);
    refuses(&["no single change", "devices of", "host of"], &["--device-memory", "16GiB", "--host-memory", "4GiB"]);
    // What is proposed does fit.
    for flags in
        [&["--shards", "4", "--device-memory", "20GiB"][..], &["--device-memory", "24GiB", "--activations-in", "file"]]
    {
        run(flags).assert_success();
    }
}

#[test]
fn the_table_has_all_parts_and_flags_are_checked() {
    let place = Place::new();
    let opt = config("opt-175b.json");
    let run = place.run(&["plan", &opt, "--shards", "8"]);
    let text = &run.assert_success().stdout;
    for part in [
        "8 × A100 80 GB",
        "96 blocks",
        "174 589 108 224 weights in F16",
        "down",
        "peak 21.4 GiB of 80.0 GiB",
        "The host",
        "collectives",
        "waiting for the disk",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    for (flag, value) in [
        ("--shards", "0"),
        ("--device", "v100"),
        ("--share", "1.5"),
        ("--device-memory", "80"),
        ("--disk", "2GB"),
        ("--link", "-1GB/s"),
        ("--chunk", "16"),
        ("--sequences", "0"),
        ("--activations-in", "moon"),
    ] {
        place.run(&["plan", &opt, flag, value]).assert_error(2, &[flag, value]);
    }
    place.run(&["plan", "gone.json"]).assert_error(1, &["gone.json"]);
    place.run(&["plan", &opt, "--sequence-length", "4096"]).assert_error(1, &["4096", "2048 positions"]);
    place.write("odd.json", "[]");
    place.run(&["plan", "odd.json"]).assert_error(1, &["odd.json", "array"]);
    place.write("config.json", r#"{"model_type": "t5"}"#);
    place.run(&["plan", "."]).assert_error(1, &["t5", "llama"]);
    let huge = r#"{"model_type": "opt", "hidden_size": 16777216, "ffn_dim": 16777216, "num_hidden_layers": 65536}"#;
    place.write("huge.json", huge);
    place.run(&["plan", "huge.json", "--sequences", "9223372036854775807"]).assert_error(1, &["huge.json"]);
}
