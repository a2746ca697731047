//! How many thread blocks of a kernel fit on a multiprocessor.

use super::device::{BLOCK_THREADS, Limits, SHARED_RESERVED};
use crate::program::Program;

/// What an instance of a kernel takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Threads of a thread block.
    pub(crate) threads: u64,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes of shared memory, declared and given at launch.
    pub(crate) shared: u64,
}

/// Resident thread blocks of a multiprocessor, by the allocation granularities of compute capabilities 8.0 to 12.0:
/// registers by 256 a warp, shared memory by 128 bytes.
pub(crate) fn resident_blocks(limits: &Limits, demand: Demand) -> u32 {
    if demand.threads == 0 || demand.threads > BLOCK_THREADS {
        return 0;
    }
    let warps = demand.threads.div_ceil(32);
    let by_threads = u64::from(limits.threads) / 32 / warps;
    let registers = (u64::from(demand.registers) * 32).next_multiple_of(256) * warps;
    let by_registers = u64::from(limits.registers).checked_div(registers).unwrap_or(u64::MAX);
    let shared = demand.shared.saturating_add(u64::from(SHARED_RESERVED)).next_multiple_of(128);
    let by_shared = match demand.shared > u64::from(limits.shared_optin) {
        true => 0,
        false => u64::from(limits.shared) / shared,
    };
    by_threads.min(by_registers).min(by_shared).min(u64::from(limits.blocks)) as u32
}

/// Registers of a thread, estimated: PTX has as many as it likes, and only ptxas knows how many remain. At most what
/// lets the largest thread block of the kernel be launched, as ptxas guarantees for launch bounds.
pub(crate) fn registers(program: &Program) -> u32 {
    let (words, doubles, _) = program.registers.counts();
    let written = words.saturating_add(doubles.saturating_mul(2));
    let most = (65536 / program.max_threads.clamp(32, 1024).next_multiple_of(32) / 8 * 8).min(255);
    u32::try_from(written).unwrap_or(u32::MAX).next_multiple_of(8).clamp(16, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::device::limits;

    #[test]
    fn each_limit_binds() {
        let blocks = |capability, threads, registers, shared| {
            resident_blocks(&limits(capability), Demand { threads, registers, shared })
        };
        // 64 warps a multiprocessor, 8 a block.
        assert_eq!(blocks((8, 0), 256, 16, 0), 8);
        // At most 32 blocks, however small.
        assert_eq!(blocks((8, 0), 32, 16, 0), 32);
        // 128 registers of 256 threads are half of the register file.
        assert_eq!(blocks((8, 0), 256, 128, 0), 2);
        // 164 KiB hold three blocks of 48 + 1 KiB.
        assert_eq!(blocks((8, 0), 256, 16, 48 << 10), 3);
        // Exactly the opt-in limit is possible, one byte more is not.
        assert_eq!((blocks((8, 0), 32, 16, 163 << 10), blocks((8, 0), 32, 16, (163 << 10) + 1)), (1, 0));
        // Not a multiple of a warp: rounded up.
        assert_eq!(blocks((8, 6), 33, 16, 0), 16);
        assert_eq!(blocks((8, 0), 1025, 16, 0), 0);
    }
}
