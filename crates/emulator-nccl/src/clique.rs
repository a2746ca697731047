//! The ranks of one communicator, and what they exchange.

use crate::reduce::{Number, Reduction, reduce};
use emulator_link::{Clock, Progress};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a rank's call does, as all ranks have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Collective {
    pub(crate) kind: Kind,
    pub(crate) number: Number,
    pub(crate) count: usize,
}

/// Of what kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AllReduce(Reduction),
    Reduce(Reduction, usize),
    Broadcast(usize),
    AllGather,
    /// `count` elements for each rank.
    ReduceScatter(Reduction),
}

impl Collective {
    /// Bytes that a rank hands in and takes.
    pub(crate) fn bytes(&self, rank: usize, ranks: usize) -> (usize, usize) {
        let one = self.count * self.number.size();
        match self.kind {
            Kind::AllReduce(_) => (one, one),
            Kind::Reduce(_, root) => (one, if rank == root { one } else { 0 }),
            Kind::Broadcast(root) => (if rank == root { one } else { 0 }, one),
            Kind::AllGather => (one, one * ranks),
            Kind::ReduceScatter(_) => (one * ranks, one),
        }
    }

    /// Whether what `rank` takes depends on what `other` hands in. Nothing else orders ranks: a root that only sends
    /// may be done before others have come.
    fn depends(&self, rank: usize, other: usize) -> bool {
        self.count > 0
            && match self.kind {
                Kind::AllReduce(_) | Kind::AllGather | Kind::ReduceScatter(_) => true,
                Kind::Reduce(_, root) => rank == root,
                Kind::Broadcast(root) => other == root,
            }
    }

    /// What the ranks make together of what each handed in.
    fn combine(&self, parts: &[Option<Part>]) -> Vec<u8> {
        let parts: Vec<&[u8]> =
            parts.iter().map(|part| part.as_ref().map_or(&[][..], |part| part.bytes.as_slice())).collect();
        match self.kind {
            Kind::AllReduce(reduction) | Kind::Reduce(reduction, _) | Kind::ReduceScatter(reduction) => {
                reduce(self.number, reduction, &parts)
            }
            Kind::Broadcast(root) => parts[root].to_vec(),
            Kind::AllGather => parts.concat(),
        }
    }

    /// What of it a rank takes.
    fn share<'a>(&self, whole: &'a [u8], rank: usize, ranks: usize) -> &'a [u8] {
        let bytes = self.bytes(rank, ranks).1;
        match self.kind {
            Kind::ReduceScatter(_) => &whole[rank * bytes..][..bytes],
            _ => &whole[..bytes],
        }
    }
}

/// What a rank hands in, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bytes: Vec<u8>,
    pub(crate) clock: Clock,
}

/// One collective under way.
struct Round {
    collective: Collective,
    parts: Vec<Option<Part>>,
    /// What the parts make, and when each was handed in.
    result: Option<Arc<(Vec<u8>, Vec<Clock>)>>,
    taken: usize,
    /// Why it cannot be done.
    failed: bool,
}

#[derive(Default)]
struct Inner {
    joined: Vec<bool>,
    rounds: HashMap<u64, Round>,
    /// Messages from one rank to another.
    messages: HashMap<(usize, usize), VecDeque<Part>>,
    aborted: bool,
}

