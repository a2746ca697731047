//! A place to run kernels for tests: the emulated driver, or with `EMULATOR_TEST_DRIVER=real` the driver of the machine,
//! since there the hardware is the judge of the emulator. What cannot run then, since there is no driver or since only the
//! emulator can tell, is skipped, counted, and said so.

#![allow(dead_code)] // each test file uses its own part

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use emulator::loader::{Loaded, load};
use emulator::options::Options;
use emulator::report::Finding;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A context to run kernels in, alone in this process.
pub(crate) struct Bench {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    driver: Driver,
}

fn emulator() -> Option<&'static Loaded> {
    static EMULATOR: OnceLock<Option<Loaded>> = OnceLock::new();
    let real = || match std::env::var("EMULATOR_TEST_DRIVER").as_deref() {
        Ok("real") => true,
        Ok("emulated" | "") | Err(_) => false,
        Ok(other) => panic!("EMULATOR_TEST_DRIVER is `{other}`; it is `real` or `emulated`"),
    };
    let start = || (!real()).then(|| load(&Options::default()).expect("the emulated driver loads"));
    EMULATOR.get_or_init(start).as_ref()
}

/// The driver that tests run on, set up with these options, for one test at a time.
pub(crate) struct Driver {
    /// The emulated one, if that is what runs.
    pub(crate) emulator: Option<&'static Loaded>,
    _turn: MutexGuard<'static, ()>,
}

impl Driver {
    /// `None`, with a line that says why, where there is neither the emulator nor another driver with so many devices as
    /// the options ask for.
    pub(crate) fn start(options: &Options) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let emulator = emulator();
        match emulator {
            Some(emulator) => {
                emulator.configure(options).expect("the options are valid");
                emulator.findings();
                emulator.profiles();
            }
            None => {
                // SAFETY: looks for the library. cudarc panics where there is none.
                let devices = match unsafe { cudarc::driver::sys::is_culib_present() } {
                    true => CudaContext::device_count().unwrap_or(0),
                    false => return skip("no CUDA driver"),
                };
                if usize::try_from(devices).unwrap_or(0) < options.devices {
                    return skip(&format!("{devices} devices, not {}", options.devices));
                }
            }
        }
        runs().insert(test(), true);
        Some(Self { emulator, _turn: turn })
    }

    /// As [`Driver::start`], and `None`, with a line, where there is another driver than the emulated one.
    pub(crate) fn emulated(options: &Options) -> Option<(Self, &'static Loaded)> {
        match emulator() {
            Some(emulator) => Self::start(options).map(|driver| (driver, emulator)),
            None => skip("only the emulator can tell"),
        }
    }
}

/// The tests so far, and whether any part of them was run.
fn runs() -> MutexGuard<'static, HashMap<String, bool>> {
    static RUNS: OnceLock<Mutex<HashMap<String, bool>>> = OnceLock::new();
    RUNS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of the running test.
fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Says once for each test that it is skipped, and how many are, unless a part of it was run.
fn skip<T>(reason: &str) -> Option<T> {
    use std::io::Write;
    let mut runs = runs();
    let test = test();
    if !runs.contains_key(&test) {
        runs.insert(test.clone(), false);
        let count = runs.values().filter(|run| !**run).count();
        // Not by `eprintln`, which the test harness keeps to itself where tests do not fail; in one piece, among others.
        let line = format!("skipped: {test}: {reason} ({count} so far in this file)\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    None
}

/// A bench with these options; `None`, with a line that says so, where they need the emulator and there is a real driver.
pub(crate) fn bench(options: Options) -> Option<Bench> {
    let only_emulated = options.races || options.profile || options.uninitialized;
    if only_emulated { emulated(options) } else { Driver::start(&options).map(Bench::new) }
}

/// A bench on the emulator; `None`, with a line that says so, where there is a real driver.
pub(crate) fn emulated(options: Options) -> Option<Bench> {
    Driver::emulated(&options).map(|(driver, _)| Bench::new(driver))
}

impl Bench {
    fn new(driver: Driver) -> Self {
        let context = CudaContext::new(0).expect("a device");
        let stream = context.new_stream().expect("a stream");
        Self { context, stream, driver }
    }

    /// The emulated driver, if that is what runs.
    pub(crate) fn emulator(&self) -> Option<&'static Loaded> {
        self.driver.emulator
    }

    /// Starts over after an error that sticks to the context.
    pub(crate) fn reset(&self) {
        // SAFETY: the device exists; whoever calls this gives nothing back to the old context.
        unsafe { cudarc::driver::sys::cuDevicePrimaryCtxReset_v2(0) };
    }

    /// What was found since the last call.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.driver.emulator.map(Loaded::findings).unwrap_or_default()
    }

    /// Fails if anything was found.
    pub(crate) fn assert_clean(&self) {
        let found = self.findings();
        assert!(found.is_empty(), "{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }

    /// A kernel of `tests/kernels/NAME.cu`, compiled with these macros defined.
    pub(crate) fn kernel(&self, name: &str, macros: &[&str]) -> CudaFunction {
        let module: Arc<CudaModule> =
            self.context.load_module(Ptx::from_src(ptx(name, macros))).expect("the module loads");
        module.load_function(name).expect("the kernel is in its module")
    }
}

/// The PTX of `tests/kernels/NAME.cu` with these macros defined, with line numbers.
pub(crate) fn ptx(name: &str, macros: &[&str]) -> String {
    static MADE: OnceLock<Mutex<HashMap<String, String>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{name} {}", macros.join(" "));
    let make = || {
        let nvcc = nvcc::locate().unwrap_or_else(|error| panic!("{error}"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(format!("{name}.cu"));
        let mut flags = vec!["-arch=compute_80".to_owned(), "-lineinfo".to_owned(), "-std=c++17".to_owned()];
        flags.extend(macros.iter().map(|name| format!("-D{name}")));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        nvcc.ptx(&source, &flags).unwrap_or_else(|error| panic!("{error}"))
    };
    made.entry(key).or_insert_with(make).clone()
}

/// Numbers that look random and are the same everywhere.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mix = |i: u32| {
        let x = (i.wrapping_add(seed.wrapping_mul(0x9e37_79b9))).wrapping_mul(0x85eb_ca6b);
        ((x ^ x >> 13).wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u32).map(mix).collect()
}
