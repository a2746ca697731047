//! Ranks of MPI, each with shards of its own, as one [`Collective`].
//!
//! Only the first shard of a rank, which runs on the thread that started MPI, talks to other ranks; it does so for all
//! shards of its rank, after every one of them has come to the same call. So no shard can leave while the others are
//! under way, and a rank that fails does so between two calls.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{AddAssign, Range};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use anyhow::{Context, ensure};
use bytemuck::Pod;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Equivalence, Root, Source};
use prune::{Collective, Disconnected, Solo, assert_parts};

/// Bytes of a sum that pass from rank to rank at a time: enough to hide the latency, and few enough for all ranks to be
/// at work soon.
const LINK_BYTES: usize = 1 << 20;

/// Bytes of a broadcast at a time: MPI counts elements in 32 bits.
const BROADCAST_BYTES: usize = 1 << 28;

/// The exit code of a program that panicked.
const PANICKED: i32 = 101;

/// See [`crate::ranks`].
pub struct Ranks {
    world: World,
    // Dropped last: the end of MPI.
    _universe: Option<Universe>,
}

impl Ranks {
    /// Starts MPI, if a launcher of MPI started this process. Otherwise it is alone, and MPI is left out: to start takes
    /// Open MPI a third of a second, and more of a system than one process should need.
    ///
    /// # Errors
    /// If MPI was started before, does not go together with threads, or does not know of the launcher's other processes.
    pub fn start() -> anyhow::Result<Self> {
        // Tasks of Slurm are taken for ranks, too: if they are not, MPI finds one process where there are several.
        let launched = super::launched().or_else(|| super::variable("SLURM_STEP_NUM_TASKS"));
        // Of PMIx there is no number to see.
        if launched.is_none() && std::env::var_os("PMIX_RANK").is_none() {
            return Ok(Self { world: World::new(None), _universe: None });
        }
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threading) = started.context("MPI was started already")?;
        ensure!(
            threading >= Threading::Funneled,
            "this MPI does not allow a process to have other threads than the one that calls it"
        );
        let world = World::new(Some(universe.world()));
        let launched = launched.unwrap_or(world.size);
        ensure!(
            launched == world.size,
            "this is one of {launched} processes, of which MPI finds {}: the launcher must be that of the MPI which the \
             program is built with; for srun, see `srun --mpi=list`",
            world.size
        );
        Ok(Self { world, _universe: Some(universe) })
    }

    /// The ranks as shards of one another.
    pub fn collective(&self) -> impl Collective {
        Shard { threads: &Solo, world: &self.world }
    }

    /// How many ranks share this machine, this one included.
    pub fn on_this_machine(&self) -> usize {
        self.world.on_this_machine
    }

    /// Which of those this one is, from 0.
    pub fn place_on_this_machine(&self) -> usize {
        self.world.place_on_this_machine
    }

    /// [`prune::run_shards`] over `local` shards of each rank, which is the same number on all: they are numbered rank
    /// by rank. Sums add them in that order, so that the result is that of as many shards in one process, bit for bit.
    ///
    /// # Errors
    /// The error of the first shard of this rank that failed of its own.
    pub fn run_shards<T: Send, E: Send>(
        &self,
        local: usize,
        shard: impl Fn(&dyn Collective) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let world = &self.world;
        if world.communicator.is_none() {
            return prune::run_shards(local, shard);
        }
        prune::run_shards(local, |threads| shard(&Shard { threads, world }))
    }

    /// Says that this rank has failed, and waits until all ranks have stopped working.
    pub fn fail(&self, code: u8) {
        // That another one failed first, and this one since, is no news to anybody.
        let _ = self.world.meet([FAILED, code.into()]);
        if !self.world.stopped.swap(true, Ordering::Relaxed) {
            self.world.wait();
        }
    }

    /// Ends the job with an exit code, 0 if all went well; the exit code returned is the same on all ranks. If any
    /// failed, `speak` is called on the first that did so of its own, with its name unless all did; else on rank 0.
    pub fn conclude(self, code: u8, speak: impl FnOnce(Option<String>)) -> ExitCode {
        if code > 0 || self.world.meet([DONE, 0]).is_err() {
            self.fail(code);
        }
        let World { rank, size, ref verdict, .. } = self.world;
        let well = Verdict { speaker: 0, code: 0, common: true };
        let verdict = verdict.get().unwrap_or(&well);
        if verdict.speaker == rank {
            speak((!verdict.common).then(|| match mpi::environment::processor_name() {
                Ok(host) => format!("rank {rank} of {size}, on {host}"),
                Err(_) => format!("rank {rank} of {size}"),
            }));
        }
        // A launcher may end all ranks as soon as the first one ends with an error: not before it was told.
        self.world.wait();
        ExitCode::from(verdict.code)
    }
}

