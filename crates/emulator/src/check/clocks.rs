//! The clocks of one thread block: which accesses of which threads are ordered before what a thread does next.
//!
//! A thread block has one clock. It advances whenever a thread lets others know what it did so far (at barriers, fences
//! and releases), so an access is named by its thread and the clock at its time, and what a thread knows of another one
//! is a clock: everything that the other did up to it is ordered before. This is a full vector clock, exactly; that
//! threads which synchronize together know the same keeps it small.
//!
//! Only what the ISA says orders memory: barriers, `bar.warp.sync`, fences and strong accesses by the patterns of the
//! memory consistency model, mbarriers. Shuffles, votes and matrix instructions do not. The order of `fence.sc`
//! operations among themselves does not count either: it differs from run to run, and what rests on it is a race in
//! another run.

use super::batch::Group;
use super::frontier::Frontier;
use super::knowledge::Knowledge;
use super::location::{Location, Locations, Log, Release};
use std::collections::HashMap;
use std::sync::Arc;

/// How far a fence or a strong access reaches. Clusters have one thread block here, and nothing of another device runs
/// during a launch, so that `.cluster` is [`Scope::Block`] and `.sys` is [`Scope::Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `.cta`.
    Block,
    /// `.gpu` and `.sys`.
    Device,
}

/// The semantics of a strong access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `.relaxed`, `.volatile`, and atomics without a qualifier.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcquireRelease,
}

impl Order {
    fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcquireRelease)
    }

    fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }
}

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Reads.
    Load,
    /// Writes.
    Store,
    /// Reads and writes as one: `atom` and `red`.
    Update,
}

/// What one warp knows.
#[derive(Clone, Debug)]
enum Warp {
    /// All its lanes the same.
    Together(Knowledge),
    /// Each lane something else.
    Apart(Box<[Knowledge; 32]>),
}

/// What a fence released, until the thread's next strong write publishes it.
#[derive(Clone, Debug, Default)]
struct Fenced {
    wide: Option<(Knowledge, u32)>,
    narrow: Option<(Knowledge, u32)>,
}

/// What a thread read and may acquire by a fence.
#[derive(Clone, Debug)]
struct Pending {
    address: (bool, u64),
    log: Arc<Log>,
    length: usize,
}

/// The clocks and the knowledge of the threads of one thread block.
#[derive(Debug)]
pub struct Clocks {
    block: u32,
    threads: u32,
    now: u32,
    warps: Vec<Warp>,
    fenced: HashMap<u32, Fenced>,
    pending: HashMap<u32, Vec<Pending>>,
    /// Locations in shared memory.
    locations: HashMap<u64, Location>,
    /// Room for the groups of an access, so that none is allocated for each.
    groups: Vec<Group>,
}

/// One phase of a barrier: who has come so far. The machine keeps one for each barrier of a thread block.
#[derive(Debug, Default)]
pub struct Gathering {
    arrived: Option<Knowledge>,
    waiting: Vec<(usize, u32)>,
}

impl Clocks {
    /// A thread block whose threads have not done anything yet.
    pub fn new(block: u32, threads: u32) -> Self {
        let none = Warp::Together(Knowledge::none());
        Self {
            block,
            threads,
            now: 1,
            warps: vec![none; threads.div_ceil(32) as usize],
            fenced: HashMap::new(),
            pending: HashMap::new(),
            locations: HashMap::new(),
            groups: Vec::new(),
        }
    }

    /// The linear index of the block.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// The clock that accesses carry now.
    pub fn now(&self) -> u32 {
        self.now
    }

    /// The index that stands for the engine of asynchronous copies, whose writes become known by mbarriers only.
    pub fn engine(&self) -> u32 {
        self.warps.len() as u32 * 32
    }

    pub(super) fn knowledge(&self, thread: u32) -> &Knowledge {
        match &self.warps[thread as usize / 32] {
            Warp::Together(knowledge) => knowledge,
            Warp::Apart(lanes) => &lanes[thread as usize % 32],
        }
    }

    /// What all lanes of a warp know, if it is the same.
    pub(super) fn together(&self, warp: usize) -> Option<&Knowledge> {
        match &self.warps[warp] {
            Warp::Together(knowledge) => Some(knowledge),
            Warp::Apart(_) => None,
        }
    }

    /// Whether what `other` did at `clock` is ordered before what `thread` does now.
    pub fn knows(&self, thread: u32, other: u32, clock: u32) -> bool {
        let knowledge = self.knowledge(thread);
        thread == other
            || (other < self.engine() && clock <= knowledge.floor)
            || clock <= knowledge.frontier.clock(other)
    }

    /// A warp's lanes that there are.
    fn lanes(&self, warp: usize) -> u32 {
        match (self.threads as usize).saturating_sub(32 * warp) {
            left @ 0..32 => (1 << left) - 1,
            _ => u32::MAX,
        }
    }

    /// Room for groups; to be given back.
    pub(super) fn take_groups(&mut self) -> Vec<Group> {
        std::mem::take(&mut self.groups)
    }

