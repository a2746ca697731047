//! The driver as a whole, and devices.

use super::{Out, api, find, offer, put, string};
use super::{fail, invalid};
use crate::driver::Driver;
use crate::driver::device::attribute;
use crate::driver::error::Code;
use std::ffi::{c_char, c_void};

/// What cuDriverGetVersion says: 13.0, whose PTX is 9.0.
const VERSION: i32 = 13000;

/// 16 bytes that differ between devices.
fn uuid(driver: &Driver, device: usize) -> [u8; 16] {
    let mut uuid = *b"emulated sm_00 0";
    let architecture = driver.architecture().min(199);
    uuid[12] = b'0' + (architecture / 10) as u8;
    uuid[13] = b'0' + (architecture % 10) as u8;
    uuid[15] = device as u8;
    uuid
}

/// The old form of device properties, CUdevprop.
#[repr(C)]
pub struct Properties {
    threads_per_block: i32,
    block: [i32; 3],
    grid: [i32; 3],
    shared_per_block: i32,
    constant: i32,
    warp: i32,
    pitch: i32,
    registers: i32,
    clock: i32,
    texture_alignment: i32,
}

api! {
    fn cuInit(flags: u32) |driver| { driver.initialize(flags) }

    fn cuDriverGetVersion(version: Out<'_, i32>) |_driver| { put(version, VERSION) }

    fn cuGetProcAddress(name: *const c_char, function: Out<'_, *const c_void>, _version: i32, _flags: u64) |_driver| {
        // SAFETY: the caller gives a string.
        let name = unsafe { string(name) }?;
        put(function, find(name).ok_or_else(|| fail(Code::NOT_FOUND, format!("there is no {name} here")))?)
    }

    fn cuGetProcAddress_v2(
        name: *const c_char,
        function: Out<'_, *const c_void>,
        _version: i32,
        _flags: u64,
        status: Out<'_, u32>,
    ) |_driver| {
        // SAFETY: the caller gives a string.
        let name = unsafe { string(name) }?;
        let found = find(name);
        // CU_GET_PROC_ADDRESS_SUCCESS and …_SYMBOL_NOT_FOUND.
        offer(status, u32::from(found.is_none()));
        put(function, found.ok_or_else(|| fail(Code::NOT_FOUND, format!("there is no {name} here")))?)
    }

    fn cuDeviceGetCount(count: Out<'_, i32>) |driver| {
        driver.initialized()?;
        put(count, driver.options.devices as i32)
    }

    fn cuDeviceGet(device: Out<'_, i32>, ordinal: i32) |driver| { put(device, driver.device(ordinal)? as i32) }

    fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) |driver| {
        driver.device(device)?;
        let text = format!("Emulated sm_{}", driver.architecture());
        let room = usize::try_from(length).ok().and_then(|length| length.checked_sub(1));
        let Some(room) = room.filter(|_| !name.is_null()) else { return Err(invalid("no room for the name")) };
        let bytes = text.len().min(room);
        // SAFETY: the caller has `length` bytes there, which is more than `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, bytes);
            name.add(bytes).write(0);
        }
        Ok(())
    }

    fn cuDeviceGetUuid(out: Out<'_, [u8; 16]>, device: i32) |driver| { put(out, uuid(driver, driver.device(device)?)) }

    fn cuDeviceGetUuid_v2(out: Out<'_, [u8; 16]>, device: i32) |driver| {
        put(out, uuid(driver, driver.device(device)?))
    }

    fn cuDeviceGetPCIBusId(name: *mut c_char, length: i32, device: i32) |driver| {
        let text = format!("0000:{:02X}:00.0\0", driver.device(device)? + 1);
        if name.is_null() || usize::try_from(length).is_ok_and(|length| length < text.len()) || length < 0 {
            return Err(invalid("no room for the bus id"));
        }
        // SAFETY: the caller has `length` bytes there, which is no less than the text has.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
        Ok(())
    }

    fn cuDeviceGetAttribute(value: Out<'_, i32>, number: u32, device: i32) |driver| {
        let device = driver.device(device)?;
        let found = attribute(&driver.options, device, number);
        put(value, found.ok_or_else(|| invalid(format!("there is no device attribute {number}")))?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<'_, usize>, device: i32) |driver| {
        driver.device(device)?;
        put(bytes, driver.options.memory as usize)
    }

    fn cuDeviceComputeCapability(major: Out<'_, i32>, minor: Out<'_, i32>, device: i32) |driver| {
        driver.device(device)?;
        put(major, driver.options.capability.0 as i32)?;
        put(minor, driver.options.capability.1 as i32)
    }

    fn cuDeviceGetProperties(properties: Out<'_, Properties>, device: i32) |driver| {
        let device = driver.device(device)?;
        let of = |number| attribute(&driver.options, device, number).unwrap_or(0);
        put(properties, Properties {
            threads_per_block: of(1),
            block: [of(2), of(3), of(4)],
            grid: [of(5), of(6), of(7)],
            shared_per_block: of(8),
            constant: of(9),
            warp: of(10),
            pitch: of(11),
            registers: of(12),
            clock: of(13),
            texture_alignment: of(14),
        })
    }

    fn cuDeviceCanAccessPeer(can: Out<'_, i32>, device: i32, peer: i32) |driver| {
        put(can, i32::from(driver.can_access(device, peer)?))
    }

    fn cuDeviceGetP2PAttribute(value: Out<'_, i32>, attribute: u32, device: i32, peer: i32) |driver| {
        let can = driver.can_access(device, peer)?;
        put(value, match attribute {
            // Rank, atomics and arrays: none of them.
            1 | 3 | 4 => 0,
            2 => i32::from(can),
            _ => return Err(invalid(format!("there is no attribute {attribute} of peers"))),
        })
    }

    fn cuProfilerStart() |driver| { driver.initialized() }

    fn cuProfilerStop() |driver| { driver.initialized() }
}
