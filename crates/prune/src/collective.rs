//! What shards say to each other: sums, broadcasts, exchanges and gathers among equals.
//!
//! Every shard makes the same calls in the same order, as in MPI. [`run_shards`] runs them as threads of one process,
//! which notice where they do not. The values lie in some [`Memory`]: that of the host, or of a device each.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Another shard ended before this call: there is nobody to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another shard ended early")]
pub struct Disconnected;

/// Where the values lie that shards share.
pub trait Memory {
    /// Values that a call replaces.
    type Mut<'a, T: 'a>;

    /// What can go wrong: another shard's end at least, and what is said by the library that moves the values.
    type Error: From<Disconnected>;
}

/// The memory of the host.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Memory for Host {
    type Mut<'a, T: 'a> = &'a mut [T];
    type Error = Disconnected;
}

/// A group of shards, seen by one of them.
///
/// # Panics
/// Every call may, on all shards, if they do not make the same one with buffers of one length ([`Collective::gather`]:
/// of any).
pub trait Collective<M: Memory = Host>: Send + Sync {
    /// This shard's number, from 0.
    fn rank(&self) -> usize;

    /// How many shards there are.
    fn size(&self) -> usize;

    /// Replaces `values`, of one length on all shards, by their sum: on hosts added in the order of ranks, on devices in
    /// that of their library.
    ///
    /// # Errors
    /// If another shard ended early.
    fn sum_f32(&self, values: M::Mut<'_, f32>) -> Result<(), M::Error>;

    /// [`Collective::sum_f32`] in double precision.
    ///
    /// # Errors
    /// If another shard ended early.
    fn sum_f64(&self, values: M::Mut<'_, f64>) -> Result<(), M::Error>;

    /// [`Collective::sum_f32`] for counts, whose sum is the same in every order.
    ///
    /// # Errors
    /// If another shard ended early.
    fn sum_u64(&self, values: M::Mut<'_, u64>) -> Result<(), M::Error>;

    /// Replaces `values`, of one length on all shards, by those of shard `root`.
    ///
    /// # Errors
    /// If another shard ended early.
    fn broadcast(&self, root: usize, values: M::Mut<'_, f32>) -> Result<(), M::Error>;

    /// Completes `values`, of one length on all shards, of which each has its own part: afterwards every shard has all
    /// parts. There is one for each shard, in the order of ranks and of `values`; what lies between them stays.
    ///
    /// # Errors
    /// If another shard ended early.
    fn exchange(&self, values: M::Mut<'_, u8>, parts: &[Range<usize>]) -> Result<(), M::Error>;

    /// The bytes that each shard gives, in the order of ranks. Messages: they lie on the host in every memory.
    ///
    /// # Errors
    /// If another shard ended early.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, M::Error>;

    /// The sum of the counts that the shards before this one give.
    ///
    /// # Errors
    /// If another shard ended early.
    fn sum_before(&self, own: u64) -> Result<u64, M::Error> {
        let all = self.gather(&own.to_le_bytes())?;
        let before = all.iter().take(self.rank()).map(|count| count[..].try_into().map_or(0, u64::from_le_bytes));
        Ok(before.sum())
    }
}

/// Checks the parts of [`Collective::exchange`].
///
/// # Panics
/// If they are not one for each of `size` shards, one behind the other within `length` bytes.
pub fn assert_parts(parts: &[Range<usize>], size: usize, length: usize) {
    let ends = parts.iter().flat_map(|part| [part.start, part.end]);
    let ordered = ends.chain([length]).is_sorted();
    assert!(
        ordered && parts.len() == size,
        "{parts:?} are not parts of {length} bytes for {size} shards in their order"
    );
}

/// The part of `count` things that falls to shard `rank` of `size`: contiguous, in the order of ranks, as even as can be.
pub fn share(count: usize, rank: usize, size: usize) -> Range<usize> {
    let start = |rank: usize| count / size * rank + (count % size).min(rank);
    start(rank)..start(rank + 1)
}

/// A shard that is alone.
#[derive(Clone, Copy, Debug)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum_f32(&self, _: &mut [f32]) -> Result<(), Disconnected> {
        Ok(())
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<(), Disconnected> {
        Ok(())
    }

    fn sum_u64(&self, _: &mut [u64]) -> Result<(), Disconnected> {
        Ok(())
    }

    fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<(), Disconnected> {
        Ok(())
    }

    fn exchange(&self, values: &mut [u8], parts: &[Range<usize>]) -> Result<(), Disconnected> {
        assert_parts(parts, 1, values.len());
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Disconnected> {
        Ok(vec![own.to_vec()])
    }
}

/// Runs `shard` on `size` threads, of which the calling one is the first, and returns what they return in the order of
/// ranks. They talk through the collective that each is given.
///
/// # Errors
/// The error of the first shard that failed of its own; shards that failed since another did are not asked.
///
/// # Panics
/// If a shard panics, with its panic.
pub fn run_shards<T: Send, E: Send>(
    size: usize,
    shard: impl Fn(&dyn Collective) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    if size == 1 {
        return Ok(vec![shard(&Solo)?]);
    }
    let table = Table::new(size);
    let first_error = Mutex::new(None);
    let run = |rank| {
        let leave = Leave(&table);
        let result = shard(&Thread { rank, table: &table });
        let value = result.map_err(|error| {
            let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error); // before the others hear of it
        });
        drop(leave);
        value.ok()
    };
    let results = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (1..size).map(|rank| scope.spawn(move || run(rank))).collect();
        let first = run(0);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        std::iter::once(first).chain(threads.into_iter().map(join)).collect::<Vec<_>>()
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(results.into_iter().flatten().collect()),
    }
}

/// Breaks the table when its shard ends, by an error, a panic or before others expect it, so that nobody waits for it for
/// ever. Once broken a table stays so: no address that was laid down before is looked at again.
struct Leave<'a>(&'a Table);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.lock().broken = true;
        self.0.changed.notify_all();
    }
}

