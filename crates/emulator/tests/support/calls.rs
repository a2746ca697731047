//! Calls of the driver's functions as C makes them, for tests that do without a library around them.

#![allow(dead_code)] // each test file uses its own part

use emulator::api::Out;
use emulator::api::contexts::*;
use emulator::api::devices::*;
use emulator::api::memory::*;
use emulator::api::streams::*;
use emulator::driver::configure;
use emulator::options::Options;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One driver a process: tests take turns.
pub(crate) fn machine(options: &Options) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    configure(Options { memory: options.memory.min(1 << 30), log: false, ..options.clone() }).unwrap();
    turn
}

/// The result of a function that writes one.
pub(crate) fn get<T>(call: impl FnOnce(Out<'_, T>) -> u32) -> T {
    let mut out = MaybeUninit::uninit();
    assert_eq!(call(Some(&mut out)), 0);
    // SAFETY: functions that succeed have written their result.
    unsafe { out.assume_init() }
}

/// Calls a function of the driver. All of them are declared unsafe.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the pointers of these tests point to what the functions want.
        unsafe { $name($($argument),*) }
    };
}

/// A device's primary context, made current.
pub(crate) fn context(device: i32) -> u64 {
    assert_eq!(cu!(cuInit(0)), 0);
    let context = get(|out| cu!(cuDevicePrimaryCtxRetain(out, device)));
    assert_eq!(cu!(cuCtxSetCurrent(context)), 0);
    context
}

pub(crate) fn allocate(bytes: usize) -> u64 {
    get(|out| cu!(cuMemAlloc_v2(out, bytes)))
}

pub(crate) fn pinned(bytes: usize) -> u64 {
    get(|out| cu!(cuMemHostAlloc(out, bytes, 0)))
}

pub(crate) fn stream() -> u64 {
    get(|out| cu!(cuStreamCreate(out, 1)))
}

pub(crate) fn event() -> u64 {
    get(|out| cu!(cuEventCreate(out, 2)))
}

pub(crate) fn upload(to: u64, bytes: &[u8]) {
    assert_eq!(cu!(cuMemcpyHtoD_v2(to, bytes.as_ptr() as u64, bytes.len())), 0);
}

pub(crate) fn download(from: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    assert_eq!(cu!(cuMemcpyDtoH_v2(bytes.as_mut_ptr() as u64, from, count)), 0);
    bytes
}

pub(crate) fn deferred(seed: u64) -> Options {
    Options { deferred: true, seed: Some(seed), devices: 2, ..Options::default() }
}
