//! Contexts: primary ones, others, which is current in a thread, and the error that a context does not recover from.

use super::error::{Answer, Code, fail, invalid};
use super::queue::{Clock, join};
use super::{Driver, Guard, Handle, State, new_handle};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::thread::ThreadId;

/// A context.
pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    /// Line of the default stream.
    pub(crate) legacy: usize,
    /// What destroyed streams still do.
    pub(crate) lingering: Clock,
    /// Per-thread default streams.
    pub(crate) per_thread: HashMap<ThreadId, Handle>,
    /// Contexts whose memory this one may access.
    pub(crate) peers: HashSet<Handle>,
    /// What went wrong in one of its operations.
    pub(crate) error: Option<Code>,
    /// Whether a synchronizing call has told so; from then on every call does.
    pub(crate) told: bool,
    /// Of CUlimit.
    pub(crate) limits: [usize; 7],
    pub(crate) cache: u32,
    pub(crate) is_primary: bool,
}

/// The primary context of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Primary {
    pub(crate) context: Option<Handle>,
    pub(crate) references: usize,
    pub(crate) flags: u32,
}

std::thread_local! {
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// The context at the top of the calling thread's stack; it may be destroyed.
pub(crate) fn top() -> Option<Handle> {
    STACK.with_borrow(|stack| stack.last().copied())
}

impl State {
    /// A live context.
    pub(crate) fn context(&self, handle: Handle) -> Answer<&Context> {
        self.contexts.get(&handle).ok_or_else(|| match handle {
            0 => fail(Code::INVALID_CONTEXT, "no context is current in this thread"),
            _ => fail(Code::INVALID_CONTEXT, format!("context {handle:#x} does not exist or was destroyed")),
        })
    }

    /// The calling thread's context, unless it has failed and somebody knows.
    pub(crate) fn current(&self) -> Answer<Handle> {
        let handle = top().unwrap_or(0);
        let context = self.context(handle)?;
        match context.error {
            Some(code) if context.told => {
                Err(fail(code, "an earlier operation of this context failed, and it does not recover"))
            }
            _ => Ok(handle),
        }
    }

    /// The device of the calling thread's context.
    pub(crate) fn current_device(&self) -> Answer<usize> {
        Ok(self.context(top().unwrap_or(0))?.device)
    }

    /// Tells the caller of a synchronizing call what went wrong.
    pub(crate) fn surface(&mut self, context: Handle) -> Answer {
        match self.contexts.get_mut(&context) {
            Some(Context { error: Some(code), told, .. }) => {
                *told = true;
                Err(fail(*code, "an operation of this context failed"))
            }
            _ => Ok(()),
        }
    }

    fn add_context(&mut self, device: usize, flags: u32, is_primary: bool) -> Handle {
        let handle = new_handle();
        let context = Context {
            device,
            flags,
            legacy: self.queue.add_line(),
            lingering: Clock::new(),
            per_thread: HashMap::new(),
            peers: HashSet::new(),
            error: None,
            told: false,
            limits: [1 << 10, 1 << 20, 8 << 20, 2, 2048, 64, 0],
            cache: 0,
            is_primary,
        };
        self.contexts.insert(handle, context);
        handle
    }
}

impl Driver {
    /// cuDevicePrimaryCtxRetain.
    pub(crate) fn retain(&self, device: i32) -> Answer<Handle> {
        let device = self.device(device)?;
        let mut state = self.lock();
        let flags = state.primaries[device].flags;
        let handle = match state.primaries[device].context {
            Some(handle) => handle,
            None => state.add_context(device, flags, true),
        };
        let primary = &mut state.primaries[device];
        primary.context = Some(handle);
        primary.references += 1;
        Ok(handle)
    }

    /// cuDevicePrimaryCtxRelease: the last one destroys the context.
    pub(crate) fn release(&self, device: i32) -> Answer {
        let device = self.device(device)?;
        let mut state = self.lock();
        let primary = &mut state.primaries[device];
        if primary.references == 0 {
            return Err(fail(Code::INVALID_CONTEXT, format!("the primary context of device {device} is not retained")));
        }
        primary.references -= 1;
        if primary.references == 0
            && let Some(context) = primary.context.take()
        {
            self.destroy(state, context);
        }
        Ok(())
    }

    /// cuDevicePrimaryCtxReset. "Resetting the primary context does not release it": references stay.
    pub(crate) fn reset(&self, device: i32) -> Answer {
        let device = self.device(device)?;
        let mut state = self.lock();
        if let Some(context) = state.primaries[device].context.take() {
            self.destroy(state, context);
        }
        Ok(())
    }

    /// cuDevicePrimaryCtxGetState: flags, and whether it is active.
    pub(crate) fn primary_state(&self, device: i32) -> Answer<(u32, bool)> {
        let device = self.device(device)?;
        let state = self.lock();
        let primary = &state.primaries[device];
        Ok((primary.flags, primary.context.is_some()))
    }

    /// cuDevicePrimaryCtxSetFlags.
    pub(crate) fn set_primary_flags(&self, device: i32, flags: u32) -> Answer {
        let device = self.device(device)?;
        let mut state = self.lock();
        state.primaries[device].flags = flags;
        if let Some(context) = state.primaries[device].context
            && let Some(context) = state.contexts.get_mut(&context)
        {
            context.flags = flags;
        }
        Ok(())
    }

    /// cuCtxCreate: current from then on.
    pub(crate) fn create_context(&self, flags: u32, device: i32) -> Answer<Handle> {
        let device = self.device(device)?;
        let handle = self.lock().add_context(device, flags, false);
        STACK.with_borrow_mut(|stack| stack.push(handle));
        Ok(handle)
    }

    /// cuCtxDestroy.
    pub(crate) fn destroy_context(&self, handle: Handle) -> Answer {
        let state = self.lock();
        if state.context(handle)?.is_primary {
            return Err(fail(Code::INVALID_CONTEXT, "a primary context is released, not destroyed"));
        }
        STACK.with_borrow_mut(|stack| stack.pop_if(|top| *top == handle));
        self.destroy(state, handle);
        Ok(())
    }

    /// Ends a context: waits for what it does, reports what was not given back, and takes it back.
    fn destroy(&self, state: Guard<'_>, handle: Handle) {
        let mut state = self.finish(state, handle);
        let leaks = self.leaks_of(&state, handle);
        let failed = state.contexts.get(&handle).is_some_and(|context| context.error.is_some());
        if !failed {
            // After an error nobody can give anything back.
            for finding in leaks {
                self.log(format_args!("{finding}"));
                self.findings.add(finding);
            }
        }
        let addresses: Vec<u64> = state
            .allocations
            .iter()
            .filter(|(_, entry)| entry.context == handle)
            .map(|(&address, _)| address)
            .chain(state.modules.values().filter(|module| module.context == handle).flat_map(|m| m.storage.clone()))
            .collect();
        for address in addresses {
            // What an operation freed meanwhile is not there any more, which is what is wanted.
            let _ = self.give_back(&mut state, address);
        }
        state.streams.retain(|_, stream| stream.context != handle);
        state.events.retain(|_, event| event.context != handle);
        state.functions.retain(|_, function| function.context != handle);
        state.modules.retain(|_, module| module.context != handle);
        state.contexts.remove(&handle);
        for context in state.contexts.values_mut() {
            context.peers.remove(&handle);
        }
    }

    /// Waits for all streams of a context.
    pub(crate) fn finish<'a>(&'a self, state: Guard<'a>, context: Handle) -> Guard<'a> {
        let mut clock = state.contexts.get(&context).map(|context| context.lingering.clone()).unwrap_or_default();
        for line in state.lines_of(context) {
            join(&mut clock, state.queue.clock(line));
        }
        self.wait(state, &clock)
    }

    /// cuCtxSynchronize.
    pub(crate) fn synchronize_context(&self) -> Answer {
        let state = self.lock();
        let context = state.current()?;
        let mut state = self.finish(state, context);
        self.release_unused(&mut state, context);
        state.surface(context)
    }

    /// cuCtxSetCurrent: replaces the top of the stack; 0 takes it away.
    pub(crate) fn set_current(&self, handle: Handle) -> Answer {
        self.initialized()?;
        if handle != 0 {
            self.lock().context(handle)?;
        }
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            if handle != 0 {
                stack.push(handle);
            }
        });
        Ok(())
    }

    /// cuCtxGetCurrent: 0 if there is none.
    pub(crate) fn get_current(&self) -> Answer<Handle> {
        self.initialized()?;
        let state = self.lock();
        Ok(top().filter(|handle| state.contexts.contains_key(handle)).unwrap_or(0))
    }

    /// cuCtxPushCurrent.
    pub(crate) fn push_context(&self, handle: Handle) -> Answer {
        self.initialized()?;
        self.lock().context(handle)?;
        STACK.with_borrow_mut(|stack| stack.push(handle));
        Ok(())
    }

    /// cuCtxPopCurrent.
    pub(crate) fn pop_context(&self) -> Answer<Handle> {
        self.initialized()?;
        STACK
            .with_borrow_mut(Vec::pop)
            .ok_or_else(|| fail(Code::INVALID_CONTEXT, "no context is current in this thread"))
    }

    /// cuCtxGetLimit.
    pub(crate) fn limit(&self, limit: u32) -> Answer<usize> {
        let state = self.lock();
        let context = state.context(state.current()?)?;
        let value = context.limits.get(limit as usize);
        value.copied().ok_or_else(|| fail(Code::UNSUPPORTED_LIMIT, format!("there is no limit {limit}")))
    }

    /// cuCtxSetLimit.
    pub(crate) fn set_limit(&self, limit: u32, value: usize) -> Answer {
        let mut state = self.lock();
        let handle = state.current()?;
        let slot = state.contexts.get_mut(&handle).and_then(|context| context.limits.get_mut(limit as usize));
        *slot.ok_or_else(|| fail(Code::UNSUPPORTED_LIMIT, format!("there is no limit {limit}")))? = value;
        Ok(())
    }

    /// Changes something of the calling thread's context.
    pub(crate) fn change_context(&self, change: impl FnOnce(&mut Context)) -> Answer {
        let mut state = self.lock();
        let handle = state.current()?;
        if let Some(context) = state.contexts.get_mut(&handle) {
            change(context);
        }
        Ok(())
    }

    /// cuDeviceCanAccessPeer.
    pub(crate) fn can_access(&self, device: i32, peer: i32) -> Answer<bool> {
        Ok(self.device(device)? != self.device(peer)?)
    }

    /// cuCtxEnablePeerAccess.
    pub(crate) fn enable_peer(&self, peer: Handle, flags: u32) -> Answer {
        if flags != 0 {
            return Err(invalid(format!("flags must be 0, not {flags}")));
        }
        let mut state = self.lock();
        let own = state.current()?;
        let (device, other) = (state.context(own)?.device, state.context(peer)?.device);
        if own == peer || device == other {
            return Err(fail(Code::INVALID_CONTEXT, format!("device {device} is no peer of itself")));
        }
        match state.contexts.get_mut(&own).is_some_and(|context| context.peers.insert(peer)) {
            true => Ok(()),
            false => Err(fail(
                Code::PEER_ACCESS_ALREADY_ENABLED,
                format!("device {device} may access memory of device {other} already"),
            )),
        }
    }

    /// cuCtxDisablePeerAccess.
    pub(crate) fn disable_peer(&self, peer: Handle) -> Answer {
        let mut state = self.lock();
        let own = state.current()?;
        state.context(peer)?;
        match state.contexts.get_mut(&own).is_some_and(|context| context.peers.remove(&peer)) {
            true => Ok(()),
            false => Err(fail(Code::PEER_ACCESS_NOT_ENABLED, "peer access was not enabled")),
        }
    }
}
