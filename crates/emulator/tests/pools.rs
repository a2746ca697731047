//! Memory pools: what is in use, what is held, what fits, and that memory of a pool is there only between its allocation and
//! its free in the order of streams.

#[macro_use]
#[path = "support/calls.rs"]
mod calls;

use calls::{allocate, context, deferred, event, get, machine, pinned, stream};
use emulator::api::contexts::*;
use emulator::api::devices::*;
use emulator::api::memory::*;
use emulator::api::pools::*;
use emulator::api::streams::*;
use emulator::driver::inspect;
use emulator::options::Options;
use emulator::report::Kind;
use std::mem::MaybeUninit;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_SUPPORTED: u32 = 801;

const THRESHOLD: u32 = 4;
const RESERVED: u32 = 5;
const RESERVED_HIGH: u32 = 6;
const USED: u32 = 7;
const USED_HIGH: u32 = 8;

const KIB: usize = 1 << 10;

fn pool(device: i32) -> u64 {
    get(|out| cu!(cuDeviceGetDefaultMemPool(out, device)))
}

fn attribute(pool: u64, attribute: u32) -> u64 {
    let mut value = u64::MAX;
    assert_eq!(cu!(cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast())), 0);
    value
}

fn set(pool: u64, attribute: u32, value: u64) -> u32 {
    cu!(cuMemPoolSetAttribute(pool, attribute, (&raw const value).cast()))
}

/// In use and held, in KiB: now, and at most.
fn counts(pool: u64) -> [u64; 4] {
    [USED, USED_HIGH, RESERVED, RESERVED_HIGH].map(|number| attribute(pool, number) / KIB as u64)
}

fn allocate_in(stream: u64, bytes: usize) -> Result<u64, u32> {
    let mut out = MaybeUninit::uninit();
    match cu!(cuMemAllocAsync(Some(&mut out), bytes, stream)) {
        // SAFETY: functions that succeed have written their result.
        0 => Ok(unsafe { out.assume_init() }),
        code => Err(code),
    }
}

fn free_in(stream: u64, address: u64) {
    assert_eq!(cu!(cuMemFreeAsync(address, stream)), 0);
}

fn fill(stream: u64, address: u64, bytes: usize) {
    assert_eq!(cu!(cuMemsetD8Async(address, 1, bytes, stream)), 0);
}

fn free_memory() -> usize {
    let (mut free, mut total) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    assert_eq!(cu!(cuMemGetInfo_v2(Some(&mut free), Some(&mut total))), 0);
    // SAFETY: both were written.
    unsafe { free.assume_init() }
}

/// Of each device 64 KiB.
fn small(options: Options) -> Options {
    Options { memory: 64 << 10, ..options }
}

#[test]
fn what_is_in_use_and_at_most_is_counted_by_the_calls() {
    for options in [Options { devices: 2, ..Options::default() }, deferred(1), deferred(2)] {
        let _turn = machine(&options);
        context(0);
        let (pool, other, own) = (pool(0), pool(1), stream());
        assert_eq!(get(|out| cu!(cuDeviceGetMemPool(out, 0))), pool);
        assert_eq!(counts(pool), [0; 4]);
        let [a, b] = [4, 8].map(|kib| allocate_in(own, kib * KIB).unwrap());
        fill(own, a, 4 * KIB);
        assert_eq!(counts(pool), [12, 12, 12, 12]);
        free_in(own, a);
        // Whether it was carried out or not.
        assert_eq!(counts(pool), [8, 12, 12, 12]);
        let c = allocate_in(own, 2 * KIB).unwrap();
        assert_eq!(counts(pool), [10, 12, 12, 12]);
        free_in(own, b);
        assert_eq!(set(pool, USED_HIGH, 0), 0);
        assert_eq!(counts(pool), [2, 2, 12, 12]);
        // By default a pool keeps nothing beyond a synchronization.
        assert_eq!(cu!(cuStreamSynchronize(own)), 0);
        assert_eq!(counts(pool), [2, 2, 2, 12]);
        assert_eq!(set(pool, RESERVED_HIGH, 0), 0);
        assert_eq!(counts(pool), [2, 2, 2, 2]);
        // Freed in no stream, and by another function than its own: likewise.
        assert_eq!(cu!(cuMemFree_v2(c)), 0);
        let device = allocate(4 * KIB);
        free_in(own, device);
        assert_eq!((counts(pool), counts(other)), ([0, 2, 2, 2], [0; 4]));
    }
}

#[test]
fn an_allocation_takes_multiples_of_512_bytes() {
    let _turn = machine(&small(Options::default()));
    context(0);
    let (pool, own) = (pool(0), stream());
    let first = allocate_in(own, 1).unwrap();
    assert_eq!((attribute(pool, USED), free_memory()), (512, 64 * KIB - 512));
    allocate_in(own, 513).unwrap();
    allocate(1);
    assert_eq!((attribute(pool, USED), free_memory()), (1536, 64 * KIB - 2048));
    assert_eq!(allocate_in(own, 64 * KIB - 2047), Err(OUT_OF_MEMORY));
    allocate_in(own, 64 * KIB - 2048).unwrap();
    assert_eq!(cu!(cuMemFree_v2(first)), 0);
    assert_eq!(attribute(pool, USED), 64 * KIB as u64 - 1024);
}

