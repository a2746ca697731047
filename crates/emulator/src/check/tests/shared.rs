//! Shared memory and barriers.

use super::super::shared::Shared;
use super::*;

struct Block {
    clocks: Clocks,
    memory: Shared,
}

impl Block {
    fn new(threads: u32) -> Self {
        Self { clocks: Clocks::new(0, threads), memory: Shared::new(4096) }
    }

    fn access(&mut self, thread: u32, pc: u32, access: Access, offset: u64, size: usize) -> Option<Conflict> {
        one(thread, pc, access, offset, size, |batch| self.memory.access(&mut self.clocks, batch))
    }

    fn load(&mut self, thread: u32, pc: u32) -> Option<(u32, u32, u32)> {
        earlier(self.access(thread, pc, Access::LOAD, 64, 4))
    }

    fn store(&mut self, thread: u32, pc: u32) -> Option<(u32, u32, u32)> {
        earlier(self.access(thread, pc, Access::STORE, 64, 4))
    }
}

#[test]
fn a_barrier_orders_and_without_it_there_is_a_race() {
    let mut block = Block::new(128);
    assert_eq!(block.store(5, 1), None);
    assert_eq!(block.load(5, 2), None, "a thread's own accesses are in order");
    barrier(&mut block.clocks, 0..4);
    assert_eq!(block.load(70, 3), None);
    assert_eq!(block.load(71, 3), None, "reads do not race");
    assert_eq!(block.store(100, 4), Some((0, 70, 3)), "a write after a read");
    assert_eq!(block.load(7, 5), Some((0, 100, 4)), "a read after a write");
    assert_eq!(block.store(8, 6).map(|who| who.1), Some(100), "a write after a write");
    barrier(&mut block.clocks, 0..4);
    assert_eq!(block.store(9, 7), None);
}

#[test]
fn reads_before_a_barrier_may_be_written_after_it_only() {
    let mut block = Block::new(64);
    for thread in 0..64 {
        assert_eq!(block.load(thread, 1), None);
    }
    barrier(&mut block.clocks, 0..2);
    assert_eq!(block.load(3, 2), None);
    assert_eq!(block.store(3, 3), None, "the others read before the barrier");
    assert_eq!(block.store(4, 4), Some((0, 3, 3)));
}

#[test]
fn warp_sync_orders_the_lanes_in_its_mask() {
    let mut block = Block::new(64);
    block.store(0, 1);
    assert_eq!(block.load(1, 2), Some((0, 0, 1)), "lanes of a warp are not in lockstep");
    block.clocks.warp_sync(0, 0x0000_ffff);
    assert_eq!(block.store(2, 3), None, "both the write and the read are before");
    block.clocks.warp_sync(0, 0x0000_ffff);
    assert_eq!(block.load(16, 4), Some((0, 2, 3)), "a lane outside of the mask");
    block.clocks.warp_sync(0, u32::MAX);
    assert_eq!(block.load(31, 5), None);
    assert_eq!(block.load(32, 6), Some((0, 2, 3)), "another warp");
}

#[test]
fn what_one_lane_learned_a_warp_sync_passes_on() {
    let mut block = Block::new(96);
    block.store(64, 1);
    let mut named = Gathering::default();
    block.clocks.wait(&mut named, 0, 1);
    block.clocks.wait(&mut named, 2, u32::MAX);
    block.clocks.complete(&mut named);
    assert_eq!(block.load(1, 2), Some((0, 64, 1)));
    block.clocks.warp_sync(0, 0b11);
    assert_eq!(block.load(1, 3), None);
    assert_eq!(block.load(2, 3), Some((0, 64, 1)));
}

#[test]
fn a_named_barrier_orders_those_who_take_part() {
    let mut block = Block::new(128);
    block.store(0, 1);
    barrier(&mut block.clocks, 0..2);
    assert_eq!(block.load(63, 2), None);
    assert_eq!(block.load(64, 3), Some((0, 0, 1)));
}

#[test]
fn arriving_releases_and_does_not_acquire() {
    let mut block = Block::new(64);
    let mut full = Gathering::default();
    let write = |block: &mut Block, thread, offset| earlier(block.access(thread, 1, Access::STORE, offset, 4));
    let read = |block: &mut Block, thread, offset| earlier(block.access(thread, 2, Access::LOAD, offset, 4));
    // The consumer, warp 1, comes first and waits; the producer, warp 0, arrives and goes on.
    assert_eq!(write(&mut block, 40, 0), None);
    block.clocks.wait(&mut full, 1, u32::MAX);
    assert_eq!(write(&mut block, 3, 8), None);
    block.clocks.arrive(&mut full, 0, u32::MAX);
    assert_eq!(write(&mut block, 3, 16), None, "after its arrival");
    block.clocks.complete(&mut full);
    assert_eq!(read(&mut block, 33, 8), None);
    assert_eq!(read(&mut block, 33, 16), Some((0, 3, 1)));
    assert_eq!(read(&mut block, 3, 0), Some((0, 40, 1)), "who only arrives knows nothing of the others");
}

