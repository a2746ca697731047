//! What a device of a given compute capability can do: the answers to attribute queries and the limits of launches.
//! Figures are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and of
//! data-center parts where a capability spans several.

use crate::options::Options;

/// Limits of a multiprocessor and of a thread block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Resident threads of a multiprocessor.
    pub(crate) threads: u32,
    /// Resident thread blocks of a multiprocessor.
    pub(crate) blocks: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub(crate) shared: u32,
    /// Bytes of shared memory a thread block may have after opting in.
    pub(crate) shared_optin: u32,
    /// Registers, 32 bits each, of a multiprocessor and of a thread block.
    pub(crate) registers: u32,
    /// Bytes of the second-level cache.
    pub(crate) cache: u32,
}

/// Bytes of shared memory a thread block may have without opting in.
pub(crate) const SHARED_DEFAULT: u32 = 48 << 10;
/// Bytes of shared memory that the system takes for each thread block (compute capability 8.0 and later).
pub(crate) const SHARED_RESERVED: u32 = 1 << 10;
/// Threads of a thread block along each axis.
pub(crate) const BLOCK_LIMITS: [u32; 3] = [1024, 1024, 64];
/// Threads of a thread block.
pub(crate) const BLOCK_THREADS: u64 = 1024;
/// Thread blocks of a grid along each axis.
pub(crate) const GRID_LIMITS: [u32; 3] = [0x7fff_ffff, 65535, 65535];

/// The limits of a compute capability.
pub(crate) fn limits((major, minor): (u32, u32)) -> Limits {
    let base = Limits { threads: 2048, blocks: 32, shared: 0, shared_optin: 0, registers: 65536, cache: 40 << 20 };
    let kib = 1 << 10;
    match (major, minor) {
        (8, 0) => Limits { shared: 164 * kib, shared_optin: 163 * kib, ..base },
        (8, 7) => {
            Limits { threads: 1536, blocks: 16, shared: 164 * kib, shared_optin: 163 * kib, cache: 4 << 20, ..base }
        }
        (8, 9) => {
            Limits { threads: 1536, blocks: 24, shared: 100 * kib, shared_optin: 99 * kib, cache: 72 << 20, ..base }
        }
        (8, _) => {
            Limits { threads: 1536, blocks: 16, shared: 100 * kib, shared_optin: 99 * kib, cache: 6 << 20, ..base }
        }
        (12, _) => {
            Limits { threads: 1536, blocks: 24, shared: 100 * kib, shared_optin: 99 * kib, cache: 96 << 20, ..base }
        }
        _ => Limits { shared: 228 * kib, shared_optin: 227 * kib, cache: 50 << 20, ..base },
    }
}

/// The value of a CUdevice_attribute for one of the devices; `None` if there is no such attribute.
pub(crate) fn attribute(options: &Options, device: usize, number: u32) -> Option<i32> {
    let limits = limits(options.capability);
    let (major, minor) = options.capability;
    Some(match number {
        1 => BLOCK_THREADS as i32,
        2 => BLOCK_LIMITS[0] as i32,
        3 => BLOCK_LIMITS[1] as i32,
        4 => BLOCK_LIMITS[2] as i32,
        5 => GRID_LIMITS[0] as i32,
        6 => GRID_LIMITS[1] as i32,
        7 => GRID_LIMITS[2] as i32,
        8 => SHARED_DEFAULT as i32,
        9 => 64 << 10,  // constant memory
        10 => 32,       // warp size
        11 => i32::MAX, // largest pitch
        12 | 82 => limits.registers as i32,
        13 => 1_410_000, // clock, kHz: an A100's, since a device must have one
        14 => 512,       // alignment of textures
        15 => 1,         // copies overlap kernels
        16 => options.multiprocessors as i32,
        17 | 18 => 0,            // run time limit, integrated
        19 => 1,                 // maps host memory
        20 => 0,                 // compute mode: default
        30 => 512,               // alignment of surfaces
        31 => 1,                 // concurrent kernels
        32 => 1,                 // ECC
        33 => device as i32 + 1, // PCI bus
        34 | 35 | 50 => 0,       // PCI device, TCC, PCI domain
        36 => 1_215_000,         // memory clock, kHz
        37 => 5120,              // memory bus, bits
        38 => limits.cache as i32,
        39 => limits.threads as i32,
        40 => 3,  // copy engines
        41 => 1,  // unified addresses
        51 => 32, // pitch alignment of textures
        75 => major as i32,
        76 => minor as i32,
        78..=80 => 1, // stream priorities, caches
        81 => limits.shared as i32,
        83 => 1, // managed memory
        87 => {
            if matches!((major, minor), (8, 0) | (9, 0) | (10, 0)) {
                2
            } else {
                64
            }
        }
        90 => 1, // preemption
        95 => 1, // cooperative launches
        97 => limits.shared_optin as i32,
        99 => 1, // registering host memory
        106 => limits.blocks as i32,
        111 => SHARED_RESERVED as i32,
        115 => i32::from(options.memory_pools),
        127 => i32::from(major >= 9), // tensor maps
        // What is not there: textures, surfaces, managed access from both sides, interprocess handles, and launches of
        // clusters (120), since those of more than one thread block are refused.
        21..=29
        | 42..=49
        | 52..=74
        | 77
        | 84..=86
        | 88
        | 89
        | 91..=94
        | 96
        | 98
        | 100..=105
        | 107..=110
        | 112..=114
        | 116..=126
        | 128..=162 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_the_capability() {
        let of = |capability, number| attribute(&Options { capability, ..Options::default() }, 0, number);
        assert_eq!((of((8, 0), 75), of((8, 0), 76)), (Some(8), Some(0)));
        // An A100's and an H100's shared memory a block, after opting in.
        assert_eq!((of((8, 0), 97), of((9, 0), 97)), (Some(166_912), Some(232_448)));
        assert_eq!((of((8, 6), 39), of((8, 0), 39)), (Some(1536), Some(2048)));
        // Tensor maps, and clusters, of which there are none.
        assert_eq!([of((8, 9), 127), of((9, 0), 127), of((12, 0), 127)], [Some(0), Some(1), Some(1)]);
        assert_eq!(of((9, 0), 120), Some(0));
        assert_eq!(of((8, 0), 9999), None);
    }
}
