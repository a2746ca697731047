//! The driver's functions, called as C would: everything that needs no kernel, and what kernels find in the variables of
//! their module.

#[macro_use]
#[path = "support/calls.rs"]
mod calls;

use calls::{allocate, context, deferred, download, event, get, machine, pinned, stream, upload};
use emulator::api::contexts::*;
use emulator::api::devices::*;
use emulator::api::inspect::emulator_enqueue;
use emulator::api::launches::*;
use emulator::api::memory::*;
use emulator::api::modules::*;
use emulator::api::pools::*;
use emulator::api::streams::*;
use emulator::api::{cuGetErrorName, cuGetErrorString};
use emulator::driver::inspect;
use emulator::options::Options;
use emulator::report::Kind;
use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;

const INVALID_VALUE: u32 = 1;
const INVALID_CONTEXT: u32 = 201;
const INVALID_HANDLE: u32 = 400;
const NOT_READY: u32 = 600;
const ILLEGAL_ADDRESS: u32 = 700;

/// Work that fails with this code, as a kernel does that goes wrong.
fn inject(stream: u64, code: u32) -> u32 {
    unsafe extern "C" fn work(data: *mut c_void, action: u32) -> u32 {
        if action == emulator_link::RUN { data as usize as u32 } else { 0 }
    }
    let regions = std::ptr::null();
    cu!(emulator_enqueue(stream, c"injected".as_ptr(), regions, 0, work, code as usize as *mut c_void))
}

#[test]
fn nothing_works_before_it_is_initialized() {
    let _turn = machine(&Options::default());
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuDeviceGetCount(Some(&mut out))), 3);
    assert_eq!(cu!(cuInit(1)), INVALID_VALUE);
    assert_eq!(cu!(cuInit(0)), 0);
    assert_eq!(get(|out| cu!(cuDeviceGetCount(out))), 1);
    assert_eq!(cu!(cuDeviceGet(Some(&mut out), 1)), 101);
    assert_eq!(cu!(cuDeviceGet(None, 0)), INVALID_VALUE);
    let mut address = MaybeUninit::uninit();
    assert_eq!(cu!(cuCtxSetCurrent(0)), 0);
    assert_eq!(cu!(cuMemAlloc_v2(Some(&mut address), 16)), INVALID_CONTEXT);
}

#[test]
fn a_machine_without_devices_says_so() {
    let _turn = machine(&Options { devices: 0, ..Options::default() });
    assert_eq!(cu!(cuInit(0)), 100);
}

#[test]
fn devices_describe_themselves() {
    let _turn = machine(&Options { devices: 2, capability: (9, 0), ..Options::default() });
    assert_eq!(cu!(cuInit(0)), 0);
    let mut name = [1_i8; 100];
    assert_eq!(cu!(cuDeviceGetName(name.as_mut_ptr(), 100, 1)), 0);
    // SAFETY: the driver ends names with zero.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"Emulated sm_90");
    assert_eq!(cu!(cuDeviceGetName(name.as_mut_ptr(), 4, 1)), 0);
    // SAFETY: likewise.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"Emu");
    assert_eq!(get(|out| cu!(cuDeviceTotalMem_v2(out, 0))), 1 << 30);
    assert_eq!(get(|out| cu!(cuDeviceGetAttribute(out, 75, 0))), 9);
    let uuids = [0, 1].map(|device| get(|out| cu!(cuDeviceGetUuid_v2(out, device))));
    assert_ne!(uuids[0], uuids[1]);
    assert_eq!(get(|out| cu!(cuDeviceCanAccessPeer(out, 0, 1))), 1);
    assert_eq!(get(|out| cu!(cuDeviceCanAccessPeer(out, 0, 0))), 0);
    assert_eq!(get(|out| cu!(cuDriverGetVersion(out))), 13000);
}

#[test]
fn every_code_has_a_name_and_a_description() {
    // SAFETY: both are strings of the driver.
    let text = |pointer: *const i8| unsafe { CStr::from_ptr(pointer) }.to_str().unwrap();
    assert_eq!(text(get(|out| cu!(cuGetErrorName(700, out)))), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(text(get(|out| cu!(cuGetErrorString(700, out)))), "an illegal memory access was encountered");
    assert_eq!(text(get(|out| cu!(cuGetErrorName(0, out)))), "CUDA_SUCCESS");
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuGetErrorName(12345, Some(&mut out))), INVALID_VALUE);
    // SAFETY: a null pointer was written.
    assert!(unsafe { out.assume_init() }.is_null());
}

