//! Streams as queues of operations, and the order among them.
//!
//! One device serves both scheduling and checking: a vector clock. Every operation has a number in its stream, and
//! knows for each stream the last operation that must be over before it begins; events and synchronization pass this
//! knowledge on. An operation may run when all that it knows of is over, and a race is two accesses of which neither
//! knows the other.
//!
//! Knowledge is settled when an operation is enqueued, as CUDA defines it: an event that is recorded later does not
//! concern a wait that was enqueued before.

use super::error::Code;
use super::{Driver, Guard, Handle, State};
use crate::check::order::Stamp;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// For each stream the number of the last operation that is known to be over; shorter ones end in zeros.
pub(crate) type Clock = Vec<u32>;

/// Takes over what another clock knows.
pub(crate) fn join(clock: &mut Clock, other: &[u32]) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    for (own, &other) in clock.iter_mut().zip(other) {
        *own = (*own).max(other);
    }
}

/// What an operation does.
pub(crate) enum Work {
    Copy(super::copy::Copy),
    Fill(super::copy::Fill),
    Launch(Box<super::launch::Prepared>),
    /// Records the event, if this is still its latest record.
    Record(Handle),
    /// From here on memory of a pool is there.
    Allocate(u64),
    /// Frees memory.
    Free(u64),
    /// Calls a function of the user.
    Host(HostFunction),
    /// Work of a library that stands on this driver.
    External(super::stream::External),
}

/// A CUhostFn with its argument.
pub(crate) struct HostFunction {
    pub(crate) function: unsafe extern "C" fn(*mut std::ffi::c_void),
    pub(crate) data: *mut std::ffi::c_void,
}

// SAFETY: the driver API calls host functions from threads of its own; whoever enqueues one provides for that.
unsafe impl Send for HostFunction {}

/// How an operation ended.
pub(crate) enum Outcome {
    Done,
    /// It is done, and what this clock knows of was over before: more than was known when it was enqueued.
    Met(Clock),
    /// It waits for something else, and must be run again.
    Waiting(Work),
    Failed(Code),
}

struct Queued {
    stamp: Stamp,
    context: Handle,
    work: Work,
    /// Enqueued as so many-th of all.
    number: u64,
}

/// The queue of one stream, which outlives the stream.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Queued>,
    /// The operation at the head is being run by some thread.
    running: bool,
    /// It was run and had to wait, when so many operations had ended or been enqueued.
    stalled: Option<u64>,
    /// Operations enqueued, and those that are over.
    enqueued: u32,
    completed: u32,
    clock: Clock,
    /// Operations that have met others ([`Outcome::Met`]): the number of each, and all that is over once it is. Ascending.
    met: Vec<(u32, Clock)>,
    priority: u64,
}

/// All queues.
pub(crate) struct Queue {
    lines: Vec<Line>,
    /// What the host knows to be over. Threads of the host count as one: how they wait for each other is not seen.
    host: Clock,
    random: u64,
    number: u64,
    /// Counts whatever may let a stalled operation go on.
    progress: u64,
}

/// The line of the host's own operations.
const HOST: usize = 0;

impl Queue {
    pub(crate) fn new(seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { lines: vec![Line::default()], host: vec![0], random, number: 0, progress: 0 }
    }

    /// A line for a new stream.
    pub(crate) fn add_line(&mut self) -> usize {
        let priority = self.draw();
        self.lines.push(Line { priority, ..Line::default() });
        self.lines.len() - 1
    }

    /// The stamp of something that the host does by itself, at once.
    pub(crate) fn host_stamp(&mut self, label: &str) -> Stamp {
        let known = self.host.clone();
        let line = &mut self.lines[HOST];
        line.enqueued += 1;
        line.completed = line.enqueued;
        let sequence = line.enqueued;
        self.host[HOST] = sequence;
        Stamp { stream: HOST as u32, sequence, known: known.into(), label: label.into() }
    }

    /// xorshift64*, Vigna 2016.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// What a stream will have done when all that is in it is over.
    pub(crate) fn clock(&self, line: usize) -> &Clock {
        &self.lines[line].clock
    }

    /// What is enqueued into a line from now on, must wait for all this.
    pub(crate) fn wait(&mut self, line: usize, clock: &[u32]) {
        join(&mut self.lines[line].clock, clock);
    }

    /// Whether all that a clock knows of is over.
    pub(crate) fn is_over(&self, clock: &[u32]) -> bool {
        clock.iter().zip(&self.lines).all(|(&sequence, line)| sequence <= line.completed)
    }

