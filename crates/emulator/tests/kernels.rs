//! Kernels as nvcc compiles them, against the same sums on the host: with all checks on, in the order of numbers and in
//! random ones, nothing may be found.

mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use emulator::options::Options;
use half::{bf16, f16};
use support::{Bench, bench, numbers};

/// The ways in which every kernel is run.
fn each_way(test: impl Fn(&Bench)) {
    let seeds = [1, 2, 3].map(Options::checked);
    for options in [Options::default()].into_iter().chain(seeds) {
        if let Some(bench) = bench(options) {
            test(&bench);
            bench.assert_clean();
        }
    }
}

fn one_dimension(blocks: usize, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

macro_rules! launch {
    ($bench:expr, $kernel:expr, $config:expr, $($argument:expr),+) => {{
        // SAFETY: the arguments are those of the kernel, in order and with its types, and as long as it needs.
        unsafe { $bench.stream.launch_builder(&$kernel)$(.arg($argument))+.launch($config) }.expect("the kernel is launched");
        $bench.stream.synchronize().expect("the kernel ends");
    }};
}

#[test]
fn vector_add() {
    each_way(|bench| {
        let kernel = bench.kernel("vector_add", &[]);
        for count in [1usize, 31, 32, 33, 1000] {
            let (a, b) = (numbers(count, 1), numbers(count, 2));
            let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
            let mut sum = bench.stream.alloc_zeros::<f32>(count).unwrap();
            launch!(bench, kernel, one_dimension(count.div_ceil(96), 96), &left, &right, &mut sum, &(count as u32));
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(bench.stream.clone_dtoh(&sum).unwrap(), want);
        }
    });
}

/// Sums of 256 elements each: integers, so that every order gives the same.
#[test]
fn reductions() {
    each_way(|bench| {
        for name in ["reduce_shuffle", "reduce_shared"] {
            let kernel = bench.kernel(name, &[]);
            for count in [1usize, 255, 256, 257, 5000] {
                let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 41) as f32 - 20.0).collect();
                let blocks = count.div_ceil(256);
                let given = bench.stream.clone_htod(&values).unwrap();
                let mut sums = bench.stream.alloc_zeros::<f32>(blocks).unwrap();
                launch!(bench, kernel, one_dimension(blocks, 256), &given, &mut sums, &(count as u32));
                let want: Vec<f32> = values.chunks(256).map(|chunk| chunk.iter().sum()).collect();
                assert_eq!(bench.stream.clone_dtoh(&sums).unwrap(), want, "{name} of {count}");
            }
        }
    });
}

