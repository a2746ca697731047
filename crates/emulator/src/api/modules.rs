//! Modules and functions.

use super::{Out, api, fail, invalid, offer, put, string};
use crate::driver::Driver;
use crate::driver::error::{Answer, Code};
use crate::driver::image::{text_at, text_of};
use std::ffi::{c_char, c_void};

/// Keys of the options of cuModuleLoadDataEx.
const ERROR_LOG: u32 = 5;
const ERROR_LOG_SIZE: u32 = 6;

/// Loads a module and writes the reason of a failure into the caller's log.
///
/// # Safety
/// As for cuModuleLoadDataEx.
unsafe fn load_with(
    driver: &Driver,
    image: *const u8,
    count: u32,
    keys: *const u32,
    values: *mut *mut c_void,
) -> Answer<u64> {
    driver.lock().current()?;
    // SAFETY: the caller gives an image.
    let answer = unsafe { text_at(image, driver.architecture()) }.and_then(|text| driver.load_module(&text));
    let Err(failure) = &answer else { return answer };
    let (mut log, mut size) = (std::ptr::null_mut::<u8>(), None);
    for index in 0..if keys.is_null() || values.is_null() { 0 } else { count as usize } {
        // SAFETY: both lists have `count` elements.
        match unsafe { *keys.add(index) } {
            // SAFETY: likewise.
            ERROR_LOG => log = unsafe { *values.add(index) }.cast(),
            // SAFETY: likewise; this value is a number in the place of a pointer, the bytes that were written come
            // back.
            ERROR_LOG_SIZE => size = Some(unsafe { values.add(index) }),
            _ => {}
        }
    }
    if let (false, Some(size)) = (log.is_null(), size) {
        // SAFETY: `size` is an element of the list of values.
        let room = unsafe { *size } as u32 as usize;
        let bytes = failure.reason.len().min(room.saturating_sub(1));
        if room > 0 {
            // SAFETY: the caller has `room` bytes there, of which these are fewer.
            unsafe {
                std::ptr::copy_nonoverlapping(failure.reason.as_ptr(), log, bytes);
                log.add(bytes).write(0);
                *size = (bytes + 1) as *mut c_void;
            }
        }
    }
    answer
}

api! {
    fn cuModuleLoadData(module: Out<'_, u64>, image: *const u8) |driver| {
        let Some(out) = module else { return Err(invalid("the pointer for the module is null")) };
        // SAFETY: the caller gives an image, and no options.
        out.write(unsafe { load_with(driver, image, 0, std::ptr::null(), std::ptr::null_mut()) }?);
        Ok(())
    }

    fn cuModuleLoadDataEx(
        module: Out<'_, u64>,
        image: *const u8,
        count: u32,
        keys: *const u32,
        values: *mut *mut c_void,
    ) |driver| {
        let Some(out) = module else { return Err(invalid("the pointer for the module is null")) };
        // SAFETY: the caller gives an image and `count` options.
        out.write(unsafe { load_with(driver, image, count, keys, values) }?);
        Ok(())
    }

    fn cuModuleLoadFatBinary(module: Out<'_, u64>, image: *const u8) |driver| {
        let Some(out) = module else { return Err(invalid("the pointer for the module is null")) };
        // SAFETY: the caller gives an image, and no options.
        out.write(unsafe { load_with(driver, image, 0, std::ptr::null(), std::ptr::null_mut()) }?);
        Ok(())
    }

    fn cuModuleLoad(module: Out<'_, u64>, path: *const c_char) |driver| {
        let Some(out) = module else { return Err(invalid("the pointer for the module is null")) };
        driver.lock().current()?;
        // SAFETY: the caller gives a string.
        let path = unsafe { string(path) }?;
        let image = std::fs::read(path).map_err(|error| fail(Code::FILE_NOT_FOUND, format!("{path}: {error}")))?;
        out.write(driver.load_module(&text_of(&image, driver.architecture())?)?);
        Ok(())
    }

    fn cuModuleUnload(module: u64) |driver| { driver.unload(module) }

    fn cuModuleGetLoadingMode(mode: Out<'_, u32>) |_driver| {
        // CU_MODULE_EAGER_LOADING.
        put(mode, 1)
    }

    fn cuModuleGetFunction(function: Out<'_, u64>, module: u64, name: *const c_char) |driver| {
        // SAFETY: the caller gives a string.
        put(function, driver.module_function(module, unsafe { string(name) }?)?)
    }

    fn cuModuleGetGlobal_v2(address: Out<'_, u64>, bytes: Out<'_, usize>, module: u64, name: *const c_char) |driver| {
        // SAFETY: the caller gives a string.
        let global = driver.module_global(module, unsafe { string(name) }?)?;
        offer(address, global.0);
        offer(bytes, global.1);
        Ok(())
    }

    fn cuFuncGetAttribute(value: Out<'_, i32>, attribute: u32, function: u64) |driver| {
        put(value, driver.function_attribute(function, attribute)?)
    }

    fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32) |driver| {
        driver.set_function_attribute(function, attribute, value)
    }

    fn cuFuncSetCacheConfig(function: u64, _configuration: u32) |driver| { driver.function(function).map(|_| ()) }

    fn cuFuncSetSharedMemConfig(function: u64, _configuration: u32) |driver| { driver.function(function).map(|_| ()) }

    fn cuFuncGetModule(module: Out<'_, u64>, function: u64) |driver| {
        put(module, driver.function(function)?.module)
    }
}
