//! Device memory: thread blocks of a launch, and operations of streams.

use super::super::global::{Labels, Launch, Shadow};
use super::super::order::Stamp;
use super::*;

const BASE: u64 = 0x7000_0000_0000;

fn stamp(stream: u32, sequence: u32, known: &[u32]) -> Stamp {
    Stamp { stream, sequence, known: known.into(), label: format!("operation {sequence} on stream {stream}").into() }
}

struct Device {
    launch: Launch,
    labels: Labels,
    shadow: Shadow,
}

impl Device {
    fn new() -> Self {
        Self { launch: Launch::new(stamp(1, 1, &[])), labels: Labels::default(), shadow: Shadow::new(BASE, 100_000) }
    }

    fn launch(&mut self, stamp: Stamp) {
        self.labels.add(&stamp);
        self.launch = Launch::new(stamp);
    }

    fn access(&self, clocks: &mut Clocks, thread: u32, pc: u32, access: Access, offset: u64) -> Option<Conflict> {
        one(thread, pc, access, offset, 4, |batch| self.shadow.access(&self.launch, &self.labels, clocks, batch))
    }

    fn copy(&self, range: std::ops::Range<u64>, write: bool, stamp: &Stamp) -> Option<Conflict> {
        self.labels.add(stamp);
        self.shadow.range_access(range, write, stamp, &self.labels)
    }
}

/// Each block writes its result, and the last one to raise the counter adds them up.
fn last_block(fence_before: bool, fence_after: bool, scope: Scope) -> Option<(u32, u32, u32)> {
    let device = Device::new();
    let count = 5;
    for block in 0..count {
        let mut clocks = Clocks::new(block, 64);
        for thread in 0..64 {
            let at = 1024 + 256 * u64::from(block) + 4 * u64::from(thread);
            assert_eq!(device.access(&mut clocks, thread, 1, Access::STORE, at), None);
        }
        barrier(&mut clocks, 0..2);
        if fence_before {
            clocks.fence(0, 1, scope);
        }
        assert_eq!(device.access(&mut clocks, 0, 2, ADD, 0), None);
        if fence_after {
            clocks.fence(0, 1, Scope::Device);
        }
        barrier(&mut clocks, 0..2);
        if block + 1 == count {
            assert_eq!(device.access(&mut clocks, 1, 3, Access::STORE, 0), None, "sets the counter back");
            for thread in 0..64 {
                for other in 0..count {
                    let at = 1024 + 256 * u64::from(other) + 4 * u64::from(63 - thread);
                    let conflict = device.access(&mut clocks, thread, 4, Access::LOAD, at);
                    if conflict.is_some() {
                        return earlier(conflict);
                    }
                }
            }
        }
    }
    None
}

#[test]
fn the_last_block_needs_fences_on_both_sides() {
    assert_eq!(last_block(true, true, Scope::Device), None);
    assert_eq!(last_block(false, true, Scope::Device), Some((0, 63, 1)));
    assert_eq!(last_block(true, false, Scope::Device), Some((0, 63, 1)));
    assert_eq!(last_block(true, true, Scope::Block), Some((0, 63, 1)), "a fence that reaches its own block only");
}

#[test]
fn a_grid_barrier_orders_all_blocks_again_and_again() {
    let device = Device::new();
    let mut blocks: Vec<Clocks> = (0..4).map(|block| Clocks::new(block, 64)).collect();
    for round in 0..3u64 {
        for clocks in &mut blocks {
            let at = 1024 + 4 * ((u64::from(clocks.block()) + round) % 4);
            assert_eq!(device.access(clocks, 40, 1, Access::STORE, at), None);
            barrier(clocks, 0..2);
            clocks.fence(0, 1, Scope::Device);
            assert_eq!(device.access(clocks, 0, 2, ADD, 0), None);
        }
        for clocks in &mut blocks {
            for _ in 0..3 {
                assert_eq!(device.access(clocks, 0, 3, RELAXED, 0), None);
            }
            clocks.fence(0, 1, Scope::Device);
            barrier(clocks, 0..2);
        }
        for clocks in &mut blocks {
            for cell in 0..4 {
                assert_eq!(device.access(clocks, 7, 4, Access::LOAD, 1024 + 4 * cell), None);
            }
        }
        if round == 2 {
            let conflict = device.access(&mut blocks[1], 9, 5, Access::STORE, 1024);
            assert!(earlier(conflict).is_some_and(|(_, thread, pc)| (thread, pc) == (7, 4)));
            return;
        }
        for clocks in &mut blocks {
            barrier(clocks, 0..2);
            clocks.fence(0, 1, Scope::Device);
            assert_eq!(device.access(clocks, 0, 6, ADD, 0), None);
        }
        for clocks in &mut blocks {
            assert_eq!(
                device.access(clocks, 0, 7, Access::strong(Touch::Load, Order::Acquire, Scope::Device), 0),
                None
            );
            barrier(clocks, 0..2);
        }
    }
}