    /// The host has learned that this is over.
    pub(crate) fn host_knows(&mut self, clock: &[u32]) {
        let closed = self.closed(clock);
        join(&mut self.host, &closed);
        // What the host knows, all knows that is enqueued from now on; what was enqueued before may still ask.
        if self.lines.iter().all(|line| line.waiting.is_empty() && !line.running) {
            let known = |sequence: &u32, other: &u32| sequence <= other;
            for line in &mut self.lines {
                line.met.retain(|(_, clock)| {
                    clock.len() > self.host.len() || !clock.iter().zip(&self.host).all(|(own, host)| known(own, host))
                });
            }
        }
    }

    /// A clock with all that is over once what it knows of is: operations that met others bring in what these knew.
    /// Which ones, shows when they meet, not when they are enqueued: this holds of what is over only.
    fn closed(&self, clock: &[u32]) -> Clock {
        let mut closed = clock.to_vec();
        // What an operation has met is closed itself, so that one pass is enough.
        for (&sequence, line) in clock.iter().zip(&self.lines) {
            let count = line.met.partition_point(|(met, _)| *met <= sequence);
            if let Some((_, met)) = count.checked_sub(1).and_then(|last| line.met.get(last)) {
                join(&mut closed, met);
            }
        }
        closed
    }

    /// The operation of this stamp is over, and has met what is in `clock`.
    fn meet(&mut self, stamp: &Stamp, clock: &[u32]) {
        let mut met = stamp.clock();
        join(&mut met, clock);
        let met = self.closed(&met);
        self.lines[stamp.stream as usize].met.push((stamp.sequence, met));
    }

    /// The number that the next operation of a line will have.
    pub(crate) fn next_sequence(&self, line: usize) -> u32 {
        self.lines[line].enqueued + 1
    }

    /// Whether an operation enqueued into the line now could run now.
    pub(crate) fn is_idle(&self, line: usize) -> bool {
        self.lines[line].waiting.is_empty() && !self.lines[line].running && self.is_over(&self.lines[line].clock)
    }

    /// Appends an operation.
    pub(crate) fn push(&mut self, line: usize, context: Handle, label: &str, work: Work) {
        let mut known = self.lines[line].clock.clone();
        join(&mut known, &self.host);
        if known.len() <= line {
            known.resize(line + 1, 0);
        }
        self.number += 1;
        self.progress += 1;
        let own = &mut self.lines[line];
        own.enqueued += 1;
        let sequence = own.enqueued;
        own.clock.clone_from(&known);
        own.clock[line] = sequence;
        let stamp = Stamp { stream: line as u32, sequence, known: known.into(), label: label.into() };
        own.waiting.push_back(Queued { stamp, context, work, number: self.number });
    }

    /// The line whose head is to run next: in the order of enqueuing, or by random priorities, drawn anew now and then.
    /// (Drawing each choice independently would hardly ever let one stream run far ahead of another.)
    fn choose(&mut self, deferred: bool) -> Option<usize> {
        let ready = |index: &usize| {
            let line = &self.lines[*index];
            !line.running
                && line.stalled != Some(self.progress)
                && line.waiting.front().is_some_and(|head| self.is_over(&head.stamp.known))
        };
        let ready: Vec<usize> = (1..self.lines.len()).filter(ready).collect();
        if !deferred {
            return ready.into_iter().min_by_key(|&line| self.lines[line].waiting.front().map(|head| head.number));
        }
        if self.draw() >> 61 == 0 {
            for line in 1..self.lines.len() {
                self.lines[line].priority = self.draw();
            }
        }
        ready.into_iter().max_by_key(|&line| self.lines[line].priority)
    }
}

