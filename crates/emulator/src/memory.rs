//! To be replaced: memory without any check of accesses.

use crate::check::order::Stamp;
use crate::report::Findings;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A device's.
    Device(usize),
    /// The host's.
    Host,
}

/// Why memory cannot be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// Not the beginning of an allocation.
    Unknown,
    /// Freed before.
    Twice,
}

/// An allocation.
#[derive(Debug)]
pub struct Allocation {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Whose.
    pub owner: Owner,
    freed: AtomicBool,
}

impl Allocation {
    /// Whether it was freed.
    pub fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Acquire)
    }
}

struct Pool {
    base: u64,
    next: u64,
    used: u64,
}

/// All of it.
pub struct Memory {
    devices: usize,
    capacity: u64,
    inner: Mutex<(Vec<Pool>, BTreeMap<u64, Arc<Allocation>>)>,
}

const REGION: u64 = 1 << 40;

impl Memory {
    /// So many devices.
    ///
    /// # Errors
    /// If the system gives no addresses.
    pub fn new(devices: usize, capacity: u64) -> std::io::Result<Self> {
        let mut pools = Vec::new();
        for _ in 0..=devices {
            // SAFETY: an anonymous mapping at an address of the system's choice.
            let base = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    REGION as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if base == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            pools.push(Pool { base: base as u64, next: 0, used: 0 });
        }
        Ok(Self { devices, capacity, inner: Mutex::new((pools, BTreeMap::new())) })
    }

    fn index(&self, owner: Owner) -> usize {
        match owner {
            Owner::Device(device) => device,
            Owner::Host => self.devices,
        }
    }

    /// Allocates.
    pub fn allocate(&self, owner: Owner, bytes: u64) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (pools, all) = &mut *inner;
        let pool = &mut pools[self.index(owner)];
        if owner != Owner::Host && pool.used.checked_add(bytes)? > self.capacity {
            return None;
        }
        let base = pool.base + pool.next;
        pool.next = pool.next.checked_add((bytes + 256).next_multiple_of(256))?;
        if pool.next > REGION {
            return None;
        }
        pool.used += bytes;
        all.insert(base, Arc::new(Allocation { base, size: bytes, owner, freed: AtomicBool::new(false) }));
        Some(base)
    }

    /// Frees.
    ///
    /// # Errors
    /// If it is not the beginning of a live allocation.
    pub fn free(&self, address: u64) -> Result<u64, FreeError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let allocation = inner.1.get(&address).cloned().ok_or(FreeError::Unknown)?;
        if allocation.freed.swap(true, Ordering::AcqRel) {
            return Err(FreeError::Twice);
        }
        let index = self.index(allocation.owner);
        inner.0[index].used -= allocation.size;
        Ok(allocation.size)
    }

    /// Finds.
    pub fn find(&self, address: u64) -> Option<Arc<Allocation>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, found) = inner.1.range(..=address).next_back()?;
        (address < found.base + found.size.max(1)).then(|| found.clone())
    }

    /// Bytes in use.
    pub fn used(&self, owner: Owner) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).0[self.index(owner)].used
    }

    /// Not freed.
    pub fn live(&self) -> Vec<Arc<Allocation>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.values().filter(|allocation| !allocation.is_freed()).cloned().collect()
    }

    /// Records an access.
    pub fn touch(&self, _: Range<u64>, _: bool, _: &Stamp, _: &Findings) {}

    /// Initialization bits.
    pub fn copy_state(&self, _: u64, _: u64, _: u64) {}
}

impl Drop for Memory {
    fn drop(&mut self) {
        for pool in &self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).0 {
            // SAFETY: mapped by `new`, unmapped once.
            unsafe { libc::munmap(pool.base as *mut _, REGION as usize) };
        }
    }
}
