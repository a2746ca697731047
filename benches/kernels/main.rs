//! The CUDA kernels on this machine's GPU: each first verified at the shape at which it is then timed, by events, over
//! several inputs, none of which is found in a cache.
//!
//! ```sh
//! cargo bench --features cuda --bench kernels                    # all of them
//! cargo bench --features cuda --bench kernels -- hessian         # those whose name contains this
//! cargo bench --features cuda --bench kernels -- --emulated      # small shapes in the emulated driver: verified, not timed
//! ```
//!
//! Without a GPU it says how many it skipped.

mod case;
mod cases;
mod rivals;

use case::{Case, Ceiling};
use prune_cuda::{Device, Error};
use rivals::Rivals;
use std::process::ExitCode;

/// Sets of inputs that take turns.
const ROTATION: u64 = 3;

/// Timed runs; the median counts.
const RUNS: usize = 15;

/// Bytes that are written before each of them: twice what the largest L2 of today holds. Rotation alone does not clear it of
/// small inputs: three of [2048, 768] in f16 are 9 MB, where an A100 has 40.
const COLD: usize = 256 << 20;

fn main() -> ExitCode {
    // Cargo adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let emulated = arguments.iter().any(|argument| argument == "--emulated");
    if let Some(unknown) = arguments.iter().find(|argument| argument.starts_with('-') && *argument != "--emulated") {
        eprintln!("error: {unknown} is not known; there is --emulated, and anything else is part of a name");
        return ExitCode::from(2);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let cases: Vec<Case> = cases::all(emulated).into_iter().filter(|case| case.name().contains(filter)).collect();
    if emulated && let Err(error) = load_emulator() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match run(&cases, emulated) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load_emulator() -> Result<(), String> {
    emulator::loader::load(&emulator::options::Options::default()).map_err(|error| error.to_string())?;
    emulator::loader::load_cublas().map(|_| ()).map_err(|error| error.to_string())
}

fn run(cases: &[Case], emulated: bool) -> Result<(), String> {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error @ (Error::NoDriver | Error::NoDevice { .. })) => {
            println!("{} benchmarks of CUDA kernels skipped: {error}", cases.len());
            return Ok(());
        }
        Err(error) => return Err(error.to_string()),
    };
    let name = device.name().map_err(|error| error.to_string())?;
    let ceilings = Ceiling::of(&name);
    println!("{name}{}\n", if ceilings.is_none() { " (no ceilings known: shares are left out)" } else { "" });
    println!("| kernel | shape | time | TFLOP/s | GB/s | of ceiling | × library |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    let rivals = Rivals::new(&device);
    let mut cold = device.zeros::<u8>(if emulated { 1 } else { COLD }).map_err(|error| error.to_string())?;
    for case in cases {
        let fail = |error: String| format!("{} {}: {error}", case.name(), case.shape());
        let mut sets = Vec::new();
        for seed in 0..if emulated { 1 } else { ROTATION } {
            let mut set = case.prepare(&device, seed).map_err(|error| fail(error.to_string()))?;
            set.reset(&device).and_then(|()| set.run(&device)).map_err(|error| fail(error.to_string()))?;
            set.verify(&device).map_err(|reason| fail(format!("is wrong: {reason}")))?;
            sets.push(set);
        }
        if emulated {
            println!("| {} | {} | verified | | | | |", case.name(), case.shape());
            continue;
        }
        let mut seconds = |rival: bool| -> Result<Option<f64>, String> {
            let mut times = Vec::with_capacity(RUNS);
            for number in 0..RUNS {
                let set = &mut sets[number % ROTATION as usize];
                let time = match rival {
                    true => set.time_rival(&device, &mut cold, &rivals),
                    false => set.time(&device, &mut cold).map(Some),
                };
                match time.map_err(|error| fail(error.to_string()))? {
                    Some(time) => times.push(time),
                    None => return Ok(None),
                }
            }
            times.sort_by(f64::total_cmp);
            Ok(Some(times[RUNS / 2]))
        };
        let (own, rival) = (seconds(false)?.unwrap_or(f64::NAN), seconds(true)?);
        let share =
            ceilings.map_or(String::new(), |ceilings| format!("{:.0} %", 100.0 * case.seconds_at(ceilings) / own));
        println!(
            "| {} | {} | {} | {:.2} | {:.0} | {share} | {} |",
            case.name(),
            case.shape(),
            duration(own),
            case.operations() / own / 1e12,
            case.bytes() / own / 1e9,
            rival.map_or(String::new(), |rival| format!("{:.2}", rival / own)),
        );
    }
    Ok(())
}

fn duration(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} µs", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}
