//! What `libcuda.so` exports beside the driver API: settings, what was found and counted, and a way for libraries to
//! put work of their own into streams. [`crate::loader`] and the stand-ins for libraries call these.

use crate::driver::stream::External;
use crate::driver::{self, Driver};
use crate::options::Options;
use emulator_link::{Region, Work};
use serde::Serialize;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::PoisonError;

/// A string for the caller, to be released by [`emulator_free`].
fn give(text: String) -> *mut c_char {
    // What serde_json writes has no zeros in it; messages that had would be cut rather than lost.
    let text = text.replace('\0', "\u{fffd}");
    CString::new(text).map_or(std::ptr::null_mut(), CString::into_raw)
}

fn answer<T: Serialize>(ask: impl FnOnce(&Driver) -> T) -> *mut c_char {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let driver = driver::current().ok()?;
        serde_json::to_string(&ask(&driver)).ok()
    }));
    outcome.ok().flatten().map_or(std::ptr::null_mut(), give)
}

/// Sets the machine up: `options` is [`Options`] as JSON. Null if all is well, else the reason, to be released by
/// [`emulator_free`].
///
/// # Safety
/// `options` is a string of C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_configure(options: *const c_char) -> *mut c_char {
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(options) }.to_bytes();
    let outcome = std::panic::catch_unwind(|| {
        let options: Options = serde_json::from_slice(text).map_err(|error| format!("options: {error}"))?;
        driver::configure(options)
    });
    match outcome {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(reason)) => give(reason),
        Err(_) => give("the driver panicked".to_owned()),
    }
}

/// Takes what was found since the last call, as a JSON list of [`crate::report::Finding`].
#[unsafe(no_mangle)]
pub extern "C" fn emulator_findings() -> *mut c_char {
    answer(|driver| driver.findings.take())
}

/// Takes the profiles of launches since the last call, as a JSON list of [`crate::profile::Profile`].
#[unsafe(no_mangle)]
pub extern "C" fn emulator_profiles() -> *mut c_char {
    answer(|driver| std::mem::take(&mut *driver.profiles.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// What the contexts that there are have not given back, as a JSON list of [`crate::report::Finding`].
#[unsafe(no_mangle)]
pub extern "C" fn emulator_leaks() -> *mut c_char {
    answer(Driver::leaks)
}

/// Releases a string that another of these functions gave.
///
/// # Safety
/// `text` is null or such a string, and not released yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it was made by `CString::into_raw`, as the caller promises.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// For the work of a library, while it runs: copies what is over once it is (its clock) to `into`, if there is room for
/// it, and answers how many numbers that takes. Other work that waits for this one says so by [`emulator_follow`].
///
/// # Safety
/// There is room for `room` numbers at `into`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_clock(into: *mut u32, room: usize) -> usize {
    let clock = driver::stream::clock_of_work();
    if clock.len() <= room && !clock.is_empty() {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(clock.as_ptr(), into, clock.len()) };
    }
    clock.len()
}

/// For the work of a library, while it runs: it has waited for what this clock, given by [`emulator_clock`], knows of.
///
/// # Safety
/// `clock` points to `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_follow(clock: *const u32, count: usize) {
    if count > 0 {
        // SAFETY: as the caller promises.
        driver::stream::work_follows(unsafe { std::slice::from_raw_parts(clock, count) });
    }
}

/// What the work of libraries waits for may have happened, outside of streams: what can run now, runs, in the calling thread.
#[unsafe(no_mangle)]
pub extern "C" fn emulator_resume() -> u32 {
    driver::call("emulator_resume", |driver| {
        driver.resume();
        Ok(())
    })
}

/// Puts work of a library into a stream: see [`emulator_link::Enqueue`].
///
/// # Safety
/// `label` is a string of C, `regions` points to `count` regions; `work` may be called with `data` from any thread, and
/// owns it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emulator_enqueue(
    stream: u64,
    label: *const c_char,
    regions: *const Region,
    count: usize,
    work: Work,
    data: *mut c_void,
) -> u32 {
    let regions = match count {
        0 => Vec::new(),
        // SAFETY: as the caller promises.
        _ => unsafe { std::slice::from_raw_parts(regions, count) }.to_vec(),
    };
    // SAFETY: as the caller promises.
    let label = unsafe { CStr::from_ptr(label) }.to_string_lossy();
    // From here on it is dropped, and the data released, whatever happens.
    let external = External { regions, work, data, begun: false };
    driver::call(&label, |driver| driver.enqueue_external(stream, &label, external))
}