#[test]
fn scan() {
    each_way(|bench| {
        let kernel = bench.kernel("scan", &[]);
        for count in [1usize, 511, 512, 1700] {
            let values: Vec<u32> = (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
            let given = bench.stream.clone_htod(&values).unwrap();
            let mut sums = bench.stream.alloc_zeros::<u32>(count).unwrap();
            launch!(bench, kernel, one_dimension(count.div_ceil(512), 512), &given, &mut sums, &(count as u32));
            let running = |run: &[u32]| {
                let add = |sum: &mut u32, value: &u32| {
                    *sum = sum.wrapping_add(*value);
                    Some(*sum)
                };
                run.iter().scan(0u32, add).collect::<Vec<_>>()
            };
            let want: Vec<u32> = values.chunks(512).flat_map(running).collect();
            assert_eq!(bench.stream.clone_dtoh(&sums).unwrap(), want);
        }
    });
}

#[test]
fn transpose() {
    each_way(|bench| {
        let kernel = bench.kernel("transpose", &[]);
        for (rows, columns) in [(1usize, 1usize), (32, 32), (33, 70), (100, 31)] {
            let matrix = numbers(rows * columns, 5);
            let given = bench.stream.clone_htod(&matrix).unwrap();
            let mut turned = bench.stream.alloc_zeros::<f32>(rows * columns).unwrap();
            let config = LaunchConfig {
                grid_dim: (columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1),
                block_dim: (32, 8, 1),
                shared_mem_bytes: 0,
            };
            launch!(bench, kernel, config, &given, &mut turned, &(rows as u32), &(columns as u32));
            let want: Vec<f32> = (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect();
            assert_eq!(bench.stream.clone_dtoh(&turned).unwrap(), want);
        }
    });
}

#[test]
fn histogram() {
    each_way(|bench| {
        let kernel = bench.kernel("histogram", &[]);
        let values: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f).collect();
        let given = bench.stream.clone_htod(&values).unwrap();
        let mut bins = bench.stream.alloc_zeros::<u32>(256).unwrap();
        launch!(bench, kernel, one_dimension(5, 192), &given, &mut bins, &(values.len() as u32));
        let mut want = vec![0; 256];
        values.iter().for_each(|&value| want[usize::from(value)] += 1);
        assert_eq!(bench.stream.clone_dtoh(&bins).unwrap(), want);
    });
}

/// The kernel sums in one order, which the host repeats: the same bits.
#[test]
fn gemm_ffma() {
    each_way(|bench| {
        let kernel = bench.kernel("gemm_ffma", &[]);
        for (m, n, k) in [(1usize, 1usize, 1usize), (64, 64, 16), (70, 65, 33)] {
            let (a, b) = (numbers(m * k, 7), numbers(k * n, 8));
            let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
            let mut c = bench.stream.alloc_zeros::<f32>(m * n).unwrap();
            let config = LaunchConfig {
                grid_dim: (n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1),
                block_dim: (16, 16, 1),
                shared_mem_bytes: 0,
            };
            launch!(bench, kernel, config, &left, &right, &mut c, &(m as u32), &(n as u32), &(k as u32));
            let entry = |i: usize, j: usize| (0..k).fold(0f32, |sum, l| a[i * k + l].mul_add(b[l * n + j], sum));
            let want: Vec<f32> = (0..m * n).map(|at| entry(at / n, at % n)).collect();
            assert_eq!(bench.stream.clone_dtoh(&c).unwrap(), want, "{m} {n} {k}");
        }
    });
}

/// Products of bf16 numbers are exact in f32; k sums round at most k times, in whatever order.
#[test]
fn gemm_bf16() {
    each_way(|bench| {
        let kernel = bench.kernel("gemm_bf16", &[]);
        for (m, n, k) in [(128usize, 128usize, 32usize), (128, 256, 96), (256, 128, 160)] {
            let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            let (a, b) = (round(numbers(m * k, 9)), round(numbers(k * n, 10)));
            let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
            let mut c = bench.stream.alloc_zeros::<f32>(m * n).unwrap();
            let config = LaunchConfig {
                grid_dim: ((n / 128) as u32, (m / 128) as u32, 1),
                block_dim: (256, 1, 1),
                shared_mem_bytes: 49152,
            };
            launch!(bench, kernel, config, &left, &right, &mut c, &(m as u32), &(n as u32), &(k as u32));
            for (at, &got) in bench.stream.clone_dtoh(&c).unwrap().iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let terms = || (0..k).map(|l| a[i * k + l].to_f64() * b[l * n + j].to_f64());
                let (want, sum): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let tolerance = k as f64 / f64::from(1 << 23) * sum; // tensor cores may cut instead of rounding
                assert!((f64::from(got) - want).abs() <= tolerance, "({i}, {j}): {got} {want}");
            }
        }
    });
}

/// Products of f16 numbers are exact in f32 as well.
#[test]
fn gemm_wmma() {
    each_way(|bench| {
        let kernel = bench.kernel("gemm_wmma", &[]);
        for (m, n, k) in [(64usize, 64usize, 16usize), (64, 128, 48), (128, 64, 80)] {
            let round = |values: Vec<f32>| values.into_iter().map(f16::from_f32).collect::<Vec<_>>();
            let (a, b) = (round(numbers(m * k, 13)), round(numbers(k * n, 14)));
            let (left, right) = (bench.stream.clone_htod(&a).unwrap(), bench.stream.clone_htod(&b).unwrap());
            let mut c = bench.stream.alloc_zeros::<f32>(m * n).unwrap();
            let config = LaunchConfig {
                grid_dim: ((n / 64) as u32, (m / 64) as u32, 1),
                block_dim: (128, 1, 1),
                shared_mem_bytes: 0,
            };
            launch!(bench, kernel, config, &left, &right, &mut c, &(n as u32), &(k as u32));
            for (at, &got) in bench.stream.clone_dtoh(&c).unwrap().iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let terms = || (0..k).map(|l| a[i * k + l].to_f64() * b[l * n + j].to_f64());
                let (want, sum): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let tolerance = k as f64 / f64::from(1 << 23) * sum; // tensor cores may cut instead of rounding
                assert!((f64::from(got) - want).abs() <= tolerance, "({i}, {j}): {got} {want}");
            }
        }
    });
}

