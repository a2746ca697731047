//! A place to run kernels for tests: the emulated driver, or with `EMULATOR_TEST_DRIVER=real` the driver of the machine,
//! since there the hardware is the judge of the emulator. What only the emulator can tell is then skipped, and said so.

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
    emulator: Option<&'static Loaded>,
    _turn: MutexGuard<'static, ()>,
}

fn emulator() -> Option<&'static Loaded> {
    static EMULATOR: OnceLock<Option<Loaded>> = OnceLock::new();
    let real = std::env::var("EMULATOR_TEST_DRIVER").is_ok_and(|value| value == "real");
    let start = || (!real).then(|| load(&Options::default()).expect("the emulated driver loads"));
    EMULATOR.get_or_init(start).as_ref()
}

/// A bench with these options; `None`, with a line that says so, where they need the emulator and there is a real driver.
pub(crate) fn bench(options: Options) -> Option<Bench> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = emulator();
    match emulator {
        Some(emulator) => {
            emulator.configure(&options).expect("the options are valid");
            emulator.findings();
            emulator.profiles();
        }
        None if options.races || options.profile || options.uninitialized => {
            eprintln!("skipped: only the emulator can tell");
            return None;
        }
        None => {}
    }
    let context = CudaContext::new(0).expect("a device");
    let stream = context.new_stream().expect("a stream");
    Some(Bench { context, stream, emulator, _turn: turn })
}

impl Bench {
    /// The emulated driver, if that is what runs.
    pub(crate) fn emulator(&self) -> Option<&'static Loaded> {
        self.emulator
    }

    /// Starts over after an error that sticks to the context.
    pub(crate) fn reset(&self) {
        // SAFETY: the device exists; whoever calls this gives nothing back to the old context.
        unsafe { cudarc::driver::sys::cuDevicePrimaryCtxReset_v2(0) };
    }

    /// What was found since the last call.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.emulator.map(Loaded::findings).unwrap_or_default()
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