impl Driver {
    /// Runs one operation that may run, if there is one. The lock is given up meanwhile.
    pub(crate) fn step<'a>(&'a self, mut state: Guard<'a>) -> (Guard<'a>, bool) {
        let Some(line) = state.queue.choose(self.options.deferred) else { return (state, false) };
        let Some(Queued { mut stamp, context, work, number }) = state.queue.lines[line].waiting.pop_front() else {
            return (state, false);
        };
        stamp.known = state.queue.closed(&stamp.known).into();
        state.queue.lines[line].running = true;
        // After an error nothing of its context is carried out any more.
        let failed = state.contexts.get(&context).is_none_or(|context| context.error.is_some());
        let surroundings = self.surroundings(&state, context);
        // What happens from here on may be what the operation waits for.
        let progress = state.queue.progress;
        drop(state);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match failed {
            true => self.skip(work),
            false => self.execute(&surroundings, &stamp, work),
        }))
        .unwrap_or(Outcome::Failed(Code::UNKNOWN));
        let mut state = self.lock();
        let own = &mut state.queue.lines[line];
        own.running = false;
        if let Outcome::Waiting(work) = outcome {
            own.stalled = Some(progress);
            own.waiting.push_front(Queued { stamp, context, work, number });
        } else {
            own.stalled = None;
            own.completed = stamp.sequence;
            state.queue.progress += 1;
            match outcome {
                Outcome::Failed(code) => {
                    self.log(format_args!("{}: {code}", stamp.label));
                    if let Some(context) = state.contexts.get_mut(&context) {
                        context.error.get_or_insert(code);
                    }
                }
                Outcome::Met(clock) => state.queue.meet(&stamp, &clock),
                Outcome::Done | Outcome::Waiting(_) => {}
            }
        }
        self.changed.notify_all();
        (state, true)
    }

    /// Runs what may run now.
    pub(crate) fn pump<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        loop {
            let (next, ran) = self.step(state);
            state = next;
            if !ran {
                return state;
            }
        }
    }

    /// Runs what may run now, and asks what had to wait once more.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.queue.progress += 1;
        drop(self.pump(state));
        self.changed.notify_all();
    }

    /// One operation somewhere, where operations wait to be asked about.
    pub(crate) fn nudge<'a>(&'a self, state: Guard<'a>) -> Guard<'a> {
        match self.options.deferred {
            true => self.step(state).0,
            false => self.pump(state),
        }
    }

    /// Waits until all that a clock knows of is over; the host knows it then.
    pub(crate) fn wait<'a>(&'a self, mut state: Guard<'a>, clock: &[u32]) -> Guard<'a> {
        let begin = Instant::now();
        let mut told = false;
        while !state.queue.is_over(clock) {
            let (next, ran) = self.step(state);
            state = next;
            if ran || state.queue.is_over(clock) {
                continue;
            }
            // Another thread runs it, or has to enqueue what it waits for.
            let waited = self.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            if !told && begin.elapsed() > Duration::from_secs(10) {
                told = true;
                let stalled = state.queue.lines.iter().find(|line| line.stalled.is_some());
                if let Some(head) = stalled.and_then(|line| line.waiting.front()) {
                    self.log(format_args!("waiting for 10 s already: {} waits for others", head.stamp.label));
                }
            }
        }
        state.queue.host_knows(clock);
        state
    }

    /// Appends an operation to a stream, and runs it at once unless operations are deferred. Returns what is over once
    /// it is.
    pub(crate) fn enqueue<'a>(
        &'a self,
        mut state: Guard<'a>,
        stream: &super::stream::Target,
        label: &str,
        work: Work,
    ) -> (Guard<'a>, Clock) {
        barrier(&mut state, stream);
        let label = match stream.is_legacy {
            true => format!("{label} on the default stream"),
            false => format!("{label} on stream {}", stream.line),
        };
        state.queue.push(stream.line, stream.context, &label, work);
        let known = state.queue.clock(stream.line).clone();
        if !self.options.deferred {
            state = self.pump(state);
        }
        self.changed.notify_all();
        (state, known)
    }

    /// [`Driver::enqueue`] for operations that nobody waits for.
    pub(crate) fn submit(&self, state: Guard<'_>, stream: &super::stream::Target, label: &str, work: Work) {
        drop(self.enqueue(state, stream, label, work));
    }

    fn skip(&self, work: Work) -> Outcome {
        // Its data may run destructors of libraries: not under the lock.
        drop(work);
        Outcome::Done
    }
}