#[test]
fn a_pool_keeps_what_its_threshold_says_until_it_is_trimmed_or_others_need_it() {
    let _turn = machine(&small(Options::default()));
    context(0);
    let (pool, own) = (pool(0), stream());
    assert_eq!((set(pool, THRESHOLD, u64::MAX), attribute(pool, THRESHOLD)), (0, u64::MAX));
    free_in(own, allocate_in(own, 32 * KIB).unwrap());
    let kept = allocate_in(own, 8 * KIB).unwrap();
    for synchronize in [|_| cu!(cuCtxSynchronize()), |own| cu!(cuStreamSynchronize(own))] {
        assert_eq!(synchronize(own), 0);
        assert_eq!(counts(pool), [8, 32, 32, 32]);
    }
    // What the pool holds is not free, though an allocation may have it.
    assert_eq!(free_memory(), 32 * KIB);
    assert_eq!(cu!(cuMemPoolTrimTo(pool, 16 * KIB)), 0);
    assert_eq!((counts(pool), free_memory()), ([8, 32, 16, 32], 48 * KIB));
    let others = allocate(50 * KIB);
    assert_eq!((counts(pool), free_memory()), ([8, 32, 14, 32], 0));
    assert_eq!(allocate_in(own, 7 * KIB), Err(OUT_OF_MEMORY));
    assert_eq!(cu!(cuMemFree_v2(others)), 0);
    assert_eq!(cu!(cuMemPoolTrimTo(pool, 0)), 0);
    assert_eq!(counts(pool), [8, 32, 8, 32]);
    // Waiting for an event counts.
    free_in(own, kept);
    assert_eq!(set(pool, THRESHOLD, 4 << 10), 0);
    let event = event();
    assert_eq!(cu!(cuEventRecord(event, own)), 0);
    assert_eq!(cu!(cuEventSynchronize(event)), 0);
    assert_eq!(counts(pool), [0, 32, 4, 32]);
}

#[test]
fn what_is_freed_in_a_stream_fits_again_at_once() {
    for seed in 0..8 {
        let _turn = machine(&small(deferred(seed)));
        context(0);
        let (pool, own, beside, host) = (pool(0), stream(), stream(), pinned(64 * KIB));
        // Nobody synchronizes: 64 times the memory that there is.
        for _ in 0..64 {
            let bytes = 40 * KIB;
            let address = allocate_in(own, bytes).unwrap();
            fill(own, address, bytes);
            assert_eq!(allocate_in(own, 25 * KIB), Err(OUT_OF_MEMORY));
            assert_eq!(cu!(cuMemcpyDtoHAsync_v2(host, address, bytes, own)), 0);
            free_in(own, address);
            // In another stream too, which a real pool lets wait.
            free_in(beside, allocate_in(beside, bytes).unwrap());
        }
        assert_eq!(counts(pool)[..2], [0, 40]);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
        assert_eq!(counts(pool), [0, 40, 0, 40]);
        assert!(inspect().findings().is_empty() && inspect().leaks().len() == 2);
    }
}

