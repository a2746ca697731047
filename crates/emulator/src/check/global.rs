//! Races in the memory of a device: between threads of a launch, and between operations of different streams.

use super::batch::{Batch, Conflict, Group, Other};
use super::cell::{CROWD, Cell, DRIVER, Entry, Met, Orders, Within, threads};
use super::clocks::{Clocks, Touch};
use super::location::Locations;
use super::order::Stamp;
use super::shared::{entry, other_in_block};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What operations are called, for messages; the oldest are forgotten.
#[derive(Debug, Default)]
pub struct Labels {
    names: Mutex<Names>,
}

/// The labels by stream and sequence, and the order in which they came.
#[derive(Debug, Default)]
struct Names {
    labels: HashMap<(u32, u32), Arc<str>>,
    order: VecDeque<(u32, u32)>,
}

/// How many operations keep their labels.
const LABELS: usize = 4096;

impl Labels {
    /// Keeps the label of an operation. To be called once for each that accesses memory.
    pub fn add(&self, stamp: &Stamp) {
        let mut names = locked(&self.names);
        let key = (stamp.stream, stamp.sequence);
        if names.labels.insert(key, Arc::clone(&stamp.label)).is_none() {
            names.order.push_back(key);
        }
        if names.order.len() > LABELS
            && let Some(oldest) = names.order.pop_front()
        {
            names.labels.remove(&oldest);
        }
    }

    fn get(&self, stream: u32, sequence: u32) -> Arc<str> {
        let names = locked(&self.names);
        names.labels.get(&(stream, sequence)).map_or_else(|| "an earlier operation".into(), Arc::clone)
    }
}

/// What the thread blocks of one launch share.
#[derive(Debug)]
pub struct Launch {
    stamp: Stamp,
    locations: Locations,
    crowds: Mutex<Crowds>,
}

impl Launch {
    /// The launch that `stamp` stands for.
    pub fn new(stamp: Stamp) -> Self {
        Self { stamp, locations: Locations::default(), crowds: Mutex::default() }
    }
}

/// Sets of thread blocks that did the same, such as reading one word of a matrix at the same point of the program. Each
/// is one more block than another set, so that words which the same blocks read in the same order share them.
#[derive(Debug, Default)]
struct Crowds {
    /// The set without its last block, if there is any other block in it, and that block.
    sets: Vec<(Option<u32>, u32)>,
    numbers: HashMap<(Option<u32>, u32), u32>,
}

impl Crowds {
    fn number(&mut self, rest: Option<u32>, block: u32) -> u32 {
        *self.numbers.entry((rest, block)).or_insert_with(|| {
            self.sets.push((rest, block));
            self.sets.len() as u32 - 1
        })
    }

    /// The blocks of an entry, the last first.
    fn blocks(&self, block: u32) -> impl Iterator<Item = u32> + '_ {
        let single = (block & CROWD == 0).then_some(block);
        let mut at = (block & CROWD != 0).then_some(block & !CROWD);
        single.into_iter().chain(std::iter::from_fn(move || {
            let (rest, block) = *self.sets.get(at? as usize)?;
            at = rest;
            Some(block)
        }))
    }
}

/// The order of everything before an access by lanes of a warp.
struct Before<'a> {
    launch: &'a Launch,
    within: Within<'a>,
    /// The last set of blocks that the own one was added to, and what came of it: neighbouring words have the same.
    grown: &'a std::cell::Cell<Option<(u32, u32)>>,
}

