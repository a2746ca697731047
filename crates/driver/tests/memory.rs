//! A prune holds what its plan says it will, and no more for more blocks: measured on checkpoints of random weights, made
//! on the spot.

#![cfg(target_os = "linux")] // which tells the peak of every phase

mod common;

use std::fs::File;
use std::io::{BufWriter, Write};

use checkpoint::Checkpoint;
use clap::Parser;
use common::{Place, demo_text};
use driver::cli::Cli;
use driver::plan::{Memory, Plan};
use driver::settings::Settings;
use half::f16;
use serde_json::{Value, json};
use testkit::generate::Random;

/// An OPT with the demonstration's tokenizer.
struct Shape {
    hidden: usize,
    feed_forward: usize,
    blocks: usize,
}

/// Weights repeat after so many: a prime, so that no two rows are alike.
const PERIOD: usize = 1_000_003;

impl Shape {
    /// Every tensor with its shape, in the order of the file.
    fn tensors(&self, vocabulary: usize, positions: usize) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, feed_forward, blocks } = *self;
        let mut tensors = vec![
            ("embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("embed_positions.weight".to_owned(), vec![positions + 2, hidden]),
        ];
        let mut linear = |name: String, shape: Vec<usize>| {
            tensors.push((format!("{name}.bias"), vec![shape[0]]));
            tensors.push((format!("{name}.weight"), shape));
        };
        linear("final_layer_norm".to_owned(), vec![hidden]);
        for block in 0..blocks {
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(format!("layers.{block}.self_attn.{name}"), vec![hidden, hidden]);
            }
            linear(format!("layers.{block}.fc1"), vec![feed_forward, hidden]);
            linear(format!("layers.{block}.fc2"), vec![hidden, feed_forward]);
            for name in ["self_attn_layer_norm", "final_layer_norm"] {
                linear(format!("layers.{block}.{name}"), vec![hidden]);
            }
        }
        tensors.into_iter().map(|(name, shape)| (format!("model.decoder.{name}"), shape)).collect()
    }

    /// Bytes of a block's linear layers.
    fn block_bytes(&self) -> u64 {
        (2 * (4 * self.hidden * self.hidden + 2 * self.hidden * self.feed_forward)) as u64
    }

    /// Turns the demonstration model in `model` into one of this shape, in f16.
    fn write(&self, place: &Place) {
        let mut sizes = [0; 2];
        place.edit_config(|config| {
            sizes = ["vocab_size", "max_position_embeddings"].map(|key| config[key].as_u64().unwrap() as usize);
            config["hidden_size"] = json!(self.hidden);
            config["word_embed_proj_dim"] = json!(self.hidden);
            config["ffn_dim"] = json!(self.feed_forward);
            config["num_hidden_layers"] = json!(self.blocks);
            config["num_attention_heads"] = json!(self.hidden / 64);
        });
        let tensors = self.tensors(sizes[0], sizes[1]);
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut random = Random::new(5);
        let noise: Vec<u8> = (0..PERIOD).flat_map(|_| f16::from_f64(0.02 * random.normal()).to_le_bytes()).collect();
        // Not piece by piece in memory: the model may be larger than that.
        let mut file = BufWriter::new(File::create(place.path("model/model.safetensors")).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        let mut at = 0;
        for (name, shape) in &tensors {
            let mut left = 2 * shape.iter().product::<usize>();
            if name.ends_with("norm.weight") {
                file.write_all(&f16::ONE.to_le_bytes().repeat(left / 2)).unwrap();
                continue;
            }
            while left > 0 {
                let piece = left.min(noise.len() - at);
                file.write_all(&noise[at..at + piece]).unwrap();
                (left, at) = (left - piece, (at + piece) % noise.len());
            }
        }
        file.flush().unwrap();
    }

    /// What a prune of such a model is planned to hold, and what it held while it pruned.
    fn run(&self, sequences: &str, shards: &str) -> (Memory, u64) {
        let place = Place::with_demo();
        self.write(&place);
        let text = demo_text("calibration.txt");
        let flags = ["--calibration", &text, "--sequences", sequences, "--shards", shards];
        let model = place.path("model");
        let cli = Cli::try_parse_from(["driver", model.to_str().unwrap()].iter().chain(&flags)).unwrap();
        let plan = Plan::new(Settings::resolve(&cli.prune).unwrap(), &Checkpoint::open(&model).unwrap(), 1).unwrap();
        let run = place.run(&[&["prune", "model", "--quiet", "--report", "report.json"][..], &flags].concat());
        run.assert_success();
        let report: Value = serde_json::from_slice(&place.read("report.json")).unwrap();
        let phases = report["phases"].as_array().unwrap();
        // Texts are read before there is anything else, and no part of the plan.
        let pruning = phases.iter().filter(|phase| phase["phase"] != "embed");
        let peak = pruning.filter_map(|phase| phase["peak_memory"].as_u64()).max();
        (plan.memory(), peak.expect("this system tells the peak"))
    }
}

/// What an allocator keeps, as a share. Beside what is planned a block's dense weights may be resident, mapped; they are clean,
/// and a system short of memory drops them.
const TOLERANCE: f64 = 0.05;

/// Runs models of a few blocks and of more, which must hold what is planned, and no more for more blocks.
fn assert_planned(hidden: usize, blocks: [usize; 2], sequences: &str) {
    let [few, more] = blocks.map(|blocks| {
        let shape = Shape { hidden, feed_forward: 4 * hidden, blocks };
        let (plan, peak) = shape.run(sequences, "1");
        let (least, most) = (plan.peak() as f64, (plan.peak() + shape.block_bytes()) as f64);
        eprintln!("{blocks} blocks: planned {least:.3e} and up to {:.3e} of pages, measured {peak:.3e}", most - least);
        assert!((peak as f64) > (1.0 - TOLERANCE) * least, "{blocks} blocks held {peak}, planned {plan:?}");
        assert!((peak as f64) < (1.0 + TOLERANCE) * most, "{blocks} blocks held {peak}, planned {plan:?}");
        (plan, peak)
    });
    assert_eq!(few.0, more.0, "the plan does not depend on the number of blocks");
    // One block's pages more or less, as the system has it.
    let (few, more) = (few.1 as f64, more.1 as f64);
    assert!(more < (1.0 + TOLERANCE) * few, "{more} bytes for {} blocks, {few} for {}", blocks[1], blocks[0]);
}

#[test]
fn a_prune_holds_what_was_planned_whatever_the_number_of_blocks() {
    assert_planned(1024, [2, 5], "8");
}

/// 3 GB of weights, from files on the disk into others: `cargo test -p driver --test memory -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes, and 6 GB of disk"]
fn several_gigabytes_are_pruned_in_the_planned_memory() {
    assert_planned(1024, [2, 120], "4");
}

/// Shards are threads with heaps of their own, each of which keeps something, and they are not at the same moment at the
/// same time.
#[test]
fn shards_hold_no_more_than_planned() {
    let shape = Shape { hidden: 768, feed_forward: 3072, blocks: 2 };
    let (plan, peak) = shape.run("16", "3");
    let most = (plan.peak() + shape.block_bytes()) as f64;
    eprintln!("3 shards: planned {:.3e}, measured {peak:.3e}", plan.peak() as f64);
    assert!((peak as f64) < (1.0 + 2.0 * TOLERANCE) * most, "held {peak}, planned {plan:?}");
}