#[test]
fn functions_are_found_by_name_in_their_newest_version() {
    let _turn = machine(&Options::default());
    let find = |name: &CStr| get(|out| cu!(cuGetProcAddress_v2(name.as_ptr(), out, 12080, 0, None)));
    assert_eq!(find(c"cuMemAlloc"), cuMemAlloc_v2 as *const c_void);
    assert_eq!(find(c"cuInit"), cuInit as *const c_void);
    let (mut out, mut status) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    assert_eq!(cu!(cuGetProcAddress_v2(c"cuNothing".as_ptr(), Some(&mut out), 0, 0, Some(&mut status))), 500);
}

#[test]
fn contexts_stack_and_primary_ones_are_counted() {
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    let first = context(0);
    assert_eq!(context(0), first);
    let second = get(|out| cu!(cuCtxCreate_v2(out, 0, 1)));
    assert_eq!(get(|out| cu!(cuCtxGetDevice(out))), 1);
    assert_eq!(get(|out| cu!(cuCtxPopCurrent_v2(out))), second);
    assert_eq!(get(|out| cu!(cuCtxGetCurrent(out))), first);
    assert_eq!(cu!(cuCtxDestroy_v2(first)), INVALID_CONTEXT);
    assert_eq!(cu!(cuCtxDestroy_v2(second)), 0);
    assert_eq!(cu!(cuCtxSetCurrent(second)), INVALID_CONTEXT);
    assert_eq!(cu!(cuDevicePrimaryCtxRelease_v2(0)), 0);
    assert_eq!(cu!(cuCtxSynchronize()), 0);
    assert_eq!(cu!(cuDevicePrimaryCtxRelease_v2(0)), 0);
    assert_eq!(cu!(cuCtxSynchronize()), INVALID_CONTEXT);
    assert_eq!(cu!(cuDevicePrimaryCtxRelease_v2(0)), INVALID_CONTEXT);
    assert_ne!(context(0), first);
}

#[test]
fn memory_is_counted_and_limited() {
    let _turn = machine(&Options::default());
    context(0);
    let free = || {
        let (mut free, mut total) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        assert_eq!(cu!(cuMemGetInfo_v2(Some(&mut free), Some(&mut total))), 0);
        // SAFETY: both were written.
        unsafe { (free.assume_init(), total.assume_init()) }
    };
    assert_eq!(free(), (1 << 30, 1 << 30));
    let address = allocate(1 << 29);
    assert_eq!(address % 256, 0);
    assert!(free().0 <= 1 << 29);
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuMemAlloc_v2(Some(&mut out), 3 << 28)), 2);
    assert_eq!(cu!(cuMemAlloc_v2(Some(&mut out), 0)), INVALID_VALUE);
    assert_eq!(cu!(cuMemFree_v2(address + 1)), INVALID_VALUE);
    assert_eq!(cu!(cuMemFree_v2(address)), 0);
    assert_eq!(free(), (1 << 30, 1 << 30));
    assert_eq!(cu!(cuMemFree_v2(0)), 0);
    assert!(inspect().findings().is_empty());
    assert_eq!(cu!(cuMemFree_v2(address)), INVALID_VALUE);
    let findings = inspect().findings();
    assert_eq!((findings.len(), findings[0].kind), (1, Kind::UseAfterFree));
}

