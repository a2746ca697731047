//! Streams: creating, waiting, and what libraries and host functions put into them.

use super::error::{Answer, Code, fail, invalid};
use super::queue::{Clock, HostFunction, Outcome, Work, join};
use super::{Driver, Guard, Handle, State, new_handle, not_found};
use crate::check::order::Stamp;
use crate::memory::Touch;
use crate::report::Kind;
use emulator_link::Region;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

/// A stream that was created, or a per-thread default stream.
pub(crate) struct Stream {
    pub(crate) context: Handle,
    pub(crate) line: usize,
    /// Whether it and the default stream wait for each other.
    pub(crate) is_blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    /// Created by the driver, so not a leak.
    pub(crate) is_default: bool,
}

/// Where an operation goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) context: Handle,
    pub(crate) line: usize,
    pub(crate) is_blocking: bool,
    pub(crate) is_legacy: bool,
}

/// CU_STREAM_LEGACY.
const LEGACY: Handle = 1;
/// CU_STREAM_PER_THREAD.
const PER_THREAD: Handle = 2;
/// CU_STREAM_NON_BLOCKING.
const NON_BLOCKING: u32 = 1;
/// The greatest priority; the least is 0.
pub(crate) const GREATEST_PRIORITY: i32 = -5;

/// Work of a library, with what it reads and writes.
pub(crate) struct External {
    pub(crate) regions: Vec<Region>,
    pub(crate) work: emulator_link::Work,
    pub(crate) data: *mut c_void,
    /// Whether it was run before, so that what it reads is checked for races already.
    pub(crate) begun: bool,
}

/// What the work of a library that runs in a thread may learn and tell about its order.
struct Meeting {
    /// What is over once it is.
    own: Clock,
    /// What it says was over before it ended.
    met: Clock,
}

std::thread_local! {
    static MEETING: RefCell<Option<Meeting>> = const { RefCell::new(None) };
}

/// What is over once the work of a library is that runs in this thread: nothing if none does.
pub(crate) fn clock_of_work() -> Clock {
    MEETING.with_borrow(|meeting| meeting.as_ref().map(|meeting| meeting.own.clone()).unwrap_or_default())
}

/// The work of a library that runs in this thread has waited for what this clock knows of.
pub(crate) fn work_follows(clock: &[u32]) {
    MEETING.with_borrow_mut(|meeting| {
        if let Some(meeting) = meeting {
            join(&mut meeting.met, clock);
        }
    });
}

/// Runs work of a library, and tells what it has waited for.
fn in_meeting<T>(stamp: &Stamp, work: impl FnOnce() -> T) -> (T, Clock) {
    MEETING.set(Some(Meeting { own: stamp.clock(), met: Clock::new() }));
    let result = work();
    (result, MEETING.take().map(|meeting| meeting.met).unwrap_or_default())
}

// SAFETY: libraries hand work over for whatever thread runs it, as `emulator_link::enqueue` requires of its closures.
unsafe impl Send for External {}

impl Drop for External {
    fn drop(&mut self) {
        // SAFETY: the data belongs to this value, which is dropped once.
        unsafe { (self.work)(self.data, emulator_link::DROP) };
    }
}

impl State {
    /// The lines of a context.
    pub(crate) fn lines_of(&self, context: Handle) -> Vec<usize> {
        let own = self.streams.values().filter(|stream| stream.context == context).map(|stream| stream.line);
        own.chain(self.contexts.get(&context).map(|context| context.legacy)).collect()
    }

    /// A stream by its handle; the default ones are those of `context`.
    pub(crate) fn target(&mut self, handle: Handle, context: Handle) -> Answer<Target> {
        let handle = match handle {
            0 | LEGACY => {
                let line = self.context(context)?.legacy;
                return Ok(Target { context, line, is_blocking: false, is_legacy: true });
            }
            PER_THREAD => self.per_thread(context)?,
            handle => handle,
        };
        let stream = self.streams.get(&handle).ok_or_else(|| not_found("stream", handle))?;
        let (context, line, is_blocking) = (stream.context, stream.line, stream.is_blocking);
        Ok(Target { context, line, is_blocking, is_legacy: false })
    }

