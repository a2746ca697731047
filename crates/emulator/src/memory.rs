//! All memory that kernels can reach: that of the devices, and pinned memory of the host.
//!
//! Every device (and the host) has a region of addresses of its own, reserved when the driver starts. An allocation is
//! real memory at the address that the program is given, so that a device pointer needs no translation. Addresses are
//! never used twice: a pointer to freed memory finds nothing, for as long as the program runs.

use crate::check::global::{Labels, Shadow};
use crate::check::initialized;
use crate::check::order::Stamp;
use crate::report::{Finding, Findings, Kind, Place};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Addresses of all regions together, half of what a process has on x86-64. Freed memory is not used again, so that what a
/// device may allocate in the life of a process, all in all, is its part of them.
const ADDRESSES: u64 = 1 << 46;

/// The most addresses of one region.
const LARGEST_REGION: u64 = 1 << 42;

/// What an address is a multiple of, as `cuMemAlloc` promises. Of the memory of its owner an allocation takes as many bytes as
/// lie up to the next such multiple: real devices can give the rest to nobody else either.
const ALIGNMENT: u64 = 512;

/// To whom memory belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A device, by number.
    Device(usize),
    /// The host: pinned memory.
    Host,
}

/// Memory that is allocated.
#[derive(Debug)]
pub struct Allocation {
    /// Its first address.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
    /// To whom it belongs.
    pub owner: Owner,
    /// Which bytes were written, where that is looked for.
    pub initialized: Option<initialized::Shared>,
    /// Who accessed what.
    pub shadow: Shadow,
    /// Whether it still counts as used memory of its owner.
    counted: AtomicBool,
}

impl Allocation {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.base..self.base + self.size
    }
}

/// Why memory cannot be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// Nothing is allocated at this address.
    #[error("nothing is allocated at this address")]
    Unknown,
    /// It was freed before.
    #[error("it was freed before")]
    Twice,
}

/// What the driver does with a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Reads it, for somebody who looks at what is there.
    Read,
    /// Reads it to write the same elsewhere in device memory, whatever it is.
    Move,
    /// Writes it.
    Write,
    /// Allocates or frees it.
    Life,
}

impl Touch {
    /// Whether nobody else may use the memory without an order with this.
    fn excludes(self) -> bool {
        matches!(self, Self::Write | Self::Life)
    }
}

/// What is allocated at a moment, by address.
pub type Snapshot = Arc<Vec<Arc<Allocation>>>;

/// How many freed allocations are remembered, to tell their use after the end from an address that is simply wrong. What
/// was freed before them is like any other address where nothing is.
const FREED: usize = 1 << 14;

/// All memory that kernels can reach.
#[derive(Debug)]
pub struct Memory {
    /// One for each device, and one for the host.
    regions: Vec<Region>,
    table: RwLock<Table>,
    /// Held for reading by whoever uses addresses, for writing while memory is given back.
    in_use: RwLock<()>,
    labels: Labels,
    /// Whether to look for reads of what nobody wrote, and for races.
    watch: (AtomicBool, AtomicBool),
}

#[derive(Debug, Default)]
struct Table {
    /// Shared with the launches under way: an allocation meanwhile copies the list, any other adds to it.
    live: Snapshot,
    freed: Freed,
}

/// Where the last allocations lay that were freed: first address and size.
#[derive(Debug, Default)]
struct Freed {
    sizes: BTreeMap<u64, u64>,
    order: VecDeque<u64>,
}

impl Freed {
    fn add(&mut self, allocation: &Allocation) {
        self.sizes.insert(allocation.base, allocation.size);
        self.order.push_back(allocation.base);
        if self.order.len() > FREED
            && let Some(oldest) = self.order.pop_front()
        {
            self.sizes.remove(&oldest);
        }
    }

    fn find(&self, address: u64) -> Option<Range<u64>> {
        let (&base, &size) = self.sizes.range(..=address).next_back()?;
        Some(base..base + size).filter(|range| range.contains(&address))
    }
}

#[derive(Debug)]
struct Region {
    /// Where the mapping begins, and its size.
    start: u64,
    size: u64,
    next: AtomicU64,
    /// Bytes that count as used.
    used: AtomicU64,
    /// Bytes that no longer do, and are there until an operation has freed them.
    leaving: AtomicU64,
    capacity: u64,
}

