//! What was done to one word of memory: the accesses that a later one may still race with.
//!
//! Every access is compared with those that are kept, byte by byte. An access is dropped once a later one says as much:
//! whoever is ordered after the later one is then ordered after it too. What is kept is in the order of time.

use super::clocks::{Clocks, Order, Scope, Touch};
use crate::machine::registers::lanes;

/// What an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does to memory.
    pub touch: Touch,
    /// For strong accesses (atomics, `.relaxed`, `.acquire`, `.release`, `.volatile`) their semantics and scope.
    pub strong: Option<(Order, Scope)>,
}

impl Access {
    /// A plain load.
    pub const LOAD: Self = Self { touch: Touch::Load, strong: None };
    /// A plain store.
    pub const STORE: Self = Self { touch: Touch::Store, strong: None };

    /// A strong access.
    pub const fn strong(touch: Touch, order: Order, scope: Scope) -> Self {
        Self { touch, strong: Some((order, scope)) }
    }

    /// Whether memory is looked at.
    pub fn reads(self) -> bool {
        self.touch != Touch::Store
    }

    /// Whether memory may change.
    pub fn writes(self) -> bool {
        self.touch != Touch::Load
    }

    pub(super) fn kind(self) -> u8 {
        let touch = match self.touch {
            Touch::Load => READ,
            Touch::Store => WRITE,
            Touch::Update => READ | WRITE,
        };
        touch
            | match self.strong {
                None => 0,
                Some((_, Scope::Block)) => STRONG,
                Some((_, Scope::Device)) => STRONG | WIDE,
            }
    }
}

const READ: u8 = 1;
const WRITE: u8 = 2;
const STRONG: u8 = 4;
/// Strong towards other thread blocks too.
const WIDE: u8 = 8;
/// By the engine of asynchronous copies rather than a thread.
pub(super) const ENGINE: u8 = 16;
/// By the driver: a copy or a memset.
pub(super) const DRIVER: u8 = 32;

/// A plain write came before it that is not kept any more: what was there before that, it did not see.
const RESETS: u8 = 64;

/// Accesses of the same kind by the same instruction at the same clock, by all `lanes` of all `warps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// The stream operation they belong to.
    pub(super) stream: u32,
    pub(super) sequence: u32,
    /// The thread block, or with [`CROWD`] several.
    pub(super) block: u32,
    pub(super) clock: u32,
    pub(super) warps: u32,
    pub(super) lanes: u32,
    pub(super) pc: u32,
    /// Bytes of the word.
    pub(super) bytes: u8,
    pub(super) kind: u8,
}

/// Marks the `block` of an entry that is the number of a set of blocks.
pub(super) const CROWD: u32 = 1 << 31;

impl Entry {
    pub(super) fn writes(&self) -> bool {
        self.kind & WRITE != 0
    }

    /// Whether neither it nor what comes after saw the writes before it.
    fn overwrites(&self) -> bool {
        self.kind & (READ | WRITE) == WRITE || self.kind & RESETS != 0
    }

    fn strong(&self) -> bool {
        self.kind & STRONG != 0
    }

    /// How much it may conflict with: weak accesses most, strong ones of wide scope least.
    fn rank(&self) -> u8 {
        match self.kind & (STRONG | WIDE) {
            0 => 2,
            STRONG => 1,
            _ => 0,
        }
    }

    /// Whether two accesses are morally strong.
    fn atomic_with(&self, other: &Self) -> bool {
        let same = (self.stream, self.sequence, self.block) == (other.stream, other.sequence, other.block);
        self.strong() && other.strong() && (same || self.kind & other.kind & WIDE != 0)
    }

    fn conflicts(&self, other: &Self) -> bool {
        (self.writes() || other.writes()) && self.bytes & other.bytes != 0 && !self.atomic_with(other)
    }

    /// Takes the threads of `later`, which does at least as much, out of this entry.
    fn without_threads_of(&mut self, later: &Self) {
        let same = (self.stream, self.sequence, self.block, self.kind & ENGINE)
            == (later.stream, later.sequence, later.block, later.kind & ENGINE);
        if !same {
            return;
        }
        if self.kind & (ENGINE | DRIVER) != 0 {
            self.bytes = 0;
        } else if self.lanes & !later.lanes == 0 {
            self.warps &= !later.warps;
        } else if self.warps & !later.warps == 0 {
            self.lanes &= !later.lanes;
        }
        if self.warps == 0 || self.lanes == 0 {
            self.bytes = 0;
        }
    }