#[test]
fn radix_select() {
    each_way(|bench| {
        let kernel = bench.kernel("radix_select", &[]);
        let mut keys = numbers(3000, 11);
        keys[17] = f32::INFINITY;
        keys[18] = f32::NEG_INFINITY;
        keys[19] = keys[20];
        let mut sorted = keys.clone();
        sorted.sort_by(f32::total_cmp);
        let given = bench.stream.clone_htod(&keys).unwrap();
        for rank in [0, 1, 1500, 2998, 2999] {
            let mut selected = bench.stream.alloc_zeros::<f32>(1).unwrap();
            launch!(bench, kernel, one_dimension(1, 256), &given, &mut selected, &3000u32, &(rank as u32));
            assert_eq!(bench.stream.clone_dtoh(&selected).unwrap(), [sorted[rank]], "rank {rank}");
        }
    });
}

#[test]
fn softmax() {
    each_way(|bench| {
        let kernel = bench.kernel("softmax", &[]);
        for (rows, columns) in [(1usize, 1usize), (5, 33), (9, 200)] {
            let x: Vec<f32> = numbers(rows * columns, 12).iter().map(|x| 20.0 * x).collect();
            let given = bench.stream.clone_htod(&x).unwrap();
            let mut shares = bench.stream.alloc_zeros::<f32>(rows * columns).unwrap();
            let config = one_dimension(rows.div_ceil(4), 128);
            launch!(bench, kernel, config, &given, &mut shares, &(rows as u32), &(columns as u32));
            let got = bench.stream.clone_dtoh(&shares).unwrap();
            for (x, got) in x.chunks(columns).zip(got.chunks(columns)) {
                let total: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                for (&x, &got) in x.iter().zip(got) {
                    let want = f64::from(x).exp() / total;
                    // Arguments of up to 40 are rounded before the exponential, which is good to 2 units itself; sums
                    // of up to 7 elements a lane and 5 levels add theirs.
                    let tolerance = (40.0 + 2.0 + 12.0) / f64::from(1 << 23) * want + 1e-38;
                    assert!((f64::from(got) - want).abs() <= tolerance, "{got} {want}");
                }
            }
        }
    });
}

#[test]
fn last_block() {
    each_way(|bench| {
        let kernel = bench.kernel("last_block", &[]);
        let values: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 41) as f32 - 20.0).collect();
        let given = bench.stream.clone_htod(&values).unwrap();
        let mut shares = bench.stream.alloc_zeros::<f32>(20).unwrap();
        let mut finished = bench.stream.alloc_zeros::<u32>(1).unwrap();
        for _ in 0..2 {
            let mut total = bench.stream.alloc_zeros::<f32>(1).unwrap();
            let config = one_dimension(20, 256);
            launch!(bench, kernel, config, &given, &mut shares, &mut finished, &mut total, &5000u32);
            assert_eq!(bench.stream.clone_dtoh(&total).unwrap(), [values.iter().sum::<f32>()]);
        }
    });
}

#[test]
fn warp_exchange() {
    each_way(|bench| {
        let kernel = bench.kernel("warp_exchange", &[]);
        let values: Vec<u32> = (0..224).collect();
        let given = bench.stream.clone_htod(&values).unwrap();
        let mut reversed = bench.stream.alloc_zeros::<u32>(224).unwrap();
        launch!(bench, kernel, one_dimension(2, 128), &given, &mut reversed, &224u32);
        let want: Vec<u32> = values.chunks(32).flat_map(|warp| warp.iter().rev().copied()).collect();
        assert_eq!(bench.stream.clone_dtoh(&reversed).unwrap(), want);
    });
}

#[test]
fn grid_sync() {
    each_way(|bench| {
        let kernel = bench.kernel("grid_sync", &[]);
        for blocks in [1u32, 5, 33] {
            let mut before = bench.stream.alloc_zeros::<u32>(blocks as usize).unwrap();
            let mut after = bench.stream.alloc_zeros::<u32>(blocks as usize).unwrap();
            let mut launch = bench.stream.launch_builder(&kernel);
            launch.arg(&mut before).arg(&mut after);
            // SAFETY: the arguments are those of the kernel, as long as it has blocks.
            unsafe { launch.launch_cooperative(one_dimension(blocks as usize, 64)) }.unwrap();
            let want: Vec<u32> = (0..blocks).map(|block| (block + 1) % blocks + 1).collect();
            assert_eq!(bench.stream.clone_dtoh(&after).unwrap(), want);
        }
    });
}
