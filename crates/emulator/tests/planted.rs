//! Bugs planted in kernels, each of which must be found, named, and placed; the same kernels without them are clean
//! (see `kernels.rs`). What the kernel computes does not matter here: a bug may well do no harm in a run.

mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use emulator::options::Options;
use emulator::report::{Finding, Kind};
use half::bf16;
use support::{Bench, emulated, numbers};

/// Runs a kernel with a planted bug under several seeds, and with races and initialization looked for or not, and
/// returns what was found each time.
fn found(checked: bool, run: impl Fn(&Bench)) -> Vec<Vec<Finding>> {
    let options = |seed| match checked {
        true => Options::checked(seed),
        false => Options { seed: Some(seed), ..Options::default() },
    };
    let each = |seed| {
        let bench = emulated(options(seed))?; // a bug on real hardware may do anything
        run(&bench);
        Some(bench.findings())
    };
    (1..=5).filter_map(each).collect()
}

/// Whether the instruction comes from a source line of the kernel that contains this text, or from something called there.
fn is_at(finding: &Finding, kernel: &str, text: &str) -> bool {
    let source = std::fs::read_to_string(format!("{}/tests/kernels/{kernel}.cu", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let lines: Vec<&str> = source.lines().collect();
    let has = |(file, line): &(String, u32)| {
        file.ends_with(&format!("{kernel}.cu")) && lines.get(*line as usize - 1).is_some_and(|line| line.contains(text))
    };
    let place = finding.place.as_ref();
    place.is_some_and(|place| place.source.iter().chain(&place.inlined_at).any(has))
}

/// Fails unless there is a finding of this kind in every run, in this kernel, in a source line that contains this text.
fn assert_named(runs: &[Vec<Finding>], kind: Kind, kernel: &str, text: &str) {
    for findings in runs {
        let shown = || findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let named = findings
            .iter()
            .any(|finding| finding.kind == kind && finding.kernel == kernel && is_at(finding, kernel, text));
        assert!(named, "no {kind:?} at `{text}` of {kernel} among:\n{}", shown());
        assert!(findings.iter().all(|finding| finding.kind == kind), "something else than {kind:?}:\n{}", shown());
    }
}

macro_rules! launch {
    ($bench:expr, $kernel:expr, $blocks:expr, $threads:expr, $shared:expr, $($argument:expr),+) => {{
        let config =
            LaunchConfig { grid_dim: ($blocks, 1, 1), block_dim: ($threads, 1, 1), shared_mem_bytes: $shared };
        // SAFETY: the arguments are those of the kernel; what it does wrong, it does in an emulated device.
        unsafe { $bench.stream.launch_builder(&$kernel)$(.arg($argument))+.launch(config) }
            .and_then(|_| $bench.stream.synchronize())
    }};
}

#[test]
fn a_dropped_barrier_is_a_race() {
    let runs = found(true, |bench| {
        let kernel = bench.kernel("reduce_shared", &["DROP_SYNCTHREADS"]);
        let given = bench.stream.clone_htod(&numbers(256, 1)).unwrap();
        let mut sums = bench.stream.alloc_zeros::<f32>(1).unwrap();
        launch!(bench, kernel, 1, 256, 0, &given, &mut sums, &256u32).unwrap();
    });
    assert_named(&runs, Kind::Race, "reduce_shared", "cells[");
    let runs = found(true, |bench| {
        let kernel = bench.kernel("gemm_ffma", &["DROP_SYNCTHREADS"]);
        let given = bench.stream.clone_htod(&numbers(64 * 64, 1)).unwrap();
        let mut c = bench.stream.alloc_zeros::<f32>(64 * 64).unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (16, 16, 1), shared_mem_bytes: 0 };
        let mut launch = bench.stream.launch_builder(&kernel);
        launch.arg(&given).arg(&given).arg(&mut c).arg(&64u32).arg(&64u32).arg(&64u32);
        // SAFETY: the arguments are those of the kernel.
        unsafe { launch.launch(config) }.unwrap();
        bench.stream.synchronize().unwrap();
    });
    assert_named(&runs, Kind::Race, "gemm_ffma", "slab[");
    let runs = found(true, |bench| {
        let kernel = bench.kernel("gemm_wmma", &["DROP_SYNCTHREADS"]);
        let given = bench.stream.clone_htod(&vec![half::f16::ONE; 64 * 32]).unwrap();
        let mut c = bench.stream.alloc_zeros::<f32>(64 * 64).unwrap();
        launch!(bench, kernel, 1, 128, 0, &given, &given, &mut c, &64u32, &32u32).unwrap();
    });
    assert_named(&runs, Kind::Race, "gemm_wmma", "slab");
}

#[test]
fn a_dropped_wait_for_copies_is_a_race() {
    let runs = found(true, |bench| {
        let kernel = bench.kernel("gemm_bf16", &["DROP_ASYNC_WAIT"]);
        let values: Vec<bf16> = numbers(128 * 128, 2).into_iter().map(bf16::from_f32).collect();
        let given = bench.stream.clone_htod(&values).unwrap();
        let mut c = bench.stream.alloc_zeros::<f32>(128 * 128).unwrap();
        launch!(bench, kernel, 1, 256, 49152, &given, &given, &mut c, &128u32, &128u32, &128u32).unwrap();
    });
    for findings in &runs {
        let in_flight = |finding: &Finding| finding.kind == Kind::Race && finding.message.contains("asynchronous copy");
        assert!(findings.iter().any(in_flight), "{findings:?}");
        let other = |finding: &Finding| {
            finding.other.as_ref().is_some_and(|(place, _)| place.instruction.starts_with("cp.async"))
        };
        assert!(findings.iter().any(other), "{findings:?}");
    }
}

#[test]
fn an_index_one_past_the_end_is_out_of_bounds() {
    let runs = found(false, |bench| {
        let kernel = bench.kernel("vector_add", &["ONE_PAST_END"]);
        let given = bench.stream.clone_htod(&numbers(100, 1)).unwrap();
        let mut sum = bench.stream.alloc_zeros::<f32>(100).unwrap();
        let result = launch!(bench, kernel, 1, 128, 0, &given, &given, &mut sum, &100u32);
        let error = result.expect_err("the launch fails").0;
        assert_eq!(error, cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        std::mem::forget((given, sum)); // nothing can be freed in a context that is broken
        bench.reset();
    });
    for findings in &runs {
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(finding.kind, Kind::OutOfBounds);
        assert_eq!(finding.thread.map(|thread| thread.thread), Some([100, 0, 0]));
        assert!(finding.message.contains("400 bytes"), "{finding}");
        assert!(is_at(finding, "vector_add", "sum[i] = a[i] + b[i]"), "{finding}");
    }
}

#[test]
fn a_shuffle_with_a_wrong_mask_is_found() {
    let runs = found(false, |bench| {
        let kernel = bench.kernel("reduce_shuffle", &["WRONG_SHUFFLE_MASK"]);
        let given = bench.stream.clone_htod(&numbers(256, 1)).unwrap();
        let mut sums = bench.stream.alloc_zeros::<f32>(1).unwrap();
        let result = launch!(bench, kernel, 1, 256, 0, &given, &mut sums, &256u32);
        assert!(result.is_err());
        std::mem::forget((given, sums));
        bench.reset();
    });
    assert_named(&runs, Kind::Mask, "reduce_shuffle", "__shfl_down_sync(MASK");
}

#[test]
fn an_uninitialized_shared_cell_is_found() {
    let runs = found(true, |bench| {
        let kernel = bench.kernel("scan", &["UNINITIALIZED_CELL"]);
        let given = bench.stream.clone_htod(&vec![1u32; 512]).unwrap();
        let mut sums = bench.stream.alloc_zeros::<u32>(512).unwrap();
        launch!(bench, kernel, 1, 512, 0, &given, &mut sums, &512u32).unwrap();
    });
    assert_named(&runs, Kind::Uninitialized, "scan", "totals[lane]");
}

#[test]
fn a_dropped_syncwarp_is_a_race() {
    let runs = found(true, |bench| {
        let kernel = bench.kernel("warp_exchange", &["DROP_SYNCWARP"]);
        let given = bench.stream.clone_htod(&vec![1u32; 128]).unwrap();
        let mut reversed = bench.stream.alloc_zeros::<u32>(128).unwrap();
        launch!(bench, kernel, 1, 128, 0, &given, &mut reversed, &128u32).unwrap();
    });
    assert_named(&runs, Kind::Race, "warp_exchange", "cells[warp]");
}

#[test]
fn a_dropped_fence_is_a_race_between_blocks() {
    let runs = found(true, |bench| {
        let kernel = bench.kernel("last_block", &["DROP_FENCE"]);
        let given = bench.stream.clone_htod(&numbers(1024, 1)).unwrap();
        let mut shares = bench.stream.alloc_zeros::<f32>(4).unwrap();
        let mut finished = bench.stream.alloc_zeros::<u32>(1).unwrap();
        let mut total = bench.stream.alloc_zeros::<f32>(1).unwrap();
        launch!(bench, kernel, 4, 256, 0, &given, &mut shares, &mut finished, &mut total, &1024u32).unwrap();
    });
    assert_named(&runs, Kind::Race, "last_block", "shares[i]");
    for finding in runs.iter().flatten() {
        let (_, thread) = finding.other.as_ref().expect("the other access is named");
        assert_ne!(thread.map(|thread| thread.block), finding.thread.map(|thread| thread.block));
    }
}

/// A kernel on one stream reads what a copy on another one writes, without an event between them.
#[test]
fn a_missing_event_is_a_race_between_streams() {
    let run = |with_event: bool| {
        move |bench: &Bench| {
            let kernel = bench.kernel("vector_add", &[]);
            let second = bench.context.new_stream().unwrap();
            let mut given = bench.stream.alloc_zeros::<f32>(256).unwrap();
            let mut sum = bench.stream.alloc_zeros::<f32>(256).unwrap();
            bench.context.synchronize().unwrap();
            // SAFETY: switched on again below; without it cudarc adds the events that this test leaves out.
            unsafe { bench.context.disable_event_tracking() };
            bench.stream.memcpy_htod(&numbers(256, 3), &mut given).unwrap();
            if with_event {
                second.wait(&bench.stream.record_event(None).unwrap()).unwrap();
            }
            let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
            let mut launch = second.launch_builder(&kernel);
            launch.arg(&given).arg(&given).arg(&mut sum).arg(&256u32);
            // SAFETY: the arguments are those of the kernel.
            unsafe { launch.launch(config) }.unwrap();
            bench.context.synchronize().unwrap();
            // SAFETY: everything before is over.
            unsafe { bench.context.enable_event_tracking() };
        }
    };
    for findings in found(true, run(true)) {
        assert!(findings.is_empty(), "{findings:?}");
    }
    let runs = found(true, run(false));
    for findings in &runs {
        let race = |finding: &Finding| finding.kind == Kind::Race && finding.to_string().contains("stream");
        assert!(findings.iter().any(race), "{findings:?}");
    }
}

#[test]
fn a_wrong_launch_size_is_refused() {
    let runs = found(false, |bench| {
        let kernel = bench.kernel("reduce_shared", &[]); // __launch_bounds__(256)
        let given = bench.stream.clone_htod(&numbers(512, 1)).unwrap();
        let mut sums = bench.stream.alloc_zeros::<f32>(1).unwrap();
        assert!(launch!(bench, kernel, 1, 512, 0, &given, &mut sums, &512u32).is_err());
    });
    for findings in &runs {
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!((finding.kind, finding.kernel.as_str()), (Kind::InvalidLaunch, "reduce_shared"));
        assert!(finding.message.contains("512") && finding.message.contains("256"), "{finding}");
    }
}
