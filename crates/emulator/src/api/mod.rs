//! The C interface of the driver: the functions that `libcuda.so` exports. They translate arguments, nothing more; what
//! they do is in [`crate::driver`].
//!
//! Handles (CUcontext, CUstream, …) are 64-bit numbers here, as wide as the pointers that C sees; enumerations are
//! `u32`.

pub mod contexts;
pub mod devices;
pub mod inspect;
pub mod launches;
pub mod memory;
pub mod modules;
pub mod pools;
pub mod streams;
pub mod tensors;

use crate::driver::error::{Answer, Code, fail, invalid};
use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;

/// Where a result goes; `None` is a null pointer.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Writes a result.
fn put<T>(out: Out<'_, T>, value: T) -> Answer {
    out.ok_or_else(|| invalid("the pointer for the result is null"))?.write(value);
    Ok(())
}

/// Writes a result that the caller need not want.
fn offer<T>(out: Out<'_, T>, value: T) {
    if let Some(out) = out {
        out.write(value);
    }
}

/// # Safety
/// `text` is null or a string of C that outlives the result.
unsafe fn string<'a>(text: *const c_char) -> Answer<&'a str> {
    if text.is_null() {
        return Err(invalid("a string is null"));
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| invalid("a string is not UTF-8"))
}

/// Writes functions of the C interface: exported, documented by reference, unable to panic, failing with a reason. Also
/// a `lookup` of them by name.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) |$driver:ident| $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
            ///
            /// # Safety
            /// Pointers and handles are as the documentation of the CUDA driver API demands.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                $crate::driver::call(stringify!($name), move |$driver: &$crate::driver::Driver| $body)
            }
        )*

        /// The address of a function of this file.
        pub(super) fn lookup(name: &str) -> Option<*const std::ffi::c_void> {
            match name {
                $(stringify!($name) => Some($name as *const std::ffi::c_void),)*
                _ => None,
            }
        }
    };
}
use api;

/// The address of an exported function, of the newest version that there is.
fn find(name: &str) -> Option<*const c_void> {
    const FILES: [fn(&str) -> Option<*const c_void>; 8] = [
        contexts::lookup,
        devices::lookup,
        launches::lookup,
        memory::lookup,
        modules::lookup,
        pools::lookup,
        streams::lookup,
        tensors::lookup,
    ];
    ["_v4", "_v3", "_v2", ""].iter().find_map(|version| {
        let versioned = format!("{name}{version}");
        FILES.iter().find_map(|file| file(&versioned))
    })
}

/// `cuGetErrorName` of the CUDA driver API.
///
/// # Safety
/// `name` is null or may be written to.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: Out<'_, *const c_char>) -> u32 {
    describe(Code(error).name(), name)
}

/// `cuGetErrorString` of the CUDA driver API.
///
/// # Safety
/// `description` is null or may be written to.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, description: Out<'_, *const c_char>) -> u32 {
    describe(Code(error).description(), description)
}

/// Not a call like others: it is made while errors are handled, and must not log.
fn describe(text: Option<&'static CStr>, out: Out<'_, *const c_char>) -> u32 {
    let known = text.is_some() && out.is_some();
    offer(out, text.map_or(std::ptr::null(), CStr::as_ptr));
    if known { Code::SUCCESS.0 } else { Code::INVALID_VALUE.0 }
}
