//! The ranks of one communicator, in the process that is host to them: what they hand in, and what they are sent for it.

use crate::codes::{Failure, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR};
use crate::inbox::{Bytes, Delivery, Inbox};
use crate::reduce::{Number, Reduction, reduce};
use crate::wire;
use emulator_link::Clock;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a rank's call does, as all ranks have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collective {
    pub(crate) kind: Kind,
    pub(crate) number: Number,
    pub(crate) count: usize,
}

/// Of what kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Whether a rank of so many may hand in so many bytes.
    pub(crate) fn fits(&self, rank: usize, ranks: usize, bytes: usize) -> bool {
        let most = self.count.checked_mul(self.number.size()).and_then(|one| one.checked_mul(ranks));
        let root = match self.kind {
            Kind::Reduce(_, root) | Kind::Broadcast(root) => root,
            Kind::AllReduce(_) | Kind::AllGather | Kind::ReduceScatter(_) => 0,
        };
        most.is_some() && root < ranks && bytes == self.bytes(rank, ranks).0
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
    fn combine(&self, parts: &[Part]) -> Vec<u8> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &*part.bytes).collect();
        match self.kind {
            Kind::AllReduce(reduction) | Kind::Reduce(reduction, _) | Kind::ReduceScatter(reduction) => {
                reduce(self.number, reduction, &parts)
            }
            Kind::Broadcast(root) => parts[root].to_vec(),
            Kind::AllGather => parts.concat(),
        }
    }

    /// What of it a rank takes.
    fn share(&self, rank: usize, ranks: usize) -> Range<usize> {
        let bytes = self.bytes(rank, ranks).1;
        match self.kind {
            Kind::ReduceScatter(_) => rank * bytes..(rank + 1) * bytes,
            _ => 0..bytes,
        }
    }
}

/// What a rank hands in or sends, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bytes: Bytes,
    pub(crate) clock: Clock,
}

/// Where a rank is in a collective.
#[derive(Clone, Debug)]
enum Turn {
    Missing,
    HandedIn(Part),
    /// It knows that the collective has failed.
    Told,
}

/// One collective under way.
struct Round {
    collective: Collective,
    turns: Vec<Turn>,
    /// Why it cannot be done.
    failed: Option<Failure>,
}

/// Where the deliveries for a rank go.
pub(crate) enum Address {
    Here(Arc<Inbox>),
    /// To another process, which reads whatever else it does: writing ends.
    There(UnixStream),
}

impl Address {
    fn deliver(&self, delivery: Delivery, bytes: Bytes) {
        match self {
            Self::Here(inbox) => inbox.put(delivery, bytes),
            // Of a process that is gone, whoever reads its requests hears.
            Self::There(stream) => drop(wire::write(stream, &delivery, &bytes)),
        }
    }
}

/// A rank that has joined.
struct Member {
    /// The clock of a rank's work tells something to ranks of the same process only, which has the same driver.
    process: u64,
    /// None once it has left.
    address: Option<Address>,
}

#[derive(Default)]
struct Inner {
    members: Vec<Option<Member>>,
    rounds: HashMap<u64, Round>,
}

/// The ranks of one communicator.
pub(crate) struct Clique {
    pub(crate) ranks: usize,
    inner: Mutex<Inner>,
}

impl Inner {
    fn has_left(&self, rank: usize) -> bool {
        self.members[rank].as_ref().is_some_and(|member| member.address.is_none())
    }

    fn deliver(&self, rank: usize, delivery: Delivery, bytes: Bytes) {
        if let Some(address) = self.members[rank].as_ref().and_then(|member| member.address.as_ref()) {
            address.deliver(delivery, bytes);
        }
    }

