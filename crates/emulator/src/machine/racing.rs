//! Global memory, which thread blocks on several threads of the host access at the same time.
//!
//! A program that races must not be undefined behaviour of the emulator: elements are loaded and stored as relaxed atomics
//! of their width, which are plain moves of the processor.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Loads an element of 1, 2, 4 or 8 bytes, zero-extended.
///
/// # Safety
/// `pointer` is valid for `size` bytes and aligned to them.
#[inline(always)]
pub(crate) unsafe fn load(pointer: *mut u8, size: usize) -> u64 {
    // SAFETY: as the caller promises; others access the element by atomic operations only.
    unsafe {
        match size {
            1 => u64::from(AtomicU8::from_ptr(pointer).load(Ordering::Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            _ => AtomicU64::from_ptr(pointer.cast()).load(Ordering::Relaxed),
        }
    }
}

/// Stores an element of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store(pointer: *mut u8, size: usize, value: u64) {
    // SAFETY: as the caller promises; others access the element by atomic operations only.
    unsafe {
        match size {
            1 => AtomicU8::from_ptr(pointer).store(value as u8, Ordering::Relaxed),
            2 => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Ordering::Relaxed),
            4 => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Ordering::Relaxed),
            _ => AtomicU64::from_ptr(pointer.cast()).store(value, Ordering::Relaxed),
        }
    }
}

/// The widest element at an address, within so many bytes.
fn element(address: *mut u8, left: usize) -> usize {
    let aligned = 1 << address.addr().trailing_zeros().min(3);
    if left >= aligned { aligned } else { 1 }
}

/// Reads bytes, in the widest elements that are aligned.
///
/// # Safety
/// `pointer` is valid for as many bytes as `to` has.
pub(crate) unsafe fn read(pointer: *const u8, to: &mut [u8]) {
    let (mut at, pointer) = (0, pointer.cast_mut());
    while at < to.len() {
        let from = pointer.wrapping_add(at);
        let size = element(from, to.len() - at);
        // SAFETY: the element lies within the bytes that the caller promises, and is aligned.
        let value = unsafe { load(from, size) };
        to[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        at += size;
    }
}

/// Writes bytes, in the widest elements that are aligned.
///
/// # Safety
/// `pointer` is valid for as many bytes as `from` has.
pub(crate) unsafe fn write(from: &[u8], pointer: *mut u8) {
    let mut at = 0;
    while at < from.len() {
        let to = pointer.wrapping_add(at);
        let size = element(to, from.len() - at);
        let mut value = [0; 8];
        value[..size].copy_from_slice(&from[at..at + size]);
        // SAFETY: the element lies within the bytes that the caller promises, and is aligned.
        unsafe { store(to, size, u64::from_le_bytes(value)) };
        at += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_every_size_and_bytes_from_any_address() {
        let mut words = [0u64; 5];
        let start = words.as_mut_ptr().cast::<u8>();
        for (size, want) in [(1, 0x08), (2, 0x0708), (4, 0x0506_0708), (8, 0x0102_0304_0506_0708u64)] {
            // SAFETY: the element is the first of the array, or its beginning.
            let got = unsafe {
                store(start.add(8), 8, u64::MAX);
                store(start.add(8), size, 0x0102_0304_0506_0708);
                (load(start.add(8), size), load(start.add(8), 8))
            };
            let rest = if size == 8 { 0 } else { u64::MAX << (8 * size) };
            assert_eq!(got, (want, want | rest));
        }
        for (offset, length) in (0..9).flat_map(|offset| (0..20).map(move |length| (offset, length))) {
            let (from, mut back): (Vec<u8>, _) = ((1..=length).collect(), vec![0; usize::from(length)]);
            words = [0; 5];
            // SAFETY: at most 28 of the 40 bytes are touched.
            unsafe {
                write(&from, words.as_mut_ptr().cast::<u8>().add(offset));
                read(words.as_ptr().cast::<u8>().add(offset), &mut back);
            }
            assert_eq!(from, back);
            let sum: u32 = words.iter().flat_map(|word| word.to_le_bytes()).map(u32::from).sum();
            assert_eq!(sum, (1..=u32::from(length)).sum::<u32>());
        }
    }
}