    /// Gives room for groups back.
    pub(super) fn give_groups(&mut self, groups: Vec<Group>) {
        self.groups = groups;
    }

    fn set(&mut self, warp: usize, mask: u32, knowledge: &Knowledge) {
        if mask & self.lanes(warp) == self.lanes(warp) {
            self.warps[warp] = Warp::Together(knowledge.clone());
            return;
        }
        if let Warp::Together(before) = &self.warps[warp] {
            self.warps[warp] = Warp::Apart(Box::new(std::array::from_fn(|_| before.clone())));
        }
        if let Warp::Apart(lanes) = &mut self.warps[warp] {
            for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                lanes[lane] = knowledge.clone();
            }
        }
    }

    /// Adds what the lanes in `mask` know, and have done up to now.
    fn gather(&self, warp: usize, mask: u32, into: &mut Option<Knowledge>) {
        let engine = self.engine();
        let mut add = |knowledge: &Knowledge| match into {
            Some(known) => known.join(knowledge, engine),
            None => *into = Some(knowledge.clone()),
        };
        match &self.warps[warp] {
            Warp::Together(knowledge) => add(knowledge),
            Warp::Apart(lanes) => {
                lanes.iter().enumerate().filter(|(lane, _)| mask >> lane & 1 == 1).for_each(|(_, known)| add(known));
            }
        }
    }

    /// Raises the lanes in each mask to now.
    fn raise(&self, knowledge: &Knowledge, masks: impl Iterator<Item = (usize, u32)>) -> Knowledge {
        let mut frontier = Frontier::clone(&knowledge.frontier);
        let mut open: Option<(u32, u32)> = None;
        for (warp, mask) in masks {
            let (start, mut rest) = (warp as u32 * 32, mask);
            if mask & self.lanes(warp) == self.lanes(warp) {
                rest = u32::MAX;
            }
            while rest != 0 {
                let first = rest.trailing_zeros();
                let length = (rest >> first).trailing_ones();
                let end = first + length;
                rest = if end == 32 { 0 } else { rest >> end << end };
                match &mut open {
                    Some(run) if run.1 == start + first => run.1 = start + end,
                    _ => {
                        if let Some((from, to)) = open.replace((start + first, start + end)) {
                            frontier.raise(from, to, self.now);
                        }
                    }
                }
            }
        }
        if let Some((from, to)) = open {
            frontier.raise(from, to, self.now);
        }
        knowledge.with(frontier, self.engine())
    }

    /// Lanes of a warp arrive at a barrier and go on (`bar.arrive`): what they did is ordered before those who wait.
    pub fn arrive(&mut self, barrier: &mut Gathering, warp: usize, mask: u32) {
        self.gather(warp, mask, &mut barrier.arrived);
        if let Some(arrived) = &barrier.arrived {
            barrier.arrived = Some(self.raise(arrived, std::iter::once((warp, mask))));
            self.now += 1;
        }
    }

    /// Lanes of a warp arrive at a barrier and do nothing more until it completes.
    pub fn wait(&mut self, barrier: &mut Gathering, warp: usize, mask: u32) {
        barrier.waiting.push((warp, mask));
    }

    /// A barrier completes: those who waited know what everybody who came had done. It is ready for its next phase.
    pub fn complete(&mut self, barrier: &mut Gathering) {
        let mut joined = barrier.arrived.take();
        let mut waiting = std::mem::take(&mut barrier.waiting);
        waiting.sort_unstable();
        for &(warp, mask) in &waiting {
            self.gather(warp, mask, &mut joined);
        }
        let Some(joined) = joined else { return };
        let joined = self.raise(&joined, waiting.iter().copied());
        self.now += 1;
        // Lanes of a warp that came one after another are together again.
        for group in waiting.chunk_by(|a, b| a.0 == b.0) {
            self.set(group[0].0, group.iter().fold(0, |mask, part| mask | part.1), &joined);
        }
    }

    /// `bar.warp.sync`: lanes of a warp wait for each other.
    pub fn warp_sync(&mut self, warp: usize, mask: u32) {
        let mut barrier = Gathering { arrived: None, waiting: vec![(warp, mask)] };
        self.complete(&mut barrier);
    }

    /// `fence` or `membar` by lanes of a warp.
    pub fn fence(&mut self, warp: usize, mask: u32, scope: Scope) {
        let wide = scope == Scope::Device;
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let thread = warp as u32 * 32 + lane;
            if let Some(pending) = self.pending.get(&thread).cloned() {
                for read in &pending {
                    self.acquire(thread, read, wide);
                }
                if wide {
                    self.pending.remove(&thread);
                }
            }
            let state = (self.knowledge(thread).clone(), self.now);
            let fenced = self.fenced.entry(thread).or_default();
            if wide {
                *fenced = Fenced { wide: Some(state), narrow: None };
            } else {
                fenced.narrow = Some(state);
            }
        }
        self.now += 1;
    }

    fn acquire(&mut self, thread: u32, read: &Pending, wide: bool) {
        let (block, engine) = (self.block, self.engine());
        let mut knowledge = self.knowledge(thread).clone();
        read.log.acquire(read.length, block, wide, engine, &mut knowledge);
        let known = self.knowledge(thread);
        let same = Arc::ptr_eq(&known.frontier, &knowledge.frontier)
            && known.foreign.as_ref().map(Arc::as_ptr) == knowledge.foreign.as_ref().map(Arc::as_ptr);
        if !same {
            self.set(thread as usize / 32, 1 << (thread % 32), &knowledge);
        }
    }

    fn release(&self, thread: u32, wide: bool, (knowledge, clock): (&Knowledge, u32)) -> Release {
        let mut frontier = Frontier::clone(&knowledge.frontier);
        frontier.raise(thread, thread + 1, clock);
        Release { block: self.block, thread, wide, knowledge: knowledge.with(frontier, self.engine()) }
    }

    /// A strong access by one thread to shared memory at `offset`, or to an mbarrier there: an arrival is an update
    /// with release, a test that succeeds a load with acquire.
    pub fn strong_shared(&mut self, thread: u32, offset: u64, touch: Touch, order: Order, scope: Scope) {
        if self.locations.is_empty() && self.is_quiet(order) {
            return;
        }
        let before = self.locations.remove(&offset);
        if let Some(after) = self.strong(thread, (true, offset), before, (touch, order, scope)) {
            self.locations.insert(offset, after);
        }
    }

    /// As [`Clocks::strong_shared`], in global memory.
    pub(super) fn strong_global(
        &mut self,
        locations: &Locations,
        thread: u32,
        address: u64,
        what: (Touch, Order, Scope),
    ) {
        if locations.is_unused() && self.is_quiet(what.1) {
            return;
        }
        let mut shard = locations.shard(address);
        let before = shard.remove(&address);
        if let Some(after) = self.strong(thread, (false, address), before, what) {
            locations.insert(&mut shard, address, after);
        }
    }

    /// Whether a strong access neither releases anything nor completes a pattern, as long as nothing was released where
    /// it goes: then it orders nothing.
    fn is_quiet(&self, order: Order) -> bool {
        !order.releases() && self.fenced.is_empty() && self.pending.is_empty()
    }

    /// A weak write ends what was released at a location in shared memory: nothing observes it any more.
    pub(super) fn forget(&mut self, offset: u64) {
        self.locations.remove(&offset);
    }

    fn strong(
        &mut self,
        thread: u32,
        address: (bool, u64),
        location: Option<Location>,
        (touch, order, scope): (Touch, Order, Scope),
    ) -> Option<Location> {
        let wide = scope == Scope::Device;
        if touch != Touch::Store {
            let seen = location.as_ref().filter(|location| location.observable(self.block, wide));
            let read = seen.map(|seen| (Arc::clone(&seen.log), seen.log.len())).filter(|(_, length)| *length > 0);
            self.read(thread, address, read, order, wide);
        }
        if touch == Touch::Load {
            return location;
        }
        let mut releases = Vec::new();
        if order.releases() {
            releases.push(self.release(thread, wide, (self.knowledge(thread), self.now)));
        }
        if let Some(fenced) = self.fenced.get(&thread)
            && !(order.releases() && wide)
        {
            let narrow = fenced.narrow.as_ref().filter(|_| !order.releases());
            releases.extend(narrow.map(|(known, clock)| self.release(thread, false, (known, *clock))));
            releases.extend(fenced.wide.as_ref().map(|(known, clock)| self.release(thread, true, (known, *clock))));
        }
        if order.releases() {
            self.now += 1;
        }
        Location::write(location, (self.block, thread), (touch == Touch::Update, wide), releases)
    }

    /// The reading half of a strong access: acquires at once, or remembers what a fence may acquire.
    fn read(&mut self, thread: u32, address: (bool, u64), read: Option<(Arc<Log>, usize)>, order: Order, wide: bool) {
        let read = read.map(|(log, length)| Pending { address, log, length });
        if order.acquires() {
            // A relaxed read followed by an acquiring one of the same location is an acquire pattern as well.
            let earlier = self.pending.get(&thread).cloned().unwrap_or_default();
            for read in read.iter().chain(earlier.iter().filter(|earlier| earlier.address == address)) {
                self.acquire(thread, read, wide);
            }
        }
        let Some(read) = read.filter(|_| !(order.acquires() && wide)) else { return };
        let pending = self.pending.entry(thread).or_default();
        let same = |old: &&mut Pending| Arc::ptr_eq(&old.log, &read.log);
        match pending.iter_mut().find(same) {
            Some(old) => old.length = read.length,
            None => pending.push(read),
        }
    }

    /// An asynchronous copy that the engine carried out signals the mbarrier at `offset`: its writes, and nothing that
    /// its issuer did, are known to whoever waits there.
    pub fn engine_signals(&mut self, offset: u64) {
        let engine = self.engine();
        let none = Knowledge::none();
        let release = self.release(engine, true, (&none, self.now));
        self.now += 1;
        let before = self.locations.remove(&offset);
        if let Some(after) = Location::write(before, (self.block, engine), (true, true), vec![release]) {
            self.locations.insert(offset, after);
        }
    }
}
