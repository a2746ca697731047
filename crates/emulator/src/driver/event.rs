//! Events: marks in streams that other streams and the host wait for, and the times between them.

use super::error::{Answer, Code, fail, invalid};
use super::queue::{Clock, Work};
use super::{Driver, Handle, new_handle, not_found};

/// An event.
pub(crate) struct Event {
    pub(crate) context: Handle,
    flags: u32,
    /// The latest record of it.
    pub(crate) record: Option<Record>,
}

/// What an event stood for when it was recorded.
pub(crate) struct Record {
    /// What is over once the event is.
    pub(crate) clock: Clock,
    /// The operation that records.
    pub(crate) line: usize,
    pub(crate) sequence: u32,
    /// When it ran, nanoseconds since the driver was configured.
    pub(crate) time: Option<u64>,
}

/// CU_EVENT_DISABLE_TIMING.
const DISABLE_TIMING: u32 = 2;

impl Driver {
    /// cuEventCreate.
    pub(crate) fn create_event(&self, flags: u32) -> Answer<Handle> {
        if flags & !7 != 0 || flags & 4 != 0 && flags & DISABLE_TIMING == 0 {
            return Err(invalid(format!("there are no event flags {flags:#x}")));
        }
        let mut state = self.lock();
        let context = state.current()?;
        let handle = new_handle();
        state.events.insert(handle, Event { context, flags, record: None });
        Ok(handle)
    }

    /// cuEventDestroy: waits that were enqueued stay.
    pub(crate) fn destroy_event(&self, handle: Handle) -> Answer {
        let mut state = self.lock();
        state.events.remove(&handle).ok_or_else(|| not_found("event", handle))?;
        state.current().map(|_| ())
    }

    /// cuEventRecord.
    pub(crate) fn record_event(&self, handle: Handle, stream: Handle) -> Answer {
        let mut state = self.lock();
        let target = state.stream(stream)?;
        let event = state.events.get(&handle).ok_or_else(|| not_found("event", handle))?;
        if event.context != target.context {
            return Err(fail(Code::INVALID_HANDLE, "the event and the stream belong to different contexts"));
        }
        // The record has to be known before the operation runs, which may be at once.
        super::queue::barrier(&mut state, &target);
        let sequence = state.queue.next_sequence(target.line);
        let mut clock = state.queue.clock(target.line).clone();
        super::queue::join(&mut clock, &single(target.line, sequence));
        if let Some(event) = state.events.get_mut(&handle) {
            event.record = Some(Record { clock, line: target.line, sequence, time: None });
        }
        self.submit(state, &target, "event record", Work::Record(handle));
        Ok(())
    }

    /// Carries a record out.
    pub(crate) fn run_record(&self, handle: Handle, line: usize, sequence: u32) {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        // Recorded again or destroyed meanwhile: nobody asks for this time any more.
        if let Some(record) = state.events.get_mut(&handle).and_then(|event| event.record.as_mut())
            && (record.line, record.sequence) == (line, sequence)
        {
            record.time = Some(now);
        }
    }

    /// cuEventSynchronize.
    pub(crate) fn synchronize_event(&self, handle: Handle) -> Answer {
        let state = self.lock();
        state.current()?;
        let event = state.events.get(&handle).ok_or_else(|| not_found("event", handle))?;
        let (context, clock) = (event.context, event.record.as_ref().map(|record| record.clock.clone()));
        let mut state = self.wait(state, &clock.unwrap_or_default());
        self.release_unused(&mut state, context);
        state.surface(context)
    }

    /// cuEventQuery: CUDA_ERROR_NOT_READY until the record ran.
    pub(crate) fn query_event(&self, handle: Handle) -> Answer {
        let state = self.lock();
        state.current()?;
        let mut state = self.nudge(state);
        let event = state.events.get(&handle).ok_or_else(|| not_found("event", handle))?;
        let (context, clock) = (event.context, event.record.as_ref().map(|record| record.clock.clone()));
        state.surface(context)?;
        let clock = clock.unwrap_or_default();
        if !state.queue.is_over(&clock) {
            return Err(fail(Code::NOT_READY, "the event is not over"));
        }
        state.queue.host_knows(&clock);
        Ok(())
    }

    /// cuEventElapsedTime: milliseconds of the host's clock, which say nothing about a device.
    pub(crate) fn elapsed(&self, from: Handle, to: Handle) -> Answer<f32> {
        let state = self.lock();
        state.current()?;
        let time = |handle: Handle| {
            let event = state.events.get(&handle).ok_or_else(|| not_found("event", handle))?;
            if event.flags & DISABLE_TIMING != 0 {
                return Err(fail(Code::INVALID_HANDLE, "the event was created without timing"));
            }
            let record = event.record.as_ref();
            let record = record.ok_or_else(|| fail(Code::INVALID_HANDLE, "the event was never recorded"))?;
            record.time.ok_or_else(|| fail(Code::NOT_READY, "the event is not over"))
        };
        let (from, to) = (time(from)?, time(to)?);
        Ok((to as f64 - from as f64) as f32 * 1e-6)
    }
}

/// A clock that knows one operation.
fn single(line: usize, sequence: u32) -> Clock {
    let mut clock = vec![0; line + 1];
    clock[line] = sequence;
    clock
}