impl Region {
    fn reserve(size: u64, capacity: u64) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches no memory of the program.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size as usize, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let (start, first) = (address as u64, (address as u64).next_multiple_of(1 << 21));
        Ok(Self {
            start,
            size,
            next: AtomicU64::new(first),
            used: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            capacity,
        })
    }

    fn allocate(&self, bytes: u64) -> Option<u64> {
        let room = bytes.checked_next_multiple_of(page_size())?;
        let counted = taken(bytes);
        let charge = |used: u64| used.checked_add(counted).filter(|&used| used <= self.capacity);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, charge).ok()?;
        // A page that belongs to nobody lies behind every allocation.
        let end = self.start + self.size;
        let step = |next: u64| next.checked_add(room + page_size()).filter(|&next| next <= end);
        let Ok(address) = self.next.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) else {
            self.used.fetch_sub(counted, Ordering::AcqRel);
            return None;
        };
        // SAFETY: these pages lie inside this region and were given to nobody yet.
        let result = unsafe { libc::mprotect(address as *mut _, room as usize, libc::PROT_READ | libc::PROT_WRITE) };
        if result != 0 {
            self.used.fetch_sub(counted, Ordering::AcqRel);
            return None;
        }
        Some(address)
    }

    /// The allocation counts as used no more. Returns whether it did.
    fn discount(&self, allocation: &Allocation) -> bool {
        let counted = allocation.counted.swap(false, Ordering::AcqRel);
        if counted {
            self.used.fetch_sub(taken(allocation.size), Ordering::AcqRel);
            self.leaving.fetch_add(taken(allocation.size), Ordering::AcqRel);
        }
        counted
    }

    fn free(&self, allocation: &Allocation) {
        self.discount(allocation);
        let (address, bytes) = (allocation.base, allocation.size);
        let room = bytes.next_multiple_of(page_size()) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: these pages are those of one allocation of this region, which is given back by its owner; mapping them
        // anew without access returns their memory to the system and keeps the addresses reserved.
        unsafe { libc::mmap(address as *mut _, room, libc::PROT_NONE, flags, -1, 0) };
        self.leaving.fetch_sub(taken(bytes), Ordering::AcqRel);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region was mapped by this value, whose owner is gone with all its addresses.
        unsafe { libc::munmap(self.start as *mut _, self.size as usize) };
    }
}

fn page_size() -> u64 {
    4096
}

