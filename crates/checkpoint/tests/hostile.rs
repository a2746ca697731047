//! Random and mutated files: opening them never panics, and never allocates more than the file accounts for.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use checkpoint::Checkpoint;
use proptest::prelude::*;

thread_local! {
    /// The largest allocation of this thread since it was last set to zero.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which remembers the largest request.
struct Recording;

// SAFETY: every call is passed on unchanged; the counter is a thread-local cell without a destructor, which neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Recording {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promises are those that this call asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(size));
        // SAFETY: the caller's promises are those that this call asks for.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those that this call asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Recording = Recording;

/// Opens a checkpoint with this file and, if it is accepted, reads all of it. No allocation is larger than 64 KiB (what
/// reading a directory or an error message takes) and 64 bytes for each byte of the file (a list of tensors of 100
/// bytes each, described by at least 40, which grows by doubling and is collected once more, takes less).
fn survive(name: &str, file: &[u8]) {
    let folder = common::folder(&[("config.json", b"{}"), ("model.safetensors", &common::valid_file()), (name, file)]);
    if name.ends_with("index.json") {
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    }
    LARGEST.set(0);
    match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => checkpoint.tensors().for_each(|tensor| drop(tensor.to_f32())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let (largest, limit) = (LARGEST.get(), (64 << 10) + 64 * file.len());
    assert!(largest <= limit, "{largest} bytes at once for a file of {}", file.len());
}

proptest! {
    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survive("model.safetensors", &bytes);
        survive("config.json", &bytes);
        survive("model.safetensors.index.json", &bytes);
    }

    /// Random bytes behind a length that fits.
    #[test]
    fn random_headers(header in prop::collection::vec(any::<u8>(), 0..200), data in prop::collection::vec(any::<u8>(), 0..20)) {
        let length = header.len() as u64;
        survive("model.safetensors", &[&length.to_le_bytes(), header.as_slice(), &data].concat());
    }

    /// A valid file with some bytes changed, and cut.
    #[test]
    fn mutated_files(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), keep in any::<prop::sample::Index>(), cut in any::<bool>()) {
        let mut file = common::valid_file();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if cut {
            file.truncate(keep.index(file.len()));
        }
        survive("model.safetensors", &file);
    }

    /// Well-formed headers with numbers from the edges of their range.
    #[test]
    fn mutated_numbers(
        shape in prop::collection::vec(number(), 0..4),
        offsets in prop::collection::vec((number(), number()), 1..4),
        length in prop::option::of(number()),
        data in 0..64_usize,
    ) {
        let tensors: Vec<_> = offsets
            .iter()
            .enumerate()
            .map(|(at, (begin, end))| {
                let dtype = ["F32", "BF16", "U8", "F4"][at];
                format!(r#""{at}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        let mut file = common::safetensors(&format!("{{{}}}", tensors.join(",")), &vec![1; data]);
        if let Some(length) = length {
            file[..8].copy_from_slice(&length.to_le_bytes());
        }
        survive("model.safetensors", &file);
    }
}

/// Small numbers, and those around the powers of two.
fn number() -> impl Strategy<Value = u64> {
    let edge = (0..64_u32, 0..3_u64).prop_map(|(power, less)| (1_u64 << power).wrapping_sub(less));
    prop_oneof![0..32_u64, edge, any::<u64>()]
}
