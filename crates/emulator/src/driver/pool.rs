//! Memory pools: the one that each device has, what it holds, and what of that is in use.
//!
//! A pool is a count, not a store: addresses are never given out twice (see [`crate::memory`]), so that what was freed and
//! is used nonetheless is found. Memory is in use from the call that allocates it to the call that frees it. A later
//! allocation may have the memory of an earlier one from that call on, though work that uses it may still lie before the
//! free in its stream: a real pool lets the new owner wait for it within the streams, here the new owner has other memory.

use super::error::{Answer, Code, fail, invalid};
use super::{Driver, Guard, Handle, State};
use crate::memory::Owner;

/// The default pool of a device, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    used: u64,
    used_high: u64,
    /// Memory of the device that the pool has, in use or not. [`Driver::reserved`] tells what is left of it.
    reserved: u64,
    reserved_high: u64,
    /// What it keeps when somebody synchronizes.
    threshold: u64,
    /// When memory that was freed in another stream may be used again: kept for those who ask, without effect.
    reuse: [u64; 3],
}

impl Default for Pool {
    fn default() -> Self {
        Self { used: 0, used_high: 0, reserved: 0, reserved_high: 0, threshold: 0, reuse: [1; 3] }
    }
}

impl Pool {
    pub(crate) fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.used_high = self.used_high.max(self.used);
        self.reserved = self.reserved.max(self.used);
        self.reserved_high = self.reserved_high.max(self.reserved);
    }

    pub(crate) fn give(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }
}

impl Driver {
    /// The handle of a device's pool, in the range of no other handle.
    pub(crate) fn pool_of(&self, device: i32) -> Answer<Handle> {
        let device = self.device(device)?;
        self.pools_exist()?;
        Ok(device as Handle + 1)
    }

    fn pools_exist(&self) -> Answer {
        match self.options.memory_pools {
            true => Ok(()),
            false => Err(fail(Code::NOT_SUPPORTED, "the devices have no memory pools")),
        }
    }

    /// The device of a pool.
    fn device_of(&self, pool: Handle) -> Answer<usize> {
        self.pools_exist()?;
        let device = pool.checked_sub(1).map(|device| device as usize);
        device
            .filter(|&device| device < self.options.devices)
            .ok_or_else(|| invalid(format!("{pool:#x} is not the pool of a device")))
    }

    /// Fails unless memory of the pool may be allocated in the stream, or `pool` is none and the device of the stream has
    /// one.
    pub(crate) fn check_pool(&self, pool: Option<Handle>, device: usize) -> Answer {
        self.pools_exist()?;
        let Some(pool) = pool else { return Ok(()) };
        let owner = self.device_of(pool)?;
        if owner != device {
            let text = format!("memory of device {owner} is not allocated in streams of device {device} here");
            return Err(fail(Code::NOT_SUPPORTED, text));
        }
        Ok(())
    }

    /// What a device's pool holds: other allocations take what it does not use, as they do on a real device.
    pub(crate) fn reserved(&self, state: &mut State, device: usize) -> u64 {
        let pool = &mut state.pools[device];
        let others = self.memory.used(Owner::Device(device)).saturating_sub(pool.used);
        pool.reserved = pool.reserved.min(self.options.memory.saturating_sub(others)).max(pool.used);
        pool.reserved
    }

    /// Bytes of a device that neither a pool nor anybody else holds.
    pub(crate) fn left(&self, state: &mut State, device: usize) -> u64 {
        let reserved = self.reserved(state, device);
        let others = self.memory.used(Owner::Device(device)).saturating_sub(state.pools[device].used);
        self.options.memory.saturating_sub(others + reserved)
    }

    /// A pool gives memory back to the system until it holds no more than `keep`, or than is in use or about to be freed.
    fn trim(&self, state: &mut State, device: usize, keep: u64) {
        let kept = state.pools[device].used + self.memory.leaving(Owner::Device(device));
        let reserved = self.reserved(state, device);
        state.pools[device].reserved = reserved.min(keep.max(kept));
    }

    /// What a pool does whenever somebody has waited for a stream, an event or a context of its device.
    pub(crate) fn release_unused(&self, state: &mut State, context: Handle) {
        if let Ok(device) = state.context(context).map(|context| context.device) {
            let threshold = state.pools[device].threshold;
            self.trim(state, device, threshold);
        }
    }

    /// Memory that an operation is yet to free is there for longer than it counts. Operations run until all memory of the
    /// device is no more than it has: the host has to find room for it. That is no promise: where nothing can run, since
    /// the caller has yet to enqueue what others wait for, nobody waits.
    pub(crate) fn make_room<'a>(&'a self, mut state: Guard<'a>, device: usize) -> Guard<'a> {
        let owner = Owner::Device(device);
        while self.memory.used(owner).saturating_add(self.memory.leaving(owner)) > self.options.memory {
            let (next, ran) = self.step(state);
            state = next;
            if !ran {
                break;
            }
        }
        state
    }

    /// cuMemPoolTrimTo.
    pub(crate) fn trim_pool(&self, pool: Handle, keep: usize) -> Answer {
        let device = self.device_of(pool)?;
        self.trim(&mut self.lock(), device, keep as u64);
        Ok(())
    }

    /// cuMemPoolGetAttribute.
    pub(crate) fn pool_attribute(&self, pool: Handle, attribute: u32) -> Answer<u64> {
        let device = self.device_of(pool)?;
        let mut state = self.lock();
        let reserved = self.reserved(&mut state, device);
        let pool = &state.pools[device];
        Ok(match attribute {
            1..=3 => pool.reuse[attribute as usize - 1],
            4 => pool.threshold,
            5 => reserved,
            6 => pool.reserved_high,
            7 => pool.used,
            8 => pool.used_high,
            _ => return Err(invalid(format!("there is no attribute {attribute} of pools"))),
        })
    }

    /// cuMemPoolSetAttribute. A high-water mark takes 0 only, and begins anew at what is in use or held now.
    pub(crate) fn set_pool_attribute(&self, pool: Handle, attribute: u32, value: u64) -> Answer {
        let device = self.device_of(pool)?;
        let mut state = self.lock();
        let reserved = self.reserved(&mut state, device);
        let pool = &mut state.pools[device];
        match (attribute, value) {
            (1..=3, _) => pool.reuse[attribute as usize - 1] = value,
            (4, _) => pool.threshold = value,
            (6, 0) => pool.reserved_high = reserved,
            (8, 0) => pool.used_high = pool.used,
            (6 | 8, _) => return Err(invalid(format!("a high-water mark is set to 0, not to {value}"))),
            (5 | 7, _) => return Err(invalid("what a pool holds and what is in use are not set")),
            _ => return Err(invalid(format!("there is no attribute {attribute} of pools"))),
        }
        Ok(())
    }
}