impl Before<'_> {
    fn other_operation(&self, earlier: &Entry) -> bool {
        let stamp = &self.launch.stamp;
        (earlier.stream, earlier.sequence) != (stamp.stream, stamp.sequence)
    }

    /// Whether what `thread` of another block did is known to the lane of `me`.
    fn foreign(&self, me: u32, block: u32, thread: u32, clock: u32) -> bool {
        let foreign = self.within.clocks.knowledge(me).foreign.as_ref();
        foreign.and_then(|foreign| foreign.get(&block)).is_some_and(|frontier| clock <= frontier.clock(thread))
    }

    fn lanes(&self) -> impl Iterator<Item = u32> {
        let (first, lanes) = (self.within.warp as u32 * 32, self.within.lanes);
        (0..32).filter(move |lane| lanes >> lane & 1 == 1).map(move |lane| first + lane)
    }

    /// The threads of blocks other than the own one, block by block.
    fn others(&self, earlier: &Entry) -> Vec<(u32, u32)> {
        let own = self.within.clocks.block();
        let all: Vec<u32> = locked(&self.launch.crowds).blocks(earlier.block).filter(|&block| block != own).collect();
        let threads: Vec<u32> = threads(earlier, self.within.clocks.engine()).collect();
        all.iter().flat_map(|&block| threads.iter().map(move |&thread| (block, thread))).collect()
    }

    /// A block and thread of `earlier`, of the same launch, that some lane of this warp does not know.
    fn unordered_at(&self, earlier: &Entry) -> Option<(u32, u32)> {
        if earlier.block == self.within.clocks.block() {
            return self.within.unordered(earlier).map(|thread| (earlier.block, thread));
        }
        let own = self.within.clocks.block();
        // A lane that knows of no other block need not look at more than one of them.
        if self.lanes().any(|me| self.within.clocks.knowledge(me).foreign.is_none())
            && let Some(other) = self.other_block(earlier, own)
        {
            return Some((other, threads(earlier, self.within.clocks.engine()).next()?));
        }
        if self.has(earlier, own)
            && let Some(thread) = self.within.unordered(earlier)
        {
            return Some((own, thread));
        }
        let others = self.others(earlier);
        others
            .into_iter()
            .find(|&(block, thread)| self.lanes().any(|me| !self.foreign(me, block, thread, earlier.clock)))
    }

    /// A block of the entry other than `own`.
    fn other_block(&self, earlier: &Entry, own: u32) -> Option<u32> {
        match earlier.block & CROWD {
            0 => Some(earlier.block).filter(|&block| block != own),
            _ => locked(&self.launch.crowds).blocks(earlier.block).find(|&block| block != own),
        }
    }

    fn has(&self, earlier: &Entry, block: u32) -> bool {
        match earlier.block & CROWD {
            0 => earlier.block == block,
            _ => locked(&self.launch.crowds).blocks(earlier.block).any(|one| one == block),
        }
    }
}

impl Orders for Before<'_> {
    fn unordered(&self, earlier: &Entry) -> Option<u32> {
        if self.other_operation(earlier) {
            let first = threads(earlier, 0).next().unwrap_or(0);
            return (!self.launch.stamp.follows(earlier.stream, earlier.sequence)).then_some(first);
        }
        self.unordered_at(earlier).map(|(_, thread)| thread)
    }

    #[inline(always)]
    fn is_simply_ordered(&self, earlier: &Entry) -> bool {
        if self.other_operation(earlier) {
            return self.launch.stamp.follows(earlier.stream, earlier.sequence);
        }
        earlier.block == self.within.clocks.block() && self.within.is_simply_ordered(earlier)
    }

    fn is_ordered(&self, earlier: &Entry) -> bool {
        // A set of blocks has another one than the own, of which a lane must know.
        let crowd = earlier.block & CROWD != 0 && !self.other_operation(earlier);
        if crowd && self.lanes().any(|me| self.within.clocks.knowledge(me).foreign.is_none()) {
            return false;
        }
        self.unordered(earlier).is_none()
    }

    fn ignorant(&self, earlier: &Entry) -> u32 {
        if self.other_operation(earlier) {
            let ordered = self.launch.stamp.follows(earlier.stream, earlier.sequence);
            return if ordered { 0 } else { self.within.lanes };
        }
        let own = if self.has(earlier, self.within.clocks.block()) { self.within.ignorant(earlier) } else { 0 };
        let others = self.others(earlier);
        let misses = |me| others.iter().any(|&(block, thread)| !self.foreign(me, block, thread, earlier.clock));
        own | self.within.lanes_where(misses)
    }

    fn aware(&self, earlier: &Entry) -> u32 {
        if self.other_operation(earlier) {
            return self.within.lanes & !self.ignorant(earlier);
        }
        let own = if self.has(earlier, self.within.clocks.block()) { self.within.aware(earlier) } else { 0 };
        let others = self.others(earlier);
        let knows = |me| others.iter().any(|&(block, thread)| self.foreign(me, block, thread, earlier.clock));
        own | self.within.lanes_where(knows)
    }

    fn crowd(&self, earlier: &mut Entry, new: &Entry) -> bool {
        let alike = Entry { block: new.block, ..*earlier } == *new && new.kind & DRIVER == 0 && new.block & CROWD == 0;
        if !alike {
            return false;
        }
        let before = earlier.block;
        if let Some((from, to)) = self.grown.get()
            && from == before
        {
            earlier.block = to;
            return true;
        }
        let mut crowds = locked(&self.launch.crowds);
        if !crowds.blocks(earlier.block).any(|block| block == new.block) {
            let rest = match earlier.block & CROWD {
                0 => crowds.number(None, earlier.block),
                _ => earlier.block & !CROWD,
            };
            earlier.block = crowds.number(Some(rest), new.block) | CROWD;
        }
        self.grown.set(Some((before, earlier.block)));
        true
    }
}

