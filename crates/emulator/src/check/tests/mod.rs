//! Each rule of order by a small sequence of accesses, and random programs against plain vector clocks.

mod global;
mod random;
mod shared;

use super::Access;
use super::batch::{Batch, Conflict, Other};
use super::clocks::{Clocks, Gathering, Order, Scope, Touch};

const RELAXED: Access = Access::strong(Touch::Load, Order::Relaxed, Scope::Device);
const PUBLISH: Access = Access::strong(Touch::Store, Order::Relaxed, Scope::Device);
const ADD: Access = Access::strong(Touch::Update, Order::Relaxed, Scope::Device);

/// Thread `thread` at instruction `pc` accesses `size` bytes at `offset`.
fn one<T>(thread: u32, pc: u32, access: Access, offset: u64, size: usize, make: impl FnOnce(&Batch<'_>) -> T) -> T {
    let offsets = [offset; 32];
    let (warp, mask) = (thread as usize / 32, 1 << (thread % 32));
    make(&Batch { warp, mask, offsets: &offsets, size, access, pc, values: None })
}

/// All threads of `warps` wait at a barrier.
fn barrier(clocks: &mut Clocks, warps: std::ops::Range<usize>) {
    let mut gathering = Gathering::default();
    for warp in warps {
        clocks.wait(&mut gathering, warp, u32::MAX);
    }
    clocks.complete(&mut gathering);
}

/// The block, thread and instruction of the earlier access.
fn earlier(conflict: Option<Conflict>) -> Option<(u32, u32, u32)> {
    match conflict?.other {
        Other::Thread { block, thread, pc, .. } => Some((block, thread, pc)),
        other => panic!("{other:?}"),
    }
}