/// Where the threads of one group meet: each lays down the address of its buffer, and when all have, each works on its
/// part of all of them.
struct Table {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    /// With the name of the numbers' type.
    Sum(&'static str),
    /// With the root.
    Broadcast(usize),
    Exchange,
    Gather,
}

/// A buffer laid down for some operation: its address and number of elements.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    operation: Operation,
    address: usize,
    length: usize,
}

struct State {
    /// Buffers laid down in this round.
    laid: Vec<Option<Buffer>>,
    arrived: usize,
    done: usize,
    round: u64,
    broken: bool,
}

impl Table {
    fn new(size: usize) -> Self {
        let state = State { laid: vec![None; size], arrived: 0, done: 0, round: 0, broken: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays down `own`, waits for the others' buffers, runs `work` on all of them, and waits until everybody has.
    ///
    /// Between the two waits no shard can leave (`work` and the check before it panic on all of them or on none), so
    /// every address stays valid while `work` runs.
    fn meet<T>(&self, rank: usize, own: Buffer, work: impl FnOnce(&[Buffer]) -> T) -> Result<T, Disconnected> {
        let mut state = self.lock();
        let (size, round) = (state.laid.len(), state.round);
        if state.broken {
            return Err(Disconnected);
        }
        state.laid[rank] = Some(own);
        state.arrived += 1;
        self.changed.notify_all();
        while state.arrived < size {
            if state.broken {
                return Err(Disconnected);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let buffers: Vec<_> = state.laid.iter().flatten().copied().collect();
        drop(state);
        let Buffer { operation, length, .. } = buffers[0];
        let same = |b: &Buffer| b.operation == operation && (b.length == length || operation == Operation::Gather);
        assert!(buffers.iter().all(same), "shards that do not make the same call: {buffers:?}");
        let result = work(&buffers);
        let mut state = self.lock();
        state.done += 1;
        if state.done == size {
            state.laid.fill(None);
            (state.arrived, state.done, state.round) = (0, 0, round + 1);
            self.changed.notify_all();
        }
        while state.round == round {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(result)
    }
}

/// One thread of a group.
struct Thread<'a> {
    rank: usize,
    table: &'a Table,
}

impl Thread<'_> {
    fn sum<T: Copy + std::ops::AddAssign>(&self, values: &mut [T]) -> Result<(), Disconnected> {
        let (rank, size, length) = (self.rank(), self.size(), values.len());
        let operation = Operation::Sum(std::any::type_name::<T>());
        self.table.meet(rank, Buffer { operation, address: values.as_mut_ptr() as usize, length }, |buffers| {
            for index in share(length, rank, size) {
                // SAFETY: all buffers have `length` elements of type T and stay borrowed until everybody is done; this
                // element of each is read and written by this shard alone.
                unsafe {
                    let mut sum = *(buffers[0].address as *const T).add(index);
                    for buffer in &buffers[1..] {
                        sum += *(buffer.address as *const T).add(index);
                    }
                    for buffer in buffers {
                        *(buffer.address as *mut T).add(index) = sum;
                    }
                }
            }
        })
    }
}

impl Collective for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.table.lock().laid.len()
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<(), Disconnected> {
        self.sum(values)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), Disconnected> {
        self.sum(values)
    }

    fn sum_u64(&self, values: &mut [u64]) -> Result<(), Disconnected> {
        self.sum(values)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), Disconnected> {
        let (target, length) = (values.as_mut_ptr(), values.len());
        let own = Buffer { operation: Operation::Broadcast(root), address: target as usize, length };
        self.table.meet(self.rank, own, |buffers| {
            if self.rank != root {
                // SAFETY: both have `length` floats and are different buffers; the root's is only read until everybody
                // is done, this shard's is its own.
                unsafe { std::ptr::copy_nonoverlapping(buffers[root].address as *const f32, target, length) };
            }
        })
    }

    fn exchange(&self, values: &mut [u8], parts: &[Range<usize>]) -> Result<(), Disconnected> {
        assert_parts(parts, self.size(), values.len());
        let own: Vec<u8> = parts.iter().flat_map(|part| [part.start, part.end]).flat_map(usize::to_ne_bytes).collect();
        let said = self.gather(&own)?;
        assert!(said.iter().all(|other| *other == own), "shards that do not make the same call: {said:?}");
        let (target, length) = (values.as_mut_ptr(), values.len());
        let own = Buffer { operation: Operation::Exchange, address: target as usize, length };
        self.table.meet(self.rank, own, |buffers| {
            let all = buffers.iter().zip(parts).enumerate();
            for (_, (buffer, part)) in all.filter(|(rank, _)| *rank != self.rank) {
                // SAFETY: all buffers have `length` bytes and stay borrowed until everybody is done. Parts are the same on
                // all shards, lie within and do not overlap; a shard's own part of its buffer is only read until
                // everybody is done, and the others of it are written by this shard alone.
                unsafe {
                    let from = (buffer.address as *const u8).add(part.start);
                    std::ptr::copy_nonoverlapping(from, target.add(part.start), part.len());
                }
            }
        })
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Disconnected> {
        let own = Buffer { operation: Operation::Gather, address: own.as_ptr() as usize, length: own.len() };
        self.table.meet(self.rank, own, |buffers| {
            let copy = |buffer: &Buffer| {
                // SAFETY: the bytes stay borrowed until everybody is done, and nobody writes them.
                unsafe { std::slice::from_raw_parts(buffer.address as *const u8, buffer.length) }.to_vec()
            };
            buffers.iter().map(copy).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_contiguous_even_and_complete() {
        for (count, size) in [(0, 3), (2, 8), (8, 8), (17, 5), (100, 1)] {
            let shares: Vec<_> = (0..size).map(|rank| share(count, rank, size)).collect();
            assert_eq!(shares[0].start, 0);
            assert_eq!(shares[size - 1].end, count);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            let lengths = shares.iter().map(|s| s.len());
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }

    #[test]
    fn every_shard_hears_the_same_in_every_round() {
        let results = run_shards(5, |collective| {
            let rank = collective.rank();
            let mut heard = Vec::new();
            for round in 0..200_usize {
                let mut counts = [rank as u64, 1, round as u64];
                collective.sum_u64(&mut counts)?;
                let mut numbers = vec![rank as f32; 7];
                collective.broadcast(round % 5, &mut numbers)?;
                let bytes = collective.gather(&vec![rank as u8; rank])?;
                // Of one part a byte more in every round; behind each lies a byte that stays as it was.
                let parts: Vec<_> = (0..5).map(|at| at * 4..at * 4 + (round + at) % 4).collect();
                let mut exchanged = [u8::MAX; 20];
                exchanged[parts[rank].clone()].fill(rank as u8);
                collective.exchange(&mut exchanged, &parts)?;
                let before = collective.sum_before(rank as u64 + 1)?;
                assert_eq!(before, (1..=rank as u64).sum::<u64>());
                heard.push((counts, numbers, bytes, exchanged));
            }
            Ok::<_, Disconnected>(heard)
        });
        let results = results.unwrap();
        for heard in &results {
            for (round, (counts, numbers, bytes, exchanged)) in heard.iter().enumerate() {
                assert_eq!(*counts, [10, 5, 5 * round as u64]);
                assert_eq!(*numbers, [(round % 5) as f32; 7]);
                assert_eq!(*bytes, (0..5).map(|rank| vec![rank as u8; rank]).collect::<Vec<_>>());
                for (at, &byte) in exchanged.iter().enumerate() {
                    let (rank, within) = (at / 4, at % 4);
                    assert_eq!(byte, if within < (round + rank) % 4 { rank as u8 } else { u8::MAX });
                }
            }
        }
        assert_eq!(results.len(), 5);
    }

    #[test]
    fn shards_that_make_different_calls_panic_on_all_sides() {
        fn panics(call: impl Fn(&dyn Collective) -> Result<(), Disconnected> + Sync) {
            let heard = Mutex::new(Vec::new());
            run_shards(3, |collective| {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(collective)));
                let text = outcome.err().and_then(|panic| panic.downcast::<String>().ok());
                heard.lock().unwrap().push(text.map_or(String::new(), |text| *text));
                Ok::<_, Disconnected>(())
            })
            .unwrap();
            let heard = heard.into_inner().unwrap();
            assert!(heard.len() == 3 && heard.iter().all(|text| text.contains("the same call")), "{heard:?}");
        }
        // Eight bytes each, and the same number of elements.
        panics(|c| if c.rank() == 1 { c.sum_u64(&mut [1]) } else { c.sum_f64(&mut [1.0]) });
        panics(|c| if c.rank() == 2 { c.sum_f32(&mut [1.0]) } else { c.broadcast(0, &mut [1.0]) });
        panics(|c| if c.rank() == 0 { c.gather(&[1]).map(drop) } else { c.sum_u64(&mut [1]) });
        panics(|c| c.broadcast(c.rank() / 2, &mut [1.0]));
        panics(|c| c.sum_f32(&mut vec![1.0; 1 + c.rank() / 2]));
        panics(|c| c.exchange(&mut [0; 9], &[0..3, 3..5 + c.rank() / 2, 7..9]));
        panics(|c| c.exchange(&mut vec![0; 9 + c.rank() / 2], &[0..3, 3..6, 6..9]));
    }

    #[test]
    fn parts_are_one_for_each_shard_in_their_order() {
        assert_parts(&[0..2, 2..2, 3..7], 3, 7);
        let backwards = Range { start: 2, end: 1 };
        for parts in
            [&[0..2, 2..7][..], &[0..2, 1..3, 3..4], &[0..1, 3..4, 2..2], &[0..1, 2..3, 3..8], &[0..0, backwards, 3..4]]
        {
            let outcome = std::panic::catch_unwind(|| assert_parts(parts, 3, 7));
            assert!(outcome.is_err(), "{parts:?}");
        }
    }

    #[test]
    fn a_shard_that_ends_early_is_not_waited_for() {
        let results = run_shards(3, |collective| {
            let first = collective.sum_u64(&mut [1]);
            let second = if collective.rank() == 1 { Ok(()) } else { collective.sum_u64(&mut [1]) };
            let third = if collective.rank() == 1 { Ok(()) } else { collective.sum_u64(&mut [1]) };
            Ok::<_, Disconnected>((first, second, third))
        });
        let gone = (Ok(()), Err(Disconnected), Err(Disconnected));
        assert_eq!(results, Ok(vec![gone, (Ok(()), Ok(()), Ok(())), gone]));
    }

    #[test]
    fn a_shard_that_fails_ends_the_others_with_its_own_error() {
        #[derive(Debug, PartialEq)]
        enum Failure {
            Own,
            Other(Disconnected),
        }
        let result = run_shards(4, |collective| {
            if collective.rank() == 2 {
                return Err(Failure::Own);
            }
            collective.sum_f32(&mut [1.0]).map_err(Failure::Other)
        });
        assert_eq!(result, Err(Failure::Own));
    }
}