/// The legacy default stream and the blocking streams of its context wait for each other.
pub(crate) fn barrier(state: &mut State, stream: &super::stream::Target) {
    let State { streams, queue, contexts, .. } = state;
    if stream.is_legacy {
        for other in streams.values().filter(|other| other.context == stream.context && other.is_blocking) {
            let clock = queue.clock(other.line).clone();
            queue.wait(stream.line, &clock);
        }
    } else if stream.is_blocking
        && let Some(context) = contexts.get(&stream.context)
    {
        let clock = queue.clock(context.legacy).clone();
        queue.wait(stream.line, &clock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enqueues an operation that does nothing of note, and returns its stamp.
    fn push(queue: &mut Queue, line: usize) -> Stamp {
        queue.push(line, 0, "operation", Work::Free(0));
        queue.lines[line].waiting.back().map(|queued| queued.stamp.clone()).unwrap()
    }

    fn finish(queue: &mut Queue, line: usize) {
        let queued = queue.lines[line].waiting.pop_front().unwrap();
        queue.lines[line].completed = queued.stamp.sequence;
    }

    fn follows(later: &Stamp, earlier: &Stamp) -> bool {
        later.follows(earlier.stream, earlier.sequence)
    }

    #[test]
    fn operations_follow_their_stream_what_it_waits_for_and_what_the_host_knows() {
        let mut queue = Queue::new(0);
        let (a, b) = (queue.add_line(), queue.add_line());
        let first = push(&mut queue, a);
        let second = push(&mut queue, a);
        assert!(follows(&second, &first) && !follows(&first, &second));
        let alone = push(&mut queue, b);
        assert!(!follows(&alone, &first) && !follows(&first, &alone));
        // b waits for what a has done so far: not for what comes later.
        let event = queue.clock(a).clone();
        let third = push(&mut queue, a);
        queue.wait(b, &event);
        let after = push(&mut queue, b);
        assert!(follows(&after, &second) && !follows(&after, &third));
        // Knowledge passes on.
        let c = queue.add_line();
        let event = queue.clock(b).clone();
        queue.wait(c, &event);
        assert!(follows(&push(&mut queue, c), &first));
        // What the host has waited for, everything later follows; and what the host did itself.
        queue.host_knows(&[0, 3]);
        let host = queue.host_stamp("host");
        assert!(follows(&host, &third) && !follows(&host, &alone));
        let d = queue.add_line();
        let last = push(&mut queue, d);
        assert!(follows(&last, &third) && follows(&last, &host) && !follows(&last, &alone));
    }

    #[test]
    fn who_has_met_others_follows_what_they_followed() {
        let mut queue = Queue::new(0);
        let (a, b, c) = (queue.add_line(), queue.add_line(), queue.add_line());
        let first = push(&mut queue, a);
        let given = push(&mut queue, a);
        let taken = push(&mut queue, b);
        // Enqueued before they meet, directly behind and by way of an event.
        let behind = push(&mut queue, b);
        queue.wait(c, &taken.clock());
        let waiting = push(&mut queue, c);
        let later = push(&mut queue, a);
        let closed = |queue: &Queue, stamp: &Stamp| Stamp { known: queue.closed(&stamp.known).into(), ..stamp.clone() };
        assert!(!follows(&closed(&queue, &behind), &first));
        queue.meet(&taken, &given.clock());
        for stamp in [&behind, &waiting] {
            let closed = closed(&queue, stamp);
            assert!(follows(&closed, &first) && follows(&closed, &given) && !follows(&closed, &later));
        }
        // Who handed in does not follow who took, nor does a stream that waits for an earlier operation.
        assert!(!follows(&closed(&queue, &later), &taken) && !follows(&closed(&queue, &taken), &given));
        // It is kept as long as somebody may ask, and the host learns it.
        queue.host_knows(&taken.clock());
        assert_eq!(queue.lines[b].met.len(), 1);
        assert!(follows(&push(&mut queue, c), &given));
        for line in [a, a, b, b, c, c, a] {
            finish(&mut queue, line);
        }
        queue.host_knows(&[]);
        assert!(queue.lines.iter().all(|line| line.met.is_empty()));
    }

    #[test]
    fn only_what_waits_for_nothing_is_chosen() {
        let mut queue = Queue::new(1);
        let (a, b) = (queue.add_line(), queue.add_line());
        assert_eq!(queue.choose(false), None);
        push(&mut queue, b);
        let event = queue.clock(b).clone();
        queue.wait(a, &event);
        push(&mut queue, a);
        assert!((0..50).all(|_| queue.choose(true) == Some(b)));
        finish(&mut queue, b);
        assert_eq!(queue.choose(true), Some(a));
        // In the order of enqueuing, or at random.
        push(&mut queue, b);
        assert_eq!(queue.choose(false), Some(a));
        let chosen: Vec<usize> = (0..200).filter_map(|_| queue.choose(true)).collect();
        assert!(chosen.contains(&a) && chosen.contains(&b));
        // What had to wait is not asked again before something has happened.
        queue.lines[a].stalled = Some(queue.progress);
        assert_eq!(queue.choose(false), Some(b));
        queue.progress += 1;
        assert_eq!(queue.choose(false), Some(a));
    }
}
