//! Commands for those who work on this project: `cargo xtask --help`.

use clap::{Parser, Subcommand};
use std::process::{Command, ExitCode};

/// Commands for those who work on this project.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Print the path of NVIDIA's CUDA compiler; fetch it if there is none.
    ///
    /// It is sought in CUDA_HOME, in CUDA_PATH, on PATH and in /usr/local/cuda, in this order; CUDA 12.0 or newer is
    /// taken. If there is none, release 13.0 is fetched from PyPI into target/nvcc-13.0 (105 MB, once; needs pip or uv).
    /// The path alone goes to standard output, so that "$(cargo xtask nvcc)" -ptx kernel.cu works. nvcc needs g++ on
    /// PATH, or another compiler in NVCC_CCBIN.
    Nvcc,
    /// Print what is known of the CUDA kernels without a GPU, as Markdown.
    ///
    /// For sm_80, sm_90, sm_100 and sm_120: registers, spills, shared memory, occupancy and the instructions of the main
    /// loop, from ptxas and nvdisasm (fetched like nvcc where there is none). From the emulated driver: global memory traffic
    /// against the fewest bytes that tiles could move, wasted sectors and bank conflicts. And a model of the time that layers
    /// of OPT-125M, LLaMA-7B and OPT-175B take on an A100 and an H100. Counts and a model, no measured times.
    Kernels,
    /// Benchmark the CUDA kernels on this machine's GPU and print the whole table.
    ///
    /// With the machine, its driver and its clocks in front, ready to be kept in docs/. It needs a GPU; nvcc is fetched
    /// where there is none.
    Bench,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Task::Nvcc => match nvcc::locate() {
            Ok(nvcc) => {
                for reason in nvcc.passed_over() {
                    eprintln!("passed over: {reason}");
                }
                let (major, minor) = nvcc.release();
                eprintln!("CUDA {major}.{minor}, {}", nvcc.origin());
                println!("{}", nvcc.path().display());
                ExitCode::SUCCESS
            }
            // The error is a sentence that says what to do; a backtrace would bury it.
            Err(error) => failure(&error.to_string()),
        },
        Task::Kernels => {
            with_nvcc(&["run", "--quiet", "--package", "prune-cuda", "--features", "cuda", "--example", "kernels"])
        }
        Task::Bench => {
            describe_machine();
            with_nvcc(&["bench", "--package", "prune-cuda", "--features", "cuda", "--bench", "kernels"])
        }
    }
}

fn failure(reason: &str) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::FAILURE
}

/// Runs cargo on what is built with nvcc, which is fetched first if there is none: a build does not download.
fn with_nvcc(arguments: &[&str]) -> ExitCode {
    if let Err(error) = nvcc::locate() {
        return failure(&error.to_string());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match Command::new(cargo).args(arguments).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failure(&format!("cargo does not run: {error}")),
    }
}

/// What a table of times is worth nothing without.
fn describe_machine() {
    // One word, as nvidia-smi's manual has it.
    let fields = "--query-gpu=name,driver_version,vbios_version,power.limit,clocks.max.sm,clocks.max.memory,clocks.sm,temperature.gpu,ecc.mode.current";
    for (program, arguments) in [
        ("uname", vec!["-srm"]),
        ("nvidia-smi", vec!["--format=csv", fields]),
        ("git", vec!["describe", "--always", "--dirty"]),
    ] {
        match Command::new(program).args(&arguments).output() {
            Ok(output) if output.status.success() => print!("{}", String::from_utf8_lossy(&output.stdout)),
            _ => println!("{program}: not available"),
        }
    }
}
