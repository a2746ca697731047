//! Counting while a launch runs.

use super::{Banks, Traffic};
use serde::{Deserialize, Serialize};

/// What was counted of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// How often warps executed it.
    pub executions: u64,
    /// Lanes that took part, added up.
    pub lanes: u64,
    /// Global memory: loads, stores.
    pub global: [Traffic; 2],
    /// Shared memory: loads, stores.
    pub shared: [Banks; 2],
    /// Bytes of local memory: loaded, stored.
    pub local_bytes: [u64; 2],
    /// Bytes of asynchronous copies.
    pub asynchronous_bytes: u64,
    /// Branches.
    pub branches: u64,
    /// Branches after which lanes went different ways.
    pub divergent_branches: u64,
    /// Barriers of the thread block.
    pub barriers: u64,
}

/// The counts of a launch, or of a part of it, by program counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    lines: Vec<Line>,
}

impl Counters {
    /// For a program of so many instructions.
    pub fn new(instructions: usize) -> Self {
        Self { lines: vec![Line::default(); instructions] }
    }

    /// The counts by program counter.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    #[inline(always)]
    fn line(&mut self, pc: u32) -> &mut Line {
        let pc = pc as usize;
        if pc >= self.lines.len() {
            self.lines.resize(pc + 1, Line::default());
        }
        &mut self.lines[pc]
    }

    /// A warp executes an instruction with the lanes in `mask` (after the guard).
    #[inline(always)]
    pub fn execute(&mut self, pc: u32, mask: u32) {
        let line = self.line(pc);
        line.executions += 1;
        line.lanes += u64::from(mask.count_ones());
    }

    /// Lanes of a warp load from, or with `store` write, `size` bytes each of global memory.
    pub fn global(&mut self, pc: u32, mask: u32, addresses: &[u64; 32], size: usize, store: bool) {
        let (bytes, sectors, ideal_sectors) = sectors(mask, addresses, size as u64);
        self.line(pc).global[usize::from(store)].add(&Traffic { requests: 1, bytes, sectors, ideal_sectors });
    }

    /// Lanes of a warp load from, or with `store` write, `size` bytes each of shared memory.
    pub fn shared(&mut self, pc: u32, mask: u32, offsets: &[u64; 32], size: usize, store: bool) {
        let bytes = u64::from(mask.count_ones()) * size as u64;
        let (wavefronts, ideal_wavefronts) = wavefronts(mask, offsets, size as u64);
        self.line(pc).shared[usize::from(store)].add(&Banks { requests: 1, bytes, wavefronts, ideal_wavefronts });
    }

    /// Lanes of a warp load from, or with `store` write, `size` bytes each of local memory.
    pub fn local(&mut self, pc: u32, mask: u32, size: usize, store: bool) {
        self.line(pc).local_bytes[usize::from(store)] += u64::from(mask.count_ones()) * size as u64;
    }

    /// An asynchronous copy moves so many bytes, all lanes together.
    pub fn asynchronous(&mut self, pc: u32, bytes: u64) {
        self.line(pc).asynchronous_bytes += bytes;
    }

    /// A branch, after which lanes that were together go different ways or do not.
    #[inline(always)]
    pub fn branch(&mut self, pc: u32, divergent: bool) {
        let line = self.line(pc);
        line.branches += 1;
        line.divergent_branches += u64::from(divergent);
    }

    /// A warp comes to a barrier.
    pub fn barrier(&mut self, pc: u32) {
        self.line(pc).barriers += 1;
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        if self.lines.len() < other.lines.len() {
            self.lines.resize(other.lines.len(), Line::default());
        }
        for (line, other) in self.lines.iter_mut().zip(&other.lines) {
            line.add(other);
        }
    }
}

impl Line {
    /// Adds what was counted elsewhere, or of another instruction.
    pub fn add(&mut self, other: &Self) {
        self.executions += other.executions;
        self.lanes += other.lanes;
        for side in 0..2 {
            self.global[side].add(&other.global[side]);
            self.shared[side].add(&other.shared[side]);
            self.local_bytes[side] += other.local_bytes[side];
        }
        self.asynchronous_bytes += other.asynchronous_bytes;
        self.branches += other.branches;
        self.divergent_branches += other.divergent_branches;
        self.barriers += other.barriers;
    }
}

/// Bytes of a sector: the least that goes between the caches.
const SECTOR: u64 = 32;

/// Addresses of the lanes in `mask`, sorted, and how many there are.
fn sorted(mask: u32, addresses: &[u64; 32]) -> ([u64; 32], usize) {
    let (mut list, mut count, mut in_order) = ([0; 32], 0, true);
    for (lane, &address) in addresses.iter().enumerate() {
        if mask >> lane & 1 == 1 {
            in_order &= count == 0 || list[count - 1] <= address;
            list[count] = address;
            count += 1;
        }
    }
    if !in_order {
        list[..count].sort_unstable();
    }
    (list, count)
}

/// Bytes asked for, sectors touched, and the fewest sectors that could hold the distinct bytes.
fn sectors(mask: u32, addresses: &[u64; 32], size: u64) -> (u64, u64, u64) {
    let (list, count) = sorted(mask, addresses);
    let (mut touched, mut distinct) = (0, 0);
    // The first sector and the first byte that no earlier lane touched.
    let (mut sector, mut byte) = (0, 0);
    for &address in &list[..count] {
        let end = address.saturating_add(size);
        let (first, last) = (address / SECTOR, end.div_ceil(SECTOR));
        touched += last.saturating_sub(first.max(sector));
        distinct += end.saturating_sub(address.max(byte));
        (sector, byte) = (sector.max(last), byte.max(end));
    }
    (count as u64 * size, touched, distinct.div_ceil(SECTOR))
}

/// Passes over the banks of shared memory, and how many there would be without conflicts.
///
/// There are 32 banks of 4 bytes. A request of up to 4 bytes a lane is one pass for the whole warp, one of 8 bytes a
/// pass for each half, one of 16 bytes for each quarter; lanes that ask for the same word are served together, and each
/// further word of a bank costs a pass.
fn wavefronts(mask: u32, offsets: &[u64; 32], size: u64) -> (u64, u64) {
    let words = size.div_ceil(4).clamp(1, 32);
    let lanes = 32 / words.next_power_of_two() as usize;
    let (mut passes, mut ideal) = (0, 0);
    for start in (0..32).step_by(lanes) {
        let active = |lane: &usize| mask >> lane & 1 == 1;
        let mut seen = [0u64; 32];
        let mut count = 0;
        for lane in (start..start + lanes).filter(active) {
            for word in 0..words {
                seen[count] = offsets[lane] / 4 + word;
                count += 1;
            }
        }
        if count == 0 {
            continue;
        }
        seen[..count].sort_unstable();
        let mut banks = [0u8; 32];
        let mut last = None;
        for &word in &seen[..count] {
            if last != Some(word) {
                banks[word as usize % 32] += 1;
                last = Some(word);
            }
        }
        passes += u64::from(banks.into_iter().max().unwrap_or(0));
        ideal += 1;
    }
    (passes, ideal)
}
