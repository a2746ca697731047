//! The plan of a prune: which layers, by which stages, at what cost. Made from the settings and the checkpoint's
//! shapes before any weight is read; everything that can be refused by then is refused here.

use std::fmt;

use anyhow::{bail, ensure};
use checkpoint::{Checkpoint, Dtype};
use prune::{Method, share};

use crate::architecture::{Layer, Layout, Stage};
use crate::backend::{ATTENTION_TOKENS, FEED_FORWARD, FEED_FORWARD_TOKENS};
use crate::cli::Activations;
use crate::memory;
use crate::settings::Settings;
use crate::summary::{grouped, operations, size};

/// The two packing buffers of a product.
const PACKING_BYTES: u64 = 6 << 20;

/// The code, stacks, tokens, and what an allocator cannot give back.
const PROGRAM_BYTES: u64 = 28 << 20;

/// A prune, planned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub settings: Settings,
    /// The model's shapes.
    pub layout: Layout,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// How activations are kept: F32, F16 or BF16.
    pub activations: Dtype,
    /// Processes that share the job, each with as many shards.
    pub ranks: usize,
}

/// Operations, a multiplication and an addition counted as two; of a symmetric result, one triangle is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operations {
    /// Products with the weights, and attention, of all blocks up to the last that is pruned.
    pub forward: f64,
    /// XᵀX: columns² · tokens for each stage.
    pub hessian: f64,
    /// V: columns³ / 3 for each stage.
    pub factor: f64,
    /// Δ·V and the sweeps: rows · columns² for each layer.
    pub solve: f64,
}

/// Bytes that each rank of a prune holds at some moment, beside the pages of the checkpoint: the dense weights of the present block, which
/// are mapped, and which the system drops when it needs the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The residual stream and one more buffer of activations, tokens · hidden each.
    pub activations: u64,
    /// The stage's Hessian, columns² in f32, whose place the factor takes, and the inverses of the factor's diagonal blocks,
    /// columns · panel width; once for each shard.
    pub hessian: u64,
    /// The layers of the block that are pruned already, as they are stored, once for each shard.
    pub block: u64,
    /// The layer that is being pruned.
    pub layer: u64,
    /// A chunk of tokens for each shard on its way through a block, in f32, what products pack, and the program itself.
    pub workspace: u64,
}

