//! How fast kernels run, with and without each check: every kernel is verified against the host first, then timed.
//!
//! `cargo bench -p emulator` runs everything; `cargo bench -p emulator -- gemm_ffma/races` the lines whose name contains
//! that.
//! A warp instruction is one instruction of up to 32 lanes; the times are those of whole launches, the best of several.

#[path = "../tests/support/mod.rs"]
mod support;

use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use emulator::options::Options;
use half::bf16;
use std::time::{Duration, Instant};
use support::{Bench, bench, numbers};

/// Rows, columns and depth of the products.
const SIZE: usize = 256;

/// Elements of the vectors.
const LENGTH: usize = 4 << 20;

/// Time spent on a kernel with one set of options, if one launch takes less.
const BUDGET: Duration = Duration::from_millis(600);

/// A kernel: launched and verified on a bench, then timed there.
type Run = fn(&Bench) -> Times;

/// The times of a kernel's launches.
struct Times {
    best: Duration,
    /// Floating-point operations of a launch that are worth counting.
    flops: u64,
}

/// Calls `launch` once to verify what it did, then as long as the budget lasts.
fn time(flops: usize, mut launch: impl FnMut(), verify: impl FnOnce()) -> Times {
    launch();
    verify();
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while best == Duration::MAX || start.elapsed() < BUDGET {
        let start = Instant::now();
        launch();
        best = best.min(start.elapsed());
    }
    Times { best, flops: flops as u64 }
}

macro_rules! launch {
    ($bench:expr, $kernel:expr, $config:expr, $($argument:expr),+) => {{
        // SAFETY: the arguments are those of the kernel, in order and with its types, and as long as it needs.
        unsafe { $bench.stream.launch_builder(&$kernel)$(.arg($argument))+.launch($config) }.expect("the kernel is launched");
        $bench.stream.synchronize().expect("the kernel ends");
    }};
}

fn config(grid: (usize, usize), block: (u32, u32), shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid.0 as u32, grid.1 as u32, 1),
        block_dim: (block.0, block.1, 1),
        shared_mem_bytes: shared,
    }
}

/// Fails unless every entry of the product is within the rounding of `SIZE` sums.
fn verify_product(bench: &Bench, c: &CudaSlice<f32>, a: &[f64], b: &[f64]) {
    for (at, got) in bench.stream.clone_dtoh(c).expect("the product").into_iter().enumerate() {
        let terms = || (0..SIZE).map(|l| a[at / SIZE * SIZE + l] * b[l * SIZE + at % SIZE]);
        let (want, sum): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
        assert!((f64::from(got) - want).abs() <= SIZE as f64 / f64::from(1 << 23) * sum, "entry {at}: {got} {want}");
    }
}

fn gemm_bf16(bench: &Bench) -> Times {
    let kernel = bench.kernel("gemm_bf16", &[]);
    let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (round(numbers(SIZE * SIZE, 9)), round(numbers(SIZE * SIZE, 10)));
    let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
    let c = bench.stream.alloc_zeros::<f32>(SIZE * SIZE).unwrap();
    let (config, n) = (config((SIZE / 128, SIZE / 128), (256, 1), 49152), SIZE as u32);
    let wide = |values: &[bf16]| values.iter().map(|value| value.to_f64()).collect::<Vec<_>>();
    time(
        2 * SIZE * SIZE * SIZE,
        || launch!(bench, kernel, config, &left, &right, &c, &n, &n, &n),
        || verify_product(bench, &c, &wide(&a), &wide(&b)),
    )
}

fn gemm_ffma(bench: &Bench) -> Times {
    let kernel = bench.kernel("gemm_ffma", &[]);
    let (a, b) = (numbers(SIZE * SIZE, 7), numbers(SIZE * SIZE, 8));
    let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
    let c = bench.stream.alloc_zeros::<f32>(SIZE * SIZE).unwrap();
    let (config, n) = (config((SIZE / 64, SIZE / 64), (16, 16), 0), SIZE as u32);
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    time(
        2 * SIZE * SIZE * SIZE,
        || launch!(bench, kernel, config, &left, &right, &c, &n, &n, &n),
        || verify_product(bench, &c, &wide(&a), &wide(&b)),
    )
}

fn vector_add(bench: &Bench) -> Times {
    let kernel = bench.kernel("vector_add", &[]);
    let (a, b) = (numbers(LENGTH, 1), numbers(LENGTH, 2));
    let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
    let sum = bench.stream.alloc_zeros::<f32>(LENGTH).unwrap();
    let config = config((LENGTH / 256, 1), (256, 1), 0);
    time(
        LENGTH,
        || launch!(bench, kernel, config, &left, &right, &sum, &(LENGTH as u32)),
        || {
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert!(bench.stream.clone_dtoh(&sum).unwrap() == want);
        },
    )
}

fn histogram(bench: &Bench) -> Times {
    let kernel = bench.kernel("histogram", &[]);
    let values: Vec<u8> = (0..LENGTH as u32 / 4).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let given = bench.stream.clone_htod(&values).unwrap();
    let bins = bench.stream.alloc_zeros::<u32>(256).unwrap();
    let config = config((64, 1), (256, 1), 0);
    time(
        0,
        || launch!(bench, kernel, config, &given, &bins, &(values.len() as u32)),
        || {
            let mut want = vec![0; 256];
            values.iter().for_each(|&value| want[usize::from(value)] += 1);
            assert_eq!(bench.stream.clone_dtoh(&bins).unwrap(), want);
        },
    )
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let plain = Options::default;
    let ways = [
        ("no checks", plain()),
        ("uninitialized", Options { uninitialized: true, ..plain() }),
        ("races", Options { races: true, ..plain() }),
        ("profile", Options { profile: true, ..plain() }),
        ("all", Options { uninitialized: true, races: true, profile: true, ..plain() }),
    ];
    let kernels: [(&str, Run); 4] =
        [("gemm_bf16", gemm_bf16), ("gemm_ffma", gemm_ffma), ("vector_add", vector_add), ("histogram", histogram)];
    println!("| kernel | checks | ms a launch | M warp instructions/s | GFLOP/s | times slower |");
    println!("|---|---|---:|---:|---:|---:|");
    for (name, run) in kernels {
        let is_wanted = |way: &str| format!("{name}/{way}").contains(&filter);
        if !ways.iter().any(|(way, _)| is_wanted(way)) {
            continue;
        }
        // The profile of one launch says how many instructions it has.
        let Some(counted) = bench(Options { profile: true, ..plain() }) else { return };
        run(&counted);
        let profiles = counted.emulator().map(emulator::loader::Loaded::profiles).unwrap_or_default();
        let instructions = profiles.last().map_or(0, |profile| profile.instructions);
        drop(counted);
        let mut unchecked = None;
        for (way, options) in ways.iter().filter(|(way, _)| is_wanted(way)) {
            let Some(bench) = bench(options.clone()) else { return };
            let times = run(&bench);
            bench.assert_clean();
            let seconds = times.best.as_secs_f64();
            println!(
                "| {name} | {way} | {:.1} | {:.2} | {} | {:.1} |",
                seconds * 1e3,
                instructions as f64 / seconds / 1e6,
                if times.flops > 0 { format!("{:.3}", times.flops as f64 / seconds / 1e9) } else { String::new() },
                seconds / *unchecked.get_or_insert(seconds),
            );
        }
    }
}
