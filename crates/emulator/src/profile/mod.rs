//! What a launch did, in numbers: instructions, flops, traffic, conflicts, divergence. Counts, never times.
//!
//! [`Counters`] are raised while the launch runs, one set for each host thread, and added up; [`Profile`] is what is
//! made of them. Both are deterministic: the same launch gives the same numbers in whatever order its blocks run, unless
//! the kernel itself depends on the order.

mod count;
mod occupancy;
mod table;

pub use count::{Counters, Line};
pub use occupancy::{Limit, Occupancy};

use crate::machine::Class;
use crate::report::Place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of a launch before it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// The kernel.
    pub kernel: String,
    /// Thread blocks.
    pub grid: [u32; 3],
    /// Threads of a thread block.
    pub block: [u32; 3],
    /// Bytes of shared memory of a thread block, declared and given by the launch together.
    pub shared: usize,
    /// Registers of a thread, if ptxas was asked.
    pub registers: Option<u32>,
}

/// The profile of a launch. Beside most numbers stands the name of the metric of Nsight Compute that counts the same in
/// SASS; PTX has other instructions than SASS, so that counts of instructions agree in kind, those of memory exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// What was launched.
    pub geometry: Geometry,
    /// Instructions of warps: `smsp__inst_executed.sum`.
    pub instructions: u64,
    /// Instructions of threads: `smsp__thread_inst_executed.sum` (with guards, `…_pred_on`).
    pub thread_instructions: u64,
    /// Instructions of warps by class.
    pub classes: BTreeMap<Class, u64>,
    /// Lanes that took part, on average: `smsp__thread_inst_executed_per_inst_executed.ratio`.
    pub mean_active_lanes: f64,
    /// Additions and multiplications in single precision, fma counted twice:
    /// `smsp__sass_thread_inst_executed_op_fadd_pred_on` + `…_fmul_…` + 2 · `…_ffma_…`.
    pub flops_single: u64,
    /// The same in double precision (`…_dadd_…`, `…_dmul_…`, `…_dfma_…`).
    pub flops_double: u64,
    /// The same in f16 and bf16, packed ones counted for each half (`…_hadd_…`, `…_hmul_…`, `…_hfma_…`).
    pub flops_half: u64,
    /// Matrix instructions by shape and types, as written after `mma`: 2·m·n·k operations each, those with structured
    /// sparsity as if dense (`sm__ops_path_tensor_src_….sum`).
    pub matrix: BTreeMap<String, Matrix>,
    /// Loads from global memory: `l1tex__t_…_pipe_lsu_mem_global_op_ld.sum`.
    pub global_loads: Traffic,
    /// Stores to global memory and atomics there: `l1tex__t_…_pipe_lsu_mem_global_op_st.sum`, `…_op_red…`, `…_op_atom…`.
    pub global_stores: Traffic,
    /// Loads from shared memory: `l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum`.
    pub shared_loads: Banks,
    /// Stores to shared memory and atomics there: `l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum`.
    pub shared_stores: Banks,
    /// Bytes loaded from and stored to local memory: spills and arrays with computed indices.
    pub local_bytes: [u64; 2],
    /// Bytes that asynchronous copies moved (`LDGSTS`, `UBLKCP` in SASS).
    pub asynchronous_bytes: u64,
    /// Branches of warps: `smsp__sass_branch_targets.sum`.
    pub branches: u64,
    /// Branches that parted the lanes of a warp: `smsp__sass_branch_targets_threads_divergent.sum`.
    pub divergent_branches: u64,
    /// Barriers of thread blocks that warps came to.
    pub barriers: u64,
    /// How many thread blocks a multiprocessor holds, by compute capability: `sm__maximum_warps_per_active_cycle_pct`.
    pub occupancy: Vec<Occupancy>,
    /// Each instruction that was executed, in the order of the program.
    pub lines: Vec<ProfileLine>,
}

/// Matrix instructions of a shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// How often warps executed it.
    pub executions: u64,
    /// Additions and multiplications, together.
    pub flops: u64,
}

/// Traffic of global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Instructions of warps: `l1tex__t_requests`.
    pub requests: u64,
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Sectors of 32 bytes that were touched, request by request: `l1tex__t_sectors`
    /// (`memory_l2_theoretical_sectors_global` of the source view).
    pub sectors: u64,
    /// The fewest sectors that could hold the bytes: `memory_l2_theoretical_sectors_global_ideal`.
    pub ideal_sectors: u64,
}

/// Traffic of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banks {
    /// Instructions of warps.
    pub requests: u64,
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Passes over the 32 banks that were needed: `memory_l1_wavefronts_shared`.
    pub wavefronts: u64,
    /// Passes without any conflict: `memory_l1_wavefronts_shared_ideal`.
    pub ideal_wavefronts: u64,
}

impl Banks {
    /// Passes that bank conflicts cost: `l1tex__data_bank_conflicts_pipe_lsu_mem_shared`.
    pub fn conflicts(&self) -> u64 {
        self.wavefronts - self.ideal_wavefronts
    }
}

/// An instruction of the program that was executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProfileLine {
    /// Program counter.
    pub pc: u32,
    /// PTX line, instruction and source line.
    pub place: Place,
    /// What it is.
    pub class: Class,
    /// What was counted.
    pub counts: Line,
}

