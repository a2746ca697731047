//! The ranks of one communicator, and what they exchange.

use crate::reduce::{Number, Reduction, reduce};
use emulator_link::Progress;
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

    /// What the ranks make together of what each handed in.
    fn combine(&self, parts: &[Option<Vec<u8>>]) -> Vec<u8> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_deref().unwrap_or_default()).collect();
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

/// One collective under way.
struct Round {
    collective: Collective,
    parts: Vec<Option<Vec<u8>>>,
    result: Option<Arc<Vec<u8>>>,
    taken: usize,
    /// Why it cannot be done.
    failed: bool,
}

#[derive(Default)]
struct Inner {
    joined: Vec<bool>,
    rounds: HashMap<u64, Round>,
    /// Messages from one rank to another.
    messages: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
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

    /// A rank has come to the collective of this number: hands in what it has not yet (`part`), takes what is there.
    pub(crate) fn meet(
        &self,
        number: u64,
        rank: usize,
        collective: Collective,
        part: &mut Option<Vec<u8>>,
        take: impl FnOnce(&[u8]),
    ) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
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
        if let Some(part) = part.take() {
            round.parts[rank] = Some(part);
        }
        if !round.failed && round.result.is_none() {
            if round.parts.contains(&None) {
                return Progress::Waiting;
            }
            round.result = Some(Arc::new(collective.combine(&round.parts)));
            round.parts.clear();
        }
        let (result, failed) = (round.result.clone(), round.failed);
        round.taken += 1;
        if round.taken == ranks {
            inner.rounds.remove(&number);
        }
        drop(inner);
        match result.filter(|_| !failed) {
            Some(result) => {
                take(collective.share(&result, rank, ranks));
                Progress::Done
            }
            None => Progress::Failed(LAUNCH_FAILED),
        }
    }

    /// Leaves a message. It need not be waited for: what is sent is a copy.
    pub(crate) fn send(&self, from: usize, to: usize, message: Vec<u8>) {
        self.lock().messages.entry((from, to)).or_default().push_back(message);
    }

    /// Takes a message, if there is one.
    pub(crate) fn receive(&self, from: usize, to: usize, bytes: usize, take: impl FnOnce(&[u8])) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
        }
        let Some(message) = inner.messages.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return Progress::Waiting;
        };
        drop(inner);
        if message.len() != bytes {
            eprintln!("emulator: rank {from} sends {} bytes, of which rank {to} expects {bytes}", message.len());
            return Progress::Failed(LAUNCH_FAILED);
        }
        take(&message);
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[i32]) -> Option<Vec<u8>> {
        Some(numbers.iter().flat_map(|number| number.to_ne_bytes()).collect())
    }

    #[test]
    fn ranks_wait_for_each_other_and_take_their_share() {
        let clique = Clique::new(2);
        let collective = Collective { kind: Kind::ReduceScatter(Reduction::Sum), number: Number::I32, count: 1 };
        let nothing = |_: &[u8]| panic!("there is nothing yet");
        assert_eq!(clique.meet(1, 0, collective, &mut bytes(&[1, 2]), nothing), Progress::Waiting);
        assert_eq!(clique.meet(1, 0, collective, &mut None, nothing), Progress::Waiting);
        let mut taken = Vec::new();
        let mut take = |share: &[u8]| taken = share.to_vec();
        assert_eq!(clique.meet(1, 1, collective, &mut bytes(&[10, 20]), &mut take), Progress::Done);
        assert_eq!(Some(taken), bytes(&[22]));
        let mut taken = Vec::new();
        assert_eq!(clique.meet(1, 0, collective, &mut None, |share| taken = share.to_vec()), Progress::Done);
        assert_eq!(Some(taken), bytes(&[11]));
        assert!(clique.lock().rounds.is_empty());
    }

    #[test]
    fn ranks_that_disagree_fail_and_an_abort_frees_them() {
        let clique = Clique::new(2);
        let sum = Collective { kind: Kind::AllReduce(Reduction::Sum), number: Number::I32, count: 2 };
        let nothing = |_: &[u8]| panic!("there is nothing to take");
        assert_eq!(clique.meet(1, 0, sum, &mut bytes(&[1, 2]), nothing), Progress::Waiting);
        let shorter = Collective { count: 1, ..sum };
        assert_eq!(clique.meet(1, 1, shorter, &mut bytes(&[1]), nothing), Progress::Failed(LAUNCH_FAILED));
        assert_eq!(clique.meet(1, 0, sum, &mut None, nothing), Progress::Failed(LAUNCH_FAILED));
        assert_eq!(clique.meet(2, 0, sum, &mut bytes(&[1, 2]), nothing), Progress::Waiting);
        clique.abort();
        assert_eq!(clique.meet(2, 0, sum, &mut None, nothing), Progress::Done);
    }

    #[test]
    fn messages_arrive_in_order_and_whole() {
        let clique = Clique::new(2);
        assert_eq!(clique.receive(0, 1, 1, |_| panic!("nothing was sent")), Progress::Waiting);
        clique.send(0, 1, vec![1]);
        clique.send(0, 1, vec![2]);
        let mut taken = Vec::new();
        assert_eq!(clique.receive(0, 1, 1, |message| taken = message.to_vec()), Progress::Done);
        assert_eq!(taken, [1]);
        assert_eq!(clique.receive(0, 1, 2, |_| panic!("of another size")), Progress::Failed(LAUNCH_FAILED));
    }
}
