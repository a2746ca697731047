//! The stages of pruning a layer on real shapes: each verified, then timed beside a matrix product, whose best rate on
//! this machine is the ceiling that the table measures shares of.
//!
//! `cargo bench -p prune` runs everything; `cargo bench -p prune -- opt-125m` the shapes whose name contains that, and
//! `cargo bench -p prune -- factor/llama-7b` one of their stages.

use criterion::{BenchmarkId, Criterion, Throughput};
use linalg::{MatrixMut, MatrixRef, Region, gemm};
use prune::{Factor, Hessian, Outcome, Pattern, Selection, Settings, Solo, Weight, sparsegpt};
use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// (name, rows, columns): the layers that differ in shape.
const SHAPES: [(&str, usize, usize); 9] = [
    ("opt-125m/attention", 768, 768),
    ("opt-125m/fc1", 3072, 768),
    ("opt-125m/fc2", 768, 3072),
    ("smollm2-135m/attention", 576, 576),
    ("smollm2-135m/gate", 1536, 576),
    ("smollm2-135m/down", 576, 1536),
    ("llama-7b/attention", 4096, 4096),
    ("llama-7b/gate", 11008, 4096),
    ("llama-7b/down", 4096, 11008),
];

/// What is timed of a layer.
const STAGES: [&str; 6] = ["hessian", "factor", "solve 50 %", "update 50 %", "solve 2:4", "update 2:4"];

/// Tokens in the inputs of the Hessian benchmark; the time of a token does not depend on their number.
const TOKENS: usize = 2048;

/// One line of the table.
struct Line {
    name: String,
    operations: f64,
    times: Vec<Duration>,
    /// Times of a product of 2048³ taken right before each of them.
    ceilings: Vec<Duration>,
}

impl Line {
    fn median(times: &[Duration]) -> f64 {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2].as_secs_f64()
    }

    fn print(&self, best: f64) {
        let time = Self::median(&self.times);
        let rate = self.operations / time / 1e9;
        let mut shares: Vec<f64> = self
            .times
            .iter()
            .zip(&self.ceilings)
            .map(|(time, ceiling)| self.operations / time.as_secs_f64() / (CEILING / ceiling.as_secs_f64()))
            .collect();
        shares.sort_unstable_by(f64::total_cmp);
        println!(
            "{:44} {:>10.3} G {:>10.3} ms {:>7.1} GFLOP/s {:>5.0} % of the product beside it {:>5.0} % of the best",
            self.name,
            self.operations / 1e9,
            time * 1e3,
            rate,
            100.0 * shares[shares.len() / 2],
            100.0 * rate / best,
        );
    }
}

/// Operations of the product that is the ceiling.
const CEILING: f64 = 2.0 * 2048.0 * 2048.0 * 2048.0;

/// Uniform numbers in [-0.5, 0.5) by xorshift: the time of every stage is independent of their distribution.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 4_294_967_296.0 - 0.5
    };
    std::iter::repeat_with(next).take(count).collect()
}

struct Bench {
    criterion: RefCell<Criterion>,
    lines: RefCell<Vec<Line>>,
    filter: Option<String>,
    a: Vec<f32>,
    c: RefCell<Vec<f32>>,
}

impl Bench {
    /// Whether the filter of the command line leaves this stage of this shape.
    fn selects(&self, stage: &str, shape: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| format!("{stage}/{shape}").contains(filter))
    }

    fn ceiling(&self) -> Duration {
        let (n, started) = (2048, Instant::now());
        let (a, mut c) = (MatrixRef::new(&self.a, n, n), self.c.borrow_mut());
        gemm(1.0, a, a, 0.0, MatrixMut::new(&mut c, n, n), Region::Full);
        started.elapsed()
    }

    /// Times `run`, which returns what of its time counts, beside the ceiling.
    fn time(&self, stage: &str, shape: &str, operations: f64, mut run: impl FnMut() -> Duration) {
        if !self.selects(stage, shape) {
            return;
        }
        let line = RefCell::new(Line {
            name: format!("{stage}/{shape}"),
            operations,
            times: Vec::new(),
            ceilings: Vec::new(),
        });
        let mut criterion = self.criterion.borrow_mut();
        let mut group = criterion.benchmark_group(stage);
        group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(500));
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(BenchmarkId::from_parameter(shape), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let ceiling = self.ceiling();
                    let time = run();
                    total += time;
                    let mut line = line.borrow_mut();
                    line.ceilings.push(ceiling);
                    line.times.push(time);
                }
                total
            });
        });
        group.finish();
        self.lines.borrow_mut().push(line.into_inner());
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let bench = Bench {
        criterion: RefCell::new(Criterion::default().without_plots()),
        lines: RefCell::new(Vec::new()),
        filter,
        a: numbers(2048 * 2048, 1),
        c: RefCell::new(vec![0.0; 2048 * 2048]),
    };
    for (name, rows, columns) in SHAPES {
        if STAGES.iter().any(|stage| bench.selects(stage, name)) {
            layer(&bench, name, rows, columns);
        }
    }
    let lines = bench.lines.into_inner();
    let fastest = lines.iter().flat_map(|line| &line.ceilings).min().copied().unwrap_or(Duration::MAX);
    let best = CEILING / fastest.as_secs_f64() / 1e9;
    println!(
        "\nThe product of 2048³ reaches {best:.0} GFLOP/s at its best, on {} threads.",
        rayon::current_num_threads()
    );
    lines.iter().for_each(|line| line.print(best));
}

