//! What an operation of a warp sees beside its registers: memory of every space, with every access checked and counted.

use super::Fault;
use super::launch::Environment;
use super::racing;
use super::registers::{Double, LANES, Registers, lanes, mask_of};
use super::shared::{BlockMemory, Observed};
pub use crate::check::Access;
use crate::check::clocks::Touch;
use crate::check::initialized;
use crate::isa::asynchronous::Pending;
use crate::memory::{Allocation, Owner, find};
use crate::program::{LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WINDOW};
use crate::ptx::ast::Space;
use crate::report::Kind;
use std::sync::Arc;

/// The most bytes one lane loads or stores at once (`.v8.b32`).
pub const WIDEST: usize = 32;

/// What the lanes of a warp load or store, each its own bytes from the first on.
pub type LaneBytes = [[u8; WIDEST]; LANES];

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// A space whose addresses are its own.
    In(Space),
    /// A generic address: the space is that of its window, lane by lane.
    Generic,
}

/// A warp's view of its surroundings while it executes.
pub struct Context<'a> {
    /// The warp's registers.
    pub registers: &'a mut Registers,
    /// Asynchronous copies and barriers of the thread block.
    pub pending: &'a mut Pending,
    /// The number in the block of the thread in lane 0.
    pub first_thread: usize,
    /// The operation that is executed.
    pub pc: usize,
    /// Shared memory of the block, and who did what with it.
    pub block: &'a mut BlockMemory,
    /// Local memory of the warp, one lane after another.
    pub local: &'a mut Local,
    /// What does not change during the launch.
    pub environment: &'a Environment<'a>,
}

/// Local memory of a warp.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Lane after lane.
    pub bytes: Vec<u8>,
    /// Bytes of one lane.
    pub size: usize,
    /// Which bytes were written, where that is looked for.
    pub initialized: Option<initialized::Owned>,
}

impl Local {
    /// `size` bytes a lane, none of them written.
    pub(crate) fn restart(&mut self, size: usize, watch: bool) {
        self.size = size;
        self.bytes.resize(size * LANES, 0);
        self.initialized = (watch && size > 0).then(|| initialized::Owned::new(size * LANES));
    }
}

/// Whether a lane's address is not among those from `base` to `base + limit`; nothing is, without a limit.
#[inline(always)]
fn any_beyond(mask: u32, addresses: &Double, base: u64, limit: Option<u64>) -> bool {
    let Some(limit) = limit else { return true };
    let is_beyond = |lane: usize| u64::from(addresses[lane].wrapping_sub(base) > limit);
    if mask == u32::MAX {
        // Without a branch for each lane these are few vector instructions.
        return (0..LANES).fold(0, |any, lane| any | is_beyond(lane)) != 0;
    }
    lanes(mask).fold(0, |any, lane| any | is_beyond(lane)) != 0
}

/// The bits that are set in some lane's address.
#[inline(always)]
fn bits_of(mask: u32, addresses: &Double) -> u64 {
    if mask == u32::MAX {
        return addresses.iter().fold(0, |all, address| all | address);
    }
    lanes(mask).fold(0, |all, lane| all | addresses[lane])
}

/// Sets the pointers of the lanes in `mask`.
#[inline(always)]
fn point(mask: u32, pointers: &mut [*mut u8; LANES], to: impl Fn(usize) -> *mut u8) {
    if mask == u32::MAX {
        *pointers = std::array::from_fn(to);
    } else {
        lanes(mask).for_each(|lane| pointers[lane] = to(lane));
    }
}

