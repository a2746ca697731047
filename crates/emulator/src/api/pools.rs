//! Memory pools, and what is allocated from them in the order of a stream.

use super::{Out, api, invalid, put};
use crate::driver::error::Answer;
use std::ffi::c_void;

/// Whether an attribute of pools is a 32-bit number; the others are of 64 bits.
fn is_narrow(attribute: u32) -> bool {
    attribute <= 3
}

/// # Safety
/// `value` is null or points to a value of the type of the attribute.
unsafe fn read(value: *const c_void, attribute: u32) -> Answer<u64> {
    if value.is_null() {
        return Err(invalid("the pointer to the value is null"));
    }
    // SAFETY: as the caller promises.
    Ok(unsafe {
        match is_narrow(attribute) {
            true => value.cast::<u32>().read_unaligned().into(),
            false => value.cast::<u64>().read_unaligned(),
        }
    })
}

/// # Safety
/// `slot` is null or has room for a value of the type of the attribute.
unsafe fn write(slot: *mut c_void, attribute: u32, value: u64) -> Answer {
    if slot.is_null() {
        return Err(invalid("the pointer for the result is null"));
    }
    // SAFETY: as the caller promises.
    unsafe {
        match is_narrow(attribute) {
            true => slot.cast::<u32>().write_unaligned(value as u32),
            false => slot.cast::<u64>().write_unaligned(value),
        }
    }
    Ok(())
}

api! {
    fn cuMemAllocAsync(address: Out<'_, u64>, bytes: usize, stream: u64) |driver| {
        let Some(out) = address else { return Err(invalid("the pointer for the address is null")) };
        out.write(driver.allocate_async(bytes, stream, None)?);
        Ok(())
    }

    fn cuMemAllocFromPoolAsync(address: Out<'_, u64>, bytes: usize, pool: u64, stream: u64) |driver| {
        let Some(out) = address else { return Err(invalid("the pointer for the address is null")) };
        out.write(driver.allocate_async(bytes, stream, Some(pool))?);
        Ok(())
    }

    fn cuMemFreeAsync(address: u64, stream: u64) |driver| { driver.free_async(address, stream) }

    fn cuDeviceGetDefaultMemPool(pool: Out<'_, u64>, device: i32) |driver| { put(pool, driver.pool_of(device)?) }

    // No other pool can be made the current one.
    fn cuDeviceGetMemPool(pool: Out<'_, u64>, device: i32) |driver| { put(pool, driver.pool_of(device)?) }

    fn cuMemPoolTrimTo(pool: u64, keep: usize) |driver| { driver.trim_pool(pool, keep) }

    fn cuMemPoolGetAttribute(pool: u64, attribute: u32, value: *mut c_void) |driver| {
        let found = driver.pool_attribute(pool, attribute)?;
        // SAFETY: the caller has room for the attribute.
        unsafe { write(value, attribute, found) }
    }

    fn cuMemPoolSetAttribute(pool: u64, attribute: u32, value: *const c_void) |driver| {
        // SAFETY: the caller gives a value of the type of the attribute.
        driver.set_pool_attribute(pool, attribute, unsafe { read(value, attribute) }?)
    }
}
