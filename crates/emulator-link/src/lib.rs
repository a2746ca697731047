//! How the stand-ins for CUDA libraries reach the emulated driver: through functions which its `libcuda.so`, already
//! loaded in the process, exports beside those of the driver API.

use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// A part of device memory that work reads or writes: `height` rows of `width` bytes, `pitch` bytes apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Device address of the first byte.
    pub address: u64,
    /// Bytes of a row.
    pub width: u64,
    /// Bytes from the beginning of a row to that of the next.
    pub pitch: u64,
    /// Rows.
    pub height: u64,
    /// 0 if it is read, 1 if it is written.
    pub write: u32,
}

impl Region {
    /// `bytes` bytes at `address`, read.
    pub fn read(address: u64, bytes: u64) -> Self {
        Self { address, width: bytes, pitch: bytes, height: 1, write: 0 }
    }

    /// `bytes` bytes at `address`, written.
    pub fn written(address: u64, bytes: u64) -> Self {
        Self { write: 1, ..Self::read(address, bytes) }
    }
}

/// A function that carries work out, or gives it up: see [`RUN`] and [`DROP`].
pub type Work = unsafe extern "C" fn(data: *mut c_void, action: u32) -> u32;

/// The action that carries the work out; the answer is a CUresult, of which [`NOT_READY`] says that it must be asked
/// again later, since it waits for something else.
pub const RUN: u32 = 0;

/// The action that releases the data. Always the last one.
pub const DROP: u32 = 1;

/// CUDA_ERROR_NOT_READY.
pub const NOT_READY: u32 = 600;

/// CUDA_ERROR_UNKNOWN.
const UNKNOWN: u32 = 999;

/// `emulator_enqueue` of the driver: stream, label, regions and their number, work, data. It owns the data from then
/// on, also when it fails.
pub type Enqueue =
    unsafe extern "C" fn(u64, *const c_char, regions: *const Region, count: usize, Work, *mut c_void) -> u32;

/// The driver's functions.
struct Driver {
    enqueue: Enqueue,
    clock: unsafe extern "C" fn(*mut u32, usize) -> usize,
    follow: unsafe extern "C" fn(*const u32, usize),
    resume: unsafe extern "C" fn() -> u32,
    current_device: unsafe extern "C" fn(*mut c_int) -> u32,
    current_context: unsafe extern "C" fn(*mut u64) -> u32,
    push_context: unsafe extern "C" fn(u64) -> u32,
    pop_context: unsafe extern "C" fn(*mut u64) -> u32,
    retain: unsafe extern "C" fn(*mut u64, c_int) -> u32,
    release: unsafe extern "C" fn(c_int) -> u32,
}

/// Whether a piece of work is done, or waits for something that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done.
    Done,
    /// To be asked again.
    Waiting,
    /// It cannot be done: a CUresult, which becomes the error of the stream's context.
    Failed(u32),
}

fn driver() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    DRIVER.get_or_init(find).as_ref()
}