    fn per_thread(&mut self, context: Handle) -> Answer<Handle> {
        let thread = std::thread::current().id();
        if let Some(&handle) = self.context(context)?.per_thread.get(&thread) {
            return Ok(handle);
        }
        let handle = new_handle();
        let line = self.queue.add_line();
        let stream = Stream { context, line, is_blocking: true, flags: 0, priority: 0, is_default: true };
        self.streams.insert(handle, stream);
        if let Some(context) = self.contexts.get_mut(&context) {
            context.per_thread.insert(thread, handle);
        }
        Ok(handle)
    }

    /// The target of a call, in the calling thread's context.
    pub(crate) fn stream(&mut self, handle: Handle) -> Answer<Target> {
        // A stream that was created brings its context with it, but a context must be current nonetheless.
        let context = self.current()?;
        self.target(handle, context)
    }
}

impl Driver {
    /// cuStreamCreateWithPriority; priorities out of range are clamped.
    pub(crate) fn create_stream(&self, flags: u32, priority: i32) -> Answer<Handle> {
        if flags & !NON_BLOCKING != 0 {
            return Err(invalid(format!("there are no stream flags {flags:#x}")));
        }
        let mut state = self.lock();
        let context = state.current()?;
        let handle = new_handle();
        let stream = Stream {
            context,
            line: state.queue.add_line(),
            is_blocking: flags & NON_BLOCKING == 0,
            flags,
            priority: priority.clamp(GREATEST_PRIORITY, 0),
            is_default: false,
        };
        state.streams.insert(handle, stream);
        Ok(handle)
    }

    /// cuStreamDestroy: what is in the stream is still carried out.
    pub(crate) fn destroy_stream(&self, handle: Handle) -> Answer {
        let mut state = self.lock();
        if handle <= PER_THREAD {
            return Err(fail(Code::INVALID_HANDLE, "a default stream cannot be destroyed"));
        }
        let stream = state.streams.get(&handle).ok_or_else(|| not_found("stream", handle))?;
        let (context, line) = (stream.context, stream.line);
        // Whoever waits for the context waits for what the stream still does.
        let clock = state.queue.clock(line).clone();
        if let Some(context) = state.contexts.get_mut(&context) {
            super::queue::join(&mut context.lingering, &clock);
        }
        state.streams.remove(&handle);
        state.current().map(|_| ())
    }

    /// cuStreamSynchronize.
    pub(crate) fn synchronize_stream(&self, handle: Handle) -> Answer {
        let mut state = self.lock();
        let target = state.stream(handle)?;
        if target.is_legacy {
            super::queue::barrier(&mut state, &target);
        }
        let clock = state.queue.clock(target.line).clone();
        let mut state = self.wait(state, &clock);
        self.release_unused(&mut state, target.context);
        state.surface(target.context)
    }

    /// cuStreamQuery: CUDA_ERROR_NOT_READY while there is something to do.
    pub(crate) fn query_stream(&self, handle: Handle) -> Answer {
        let mut state = self.lock();
        let target = state.stream(handle)?;
        let clock = state.queue.clock(target.line).clone();
        let mut state = self.nudge(state);
        state.surface(target.context)?;
        if !state.queue.is_over(&clock) {
            return Err(fail(Code::NOT_READY, "the stream is not done"));
        }
        state.queue.host_knows(&clock);
        Ok(())
    }

    /// cuStreamWaitEvent.
    pub(crate) fn wait_event(&self, handle: Handle, event: Handle, flags: u32) -> Answer {
        if flags & !1 != 0 {
            return Err(invalid(format!("there are no flags {flags:#x} for waiting")));
        }
        let mut state = self.lock();
        let target = state.stream(handle)?;
        let event = state.events.get(&event).ok_or_else(|| not_found("event", event))?;
        // An event that was never recorded is over.
        if let Some(record) = &event.record {
            let clock = record.clock.clone();
            state.queue.wait(target.line, &clock);
        }
        Ok(())
    }

