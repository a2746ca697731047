//! The sixteen barriers of a thread block.

use crate::report::Kind;

/// Threads of one warp that arrive at a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) warp: usize,
    pub(crate) lanes: u32,
    /// Lanes of the warp without a thread, or whose thread has exited.
    pub(crate) gone: u32,
    /// Lanes that vote with a predicate that holds.
    pub(crate) holds: u32,
    pub(crate) pc: usize,
    /// Whether all threads of a warp must be at the same instruction.
    pub(crate) aligned: bool,
    /// How many threads the barrier is for; all that have not exited, where there is no number.
    pub(crate) count: Option<u32>,
}

/// A barrier at which all have arrived.
#[derive(Clone, Debug)]
pub(crate) struct Complete {
    pub(crate) number: usize,
    /// Threads whose predicate holds, of those that vote.
    pub(crate) holding: u32,
    pub(crate) voting: u32,
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
            let say = |count: Option<u32>| count.map_or("all".to_owned(), |count| count.to_string());
            let message = format!(
                "waits at barrier {number} for {} threads, where others wait for {}",
                say(arrival.count),
                say(other.count)
            );
            return Err((Kind::Barrier, message));
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

    /// Takes the barriers at which all have arrived; `alive` counts the threads of the block that have not exited.
    pub(crate) fn take_complete(&mut self, alive: impl Fn() -> u32) -> Vec<Complete> {
        let mut complete = Vec::new();
        for (number, barrier) in self.barriers.iter_mut().enumerate() {
            let Some(first) = barrier.first() else { continue };
            let arrived: u32 = barrier.iter().map(|arrival| arrival.lanes.count_ones()).sum();
            let is_complete = match first.count {
                None => arrived >= alive(),
                Some(count) => {
                    // Warps are counted whole.
                    let mut gone = [0u32; 32];
                    for arrival in barrier.iter() {
                        gone[arrival.warp % 32] = arrival.gone;
                    }
                    arrived + gone.iter().map(|gone| gone.count_ones()).sum::<u32>() >= count
                }
            };
            if is_complete {
                let arrivals = std::mem::take(barrier);
                let holding = arrivals.iter().map(|arrival| arrival.holds.count_ones()).sum();
                complete.push(Complete { number, holding, voting: arrived });
            }
        }
        complete
    }
}
