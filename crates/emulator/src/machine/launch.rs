//! A launch: thread blocks handed to the threads of the host, until all are done or one has failed.
//!
//! As many blocks as fit on the device are resident at once. A worker runs one for a while; a block that only waits, or
//! that has run for long, is parked and another one gets its turn, so that blocks may wait for each other.

use super::Fault;
use super::block::{Status, ThreadBlock};
use super::random::Random;
use crate::check::global;
use crate::check::order::Stamp;
use crate::isa::Vectors;
use crate::memory::{Memory, Snapshot};
use crate::options::Options;
use crate::profile::{Counters, Geometry, Profile};
use crate::program::Program;
use crate::report::{Finding, Findings, Kind, ThreadId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is launched, where and how. Whoever makes one has checked it against the limits of the device.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub program: &'a Program,
    /// Thread blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub dynamic_shared: usize,
    /// The parameters, laid out as [`Program::parameters`] says.
    pub parameters: &'a [u8],
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
    /// The device.
    pub device: usize,
    /// The devices whose memory this one may reach beside its own.
    pub peers: &'a [bool],
    /// What is looked for.
    pub options: &'a Options,
    /// When it runs.
    pub stamp: Stamp,
    /// Its number, from which random orders are drawn.
    pub number: u64,
}

impl Launch<'_> {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.block.iter().map(|&n| n as usize).product()
    }

    /// Thread blocks.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    /// Bytes of shared memory of a block.
    pub fn shared(&self) -> usize {
        let program = self.program;
        match self.dynamic_shared {
            0 => program.static_shared,
            dynamic => program.dynamic_offset.max(program.static_shared) + dynamic,
        }
    }
}

/// What does not change while a launch runs, or is shared by its blocks.
pub struct Environment<'a> {
    /// What is launched.
    pub launch: &'a Launch<'a>,
    /// Where the blocks of a cooperative launch count who has come to their grid barrier; 0 for other launches.
    pub workspace: u64,
    /// The memory there is.
    pub snapshot: Snapshot,
    /// Where findings go.
    pub findings: &'a Findings,
    /// What its blocks know of each other, and of other stream operations.
    pub order: global::Launch,
    /// The memory that the snapshot is of.
    pub memory: &'a Memory,
    /// That the processor has the vector instructions that are used.
    pub(crate) vectors: Vectors,
    /// Steps that were executed, as far as they have been added up.
    steps: AtomicU64,
    /// Times a block did something that others may wait for.
    progress: AtomicU64,
}

impl Environment<'_> {
    /// The thread of this number in block `block`.
    pub fn thread(&self, block: u64, thread: usize) -> ThreadId {
        let at = |index: u64, [x, y, _]: [u32; 3]| {
            let (x, y) = (u64::from(x.max(1)), u64::from(y.max(1)));
            [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32]
        };
        ThreadId { block: at(block, self.launch.grid), thread: at(thread as u64, self.launch.block) }
    }

    /// Adds a finding about a thread at an operation.
    #[cold]
    pub fn find(&self, kind: Kind, pc: usize, thread: usize, block: u64, message: String) {
        self.findings.add(Finding {
            kind,
            kernel: self.launch.program.name.clone(),
            place: self.launch.program.places.get(pc).cloned(),
            thread: Some(self.thread(block, thread)),
            message,
            other: None,
        });
    }
}

/// A launch that failed: a fault, and where.
pub(crate) struct Failure {
    pub(crate) fault: Fault,
    pub(crate) pc: usize,
    pub(crate) block: u64,
    /// The first thread of the warp.
    pub(crate) first_thread: usize,
}

/// The blocks of a launch that were not begun, in the order in which they will be: by number, or from a seed by steps that
/// share no factor with how many there are, so that a grid of any size needs no list.
struct Fresh {
    begun: u64,
    blocks: u64,
    first: u64,
    step: u64,
}