    /// Makes one entry of two that differ in their threads only, if that is possible.
    fn merge(&mut self, other: &Self) -> bool {
        let threads = (self.warps | other.warps, self.lanes | other.lanes);
        let alike = Self { warps: self.warps, lanes: self.lanes, ..*other } == *self;
        let fits = alike && (self.warps == other.warps || self.lanes == other.lanes);
        if fits {
            (self.warps, self.lanes) = threads;
        }
        fits
    }
}

/// What decides whether earlier accesses are ordered before one that happens now.
pub(super) trait Orders {
    /// A thread of `earlier` whose access is not ordered before the present one (for the engine or the driver, any
    /// number).
    fn unordered(&self, earlier: &Entry) -> Option<u32>;

    /// Whether all of `earlier` is ordered before the present access.
    fn is_ordered(&self, earlier: &Entry) -> bool {
        self.unordered(earlier).is_none()
    }

    /// Whether `earlier`, which is no strong access and none of the engine, is ordered before the present one for a
    /// simple reason. Asked first, since it mostly is.
    fn is_simply_ordered(&self, earlier: &Entry) -> bool {
        let _ = earlier;
        false
    }

    /// The lanes of the present access that `earlier` is not ordered before, as a whole.
    fn ignorant(&self, earlier: &Entry) -> u32;

    /// The lanes of the present access that the access of some thread of `earlier` is ordered before.
    fn aware(&self, earlier: &Entry) -> u32;

    /// Makes one entry of `earlier` and of `new`, by other blocks of the same launch, if that is possible.
    fn crowd(&self, earlier: &mut Entry, new: &Entry) -> bool {
        let _ = (earlier, new);
        false
    }
}

/// The order within a thread block, as seen by lanes of a warp.
pub(super) struct Within<'a> {
    pub(super) clocks: &'a Clocks,
    pub(super) warp: usize,
    pub(super) lanes: u32,
}

fn bits(mask: u32) -> impl Iterator<Item = u32> {
    lanes(mask).map(|bit| bit as u32)
}

impl Within<'_> {
    fn threads(&self) -> impl Iterator<Item = u32> {
        let first = self.warp as u32 * 32;
        bits(self.lanes).map(move |lane| first + lane)
    }

    /// As [`Orders::is_simply_ordered`], of an access by a thread of this block: all lanes know of it since a barrier, or
    /// it was the only lane that accesses now.
    #[inline(always)]
    pub(super) fn is_simply_ordered(&self, earlier: &Entry) -> bool {
        let own = (earlier.warps, earlier.lanes) == (1 << self.warp, self.lanes) && self.lanes.is_power_of_two();
        own || self.clocks.together(self.warp).is_some_and(|all| earlier.clock <= all.floor)
    }

    /// The lanes of those threads for which something holds.
    pub(super) fn lanes_where(&self, holds: impl Fn(u32) -> bool) -> u32 {
        self.threads().filter(|&me| holds(me)).fold(0, |lanes, me| lanes | 1 << (me % 32))
    }
}

/// The threads of an entry.
pub(super) fn threads(entry: &Entry, engine: u32) -> impl Iterator<Item = u32> {
    let (warps, lanes) = if entry.kind & (ENGINE | DRIVER) != 0 { (0, 0) } else { (entry.warps, entry.lanes) };
    let one = (entry.kind & (ENGINE | DRIVER) != 0).then_some(engine);
    bits(warps).flat_map(move |warp| bits(lanes).map(move |lane| warp * 32 + lane)).chain(one)
}

impl Orders for Within<'_> {
    fn unordered(&self, earlier: &Entry) -> Option<u32> {
        let clocks = self.clocks;
        let alone = self.lanes.is_power_of_two() && earlier.kind & (ENGINE | DRIVER) == 0;
        if alone && (earlier.warps, earlier.lanes) == (1 << self.warp, self.lanes) {
            return None;
        }
        if let Some(all) = clocks.together(self.warp)
            && earlier.kind & ENGINE == 0
            && earlier.clock <= all.floor
        {
            return None;
        }
        self.threads()
            .find_map(|me| threads(earlier, clocks.engine()).find(|&other| !clocks.knows(me, other, earlier.clock)))
    }

    #[inline(always)]
    fn is_simply_ordered(&self, earlier: &Entry) -> bool {
        earlier.kind & DRIVER == 0 && Within::is_simply_ordered(self, earlier)
    }

    fn ignorant(&self, earlier: &Entry) -> u32 {
        let clocks = self.clocks;
        self.lanes_where(|me| threads(earlier, clocks.engine()).any(|other| !clocks.knows(me, other, earlier.clock)))
    }

    fn aware(&self, earlier: &Entry) -> u32 {
        let clocks = self.clocks;
        self.lanes_where(|me| threads(earlier, clocks.engine()).any(|other| clocks.knows(me, other, earlier.clock)))
    }
}

