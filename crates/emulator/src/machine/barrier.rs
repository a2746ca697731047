//! The sixteen barriers of a thread block.

use crate::report::Kind;

/// Threads of one warp that arrive at a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) warp: usize,
    pub(crate) lanes: u32,
    /// Lanes that vote with a predicate that holds.
    pub(crate) holds: u32,
    /// Whether this is a vote.
    pub(crate) votes: bool,
    pub(crate) pc: usize,
    /// Whether all threads of a warp must be at the same instruction.
    pub(crate) aligned: bool,
    /// How many threads the barrier is for, in whole warps.
    pub(crate) count: u32,
    /// Whether that is all there are, not a number that was given.
    pub(crate) for_all: bool,
}

/// A barrier at which all have arrived.
#[derive(Clone, Debug)]
pub(crate) struct Complete {
    pub(crate) number: usize,
    /// Threads whose predicate holds, of those that arrived.
    pub(crate) holding: u32,
    pub(crate) arrived: u32,
}

/// The barriers of a thread block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barriers {
    barriers: [Vec<Arrival>; 16],
}

impl Barriers {
    /// Notes an arrival.
    pub(crate) fn arrive(&mut self, number: usize, arrival: Arrival) -> Result<(), (Kind, String)> {
        let Some(barrier) = self.barriers.get_mut(number) else {
            return Err((Kind::Undefined, format!("there is no barrier {number}: they are numbered from 0 to 15")));
        };
        if let Some(other) = barrier.first().filter(|other| other.count != arrival.count) {
            let message = format!(
                "waits at barrier {number} for {} threads, where others wait for {}",
                arrival.count, other.count
            );
            return Err((Kind::Barrier, message));
        }
        // PTX ISA, `barrier`: what this does is unpredictable.
        if barrier.first().is_some_and(|other| other.votes != arrival.votes) {
            let message = format!("barrier {number} is used with .red and without at once");
            return Err((Kind::Undefined, message));
        }
        let elsewhere = barrier.iter().find(|other| other.warp == arrival.warp && other.pc != arrival.pc);
        if arrival.aligned && elsewhere.is_some_and(|other| other.aligned) {
            let message = format!(
                "waits at barrier {number}, while other lanes of its warp wait for it elsewhere in the program"
            );
            return Err((Kind::Barrier, message));
        }
        barrier.push(arrival);
        Ok(())
    }

    /// Takes the barriers at which all have arrived, of a block with so many warps. `gone` says which lanes of a warp have
    /// no thread, or one that has exited.
    pub(crate) fn take_complete(&mut self, warps: usize, gone: impl Fn(usize) -> u32) -> Vec<Complete> {
        let mut complete = Vec::new();
        for (number, barrier) in self.barriers.iter_mut().enumerate() {
            let Some(first) = barrier.first() else { continue };
            // A warp has arrived when all its threads have that have not exited (PTX ISA, `barrier`), and counts as 32. At
            // a barrier for all threads, warps that have exited count wherever they were; at one for a number, only those
            // that came can be told to belong to it.
            let is_for_all = barrier.iter().any(|arrival| arrival.for_all);
            let present = |warp: usize| {
                let here = barrier.iter().filter(|arrival| arrival.warp == warp);
                let lanes = here.fold(0, |lanes, arrival| lanes | arrival.lanes);
                let has_arrived = lanes | gone(warp) == u32::MAX && (is_for_all || lanes != 0);
                if has_arrived { u32::BITS } else { 0 }
            };
            if (0..warps).map(present).sum::<u32>() >= first.count {
                let arrivals = std::mem::take(barrier);
                let arrived = arrivals.iter().map(|arrival| arrival.lanes.count_ones()).sum();
                let holding = arrivals.iter().map(|arrival| arrival.holds.count_ones()).sum();
                complete.push(Complete { number, holding, arrived });
            }
        }
        complete
    }
}
