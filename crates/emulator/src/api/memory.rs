//! Memory: allocation, copies, fills, pointers.

use super::{Out, api, fail, invalid, offer, put};
use crate::driver::Driver;
use crate::driver::copy::{Order, Shape, Side};
use crate::driver::error::{Answer, Code};
use crate::driver::storage::Origin;
use std::ffi::c_void;

/// CUDA_MEMCPY2D.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // named as in cuda.h
pub struct Copy2d {
    pub from_x: usize,
    pub from_y: usize,
    pub from_kind: u32,
    pub from_host: u64,
    pub from_device: u64,
    pub from_array: u64,
    pub from_pitch: usize,
    pub to_x: usize,
    pub to_y: usize,
    pub to_kind: u32,
    pub to_host: u64,
    pub to_device: u64,
    pub to_array: u64,
    pub to_pitch: usize,
    pub width: usize,
    pub height: usize,
}

/// An end of a copy of rows.
fn side(kind: u32, host: u64, device: u64, (x, y): (usize, usize), pitch: usize) -> Answer<Side> {
    let offset = y.checked_mul(pitch).and_then(|rows| rows.checked_add(x));
    let offset = offset.ok_or_else(|| invalid("the size overflows"))? as u64;
    match kind {
        1 => Ok(Side::Host(host.wrapping_add(offset))),
        2 => Ok(Side::Device(device.wrapping_add(offset))),
        4 => Ok(Side::Any(device.wrapping_add(offset))),
        3 => Err(fail(Code::NOT_SUPPORTED, "there are no CUDA arrays here")),
        _ => Err(invalid(format!("there is no kind {kind} of memory"))),
    }
}

/// # Safety
/// `copy` is null or points to a CUDA_MEMCPY2D.
unsafe fn copy_rows(driver: &Driver, name: &str, copy: *const Copy2d, order: Order) -> Answer {
    // SAFETY: as the caller promises.
    let c = unsafe { copy.as_ref() }.ok_or_else(|| invalid("the description of the copy is null"))?;
    let dense = |pitch| if pitch == 0 { c.width } else { pitch };
    let shape =
        Shape { width: c.width, height: c.height, from_pitch: dense(c.from_pitch), to_pitch: dense(c.to_pitch) };
    let from = side(c.from_kind, c.from_host, c.from_device, (c.from_x, c.from_y), shape.from_pitch)?;
    let to = side(c.to_kind, c.to_host, c.to_device, (c.to_x, c.to_y), shape.to_pitch)?;
    driver.copy(name, to, from, shape, order)
}

/// Writes an attribute of a pointer in the width of its type.
///
/// # Safety
/// `data` is null or has room for the type of the attribute.
unsafe fn write_attribute(data: *mut c_void, attribute: u32, value: u64) -> Answer {
    if data.is_null() {
        return Err(invalid("the pointer for the result is null"));
    }
    // SAFETY: these are the types of cuPointerGetAttribute: pointers and sizes, else 32 bits or a bool.
    unsafe {
        match attribute {
            1 | 3 | 4 | 7 | 11 | 12 | 14 | 16 | 17 => data.cast::<u64>().write_unaligned(value),
            8 | 10 | 13 | 15 => data.cast::<u8>().write(value as u8),
            _ => data.cast::<u32>().write_unaligned(value as u32),
        }
    }
    Ok(())
}

fn allocate(driver: &Driver, address: Out<'_, u64>, bytes: usize, origin: Origin) -> Answer {
    let Some(out) = address else { return Err(invalid("the pointer for the address is null")) };
    out.write(driver.allocate(bytes, origin)?);
    Ok(())
}

/// Rows of a fill.
fn rows(pitch: usize, width: usize, height: usize) -> Shape {
    Shape { width, height, from_pitch: pitch, to_pitch: pitch }
}

const SYNC: Order = Order::Synchronous;