#[test]
fn what_cannot_be_freed_yet_holds_nobody_up() {
    unsafe extern "C" fn wait(data: *mut std::ffi::c_void, action: u32) -> u32 {
        // SAFETY: the test passes a flag that outlives the work.
        let ready = unsafe { &*data.cast::<std::sync::atomic::AtomicBool>() };
        match action == emulator_link::RUN && !ready.load(std::sync::atomic::Ordering::Relaxed) {
            true => emulator_link::NOT_READY,
            false => 0,
        }
    }
    for options in [Options::default(), deferred(1)] {
        let _turn = machine(&small(options));
        context(0);
        let (own, ready) = (stream(), std::sync::atomic::AtomicBool::new(false));
        let (regions, data) = (std::ptr::null(), (&raw const ready).cast_mut().cast());
        let enqueue = emulator::api::inspect::emulator_enqueue;
        // SAFETY: nothing is accessed, and the flag is there until the context was synchronized.
        assert_eq!(unsafe { enqueue(own, c"a collective".as_ptr(), regions, 0, wait, data) }, 0);
        let first = allocate_in(own, 40 * KIB).unwrap();
        free_in(own, first);
        let second = allocate_in(own, 40 * KIB).unwrap();
        fill(own, second, 40 * KIB);
        free_in(own, second);
        ready.store(true, std::sync::atomic::Ordering::Relaxed);
        let flag = event();
        assert_eq!(cu!(cuEventRecord(flag, stream())), 0);
        assert_eq!(cu!(cuCtxSynchronize()), 0);
        assert!(inspect().findings().is_empty());
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let _turn = machine(&Options { devices: 2, ..Options::default() });
    context(0);
    let (first, second, own) = (pool(0), pool(1), stream());
    assert_ne!(first, second);
    assert_eq!([set(first, USED_HIGH, 1), set(first, RESERVED_HIGH, 5)], [INVALID_VALUE; 2]);
    assert_eq!([set(first, USED, 0), set(first, RESERVED, 0), set(first, 99, 0)], [INVALID_VALUE; 3]);
    let mut value = 0_u64;
    assert_eq!(cu!(cuMemPoolGetAttribute(first, 99, (&raw mut value).cast())), INVALID_VALUE);
    assert_eq!(cu!(cuMemPoolGetAttribute(0, USED, (&raw mut value).cast())), INVALID_VALUE);
    assert_eq!(cu!(cuMemPoolGetAttribute(3, USED, (&raw mut value).cast())), INVALID_VALUE);
    assert_eq!(cu!(cuMemPoolGetAttribute(first, USED, std::ptr::null_mut())), INVALID_VALUE);
    assert_eq!(cu!(cuMemPoolSetAttribute(first, THRESHOLD, std::ptr::null())), INVALID_VALUE);
    assert_eq!(cu!(cuMemPoolTrimTo(own, 0)), INVALID_VALUE);
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuDeviceGetDefaultMemPool(Some(&mut out), 2)), 101);
    assert_eq!(cu!(cuMemAllocFromPoolAsync(Some(&mut out), 8, second, own)), NOT_SUPPORTED);
    assert_eq!(cu!(cuMemAllocFromPoolAsync(Some(&mut out), 8, first, own)), 0);
    // The first three are of 32 bits, and on by default.
    let mut narrow = [7_u32; 2];
    assert_eq!(cu!(cuMemPoolGetAttribute(first, 1, narrow.as_mut_ptr().cast())), 0);
    assert_eq!(narrow, [1, 7]);
    let off = 0_u32;
    assert_eq!(cu!(cuMemPoolSetAttribute(first, 3, (&raw const off).cast())), 0);
    assert_eq!(cu!(cuMemPoolGetAttribute(first, 3, narrow.as_mut_ptr().cast())), 0);
    assert_eq!(narrow, [0, 7]);
}

#[test]
fn devices_may_have_no_pools() {
    let _turn = machine(&Options { memory_pools: false, ..Options::default() });
    context(0);
    assert_eq!(get(|out| cu!(cuDeviceGetAttribute(out, 115, 0))), 0);
    let mut out = MaybeUninit::uninit();
    assert_eq!(cu!(cuDeviceGetDefaultMemPool(Some(&mut out), 0)), NOT_SUPPORTED);
    assert_eq!(allocate_in(stream(), 8), Err(NOT_SUPPORTED));
    assert_eq!(cu!(cuMemFree_v2(allocate(8))), 0);
}

#[test]
fn a_context_that_ends_takes_its_memory_from_the_pool() {
    let _turn = machine(&deferred(3));
    context(0);
    let (pool, own) = (pool(0), stream());
    let [kept, freed] = [allocate_in(own, KIB).unwrap(), allocate_in(own, KIB).unwrap()];
    fill(own, kept, KIB);
    free_in(own, freed);
    assert_eq!(counts(pool)[0], 1);
    assert_eq!(cu!(cuDevicePrimaryCtxReset_v2(0)), 0);
    assert_eq!(counts(pool)[..2], [0, 2]);
    context(0);
    assert_eq!(inspect().findings().iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::Leak, Kind::Leak]);
}

/// The kinds of what is found when memory of one stream is used in another, with or without an event behind its allocation
/// and before its free.
fn used_elsewhere(options: Options, behind: bool, before: bool) -> Vec<Kind> {
    let _turn = machine(&options);
    context(0);
    let (own, other, event) = (stream(), stream(), event());
    let address = allocate_in(own, 5000).unwrap();
    if behind {
        assert_eq!(cu!(cuEventRecord(event, own)), 0);
        assert_eq!(cu!(cuStreamWaitEvent(other, event, 0)), 0);
    }
    fill(other, address, 5000);
    if before {
        assert_eq!(cu!(cuEventRecord(event, other)), 0);
        assert_eq!(cu!(cuStreamWaitEvent(own, event, 0)), 0);
    }
    free_in(own, address);
    cu!(cuCtxSynchronize());
    inspect().findings().iter().map(|finding| finding.kind).collect()
}

#[test]
fn memory_that_is_used_before_its_allocation_or_after_its_free_is_a_race() {
    let orders = [Options::checked(1), Options { deferred: true, ..Options::checked(2) }];
    for options in (3..9).map(|seed| Options { deferred: true, ..Options::checked(seed) }).chain(orders) {
        assert_eq!(used_elsewhere(options.clone(), true, true), []);
        for (behind, before) in [(true, false), (false, true), (false, false)] {
            let kinds = used_elsewhere(options.clone(), behind, before);
            // Where the free comes first, in fact, the fill finds nothing to race with.
            let expected = |kind: &Kind| matches!(kind, Kind::Race) || !before && *kind == Kind::UseAfterFree;
            assert!(!kinds.is_empty() && kinds.iter().all(expected), "{behind} {before}: {kinds:?}");
        }
    }
}