/// What a rank is about to do and with how many elements, or that it is done, or has failed with which exit code.
type Word = [u64; 2];

const DONE: u64 = 0;
const FAILED: u64 = 1;
const SUM_F32: u64 = 2;
const SUM_F64: u64 = 3;
const SUM_U64: u64 = 4;
const GATHER: u64 = 5;
const EXCHANGE: u64 = 6;
/// With the root added.
const BROADCAST: u64 = 7;

/// How the job failed.
#[derive(Debug)]
struct Verdict {
    /// The first rank that failed of its own.
    speaker: usize,
    code: u8,
    /// Whether all ranks did, as where a flag is at fault.
    common: bool,
}

/// All ranks, seen by one of them.
struct World {
    /// Absent in a process that is alone.
    communicator: Option<SimpleCommunicator>,
    /// The thread that may talk to MPI.
    home: ThreadId,
    rank: usize,
    size: usize,
    /// Ranks that share this machine.
    on_this_machine: usize,
    place_on_this_machine: usize,
    /// Set when any rank is known to have failed. Nobody talks to the others after that, but to stop and to conclude.
    verdict: OnceLock<Verdict>,
    stopped: AtomicBool,
}

// SAFETY: a communicator may not be used by several threads at a time, for which reason it is not `Sync`; `communicator`
// gives it to one thread only, and the other fields are `Sync`.
unsafe impl Sync for World {}

impl Drop for World {
    fn drop(&mut self) {
        // The others may wait for this rank, which has lost its place among the calls.
        if std::thread::panicking() {
            self.communicator.as_ref().inspect(|all| all.abort(PANICKED));
        }
    }
}

impl World {
    fn new(communicator: Option<SimpleCommunicator>) -> Self {
        let (rank, size, (place_on_this_machine, on_this_machine)) =
            communicator.as_ref().map_or((0, 1, (0, 1)), |all| {
                // A call that all ranks must make, and which does not tell of failures: at the start all do.
                let sharing = all.split_shared(all.rank());
                (all.rank() as usize, all.size() as usize, (sharing.rank() as usize, sharing.size() as usize))
            });
        let home = std::thread::current().id();
        let (verdict, stopped) = (OnceLock::new(), AtomicBool::new(false));
        Self { communicator, home, rank, size, on_this_machine, place_on_this_machine, verdict, stopped }
    }

    fn communicator(&self) -> Option<&SimpleCommunicator> {
        assert_eq!(std::thread::current().id(), self.home, "MPI is called from the thread that started it");
        self.communicator.as_ref()
    }

    fn wait(&self) {
        if let Some(all) = self.communicator() {
            all.barrier();
        }
    }

    /// What each rank says, of one length, one after another.
    fn all_say(&self, own: &[u64]) -> Vec<u64> {
        let mut said = own.repeat(self.size);
        if let Some(all) = self.communicator() {
            all.all_gather_into(own, &mut said[..]);
        }
        said
    }

