//! What must be true of the kernels before anybody times them: no spills, main loops made of matrix or multiply-add
//! instructions with asynchronous copies of 16 bytes, no bank conflicts, and no more traffic than their tiles need.
#![cfg(feature = "cuda")]

#[path = "../examples/kernels/emulated.rs"]
#[allow(dead_code)]
mod emulated;
#[path = "../examples/kernels/sass.rs"]
#[allow(dead_code)]
mod sass;

use emulator::loader::load;
use emulator::options::Options;

/// Where machine code is looked at. One PTX serves all of them.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90", "sm_100", "sm_120"];

/// The kernels of many operations, each with a pipeline of asynchronous copies; their `…_any` and narrow variants aside:
/// of attention those with heads of 128 columns, since with narrower ones the softmax takes as long as the products.
const PIPELINES: [&str; 13] = [
    "hessian_accumulate_f16",
    "hessian_accumulate_bf16",
    "hessian_accumulate_f32",
    "factor_update_f32",
    "factor_solve_f32",
    "factor_multiply_f32",
    "prune_trailing_f32",
    "pack_two_four_multiply_f16",
    "pack_two_four_multiply_f16_f32",
    "pack_two_four_multiply_bf16",
    "pack_two_four_multiply_bf16_f32",
    "block_attention_f16_128",
    "block_attention_bf16_128",
];

#[test]
fn nothing_spills_and_main_loops_are_what_they_should_be() {
    let nvcc = nvcc::locate().unwrap_or_else(|error| panic!("{error}"));
    let mut loops = 0;
    // ptxas takes seconds for a file and knows nothing of the others.
    let inspected: Vec<(&str, Vec<sass::Kernel>)> = std::thread::scope(|scope| {
        let inspect = |architecture: &'static str| {
            let all = prune_cuda::ptx().map(|(_, ptx)| sass::inspect(&nvcc, ptx, architecture));
            (architecture, all.flat_map(|kernels| kernels.unwrap_or_else(|error| panic!("{error}"))).collect())
        };
        let running = ARCHITECTURES.map(|architecture| scope.spawn(move || inspect(architecture)));
        running.map(|thread| thread.join().expect("no panic")).into_iter().collect()
    });
    for (architecture, kernels) in inspected {
        for kernel in kernels {
            let what = format!("{} on {architecture}", kernel.name);
            assert_eq!(kernel.spills, 0, "{what} spills");
            if PIPELINES.contains(&kernel.name.as_str()) {
                loops += 1;
                // Without what fills gaps: sm_120 has hundreds of them in the loop of attention.
                let length = kernel.loop_length() - kernel.count(&["NOP"]);
                assert!(kernel.count(&["LDGSTS"]) > 0, "{what} copies nothing asynchronously: {:?}", kernel.main_loop);
                assert_eq!(
                    kernel.count(&["LDGSTS"]),
                    kernel.count(&["LDGSTS.BYPASS.128"]),
                    "{what} has copies of less than 16 bytes"
                );
                // A matrix instruction keeps its unit busy for eight cycles, while four warps issue one instruction each
                // in every cycle: with a share of an eighth, issuing is what limits.
                assert!(kernel.count(&["HMMA"]) * 8 > length, "{what}: {:?}", kernel.main_loop);
            }
        }
    }
    assert_eq!(loops, PIPELINES.len() * ARCHITECTURES.len(), "a pipeline is missing");
}

#[test]
fn memory_is_used_as_it_should_be() {
    let emulator = load(&Options::default()).unwrap_or_else(|error| panic!("{error}"));
    for workload in emulated::WORKLOADS {
        let counted = emulated::count(&emulator, workload).unwrap_or_else(|error| panic!("{error}"));
        let what = format!("{} at {}", workload.kernel, workload.shape);
        if !workload.by_data {
            let lines = counted.profile.lines.iter();
            let conflicts =
                |line: &&emulator::profile::ProfileLine| line.counts.shared.iter().any(|banks| banks.conflicts() > 0);
            let places: Vec<String> =
                lines.filter(conflicts).map(|line| format!("{} {}", line.counts.executions, line.place)).collect();
            assert_eq!(counted.conflicts(), 0, "{what}: bank conflicts at\n{}", places.join("\n"));
        }
        if counted.fewest_bytes > 0 {
            let ratio = counted.bytes() as f64 / counted.fewest_bytes as f64;
            // Fewer than the fewest: the formula is wrong, or the kernel does not do its work.
            assert!((0.99..=1.1).contains(&ratio), "{what}: moves {:.1} % of the fewest bytes", 100.0 * ratio);
        }
        assert_eq!(counted.profile.local_bytes, [0, 0], "{what}: local memory");
    }
}
