//! What was not given back.

use super::storage::Origin;
use super::{Driver, Handle, State};
use crate::report::{Finding, Kind};
use std::fmt::Write;

/// How many addresses a finding lists.
const LISTED: usize = 8;

impl Driver {
    /// What a context still holds, a finding for each kind of object.
    pub(crate) fn leaks_of(&self, state: &State, context: Handle) -> Vec<Finding> {
        let device = state.contexts.get(&context).map_or(0, |context| context.device);
        let mut leaks = Vec::new();
        let mut leak = |message: String| {
            let kernel = format!("context of device {device}");
            leaks.push(Finding { kind: Kind::Leak, kernel, place: None, thread: None, message, other: None });
        };
        for (origin, name) in [
            (Origin::Device, "cuMemAlloc"),
            (Origin::Pool, "cuMemAllocAsync"),
            (Origin::Managed, "cuMemAllocManaged"),
            (Origin::Pinned, "cuMemHostAlloc"),
        ] {
            let own = state.allocations.iter().filter(|(address, entry)| {
                entry.context == context && entry.origin == origin && !state.freeing.contains(address)
            });
            let own: Vec<(u64, u64)> = own.map(|(&address, entry)| (address, entry.bytes)).collect();
            if own.is_empty() {
                continue;
            }
            let total: u64 = own.iter().map(|(_, bytes)| bytes).sum();
            let mut message = format!("{} of {name} not freed, {total} bytes:", count(own.len(), "allocation"));
            for (address, bytes) in own.iter().take(LISTED) {
                // Writing to a string does not fail.
                let _ = write!(message, " {address:#x} ({bytes})");
            }
            if own.len() > LISTED {
                message.push_str(" …");
            }
            leak(message);
        }
        let streams = state.streams.values().filter(|own| own.context == context && !own.is_default).count();
        let events = state.events.values().filter(|own| own.context == context).count();
        let modules = state.modules.values().filter(|own| own.context == context).count();
        for (number, what) in [(streams, "stream"), (events, "event"), (modules, "module")] {
            if number > 0 {
                leak(format!("{} not given back", count(number, what)));
            }
        }
        leaks
    }

    /// What the contexts that there are hold now.
    pub(crate) fn leaks(&self) -> Vec<Finding> {
        let state = self.lock();
        let mut contexts: Vec<Handle> = state.contexts.keys().copied().collect();
        contexts.sort_unstable();
        contexts.into_iter().flat_map(|context| self.leaks_of(&state, context)).collect()
    }
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}