impl Memory {
    /// All of it.
    pub fn peak(&self) -> u64 {
        [self.activations, self.hessian, self.block, self.layer, self.workspace]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl Plan {
    /// Plans the prune of a checkpoint by `ranks` processes.
    ///
    /// # Errors
    /// If the architecture is unknown, if there is nothing to calibrate on, if blocks are asked for that the model does not have, if no layer is selected,
    /// if groups of n:m do not divide a layer's columns, or if sequences are longer than the model's positions.
    pub fn new(settings: Settings, checkpoint: &Checkpoint, ranks: usize) -> anyhow::Result<Self> {
        Self::of_layout(settings, Layout::of_checkpoint(checkpoint)?, ranks)
    }

    fn of_layout(settings: Settings, layout: Layout, ranks: usize) -> anyhow::Result<Self> {
        settings.require_calibration()?;
        let last = settings.blocks.end.checked_sub(1).filter(|&last| last != usize::MAX - 1);
        if let Some(beyond) = [Some(settings.blocks.start), last].into_iter().flatten().find(|&at| at >= layout.blocks)
        {
            bail!("--blocks asks for block {beyond}, but the model has {}, counted from 0", layout.blocks);
        }
        let sequence_length = settings.sequence_length(layout.longest);
        ensure!(
            !layout.positions_end || sequence_length <= layout.longest,
            "--sequence-length {sequence_length} is longer than the {} positions that the model has",
            layout.longest
        );
        let activations = match settings.activations {
            Activations::F32 => Dtype::F32,
            Activations::F16 => Dtype::F16,
            Activations::Bf16 => Dtype::BF16,
            Activations::Auto if layout.dtype == Dtype::BF16 => Dtype::BF16,
            Activations::Auto => Dtype::F16,
        };
        let plan = Self { settings, layout, sequence_length, activations, ranks };
        let Some(first) = plan.stages().next() else {
            let example = plan.layout.stages.first().and_then(|stage| stage.layers.first());
            bail!(
                "--only, --skip and --blocks leave no layer to prune; layers have names such as {}",
                example.map_or("none at all", |layer| &layer.name)
            );
        };
        debug_assert!(!first.layers.is_empty());
        let group = plan.settings.pattern.group();
        for layer in plan.stages().flat_map(|stage| stage.layers) {
            ensure!(
                layer.columns.is_multiple_of(group),
                "the pattern {} needs groups of {group} columns, which do not divide the {} columns of {}; leave it out \
                 with --skip, or choose another pattern",
                plan.settings.pattern,
                layer.columns,
                layer.name
            );
        }
        Ok(plan)
    }

    /// The stages that have layers to prune, in order, each with those layers only.
    pub fn stages(&self) -> impl Iterator<Item = Stage> {
        self.layout.stages.iter().filter_map(|stage| {
            let mut stage = stage.clone();
            stage.layers.retain(|layer| self.settings.selects(stage.block, &layer.name));
            (!stage.layers.is_empty()).then_some(stage)
        })
    }

    /// The shards that each rank uses: over all ranks no more than there are sequences, or rows of the tallest layer to
    /// prune, since others would only be waited for.
    pub fn local_shards(&self) -> usize {
        let sequences = if self.settings.calibrates() { self.settings.sequences } else { 0 };
        let rows = self.stages().flat_map(|stage| stage.layers).map(|layer| layer.rows).max().unwrap_or(0);
        self.settings.shards.min(sequences.max(rows).max(1).div_ceil(self.ranks))
    }

    /// The shards of all ranks.
    pub fn shards(&self) -> usize {
        self.local_shards() * self.ranks
    }

    /// Calibration tokens.
    pub fn tokens(&self) -> u64 {
        (self.settings.sequences as u64).saturating_mul(self.sequence_length as u64)
    }

    /// What the prune costs, without reading texts and without evaluation.
    pub fn operations(&self) -> Operations {
        let calibrates = self.settings.method != Method::Magnitude;
        let last = self.stages().map(|stage| stage.block).max().unwrap_or(0);
        let tokens = self.tokens() as f64;
        let mut total = Operations::default();
        for stage in self.stages() {
            let stage = stage_operations(&stage, tokens, self.settings.method);
            total.hessian += stage.hessian;
            total.factor += stage.factor;
            total.solve += stage.solve;
        }
        if calibrates {
            let before = self.layout.stages.iter().filter(|stage| stage.block <= last);
            let products: f64 = before
                .flat_map(|stage| &stage.layers)
                .map(|layer| roofline::forward_operations(tokens, layer.rows as f64, layer.columns as f64))
                .sum();
            let (length, width) = (self.sequence_length as f64, self.layout.hidden as f64);
            total.forward = products + roofline::attention_operations(tokens, length, width) * (last + 1) as f64;
        }
        total
    }

    /// What the prune holds at its peak: at the worst of its moments.
    pub fn memory(&self) -> Memory {
        self.moments().into_iter().max_by_key(Memory::peak).unwrap_or_default()
    }

    /// What is held while each stage of each block gathers its inputs, and while its largest layer is pruned.
    fn moments(&self) -> Vec<Memory> {
        let calibrates = self.settings.calibrates();
        let (shards, stored) = (self.local_shards(), self.layout.dtype.size());
        // The first rank has the most sequences.
        let sequences = share(self.settings.sequences, shards - 1, self.shards()).end;
        let last = self.stages().map(|stage| stage.block).max().unwrap_or(0);
        let resting = Memory {
            activations: match calibrates {
                true => product(&[2, sequences, self.sequence_length, self.layout.hidden, self.activations.size()]),
                false => 0,
            },
            workspace: PACKING_BYTES
                .saturating_mul((shards + rayon::current_num_threads()) as u64)
                .saturating_add(PROGRAM_BYTES),
            ..Memory::default()
        };
        let attention = (ATTENTION_TOKENS / self.sequence_length).max(1).min(sequences) * self.sequence_length;
        let mut moments = Vec::new();
        let (mut block, mut pruned) = (0, 0_u64);
        for stage in self.layout.stages.iter().filter(|stage| stage.block <= last) {
            if stage.block != block {
                (block, pruned) = (stage.block, 0);
            }
            let chosen = || stage.layers.iter().filter(|layer| self.settings.selects(stage.block, &layer.name));
            let weights = |layer: &Layer| product(&[layer.rows, layer.columns]);
            let largest = chosen().max_by_key(|layer| weights(layer));
            let held = |weights: u64| product(&[shards, stored]).saturating_mul(weights);
            let hessian = match self.settings.method == Method::Sparsegpt && largest.is_some() {
                true => product(&[shards, stage.columns(), stage.columns() + self.settings.panel_width, 4]),
                false => 0,
            };
            if calibrates {
                let tokens = if stage.index < FEED_FORWARD { attention } else { FEED_FORWARD_TOKENS };
                let rows = stage.layers.iter().map(|layer| layer.rows).sum();
                let chunk =
                    chunk_bytes(tokens, self.layout.hidden, rows, stage.columns()).saturating_mul(shards as u64);
                let workspace = resting.workspace.saturating_add(chunk);
                moments.push(Memory { hessian, block: held(pruned), workspace, ..resting });
            }
            pruned = pruned.saturating_add(chosen().map(weights).fold(0, u64::saturating_add));
            if let Some(layer) = largest {
                let block = held(pruned - weights(layer));
                moments.push(Memory { hessian, block, layer: self.layer_bytes(layer), ..resting });
            }
        }
        moments
    }

    /// What is held to prune a layer, the most of three: while the rank's rows are solved, W and Δ in f32, a byte a weight for
    /// what stays, and of one panel W̃, scores and what its sweep leaves (4 + 4 + 5 bytes), with Δ·V of four; while they are
    /// turned to rows, W twice in f32; while shards put their rows into the whole layer, that once for each of them, and those.
    fn layer_bytes(&self, layer: &Layer) -> u64 {
        let (shards, stored) = (self.local_shards(), self.layout.dtype.size());
        let exchanged = stored * layer.columns;
        let exchanged = shards * exchanged + exchanged.div_ceil(self.ranks);
        let solved = match self.settings.method {
            Method::Sparsegpt => 9 * layer.columns + (4 + 4 + 5 + 4 * 4) * self.settings.panel_width.min(layer.columns),
            _ => 0,
        };
        let own = solved.max(8 * layer.columns).div_ceil(self.ranks);
        product(&[layer.rows, own.max(exchanged)])
    }
}

/// A product, for sizes; the largest number where it would be larger.
pub(crate) fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor as u64))
}