    /// The ranks that are there, those of other processes first: once a rank of the host has its share, all have, even if
    /// the host ends then.
    fn present(&self) -> impl Iterator<Item = (usize, &Member, &Address)> {
        let of = move |elsewhere: bool| {
            let present = self.members.iter().enumerate().filter_map(|(rank, member)| {
                let member = member.as_ref()?;
                member.address.as_ref().map(|address| (rank, member, address))
            });
            present.filter(move |(_, _, address)| matches!(address, Address::There(_)) == elsewhere)
        };
        of(true).chain(of(false))
    }

    /// Sends out what a collective has come to, if it has.
    fn settle(&mut self, number: u64) {
        let Some(mut round) = self.rounds.remove(&number) else { return };
        let missing = |turn: &Turn| matches!(turn, Turn::Missing);
        let mut absent = (0..).zip(&round.turns).filter(|(_, turn)| missing(turn)).map(|(rank, _)| rank);
        if let Some(left) = absent.find(|&rank| self.has_left(rank)) {
            round.failed.get_or_insert_with(|| (REMOTE_ERROR, departed(left)));
        }
        match &round.failed {
            Some((result, reason)) => {
                for (rank, _, address) in self.present() {
                    if matches!(round.turns[rank], Turn::HandedIn(_)) {
                        let failed = Delivery::Failed { number, result: *result, reason: reason.clone() };
                        address.deliver(failed, Bytes::default());
                        round.turns[rank] = Turn::Told;
                    }
                }
                // Others will come to this collective, and are to be told.
                if (0..).zip(&round.turns).any(|(rank, turn)| missing(turn) && !self.has_left(rank)) {
                    self.rounds.insert(number, round);
                }
            }
            None if round.turns.iter().any(missing) => _ = self.rounds.insert(number, round),
            None => self.share_out(number, round),
        }
    }

    /// Sends every rank its share of a collective for which all have handed in.
    fn share_out(&self, number: u64, round: Round) {
        let Round { collective, turns, .. } = round;
        let part = |turn| match turn {
            Turn::HandedIn(part) => part,
            Turn::Missing | Turn::Told => Part::default(),
        };
        let parts: Vec<Part> = turns.into_iter().map(part).collect();
        let whole = Arc::new(collective.combine(&parts));
        let process = |rank: usize| self.members[rank].as_ref().map(|member| member.process);
        for (rank, member, address) in self.present() {
            let sources = parts
                .iter()
                .enumerate()
                .filter(|&(other, _)| process(other) == Some(member.process) && collective.depends(rank, other));
            let clocks = sources.map(|(_, part)| part.clock.clone()).collect();
            let share = collective.share(rank, parts.len());
            address.deliver(Delivery::Share { number, clocks }, Bytes::of(&whole, share));
        }
    }
}

pub(crate) fn departed(rank: usize) -> String {
    format!("rank {rank} is gone: its communicator was aborted or destroyed, or its process has ended")
}

