//! A model, not a measurement: how long the stages of pruning would take on whole models, by `roofline`.

use roofline::{Device, Roofline};

/// The share of a ceiling that kernels are to reach: what they are designed for, to be replaced by measurements.
const SHARE: f64 = 0.7;

/// 128 sequences of 2048 tokens.
const TOKENS: f64 = 128.0 * 2048.0;

/// Tokens that are added to H together.
const CHUNK: f64 = 2048.0;

/// A decoder: its blocks, and of a block the layers that share an input, [rows, columns] with the rows added up.
struct Model {
    name: &'static str,
    blocks: f64,
    stages: &'static [(f64, f64)],
}

const MODELS: [Model; 3] = [
    Model {
        name: "OPT-125M",
        blocks: 12.0,
        stages: &[(3.0 * 768.0, 768.0), (768.0, 768.0), (3072.0, 768.0), (768.0, 3072.0)],
    },
    Model {
        name: "LLaMA-7B",
        blocks: 32.0,
        stages: &[(3.0 * 4096.0, 4096.0), (4096.0, 4096.0), (2.0 * 11008.0, 4096.0), (4096.0, 11008.0)],
    },
    Model {
        name: "OPT-175B",
        blocks: 96.0,
        stages: &[(3.0 * 12288.0, 12288.0), (12288.0, 12288.0), (49152.0, 12288.0), (12288.0, 49152.0)],
    },
];

/// Seconds of one block, by kernel, on `shards` devices.
struct Times {
    forward: f64,
    hessian: f64,
    factor: f64,
    update: f64,
    sweep: f64,
}

impl Model {
    fn block(&self, roofline: &Roofline<'_>, shards: f64) -> Times {
        let sum = |time: &dyn Fn(f64, f64) -> f64| self.stages.iter().map(|&(rows, columns)| time(rows, columns)).sum();
        Times {
            forward: sum(&|rows, columns| roofline.forward(TOKENS / shards, rows, columns)),
            hessian: sum(&|_, columns| roofline.hessian(TOKENS / shards, columns, CHUNK)),
            // On one device, whatever the others do.
            factor: sum(&|_, columns| roofline.factor(columns)),
            update: sum(&|rows, columns| roofline.update(rows / shards, columns)),
            sweep: sum(&|rows, columns| roofline.sweep(rows / shards, columns)),
        }
    }
}

/// Prints the model as Markdown.
pub(crate) fn print() {
    println!("\n## A model of the time, not a measurement\n");
    println!(
        "Seconds for all blocks with 128 × 2048 tokens at 50 %, if every kernel reaches {:.0} % of its ceiling. Without reading \
         and writing the checkpoint, which a disk decides, attention's own products, and the exchange between devices.\n",
        100.0 * SHARE
    );
    println!("| model | devices | forward pass | Hessian | factor | update | sweep | together |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for model in &MODELS {
        for device in [Device::a100(), Device::h100()] {
            let roofline = Roofline { device: &device, share: SHARE };
            for shards in [1.0, 8.0] {
                let Times { forward, hessian, factor, update, sweep } = model.block(&roofline, shards);
                let parts = [forward, hessian, factor, update, sweep].map(|seconds| seconds * model.blocks);
                let cells = parts.map(|seconds| format!("{seconds:.3}")).join(" | ");
                let (name, device) = (model.name, &device.name);
                println!("| {name} | {shards} × {device} | {cells} | {:.1} |", parts.iter().sum::<f64>());
            }
        }
    }
}
