//! Shared memory of a thread block, and what is known of every access: to shared memory, and to that of the device.

use super::context::{Access, LaneBytes, WIDEST};
use super::launch::{Environment, Launch};
use super::registers::{Double, LANES, lanes};
use crate::check::batch::{Batch, Conflict, Other};
use crate::check::clocks::{Clocks, Gathering, Order, Scope, Touch};
use crate::check::{initialized, shared};
use crate::memory::Allocation;
use crate::profile::Counters;
use crate::report::{Finding, Kind, Place, ThreadId};
use std::sync::Arc;

/// Shared memory of a thread block, and who did what with memory of any space.
pub struct BlockMemory {
    /// Number of the block.
    pub number: u64,
    /// Counts, where they are wanted.
    pub counters: Option<Counters>,
    /// Where in the snapshot the last access to global memory was.
    pub last_allocation: usize,
    /// Where those before it were, which the launch may reach.
    pub(crate) earlier_allocations: [usize; 4],
    /// Operations that wrote to memory.
    pub writes: u64,
    /// What a store is about to write, for those who look.
    pub storing: Option<Box<LaneBytes>>,
    /// Room for the values of the next store.
    room: Option<Box<LaneBytes>>,
    words: Vec<u64>,
    length: usize,
    threads: u32,
    initialized: Option<initialized::Owned>,
    races: Option<Races>,
}

/// What races are found by.
struct Races {
    clocks: Clocks,
    shadow: shared::Shared,
    barriers: [Gathering; 16],
}

impl BlockMemory {
    pub(crate) fn new(launch: &Launch<'_>) -> Self {
        let length = launch.shared();
        let threads = launch.threads() as u32;
        let races = || Races {
            clocks: Clocks::new(0, threads),
            shadow: shared::Shared::new(length),
            barriers: Default::default(),
        };
        Self {
            number: 0,
            counters: launch.options.profile.then(|| Counters::new(launch.program.steps.len())),
            last_allocation: usize::MAX,
            earlier_allocations: [usize::MAX; 4],
            writes: 0,
            storing: None,
            room: None,
            words: vec![0; length.div_ceil(8)],
            length,
            threads,
            initialized: launch.options.uninitialized.then(|| initialized::Owned::new(length)),
            races: launch.options.races.then(races),
        }
    }

    pub(crate) fn restart(&mut self, number: u64) {
        self.number = number;
        self.last_allocation = usize::MAX;
        if let Some(counters) = &mut self.counters {
            *counters = Counters::new(counters.lines().len());
        }
        if let Some(initialized) = &mut self.initialized {
            initialized.reset();
        }
        if let Some(races) = &mut self.races {
            races.clocks = Clocks::new(number as u32, self.threads);
            races.shadow.reset();
            races.barriers = Default::default();
        }
    }

    /// Where shared memory begins, and how many bytes it has.
    #[inline(always)]
    pub(crate) fn bytes(&mut self) -> (*mut u8, usize) {
        (self.words.as_mut_ptr().cast(), self.length)
    }

    /// Whether accesses are looked at.
    #[inline(always)]
    pub(crate) fn watches(&self) -> bool {
        self.initialized.is_some() || self.races.is_some()
    }

    /// Whether somebody compares what the lanes of a store write.
    #[inline(always)]
    pub(crate) fn compares_values(&self) -> bool {
        self.races.is_some()
    }

    /// Room for what a store writes, whatever is in it.
    pub(crate) fn room_for_values(&mut self) -> Box<LaneBytes> {
        self.room.take().unwrap_or_else(|| Box::new([[0; WIDEST]; LANES]))
    }

    /// A store has been looked at.
    #[inline(always)]
    pub(crate) fn end_store(&mut self) {
        if self.storing.is_some() {
            self.room = self.storing.take();
        }
    }

