//! Races in the shared memory of a thread block.

use super::batch::{Batch, Conflict, Group, Other, words};
use super::cell::{Access, Cell, ENGINE, Entry, Within};
use super::clocks::Clocks;

/// Words of a part of the shadow that is cleared as a whole.
const PART: usize = 64;

/// An asynchronous copy under way to or from a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flight {
    /// The thread that issued it, plus 1; 0 for none.
    thread: u32,
    pc: u32,
    writes: bool,
}

/// The shadow of a thread block's shared memory: what was done to each of its words.
#[derive(Debug)]
pub struct Shared {
    cells: Vec<Cell>,
    flights: Vec<Flight>,
    /// Which parts are not as new.
    touched: Vec<bool>,
}

impl Shared {
    /// The shadow of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let words = bytes.div_ceil(4);
        Self {
            cells: vec![Cell::default(); words],
            flights: vec![Flight::default(); words],
            touched: vec![false; words.div_ceil(PART)],
        }
    }

    /// Makes it new for another thread block; as long as what was used.
    pub fn reset(&mut self) {
        let parts = self.cells.chunks_mut(PART).zip(self.flights.chunks_mut(PART));
        for (touched, (cells, flights)) in self.touched.iter_mut().zip(parts) {
            if std::mem::take(touched) {
                cells.fill(Cell::default());
                flights.fill(Flight::default());
            }
        }
    }

    /// Makes an access by lanes of a warp; a strong one synchronizes too, lane by lane. Returns the first race that it
    /// is part of. What lies outside of the memory is not looked at.
    pub fn access(&mut self, clocks: &mut Clocks, batch: &Batch<'_>) -> Option<Conflict> {
        let mut groups = clocks.take_groups();
        batch.groups(&mut groups);
        let mut found = None;
        for group in &groups {
            let conflict = self.access_word(clocks, batch, group);
            found = found.or(conflict);
        }
        clocks.give_groups(groups);
        if let Some((order, scope)) = batch.access.strong {
            for lane in batch.lanes() {
                let thread = (batch.warp * 32 + lane) as u32;
                clocks.strong_shared(thread, batch.offsets[lane], batch.access.touch, order, scope);
            }
        }
        found
    }

    fn access_word(&mut self, clocks: &mut Clocks, batch: &Batch<'_>, group: &Group) -> Option<Conflict> {
        let word = group.word as usize;
        let cell = self.cells.get_mut(word)?;
        self.touched[word / PART] = true;
        let new = entry(clocks, batch, group);
        let within = Within { clocks, warp: batch.warp, lanes: group.lanes };
        let met = cell.access(new, &within);
        if met.ends_strong {
            clocks.forget(group.word * 4);
        }
        let conflict = |lane, other| {
            let (offset, writes) = (group.word * 4, new.writes());
            Some(Conflict { lane, offset, writes, other })
        };
        let lane = group.lanes.trailing_zeros();
        if batch.access == Access::STORE
            && let Some((first, second)) = batch.collision(group)
        {
            return conflict(second, Other::SameInstruction { thread: batch.warp as u32 * 32 + first });
        }
        let flight = self.flights[word];
        if flight.thread != 0 && (flight.writes || new.writes()) {
            return conflict(lane, in_flight(flight));
        }
        let (earlier, thread) = met.conflict?;
        let block = clocks.block();
        // Lanes of one instruction may know different things: name one that lacks the order.
        let lacks = |lane: &u32| {
            group.lanes >> lane & 1 == 1 && !clocks.knows(batch.warp as u32 * 32 + lane, thread, earlier.clock)
        };
        conflict((0..32).find(lacks).unwrap_or(lane), other_in_block(block, &earlier, thread))
    }

    /// An asynchronous copy, issued by `thread` at `pc`, begins to write (or to read, `writes` false) `size` bytes from
    /// `offset` on. Until [`Shared::land`], any other access there is a race. Returns the race that the copy itself is
    /// part of.
    pub fn begin(
        &mut self,
        clocks: &Clocks,
        (thread, pc): (u32, u32),
        offset: u64,
        size: usize,
        writes: bool,
    ) -> Option<Conflict> {
        let mut found = None;
        let (warp, lane) = (thread as usize / 32, thread % 32);
        words(offset, size, |word, bytes| {
            let Some(cell) = self.cells.get(word as usize) else { return };
            self.touched[word as usize / PART] = true;
            let access = if writes { Access::STORE } else { Access::LOAD };
            let new = Entry {
                bytes,
                kind: access.kind(),
                clock: clocks.now(),
                warps: 1 << warp,
                lanes: 1 << lane,
                pc,
                ..Entry::default()
            };
            let within = Within { clocks, warp, lanes: 1 << lane };
            let flight = &mut self.flights[word as usize];
            let other = if flight.thread != 0 && (flight.writes || writes) {
                Some(in_flight(*flight))
            } else {
                cell.check(&new, &within).map(|(earlier, other)| other_in_block(clocks.block(), &earlier, other))
            };
            *flight = Flight { thread: thread + 1, pc, writes };
            found = found.take().or(other.map(|other| Conflict { lane, offset: word * 4, writes, other }));
        });
        found
    }

    /// An asynchronous copy is over: `by_engine` if that becomes known by an mbarrier
    /// ([`Clocks::engine_signals`], after this), otherwise its issuer waits for it now (`cp.async.wait_group`,
    /// `cp.async.bulk.wait_group`), and the copy counts as the issuer's own access.
    pub fn land(&mut self, clocks: &Clocks, offset: u64, size: usize, by_engine: bool) {
        words(offset, size, |word, bytes| {
            let Some(flight) = self.flights.get_mut(word as usize).map(std::mem::take) else { return };
            let Some(thread) = flight.thread.checked_sub(1) else { return };
            let access = if flight.writes { Access::STORE } else { Access::LOAD };
            let mut new = Entry { bytes, kind: access.kind(), clock: clocks.now(), pc: flight.pc, ..Entry::default() };
            if by_engine {
                new.kind |= ENGINE;
            } else {
                (new.warps, new.lanes) = (1 << (thread / 32), 1 << (thread % 32));
            }
            if flight.writes {
                self.cells[word as usize].replace(new);
            } else {
                let within = Within { clocks, warp: thread as usize / 32, lanes: 1 << (thread % 32) };
                self.cells[word as usize].access(new, &within);
            }
        });
    }
}

fn in_flight(flight: Flight) -> Other {
    Other::InFlight { thread: flight.thread - 1, pc: flight.pc, writes: flight.writes }
}

/// The entry of a group, before stream operation and block.
pub(super) fn entry(clocks: &Clocks, batch: &Batch<'_>, group: &Group) -> Entry {
    Entry {
        clock: clocks.now(),
        warps: 1 << batch.warp,
        lanes: group.lanes,
        pc: batch.pc,
        bytes: group.bytes,
        kind: batch.access.kind(),
        ..Entry::default()
    }
}

pub(super) fn other_in_block(block: u32, earlier: &Entry, thread: u32) -> Other {
    match earlier.kind & ENGINE {
        0 => Other::Thread { block, thread, pc: earlier.pc, writes: earlier.writes() },
        _ => Other::Engine { block, pc: earlier.pc },
    }
}