#[test]
fn copies_go_everywhere_and_stay_inside() {
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    let first = context(0);
    let (a, b, host) = (allocate(100), allocate(100), pinned(100));
    let bytes: Vec<u8> = (0..100).collect();
    upload(a, &bytes);
    assert_eq!(cu!(cuMemcpyDtoD_v2(b + 10, a, 90)), 0);
    assert_eq!(download(b + 10, 90), bytes[..90]);
    assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, a, 100, 0)), 0);
    assert_eq!(cu!(cuCtxSynchronize()), 0);
    // SAFETY: so many bytes were allocated and written.
    assert_eq!(unsafe { std::slice::from_raw_parts(host as *const u8, 100) }, bytes);
    // A pinned address is a device address as well.
    assert_eq!(get(|out| cu!(cuMemHostGetDevicePointer_v2(out, host, 0))), host);
    assert_eq!(cu!(cuMemcpy(b, host, 100)), 0);
    assert_eq!(download(b, 100), bytes);
    let second = context(1);
    let c = allocate(100);
    assert_eq!(cu!(cuMemcpyPeer(c, second, a, first, 100)), 0);
    assert_eq!(download(c, 100), bytes);
    assert_eq!(cu!(cuMemcpyPeer(c, second, a, first + 1, 100)), INVALID_CONTEXT);
    assert!(inspect().findings().is_empty());

    // Out of bounds at either end, freed, and of the wrong kind: refused at the call, and reported.
    assert_eq!(cu!(cuMemcpyHtoD_v2(c + 1, bytes.as_ptr() as u64, 100)), INVALID_VALUE);
    assert_eq!(cu!(cuMemcpyDtoH_v2(bytes.as_ptr() as u64, a, 101)), INVALID_VALUE);
    assert_eq!(cu!(cuMemcpyHtoD_v2(a, c, 100)), INVALID_VALUE);
    assert_eq!(cu!(cuMemFree_v2(c)), 0);
    assert_eq!(cu!(cuMemcpyDtoD_v2(a, c, 100)), INVALID_VALUE);
    let kinds: Vec<Kind> = inspect().findings().iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [Kind::OutOfBounds, Kind::OutOfBounds, Kind::UseAfterFree]);
    // None of it is remembered by the context.
    assert_eq!(cu!(cuCtxSynchronize()), 0);
}

#[test]
fn rows_are_copied_and_filled_by_their_pitch() {
    let _turn = machine(&Options::default());
    context(0);
    let (mut pitch, mut address) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    assert_eq!(cu!(cuMemAllocPitch_v2(Some(&mut address), Some(&mut pitch), 12, 3, 4)), 0);
    // SAFETY: both were written.
    let (address, pitch) = unsafe { (address.assume_init(), pitch.assume_init()) };
    assert_eq!(pitch, 512);
    assert_eq!(cu!(cuMemsetD2D32_v2(address, pitch, 0x0102_0304, 3, 3)), 0);
    assert_eq!(cu!(cuMemsetD16_v2(address + 512, 0xabcd, 2)), 0);
    assert_eq!(cu!(cuMemsetD8_v2(address + 1024, 9, 1)), 0);
    let mut dense = [0_u8; 4 * 12];
    let copy = Copy2d {
        from_kind: 2,
        from_device: address,
        from_pitch: pitch,
        from_y: 1,
        to_kind: 1,
        to_host: dense.as_mut_ptr() as u64,
        to_pitch: 12,
        to_x: 4,
        to_y: 1,
        width: 8,
        height: 2,
        ..Copy2d::default()
    };
    assert_eq!(cu!(cuMemcpy2D_v2(&raw const copy)), 0);
    assert_eq!(dense[16..24], [0xcd, 0xab, 0xcd, 0xab, 4, 3, 2, 1]);
    assert_eq!(dense[28..36], [9, 3, 2, 1, 4, 3, 2, 1]);
    assert!(dense[..16].iter().chain(&dense[36..]).all(|&byte| byte == 0));
    assert_eq!(cu!(cuMemsetD32_v2(address + 2, 0, 1)), INVALID_VALUE);
    let tight = Copy2d { to_pitch: 4, ..copy };
    assert_eq!(cu!(cuMemcpy2D_v2(&raw const tight)), INVALID_VALUE);
}