impl Clique {
    pub(crate) fn new(ranks: usize) -> Arc<Self> {
        let members = (0..ranks).map(|_| None).collect();
        Arc::new(Self { ranks, inner: Mutex::new(Inner { members, ..Inner::default() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank is there; whether it was the last to come.
    pub(crate) fn join(&self, rank: usize, ranks: usize, process: u64, address: Address) -> Result<bool, Failure> {
        if ranks != self.ranks {
            return Err((INVALID_ARGUMENT, format!("{ranks} ranks, where others say {}", self.ranks)));
        }
        let mut inner = self.lock();
        match inner.members.get_mut(rank) {
            None => return Err((INVALID_ARGUMENT, format!("rank {rank} of {ranks}"))),
            Some(Some(_)) => return Err((INVALID_USAGE, format!("rank {rank} is there already"))),
            Some(vacant) => *vacant = Some(Member { process, address: Some(address) }),
        }
        let all = inner.members.iter().all(Option::is_some);
        match (0..ranks).find(|&rank| inner.has_left(rank)) {
            // Whoever came before has heard of it.
            Some(left) => inner.deliver(rank, Delivery::Gone { rank: left }, Bytes::default()),
            None if all => {
                inner.present().for_each(|(_, _, address)| address.deliver(Delivery::Complete, Bytes::default()));
            }
            None => {}
        }
        Ok(all)
    }

    /// The ranks that have not come yet.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let inner = self.lock();
        (0..self.ranks).filter(|&rank| inner.members[rank].is_none()).collect()
    }

    /// Whether ranks are there of other processes.
    pub(crate) fn is_shared(&self) -> bool {
        self.lock().present().any(|(_, _, address)| matches!(address, Address::There(_)))
    }

    /// A rank takes part in nothing any more. What it has handed in and sent, stays.
    pub(crate) fn leave(&self, rank: usize) {
        let mut inner = self.lock();
        let Some(member) = &mut inner.members[rank] else { return };
        if member.address.take().is_none() {
            return;
        }
        for (_, _, address) in inner.present() {
            address.deliver(Delivery::Gone { rank }, Bytes::default());
        }
        let rounds: Vec<u64> = inner.rounds.keys().copied().collect();
        rounds.into_iter().for_each(|number| inner.settle(number));
    }

    /// A rank hands in its part of the collective of this number. This waits for nobody.
    pub(crate) fn hand_in(&self, rank: usize, number: u64, collective: Collective, part: Part) {
        let mut inner = self.lock();
        if inner.has_left(rank) {
            return;
        }
        let turns = || vec![Turn::Missing; self.ranks];
        let round = inner.rounds.entry(number).or_insert_with(|| Round { collective, turns: turns(), failed: None });
        if round.collective != collective {
            let reason = format!("ranks disagree: {:?}, but rank {rank} calls {collective:?}", round.collective);
            round.failed.get_or_insert((INVALID_USAGE, reason));
        }
        round.turns[rank] = Turn::HandedIn(part);
        inner.settle(number);
    }

    /// Leaves a message. It need not be waited for: what is sent is a copy.
    pub(crate) fn send(&self, from: usize, to: usize, message: Part) {
        let inner = self.lock();
        let process = |rank: usize| inner.members[rank].as_ref().map(|member| member.process);
        let clock = if process(from) == process(to) { message.clock } else { Clock::default() };
        inner.deliver(to, Delivery::Message { from, clock }, message.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emulator_link::Progress;

    const FAILED: Progress = Progress::Failed(crate::codes::LAUNCH_FAILED);

    fn bytes(numbers: &[i32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn part(numbers: &[i32]) -> Part {
        Part { bytes: bytes(numbers).into(), clock: Clock::default() }
    }

    fn nothing(_: &[u8], _: &[Clock]) {
        panic!("there is nothing to take");
    }

    /// A clique whose ranks are all there, in the processes of these numbers.
    fn clique(processes: &[u64]) -> (Arc<Clique>, Vec<Arc<Inbox>>) {
        let clique = Clique::new(processes.len());
        let join = |(rank, &process)| {
            let inbox = Inbox::new(rank);
            let last = clique.join(rank, clique.ranks, process, Address::Here(inbox.clone())).unwrap();
            assert_eq!(last, rank + 1 == clique.ranks);
            inbox
        };
        let inboxes: Vec<_> = processes.iter().enumerate().map(join).collect();
        inboxes.iter().for_each(|inbox| inbox.wait(|| panic!("all are there")).unwrap());
        (clique, inboxes)
    }

    const SUM: Collective = Collective { kind: Kind::AllReduce(Reduction::Sum), number: Number::I32, count: 2 };

    #[test]
    fn ranks_wait_for_each_other_and_take_their_share() {
        let (clique, inboxes) = clique(&[7, 7, 8]);
        let collective = Collective { kind: Kind::ReduceScatter(Reduction::Sum), number: Number::I32, count: 1 };
        for (rank, numbers) in [[1, 2, 3], [10, 20, 30], [100, 200, 300]].iter().enumerate() {
            assert_eq!(inboxes[0].take(1, nothing), Progress::Waiting);
            clique.hand_in(rank, 1, collective, part(numbers));
        }
        // With the clocks of its process.
        for (rank, expected, known) in [(1, 222, 2), (0, 111, 2), (2, 333, 1)] {
            let mut taken = Vec::new();
            let take = |share: &[u8], clocks: &[Clock]| {
                assert_eq!(clocks.len(), known);
                taken = share.to_vec();
            };
            assert_eq!(inboxes[rank].take(1, take), Progress::Done);
            assert_eq!(taken, bytes(&[expected]));
        }
        assert!(clique.lock().rounds.is_empty());
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
    fn what_does_not_fit_is_told() {
        let of = |kind, count, bytes| Collective { kind, number: Number::I32, count }.fits(1, 3, bytes);
        assert!(of(Kind::AllGather, 2, 8) && !of(Kind::AllGather, 2, 24));
        assert!(of(Kind::ReduceScatter(Reduction::Sum), 2, 24) && !of(Kind::ReduceScatter(Reduction::Sum), 2, 8));
        assert!(of(Kind::Broadcast(1), 2, 8) && of(Kind::Broadcast(2), 2, 0) && !of(Kind::Broadcast(3), 2, 0));
        assert!(!of(Kind::Broadcast(0), usize::MAX / 8, 0));
    }

    #[test]
    fn ranks_that_disagree_fail() {
        let (clique, inboxes) = clique(&[7; 3]);
        clique.hand_in(0, 1, SUM, part(&[1, 2]));
        assert_eq!(inboxes[0].take(1, nothing), Progress::Waiting);
        clique.hand_in(1, 1, Collective { count: 1, ..SUM }, part(&[1]));
        // The third, who agrees with one of them, is told when it comes.
        assert_eq!(inboxes[2].take(1, nothing), Progress::Waiting);
        clique.hand_in(2, 1, SUM, part(&[1, 2]));
        for inbox in &inboxes {
            assert_eq!(inbox.take(1, nothing), FAILED);
            assert_eq!(inbox.error(), Some(INVALID_USAGE));
        }
        assert!(clique.lock().rounds.is_empty());
    }

    #[test]
    fn what_a_rank_has_left_behind_counts_and_no_more_is_waited_for() {
        let (clique, inboxes) = clique(&[7, 8, 7]);
        let all = |number, ranks: &[usize]| {
            ranks.iter().for_each(|&rank| clique.hand_in(rank, number, SUM, part(&[rank as i32, 1])));
        };
        all(1, &[0, 1]);
        all(2, &[0]);
        clique.send(1, 0, part(&[5]));
        clique.leave(1);
        clique.leave(1);
        assert_eq!(inboxes[0].take(1, nothing), Progress::Waiting);
        assert_eq!(inboxes[0].take(2, nothing), FAILED);
        // Work that was aborted does no harm.
        all(1, &[2]);
        all(2, &[1, 2]);
        for rank in [0, 2] {
            assert_eq!(inboxes[rank].take(1, |share, _| assert_eq!(share, bytes(&[3, 3]))), Progress::Done);
        }
        assert_eq!(inboxes[2].take(2, nothing), FAILED);
        all(3, &[2]);
        assert_eq!(inboxes[2].take(3, nothing), FAILED);
        assert_eq!(inboxes[0].receive(1, 4, |message| assert_eq!(*message, part(&[5]))), Progress::Done);
        assert_eq!(inboxes[0].receive(1, 4, |_| panic!("nothing was sent")), FAILED);
        assert_eq!(inboxes[0].receive(2, 4, |_| panic!("nothing was sent")), Progress::Waiting);
        assert_eq!([0, 2].map(|rank| inboxes[rank].error()), [Some(REMOTE_ERROR); 2]);
        assert_eq!(clique.lock().rounds.keys().collect::<Vec<_>>(), [&3]);
        clique.leave(0);
        assert!(clique.lock().rounds.is_empty());
        // Whoever aborts takes nothing, and gets no error.
        inboxes[2].abort();
        assert_eq!(inboxes[2].take(4, nothing), Progress::Done);
    }

    #[test]
    fn whoever_does_not_fit_in_is_refused_and_whoever_leaves_early_ends_all() {
        let clique = Clique::new(3);
        let inboxes = [0, 1, 2].map(Inbox::new);
        let join = |rank: usize, ranks| {
            let inbox = inboxes.get(rank).unwrap_or(&inboxes[0]).clone();
            clique.join(rank, ranks, 7, Address::Here(inbox)).map_err(|(result, _)| result)
        };
        assert_eq!(join(0, 3), Ok(false));
        assert_eq!(join(0, 3), Err(INVALID_USAGE));
        assert_eq!(join(1, 2), Err(INVALID_ARGUMENT));
        assert_eq!(join(3, 3), Err(INVALID_ARGUMENT));
        assert_eq!(clique.missing(), [1, 2]);
        clique.leave(2);
        clique.leave(0);
        assert_eq!(join(0, 3), Err(INVALID_USAGE));
        for (rank, last) in [(1, false), (2, true)] {
            assert_eq!(join(rank, 3), Ok(last));
            assert_eq!(inboxes[rank].wait(|| panic!("one has left")).map_err(|(result, _)| result), Err(REMOTE_ERROR));
        }
    }

    #[test]
    fn messages_arrive_in_order_and_whole() {
        let (clique, inboxes) = clique(&[7, 7]);
        let receive = |bytes, take: &mut dyn FnMut(&Part)| inboxes[1].receive(0, bytes, take);
        assert_eq!(receive(4, &mut |_| panic!("nothing was sent")), Progress::Waiting);
        clique.send(0, 1, part(&[1]));
        clique.send(0, 1, part(&[2]));
        assert_eq!(receive(4, &mut |message| assert_eq!(*message, part(&[1]))), Progress::Done);
        assert_eq!(receive(2, &mut |_| panic!("of another size")), FAILED);
    }

    #[test]
    fn other_processes_are_served_first() {
        let clique = Clique::new(2);
        let (inbox, (near, far)) = (Inbox::new(0), UnixStream::pair().unwrap());
        clique.join(0, 2, 7, Address::Here(inbox.clone())).unwrap();
        clique.join(1, 2, 8, Address::There(near)).unwrap();
        assert!(clique.is_shared());
        let delivered = || wire::read::<Delivery>(&far).unwrap().unwrap();
        assert_eq!(delivered(), (Delivery::Complete, Vec::new()));
        clique.hand_in(0, 1, SUM, part(&[1, 2]));
        // More than the connection holds: whoever sends waits until it is read.
        let large = Collective { count: 1 << 20, ..SUM };
        let half = || part(&vec![1; 1 << 20]);
        std::thread::scope(|scope| {
            clique.hand_in(1, 1, SUM, part(&[3, 4]));
            assert_eq!(delivered(), (Delivery::Share { number: 1, clocks: vec![Clock::default()] }, bytes(&[4, 6])));
            assert_eq!(inbox.take(1, |share, _| assert_eq!(share, bytes(&[4, 6]))), Progress::Done);
            clique.hand_in(0, 2, large, half());
            scope.spawn(|| clique.hand_in(1, 2, large, half()));
            let mut first = [0];
            std::io::Read::read_exact(&mut &far, &mut first).unwrap();
            let early = inbox.take(2, |_, _| {});
            std::io::copy(&mut std::io::Read::take(&far, 4 << 20), &mut std::io::sink()).unwrap();
            assert_eq!(early, Progress::Waiting);
        });
        assert_eq!(inbox.take(2, |share, _| assert_eq!(share.len(), 4 << 20)), Progress::Done);
    }
}