impl Profile {
    /// Makes a profile of what was counted; `instruction` says of each program counter what stands there.
    pub fn new(geometry: Geometry, counters: &Counters, instruction: impl Fn(u32) -> (Place, Class)) -> Self {
        let mut profile = Self {
            occupancy: geometry.occupancy(),
            geometry,
            instructions: 0,
            thread_instructions: 0,
            classes: BTreeMap::new(),
            mean_active_lanes: 0.0,
            flops_single: 0,
            flops_double: 0,
            flops_half: 0,
            matrix: BTreeMap::new(),
            global_loads: Traffic::default(),
            global_stores: Traffic::default(),
            shared_loads: Banks::default(),
            shared_stores: Banks::default(),
            local_bytes: [0; 2],
            asynchronous_bytes: 0,
            branches: 0,
            divergent_branches: 0,
            barriers: 0,
            lines: Vec::new(),
        };
        for (pc, counts) in counters.lines().iter().enumerate().filter(|(_, counts)| counts.executions > 0) {
            let (place, class) = instruction(pc as u32);
            profile.add(&place.instruction, class, counts);
            profile.lines.push(ProfileLine { pc: pc as u32, place, class, counts: *counts });
        }
        if profile.instructions > 0 {
            profile.mean_active_lanes = profile.thread_instructions as f64 / profile.instructions as f64;
        }
        profile
    }

    fn add(&mut self, mnemonic: &str, class: Class, counts: &Line) {
        self.instructions += counts.executions;
        self.thread_instructions += counts.lanes;
        *self.classes.entry(class).or_default() += counts.executions;
        let flops = flops(mnemonic) * counts.lanes;
        match precision(mnemonic) {
            Some(Precision::Single) => self.flops_single += flops,
            Some(Precision::Double) => self.flops_double += flops,
            Some(Precision::Half) => self.flops_half += flops,
            None => {}
        }
        if let Some((shape, flops)) = matrix(mnemonic) {
            let matrix = self.matrix.entry(shape).or_default();
            matrix.executions += counts.executions;
            matrix.flops += flops * counts.executions;
        }
        for (total, count) in [(&mut self.global_loads, counts.global[0]), (&mut self.global_stores, counts.global[1])]
        {
            total.add(&count);
        }
        for (total, count) in [(&mut self.shared_loads, counts.shared[0]), (&mut self.shared_stores, counts.shared[1])]
        {
            total.add(&count);
        }
        self.local_bytes[0] += counts.local_bytes[0];
        self.local_bytes[1] += counts.local_bytes[1];
        self.asynchronous_bytes += counts.asynchronous_bytes;
        self.branches += counts.branches;
        self.divergent_branches += counts.divergent_branches;
        self.barriers += counts.barriers;
    }

    /// As JSON, with its keys in the order of the fields.
    ///
    /// # Errors
    /// None that could come of the numbers; those of the serializer are passed on.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
    }
}

impl Banks {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
    }
}

enum Precision {
    Single,
    Double,
    Half,
}

fn precision(mnemonic: &str) -> Option<Precision> {
    let has = |ty: &str| mnemonic.split('.').any(|part| part == ty);
    if has("f32") || has("f32x2") {
        Some(Precision::Single)
    } else if has("f64") {
        Some(Precision::Double)
    } else if ["f16", "f16x2", "bf16", "bf16x2"].into_iter().any(has) {
        Some(Precision::Half)
    } else {
        None
    }
}

/// Additions and multiplications that one thread makes, as Nsight Compute counts them: of arithmetic only these two.
fn flops(mnemonic: &str) -> u64 {
    let one = match mnemonic.split('.').next() {
        Some("fma" | "mad") => 2,
        Some("add" | "sub" | "mul") => 1,
        _ => 0,
    };
    let packed = mnemonic.split('.').any(|part| part.ends_with("x2"));
    one * if packed { 2 } else { 1 }
}

/// Shape with types of a matrix instruction, and the additions and multiplications of one warp.
fn matrix(mnemonic: &str) -> Option<(String, u64)> {
    let opcode = mnemonic.split('.').next()?;
    // A warpgroup of four warps shares the work of one wgmma.
    let warps = match opcode {
        "mma" => 1,
        "wgmma" => 4,
        "wmma" if mnemonic.starts_with("wmma.mma.") => 1,
        _ => return None,
    };
    let shape = mnemonic.split('.').find(|part| sizes(part).is_some())?;
    let [m, n, k] = sizes(shape)?;
    let types = mnemonic.split('.').skip_while(|part| *part != shape).skip(1);
    let types: Vec<&str> = types.filter(|part| !matches!(*part, "row" | "col" | "satfinite" | "sync")).collect();
    let sparse = if mnemonic.split('.').any(|part| part.starts_with("sp")) { "sp." } else { "" };
    Some((format!("{sparse}{shape}.{}", types.join(".")), 2 * m * n * k / warps))
}

/// The numbers of `m16n8k16`.
fn sizes(part: &str) -> Option<[u64; 3]> {
    let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some([m.parse().ok()?, n.parse().ok()?, k.parse().ok()?])
}

#[cfg(test)]
mod tests;