fn layer(bench: &Bench, name: &str, rows: usize, columns: usize) {
    let (n, square) = (columns as f64, (columns * columns) as f64);
    let inputs = numbers(TOKENS * columns, 2);
    let inputs = MatrixRef::new(&inputs, TOKENS, columns);
    let weight = numbers(rows * columns, 3);

    let mut hessian = Hessian::new(columns);
    bench.time("hessian", name, TOKENS as f64 * square, || {
        let started = Instant::now();
        hessian.accumulate(black_box(inputs));
        started.elapsed()
    });

    let mut hessian = Hessian::new(columns);
    for _ in 0..columns.div_ceil(TOKENS) {
        hessian.accumulate(inputs);
    }
    verify(&hessian);
    bench.time("factor", name, n * square / 3.0, || {
        let hessian = hessian.clone();
        let started = Instant::now();
        let factor = Factor::new(hessian, 0.01, 128);
        let elapsed = started.elapsed();
        drop(black_box(factor));
        elapsed
    });

    let factor = Factor::new(hessian, 0.01, 128).expect("a positive definite Hessian");
    for pattern in [Pattern::Unstructured { sparsity: 0.5 }, Pattern::NOfM { keep: 2, group: 4 }] {
        let settings = Settings { selection: Selection::Pattern(pattern), bits: None };
        let mut sweep_share = Vec::new();
        let solve = || -> (Outcome, Duration) {
            let mut weight = Weight::from_row_major(&weight, rows, columns);
            let started = Instant::now();
            let outcome = sparsegpt(&mut weight, &factor, &settings, &Solo).expect("groups that divide the columns");
            (outcome, started.elapsed())
        };
        let (outcome, _) = solve();
        assert_eq!(outcome.keep.dropped() * 2, rows * columns, "half of the weights go");
        let operations = rows as f64 * square;
        bench.time(&format!("solve {pattern}"), name, operations, || {
            let (outcome, elapsed) = solve();
            sweep_share.push(outcome.sweep_time.as_secs_f64() / elapsed.as_secs_f64());
            elapsed
        });
        bench.time(&format!("update {pattern}"), name, operations, || solve().0.update_time);
        if !sweep_share.is_empty() {
            sweep_share.sort_unstable_by(f64::total_cmp);
            println!("sweep {pattern}/{name}: {:.0} % of the solve", 100.0 * sweep_share[sweep_share.len() / 2]);
        }
    }
}

/// V·Vᵀ reproduces some elements of the damped H: what is timed is right.
fn verify(hessian: &Hessian) {
    let before = hessian.clone();
    let factor = Factor::new(hessian.clone(), 0.01, 128).expect("a positive definite Hessian");
    let n = factor.columns();
    let mean = (0..n).map(|j| f64::from(before.at(j, j))).sum::<f64>() / n as f64;
    for (i, j) in [(0, 0), (0, n - 1), (n / 3, n / 2), (n - 1, n - 1)] {
        let product: f64 = (j..n).map(|k| f64::from(factor.at(i, k)) * f64::from(factor.at(j, k))).sum();
        let damp = if i == j { 0.01 * mean } else { 0.0 };
        let error = (product - f64::from(before.at(i, j)) - damp).abs();
        // A backward stable factorization: n rounding errors of the size of the diagonal.
        assert!(error <= n as f64 * f64::from(f32::EPSILON) * mean, "({i}, {j}) is off by {error:e}");
    }
}