impl Fresh {
    fn new(blocks: u64, random: Option<Random>) -> Self {
        let Some(mut random) = random.filter(|_| blocks > 1) else {
            return Self { begun: 0, blocks, first: 0, step: 1 };
        };
        let divides = |a: u64| {
            let (mut a, mut b) = (a, blocks);
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let first = random.below(blocks);
        let mut step = 1 + random.below(blocks - 1);
        while divides(step) != 1 {
            step = step % (blocks - 1) + 1;
        }
        Self { begun: 0, blocks, first, step }
    }

    fn next(&mut self) -> Option<u64> {
        let number =
            (u128::from(self.begun) * u128::from(self.step) + u128::from(self.first)) % u128::from(self.blocks.max(1));
        (self.begun < self.blocks).then(|| {
            self.begun += 1;
            number as u64
        })
    }
}

/// Blocks that wait for a worker.
struct Queue<'a> {
    fresh: Fresh,
    parked: VecDeque<ThreadBlock<'a>>,
    running: usize,
    /// Blocks that have only waited for many rounds, and the progress since which they do.
    stuck: (u64, usize),
}

/// Steps after which a block is parked.
const QUANTUM: u64 = 1 << 16;

/// Rounds in which nobody does anything that others may wait for, until a launch is given up.
const PATIENCE: u32 = 8;

/// Runs a launch to its end; its profile is made if [`Options::profile`] asks for it.
///
/// # Errors
/// The kind of the first fault, which stands among the findings.
pub fn run(launch: &Launch<'_>, memory: &Memory, findings: &Findings) -> Result<Option<Profile>, Kind> {
    if !launch.cooperative {
        return run_in(launch, 0, memory, findings);
    }
    let Some(workspace) = memory.workspace(launch.device) else {
        let message = "the device has no memory left for the workspace of a cooperative launch";
        findings.add(refused(launch, message));
        return Err(Kind::InvalidLaunch);
    };
    let result = run_in(launch, workspace, memory, findings);
    let _ = memory.free(workspace); // nobody else knows of it
    result
}

/// Says why a launch is refused as a whole.
fn refused(launch: &Launch<'_>, message: &str) -> Finding {
    let (kernel, message) = (launch.program.name.clone(), message.to_owned());
    Finding { kind: Kind::InvalidLaunch, kernel, place: None, thread: None, message, other: None }
}

/// Runs a launch whose blocks count at `workspace` who has come to their grid barrier.
fn run_in(launch: &Launch<'_>, workspace: u64, memory: &Memory, findings: &Findings) -> Result<Option<Profile>, Kind> {
    let Some(vectors) = Vectors::detect() else {
        let message = "kernels are run with AVX2, FMA and F16C, which this processor does not have";
        findings.add(refused(launch, message));
        return Err(Kind::InvalidLaunch);
    };
    let _held = memory.hold();
    let environment = Environment {
        launch,
        workspace,
        snapshot: memory.snapshot(),
        findings,
        order: global::Launch::new(launch.stamp.clone()),
        memory,
        vectors,
        steps: AtomicU64::new(0),
        progress: AtomicU64::new(0),
    };
    let random = launch.options.seed.map(|seed| Random::new(seed ^ launch.number.rotate_left(32)));
    let fresh = Fresh::new(launch.blocks(), random);
    let queue = Mutex::new(Queue { fresh, parked: VecDeque::new(), running: 0, stuck: (0, 0) });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match launch.options.workers {
        // An order that is drawn from a seed is one only if a single worker follows it.
        0 if launch.options.seed.is_some() => 1,
        0 => cores,
        given => given,
    };
    let workers = workers.min(usize::try_from(launch.blocks()).unwrap_or(usize::MAX)).max(1);
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let work = || Worker { environment: &environment, queue: &queue, failure: &failure, stop: &stop }.run();
    let counters = if workers == 1 {
        vec![work()]
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        })
    };
    if let Some(Failure { fault, pc, block, first_thread }) =
        failure.into_inner().unwrap_or_else(PoisonError::into_inner)
    {
        findings.add(Finding {
            kind: fault.kind,
            kernel: launch.program.name.clone(),
            place: launch.program.places.get(pc).cloned(),
            thread: Some(environment.thread(block, first_thread + fault.lane.unwrap_or(0))),
            message: fault.message,
            other: None,
        });
        return Err(fault.kind);
    }
    let merged = counters.into_iter().flatten().reduce(|mut all, counters| {
        all.merge(&counters);
        all
    });
    let program = launch.program;
    let geometry = Geometry {
        kernel: program.name.clone(),
        grid: launch.grid,
        block: launch.block,
        shared: launch.shared(),
        registers: None,
    };
    let instruction = |pc: u32| {
        let pc = pc as usize;
        (program.places[pc].clone(), program.steps[pc].op.class())
    };
    Ok(merged.map(|counters| Profile::new(geometry, &counters, instruction)))
}