/// The accesses to one word that are kept.
///
/// Strong accesses of different thread blocks follow each other without end at a counter, so the last of them stands
/// for those before it. What is missed thereby is a race of a strong access of `.cta` scope with one of another block,
/// after one of device scope by its own block.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// The first two; empty ones have no bytes.
    first: [Entry; 2],
    /// The others.
    #[expect(clippy::box_collection, reason = "most cells have none, and there is one for each word: 8 bytes, not 24")]
    more: Option<Box<Vec<Entry>>>,
}

/// The most entries a cell keeps. More are only needed where very many threads make strong or crowded accesses without
/// any order; then the oldest is forgotten, and with it a race of which it is a part.
const MOST: usize = 256;

/// Entries beside the first two up to which nothing is allocated to decide what becomes of them.
const FEW: usize = 6;

/// What becomes of an earlier access when another one happens.
#[derive(Clone, Copy)]
enum Fate {
    /// It may still race with others.
    Stays,
    /// The later one says as much, for its bytes.
    Goes,
    /// The later one says as much of its own threads.
    WithoutThreads,
}

/// What an access met.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Met {
    /// An access that it races with, and one of its threads.
    pub(super) conflict: Option<(Entry, u32)>,
    /// Whether it took the place of a strong write.
    pub(super) ends_strong: bool,
}

impl Cell {
    /// All places for entries, with the empty ones.
    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    /// What `new` races with, if it happened now.
    pub(super) fn check(&self, new: &Entry, orders: &impl Orders) -> Option<(Entry, u32)> {
        for (at, entry) in self.all().enumerate() {
            if !entry.conflicts(new) {
                continue;
            }
            if let Some(thread) = orders.unordered(entry) {
                if entry.strong() && entry.writes() && self.observed(at, entry, new, orders) {
                    continue;
                }
                return Some((*entry, thread));
            }
        }
        None
    }

    /// Whether somebody read a strong write who is ordered before `new`: then the write itself is (causality order of
    /// the ISA). Every read that is kept after it, and before another write, saw it: otherwise it was a race.
    fn observed(&self, at: usize, write: &Entry, new: &Entry, orders: &impl Orders) -> bool {
        let bytes = write.bytes & new.bytes;
        let lasts = |later: &&Entry| !later.overwrites() || later.bytes & bytes == 0;
        let saw = |reader: &&Entry| reader.kind & READ != 0 && reader.bytes & bytes == bytes;
        let readers = self.all().skip(at + 1).take_while(lasts).filter(saw);
        let mut readers = readers.peekable();
        readers.peek().is_some()
            && readers.fold(orders.ignorant(write), |rest, reader| rest & !orders.aware(reader)) == 0
    }

    /// Makes an access.
    #[inline]
    pub(super) fn access(&mut self, new: Entry, orders: &impl Orders) -> Met {
        if self.access_simply(&new, orders) {
            return Met::default();
        }
        if new.strong() || self.all().any(|entry| entry.bytes != 0 && entry.strong()) {
            return self.access_among_strong(new, orders);
        }
        Met { conflict: self.access_plain(new, orders), ends_strong: false }
    }

    /// As [`Cell::access_plain`], where there is hardly anything to decide: whole words that were written once, and since
    /// then read by one instruction or counted in. `false` where there is more, and nothing is changed.
    #[inline(always)]
    fn access_simply(&mut self, new: &Entry, orders: &impl Orders) -> bool {
        // Of the engine or strong, or remembering what came before them, entries take another way.
        let is = |entry: &Entry, touch: u8| entry.bytes == 15 && entry.kind & !DRIVER == touch;
        let [first, second] = &mut self.first;
        if self.more.is_some() || new.bytes != 15 {
            return false;
        }
        let goes = |entry: &Entry| {
            entry.bytes == 0 || (is(entry, READ) || is(entry, WRITE)) && orders.is_simply_ordered(entry)
        };
        match new.kind {
            WRITE if goes(first) && goes(second) => {
                self.first = [*new, Entry::default()];
                true
            }
            READ => {
                // The place of reads: behind the write, if there is one.
                let place = if is(first, WRITE) {
                    if !orders.is_simply_ordered(first) {
                        return false;
                    }
                    second
                } else if second.bytes == 0 {
                    first
                } else {
                    return false;
                };
                if place.bytes == 0 || is(place, READ) && orders.is_simply_ordered(place) {
                    *place = *new;
                    return true;
                }
                // A read of the same clock is not ordered, but by its own thread: there is one entry for both.
                place.merge(new)
            }
            // A counter: the last read-modify-write of a chain says it all.
            kind if kind & (READ | WRITE | STRONG) == READ | WRITE | STRONG => {
                let chains =
                    |entry: &Entry| entry.bytes == 15 && entry.kind & !RESETS == kind && entry.atomic_with(new);
                let place = match (chains(first), is(first, WRITE) && orders.is_simply_ordered(first)) {
                    (true, _) if second.bytes == 0 => first,
                    (_, true) if second.bytes == 0 || chains(second) => second,
                    _ => return false,
                };
                let resets = if place.bytes == 0 { 0 } else { place.kind & RESETS };
                *place = Entry { kind: kind | resets, ..*new };
                true
            }
            _ => false,
        }
    }

