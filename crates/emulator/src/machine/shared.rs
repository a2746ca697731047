//! Shared memory of a thread block, what was counted, and what its threads know of each other.

use super::Fault;
use super::barrier::Arrival;
use super::context::Access;
use super::launch::{Environment, Launch};
use super::registers::Double;
use crate::profile::Counters;

/// Shared memory of a thread block, and who did what with memory of any space.
pub struct BlockMemory {
    /// Number of the block.
    pub number: u64,
    /// Counts, where they are wanted.
    pub counters: Option<Counters>,
    /// Where in the snapshot the last access to global memory was.
    pub last_allocation: usize,
    /// Operations that wrote to memory.
    pub writes: u64,
    words: Vec<u64>,
    length: usize,
}

impl BlockMemory {
    pub(crate) fn new(launch: &Launch<'_>) -> Self {
        let length = launch.shared();
        Self {
            number: 0,
            counters: launch.options.profile.then(|| Counters::new(launch.program.steps.len())),
            last_allocation: usize::MAX,
            writes: 0,
            words: vec![0; length.div_ceil(8)],
            length,
        }
    }

    pub(crate) fn restart(&mut self, number: u64) {
        self.number = number;
        self.last_allocation = usize::MAX;
    }

    /// Where shared memory begins, and how many bytes it has.
    #[inline(always)]
    pub(crate) fn bytes(&mut self) -> (*mut u8, usize) {
        (self.words.as_mut_ptr().cast(), self.length)
    }

    /// Whether accesses are looked at.
    #[inline(always)]
    pub(crate) fn watches(&self) -> bool {
        false
    }
}