#[test]
fn pointers_tell_what_they_are() {
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    context(0);
    let own = context(1);
    let (device, host) = (allocate(64), pinned(64));
    let mut kind = 0_u32;
    let pointer = (&raw mut kind).cast();
    assert_eq!(cu!(cuPointerGetAttribute(pointer, 2, device + 5)), 0);
    assert_eq!(kind, 2);
    assert_eq!(cu!(cuPointerGetAttribute(pointer, 2, host)), 0);
    assert_eq!(kind, 1);
    assert_eq!(cu!(cuPointerGetAttribute(pointer, 9, device)), 0);
    assert_eq!(kind, 1);
    let mut of = 0_u64;
    assert_eq!(cu!(cuPointerGetAttribute((&raw mut of).cast(), 1, device)), 0);
    assert_eq!(of, own);
    assert_eq!(cu!(cuPointerGetAttribute(pointer, 2, &raw const kind as u64)), INVALID_VALUE);
    let (mut base, mut bytes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    assert_eq!(cu!(cuMemGetAddressRange_v2(Some(&mut base), Some(&mut bytes), device + 63)), 0);
    // SAFETY: both were written.
    assert_eq!(unsafe { (base.assume_init(), bytes.assume_init()) }, (device, 64));
}

#[test]
fn registered_memory_is_pinned_until_it_is_not() {
    let _turn = machine(&deferred(1));
    context(0);
    let (host, device) = (vec![7_u8; 4096], allocate(4096));
    let address = host.as_ptr() as u64;
    assert_eq!(cu!(cuMemHostRegister_v2(address, 4096, 0)), 0);
    assert_eq!(cu!(cuMemHostRegister_v2(address + 8, 16, 0)), 712);
    assert_eq!(cu!(cuMemcpyHtoDAsync_v2(device, address, 4096, 0)), 0);
    // An asynchronous copy from it is not over yet.
    assert_eq!(cu!(cuStreamQuery(0)), 0);
    assert_eq!(download(device, 1), [7]);
    // Kernels do not reach it, and are told so before they try.
    let mut pointer = MaybeUninit::uninit();
    assert_eq!(cu!(cuMemHostGetDevicePointer_v2(Some(&mut pointer), address, 0)), 801);
    assert_eq!(cu!(cuMemHostUnregister(address)), 0);
    assert_eq!(cu!(cuMemHostUnregister(address)), 713);
    // Past the last address there is nothing to register.
    assert_eq!(cu!(cuMemHostRegister_v2(address, usize::MAX, 0)), 1);
    assert_eq!(cu!(cuMemHostRegister_v2(u64::MAX - 7, 64, 0)), 1);
    assert_eq!(cu!(cuMemHostUnregister(address)), 713);
    assert_eq!(cu!(cuMemcpyHtoD_v2(device, u64::MAX - 7, 64)), 1);
}

#[test]
fn pageable_memory_is_read_before_the_call_returns_and_pinned_memory_later() {
    let _turn = machine(&deferred(1));
    context(0);
    let (own, device, host) = (stream(), allocate(2), pinned(1));
    let mut pageable = [1_u8];
    // SAFETY: one byte is there.
    unsafe { (host as *mut u8).write(1) };
    assert_eq!(cu!(cuMemcpyHtoDAsync_v2(device, pageable.as_ptr() as u64, 1, own)), 0);
    assert_eq!(cu!(cuMemcpyHtoDAsync_v2(device + 1, host, 1, own)), 0);
    pageable[0] = 2;
    // SAFETY: one byte is there.
    unsafe { (host as *mut u8).write(2) };
    std::hint::black_box(&pageable);
    assert_eq!(cu!(cuStreamSynchronize(own)), 0);
    assert_eq!(download(device, 2), [1, 2]);
}

/// Fills with 1 in one stream and copies to the host in another; with or without an event between them.
fn produce_and_consume(seed: u64, with_event: bool) -> u8 {
    let _turn = machine(&deferred(seed));
    context(0);
    let (producer, consumer, event) = (stream(), stream(), event());
    let (data, host) = (allocate(1), pinned(1));
    assert_eq!(cu!(cuMemsetD8_v2(data, 0, 1)), 0);
    assert_eq!(cu!(cuCtxSynchronize()), 0);
    for value in 1..=5 {
        assert_eq!(cu!(cuMemsetD8Async(data, value, 1, producer)), 0);
    }
    assert_eq!(cu!(cuEventRecord(event, producer)), 0);
    assert_eq!(cu!(cuEventQuery(event)), NOT_READY);
    if with_event {
        assert_eq!(cu!(cuStreamWaitEvent(consumer, event, 0)), 0);
    }
    assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, consumer)), 0);
    assert_eq!(cu!(cuStreamSynchronize(consumer)), 0);
    // SAFETY: one byte is there, and nothing writes it any more.
    unsafe { (host as *const u8).read() }
}