    /// As [`Cell::access_among_strong`], where that has less to decide: neither what is here nor `new` is strong, so that
    /// no chain and no observed write counts. Most words of most programs are like this. Returns the conflict.
    #[inline]
    fn access_plain(&mut self, mut new: Entry, orders: &impl Orders) -> Option<(Entry, u32)> {
        let writes = new.writes();
        let (mut conflict, mut kept, mut overwritten) = (None, 0, 0);
        for entry in self.slots() {
            let shared = entry.bytes & new.bytes;
            let before = *entry;
            if shared != 0 {
                if conflict.is_none() && (writes || before.writes()) {
                    conflict = orders.unordered(&before).map(|thread| (before, thread));
                }
                if writes || !before.writes() && orders.is_ordered(&before) {
                    entry.bytes &= !new.bytes;
                } else if !before.writes() && entry.bytes == shared {
                    entry.without_threads_of(&new);
                }
            }
            let gone = before.bytes & !entry.bytes;
            if gone != 0 && before.overwrites() {
                overwritten |= gone;
            } else if overwritten & entry.bytes != 0 {
                entry.kind |= RESETS;
                overwritten &= !entry.bytes;
            }
            kept += usize::from(entry.bytes != 0);
        }
        if overwritten != 0 && !writes {
            new.kind |= RESETS;
        }
        if kept == 0 || !self.merge(&new, orders) {
            self.push(new, kept);
        }
        conflict
    }

    /// Makes an access that is strong, or where some were.
    fn access_among_strong(&mut self, mut new: Entry, orders: &impl Orders) -> Met {
        let mut met = Met { conflict: self.check(&new, orders), ends_strong: false };
        let mut few = [Fate::Stays; 2 + FEW];
        let mut many = Vec::new();
        let count = 2 + self.more.as_ref().map_or(0, |more| more.len());
        let fates = match few.get_mut(..count) {
            Some(few) => few,
            None => {
                many.resize(count, Fate::Stays);
                many.as_mut_slice()
            }
        };
        for (at, fate) in fates.iter_mut().enumerate() {
            *fate = self.fate(at, &new, orders);
        }
        let (mut kept, mut overwritten) = (0, 0);
        for (entry, fate) in self.slots().zip(&*fates) {
            let before = *entry;
            match fate {
                Fate::Stays => {}
                Fate::Goes => entry.bytes &= !new.bytes,
                Fate::WithoutThreads => entry.without_threads_of(&new),
            }
            let gone = before.bytes & !entry.bytes;
            met.ends_strong |= !new.strong() && before.strong() && before.writes() && gone != 0;
            if before.overwrites() && gone != 0 {
                overwritten |= gone;
            } else if overwritten & entry.bytes != 0 {
                entry.kind |= RESETS;
                overwritten &= !entry.bytes;
            }
            kept += usize::from(entry.bytes != 0);
        }
        if overwritten != 0 && (new.strong() || !new.writes()) {
            new.kind |= RESETS;
        }
        if kept == 0 || !self.merge(&new, orders) {
            self.push(new, kept);
        }
        met
    }

    fn entry(&self, at: usize) -> Entry {
        match at {
            0 | 1 => self.first[at],
            _ => self.more.as_ref().and_then(|more| more.get(at - 2)).copied().unwrap_or_default(),
        }
    }

