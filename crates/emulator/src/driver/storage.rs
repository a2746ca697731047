//! Memory as users ask for it: of devices, pinned, registered; what a pointer is, and who has to give it back.

use super::error::{Answer, Code, fail, invalid};
use super::queue::Work;
use super::{Driver, Handle};
use crate::check::order::Stamp;
use crate::memory::{Allocation, FreeError, Owner, Touch, taken};
use crate::report::Kind;
use std::sync::Arc;

/// An allocation that a user has to give back.
pub(crate) struct Entry {
    pub(crate) context: Handle,
    pub(crate) bytes: u64,
    pub(crate) origin: Origin,
}

/// What allocated it, on which depends what frees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// cuMemAlloc.
    Device,
    /// cuMemAllocAsync.
    Pool,
    /// cuMemAllocManaged.
    Managed,
    /// cuMemHostAlloc.
    Pinned,
}

impl Driver {
    /// Allocates in the current context.
    pub(crate) fn allocate(&self, bytes: usize, origin: Origin) -> Answer<u64> {
        let mut state = self.lock();
        let context = state.current()?;
        self.allocate_in(&mut state, context, bytes, origin)
    }

    fn allocate_in(&self, state: &mut super::State, context: Handle, bytes: usize, origin: Origin) -> Answer<u64> {
        if bytes == 0 {
            return Err(invalid("an allocation has at least one byte"));
        }
        let device = state.context(context)?.device;
        let owner = match origin {
            Origin::Device | Origin::Pool => Owner::Device(device),
            // Managed memory is one copy that host and devices see.
            Origin::Managed | Origin::Pinned => Owner::Host,
        };
        let bytes = bytes as u64;
        let address = self.memory.allocate(owner, bytes).ok_or_else(|| {
            let used = self.memory.used(owner);
            fail(Code::OUT_OF_MEMORY, format!("{bytes} bytes are not left: {used} of {} are used", self.options.memory))
        })?;
        state.allocations.insert(address, Entry { context, bytes, origin });
        if origin == Origin::Pool {
            state.pools[device].take(taken(bytes));
        }
        Ok(address)
    }

    /// cuMemAllocAsync and cuMemAllocFromPoolAsync. The address is good at once, the memory behind this in the order of
    /// the stream.
    pub(crate) fn allocate_async(&self, bytes: usize, stream: Handle, pool: Option<Handle>) -> Answer<u64> {
        let mut state = self.lock();
        let target = state.stream(stream)?;
        let device = state.context(target.context)?.device;
        self.check_pool(pool, device)?;
        let address = self.allocate_in(&mut state, target.context, bytes, Origin::Pool)?;
        let (state, _) = self.enqueue(state, &target, "cuMemAllocAsync", Work::Allocate(address));
        drop(self.make_room(state, device));
        Ok(address)
    }

    /// Memory counts as used no more: it was freed, or is going to be in the order of a stream.
    fn discount(&self, state: &mut super::State, address: u64) {
        if let Some((Owner::Device(device), bytes)) = self.memory.discount(address)
            && state.allocations.get(&address).is_some_and(|entry| entry.origin == Origin::Pool)
        {
            state.pools[device].give(bytes);
        }
    }

    /// Gives memory back that a user had allocated, or a module.
    pub(crate) fn give_back(&self, state: &mut super::State, address: u64) -> Result<u64, FreeError> {
        self.discount(state, address);
        state.allocations.remove(&address);
        state.freeing.remove(&address);
        self.memory.free(address)
    }

    /// cuMemFree and cuMemFreeHost. They wait for the context, since what it does may use the memory.
    pub(crate) fn free(&self, address: u64, host: bool) -> Answer {
        if address == 0 {
            return Ok(());
        }
        let state = self.lock();
        let entry = state.allocations.get(&address).filter(|_| !state.freeing.contains(&address));
        let Some(context) = entry.filter(|entry| (entry.origin == Origin::Pinned) == host).map(|entry| entry.context)
        else {
            return Err(self.not_freeable(address));
        };
        let mut state = self.finish(state, context);
        if !state.allocations.contains_key(&address) {
            return Err(self.not_freeable(address));
        }
        self.give_back(&mut state, address).map_err(|error| self.free_error(address, error))?;
        state.surface(context)
    }

    /// cuMemFreeAsync.
    pub(crate) fn free_async(&self, address: u64, stream: Handle) -> Answer {
        if address == 0 {
            return Ok(());
        }
        let mut state = self.lock();
        let target = match state.stream(stream) {
            Ok(target) => target,
            Err(failure) => {
                // A context that failed cannot queue it, and must not count it as a leak either.
                if state.allocations.contains_key(&address) {
                    let _ = self.give_back(&mut state, address);
                }
                return Err(failure);
            }
        };
        let found = state.allocations.get(&address).is_some_and(|entry| entry.origin != Origin::Pinned);
        if !found || !state.freeing.insert(address) {
            return Err(self.not_freeable(address));
        }
        self.discount(&mut state, address);
        self.submit(state, &target, "cuMemFreeAsync", Work::Free(address));
        Ok(())
    }

    /// Carries a free of a stream out.
    pub(crate) fn run_free(&self, address: u64, stamp: &Stamp) {
        self.memory.touch_all(address, stamp, &self.findings);
        let mut state = self.lock();
        if state.allocations.contains_key(&address) {
            let _ = self.give_back(&mut state, address);
        }
    }

    fn not_freeable(&self, address: u64) -> super::error::Failure {
        match self.memory.find(address) {
            Some(allocation) if allocation.base == address => {
                invalid(format!("{address:#x} is not freed by this function, or is about to be freed already"))
            }
            Some(allocation) => {
                invalid(format!("{address:#x} lies inside of an allocation, which begins at {:#x}", allocation.base))
            }
            None if self.memory.freed(address).is_some() => {
                invalid(format!("{address:#x} was freed already")).found(Kind::UseAfterFree)
            }
            None => invalid(format!("nothing is allocated at {address:#x}")),
        }
    }

