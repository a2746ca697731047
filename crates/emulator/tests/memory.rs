//! What the driver keeps of memory that is given back: next to nothing, by the count of every byte that it allocates.

use emulator::check::order::Stamp;
use emulator::memory::{Memory, Owner, Touch};
use emulator::report::Findings;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with a count of the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator, whose promises these are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pages of this process that lie in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number")
}

#[test]
fn a_hundred_thousand_allocations_leave_no_more_than_ten_thousand() {
    const BYTES: u64 = 64 << 10;
    let (memory, findings) = (Memory::new(1, 1 << 20).expect("addresses"), Findings::default());
    memory.watch(true, true);
    let kept = memory.allocate(Owner::Device(0), BYTES).expect("room");
    let cycle = |sequence: u32| {
        let address = memory.allocate(Owner::Device(0), BYTES).expect("what was freed is room again");
        let stamp = Stamp { stream: 1, sequence, known: [].into(), label: "a copy".into() };
        // Part of a page has a cell for each word.
        memory.touch(address + 8..address + 100, Touch::Write, &stamp, &findings);
        // SAFETY: the bytes were allocated above, and nobody else has the address.
        unsafe { (address as *mut u8).write_bytes(1, BYTES as usize) };
        assert_eq!(memory.snapshot().len(), 2);
        assert_eq!(memory.free(address), Ok(BYTES));
        address
    };
    let first = cycle(1);
    for sequence in 2..20_000 {
        cycle(sequence);
    }
    let before = (IN_USE.load(Ordering::Relaxed), resident());
    for sequence in 20_000..100_000 {
        cycle(sequence);
    }
    let last = cycle(100_000);
    let after = (IN_USE.load(Ordering::Relaxed), resident());
    // Of every allocation there are 8 KiB of initialization bits and 72 KiB of cells, and 64 KiB of pages.
    assert!(after.0 < before.0 + (64 << 10), "{before:?} {after:?}");
    assert!(after.1 < before.1 + 1024, "{before:?} {after:?}");
    assert_eq!(memory.freed(last), Some(last..last + BYTES));
    assert_eq!(memory.freed(first), None, "the oldest are forgotten");
    assert!(memory.find(kept).is_some() && memory.find(last).is_none());
    assert!(findings.take().is_empty());
}
