//! A model, not a measurement: how long the stages of pruning would take, from their operations and bytes and the ceilings of
//! a device, if every kernel reached a given share of its ceiling.

/// What a device can do at most, by its data sheet.
struct Ceilings {
    name: &'static str,
    /// f16 and bf16 products with f32 sums by `mma`, dense, in FLOP/s.
    tensor: f64,
    /// f32 products made of three of tf32.
    split: f64,
    /// Multiply-adds in f32, FLOP/s.
    single: f64,
    /// Bytes of memory a second.
    memory: f64,
}

/// NVIDIA's data sheets: A100 80 GB SXM (312 and 156 TFLOP/s, 19.5, 2039 GB/s), H100 SXM (989 and 494 TFLOP/s, 67, 3350
/// GB/s). The H100 reaches its tensor peaks by `wgmma` alone; `mma`, of which these kernels are made, gives about 62 % of
/// them (Luo et al. 2024, arXiv 2402.13499).
const DEVICES: [Ceilings; 2] = [
    Ceilings { name: "A100 80 GB", tensor: 312e12, split: 52e12, single: 19.5e12, memory: 2039e9 },
    Ceilings { name: "H100", tensor: 0.62 * 989e12, split: 0.62 * 494e12 / 3.0, single: 67e12, memory: 3350e9 },
];

/// The share of a ceiling that kernels are to reach: what they are designed for, to be replaced by measurements.
const SHARE: f64 = 0.7;

/// 128 sequences of 2048 tokens.
const TOKENS: f64 = 128.0 * 2048.0;

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
    fn block(&self, device: &Ceilings, shards: f64) -> Times {
        // The slower of computing and moving bytes.
        let roof = |operations: f64, rate: f64, bytes: f64| (operations / rate).max(bytes / device.memory) / SHARE;
        let sum = |time: &dyn Fn(f64, f64) -> f64| self.stages.iter().map(|&(rows, columns)| time(rows, columns)).sum();
        Times {
            forward: sum(&|rows, columns| {
                roof(2.0 * TOKENS * rows * columns, device.tensor, 2.0 * TOKENS * (rows + columns)) / shards
            }),
            // Each tile of 128 by 128 reads two strips; the caches serve all but the first reading of them.
            hessian: sum(&|_, columns| {
                roof(TOKENS * columns * columns, device.tensor, 2.0 * TOKENS * columns) / shards
            }),
            // On one device, whatever the others do.
            factor: sum(&|_, columns| roof(columns.powi(3) / 3.0, device.split, 2.0 * columns * columns)),
            update: sum(&|rows, columns| {
                // Every panel reads Δ so far, half of all columns on average.
                roof(rows * columns * columns, device.split, 4.0 * rows * columns * columns / 128.0 / 2.0) / shards
            }),
            sweep: sum(&|rows, columns| roof(rows * columns * 128.0, device.single, 12.0 * rows * columns) / shards),
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
        for device in &DEVICES {
            for shards in [1.0, 8.0] {
                let Times { forward, hessian, factor, update, sweep } = model.block(device, shards);
                let parts = [forward, hessian, factor, update, sweep].map(|seconds| seconds * model.blocks);
                let cells = parts.map(|seconds| format!("{seconds:.3}")).join(" | ");
                let (name, device) = (model.name, device.name);
                println!("| {name} | {shards} × {device} | {cells} | {:.1} |", parts.iter().sum::<f64>());
            }
        }
    }
}