    /// The context, flags and priority of a stream.
    pub(crate) fn stream_properties(&self, handle: Handle) -> Answer<(Handle, u32, i32)> {
        let mut state = self.lock();
        let target = state.stream(handle)?;
        let stream = state.streams.values().find(|stream| stream.line == target.line);
        Ok(stream.map_or((target.context, 0, 0), |stream| (stream.context, stream.flags, stream.priority)))
    }

    /// cuLaunchHostFunc.
    pub(crate) fn launch_host(&self, handle: Handle, function: HostFunction) -> Answer {
        let mut state = self.lock();
        let target = state.stream(handle)?;
        self.submit(state, &target, "host function", Work::Host(function));
        Ok(())
    }

    /// `emulator_enqueue`: work of a library.
    pub(crate) fn enqueue_external(&self, handle: Handle, label: &str, external: External) -> Answer {
        let mut state = self.lock();
        let target = state.stream(handle)?;
        self.submit(state, &target, label, Work::External(external));
        Ok(())
    }

    /// Runs work of a library, its regions checked first: they may have been freed since it was enqueued, or since it
    /// last had to wait.
    pub(crate) fn run_external(
        &self,
        surroundings: &super::launch::Surroundings,
        stamp: &Stamp,
        mut external: External,
    ) -> Outcome {
        for region in &external.regions {
            if let Err((kind, message)) = self.check_region(surroundings, region) {
                self.report(kind, &stamp.label, message);
                return Outcome::Failed(Code::of(kind));
            }
        }
        if !std::mem::replace(&mut external.begun, true) {
            external
                .regions
                .iter()
                .filter(|region| region.write == 0)
                .for_each(|region| self.touch_region(region, stamp));
        }
        // SAFETY: the library provides a function for this data; it was not dropped, for `external` is here.
        let run = || super::in_callback(|| unsafe { (external.work)(external.data, emulator_link::RUN) });
        let (answer, met) = in_meeting(stamp, run);
        match answer {
            0 => {
                // What it has waited for is over before it writes.
                let mut known = stamp.known.to_vec();
                join(&mut known, &met);
                let stamp = Stamp { known: Arc::from(known), ..stamp.clone() };
                let written = external.regions.iter().filter(|region| region.write != 0);
                written.for_each(|region| self.touch_region(region, &stamp));
                if met.is_empty() { Outcome::Done } else { Outcome::Met(met) }
            }
            emulator_link::NOT_READY => Outcome::Waiting(Work::External(external)),
            code => Outcome::Failed(Code(code)),
        }
    }

    /// What is wrong with a region, if anything.
    fn check_region(&self, surroundings: &super::launch::Surroundings, region: &Region) -> Result<(), (Kind, String)> {
        let Region { address, width, pitch, height, .. } = *region;
        if width == 0 || height == 0 {
            return Ok(());
        }
        let extent = (height - 1).checked_mul(pitch).and_then(|rows| rows.checked_add(width));
        let extent = extent.ok_or_else(|| (Kind::OutOfBounds, format!("{height} rows of {pitch} bytes overflow")))?;
        let allocation = self.memory_at(address, extent)?;
        match allocation.owner {
            crate::memory::Owner::Device(device) if !surroundings.peers.get(device).copied().unwrap_or(false) => {
                Err((Kind::PeerAccess, format!("{address:#x} is memory of device {device}, without peer access to it")))
            }
            _ => Ok(()),
        }
    }

    fn touch_region(&self, region: &Region, stamp: &Stamp) {
        self.touch_rows(
            region.address,
            region.width,
            region.pitch,
            region.height,
            if region.write != 0 { Touch::Write } else { Touch::Read },
            stamp,
        );
    }

    /// Waits for an operation, and tells what went wrong in its context.
    pub(crate) fn wait_for<'a>(&'a self, state: Guard<'a>, clock: &[u32], context: Handle) -> Answer<Guard<'a>> {
        let mut state = self.wait(state, clock);
        state.surface(context)?;
        Ok(state)
    }
}