#[test]
fn the_last_warp_may_be_a_part_of_one() {
    let mut block = Block::new(40);
    block.store(39, 1);
    let mut gathering = Gathering::default();
    block.clocks.wait(&mut gathering, 0, u32::MAX);
    block.clocks.wait(&mut gathering, 1, 0xff);
    block.clocks.complete(&mut gathering);
    assert_eq!(block.load(0, 2), None);
    assert!(block.clocks.together(1).is_some());
}

#[test]
fn neighbouring_bytes_do_not_race_and_each_byte_is_remembered() {
    let mut block = Block::new(32);
    for thread in 0..4 {
        assert_eq!(block.access(thread, thread, Access::STORE, 64 + u64::from(thread), 1), None);
    }
    for thread in 0..4 {
        let reader = (thread + 1) % 4;
        let conflict = block.access(reader, 9, Access::LOAD, 64 + u64::from(thread), 1);
        assert_eq!(earlier(conflict), Some((0, thread, thread)));
    }
    assert_eq!(block.access(5, 10, Access::STORE, 68, 8), None);
    assert_eq!(earlier(block.access(6, 11, Access::STORE, 66, 2)).map(|who| who.1), Some(2));
}

#[test]
fn strong_accesses_race_with_weak_ones_only() {
    let mut block = Block::new(64);
    for thread in 0..64 {
        assert_eq!(block.access(thread, 1, ADD, 64, 4), None);
    }
    assert_eq!(block.access(2, 2, RELAXED, 64, 4), None);
    assert_eq!(block.access(9, 3, PUBLISH, 64, 4), None);
    assert_eq!(block.load(30, 4), Some((0, 63, 1)), "the last of the chain of updates");
    barrier(&mut block.clocks, 0..2);
    assert_eq!(block.load(30, 5), None);
    assert_eq!(earlier(block.access(31, 6, ADD, 64, 4)), Some((0, 30, 5)));
}

#[test]
fn a_plain_access_follows_the_atomics_that_its_thread_saw() {
    // Causality order: an access observed by an update is ordered before what comes after the update.
    let mut block = Block::new(64);
    block.access(40, 1, ADD, 64, 4);
    block.access(41, 1, ADD, 64, 4);
    block.access(3, 2, ADD, 64, 4);
    assert_eq!(block.store(3, 3), None, "the last one sets the counter back");
    let mut block = Block::new(64);
    block.access(40, 1, PUBLISH, 64, 4);
    block.access(3, 2, RELAXED, 64, 4);
    assert_eq!(block.load(3, 3), None);
    assert_eq!(block.load(4, 3), Some((0, 40, 1)));
}

#[test]
fn the_last_lane_of_an_atomic_saw_the_others() {
    let mut block = Block::new(32);
    let offsets = [64; 32];
    let batch = Batch { warp: 0, mask: u32::MAX, offsets: &offsets, size: 4, access: ADD, pc: 1, values: None };
    assert_eq!(block.memory.access(&mut block.clocks, &batch), None);
    assert_eq!(block.load(30, 2), Some((0, 31, 1)));
    assert_eq!(block.load(31, 2), None, "it got the last ticket");
}

#[test]
fn lanes_of_one_store_race_if_their_values_differ() {
    let offsets = [128; 32];
    let mut values = [[1; 32]; 32];
    let mut block = Block::new(32);
    let mut store = |values: &_| {
        let batch = Batch {
            warp: 0,
            mask: u32::MAX,
            offsets: &offsets,
            size: 4,
            access: Access::STORE,
            pc: 1,
            values: Some(values),
        };
        block.memory.access(&mut block.clocks, &batch)
    };
    assert_eq!(store(&values), None);
    values[17][3] = 2;
    assert_eq!(store(&values).map(|found| (found.lane, found.other)), Some((17, Other::SameInstruction { thread: 0 })));
}

#[test]
fn an_asynchronous_copy_must_be_waited_for_and_then_a_barrier() {
    let mut block = Block::new(64);
    assert_eq!(block.memory.begin(&block.clocks, (3, 1), 64, 16, true), None);
    let flying = Some(Other::InFlight { thread: 3, pc: 1, writes: true });
    barrier(&mut block.clocks, 0..2);
    assert_eq!(block.access(3, 2, Access::LOAD, 64, 4).map(|found| found.other), flying, "even its issuer");
    assert_eq!(block.access(40, 2, Access::STORE, 72, 8).map(|found| found.other), flying);
    assert_eq!(block.access(40, 2, Access::LOAD, 80, 4), None, "beyond its end");
    block.memory.land(&block.clocks, 64, 16, false);
    assert_eq!(block.load(3, 3), None);
    assert_eq!(block.load(40, 4), Some((0, 3, 1)), "waited for, but no barrier since");
    barrier(&mut block.clocks, 0..2);
    assert_eq!(block.load(40, 5), None);
    // The next stage of the pipeline: overwritten while another thread may still read.
    let early = block.memory.begin(&block.clocks, (3, 6), 64, 16, true);
    assert_eq!(earlier(early), Some((0, 40, 5)));
}