/// The order of everything before an operation of the driver.
struct BeforeDriver<'a>(&'a Stamp);

impl Orders for BeforeDriver<'_> {
    fn unordered(&self, earlier: &Entry) -> Option<u32> {
        (!self.0.follows(earlier.stream, earlier.sequence)).then(|| threads(earlier, 0).next().unwrap_or(0))
    }

    fn ignorant(&self, earlier: &Entry) -> u32 {
        u32::from(self.unordered(earlier).is_some())
    }

    fn aware(&self, earlier: &Entry) -> u32 {
        u32::from(self.unordered(earlier).is_none())
    }
}

/// Bytes of a page of the shadow.
const PAGE: usize = 4096;
const PAGE_WORDS: usize = PAGE / 4;
/// Pages that are allocated (empty) together.
const GROUP: usize = 1024;

/// What was done to the words of a page.
#[derive(Debug)]
enum Page {
    /// To all of them the same: nothing, or one copy.
    Same(Cell),
    /// To each something else.
    Each(Box<[Cell]>),
}

impl Default for Page {
    fn default() -> Self {
        Self::Same(Cell::default())
    }
}

impl Page {
    fn cells(&mut self) -> &mut [Cell] {
        if let Self::Same(cell) = self {
            *self = Self::Each(vec![std::mem::take(cell); PAGE_WORDS].into());
        }
        match self {
            Self::Each(cells) => cells,
            Self::Same(cell) => std::slice::from_mut(cell),
        }
    }
}

/// The shadow of one allocation: what was done to each of its words, in pages that come to be when they are used.
#[derive(Debug)]
pub struct Shadow {
    base: u64,
    bytes: usize,
    groups: Vec<OnceLock<Pages>>,
}

/// Neighbouring pages, each locked while a thread block accesses it.
type Pages = Box<[Mutex<Page>]>;

impl Shadow {
    /// The shadow of the `bytes` at the address `base`.
    pub fn new(base: u64, bytes: usize) -> Self {
        let mut groups = Vec::new();
        groups.resize_with(bytes.div_ceil(PAGE * GROUP), OnceLock::new);
        Self { base, bytes, groups }
    }

