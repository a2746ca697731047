//! Commands for those who work on this project: `cargo xtask --help`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
