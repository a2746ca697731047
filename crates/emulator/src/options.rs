//! What the loader of the driver chooses: the devices there are, and what is looked for.

use serde::{Deserialize, Serialize};

/// Settings of the emulated machine. They hold from the first call of the driver on; [`Options::default`] is one sm_80
/// device with the checks that are always on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How many devices there are.
    pub devices: usize,
    /// Bytes of memory of each.
    pub memory: u64,
    /// Compute capability of each, major and minor.
    pub capability: (u32, u32),
    /// Whether they have memory pools. Without, memory is not allocated in the order of streams.
    pub memory_pools: bool,
    /// Multiprocessors of each: how many thread blocks are resident at once depends on it.
    pub multiprocessors: u32,
    /// Report reads of memory that nobody wrote.
    pub uninitialized: bool,
    /// Report races between threads, thread blocks and stream operations.
    pub races: bool,
    /// Count instructions, sectors, bank conflicts and so on of every launch.
    pub profile: bool,
    /// The order of warps and thread blocks, and with [`Options::deferred`] of stream operations, is drawn from this.
    /// `None`: in the order of their numbers.
    pub seed: Option<u64>,
    /// Stream operations wait until somebody synchronizes, and then run in a random order that events and streams
    /// allow; otherwise they run as they are enqueued.
    pub deferred: bool,
    /// Host threads that run thread blocks; 0 for one a core, or with [`Options::seed`] for a single one, without which
    /// the order of a seed is not repeated.
    pub workers: usize,
    /// Warp instructions after which a launch is given up as endless; 0 for never.
    pub instruction_limit: u64,
    /// Write a line to standard error for every call that fails, with the reason.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: 1,
            memory: 80 << 30,
            capability: (8, 0),
            memory_pools: true,
            multiprocessors: 108,
            uninitialized: false,
            races: false,
            profile: false,
            seed: None,
            deferred: false,
            workers: 0,
            instruction_limit: 0,
            log: true,
        }
    }
}

impl Options {
    /// Everything that can be looked for, the order of warps drawn from `seed`, and a limit of 2³⁰ warp instructions a
    /// launch, some minutes: a kernel that waits in a loop without a pause for what never comes looks like one that works.
    pub fn checked(seed: u64) -> Self {
        Self { uninitialized: true, races: true, seed: Some(seed), instruction_limit: 1 << 30, ..Self::default() }
    }
}
