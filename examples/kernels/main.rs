//! Prints what can be known of the kernels without a GPU, as Markdown: from ptxas and nvdisasm for several architectures,
//! and from the emulated driver. Counts, never times. `cargo xtask kernels` runs it.

#[allow(dead_code)] // tests/evidence.rs uses the rest
mod emulated;
mod model;
#[allow(dead_code)] // likewise
mod sass;

use emulated::{WORKLOADS, count};
use emulator::loader::load;
use emulator::options::Options;
use emulator::profile::Geometry;
use std::collections::HashMap;
use std::process::ExitCode;

/// Where the machine code is looked at, oldest first.
pub(crate) const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_90", "sm_100", "sm_120"];

fn main() -> ExitCode {
    match print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print() -> Result<(), String> {
    let emulator = load(&Options::default()).map_err(|error| error.to_string())?;
    let nvcc = nvcc::locate().map_err(|error| error.to_string())?;
    let counted = WORKLOADS.iter().map(|workload| count(&emulator, workload)).collect::<Result<Vec<_>, _>>()?;
    let launches: HashMap<&str, Geometry> = WORKLOADS
        .iter()
        .zip(&counted)
        .map(|(workload, counted)| (workload.kernel, counted.profile.geometry.clone()))
        .collect();

    println!("## Memory, from the emulated driver\n");
    println!(
        "| kernel | shape | instructions of warps | global bytes, of the fewest | sectors wasted | bank conflicts |"
    );
    println!("|---|---|---:|---:|---:|---:|");
    for (workload, counted) in WORKLOADS.iter().zip(&counted) {
        println!(
            "| `{}` | {} | {} | {}{} | {:.1} % | {} |",
            workload.kernel,
            workload.shape,
            counted.profile.instructions,
            counted.bytes(),
            share(counted),
            100.0 * counted.wasted_sectors(),
            counted.conflicts(),
        );
    }
    for architecture in ARCHITECTURES {
        println!("\n## Machine code, {architecture}\n");
        println!(
            "Shared memory with what launches add, and occupancy, for those of the table above; static shared memory else.\n"
        );
        println!("| kernel | registers | spills | shared memory | occupancy | main loop |");
        println!("|---|---:|---:|---:|---|---|");
        for (_, ptx) in prune_cuda::ptx() {
            for kernel in sass::inspect(&nvcc, ptx, architecture)? {
                let occupancy = launches.get(kernel.name.as_str()).and_then(|launch| {
                    let launch = Geometry { registers: Some(kernel.registers), ..launch.clone() };
                    launch.occupancy().into_iter().find(|occupancy| occupancy.target == architecture)
                });
                let occupancy = occupancy.map_or(String::new(), |occupancy| {
                    let limit = format!("{:?}", occupancy.limit).to_lowercase();
                    format!("{} of {} warps ({limit})", occupancy.warps, occupancy.most_warps)
                });
                println!(
                    "| `{}` | {} | {} | {} | {occupancy} | {} |",
                    kernel.name,
                    kernel.registers,
                    kernel.spills,
                    launches.get(kernel.name.as_str()).map_or(kernel.shared, |launch| launch.shared),
                    mix(&kernel)
                );
            }
        }
    }
    model::print();
    Ok(())
}

/// Bytes against the fewest, where those are known.
fn share(counted: &emulated::Counted) -> String {
    match counted.fewest_bytes {
        0 => String::new(),
        fewest => format!(", {:.0} %", 100.0 * counted.bytes() as f64 / fewest as f64),
    }
}

/// The main loop in a few words: its length and its most frequent instructions.
fn mix(kernel: &sass::Kernel) -> String {
    let mut counts: Vec<_> = kernel.main_loop.iter().collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    let named: Vec<String> = counts.iter().take(8).map(|(name, count)| format!("{count} {name}")).collect();
    match kernel.loop_length() {
        0 => "–".to_owned(),
        length => format!("{length}: {}", named.join(", ")),
    }
}