#[test]
fn a_missing_event_shows_in_the_result_under_some_seed() {
    let without: Vec<u8> = (0..20).map(|seed| produce_and_consume(seed, false)).collect();
    assert!(without.iter().any(|&value| value != 5), "{without:?}");
    assert!((0..20).all(|seed| produce_and_consume(seed, true) == 5));
    // The same seed, the same order.
    let again: Vec<u8> = (0..20).map(|seed| produce_and_consume(seed, false)).collect();
    assert_eq!(without, again);
}

#[test]
fn the_default_stream_and_blocking_streams_wait_for_each_other() {
    for seed in 0..20 {
        let _turn = machine(&deferred(seed));
        context(0);
        let blocking = get(|out| cu!(cuStreamCreate(out, 0)));
        let (data, host) = (allocate(1), pinned(1));
        assert_eq!(cu!(cuMemsetD8Async(data, 1, 1, blocking)), 0);
        assert_eq!(cu!(cuMemsetD8Async(data, 2, 1, 0)), 0);
        assert_eq!(cu!(cuMemsetD8Async(data, 3, 1, 2)), 0);
        assert_eq!(cu!(cuMemsetD8Async(data, 4, 1, 1)), 0);
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, blocking)), 0);
        assert_eq!(cu!(cuStreamSynchronize(blocking)), 0);
        // SAFETY: one byte is there.
        assert_eq!(unsafe { (host as *const u8).read() }, 4, "seed {seed}");
    }
    // A stream that does not block is on its own.
    let overtakes = |seed| {
        let _turn = machine(&deferred(seed));
        context(0);
        let (own, data, host) = (stream(), allocate(1), pinned(1));
        assert_eq!(cu!(cuMemsetD8_v2(data, 0, 1)), 0);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
        assert_eq!(cu!(cuMemsetD8Async(data, 1, 1, 0)), 0);
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, own)), 0);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
        // SAFETY: one byte is there.
        unsafe { (host as *const u8).read() == 0 }
    };
    assert!((0..20).any(overtakes));
}

#[test]
fn an_event_stands_for_its_latest_record_when_it_is_waited_for() {
    for seed in 0..20 {
        let _turn = machine(&deferred(seed));
        context(0);
        let (a, b, event) = (stream(), stream(), event());
        // Never recorded: over.
        assert_eq!(cu!(cuEventQuery(event)), 0);
        assert_eq!(cu!(cuStreamWaitEvent(b, event, 0)), 0);
        assert_eq!(cu!(cuStreamSynchronize(b)), 0);
        let (data, host) = (allocate(1), pinned(1));
        assert_eq!(cu!(cuMemsetD8Async(data, 1, 1, a)), 0);
        assert_eq!(cu!(cuEventRecord(event, a)), 0);
        assert_eq!(cu!(cuStreamWaitEvent(b, event, 0)), 0);
        assert_eq!(cu!(cuMemsetD8Async(data, 2, 1, b)), 0);
        assert_eq!(cu!(cuEventRecord(event, b)), 0);
        assert_eq!(cu!(cuStreamWaitEvent(a, event, 0)), 0);
        // Destroyed while it is waited for: the waits stay.
        assert_eq!(cu!(cuEventDestroy_v2(event)), 0);
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, a)), 0);
        assert_eq!(cu!(cuStreamSynchronize(a)), 0);
        // SAFETY: one byte is there.
        assert_eq!(unsafe { (host as *const u8).read() }, 2, "seed {seed}");
        assert_eq!(cu!(cuEventQuery(event)), INVALID_HANDLE);
    }
}

#[test]
fn times_between_events_exist_where_they_are_kept() {
    let _turn = machine(&Options::default());
    context(0);
    let [from, to] = [0; 2].map(|flags| get(|out| cu!(cuEventCreate(out, flags))));
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuEventElapsedTime(Some(&mut out), from, to)), INVALID_HANDLE);
    assert_eq!(cu!(cuEventRecord(from, 0)), 0);
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(cu!(cuEventRecord(to, 0)), 0);
    assert!(get(|out| cu!(cuEventElapsedTime(out, from, to))) >= 2.0);
    let without = event();
    assert_eq!(cu!(cuEventRecord(without, 0)), 0);
    assert_eq!(cu!(cuEventElapsedTime(Some(&mut out), from, without)), INVALID_HANDLE);
}

