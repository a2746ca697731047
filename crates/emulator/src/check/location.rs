//! Places in memory over which threads synchronize: what was released there, and who may acquire it.
//!
//! The rules are those of the memory consistency model of the PTX ISA (*Release and Acquire Patterns*, *Observation
//! Order*, *Synchronizes-With*): a release is a releasing operation, or a fence followed by a strong write; it reaches
//! whoever reads the written value, or that of a read-modify-write after it, and acquires by the read itself or by a
//! fence after it. Scopes must include each other's threads.

use super::knowledge::{Frontiers, Knowledge, join_one};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one release makes known.
#[derive(Clone, Debug)]
pub(super) struct Release {
    /// Who released.
    pub(super) block: u32,
    pub(super) thread: u32,
    /// Whether other blocks are in its scope.
    pub(super) wide: bool,
    /// What the thread knew, and what it had done itself.
    pub(super) knowledge: Knowledge,
}

/// The releases that a chain of read-modify-writes carries on, in their order. Threads that read the location and may
/// acquire later, by a fence, remember how many there were.
#[derive(Debug, Default)]
pub(super) struct Log {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    releases: Vec<Release>,
    /// Length at which superseded releases are dropped.
    limit: usize,
    /// How many releases `all` has.
    merged: usize,
    /// What the releases of wide scope make known, together.
    all: Arc<Frontiers>,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(releases: Vec<Release>) -> Arc<Self> {
        let limit = 2 * releases.len() + 64;
        Arc::new(Self { state: Mutex::new(State { releases, limit, ..State::default() }) })
    }

    /// How many releases there are.
    pub(super) fn len(&self) -> usize {
        self.state().releases.len()
    }

    /// Adds to `knowledge`, of a thread of `block`, what the first `length` releases make known to it. `wide`: whether
    /// its own scope includes other blocks.
    pub(super) fn acquire(&self, length: usize, block: u32, wide: bool, engine: u32, knowledge: &mut Knowledge) {
        let mut state = self.state();
        let length = length.min(state.releases.len());
        if wide {
            let all = state.merge(length);
            if let Some(own) = all.get(&block) {
                knowledge.join_frontier(own, engine);
            }
            if all.len() > usize::from(all.contains_key(&block)) {
                knowledge.join_foreign(&all);
            }
        }
        for release in &state.releases[..length] {
            if release.block == block && !(wide && release.wide) {
                knowledge.join(&release.knowledge, engine);
            }
        }
    }
}

impl State {
    fn merge(&mut self, length: usize) -> Arc<Frontiers> {
        if self.merged > length {
            let mut all = Frontiers::new();
            self.releases[..length].iter().for_each(|release| release.add_to(&mut all));
            return Arc::new(all);
        }
        if self.merged < length {
            let all = Arc::make_mut(&mut self.all);
            self.releases[self.merged..length].iter().for_each(|release| release.add_to(all));
            self.merged = length;
        }
        Arc::clone(&self.all)
    }
}

impl Release {
    fn add_to(&self, all: &mut Frontiers) {
        if self.wide {
            join_one(all, self.block, &self.knowledge.frontier);
            for (&block, frontier) in self.knowledge.foreign.iter().flat_map(|foreign| foreign.iter()) {
                join_one(all, block, frontier);
            }
        }
    }
}

/// The last strong write to a location, if anything was released with it or before it in its chain.
#[derive(Debug)]
pub(super) struct Location {
    /// Block and scope of the last write.
    writer: (u32, bool),
    pub(super) log: Arc<Log>,
}

impl Location {
    /// Whether an operation of `block` and the last write are morally strong, so that the one can observe the other.
    pub(super) fn observable(&self, block: u32, wide: bool) -> bool {
        self.writer.0 == block || wide && self.writer.1
    }

    /// What is left of a location after a strong write by `thread`: a read-modify-write (`update`) carries on what it
    /// read; a plain write, only the thread's own releases.
    pub(super) fn write(
        before: Option<Self>,
        (block, thread): (u32, u32),
        (update, wide): (bool, bool),
        new: Vec<Release>,
    ) -> Option<Self> {
        let writer = (block, wide);
        let Some(before) = before else {
            return (!new.is_empty()).then(|| Self { writer, log: Log::of(new) });
        };
        if update && before.observable(block, wide) {
            return Some(Self { writer, log: append(before.log, new) });
        }
        let mut kept = Vec::new();
        if !update {
            let state = before.log.state();
            kept.extend(state.releases.iter().filter(|old| (old.block, old.thread) == (block, thread)).cloned());
        }
        kept.extend(new);
        (!kept.is_empty()).then(|| Self { writer, log: Log::of(latest(kept)) })
    }
}

fn append(log: Arc<Log>, new: Vec<Release>) -> Arc<Log> {
    let mut state = log.state();
    state.releases.extend(new);
    if state.releases.len() < state.limit {
        drop(state);
        return log;
    }
    // A thread that may still acquire keeps the old log; what it sees there must not change.
    let kept = latest(state.releases.clone());
    drop(state);
    Log::of(kept)
}

/// Drops releases that a later one of the same thread and scope includes.
fn latest(releases: Vec<Release>) -> Vec<Release> {
    let mut last = HashMap::new();
    for (at, release) in releases.iter().enumerate() {
        last.insert((release.block, release.thread, release.wide), at);
    }
    let keep = |(at, release): &(usize, Release)| last[&(release.block, release.thread, release.wide)] == *at;
    releases.into_iter().enumerate().filter(keep).map(|(_, release)| release).collect()
}

/// A table of locations in global memory, shared by the thread blocks of a launch.
#[derive(Debug)]
pub(super) struct Locations {
    shards: [Mutex<Shard>; 64],
    /// Whether there was ever a location.
    used: AtomicBool,
}

/// Locations by address.
pub(super) type Shard = HashMap<u64, Location>;

impl Default for Locations {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), used: AtomicBool::new(false) }
    }
}

impl Locations {
    /// The part of the table that has `address`.
    pub(super) fn shard(&self, address: u64) -> MutexGuard<'_, Shard> {
        self.shards[(address >> 2) as usize % self.shards.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a location to its shard.
    pub(super) fn insert(&self, shard: &mut Shard, address: u64, location: Location) {
        self.used.store(true, Ordering::SeqCst);
        shard.insert(address, location);
    }

    /// Whether no thread released anything yet, in global memory.
    pub(super) fn is_unused(&self) -> bool {
        !self.used.load(Ordering::SeqCst)
    }
}