api! {
    fn cuMemGetInfo_v2(free: Out<'_, usize>, total: Out<'_, usize>) |driver| {
        let info = driver.memory_info()?;
        put(free, info.0)?;
        put(total, info.1)
    }

    fn cuMemAlloc_v2(address: Out<'_, u64>, bytes: usize) |driver| { allocate(driver, address, bytes, Origin::Device) }

    fn cuMemAllocPitch_v2(
        address: Out<'_, u64>,
        pitch: Out<'_, usize>,
        width: usize,
        height: usize,
        element: u32,
    ) |driver| {
        if !matches!(element, 4 | 8 | 16) {
            return Err(invalid(format!("accesses are of 4, 8 or 16 bytes, not of {element}")));
        }
        let row = width.checked_next_multiple_of(512).ok_or_else(|| invalid("the size overflows"))?;
        let bytes = row.checked_mul(height).ok_or_else(|| invalid("the size overflows"))?;
        put(pitch, row)?;
        allocate(driver, address, bytes, Origin::Device)
    }

    fn cuMemAllocManaged(address: Out<'_, u64>, bytes: usize, _flags: u32) |driver| {
        allocate(driver, address, bytes, Origin::Managed)
    }

    fn cuMemFree_v2(address: u64) |driver| { driver.free(address, false) }

    fn cuMemHostAlloc(address: Out<'_, u64>, bytes: usize, _flags: u32) |driver| {
        allocate(driver, address, bytes, Origin::Pinned)
    }

    fn cuMemAllocHost_v2(address: Out<'_, u64>, bytes: usize) |driver| {
        allocate(driver, address, bytes, Origin::Pinned)
    }

    fn cuMemFreeHost(address: u64) |driver| { driver.free(address, true) }

    fn cuMemHostRegister_v2(address: u64, bytes: usize, _flags: u32) |driver| { driver.register(address, bytes) }

    fn cuMemHostUnregister(address: u64) |driver| { driver.unregister(address) }

    fn cuMemHostGetDevicePointer_v2(device: Out<'_, u64>, address: u64, _flags: u32) |driver| {
        put(device, driver.device_pointer(address)?)
    }

    fn cuMemHostGetFlags(flags: Out<'_, u32>, address: u64) |driver| {
        driver.device_pointer(address)?;
        // CU_MEMHOSTALLOC_PORTABLE and …_DEVICEMAP, as all of it is.
        put(flags, 3)
    }

    fn cuMemGetAddressRange_v2(base: Out<'_, u64>, bytes: Out<'_, usize>, address: u64) |driver| {
        let range = driver.address_range(address)?;
        offer(base, range.0);
        offer(bytes, range.1);
        Ok(())
    }

    fn cuPointerGetAttribute(data: *mut c_void, attribute: u32, address: u64) |driver| {
        let value = driver.pointer_attribute(address, attribute)?;
        let value = value.ok_or_else(|| invalid(format!("there is no pointer attribute {attribute}")))?;
        // SAFETY: the caller has room for the attribute.
        unsafe { write_attribute(data, attribute, value) }
    }

    fn cuPointerGetAttributes(count: u32, attributes: *const u32, data: *const *mut c_void, address: u64) |driver| {
        if attributes.is_null() || data.is_null() {
            return Err(invalid("a list is null"));
        }
        for index in 0..count as usize {
            // SAFETY: both lists have `count` elements.
            let (attribute, slot) = unsafe { (*attributes.add(index), *data.add(index)) };
            // Other than for a single one, what does not apply is zero and not an error.
            let value = driver.pointer_attribute(address, attribute).ok().flatten().unwrap_or(0);
            // SAFETY: the caller has room for each attribute.
            unsafe { write_attribute(slot, attribute, value) }?;
        }
        Ok(())
    }

    fn cuPointerSetAttribute(_value: *const c_void, _attribute: u32, address: u64) |driver| {
        driver.address_range(address).map(|_| ())
    }

    fn cuMemAdvise(address: u64, _bytes: usize, _advice: u32, _device: i32) |driver| {
        driver.address_range(address).map(|_| ())
    }

    fn cuMemPrefetchAsync(address: u64, _bytes: usize, _device: i32, stream: u64) |driver| {
        driver.stream_properties(stream)?;
        driver.address_range(address).map(|_| ())
    }

    fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) |driver| {
        driver.copy("cuMemcpyHtoD", Side::Device(to), Side::Host(from), Shape::row(bytes), SYNC)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |driver| {
        driver.copy("cuMemcpyHtoDAsync", Side::Device(to), Side::Host(from), Shape::row(bytes), Order::In(stream))
    }

    fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) |driver| {
        driver.copy("cuMemcpyDtoH", Side::Host(to), Side::Device(from), Shape::row(bytes), SYNC)
    }

    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |driver| {
        driver.copy("cuMemcpyDtoHAsync", Side::Host(to), Side::Device(from), Shape::row(bytes), Order::In(stream))
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) |driver| {
        driver.copy("cuMemcpyDtoD", Side::Device(to), Side::Device(from), Shape::row(bytes), SYNC)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |driver| {
        driver.copy("cuMemcpyDtoDAsync", Side::Device(to), Side::Device(from), Shape::row(bytes), Order::In(stream))
    }

    fn cuMemcpy(to: u64, from: u64, bytes: usize) |driver| {
        driver.copy("cuMemcpy", Side::Any(to), Side::Any(from), Shape::row(bytes), SYNC)
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) |driver| {
        driver.copy("cuMemcpyAsync", Side::Any(to), Side::Any(from), Shape::row(bytes), Order::In(stream))
    }

    fn cuMemcpyPeer(to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize) |driver| {
        driver.check_peers(to_context, from_context)?;
        driver.copy("cuMemcpyPeer", Side::Device(to), Side::Device(from), Shape::row(bytes), SYNC)
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: u64,
        from: u64,
        from_context: u64,
        bytes: usize,
        stream: u64,
    ) |driver| {
        driver.check_peers(to_context, from_context)?;
        driver.copy("cuMemcpyPeerAsync", Side::Device(to), Side::Device(from), Shape::row(bytes), Order::In(stream))
    }

    fn cuMemcpy2D_v2(copy: *const Copy2d) |driver| {
        // SAFETY: the caller describes a copy.
        unsafe { copy_rows(driver, "cuMemcpy2D", copy, SYNC) }
    }

    fn cuMemcpy2DUnaligned_v2(copy: *const Copy2d) |driver| {
        // SAFETY: the caller describes a copy.
        unsafe { copy_rows(driver, "cuMemcpy2DUnaligned", copy, SYNC) }
    }

    fn cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: u64) |driver| {
        // SAFETY: the caller describes a copy.
        unsafe { copy_rows(driver, "cuMemcpy2DAsync", copy, Order::In(stream)) }
    }

    fn cuMemsetD8_v2(address: u64, value: u8, count: usize) |driver| {
        driver.fill("cuMemsetD8", address, value.into(), 1, Shape::row(count), SYNC)
    }

    fn cuMemsetD16_v2(address: u64, value: u16, count: usize) |driver| {
        driver.fill("cuMemsetD16", address, value.into(), 2, Shape::row(count), SYNC)
    }

    fn cuMemsetD32_v2(address: u64, value: u32, count: usize) |driver| {
        driver.fill("cuMemsetD32", address, value, 4, Shape::row(count), SYNC)
    }

    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: u64) |driver| {
        driver.fill("cuMemsetD8Async", address, value.into(), 1, Shape::row(count), Order::In(stream))
    }

    fn cuMemsetD16Async(address: u64, value: u16, count: usize, stream: u64) |driver| {
        driver.fill("cuMemsetD16Async", address, value.into(), 2, Shape::row(count), Order::In(stream))
    }

    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: u64) |driver| {
        driver.fill("cuMemsetD32Async", address, value, 4, Shape::row(count), Order::In(stream))
    }

    fn cuMemsetD2D8_v2(address: u64, pitch: usize, value: u8, width: usize, height: usize) |driver| {
        driver.fill("cuMemsetD2D8", address, value.into(), 1, rows(pitch, width, height), SYNC)
    }

    fn cuMemsetD2D32_v2(address: u64, pitch: usize, value: u32, width: usize, height: usize) |driver| {
        driver.fill("cuMemsetD2D32", address, value, 4, rows(pitch, width, height), SYNC)
    }

    fn cuMemsetD2D8Async(
        address: u64,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
        stream: u64,
    ) |driver| {
        driver.fill("cuMemsetD2D8Async", address, value.into(), 1, rows(pitch, width, height), Order::In(stream))
    }

    fn cuMemsetD2D32Async(
        address: u64,
        pitch: usize,
        value: u32,
        width: usize,
        height: usize,
        stream: u64,
    ) |driver| {
        driver.fill("cuMemsetD2D32Async", address, value, 4, rows(pitch, width, height), Order::In(stream))
    }
}