    /// Looks at an access of shared memory that is within bounds.
    #[cold]
    pub(crate) fn observe(&mut self, environment: &Environment<'_>, access: &Observed<'_>) {
        if let Some(initialized) = &mut self.initialized {
            let settled = access.settle(access.addresses, |range| initialized.first_unset(range).is_none());
            if settled == Settled::Written {
                initialized.set(access.span(access.addresses));
            }
            for lane in lanes(if settled == Settled::No { access.mask } else { 0 }) {
                let range = access.addresses[lane] as usize..access.addresses[lane] as usize + access.size;
                if access.access.reads() && initialized.first_unset(range.clone()).is_some() {
                    let message =
                        format!("reads {} bytes of shared memory at {:#x} that nobody wrote", access.size, range.start);
                    environment.find(Kind::Uninitialized, access.pc, access.first_thread + lane, self.number, message);
                }
                if access.access.writes() {
                    initialized.set(range);
                }
            }
        }
        if let Some(races) = &mut self.races {
            let batch = access.batch(access.addresses, access.mask, self.storing.as_deref());
            if let Some(conflict) = races.shadow.access(&mut races.clocks, &batch) {
                self.race(environment, access, &conflict, "shared memory", 0);
            }
        }
    }

    /// Looks at an access of one allocation of global memory that is within bounds.
    #[cold]
    pub(crate) fn observe_global(
        &mut self,
        environment: &Environment<'_>,
        access: &Observed<'_>,
        allocation: &Arc<Allocation>,
    ) {
        let offsets: Double = access.addresses.map(|address| address.wrapping_sub(allocation.base));
        if let Some(initialized) = &allocation.initialized {
            let settled = access.settle(&offsets, |range| initialized.first_unset(range).is_none());
            if settled == Settled::Written {
                initialized.set(access.span(&offsets));
            }
            for lane in lanes(if settled == Settled::No { access.mask } else { 0 }) {
                let range = offsets[lane] as usize..offsets[lane] as usize + access.size;
                if access.access.reads() && initialized.first_unset(range.clone()).is_some() {
                    let address = access.addresses[lane];
                    let message = format!("reads {} bytes at {address:#x} that nobody wrote", access.size);
                    environment.find(Kind::Uninitialized, access.pc, access.first_thread + lane, self.number, message);
                }
                if access.access.writes() {
                    initialized.set(range);
                }
            }
        }
        if let Some(races) = &mut self.races {
            let batch = access.batch(&offsets, access.mask, self.storing.as_deref());
            let found =
                allocation.shadow.access(&environment.order, environment.memory.labels(), &mut races.clocks, &batch);
            if let Some(conflict) = found {
                self.race(environment, access, &conflict, "global memory", allocation.base);
            }
        }
    }

    /// Reports a race.
    fn race(&self, environment: &Environment<'_>, access: &Observed<'_>, conflict: &Conflict, memory: &str, base: u64) {
        let places = &environment.launch.program.places;
        let place = |pc: u32| places.get(pc as usize).cloned().unwrap_or_default();
        let other: (Place, Option<ThreadId>) = match &conflict.other {
            Other::Thread { block, thread, pc, .. } => {
                (place(*pc), Some(environment.thread(u64::from(*block), *thread as usize)))
            }
            Other::SameInstruction { thread } => {
                (place(access.pc as u32), Some(environment.thread(self.number, *thread as usize)))
            }
            Other::InFlight { thread, pc, .. } => (place(*pc), Some(environment.thread(self.number, *thread as usize))),
            Other::Engine { block, pc } => (place(*pc), Some(environment.thread(u64::from(*block), 0))),
            Other::Operation { label, .. } => (Place { instruction: label.to_string(), ..Place::default() }, None),
        };
        environment.findings.add(Finding {
            kind: Kind::Race,
            kernel: environment.launch.program.name.clone(),
            place: places.get(access.pc).cloned(),
            thread: Some(environment.thread(self.number, access.first_thread + conflict.lane as usize)),
            message: format!("race in {memory} at {:#x}: {conflict}", base + conflict.offset),
            other: Some(other),
        });
    }

    /// An asynchronous copy by a thread begins to write shared bytes, or with `writes` false to read them.
    pub(crate) fn begin_copy(
        &mut self,
        environment: &Environment<'_>,
        pc: usize,
        thread: usize,
        offset: u64,
        size: usize,
        writes: bool,
    ) {
        let Some(races) = &mut self.races else { return };
        let found = races.shadow.begin(&races.clocks, (thread as u32, pc as u32), offset, size, writes);
        if let Some(conflict) = found {
            let first_thread = thread / LANES * LANES;
            let conflict = Conflict { lane: (thread % LANES) as u32, ..conflict };
            let access = if writes { Access::STORE } else { Access::LOAD };
            let observed = Observed { pc, first_thread, mask: 0, addresses: &[0; LANES], size, access };
            self.race(environment, &observed, &conflict, "shared memory", 0);
        }
    }