/// The ranks of one communicator.
pub(crate) struct Clique {
    pub(crate) ranks: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// CUDA_ERROR_LAUNCH_FAILED: what a stream ends with when ranks disagree.
const LAUNCH_FAILED: u32 = 719;

impl Clique {
    pub(crate) fn new(ranks: usize) -> Arc<Self> {
        let inner = Inner { joined: vec![false; ranks], ..Inner::default() };
        Arc::new(Self { ranks, inner: Mutex::new(inner), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank is there; `false` if it was before.
    pub(crate) fn join(&self, rank: usize) -> bool {
        let fresh = !std::mem::replace(&mut self.lock().joined[rank], true);
        self.changed.notify_all();
        fresh
    }

    /// Waits until all ranks are there.
    pub(crate) fn wait(&self) {
        let mut inner = self.lock();
        let mut seconds = 0;
        while inner.joined.contains(&false) && !inner.aborted {
            let waited = self.changed.wait_timeout(inner, Duration::from_secs(1));
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            seconds += 1;
            if seconds == 10 {
                let missing: Vec<usize> = (0..self.ranks).filter(|&rank| !inner.joined[rank]).collect();
                eprintln!("emulator: a communicator waits for ranks {missing:?}");
            }
        }
    }

    /// What waits, waits no longer.
    pub(crate) fn abort(&self) {
        let mut inner = self.lock();
        inner.aborted = true;
        inner.rounds.clear();
        self.changed.notify_all();
    }

    /// A rank hands in its part of the collective of this number. This waits for nobody.
    pub(crate) fn hand_in(&self, number: u64, rank: usize, collective: Collective, part: Part) {
        let mut inner = self.lock();
        if inner.aborted {
            return;
        }
        let ranks = self.ranks;
        let round = inner.rounds.entry(number).or_insert_with(|| Round {
            collective,
            parts: vec![None; ranks],
            result: None,
            taken: 0,
            failed: false,
        });
        if round.collective != collective && !round.failed {
            round.failed = true;
            eprintln!(
                "emulator: ranks disagree on collective {number} of a communicator: {:?}, \
                 but rank {rank} calls {collective:?}",
                round.collective
            );
        }
        if let Some(own) = round.parts.get_mut(rank) {
            *own = Some(part);
        }
    }

    /// A rank that has handed in takes its share, once all have. `take` also gets the clocks of those whose parts are in
    /// it.
    pub(crate) fn take(&self, number: u64, rank: usize, take: impl FnOnce(&[u8], &[&Clock])) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
        }
        let ranks = self.ranks;
        let Some(round) = inner.rounds.get_mut(&number) else { return Progress::Failed(LAUNCH_FAILED) };
        let collective = round.collective;
        if !round.failed && round.result.is_none() {
            if round.parts.contains(&None) {
                return Progress::Waiting;
            }
            let whole = collective.combine(&round.parts);
            let parts = std::mem::take(&mut round.parts).into_iter();
            round.result = Some(Arc::new((whole, parts.map(|part| part.unwrap_or_default().clock).collect())));
        }
        let result = round.result.clone().filter(|_| !round.failed);
        round.taken += 1;
        if round.taken == ranks {
            inner.rounds.remove(&number);
        }
        drop(inner);
        let Some(result) = result else { return Progress::Failed(LAUNCH_FAILED) };
        let (whole, clocks) = &*result;
        let sources = clocks.iter().enumerate().filter(|(other, _)| collective.depends(rank, *other));
        let clocks: Vec<&Clock> = sources.map(|(_, clock)| clock).collect();
        take(collective.share(whole, rank, ranks), &clocks);
        Progress::Done
    }

    /// Leaves a message. It need not be waited for: what is sent is a copy.
    pub(crate) fn send(&self, from: usize, to: usize, message: Part) {
        self.lock().messages.entry((from, to)).or_default().push_back(message);
    }

    /// Takes a message, if there is one.
    pub(crate) fn receive(&self, from: usize, to: usize, bytes: usize, take: impl FnOnce(&Part)) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
        }
        let Some(message) = inner.messages.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return Progress::Waiting;
        };
        drop(inner);
        if message.bytes.len() != bytes {
            let sent = message.bytes.len();
            eprintln!("emulator: rank {from} sends {sent} bytes, of which rank {to} expects {bytes}");
            return Progress::Failed(LAUNCH_FAILED);
        }
        take(&message);
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[i32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn part(numbers: &[i32]) -> Part {
        Part { bytes: bytes(numbers), clock: Clock::default() }
    }

    fn nothing(_: &[u8], _: &[&Clock]) {
        panic!("there is nothing to take");
    }

    #[test]
    fn ranks_wait_for_each_other_and_take_their_share() {
        let clique = Clique::new(2);
        let collective = Collective { kind: Kind::ReduceScatter(Reduction::Sum), number: Number::I32, count: 1 };
        clique.hand_in(1, 0, collective, part(&[1, 2]));
        assert_eq!(clique.take(1, 0, nothing), Progress::Waiting);
        assert_eq!(clique.take(1, 0, nothing), Progress::Waiting);
        clique.hand_in(1, 1, collective, part(&[10, 20]));
        for (rank, expected) in [(1, 22), (0, 11)] {
            let mut taken = Vec::new();
            let mut take = |share: &[u8], clocks: &[&Clock]| {
                assert_eq!(clocks.len(), 2);
                taken = share.to_vec();
            };
            assert_eq!(clique.take(1, rank, &mut take), Progress::Done);
            assert_eq!(taken, bytes(&[expected]));
        }
        assert!(clique.lock().rounds.is_empty());
        assert_eq!(clique.take(1, 0, nothing), Progress::Failed(LAUNCH_FAILED));
    }

    #[test]
    fn ranks_depend_on_those_whose_data_they_take() {
        let of = |kind, count| {
            let collective = Collective { kind, number: Number::I32, count };
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(rank, other)| collective.depends(rank, other))
        };
        for kind in [Kind::AllReduce(Reduction::Sum), Kind::AllGather, Kind::ReduceScatter(Reduction::Sum)] {
            assert_eq!(of(kind, 1), [true; 4]);
            assert_eq!(of(kind, 0), [false; 4]);
        }
        assert_eq!(of(Kind::Reduce(Reduction::Sum, 1), 1), [false, false, true, true]);
        assert_eq!(of(Kind::Broadcast(1), 1), [false, true, false, true]);
    }

    #[test]
    fn ranks_that_disagree_fail_and_an_abort_frees_them() {
        let clique = Clique::new(2);
        let sum = Collective { kind: Kind::AllReduce(Reduction::Sum), number: Number::I32, count: 2 };
        clique.hand_in(1, 0, sum, part(&[1, 2]));
        assert_eq!(clique.take(1, 0, nothing), Progress::Waiting);
        let shorter = Collective { count: 1, ..sum };
        clique.hand_in(1, 1, shorter, part(&[1]));
        assert_eq!(clique.take(1, 1, nothing), Progress::Failed(LAUNCH_FAILED));
        assert_eq!(clique.take(1, 0, nothing), Progress::Failed(LAUNCH_FAILED));
        clique.hand_in(2, 0, sum, part(&[1, 2]));
        assert_eq!(clique.take(2, 0, nothing), Progress::Waiting);
        clique.abort();
        assert_eq!(clique.take(2, 0, nothing), Progress::Done);
    }

    #[test]
    fn messages_arrive_in_order_and_whole() {
        let clique = Clique::new(2);
        assert_eq!(clique.receive(0, 1, 4, |_| panic!("nothing was sent")), Progress::Waiting);
        clique.send(0, 1, part(&[1]));
        clique.send(0, 1, part(&[2]));
        let mut taken = Part::default();
        assert_eq!(clique.receive(0, 1, 4, |message| taken = message.clone()), Progress::Done);
        assert_eq!(taken, part(&[1]));
        assert_eq!(clique.receive(0, 1, 2, |_| panic!("of another size")), Progress::Failed(LAUNCH_FAILED));
    }
}