impl Context<'_> {
    /// Pointers to `size` bytes for each lane in `mask`, good until the next operation: checked for bounds, alignment (to
    /// `size`), initialization and races, and counted. Pointers of other lanes must not be used.
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    #[inline(always)]
    pub fn locate(
        &mut self,
        mask: u32,
        at: Where,
        addresses: &Double,
        size: usize,
        access: Access,
    ) -> Result<[*mut u8; LANES], Fault> {
        let mut pointers = [std::ptr::null_mut(); LANES];
        self.block.writes += u64::from(access.writes());
        match at {
            Where::In(space) => self.locate_in(space, mask, addresses, size, access, &mut pointers)?,
            Where::Generic => {
                let mut rest = mask;
                while rest != 0 {
                    let first = addresses[rest.trailing_zeros() as usize];
                    let (space, window) = window_of(first);
                    let same = rest & mask_of(|lane| window_of(addresses[lane]).0 == space);
                    let own = addresses.map(|address| address.wrapping_sub(window));
                    self.locate_in(space, same, &own, size, access, &mut pointers)?;
                    rest &= !same;
                }
            }
        }
        Ok(pointers)
    }

    #[inline(always)]
    fn locate_in(
        &mut self,
        space: Space,
        mask: u32,
        addresses: &Double,
        size: usize,
        access: Access,
        pointers: &mut [*mut u8; LANES],
    ) -> Result<(), Fault> {
        if bits_of(mask, addresses) & (size as u64 - 1) != 0 {
            return Err(self.misaligned(space, mask, addresses, size, access));
        }
        match space {
            Space::Global | Space::Constant => self.locate_global(mask, addresses, size, access, pointers)?,
            Space::Shared => {
                let (start, length) = self.block.bytes();
                if any_beyond(mask, addresses, 0, (length as u64).checked_sub(size as u64)) {
                    let beyond = |lane: &usize| addresses[*lane].saturating_add(size as u64) > length as u64;
                    let lane = lanes(mask).find(beyond).unwrap_or(0);
                    return Err(out_of_bounds(lane, access, size, addresses[lane], "shared memory", length as u64));
                }
                point(mask, pointers, |lane| start.wrapping_add(addresses[lane] as usize));
                if self.block.watches() {
                    let (pc, first_thread) = (self.pc, self.first_thread);
                    let observed = Observed { pc, first_thread, mask, addresses, size, access };
                    self.block.observe(self.environment, &observed);
                }
            }
            Space::Local => {
                for lane in lanes(mask) {
                    let address = addresses[lane];
                    if address.saturating_add(size as u64) > self.local.size as u64 {
                        let length = self.local.size as u64;
                        return Err(out_of_bounds(lane, access, size, address, "local memory", length));
                    }
                    let offset = lane * self.local.size + address as usize;
                    pointers[lane] = self.local.bytes.as_mut_ptr().wrapping_add(offset);
                    self.observe_local(lane, offset, size, access);
                }
            }
            Space::Parameter => {
                let parameters = self.environment.launch.parameters;
                for lane in lanes(mask) {
                    let address = addresses[lane];
                    if access.writes() || address.saturating_add(size as u64) > parameters.len() as u64 {
                        let length = parameters.len() as u64;
                        return Err(out_of_bounds(lane, access, size, address, "the parameters", length));
                    }
                    pointers[lane] = parameters.as_ptr().wrapping_add(address as usize).cast_mut();
                }
            }
        }
        if let Some(counters) = &mut self.block.counters {
            let (pc, store) = (self.pc as u32, access.writes());
            match space {
                Space::Global => counters.global(pc, mask, addresses, size, store),
                Space::Shared => counters.shared(pc, mask, addresses, size, store),
                Space::Local => counters.local(pc, mask, size, store),
                Space::Constant | Space::Parameter => {}
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn locate_global(
        &mut self,
        mask: u32,
        addresses: &Double,
        size: usize,
        access: Access,
        pointers: &mut [*mut u8; LANES],
    ) -> Result<(), Fault> {
        let environment = self.environment;
        let mut allocation = environment.snapshot.get(self.block.last_allocation);
        let all_inside = allocation.is_some_and(|allocation| {
            !any_beyond(mask, addresses, allocation.base, allocation.size.checked_sub(size as u64))
        });
        if all_inside {
            point(mask, pointers, |lane| addresses[lane] as *mut u8);
        }
        for lane in lanes(if all_inside { 0 } else { mask }) {
            let address = addresses[lane];
            let inside = |allocation: &Arc<Allocation>| {
                address >= allocation.base && address.saturating_add(size as u64) <= allocation.base + allocation.size
            };
            if !allocation.is_some_and(inside) {
                // Kernels go back and forth between few allocations.
                let index = match self
                    .block
                    .earlier_allocations
                    .iter()
                    .copied()
                    .find(|&index| environment.snapshot.get(index).is_some_and(inside))
                {
                    Some(index) => index,
                    None => self.find_global(lane, address, size, access)?,
                };
                self.block.earlier_allocations.rotate_right(1);
                self.block.earlier_allocations[0] = self.block.last_allocation;
                self.block.last_allocation = index;
                allocation = environment.snapshot.get(index);
            }
            pointers[lane] = address as *mut u8;
        }
        if self.block.watches() {
            self.observe_global(mask, addresses, size, access);
        }
        Ok(())
    }

    /// Looks at an access of global memory, allocation by allocation.
    #[cold]
    fn observe_global(&mut self, mask: u32, addresses: &Double, size: usize, access: Access) {
        let (environment, pc, first_thread) = (self.environment, self.pc, self.first_thread);
        let mut rest = mask;
        while rest != 0 {
            let first = addresses[rest.trailing_zeros() as usize];
            let Some(allocation) = find(&environment.snapshot, first) else { return };
            let own = rest & mask_of(|lane| allocation.range().contains(&addresses[lane]));
            let observed = Observed { pc, first_thread, mask: own, addresses, size, access };
            self.block.observe_global(environment, &observed, allocation);
            rest &= !own;
        }
    }

    /// The allocation that one lane accesses.
    #[cold]
    fn find_global(&self, lane: usize, address: u64, size: usize, access: Access) -> Result<usize, Fault> {
        let snapshot = &self.environment.snapshot;
        let what = || format!("{} {size} bytes at {address:#x}", verb(access));
        let Some(allocation) = find(snapshot, address) else {
            if let Some(freed) = self.environment.memory.freed(address) {
                let (base, length) = (freed.start, freed.end - freed.start);
                let message = format!("{}, in {length} bytes at {base:#x} that were freed", what());
                return Err(Fault::lane(Kind::UseAfterFree, lane, message));
            }
            let before = snapshot.partition_point(|allocation| allocation.base <= address).checked_sub(1);
            let near = before.map(|index| &snapshot[index]).filter(|near| address - near.base < near.size + (1 << 20));
            let near = near.map_or_else(String::new, |near| {
                let past = address - near.base - near.size;
                format!(", {past} bytes past the end of the {} bytes at {:#x}", near.size, near.base)
            });
            return Err(Fault::lane(
                Kind::OutOfBounds,
                lane,
                format!("{}, where no memory is allocated{near}", what()),
            ));
        };
        let index = snapshot.partition_point(|other| other.base < allocation.base);
        if address + size as u64 > allocation.base + allocation.size {
            let message = format!(
                "{}, of which {} lie past the end of the {} bytes at {:#x}",
                what(),
                address + size as u64 - allocation.base - allocation.size,
                allocation.size,
                allocation.base
            );
            return Err(Fault::lane(Kind::OutOfBounds, lane, message));
        }
        match allocation.owner {
            Owner::Device(device)
                if device != self.environment.launch.device
                    && !self.environment.launch.peers.get(device).is_some_and(|&peer| peer) =>
            {
                let own = self.environment.launch.device;
                let message = format!("{}, memory of device {device} that device {own} has no access to", what());
                Err(Fault::lane(Kind::PeerAccess, lane, message))
            }
            _ => Ok(index),
        }
    }

    #[cold]
    fn misaligned(&self, space: Space, mask: u32, addresses: &Double, size: usize, access: Access) -> Fault {
        let lane = lanes(mask).find(|&lane| addresses[lane] & (size as u64 - 1) != 0).unwrap_or(0);
        let message = format!(
            "{} {size} bytes at {:#x} in {space:?} memory, which is not a multiple of {size}",
            verb(access),
            addresses[lane]
        );
        Fault::lane(Kind::Misaligned, lane, message)
    }

    fn observe_local(&mut self, lane: usize, offset: usize, size: usize, access: Access) {
        let Some(initialized) = &mut self.local.initialized else { return };
        if access.reads() && initialized.first_unset(offset..offset + size).is_some() {
            let message = format!("reads {size} bytes of local memory that nobody wrote");
            self.environment.find(Kind::Uninitialized, self.pc, self.first_thread + lane, self.block.number, message);
        }
        if access.writes() {
            initialized.set(offset..offset + size);
        }
    }

    /// Loads `size` bytes for each lane in `mask`, checked and counted as [`Context::locate`] says.
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    pub fn load(&mut self, mask: u32, at: Where, addresses: &Double, size: usize) -> Result<LaneBytes, Fault> {
        let pointers = self.locate(mask, at, addresses, size, Access::LOAD)?;
        let mut values = [[0; WIDEST]; LANES];
        for lane in lanes(mask) {
            // SAFETY: `locate` gave a pointer to `size` bytes for every lane in the mask; a value has room for the
            // widest access.
            unsafe { racing::read(pointers[lane], &mut values[lane][..size.min(WIDEST)]) };
        }
        Ok(values)
    }

    /// Stores the first `size` bytes of each lane in `mask`, in the order of lanes; checks as for [`Context::load`].
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    pub fn store(
        &mut self,
        mask: u32,
        at: Where,
        addresses: &Double,
        size: usize,
        values: &LaneBytes,
    ) -> Result<(), Fault> {
        if self.block.watches() {
            self.block.storing = Some(Box::new(*values));
        }
        let pointers = self.locate(mask, at, addresses, size, Access::STORE)?;
        self.block.storing = None;
        for lane in lanes(mask) {
            // SAFETY: as in `load`.
            unsafe { racing::write(&values[lane][..size.min(WIDEST)], pointers[lane]) };
        }
        Ok(())
    }

    /// Marks shared bytes as the destination of a copy by the thread in `lane` that has not been waited for.
    pub fn in_flight(&mut self, lane: usize, offset: u64, size: usize) {
        self.block.begin_copy(self.environment, self.pc, self.first_thread + lane, offset, size, true);
    }

    /// Marks shared bytes as written by the thread in `lane` just now: its copy has landed.
    pub fn landed(&mut self, _lane: usize, offset: u64, size: usize) {
        self.block.land_copy(offset, size, false);
    }
}

fn verb(access: Access) -> &'static str {
    match access.touch {
        Touch::Load => "reads",
        Touch::Store => "writes",
        Touch::Update => "updates",
    }
}

/// The space of a generic address, and where its window begins.
#[inline(always)]
fn window_of(address: u64) -> (Space, u64) {
    match address {
        SHARED_WINDOW..LOCAL_WINDOW => (Space::Shared, SHARED_WINDOW),
        LOCAL_WINDOW..PARAMETER_WINDOW => (Space::Local, LOCAL_WINDOW),
        _ if (PARAMETER_WINDOW..PARAMETER_WINDOW + WINDOW).contains(&address) => (Space::Parameter, PARAMETER_WINDOW),
        _ => (Space::Global, 0),
    }
}

#[cold]
fn out_of_bounds(lane: usize, access: Access, size: usize, address: u64, what: &str, length: u64) -> Fault {
    let message = format!("{} {size} bytes at {address:#x} of {what}, which has {length} bytes", verb(access));
    Fault::lane(Kind::OutOfBounds, lane, message)
}