/// What an allocation of so many bytes takes of the memory of its owner.
pub fn taken(bytes: u64) -> u64 {
    bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

impl Memory {
    /// The memory of so many devices with `capacity` bytes each.
    ///
    /// # Errors
    /// If the system does not give the addresses.
    pub fn new(devices: usize, capacity: u64) -> io::Result<Self> {
        let mut regions = Vec::with_capacity(devices + 1);
        let size = (ADDRESSES / (devices as u64 + 1)).min(LARGEST_REGION) / page_size() * page_size();
        for _ in 0..devices {
            regions.push(Region::reserve(size, capacity)?);
        }
        regions.push(Region::reserve(size, u64::MAX)?);
        Ok(Self {
            regions,
            table: RwLock::default(),
            in_use: RwLock::new(()),
            labels: Labels::default(),
            watch: Default::default(),
        })
    }

    fn region(&self, owner: Owner) -> Option<&Region> {
        match owner {
            Owner::Device(device) => self.regions.get(..self.regions.len() - 1)?.get(device),
            Owner::Host => self.regions.last(),
        }
    }

    /// The address of `bytes` new bytes, a multiple of 512; `None` where the owner has no room for them.
    pub fn allocate(&self, owner: Owner, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1);
        let base = self.region(owner)?.allocate(bytes)?;
        debug_assert!(base.is_multiple_of(ALIGNMENT));
        let watched = owner != Owner::Host && self.watch.0.load(Ordering::Relaxed);
        let initialized = watched.then(|| initialized::Shared::new(bytes as usize));
        let (shadow, counted) = (Shadow::new(base, bytes as usize), AtomicBool::new(true));
        let allocation = Arc::new(Allocation { base, size: bytes, owner, initialized, shadow, counted });
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let live = Arc::make_mut(&mut table.live);
        live.insert(live.partition_point(|other| other.base < base), allocation);
        Some(base)
    }

    /// Zeros on a device for the grid barrier of a cooperative launch.
    pub(crate) fn workspace(&self, device: usize) -> Option<u64> {
        let address = self.allocate(Owner::Device(device), 64)?;
        if let Some(initialized) = self.find(address).as_ref().and_then(|own| own.initialized.as_ref()) {
            initialized.set(0..64); // fresh pages are zero
        }
        Some(address)
    }

    /// Gives memory back and returns its size. Waits until no kernel and no copy runs.
    ///
    /// # Errors
    /// If no allocation begins at this address, or it was freed before.
    pub fn free(&self, address: u64) -> Result<u64, FreeError> {
        let _alone = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Ok(index) = table.live.binary_search_by_key(&address, |allocation| allocation.base) else {
            return Err(if table.freed.sizes.contains_key(&address) { FreeError::Twice } else { FreeError::Unknown });
        };
        let allocation = Arc::make_mut(&mut table.live).remove(index);
        table.freed.add(&allocation);
        drop(table);
        if let Some(region) = self.region(allocation.owner) {
            region.free(&allocation);
        }
        Ok(allocation.size)
    }

    /// Memory that is about to be freed counts as used no more. Returns to whom the memory at `address` belongs and what it
    /// took, when it is discounted for the first time.
    pub fn discount(&self, address: u64) -> Option<(Owner, u64)> {
        let allocation = self.find(address).filter(|allocation| allocation.base == address)?;
        let counted = self.region(allocation.owner)?.discount(&allocation);
        counted.then(|| (allocation.owner, taken(allocation.size)))
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<Arc<Allocation>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        find(&table.live, address).cloned()
    }

    /// The addresses of the allocation that held `address` before it was freed. Of those that were freed long ago nothing
    /// is known.
    pub fn freed(&self, address: u64) -> Option<Range<u64>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).freed.find(address)
    }

    /// Whether an address is one that the driver gives out, now, before or later.
    pub fn reserves(&self, address: u64) -> bool {
        self.regions.iter().any(|region| (region.start..region.start + region.size).contains(&address))
    }

    /// Bytes that are allocated, and not about to be freed: each allocation as the next multiple of 512.
    pub fn used(&self, owner: Owner) -> u64 {
        self.region(owner).map_or(0, |region| region.used.load(Ordering::Acquire))
    }

    /// Bytes that are about to be freed, likewise.
    pub fn leaving(&self, owner: Owner) -> u64 {
        self.region(owner).map_or(0, |region| region.leaving.load(Ordering::Acquire))
    }

    /// What is allocated.
    pub fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner).live)
    }

    /// Whether to look for reads of what nobody wrote (in what is allocated from now on), and for races.
    pub fn watch(&self, uninitialized: bool, races: bool) {
        self.watch.0.store(uninitialized, Ordering::Relaxed);
        self.watch.1.store(races, Ordering::Relaxed);
    }

    /// Whether races are looked for.
    pub fn watches_races(&self) -> bool {
        self.watch.1.load(Ordering::Relaxed)
    }

    /// What stream operations are called.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The memory that begins at `address` comes to be, or ceases to be, in the operation `stamp`: what has no order with
    /// that races with it.
    pub fn touch_all(&self, address: u64, stamp: &Stamp, findings: &Findings) {
        if let Some(allocation) = self.find(address) {
            self.touch(allocation.range(), Touch::Life, stamp, findings);
        }
    }

    /// The driver uses a range of addresses in the operation `stamp`: races with operations of other streams, and reads
    /// of what nobody wrote, are added to the findings.
    pub fn touch(&self, range: Range<u64>, touch: Touch, stamp: &Stamp, findings: &Findings) {
        let Some(allocation) = self.find(range.start) else { return };
        let offsets = range.start - allocation.base..range.end.min(allocation.base + allocation.size) - allocation.base;
        let add = |kind, message, other| {
            let (kernel, place, thread) = (stamp.label.to_string(), None, None);
            findings.add(Finding { kind, kernel, place, thread, message, other });
        };
        if let Some(initialized) = &allocation.initialized {
            let bytes = offsets.start as usize..offsets.end as usize;
            match touch {
                Touch::Write => initialized.set(bytes),
                Touch::Read => {
                    if let Some(first) = initialized.first_unset(bytes) {
                        let address = allocation.base + first as u64;
                        add(Kind::Uninitialized, format!("reads a byte at {address:#x} that nobody wrote"), None);
                    }
                }
                Touch::Move | Touch::Life => {}
            }
        }
        if self.watches_races()
            && let Some(conflict) = allocation.shadow.range_access(offsets, touch.excludes(), stamp, &self.labels)
        {
            let address = allocation.base + conflict.offset;
            let other = match &conflict.other {
                crate::check::batch::Other::Operation { label, .. } => {
                    Some((Place { instruction: label.to_string(), ..Place::default() }, None))
                }
                _ => None,
            };
            add(Kind::Race, format!("race in global memory at {address:#x}: {conflict}"), other);
        }
    }

    /// A copy within device memory carries along which bytes were written.
    pub fn copy_state(&self, from: u64, to: u64, bytes: u64) {
        let (Some(source), Some(target)) = (self.find(from), self.find(to)) else { return };
        let Some(target_bits) = &target.initialized else { return };
        let (at, count) = ((to - target.base) as usize, bytes as usize);
        match &source.initialized {
            Some(_) if Arc::ptr_eq(&source, &target) => {
                target_bits.copy_within(at, (from - source.base) as usize, count);
            }
            Some(source_bits) => target_bits.copy(at, source_bits, (from - source.base) as usize, count),
            None => target_bits.set(at..at + count),
        }
    }

    /// Keeps memory from being given back for as long as the guard lives.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The allocation of a snapshot that holds `address`.