    /// Hears what all ranks are about to do.
    fn meet(&self, own: Word) -> Result<(), Disconnected> {
        if self.verdict.get().is_some() {
            return Err(Disconnected);
        }
        let words = self.all_say(&own);
        let (words, _) = words.as_chunks::<2>();
        if let Some(speaker) = words.iter().position(|word| word[0] == FAILED) {
            let common = words.iter().all(|word| word[0] == FAILED);
            let code = words[speaker][1] as u8;
            self.verdict.get_or_init(|| Verdict { speaker, code, common });
            return Err(Disconnected);
        }
        assert!(words.iter().all(|&word| agree(word, own)), "ranks that do not make the same call: {words:?}");
        Ok(())
    }

    /// Adds what all ranks before this one have summed.
    fn add_before<T: Number>(&self, values: &mut [T]) {
        let (Some(all), Some(before)) = (self.communicator(), self.rank.checked_sub(1)) else { return };
        let mut sums = values.to_vec();
        all.process_at_rank(before as i32).receive_into(&mut sums[..]);
        values.iter_mut().zip(sums).for_each(|(value, sum)| *value += sum);
    }

    /// Hands what this rank and all before it have summed to the next.
    fn pass_on<T: Number>(&self, values: &[T]) {
        if let Some(all) = self.communicator().filter(|_| self.rank + 1 < self.size) {
            all.process_at_rank(self.rank as i32 + 1).send(values);
        }
    }

    fn broadcast<T: Equivalence>(&self, root: usize, values: &mut [T]) {
        let Some(all) = self.communicator() else { return };
        for part in values.chunks_mut(BROADCAST_BYTES / size_of::<T>()) {
            all.process_at_rank(root as i32).broadcast_into(part);
        }
    }
}

/// Whether two words ask for the same; what is gathered may be of any length.
fn agree(a: Word, b: Word) -> bool {
    a == b || a[0] == GATHER && b[0] == GATHER
}

/// What sums are made of.
trait Number: Pod + Equivalence + AddAssign {
    const SUM: u64;

    fn sum(collective: &dyn Collective, values: &mut [Self]) -> Result<(), Disconnected>;
}

impl Number for f32 {
    const SUM: u64 = SUM_F32;

    fn sum(collective: &dyn Collective, values: &mut [Self]) -> Result<(), Disconnected> {
        collective.sum_f32(values)
    }
}

impl Number for f64 {
    const SUM: u64 = SUM_F64;

    fn sum(collective: &dyn Collective, values: &mut [Self]) -> Result<(), Disconnected> {
        collective.sum_f64(values)
    }
}

/// A shard of this rank: one of several threads, of which the first speaks for all, or [`Solo`].
struct Shard<'a> {
    threads: &'a dyn Collective,
    world: &'a World,
}

impl Shard<'_> {
    fn leads(&self) -> bool {
        self.threads.rank() == 0
    }

    /// Makes sure that all shards of all ranks make this call.
    fn begin(&self, word: Word) -> Result<(), Disconnected> {
        let words = self.threads.gather(word.map(u64::to_le_bytes).as_flattened())?;
        let same = |other: &Vec<u8>| agree(words_of(other).try_into().unwrap_or_default(), word);
        assert!(words.iter().all(same), "shards that do not make the same call: {words:?}");
        let met = !self.leads() || self.world.meet(word).is_ok();
        match self.threads.gather(&[u8::from(met)])?[0][..] {
            [1] => Ok(()),
            _ => Err(Disconnected),
        }
    }

    /// Sums from shard to shard and from rank to rank, in their order, and spreads the total from the last rank. MPI's own
    /// reduction promises no order, and with it no repeatable result.
    fn sum<T: Number>(&self, values: &mut [T]) -> Result<(), Disconnected> {
        self.begin([T::SUM, values.len() as u64])?;
        for part in values.chunks_mut(LINK_BYTES / size_of::<T>()) {
            if self.leads() {
                self.world.add_before(part);
            }
            T::sum(self.threads, part)?;
            if self.leads() {
                self.world.pass_on(part);
            }
        }
        if self.leads() {
            self.world.broadcast(self.world.size - 1, values);
        }
        self.spread(values)
    }

    /// Gives what the leader has to the other threads.
    fn spread<T: Pod>(&self, values: &mut [T]) -> Result<(), Disconnected> {
        // Bits that are copied and not looked at.
        self.threads.broadcast(0, bytemuck::cast_slice_mut(values))
    }

    /// Gives the leader's bytes to the other threads.
    fn spread_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>, Disconnected> {
        Ok(self.threads.gather(if self.leads() { bytes } else { &[] })?.swap_remove(0))
    }
}