#[test]
fn what_was_destroyed_is_refused() {
    let _turn = machine(&Options::default());
    context(0);
    let (own, data) = (stream(), allocate(4));
    assert_eq!(cu!(cuStreamDestroy_v2(own)), 0);
    assert_eq!(cu!(cuMemsetD8Async(data, 0, 4, own)), INVALID_HANDLE);
    assert_eq!(cu!(cuStreamSynchronize(own)), INVALID_HANDLE);
    assert_eq!(cu!(cuStreamDestroy_v2(own)), INVALID_HANDLE);
    assert_eq!(cu!(cuModuleUnload(own)), INVALID_HANDLE);
    let none = std::ptr::null();
    assert_eq!(cu!(cuLaunchKernel(own, 1, 1, 1, 1, 1, 1, 0, 0, none, none)), INVALID_HANDLE);
}

#[test]
fn what_a_destroyed_stream_still_does_is_waited_for() {
    for seed in 0..8 {
        let _turn = machine(&deferred(seed));
        context(0);
        let (own, data, host) = (stream(), allocate(1), pinned(1));
        assert_eq!(cu!(cuMemsetD8Async(data, 9, 1, own)), 0);
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, own)), 0);
        assert_eq!(cu!(cuStreamDestroy_v2(own)), 0);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
        // SAFETY: one byte is there.
        assert_eq!(unsafe { (host as *const u8).read() }, 9);
    }
}

#[test]
fn errors_surface_at_synchronizing_calls_and_stay() {
    for options in [Options::default(), deferred(3)] {
        let _turn = machine(&options);
        context(0);
        let (own, data, host) = (stream(), allocate(1), pinned(1));
        // SAFETY: one byte is there.
        unsafe { (host as *mut u8).write(5) };
        assert_eq!(inject(own, ILLEGAL_ADDRESS), 0);
        // Not told yet; what follows is not carried out.
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, data, 1, own)), 0);
        assert_eq!(cu!(cuStreamSynchronize(own)), ILLEGAL_ADDRESS);
        assert_eq!(cu!(cuMemsetD8_v2(data, 1, 1)), ILLEGAL_ADDRESS);
        let mut out = MaybeUninit::uninit();
        assert_eq!(cu!(cuMemAlloc_v2(Some(&mut out), 1)), ILLEGAL_ADDRESS);
        assert_eq!(cu!(cuCtxSynchronize()), ILLEGAL_ADDRESS);
        // SAFETY: one byte is there.
        assert_eq!(unsafe { (host as *const u8).read() }, 5);
        // A new context is well again, and nobody is blamed for leaks.
        assert_eq!(cu!(cuDevicePrimaryCtxReset_v2(0)), 0);
        assert!(inspect().findings().is_empty());
        context(0);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
    }
}

#[test]
fn memory_that_is_freed_before_its_copy_runs_is_found() {
    let found = |seed| {
        let _turn = machine(&deferred(seed));
        context(0);
        let (a, b, data, host) = (stream(), stream(), allocate(1), pinned(1));
        let pool = get(|out| cu!(cuMemAllocAsync(out, 1, a)));
        assert_eq!(cu!(cuMemsetD8Async(pool, 1, 1, a)), 0);
        assert_eq!(cu!(cuStreamSynchronize(a)), 0);
        // The free has no order with the copy.
        assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, pool, 1, b)), 0);
        assert_eq!(cu!(cuMemFreeAsync(pool, a)), 0);
        assert_eq!(cu!(cuMemFreeAsync(pool, a)), INVALID_VALUE);
        let code = cu!(cuCtxSynchronize());
        let kinds: Vec<Kind> = inspect().findings().iter().map(|finding| finding.kind).collect();
        assert_eq!(code == ILLEGAL_ADDRESS, kinds.contains(&Kind::UseAfterFree), "{code} {kinds:?}");
        assert!(data != pool);
        code == ILLEGAL_ADDRESS
    };
    let found: Vec<bool> = (0..20).map(found).collect();
    assert!(found.contains(&true) && found.contains(&false), "{found:?}");
}

