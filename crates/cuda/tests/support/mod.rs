//! GPUs with cuBLAS and NCCL for tests: emulated, or with `EMULATOR_TEST_DRIVER=real` those of the machine; golden models, and
//! copies of them in 16 bits.

#![allow(dead_code)] // each test file uses its own part

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use emulator::loader::{self, Loaded};
use emulator::options::Options;
use half::{bf16, f16};
use prune_cuda::Device;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

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

/// All golden models, as `models/llama`.
pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for of in ["models", "variants"] {
        let entries = fs::read_dir(folder(of)).expect("a folder of golden models");
        names.extend(entries.map(|entry| format!("{of}/{}", entry.expect("an entry").file_name().to_string_lossy())));
    }
    names.sort();
    names
}

/// The tokens of a golden model, and how many make a sequence.
pub(crate) fn tokens(name: &str) -> (Vec<u32>, usize) {
    let bytes = fs::read(folder(name).join("expected.safetensors")).expect("expected.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let ids = file.tensor("input_ids").expect("input_ids");
    let tokens = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
    (tokens, ids.shape()[1])
}

/// A copy of a golden model with all tensors rounded to a type.
pub(crate) fn rounded(name: &str, dtype: Dtype) -> TempDir {
    let from = folder(name);
    let bytes = fs::read(from.join("model.safetensors")).expect("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let round = |view: &TensorView| -> Vec<u8> {
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        match dtype {
            Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            other => panic!("no copies in {other:?}"),
        }
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec(), round(&view))).collect();
    let to = TempDir::new().expect("a temporary folder");
    copy(&from.join("config.json"), &to.path().join("config.json"));
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(dtype, shape.clone(), data).expect("bytes that fit the shape"))
    });
    safetensors::serialize_to_file(views, None, &to.path().join("model.safetensors")).expect("tensors are written");
    to
}

fn copy(from: &Path, to: &Path) {
    fs::write(to, fs::read(from).expect("a file")).expect("a copy");
}