/// Bytes of a chunk of tokens on its way through a stage [rows, columns], in f32: the residual stream, what its norm makes
/// of that, what the first stage of a half makes of that, and what attention puts out.
pub(crate) fn chunk_bytes(tokens: usize, hidden: usize, rows: usize, columns: usize) -> u64 {
    product(&[tokens, size_of::<f32>(), 2 * hidden + rows + columns])
}

/// What one stage costs, without its forward pass.
fn stage_operations(stage: &Stage, tokens: f64, method: Method) -> Operations {
    let columns = stage.columns() as f64;
    let rows: f64 = stage.layers.iter().map(|layer| layer.rows as f64).sum();
    match method {
        Method::Sparsegpt => Operations {
            forward: 0.0,
            hessian: roofline::hessian_operations(tokens, columns),
            factor: roofline::factor_operations(columns),
            solve: roofline::solve_operations(rows, columns),
        },
        // The norms of the columns, and one product for each score.
        Method::Wanda => Operations { hessian: 2.0 * columns * tokens, solve: rows * columns, ..Operations::default() },
        Method::Magnitude => Operations { solve: rows * columns, ..Operations::default() },
    }
}

impl Plan {
    /// Among how many the job is divided, in words.
    fn division(&self) -> String {
        match self.ranks {
            1 => count(self.local_shards(), "shard"),
            ranks => format!("{}, {} in each of {ranks} ranks", count(self.shards(), "shard"), self.local_shards()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { model, output, method, pattern, sequences, panel_width, damping, .. } = &self.settings;
        let bits = self.settings.bits.map_or(String::new(), |bits| format!(", {bits} bits"));
        writeln!(f, "Prune {}: {}, {} blocks", model.display(), self.layout.architecture, self.layout.blocks)?;
        writeln!(f, "  to        {pattern}{bits} by {method}; {}", self.division())?;
        if *method == Method::Sparsegpt {
            writeln!(f, "  with      damping {damping}, panels of {panel_width} columns")?;
        }
        if *method != Method::Magnitude {
            let texts: Vec<_> = self.settings.calibration.iter().map(|path| path.display().to_string()).collect();
            let sampling = self.settings.sampling;
            writeln!(
                f,
                "  over      {sequences} sequences of {} tokens, {sampling}, from {}",
                self.sequence_length,
                texts.join(", ")
            )?;
            writeln!(f, "  keeping   activations in {}", self.activations)?;
        }
        writeln!(f, "  into      {}\n", output.display())?;

        writeln!(
            f,
            "{:<15}{:>7}{:>9}{:>12}{:>12}{:>12}  layers",
            "stage", "blocks", "columns", "Hessian", "factor", "solve"
        )?;
        let stages: Vec<_> = self.stages().collect();
        let mut shown: Vec<&Stage> = Vec::new();
        for stage in &stages {
            if shown.iter().any(|other| other.looks_like(stage)) {
                continue;
            }
            shown.push(stage);
            let times = stages.iter().filter(|other| other.looks_like(stage)).count();
            let cost = stage_operations(stage, self.tokens() as f64, *method);
            let [hessian, factor, solve] =
                [cost.hessian, cost.factor, cost.solve].map(|each| operations(each * times as f64));
            let layers: Vec<_> = stage
                .layers
                .iter()
                .map(|layer| format!("{} [{}, {}]", layer.short, layer.rows, layer.columns))
                .collect();
            let layers = layers.join(" ");
            writeln!(
                f,
                "{:<15}{times:>7}{:>9}{hessian:>12}{factor:>12}{solve:>12}  {layers}",
                stage.name,
                stage.columns()
            )?;
        }
        let layers = stages.iter().map(|stage| stage.layers.len()).sum();
        let weights =
            stages.iter().flat_map(|stage| &stage.layers).map(|layer| layer.rows as u64 * layer.columns as u64).sum();
        writeln!(f, "{}, {} weights\n", count(layers, "layer"), grouped(weights))?;

        let Operations { forward, hessian, factor, solve } = self.operations();
        writeln!(
            f,
            "Operations    {:>12}, without reading texts and without evaluation",
            operations(forward + hessian + factor + solve)
        )?;
        for (name, cost) in [("forward", forward), ("Hessian", hessian), ("factor", factor), ("solve", solve)] {
            writeln!(f, "  {name:<12}{:>12}", operations(cost))?;
        }
        let needed = self.memory();
        writeln!(
            f,
            "Memory peak   {:>12}{}, without reading texts and without evaluation, beside pages of the checkpoint",
            size(needed.peak()),
            if self.ranks > 1 { " in each rank" } else { "" }
        )?;
        let parts = [
            ("activations", needed.activations),
            ("Hessian", needed.hessian),
            ("block", needed.block),
            ("layer", needed.layer),
            ("workspace", needed.workspace),
        ];
        for (name, bytes) in parts {
            writeln!(f, "  {name:<12}{:>12}", size(bytes))?;
        }
        match memory::available() {
            Some(available) if available < needed.peak() => writeln!(
                f,
                "This machine has {} free: too little. Fewer --sequences or a smaller --sequence-length need less.",
                size(available)
            ),
            _ => Ok(()),
        }
    }
}

fn count(count: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(count as u64), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn layer(block: usize, short: &'static str, rows: usize, columns: usize) -> Layer {
        Layer { name: format!("layers.{block}.{short}"), short, rows, columns }
    }

    /// A model of three blocks, hidden 64, with two stages each.
    fn layout() -> Layout {
        let stages = (0..3).flat_map(|block| {
            let (q, k, down) = (layer(block, "q", 64, 64), layer(block, "k", 32, 64), layer(block, "down", 64, 200));
            let stage = |index, name, layers| Stage { block, index, name, layers };
            [stage(0, "q, k", vec![q, k]), stage(1, "down", vec![down])]
        });
        Layout {
            architecture: "test".to_owned(),
            blocks: 3,
            vocabulary: 100,
            hidden: 64,
            longest: 100,
            positions_end: true,
            dtype: Dtype::BF16,
            stages: stages.collect(),
        }
    }

    fn plan(flags: &[&str]) -> Result<Plan, String> {
        plan_of_ranks(1, flags)
    }

    fn plan_of_ranks(ranks: usize, flags: &[&str]) -> Result<Plan, String> {
        let always = ["driver", "model", "--calibration", "text.txt", "--sequences", "10"];
        let cli = Cli::try_parse_from(always.iter().chain(flags)).unwrap();
        let settings = Settings::resolve(&cli.prune).unwrap();
        Plan::of_layout(settings, layout(), ranks).map_err(|error| error.to_string())
    }

    #[test]
    fn operations_are_counted_as_documented() {
        // Ten sequences of 100 tokens.
        let all = plan(&[]).unwrap().operations();
        assert_eq!(all.hessian, 3.0 * 1000.0 * (64.0 * 64.0 + 200.0 * 200.0));
        assert!((all.factor - (64_f64.powi(3) + 200_f64.powi(3))).abs() < 1.0);
        assert_eq!(all.solve, 3.0 * (96.0 * 64.0 * 64.0 + 64.0 * 200.0 * 200.0));
        let weights = 96.0 * 64.0 + 64.0 * 200.0;
        assert_eq!(all.forward, 3.0 * 1000.0 * (2.0 * weights + 2.0 * 100.0 * 64.0));
        // One layer of block 1: two blocks are run, one Hessian of 200 columns is made.
        let one = plan(&["--blocks", "1..2", "--only", "down"]).unwrap().operations();
        assert_eq!((one.hessian, one.solve), (1000.0 * 200.0 * 200.0, 64.0 * 200.0 * 200.0));
        assert!((one.forward / all.forward - 2.0 / 3.0).abs() < 1e-12);
        let magnitude = plan(&["--method", "magnitude"]).unwrap().operations();
        assert_eq!((magnitude.forward, magnitude.hessian, magnitude.factor), (0.0, 0.0, 0.0));
    }

    #[test]
    fn memory_does_not_grow_with_the_number_of_blocks() {
        // The inputs of `q, k` are gathered, q is pruned; those of `down` are, and it is.
        let moments = plan(&[]).unwrap().moments();
        let [gather, solve_q, gather_down, solve_down] = moments[..4] else { panic!("{moments:?}") };
        assert_eq!(gather.activations, 2 * 1000 * 64 * 2);
        assert_eq!(gather.hessian, 64 * (64 + 128) * 4, "and its inverses");
        // Ten sequences of 100 tokens, f32: x, norm(x), the input, and q and k.
        assert_eq!(gather.workspace - solve_q.workspace, 1000 * 4 * (3 * 64 + 96));
        assert_eq!(
            (gather.block, solve_q.block, gather_down.block, solve_down.block),
            (0, 32 * 64 * 2, 96 * 64 * 2, 96 * 64 * 2)
        );
        assert_eq!((gather.layer, solve_q.layer), (0, 64 * (9 + 29) * 64), "panels are as wide as q");
        assert_eq!(solve_down.layer, 64 * (9 * 200 + 29 * 128));
        assert_eq!(moments[4..8], moments[..4], "block by block the same");
        let memory = |flags: &[&str]| plan(flags).unwrap().memory();
        assert_eq!(memory(&[]), gather_down, "the worst");
        assert_eq!(memory(&["--blocks", "0..1"]), gather_down);
        assert_eq!(memory(&["--activations", "f32"]).activations, 2 * gather_down.activations);
        assert_eq!(plan(&["--only", "q"]).unwrap().moments()[2].hessian, 0, "what is not pruned needs none");
        let eight = plan(&["--shards", "8"]).unwrap().moments()[3];
        assert_eq!((eight.hessian, eight.block), (8 * solve_down.hessian, 8 * solve_down.block));
        assert_eq!(eight.activations, solve_down.activations, "sequences are divided");
        assert_eq!(eight.layer, solve_down.layer, "rows are divided");
        let sixteen = plan(&["--shards", "16"]).unwrap().moments()[3];
        assert_eq!(sixteen.layer, 64 * 200 * 17 * 2, "but all hold the whole layer");
    }

    #[test]
    fn shards_are_no_more_than_have_anything_to_do() {
        let workers = |flags: &[&str]| plan(flags).unwrap().shards();
        assert_eq!(workers(&["--shards", "64"]), 64);
        assert_eq!(workers(&["--shards", "1000"]), 64, "rows of q and down");
        assert_eq!(workers(&["--shards", "1000", "--only", "k"]), 32, "rows of k");
        let few_rows = ["--shards", "9", "--only", "k"];
        assert_eq!(workers(&few_rows), 9);
        let memory = |shards| plan(&["--shards", shards]).unwrap().memory();
        assert_eq!(memory("1000"), memory("64"));
    }

    #[test]
    fn ranks_have_as_many_shards_each_and_their_own_memory() {
        let of = |ranks, shards| plan_of_ranks(ranks, &["--shards", shards]).unwrap();
        assert_eq!((of(4, "2").local_shards(), of(4, "2").shards()), (2, 8));
        assert_eq!((of(4, "1000").local_shards(), of(4, "1000").shards()), (16, 64), "rows of q and down");
        assert_eq!((of(100, "2").local_shards(), of(100, "2").shards()), (1, 100), "no rank is left out");
        let (one, four) = (of(1, "1").memory(), of(4, "1").memory());
        assert_eq!((four.hessian, four.block), (one.hessian, one.block));
        assert_eq!(four.activations * 10, one.activations * 3, "the first of four has three of ten sequences");
        assert_eq!(of(2, "2").memory().activations * 10, one.activations * 6, "and of two with two each, six");
        assert!(of(2, "2").to_string().contains("4 shards, 2 in each of 2 ranks"));
    }

    #[test]
    fn what_the_model_does_not_have_is_refused() {
        for (flags, part) in [
            (["--blocks", "3.."], "block 3"),
            (["--blocks", "1..4"], "block 3"),
            (["--only", "gate"], "layers.0.q"),
            (["--pattern", "8:16"], "layers.0.down"),
            (["--sequence-length", "101"], "100 positions"),
        ] {
            let error = plan(&flags).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(plan(&["--pattern", "8:16", "--skip", "down"]).is_ok());
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.sequence_length, plan.activations), (100, Dtype::BF16));
    }
}
