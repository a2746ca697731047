//! How many thread blocks a multiprocessor can hold, and what keeps it from holding more.

use super::Geometry;
use serde::{Deserialize, Serialize};

/// What limits the number of resident thread blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The multiprocessor's places for threads: the best there is.
    Threads,
    /// The multiprocessor's places for thread blocks: they are too small.
    Blocks,
    /// Shared memory.
    Shared,
    /// Registers.
    Registers,
}

/// Occupancy on devices of one compute capability, as `cuda_occupancy.h` computes it. Without ptxas's count of registers
/// it is an upper bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occupancy {
    /// `sm_80` and so on.
    pub target: String,
    /// Thread blocks that are resident at once; 0 if not even one fits.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// The warps that a multiprocessor can hold.
    pub most_warps: u32,
    /// What there is too little of for one block more.
    pub limit: Limit,
}

/// A multiprocessor. Warps and blocks it can hold, bytes of shared memory.
struct Multiprocessor {
    target: &'static str,
    warps: u32,
    blocks: u32,
    shared: usize,
}

/// CUDA C++ Programming Guide, *Technical Specifications per Compute Capability*.
const KNOWN: [Multiprocessor; 6] = [
    Multiprocessor { target: "sm_80", warps: 64, blocks: 32, shared: 164 << 10 },
    Multiprocessor { target: "sm_86", warps: 48, blocks: 16, shared: 100 << 10 },
    Multiprocessor { target: "sm_89", warps: 48, blocks: 24, shared: 100 << 10 },
    Multiprocessor { target: "sm_90", warps: 64, blocks: 32, shared: 228 << 10 },
    Multiprocessor { target: "sm_100", warps: 64, blocks: 32, shared: 228 << 10 },
    Multiprocessor { target: "sm_120", warps: 48, blocks: 24, shared: 100 << 10 },
];

/// Registers of a multiprocessor; each of its four parts has a quarter of them, for whole warps.
const REGISTERS: u32 = 65_536;
/// Registers are given to a warp in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given to a block in units of this many bytes,
const SHARED_UNIT: usize = 128;
/// after this many that the system takes for itself.
const SHARED_SYSTEM: usize = 1024;

impl Geometry {
    /// The occupancy on each kind of device.
    pub fn occupancy(&self) -> Vec<Occupancy> {
        let threads = self.block.iter().fold(1u32, |product, &side| product.saturating_mul(side));
        let warps = threads.div_ceil(32).max(1);
        let shared = (self.shared + SHARED_SYSTEM).next_multiple_of(SHARED_UNIT);
        KNOWN
            .iter()
            .map(|device| {
                let by_registers = self.registers.filter(|&registers| registers > 0).map(|registers| {
                    let a_warp = (registers * 32).next_multiple_of(REGISTER_UNIT);
                    REGISTERS / 4 / a_warp * 4 / warps
                });
                let limits = [
                    (Limit::Threads, device.warps / warps),
                    (Limit::Blocks, device.blocks),
                    (Limit::Shared, (device.shared / shared) as u32),
                    (Limit::Registers, by_registers.unwrap_or(u32::MAX)),
                ];
                // Of equal ones the first, as it is the one that nothing can be done about.
                let (limit, blocks) = limits.into_iter().min_by_key(|limit| limit.1).unwrap_or((Limit::Threads, 0));
                Occupancy {
                    target: device.target.to_owned(),
                    blocks,
                    warps: blocks * warps,
                    most_warps: device.warps,
                    limit,
                }
            })
            .collect()
    }
}
