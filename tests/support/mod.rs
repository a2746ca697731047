//! A GPU for tests: an emulated one with all checks on, under several orders of warps, or with `EMULATOR_TEST_DRIVER=real`
//! those of the machine. Where there is none then, tests are skipped, counted, and said so.

#![allow(dead_code)] // each test file uses its own part

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceRepr};
use emulator::loader::{Loaded, load};
use emulator::options::Options;
use prune_cuda::{Device, MatrixMut, MatrixRef};
use std::fmt::Debug;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Sizes at which tiles, warps and vectors end.
pub(crate) const SIZES: [usize; 9] = [1, 31, 32, 33, 127, 128, 129, 200, 1000];

/// Seeds of the orders in which warps and thread blocks run.
const SEEDS: [u64; 2] = [1, 2];

pub(crate) fn emulator() -> Option<&'static Loaded> {
    static EMULATOR: OnceLock<Option<Loaded>> = OnceLock::new();
    let real = || match std::env::var("EMULATOR_TEST_DRIVER").as_deref() {
        Ok("real") => true,
        Ok("emulated" | "") | Err(_) => false,
        Ok(other) => panic!("EMULATOR_TEST_DRIVER is `{other}`; it is `real` or `emulated`"),
    };
    EMULATOR.get_or_init(|| (!real()).then(|| load(&Options::default()).expect("the emulated driver loads"))).as_ref()
}

/// Runs `test` on an emulated device with every check on, once for each seed, and fails if the checks find anything; or once
/// on the first GPU of the machine.
pub(crate) fn on_device(test: impl Fn(&Device)) {
    let checked = SEEDS.map(|seed| Options { log: false, ..Options::checked(seed) });
    with_options(&checked, test);
}

/// As [`on_device`], without the checks of races and uninitialized reads: for sizes at which those take minutes, of
/// kernels that are checked at smaller ones.
pub(crate) fn on_fast_device(test: impl Fn(&Device)) {
    with_options(&[Options::default()], test);
}

/// Tests take turns: there is one driver in a process.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the emulated machine up, for as long as the result lives. `None`, with a line, on a real one.
pub(crate) fn configured(options: &Options) -> Option<MutexGuard<'static, ()>> {
    let turn = turn();
    let Some(emulator) = emulator() else {
        skip("only the emulator can be set up so");
        return None;
    };
    emulator.configure(options).expect("the options are valid");
    Some(turn)
}

/// As [`on_device`], with these options one after the other.
pub(crate) fn with_options(options: &[Options], test: impl Fn(&Device)) {
    let _turn = turn();
    let Some(emulator) = emulator() else {
        match Device::open(0) {
            Ok(device) => test(&device),
            Err(error) => skip(&error.to_string()),
        }
        return;
    };
    for options in options {
        emulator.configure(options).expect("the options are valid");
        emulator.findings();
        let device = Device::open(0).expect("an emulated device");
        // What the checks found says more than the error of the call in which it surfaced.
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| test(&device)));
        let synchronized = device.synchronize();
        assert_clean(emulator);
        if let Err(panic) = end {
            std::panic::resume_unwind(panic);
        }
        synchronized.expect("no kernel failed");
    }
}

fn assert_clean(emulator: &Loaded) {
    let found = emulator.findings();
    let text = || found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), text());
}

fn skip(reason: &str) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason} ({count} so far in this file)\n", thread.name().unwrap_or("a test"));
    // Not by `eprintln`, which the test harness keeps to itself where tests do not fail.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Elements behind every buffer that nothing may touch.
const GUARD: usize = 64;

/// Device memory that ends in guard words.
pub(crate) struct Guarded<T> {
    pub(crate) slice: CudaSlice<T>,
    length: usize,
    guard: T,
}

impl<T: DeviceRepr + Copy + PartialEq + Debug> Guarded<T> {
    /// `values` on the device, and behind them `guard`, again and again.
    pub(crate) fn new(device: &Device, values: &[T], guard: T) -> Self {
        let mut all = values.to_vec();
        all.resize(values.len() + GUARD, guard);
        Self { slice: device.upload(&all).expect("memory"), length: values.len(), guard }
    }

    /// `length` elements that hold nothing but `guard`.
    pub(crate) fn poisoned(device: &Device, length: usize, guard: T) -> Self {
        Self::new(device, &vec![guard; length], guard)
    }

    pub(crate) fn view(&self) -> CudaView<'_, T> {
        self.slice.slice(..self.length)
    }

    pub(crate) fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.slice_mut(..self.length)
    }

    /// All of it as a matrix with rows that follow each other.
    pub(crate) fn matrix(&self, rows: usize, columns: usize) -> MatrixRef<'_, T> {
        MatrixRef::new(self.view(), rows, columns).expect("a matrix")
    }

    pub(crate) fn matrix_mut(&mut self, rows: usize, columns: usize) -> MatrixMut<'_, T> {
        MatrixMut::new(self.view_mut(), rows, columns).expect("a matrix")
    }

    /// What is there now, after a look at the guard.
    pub(crate) fn download(&self, device: &Device) -> Vec<T>
    where
        T: bytemuck::Pod,
    {
        let mut all = device.download(&self.slice).expect("a copy");
        let guard = all.split_off(self.length);
        // By their bytes: a NaN is a good guard and equals nothing.
        let intact = guard.iter().all(|word| bytemuck::bytes_of(word) == bytemuck::bytes_of(&self.guard));
        assert!(intact, "the guard words behind a buffer were overwritten: {guard:?}");
        all
    }
}

/// A row-major matrix with `stride` instead of `columns` elements from row to row, the gaps filled with `gap`.
pub(crate) fn spread<T: Copy>(values: &[T], columns: usize, stride: usize, gap: T) -> Vec<T> {
    let mut spread = Vec::with_capacity(values.len() / columns.max(1) * stride);
    for row in values.chunks(columns) {
        spread.extend_from_slice(row);
        spread.extend(std::iter::repeat_n(gap, stride - columns));
    }
    spread
}

/// What the launches of `test` did, counted by the emulated device; nothing on a real one.
pub(crate) fn profiles(test: impl Fn(&Device)) -> Vec<emulator::profile::Profile> {
    let taken = Mutex::new(Vec::new());
    with_options(&[Options { profile: true, ..Options::default() }], |device| {
        test(device);
        device.synchronize().expect("no kernel failed");
        if let Some(emulator) = emulator() {
            taken.lock().unwrap_or_else(PoisonError::into_inner).extend(emulator.profiles());
        }
    });
    taken.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What activations are made of, with the rounding of the type as [`testkit::tolerance`] has it.
pub(crate) trait Value: prune_cuda::Number + Copy + PartialEq + Debug + bytemuck::Pod {
    const ROUNDING: (f64, f64);
    fn of(value: f64) -> Self;
    fn exact(self) -> f64;
}

macro_rules! value {
    ($type:ty, $rounding:path, $of:expr) => {
        impl Value for $type {
            const ROUNDING: (f64, f64) = $rounding;
            fn of(value: f64) -> Self {
                $of(value)
            }
            fn exact(self) -> f64 {
                self.into()
            }
        }
    };
}

value!(f32, testkit::tolerance::F32, |value| value as f32);
value!(half::f16, testkit::tolerance::F16, half::f16::from_f64);
value!(half::bf16, testkit::tolerance::BF16, half::bf16::from_f64);