#[test]
fn host_functions_run_in_order_and_may_not_call_the_driver() {
    unsafe extern "C" fn note(data: *mut c_void) {
        // SAFETY: the test passes this and waits for the stream.
        let codes = unsafe { &mut *data.cast::<Vec<u32>>() };
        codes.push(cu!(cuCtxSynchronize()));
    }
    for options in [Options::default(), deferred(1)] {
        let _turn = machine(&options);
        context(0);
        let (own, mut codes) = (stream(), Vec::<u32>::new());
        for _ in 0..3 {
            assert_eq!(cu!(cuLaunchHostFunc(own, Some(note), (&raw mut codes).cast())), 0);
        }
        assert_eq!(cu!(cuStreamSynchronize(own)), 0);
        assert_eq!(codes, [800; 3]);
    }
}

#[test]
fn peer_access_is_enabled_once() {
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    let (second, first) = (context(1), context(0));
    assert_eq!(cu!(cuCtxEnablePeerAccess(first, 0)), INVALID_CONTEXT);
    assert_eq!(cu!(cuCtxDisablePeerAccess(second)), 705);
    assert_eq!(cu!(cuCtxEnablePeerAccess(second, 0)), 0);
    assert_eq!(cu!(cuCtxEnablePeerAccess(second, 0)), 704);
    assert_eq!(cu!(cuCtxDisablePeerAccess(second)), 0);
}

#[test]
fn work_of_libraries_is_checked_for_what_it_touches() {
    unsafe extern "C" fn nothing(_: *mut c_void, _: u32) -> u32 {
        0
    }
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    let second = context(1);
    let other = allocate(64);
    context(0);
    let own = allocate(64);
    let run = |regions: &[emulator_link::Region]| {
        let data = std::ptr::null_mut();
        assert_eq!(cu!(emulator_enqueue(0, c"gemm".as_ptr(), regions.as_ptr(), regions.len(), nothing, data)), 0);
        let code = cu!(cuCtxSynchronize());
        (code, inspect().findings().first().map(|finding| finding.kind))
    };
    use emulator_link::Region;
    assert_eq!(run(&[Region { address: own, width: 8, pitch: 16, height: 4, write: 1 }]), (0, None));
    assert_eq!(cu!(cuCtxEnablePeerAccess(second, 0)), 0);
    assert_eq!(run(&[Region::read(other, 64)]), (0, None));
    assert_eq!(cu!(cuCtxDisablePeerAccess(second)), 0);
    assert_eq!(run(&[Region::read(other, 64)]), (ILLEGAL_ADDRESS, Some(Kind::PeerAccess)));
    assert_eq!(cu!(cuDevicePrimaryCtxReset_v2(0)), 0);
    inspect().findings();
    context(0);
    let own = allocate(64);
    assert_eq!(
        run(&[Region { address: own, width: 9, pitch: 16, height: 5, write: 0 }]),
        (ILLEGAL_ADDRESS, Some(Kind::OutOfBounds))
    );
}

#[test]
fn what_is_not_given_back_is_reported() {
    let _turn = machine(&Options::default());
    context(0);
    assert!(inspect().leaks().is_empty());
    let (kept, given) = (allocate(1000), allocate(10));
    let own = stream();
    event();
    pinned(5);
    assert_eq!(cu!(cuMemFree_v2(given)), 0);
    assert_eq!(inspect().leaks().len(), 4);
    assert_eq!(cu!(cuDevicePrimaryCtxRelease_v2(0)), 0);
    let findings = inspect().findings();
    assert!(findings.iter().all(|finding| finding.kind == Kind::Leak));
    let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages.len(), 4, "{messages:?}");
    assert!(messages[0].contains("1 allocation of cuMemAlloc not freed, 1000 bytes"), "{messages:?}");
    assert!(messages[0].contains(&format!("{kept:#x}")), "{messages:?}");
    assert_eq!(cu!(cuStreamSynchronize(own)), INVALID_CONTEXT);
    // Everything was taken back.
    context(0);
    assert!(inspect().leaks().is_empty());
}