fn find() -> Option<Driver> {
    // SAFETY: a library that is already loaded is looked up by its name, a literal; nothing is loaded or run.
    let library = unsafe { libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    let symbol = |name: &CStr| {
        // SAFETY: the handle was given by dlopen just now and is never closed.
        let address = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    /// A function at an address.
    ///
    /// # Safety
    /// There is one, of this type.
    unsafe fn function<F: Copy>(address: *mut c_void) -> F {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: as the caller promises.
        unsafe { std::mem::transmute_copy(&address) }
    }
    // SAFETY: the emulated driver, which alone exports `emulator_enqueue`, declares these functions with these types.
    unsafe {
        Some(Driver {
            enqueue: function(symbol(c"emulator_enqueue")?),
            clock: function(symbol(c"emulator_clock")?),
            follow: function(symbol(c"emulator_follow")?),
            resume: function(symbol(c"emulator_resume")?),
            current_device: function(symbol(c"cuCtxGetDevice")?),
            current_context: function(symbol(c"cuCtxGetCurrent")?),
            push_context: function(symbol(c"cuCtxPushCurrent_v2")?),
            pop_context: function(symbol(c"cuCtxPopCurrent_v2")?),
            retain: function(symbol(c"cuDevicePrimaryCtxRetain")?),
            release: function(symbol(c"cuDevicePrimaryCtxRelease_v2")?),
        })
    }
}

/// Whether the emulated driver is loaded in this process.
pub fn is_present() -> bool {
    driver().is_some()
}

/// The device of the calling thread's context.
///
/// # Errors
/// The CUresult, if there is no context.
pub fn current_device() -> Result<i32, u32> {
    let driver = driver().ok_or(UNKNOWN)?;
    let mut device = 0;
    // SAFETY: the pointer is to a c_int of our own.
    match unsafe { (driver.current_device)(&raw mut device) } {
        0 => Ok(device),
        code => Err(code),
    }
}

fn checked(code: u32) -> Result<(), u32> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// The calling thread's context, 0 if there is none.
///
/// # Errors
/// The CUresult.
pub fn current_context() -> Result<u64, u32> {
    let driver = driver().ok_or(UNKNOWN)?;
    let mut context = 0;
    // SAFETY: the pointer is to a handle of our own.
    checked(unsafe { (driver.current_context)(&raw mut context) }).map(|()| context)
}

/// Does something while a context is current.
///
/// # Errors
/// The CUresult, if the context does not exist.
pub fn in_context<T>(context: u64, body: impl FnOnce() -> T) -> Result<T, u32> {
    let driver = driver().ok_or(UNKNOWN)?;
    // SAFETY: any number may be given as a handle to the emulated driver.
    checked(unsafe { (driver.push_context)(context) })?;
    let result = body();
    let mut popped = 0;
    // SAFETY: the pointer is to a handle of our own.
    checked(unsafe { (driver.pop_context)(&raw mut popped) }).map(|()| result)
}

/// Retains the primary context of a device.
///
/// # Errors
/// The CUresult.
pub fn retain(device: i32) -> Result<u64, u32> {
    let driver = driver().ok_or(UNKNOWN)?;
    let mut context = 0;
    // SAFETY: the pointer is to a handle of our own.
    checked(unsafe { (driver.retain)(&raw mut context, device) }).map(|()| context)
}

/// Releases the primary context of a device.
///
/// # Errors
/// The CUresult.
pub fn release(device: i32) -> Result<(), u32> {
    // SAFETY: any number may be given as a device to the emulated driver.
    checked(unsafe { (driver().ok_or(UNKNOWN)?.release)(device) })
}

/// The order of a piece of work among all work in streams: itself, and what is over before it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock(Vec<u32>);

/// The clock of the work that calls this while it runs; one that knows nothing if none does.
pub fn clock() -> Clock {
    let Some(driver) = driver() else { return Clock::default() };
    let mut numbers = Vec::new();
    loop {
        // SAFETY: there is room for as many numbers as the vector has.
        let count = unsafe { (driver.clock)(numbers.as_mut_ptr(), numbers.len()) };
        if count <= numbers.len() {
            numbers.truncate(count);
            return Clock(numbers);
        }
        numbers.resize(count, 0);
    }
}

/// The work that calls this while it runs, has waited for the one with this clock, so that what comes behind the former
/// in its stream follows the latter. Without it, what one stream learns from another in a library would not order them
/// for the checks for races.
pub fn follow(clock: &Clock) {
    if let Some(driver) = driver() {
        // SAFETY: the pointer is to as many numbers.
        unsafe { (driver.follow)(clock.0.as_ptr(), clock.0.len()) };
    }
}

/// What work in streams waits for may have happened elsewhere: lets the driver ask again, and run, in the calling thread,
/// whatever can run then. Only what ends or is enqueued in a stream does so by itself.
pub fn resume() {
    if let Some(driver) = driver() {
        // SAFETY: it has no arguments and may be called at any time. Where there is no machine, nothing waits.
        unsafe { (driver.resume)() };
    }
}

type Job = Box<dyn FnMut() -> Progress + Send>;

/// Puts `work` into a stream (0 for the default one), behind what is there. Before it runs, the driver checks that the
/// regions are memory that the stream's device may access; an error of that kind surfaces as the driver's own do.
/// The work is called again until it answers [`Progress::Done`]; the stream waits as long.
///
/// # Errors
/// The CUresult, if the stream does not exist or its context has failed.
pub fn enqueue(
    stream: u64,
    label: &str,
    regions: &[Region],
    work: impl FnMut() -> Progress + Send + 'static,
) -> Result<(), u32> {
    let driver = driver().ok_or(UNKNOWN)?;
    let label = CString::new(label).unwrap_or_default();
    let job: Box<Job> = Box::new(Box::new(work));
    let data = Box::into_raw(job).cast();
    // SAFETY: label and regions outlive the call; the data is what `perform` expects, and owned by the driver from
    // here.
    match unsafe { (driver.enqueue)(stream, label.as_ptr(), regions.as_ptr(), regions.len(), perform, data) } {
        0 => Ok(()),
        code => Err(code),
    }
}

/// The [`Work`] of a boxed closure.
unsafe extern "C" fn perform(data: *mut c_void, action: u32) -> u32 {
    let job: *mut Job = data.cast();
    if action == DROP {
        // SAFETY: the driver sends DROP once and last, with the pointer that `enqueue` made of a box.
        drop(unsafe { Box::from_raw(job) });
        return 0;
    }
    // SAFETY: the driver runs a piece of work from one thread at a time, and not after DROP.
    let job = unsafe { &mut *job };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)) {
        Ok(Progress::Done) => 0,
        Ok(Progress::Waiting) => NOT_READY,
        Ok(Progress::Failed(code)) => code,
        Err(_) => UNKNOWN,
    }
}