impl Collective for Shard<'_> {
    fn rank(&self) -> usize {
        self.world.rank * self.threads.size() + self.threads.rank()
    }

    fn size(&self) -> usize {
        self.world.size * self.threads.size()
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<(), Disconnected> {
        self.sum(values)
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), Disconnected> {
        self.sum(values)
    }

    fn sum_u64(&self, values: &mut [u64]) -> Result<(), Disconnected> {
        self.begin([SUM_U64, values.len() as u64])?;
        self.threads.sum_u64(values)?;
        if self.leads()
            && let Some(all) = self.world.communicator()
        {
            // Whole numbers have the same sum in every order.
            all.all_reduce_into(&values.to_vec()[..], values, SystemOperation::sum());
        }
        self.spread(values)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), Disconnected> {
        self.begin([BROADCAST + root as u64, values.len() as u64])?;
        let (root_rank, root_thread) = (root / self.threads.size(), root % self.threads.size());
        if self.world.rank == root_rank {
            self.threads.broadcast(root_thread, values)?;
        }
        if self.leads() {
            self.world.broadcast(root_rank, values);
        }
        if self.world.rank == root_rank { Ok(()) } else { self.threads.broadcast(0, values) }
    }

    fn exchange(&self, values: &mut [u8], parts: &[Range<usize>]) -> Result<(), Disconnected> {
        let (length, local) = (values.len(), self.threads.size());
        assert_parts(parts, self.size(), length);
        let mut hash = DefaultHasher::new();
        (length, parts).hash(&mut hash);
        self.begin([EXCHANGE, hash.finish()])?;
        self.threads.exchange(values, &parts[self.world.rank * local..][..local])?;
        if self.leads() {
            for (number, part) in parts.iter().enumerate() {
                self.world.broadcast(number / local, &mut values[part.clone()]);
            }
        }
        // All of it is the leader's part.
        let whole: Vec<_> = (0..local).map(|thread| if thread == 0 { 0..length } else { length..length }).collect();
        self.threads.exchange(values, &whole)
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Disconnected> {
        self.begin([GATHER, own.len() as u64])?;
        let mut parts = self.threads.gather(own)?;
        let local = parts.len();
        if self.leads() {
            let own_lengths: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
            let lengths = self.world.all_say(&own_lengths);
            let mut own = std::mem::take(&mut parts).into_iter();
            for (number, length) in lengths.into_iter().enumerate() {
                let mine = (number / local == self.world.rank).then(|| own.next()).flatten();
                let mut part = mine.unwrap_or_else(|| vec![0; length as usize]);
                self.world.broadcast(number / local, &mut part);
                parts.push(part);
            }
        }
        if local == 1 {
            return Ok(parts);
        }
        let lengths: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let lengths = self.spread_bytes(bytemuck::cast_slice(&lengths))?;
        let joined = if self.leads() { parts.concat() } else { Vec::new() };
        drop(parts);
        let joined = self.spread_bytes(&joined)?;
        let mut rest = &joined[..];
        let part = |length: u64| rest.split_off(..length as usize).unwrap_or_default().to_vec();
        Ok(words_of(&lengths).into_iter().map(part).collect())
    }
}

/// Numbers that were sent as bytes.
fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect()
}
