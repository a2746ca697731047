//! The whole program on an emulated GPU, against the whole program on the processor. `agreement` compares masks.

mod common;

use common::{Place, demo_text, extent};
use serde_json::Value;

/// A cut of the demonstration: a block or two, a few sequences with four tokens for each column of the widest Hessian (with fewer than
/// one it is its damping that decides, and near-ties are many), and the perplexity on a short text.
fn cut<'a>(device: &'a str, output: &'a str, text: &'a str, sequences: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let blocks = if more.is_empty() { "..2" } else { "..1" };
    let flags = [
        "prune",
        "model",
        "--calibration",
        text,
        "--sequences",
        sequences,
        "--sequence-length",
        "128",
        "--blocks",
        blocks,
        "--evaluate",
        "short.txt",
        "--device",
        device,
        "--output",
        output,
        "--report",
    ];
    let report = if device == "cpu" { "cpu.json" } else { "gpu.json" };
    [&flags[..], &[report, "--overwrite"], more].concat()
}

fn layers(report: &Value) -> &Vec<Value> {
    report["layers"].as_array().expect("layers")
}

fn perplexities(report: &Value) -> Vec<f64> {
    let perplexities = report["perplexities"].as_array().expect("perplexities");
    perplexities.iter().map(|perplexity| perplexity["perplexity"].as_f64().expect("a number")).collect()
}

/// The bytes of a layer in a checkpoint of 16-bit weights, weight by weight.
fn weights(file: &[u8], layer: &str) -> Vec<[u8; 2]> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("a header")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
    let extent = extent(&header, &format!("{layer}.weight"));
    file[8 + length..][extent].as_chunks().0.to_vec()
}

/// Of the weights of these layers, how many are zero in one file and not in the other.
fn share_of_masks(files: &[Vec<u8>; 2], layers: &[Value]) -> f64 {
    let (mut differing, mut all) = (0, 0);
    for layer in layers {
        let [cpu, gpu] = files.each_ref().map(|file| weights(file, layer["name"].as_str().expect("a name")));
        differing += cpu.iter().zip(&gpu).filter(|(cpu, gpu)| (**cpu == [0, 0]) != (**gpu == [0, 0])).count();
        all += cpu.len();
    }
    differing as f64 / all as f64
}

#[test]
fn an_emulated_gpu_prunes_as_the_processor_does() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let evaluation = std::fs::read(demo_text("evaluation.txt")).expect("the text");
    place.write("short.txt", &evaluation[..6000]);
    let cases: [&[&str]; 4] = [
        &[],
        &["--pattern", "2:4", "--bits", "4"],
        &["--sparsity", "0.7", "--panel-width", "64", "--activations", "f32"],
        &["--method", "wanda"],
    ];
    for more in cases {
        place.run(&cut("cpu", "on-cpu", &text, "32", more)).assert_success();
        place.run(&cut("emulated", "on-gpu", &text, "32", more)).assert_success();
        let [cpu, gpu]: [Value; 2] =
            ["cpu.json", "gpu.json"].map(|name| serde_json::from_slice(&place.read(name)).expect("JSON"));
        let files = ["on-cpu", "on-gpu"].map(|folder| place.read(&format!("{folder}/model.safetensors")));
        let differ = share_of_masks(&files, layers(&cpu));
        let dense = perplexities(&cpu)[0];
        for (cpu, gpu) in perplexities(&cpu).iter().zip(perplexities(&gpu)) {
            // Pruning is noise in what layers put out. Other choices among near-ties replace a share of it by other noise as large, so
            // the difference of both sides is to all of it as √(2 · share) to one; and they replace what matters least.
            let tolerance = 1e-3 * cpu + (2.0 * differ).sqrt() * (cpu - dense).abs();
            assert!((cpu - gpu).abs() < tolerance, "{more:?}: perplexity {cpu} on the processor, {gpu} on the GPU");
        }
        assert_eq!(layers(&cpu).len(), layers(&gpu).len());
        for (cpu, gpu) in layers(&cpu).iter().zip(layers(&gpu)) {
            let name = cpu["name"].as_str().expect("a name");
            for key in ["name", "stage", "retries", "damping"] {
                assert_eq!(cpu[key], gpu[key], "{more:?}: {name}, {key}");
            }
            // Whether a unit behind other weights never fires may hang on one of them.
            if cpu["block"] == 0 {
                assert_eq!(cpu["dead_columns"], gpu["dead_columns"], "{more:?}: {name}");
            }
            // Weights that a grid rounds to zero are zeros as well, and lie all around its ties.
            if more.contains(&"--bits") {
                continue;
            }
            assert_eq!(cpu["zeros"], gpu["zeros"], "{more:?}: {name}");
            // A choice among near-ties costs what the other would, to first order; but each layer sees the choices before it.
            let blocks = cpu["block"].as_f64().expect("a number") + 1.0;
            if let (Some(cpu), Some(gpu)) = (cpu["obs_loss"].as_f64(), gpu["obs_loss"].as_f64()) {
                assert!((cpu / gpu - 1.0).abs() < blocks * 0.05, "{more:?}: {name} loses {cpu} and {gpu}");
            }
        }
    }
}

#[test]
fn the_same_run_gives_the_same_bits() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    place.write("short.txt", "A short text, long enough for one window of tokens to be predicted. ".repeat(20));
    let run = |output| {
        place.run(&cut("emulated", output, &text, "2", &[])).assert_success();
        place.read(&format!("{output}/model.safetensors"))
    };
    assert!(run("first") == run("second"));
}

#[test]
fn what_a_gpu_cannot_do_is_refused_before_anything_is_written() {
    let place = Place::with_demo();
    let text = demo_text("calibration.txt");
    let flags = |device, more: &[&'static str]| {
        let flags = ["prune", "model", "--calibration", &text, "--output", "out", "--device", device];
        [&flags[..], more].concat().iter().map(|flag| flag.to_string()).collect::<Vec<_>>()
    };
    let refuses = |code, parts: &[&str], flags: Vec<String>| {
        place.refuses(code, parts, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    };
    refuses(2, &["--device", "gpu", "auto, cpu, cuda"], flags("gpu", &[]));
    refuses(2, &["--shards 8", "names 2"], flags("emulated:2", &["--shards", "8"]));
    refuses(2, &["--shards 3", "names 2"], flags("cuda:0,2", &["--shards", "3"]));
    for wrong in ["cuda:", "cuda:0,", "cuda:0,x", "cuda:1,1", "cuda:-1", "emulated:", "emulated:0", "emulated:2000"] {
        refuses(2, &["--device", wrong.rsplit(':').next().unwrap_or_default()], flags(wrong, &[]));
    }
    refuses(2, &["--panel-width 100", "32, 64 or 128"], flags("emulated", &["--panel-width", "100"]));
    // On a machine with a driver and a thousand devices this would be another error.
    refuses(1, &["CUDA"], flags("cuda:1000", &[]));
}