    /// An asynchronous copy has landed: its issuer waited for it, or it will be known by an mbarrier (`by_engine`).
    pub(crate) fn land_copy(&mut self, offset: u64, size: usize, by_engine: bool) {
        if let Some(initialized) = &mut self.initialized {
            initialized.set(offset as usize..offset as usize + size);
        }
        if let Some(races) = &mut self.races {
            races.shadow.land(&races.clocks, offset, size, by_engine);
        }
    }

    /// A thread arrives at the mbarrier at `offset` (`release`), or was told by it that a phase is over.
    pub(crate) fn mbarrier(&mut self, thread: usize, offset: u64, release: bool) {
        if let Some(races) = &mut self.races {
            let (touch, order) = if release { (Touch::Update, Order::Release) } else { (Touch::Load, Order::Acquire) };
            races.clocks.strong_shared(thread as u32, offset, touch, order, Scope::Block);
        }
    }

    /// The engine of asynchronous copies signals the mbarrier at `offset`.
    pub(crate) fn engine_signals(&mut self, offset: u64) {
        if let Some(races) = &mut self.races {
            races.clocks.engine_signals(offset);
        }
    }

    /// `fence` by lanes of a warp.
    pub(crate) fn fence(&mut self, warp: usize, mask: u32, scope: Scope) {
        if let Some(races) = &mut self.races {
            races.clocks.fence(warp, mask, scope);
        }
    }

    /// Lanes of a warp arrive at a barrier, to wait there or to go on.
    pub(crate) fn arrive(&mut self, barrier: usize, warp: usize, mask: u32, waits: bool) {
        let Some(races) = &mut self.races else { return };
        let Some(barrier) = races.barriers.get_mut(barrier) else { return };
        if waits {
            races.clocks.wait(barrier, warp, mask);
        } else {
            races.clocks.arrive(barrier, warp, mask);
        }
    }

    /// A barrier lets those go that wait.
    pub(crate) fn complete(&mut self, barrier: usize) {
        let Some(races) = &mut self.races else { return };
        if let Some(barrier) = races.barriers.get_mut(barrier) {
            races.clocks.complete(barrier);
        }
    }

    /// `bar.warp.sync`.
    pub(crate) fn synchronize_warp(&mut self, warp: usize, mask: u32) {
        if let Some(races) = &mut self.races {
            races.clocks.warp_sync(warp, mask);
        }
    }
}

/// An access by lanes of a warp.
pub(crate) struct Observed<'a> {
    pub(crate) pc: usize,
    pub(crate) first_thread: usize,
    pub(crate) mask: u32,
    pub(crate) addresses: &'a Double,
    pub(crate) size: usize,
    pub(crate) access: Access,
}

/// What is clear of an access as a whole, without a look at each lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// Nothing.
    No,
    /// All that is read was written before, and what it writes as well.
    Nothing,
    /// It writes one run of bytes, and reads nothing.
    Written,
}

impl Observed<'_> {
    /// From the first byte that any lane accesses to the last one.
    #[inline]
    fn span(&self, offsets: &Double) -> std::ops::Range<usize> {
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in lanes(self.mask) {
            (low, high) = (low.min(offsets[lane]), high.max(offsets[lane]));
        }
        low as usize..high as usize + self.size
    }

    /// Whether the access is settled; `written` says whether all of a range was.
    fn settle(&self, offsets: &Double, written: impl Fn(std::ops::Range<usize>) -> bool) -> Settled {
        let span = self.span(offsets);
        if span.len() > LANES * self.size.max(16) {
            return Settled::No;
        }
        let first = offsets[0];
        let run = |lane: usize| offsets[lane] == first + (lane * self.size) as u64;
        if !self.access.reads() && self.mask == u32::MAX && (0..LANES).all(run) {
            return Settled::Written;
        }
        if written(span) { Settled::Nothing } else { Settled::No }
    }

    fn batch<'a>(&self, offsets: &'a Double, mask: u32, values: Option<&'a LaneBytes>) -> Batch<'a> {
        let (warp, size, access, pc) = (self.first_thread / LANES, self.size, self.access, self.pc as u32);
        Batch { warp, mask, offsets, size, access, pc, values: values.filter(|_| access == Access::STORE) }
    }
}
