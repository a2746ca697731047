//! A prune holds what its plan says it will, and no more for more blocks: measured on checkpoints of random weights, made
//! on the spot.

#![cfg(target_os = "linux")] // which tells the peak of every phase

mod common;

use checkpoint::Checkpoint;
use clap::Parser;
use common::opt::Opt;
use common::{Place, demo_text};
use driver::cli::Cli;
use driver::plan::{Memory, Plan};
use driver::settings::Settings;
use serde_json::Value;

/// An OPT of this shape, with the demonstration's tokenizer.
fn shaped(place: &Place, hidden: usize, blocks: usize) -> Opt {
    let mut opt = None;
    place.edit_config(|config| {
        let [vocabulary, positions] =
            ["vocab_size", "max_position_embeddings"].map(|key| config[key].as_u64().unwrap() as usize);
        let shape = Opt { vocabulary, positions, hidden, feed_forward: 4 * hidden, blocks };
        shape.configure(config);
        opt = Some(shape);
    });
    let opt = opt.unwrap();
    opt.write_weights(&place.path("model"));
    opt
}

/// The model, what its prune is planned to hold, and what that held while it pruned.
fn run(hidden: usize, blocks: usize, sequences: &str, shards: &str) -> (Opt, Memory, u64) {
    let place = Place::with_demo();
    let opt = shaped(&place, hidden, blocks);
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
    (opt, plan.memory(), peak.expect("this system tells the peak"))
}

/// What an allocator keeps, as a share. Beside what is planned a block's dense weights may be resident, mapped; they are clean,
/// and a system short of memory drops them.
const TOLERANCE: f64 = 0.05;

/// Runs models of a few blocks and of more, which must hold what is planned, and no more for more blocks.
fn assert_planned(hidden: usize, blocks: [usize; 2], sequences: &str) {
    let [few, more] = blocks.map(|blocks| {
        let (opt, plan, peak) = run(hidden, blocks, sequences, "1");
        let (least, most) = (plan.peak() as f64, (plan.peak() + opt.block_bytes()) as f64);
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
    let (opt, plan, peak) = run(768, 2, "16", "3");
    let most = (plan.peak() + opt.block_bytes()) as f64;
    eprintln!("3 shards: planned {:.3e}, measured {peak:.3e}", plan.peak() as f64);
    assert!((peak as f64) < (1.0 + 2.0 * TOLERANCE) * most, "held {peak}, planned {plan:?}");
}