    fn page(&self, page: usize) -> Option<MutexGuard<'_, Page>> {
        let group = self.groups.get(page / GROUP)?;
        let pages = group.get_or_init(|| (0..GROUP).map(|_| Mutex::default()).collect());
        Some(locked(&pages[page % GROUP]))
    }

    /// Makes an access by lanes of a warp; a strong one synchronizes too, lane by lane. Returns the first race that it
    /// is part of. What lies outside of the allocation is not looked at.
    pub fn access(&self, launch: &Launch, labels: &Labels, clocks: &mut Clocks, batch: &Batch<'_>) -> Option<Conflict> {
        let mut groups = clocks.take_groups();
        batch.groups(&mut groups);
        let grown = std::cell::Cell::new(None);
        let mut found = None;
        let words = self.bytes.div_ceil(4) as u64;
        let number = |group: &Group| group.word as usize / PAGE_WORDS;
        let mut ended = Vec::new();
        for part in groups.chunk_by(|a, b| number(a) == number(b)) {
            let Some(mut page) = self.page(number(&part[0])) else { continue };
            let cells = page.cells();
            for group in part.iter().filter(|group| group.word < words) {
                let mut new = entry(clocks, batch, group);
                (new.stream, new.sequence) = (launch.stamp.stream, launch.stamp.sequence);
                new.block = clocks.block();
                let within = Within { clocks, warp: batch.warp, lanes: group.lanes };
                let before = Before { launch, within, grown: &grown };
                let met = cells[group.word as usize % PAGE_WORDS].access(new, &before);
                if met.ends_strong {
                    ended.push(group.word * 4);
                }
                let conflict = || conflict(batch, group, &new, &met, &before, labels);
                found = found.take().or_else(conflict);
            }
        }
        clocks.give_groups(groups);
        for offset in ended.into_iter().filter(|_| !launch.locations.is_unused()) {
            launch.locations.shard(self.base + offset).remove(&(self.base + offset));
        }
        if let Some((order, scope)) = batch.access.strong {
            for lane in batch.lanes() {
                let thread = (batch.warp * 32 + lane) as u32;
                let address = self.base + batch.offsets[lane];
                clocks.strong_global(&launch.locations, thread, address, (batch.access.touch, order, scope));
            }
        }
        found
    }

    /// The driver reads or writes (`write`) a range of bytes, from the start of the allocation, in the operation
    /// `stamp`: a copy, a memset, or that the memory is freed. Returns the first race.
    pub fn range_access(&self, range: Range<u64>, write: bool, stamp: &Stamp, labels: &Labels) -> Option<Conflict> {
        let range = range.start..range.end.min(self.bytes as u64);
        let touch = if write { Touch::Store } else { Touch::Load };
        let kind = super::Access { touch, strong: None }.kind() | DRIVER;
        let whole = Entry {
            stream: stamp.stream,
            sequence: stamp.sequence,
            block: 0,
            clock: 0,
            warps: 0,
            lanes: 0,
            pc: 0,
            bytes: 15,
            kind,
        };
        let before = BeforeDriver(stamp);
        let mut found = None;
        let mut at = range.start;
        while at < range.end {
            let start = at / PAGE as u64 * PAGE as u64;
            let end = range.end.min(start + PAGE as u64);
            let Some(mut page) = self.page((start / PAGE as u64) as usize) else { break };
            let mut met = |offset: u64, met: Met| {
                if let (None, Some((earlier, thread))) = (&found, met.conflict) {
                    let other = operation(&earlier, thread, labels);
                    found = Some(Conflict { lane: 0, offset, writes: write, other });
                }
            };
            // Where the allocation ends within the page, the rest of it is nobody's.
            let all = at == start && (end == start + PAGE as u64 || end == self.bytes as u64);
            match &mut *page {
                Page::Same(cell) if all => met(start, cell.access(whole, &before)),
                page => {
                    let cells = page.cells();
                    super::batch::words(at, (end - at) as usize, |word, bytes| {
                        let cell = &mut cells[word as usize % PAGE_WORDS];
                        met(word * 4, cell.access(Entry { bytes, ..whole }, &before));
                    });
                    if all && write {
                        let mut cell = Cell::default();
                        cell.replace(whole);
                        *page = Page::Same(cell);
                    }
                }
            }
            at = end;
        }
        found
    }
}

fn operation(earlier: &Entry, thread: u32, labels: &Labels) -> Other {
    let kernel = earlier.kind & DRIVER == 0;
    let who = (earlier.block & CROWD == 0).then_some((earlier.block, thread));
    Other::Operation {
        label: labels.get(earlier.stream, earlier.sequence),
        writes: earlier.writes(),
        at: kernel.then_some((who, earlier.pc)),
    }
}

fn conflict(
    batch: &Batch<'_>,
    group: &Group,
    new: &Entry,
    met: &Met,
    before: &Before<'_>,
    labels: &Labels,
) -> Option<Conflict> {
    let first = batch.warp as u32 * 32;
    let made = |lane, other| Some(Conflict { lane, offset: group.word * 4, writes: new.writes(), other });
    if batch.access == super::Access::STORE
        && let Some((one, two)) = batch.collision(group)
    {
        return made(two, Other::SameInstruction { thread: first + one });
    }
    let (earlier, thread) = met.conflict?;
    let lane = group.lanes.trailing_zeros();
    if before.other_operation(&earlier) {
        return made(lane, operation(&earlier, thread, labels));
    }
    let (block, thread) = before.unordered_at(&earlier).unwrap_or((earlier.block, thread));
    let lacks = |lane: &u32| {
        let me = first + lane;
        let known = if block == new.block {
            before.within.clocks.knows(me, thread, earlier.clock)
        } else {
            before.foreign(me, block, thread, earlier.clock)
        };
        group.lanes >> lane & 1 == 1 && !known
    };
    made((0..32).find(lacks).unwrap_or(lane), other_in_block(block, &earlier, thread))
}