/// A thread of the host that runs blocks.
struct Worker<'a, 'b> {
    environment: &'a Environment<'a>,
    queue: &'b Mutex<Queue<'a>>,
    failure: &'b Mutex<Option<Failure>>,
    stop: &'b AtomicBool,
}

impl<'a> Worker<'a, '_> {
    fn run(self) -> Option<Counters> {
        let launch = self.environment.launch;
        let mut counters = launch.options.profile.then(|| Counters::new(launch.program.steps.len()));
        let mut spare: Option<ThreadBlock<'a>> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(mut block) = self.next(&mut spare) else { break };
            let result = block.run(QUANTUM);
            let steps = self.environment.steps.fetch_add(block.take_steps(), Ordering::Relaxed);
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.running -= 1;
            match result {
                Ok(Status::Finished) => {
                    self.environment.progress.fetch_add(1, Ordering::Relaxed);
                    if let (Some(all), Some(own)) = (&mut counters, block.counters()) {
                        all.merge(own);
                    }
                    spare = Some(block);
                }
                Ok(status) => {
                    let limit = launch.options.instruction_limit;
                    if limit > 0 && steps > limit {
                        let message = format!("the launch is not over after {steps} warp instructions");
                        self.fail(block.failure(Fault::warp(Kind::Endless, message)));
                    } else if self.is_stuck(&mut block, status, &mut queue) {
                        let message = "waits for something that no thread is left to do".to_owned();
                        self.fail(block.failure(Fault::warp(Kind::Deadlock, message)));
                    }
                    queue.parked.push_back(block);
                }
                Err(failure) => self.fail(failure),
            }
        }
        counters
    }

    /// Whether all blocks wait for ever: each of them, those that run just now included, has been parked many times since
    /// anybody has done anything.
    fn is_stuck(&self, block: &mut ThreadBlock<'a>, status: Status, queue: &mut Queue<'a>) -> bool {
        if block.take_wrote() || status == Status::Working {
            self.environment.progress.fetch_add(1, Ordering::Relaxed);
        }
        let progress = self.environment.progress.load(Ordering::Relaxed);
        if queue.stuck.0 != progress {
            queue.stuck = (progress, 0);
        }
        if block.progress_seen == progress {
            block.barren_rounds += 1;
            queue.stuck.1 += usize::from(block.barren_rounds == PATIENCE);
        } else {
            (block.progress_seen, block.barren_rounds) = (progress, 0);
        }
        queue.stuck.1 > queue.running + queue.parked.len()
    }

    /// Notes the first failure of a launch and stops it.
    fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The next block to run: a new one as long as the device has room, else the one that waited longest.
    fn next(&self, spare: &mut Option<ThreadBlock<'a>>) -> Option<ThreadBlock<'a>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let launch = self.environment.launch;
        let threads = launch.threads().max(1);
        let resident = match launch.cooperative {
            true => usize::MAX,
            false => launch.options.multiprocessors.max(1) as usize * (2048 / threads).clamp(1, 32),
        };
        // Blocks that are parked come after fresh ones, so that a block which waits for a later one meets it.
        let room = queue.running + queue.parked.len() < resident;
        let number = if room { queue.fresh.next() } else { None };
        let block = match number {
            Some(number) => {
                queue.running += 1;
                drop(queue);
                match spare.take() {
                    Some(mut block) => {
                        block.restart(number);
                        block
                    }
                    None => ThreadBlock::new(self.environment, number),
                }
            }
            None => {
                let block = queue.parked.pop_front()?;
                queue.running += 1;
                block
            }
        };
        Some(block)
    }
}