#[test]
fn images_that_are_no_text_are_refused() {
    let _turn = machine(&Options::default());
    context(0);
    let load = |image: &[u8]| {
        let mut out = MaybeUninit::uninit();
        cu!(cuModuleLoadData(Some(&mut out), image.as_ptr()))
    };
    assert_eq!(load(b"\x7fELF\0"), 209);
    assert_eq!(load(b"hello\0"), 200);
    assert_eq!(load(b".version 8.0\n.target sm_80\n.address_size 64\nnonsense here;\0"), 218);
    // CUDA_ERROR_UNSUPPORTED_PTX_VERSION, and what a target or version does not have.
    assert_eq!(load(b".version 10.0\n.target sm_80\n.address_size 64\n\0"), 222);
    let elect = "\n.address_size 64\n.entry k() { .reg .b32 r; .reg .pred p; elect.sync r|p, -1; ret; }\0";
    assert_eq!(load(format!(".version 8.0\n.target sm_80{elect}").as_bytes()), 218);
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuModuleLoad(Some(&mut out), c"/nowhere.ptx".as_ptr())), 301);
    let (mut log, mut size) = ([1_u8; 64], 64_usize as *mut c_void);
    let mut values = [log.as_mut_ptr().cast::<c_void>(), size];
    let keys = [5_u32, 6];
    let image = b"\x7fELF\0";
    assert_eq!(cu!(cuModuleLoadDataEx(Some(&mut out), image.as_ptr(), 2, keys.as_ptr(), values.as_mut_ptr())), 209);
    size = values[1];
    assert!(log.starts_with(b"the image is a cubin"));
    assert_eq!((size as usize, log[63]), (64, 0));
}

#[test]
fn many_threads_may_use_it() {
    let _turn = machine(&deferred(5));
    let own = context(0);
    std::thread::scope(|scope| {
        for value in 1..5_u8 {
            scope.spawn(move || {
                assert_eq!(cu!(cuCtxSetCurrent(own)), 0);
                let (own, data) = (stream(), allocate(1 << 12));
                for _ in 0..50 {
                    assert_eq!(cu!(cuMemsetD8Async(data, value, 1 << 12, own)), 0);
                    let mut bytes = vec![0_u8; 1 << 12];
                    assert_eq!(cu!(cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr() as u64, data, 1 << 12, own)), 0);
                    assert!(bytes.iter().all(|&byte| byte == value));
                }
                assert_eq!(cu!(cuMemFree_v2(data)), 0);
                assert_eq!(cu!(cuStreamDestroy_v2(own)), 0);
            });
        }
    });
    assert!(inspect().leaks().is_empty());
}

#[test]
fn variables_of_a_module_hold_what_the_text_says() {
    let _turn = machine(&Options::checked(1));
    context(0);
    let text = c".version 8.0
.target sm_80
.address_size 64
.global .align 4 .f32 table[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};
.const .align 4 .u32 small[3] = {7, 8};
.global .align 1 .b8 text[6] = {104, 101, 108, 108, 111};
.global .align 8 .u64 pointers[3] = {generic(table)+8, generic(text), generic(zeros)};
.global .align 4 .u32 zeros[2];
.visible .entry k(.param .u64 out) {
    .reg .b64 %out, %p<4>; .reg .b32 %r<9>;
    ld.param.u64 %out, [out];
    cvta.to.global.u64 %out, %out;
    ld.global.u32 %r0, [table+12];
    ld.const.u32 %r1, [small+4];
    ld.const.u32 %r2, [small+8];
    ld.global.u64 %p0, [pointers];
    ld.u32 %r3, [%p0];
    ld.global.u64 %p1, [pointers+8];
    ld.u8 %r4, [%p1+1];
    ld.u8 %r5, [%p1+5];
    ld.global.u64 %p2, [pointers+16];
    ld.u32 %r6, [%p2+4];
    st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
    st.global.v2.u32 [%out+16], {%r4, %r5};
    st.global.u32 [%out+24], %r6;
    ret;
}";
    let module = get(|out| cu!(cuModuleLoadData(out, text.as_ptr().cast())));
    let function = get(|out| cu!(cuModuleGetFunction(out, module, c"k".as_ptr())));
    let output = allocate(28);
    let parameters = [(&raw const output).cast::<c_void>()];
    let none = std::ptr::null();
    assert_eq!(cu!(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, parameters.as_ptr(), none)), 0);
    let words: Vec<u32> =
        download(output, 28).chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [4f32.to_bits(), 8, 0, 3f32.to_bits(), u32::from(b'e'), 0, 0]);
    let found = inspect().findings();
    assert!(found.is_empty(), "{found:?}");
}
