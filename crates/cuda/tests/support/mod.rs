//! GPUs with cuBLAS and NCCL for tests: emulated, or with `EMULATOR_TEST_DRIVER=real` those of the machine; golden models.

#![allow(dead_code)] // each test file uses its own part

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use emulator::loader::{self, Loaded};
use emulator::options::Options;
use prune_cuda::Device;
use safetensors::SafeTensors;

fn emulator() -> Option<&'static Loaded> {
    static EMULATOR: OnceLock<Option<Loaded>> = OnceLock::new();
    EMULATOR
        .get_or_init(|| {
            if std::env::var("EMULATOR_TEST_DRIVER").is_ok_and(|driver| driver == "real") {
                return None;
            }
            // The crates are named so that their libraries are built.
            std::hint::black_box((emulator_cublas::cublasGetStatusString(0), emulator_nccl::ncclGetErrorString(0)));
            let loaded = loader::load(&Options::default()).expect("the emulated driver loads");
            loader::load_cublas().expect("the emulated cuBLAS loads");
            loader::load_nccl().expect("the emulated NCCL loads");
            Some(loaded)
        })
        .as_ref()
}

/// Runs `test` on a machine, set up with these options if it is emulated, and fails if its checks find anything. Tests take turns:
/// there is one driver in a process. A real machine with fewer devices skips the test, and says so.
pub(crate) fn on_machine<R: Default>(options: &Options, test: impl FnOnce() -> R) -> R {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = emulator();
    if let Some(emulator) = emulator {
        emulator.configure(options).expect("the options are valid");
        emulator.findings();
    } else if Device::count().expect("a driver") < options.devices {
        eprintln!("skipped: there are no {} devices", options.devices);
        return R::default();
    }
    // What the checks found says more than the error of the call in which it surfaced.
    let end = std::panic::catch_unwind(AssertUnwindSafe(test));
    let found = emulator.map(Loaded::findings).unwrap_or_default();
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), text.join("\n"));
    end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `test` on the first device, as [`on_machine`] does.
pub(crate) fn on_device(options: &Options, test: impl Fn(&Device)) {
    on_machine(options, || {
        let device = Device::open(0).expect("a device");
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| test(&device)));
        let synchronized = device.synchronize();
        if let Err(panic) = end {
            std::panic::resume_unwind(panic);
        }
        synchronized.expect("no kernel failed");
    });
}

/// The folder of a golden model, `models/llama` for example.
pub(crate) fn folder(name: &str) -> PathBuf {
    testkit::paths::golden().join(name)
}

/// The tokens of a golden model, and how many make a sequence.
pub(crate) fn tokens(name: &str) -> (Vec<u32>, usize) {
    let bytes = fs::read(folder(name).join("expected.safetensors")).expect("expected.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let ids = file.tensor("input_ids").expect("input_ids");
    let tokens = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
    (tokens, ids.shape()[1])
}