pub fn find(snapshot: &[Arc<Allocation>], address: u64) -> Option<&Arc<Allocation>> {
    let index = snapshot.partition_point(|allocation| allocation.base <= address).checked_sub(1)?;
    Some(&snapshot[index]).filter(|allocation| allocation.range().contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_found_and_never_used_again() {
        let memory = Memory::new(2, 1 << 20).unwrap();
        let first = memory.allocate(Owner::Device(0), 100).unwrap();
        let second = memory.allocate(Owner::Device(1), 5000).unwrap();
        assert!(first.is_multiple_of(ALIGNMENT) && second.is_multiple_of(ALIGNMENT));
        assert_eq!(memory.find(first + 99).map(|found| found.base), Some(first));
        assert!(memory.find(first + 100).is_none() && memory.find(first - 1).is_none());
        assert_eq!(memory.free(first), Ok(100));
        assert_eq!(memory.free(first), Err(FreeError::Twice));
        assert_eq!(memory.free(first + 8), Err(FreeError::Unknown));
        assert!(memory.find(first).is_none());
        assert_eq!((memory.freed(first + 99), memory.freed(first + 100)), (Some(first..first + 100), None));
        assert_ne!(memory.allocate(Owner::Device(0), 100), Some(first));
        assert_eq!(memory.snapshot().len(), 2);
        assert!(
            memory.reserves(first) && memory.reserves(second + (1 << 30)) && !memory.reserves(&raw const memory as u64)
        );
    }

    #[test]
    fn a_snapshot_stays_what_it_was() {
        let memory = Memory::new(2, 1 << 20).unwrap();
        // The regions lie in any order: the list is one of addresses all the same.
        let addresses: Vec<u64> = (0..6).map(|at| memory.allocate(Owner::Device(at % 2), 8).unwrap()).collect();
        let before = memory.snapshot();
        assert!(before.is_sorted_by_key(|allocation| allocation.base));
        memory.free(addresses[2]).unwrap();
        let after = memory.allocate(Owner::Device(0), 8).unwrap();
        assert!(find(&before, addresses[2]).is_some() && find(&before, after).is_none());
        let now = memory.snapshot();
        assert!(find(&now, addresses[2]).is_none() && find(&now, after).is_some());
        assert_eq!((before.len(), now.len()), (6, 6));
    }

    #[test]
    fn a_device_has_no_more_than_its_capacity() {
        let memory = Memory::new(1, 1024).unwrap();
        assert!(memory.allocate(Owner::Device(0), 1025).is_none());
        let address = memory.allocate(Owner::Device(0), 1000).unwrap();
        assert!(memory.allocate(Owner::Device(0), 1).is_none(), "the rest of 512 bytes is nobody else's");
        assert_eq!(memory.used(Owner::Device(0)), 1024);
        memory.free(address).unwrap();
        assert_eq!((memory.used(Owner::Device(0)), memory.leaving(Owner::Device(0))), (0, 0));
        let address = memory.allocate(Owner::Device(0), 1000).unwrap();
        // Discounted once, however often.
        assert_eq!(memory.discount(address), Some((Owner::Device(0), 1024)));
        assert_eq!(memory.discount(address), None);
        let next = memory.allocate(Owner::Device(0), 512).unwrap();
        assert_eq!((memory.used(Owner::Device(0)), memory.leaving(Owner::Device(0))), (512, 1024));
        memory.free(address).unwrap();
        assert_eq!((memory.used(Owner::Device(0)), memory.leaving(Owner::Device(0))), (512, 0));
        memory.free(next).unwrap();
        assert!(memory.allocate(Owner::Device(1), 1).is_none());
        assert!(memory.allocate(Owner::Host, 1 << 30).is_some());
    }
}