#[test]
fn a_copy_out_of_shared_memory_forbids_writing_only() {
    let mut block = Block::new(32);
    assert_eq!(block.memory.begin(&block.clocks, (0, 1), 64, 16, false), None);
    assert_eq!(block.access(1, 2, Access::LOAD, 64, 4), None);
    let reads = Some(Other::InFlight { thread: 0, pc: 1, writes: false });
    assert_eq!(block.access(0, 3, Access::STORE, 68, 4).map(|found| found.other), reads);
    block.memory.land(&block.clocks, 64, 16, false);
    assert_eq!(block.access(0, 4, Access::STORE, 72, 4), None);
}

#[test]
fn the_writes_of_the_engine_become_known_by_the_mbarrier_and_not_by_others() {
    let mut block = Block::new(64);
    let acquire = |block: &mut Block, thread| {
        block.clocks.strong_shared(thread, 0, Touch::Load, Order::Acquire, Scope::Block);
    };
    block.access(3, 9, Access::STORE, 256, 4);
    assert_eq!(block.memory.begin(&block.clocks, (3, 1), 64, 16, true), None);
    block.memory.land(&block.clocks, 64, 16, true);
    block.clocks.engine_signals(0);
    barrier(&mut block.clocks, 0..2);
    let engine = Some(Other::Engine { block: 0, pc: 1 });
    assert_eq!(block.access(3, 2, Access::LOAD, 64, 4).map(|found| found.other), engine);
    acquire(&mut block, 40);
    assert_eq!(block.load(40, 3), None);
    assert_eq!(block.access(41, 3, Access::LOAD, 64, 4).map(|found| found.other), engine);
    // And nothing of what its issuer does becomes known by it.
    block.access(3, 9, Access::STORE, 256, 4);
    block.clocks.engine_signals(0);
    acquire(&mut block, 50);
    assert_eq!(earlier(block.access(50, 4, Access::LOAD, 256, 4)), Some((0, 3, 9)));
}

#[test]
fn arrivals_at_an_mbarrier_release_to_who_waits_there() {
    let mut block = Block::new(64);
    for thread in [3, 9] {
        block.access(thread, 1, Access::STORE, 4 * u64::from(thread) + 64, 4);
        block.clocks.strong_shared(thread, 0, Touch::Update, Order::Release, Scope::Block);
    }
    block.clocks.strong_shared(40, 0, Touch::Load, Order::Acquire, Scope::Block);
    assert_eq!(block.access(40, 2, Access::LOAD, 76, 4), None);
    assert_eq!(block.access(40, 2, Access::LOAD, 100, 4), None);
    assert_eq!(earlier(block.access(41, 2, Access::LOAD, 100, 4)), Some((0, 9, 1)));
}

#[test]
fn a_flag_needs_fences_on_both_sides() {
    for (before, after) in [(true, true), (true, false), (false, true)] {
        let mut block = Block::new(64);
        block.store(0, 1);
        if before {
            block.clocks.fence(0, 1, Scope::Block);
        }
        block.access(0, 2, PUBLISH, 0, 4);
        block.access(40, 3, RELAXED, 0, 4);
        if after {
            block.clocks.fence(1, 1 << 8, Scope::Block);
        }
        assert_eq!(block.load(40, 4).is_some(), !(before && after));
    }
}

#[test]
fn what_follows_the_fence_is_not_released() {
    let mut block = Block::new(64);
    block.clocks.fence(0, 1, Scope::Block);
    block.store(0, 1);
    block.access(0, 2, PUBLISH, 0, 4);
    block.access(40, 3, Access::strong(Touch::Load, Order::Acquire, Scope::Block), 0, 4);
    assert_eq!(block.load(40, 4), Some((0, 0, 1)));
}

#[test]
fn a_plain_write_ends_a_release() {
    let mut block = Block::new(64);
    block.store(0, 1);
    block.access(0, 2, Access::strong(Touch::Store, Order::Release, Scope::Block), 0, 4);
    block.access(0, 3, Access::STORE, 0, 4);
    block.access(40, 4, Access::strong(Touch::Load, Order::Acquire, Scope::Block), 0, 4);
    assert_eq!(block.load(40, 5), Some((0, 0, 1)));
}

#[test]
fn a_new_thread_block_starts_anew() {
    let mut block = Block::new(64);
    block.store(0, 1);
    block.memory.begin(&block.clocks, (3, 1), 1024, 16, true);
    block.memory.reset();
    block.clocks = Clocks::new(1, 64);
    assert_eq!(block.store(40, 2), None);
    assert_eq!(block.access(40, 2, Access::LOAD, 1024, 16), None);
}