    /// What becomes of an entry when `new` happens.
    fn fate(&self, at: usize, new: &Entry, orders: &impl Orders) -> Fate {
        let entry = self.entry(at);
        if entry.bytes & new.bytes == 0 {
            return Fate::Stays;
        }
        if new.writes() && !new.strong() {
            return Fate::Goes;
        }
        if new.rank() < entry.rank() || entry.writes() && !new.writes() {
            return Fate::Stays;
        }
        // Of a chain of read-modify-writes the last says it all.
        let update = new.kind & (READ | WRITE) == READ | WRITE;
        let overwrites = |later: &Entry| later.overwrites() && later.bytes & entry.bytes != 0;
        if update && entry.writes() && entry.atomic_with(new) && !self.all().skip(at + 1).any(overwrites) {
            return Fate::Goes;
        }
        if !new.writes() && self.is_evidence(at, new.bytes) {
            return Fate::Stays;
        }
        let strong_write = entry.strong() && entry.writes();
        if orders.unordered(&entry).is_none() || strong_write && self.observed(at, &entry, new, orders) {
            Fate::Goes
        } else if entry.bytes & !new.bytes == 0 {
            Fate::WithoutThreads
        } else {
            Fate::Stays
        }
    }

    /// Whether a read is the first that its threads made of a strong write: what [`Cell::observed`] goes by.
    fn is_evidence(&self, at: usize, bytes: u8) -> bool {
        let reader = self.entry(at);
        if reader.overwrites() {
            return false;
        }
        for earlier in (0..at).rev().map(|earlier| self.entry(earlier)).filter(|earlier| earlier.bytes & bytes != 0) {
            if earlier.writes() || earlier.overwrites() {
                return earlier.writes() && earlier.strong();
            }
            let whose = |entry: &Entry| (entry.stream, entry.sequence, entry.block, entry.kind & ENGINE);
            if whose(&earlier) == whose(&reader)
                && reader.bytes & !earlier.bytes == 0
                && reader.warps & !earlier.warps == 0
                && reader.lanes & !earlier.lanes == 0
            {
                return false;
            }
        }
        false
    }

    fn slots(&mut self) -> impl DoubleEndedIterator<Item = &mut Entry> {
        self.first.iter_mut().chain(self.more.iter_mut().flat_map(|more| more.iter_mut()))
    }

    /// Merges `new` into an entry, unless a write to its bytes lies between, or it is one and somebody read since; and
    /// the result into another entry, as long as that goes on.
    fn merge(&mut self, new: &Entry, orders: &impl Orders) -> bool {
        let (mut current, mut at) = (*new, None);
        loop {
            let count = 2 + self.more.as_ref().map_or(0, |more| more.len());
            let mut merged = None;
            for (back, entry) in self.slots().rev().enumerate() {
                let index = count - 1 - back;
                if at == Some(index) || entry.bytes == 0 {
                    continue;
                }
                if entry.merge(&current) || !entry.writes() && orders.crowd(entry, &current) {
                    current = *entry;
                    merged = Some(index);
                    break;
                }
                if (entry.writes() || new.writes()) && entry.bytes & new.bytes != 0 {
                    break;
                }
            }
            let Some(index) = merged else { return at.is_some() };
            if let Some(old) = at.replace(index).and_then(|old| self.slots().nth(old)) {
                old.bytes = 0;
            }
        }
    }

    fn push(&mut self, new: Entry, kept: usize) {
        if kept == 0 {
            self.first = [new, Entry::default()];
            self.more = None;
            return;
        }
        // Empty places are filled in the order of time.
        if self.first[0].bytes == 0 {
            self.first.swap(0, 1);
        }
        if let Some(more) = &mut self.more {
            more.retain(|entry| entry.bytes != 0);
            for first in self.first.iter_mut().filter(|first| first.bytes == 0) {
                if more.is_empty() {
                    break;
                }
                *first = more.remove(0);
            }
        }
        let rest = self.more.as_ref().is_some_and(|more| !more.is_empty());
        match self.first.iter_mut().find(|first| first.bytes == 0) {
            Some(first) if !rest => *first = new,
            _ => {
                let more = self.more.get_or_insert_default();
                if more.len() >= MOST {
                    more.remove(0);
                }
                more.push(new);
            }
        }
    }

    /// Puts a write in the place of everything else, without asking for its order.
    pub(super) fn replace(&mut self, new: Entry) {
        struct Always;
        impl Orders for Always {
            fn unordered(&self, _: &Entry) -> Option<u32> {
                None
            }
            fn ignorant(&self, _: &Entry) -> u32 {
                0
            }
            fn aware(&self, _: &Entry) -> u32 {
                u32::MAX
            }
        }
        self.access(new, &Always);
    }
}