#[test]
fn a_word_that_many_blocks_read_remembers_all_of_them() {
    let device = Device::new();
    let count = 2000;
    for block in 0..count {
        let mut clocks = Clocks::new(block, 256);
        for warp in 0..8 {
            for word in 0..4 {
                let offsets = [64 + 4 * word; 32];
                let batch = Batch {
                    warp,
                    mask: u32::MAX,
                    offsets: &offsets,
                    size: 4,
                    access: Access::LOAD,
                    pc: 1,
                    values: None,
                };
                assert_eq!(device.shadow.access(&device.launch, &device.labels, &mut clocks, &batch), None);
            }
        }
        // A lock: what its holder did is known to the next one. Block 1234 does not take it.
        if block != 1234 {
            let update = |order| Access::strong(Touch::Update, order, Scope::Device);
            barrier(&mut clocks, 0..8);
            device.access(&mut clocks, 0, 2, update(Order::AcquireRelease), 0);
            if block + 1 == count {
                let conflict = device.access(&mut clocks, 0, 3, Access::STORE, 64);
                assert_eq!(earlier(conflict).map(|(block, _, pc)| (block, pc)), Some((1234, 1)));
            }
        }
    }
}

#[test]
fn atomics_of_block_scope_race_between_blocks() {
    let device = Device::new();
    let narrow = Access::strong(Touch::Update, Order::Relaxed, Scope::Block);
    let (mut a, mut b) = (Clocks::new(0, 32), Clocks::new(1, 32));
    assert_eq!(device.access(&mut a, 3, 1, narrow, 0), None);
    assert_eq!(device.access(&mut a, 4, 1, narrow, 0), None);
    assert_eq!(earlier(device.access(&mut b, 5, 2, narrow, 0)), Some((0, 4, 1)));
    assert_eq!(device.access(&mut a, 3, 1, ADD, 64), None);
    assert_eq!(device.access(&mut b, 3, 1, ADD, 64), None);
}

#[test]
fn two_streams_need_an_event() {
    let mut device = Device::new();
    device.launch(stamp(1, 1, &[]));
    let write = |device: &Device| device.access(&mut Clocks::new(7, 64), 40, 12, Access::STORE, 400);
    assert_eq!(write(&device), None);
    // Without an event.
    device.launch(stamp(2, 1, &[0, 0]));
    let conflict = device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 400);
    assert_eq!(
        conflict.map(|conflict| (conflict.to_string(), conflict.other)),
        Some((
            "read without order after a write by operation 1 on stream 1".to_owned(),
            Other::Operation { label: "operation 1 on stream 1".into(), writes: true, at: Some((Some((7, 40)), 12)) }
        ))
    );
    // With an event, or on the same stream.
    for later in [stamp(2, 2, &[0, 1]), stamp(1, 2, &[])] {
        device.launch(later);
        assert_eq!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 400), None);
    }
    // The event came before the second launch on the stream.
    device.launch(stamp(1, 3, &[0, 0, 2]));
    assert_eq!(write(&device), None);
    device.launch(stamp(3, 1, &[0, 2, 2]));
    assert!(write(&device).is_some());
}

#[test]
fn copies_are_ordered_as_kernels_are() {
    let mut device = Device::new();
    assert_eq!(device.copy(0..100_000, true, &stamp(1, 1, &[])), None);
    device.launch(stamp(1, 2, &[]));
    assert_eq!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 99_996), None);
    assert_eq!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::STORE, 50_000), None);
    let read = device.copy(49_000..50_001, false, &stamp(2, 1, &[0, 1]));
    assert_eq!(read.map(|found| (found.offset, found.writes)), Some((50_000, false)));
    assert_eq!(device.copy(50_004..60_000, false, &stamp(2, 2, &[0, 1])), None, "beside what the kernel wrote");
    let freed = device.copy(0..100_000, true, &stamp(3, 1, &[0, 2]));
    let other = Other::Operation { label: "operation 1 on stream 2".into(), writes: false, at: None };
    assert_eq!(freed.map(|found| found.other), Some(other));
    device.launch(stamp(3, 2, &[]));
    assert_eq!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 50_004), None, "whole pages are one again");
    device.launch(stamp(4, 1, &[]));
    assert!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 12).is_some());
    assert_eq!(device.access(&mut Clocks::new(0, 32), 1, 2, Access::LOAD, 1 << 40), None, "bounds are others' concern");
}

#[test]
fn labels_of_long_ago_are_forgotten() {
    let device = Device::new();
    device.copy(0..4, true, &stamp(1, 1, &[]));
    for sequence in 1..5000 {
        device.labels.add(&stamp(2, sequence, &[]));
    }
    let conflict = device.copy(0..4, false, &stamp(3, 1, &[]));
    assert!(conflict.is_some_and(|found| found.to_string().contains("an earlier operation")));
}