    fn free_error(&self, address: u64, error: FreeError) -> super::error::Failure {
        invalid(match error {
            FreeError::Unknown => format!("nothing is allocated at {address:#x}"),
            FreeError::Twice => format!("{address:#x} was freed already"),
        })
    }

    /// The live allocation in which `bytes` bytes from `address` on lie.
    pub(crate) fn memory_at(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, (Kind, String)> {
        let Some(allocation) = self.memory.find(address) else {
            if let Some(freed) = self.memory.freed(address) {
                let (base, size) = (freed.start, freed.end - freed.start);
                let reason = format!("{bytes} bytes at {address:#x}: the {size} bytes at {base:#x} were freed");
                return Err((Kind::UseAfterFree, reason));
            }
            return Err((Kind::OutOfBounds, format!("{bytes} bytes at {address:#x}: there is no memory")));
        };
        let (base, size) = (allocation.base, allocation.size);
        if bytes > size || address - base > size - bytes {
            let offset = address - base;
            return Err((
                Kind::OutOfBounds,
                format!("{bytes} bytes at {address:#x} exceed the {size} bytes at {base:#x}, {offset} bytes into them"),
            ));
        }
        Ok(allocation)
    }

    /// Records an access of rows for the checks.
    pub(crate) fn touch_rows(&self, address: u64, width: u64, pitch: u64, height: u64, touch: Touch, stamp: &Stamp) {
        let (width, height) = if width == pitch { (width * height, 1) } else { (width, height) };
        for row in 0..height {
            let start = address + row * pitch;
            if width > 0 {
                self.memory.touch(start..start + width, touch, stamp, &self.findings);
            }
        }
    }

    /// cuMemGetInfo: bytes that nobody holds, not even a pool, and all.
    pub(crate) fn memory_info(&self) -> Answer<(usize, usize)> {
        let mut state = self.lock();
        let device = state.context(state.current()?)?.device;
        Ok((self.left(&mut state, device) as usize, self.options.memory as usize))
    }

    /// cuMemHostRegister.
    pub(crate) fn register(&self, address: u64, bytes: usize) -> Answer {
        if address == 0 || bytes == 0 {
            return Err(invalid("there is nothing to register"));
        }
        let end = address.checked_add(bytes as u64).ok_or_else(|| invalid("the memory ends past the last address"))?;
        let mut state = self.lock();
        state.current()?;
        let below = state.registered.range(..end).next_back();
        if below.is_some_and(|(&start, &bytes)| start + bytes > address) || self.memory.find(address).is_some() {
            return Err(fail(Code::HOST_MEMORY_ALREADY_REGISTERED, format!("{address:#x} is registered already")));
        }
        state.registered.insert(address, bytes as u64);
        Ok(())
    }

    /// cuMemHostUnregister.
    pub(crate) fn unregister(&self, address: u64) -> Answer {
        let mut state = self.lock();
        state.current()?;
        match state.registered.remove(&address) {
            Some(_) => Ok(()),
            None => Err(fail(Code::HOST_MEMORY_NOT_REGISTERED, format!("{address:#x} is not registered"))),
        }
    }

    /// cuMemHostGetDevicePointer. Pinned memory has one address everywhere.
    pub(crate) fn device_pointer(&self, address: u64) -> Answer<u64> {
        let state = self.lock();
        state.current()?;
        match self.memory.find(address) {
            Some(found) if found.owner == Owner::Host => Ok(address),
            _ if state.registered.contains_key(&address) => Err(fail(
                Code::NOT_SUPPORTED,
                "kernels cannot reach registered memory here; cuMemHostAlloc gives memory that they can",
            )),
            _ => Err(invalid(format!("{address:#x} is not pinned memory"))),
        }
    }

    /// cuMemGetAddressRange: first byte and bytes.
    pub(crate) fn address_range(&self, address: u64) -> Answer<(u64, usize)> {
        self.lock().current()?;
        match self.memory_at(address, 1) {
            Ok(allocation) => Ok((allocation.base, allocation.size as usize)),
            Err((_, reason)) => Err(fail(Code::NOT_FOUND, reason)),
        }
    }

    /// What cuPointerGetAttribute tells, each as the bits of its type. `None`: there is no such attribute.
    pub(crate) fn pointer_attribute(&self, address: u64, attribute: u32) -> Answer<Option<u64>> {
        let state = self.lock();
        let allocation = self.memory_at(address, 1).map_err(|(_, reason)| invalid(reason))?;
        let entry = state.allocations.get(&allocation.base);
        let context = entry.map_or(0, |entry| entry.context);
        let device = match allocation.owner {
            Owner::Device(device) => device,
            Owner::Host => state.contexts.get(&context).map_or(0, |context| context.device),
        };
        Ok(Some(match attribute {
            1 => context,
            2 => {
                if allocation.owner == Owner::Host {
                    1
                } else {
                    2
                }
            }
            3 => address,
            4 if allocation.owner == Owner::Host => address,
            4 => return Err(invalid("memory of a device has no address for the host")),
            6 => 0,                     // synchronous operations are what they are
            7 => allocation.base / 256, // a number of its own
            8 => u64::from(entry.is_some_and(|entry| entry.origin == Origin::Managed)),
            9 => device as u64,
            10 | 14 | 15 => 0, // interprocess and remote access
            11 => allocation.base,
            12 => allocation.size,
            13 => 1,
            16 => 3, // read and write
            17 => 0, // no pool handle
            _ => return Ok(None),
        }))
    }
}
