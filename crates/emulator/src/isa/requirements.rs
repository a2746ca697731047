//! What each form asks of a module's `.target` and `.version`: one table, which the decoder consults for every
//! instruction that it knows ("Target ISA Notes" and "PTX ISA Notes" of the ISA; ptxas is the judge of both in
//! `tests/requirements.rs`).
//!
//! Nothing before `.version 8.0` and sm_80 is read at all, so the table begins there.

use crate::ptx::ast::{Instruction, Operand, Target, Type};
use std::fmt;

/// What a form needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The first architecture, 90 for sm_90.
    architecture: u32,
    /// Whether the target must have a suffix: `a` or `f`.
    specific: bool,
    version: (u32, u32),
}

impl Needs {
    /// Whether a module offers it.
    fn met_by(self, target: &Target, version: (u32, u32)) -> bool {
        target.architecture >= self.architecture
            && (target.suffix.is_some() || !self.specific)
            && version >= self.version
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix =
            if self.specific { "a, or a later target of one architecture or family (a, f)" } else { " or later" };
        match (self.architecture, self.version) {
            (80, (major, minor)) => write!(f, "PTX {major}.{minor} or later"),
            (architecture, (8, 0)) => write!(f, "sm_{architecture}{suffix}"),
            (architecture, (major, minor)) => write!(f, "sm_{architecture}{suffix} and PTX {major}.{minor} or later"),
        }
    }
}

/// One row: instructions of these opcodes that have these words among their modifiers need this.
struct Row {
    /// Alternatives, between bars; empty for all.
    opcodes: &'static str,
    /// What must all be there, between spaces: alternatives between bars; `!word` must not be there.
    words: &'static str,
    /// What else must hold.
    when: fn(&Instruction) -> bool,
    needs: Needs,
}

const fn row(opcodes: &'static str, words: &'static str, architecture: u32, version: (u32, u32)) -> Row {
    Row { opcodes, words, when: |_| true, needs: Needs { architecture, specific: false, version } }
}

const fn row_when(when: fn(&Instruction) -> bool, row: Row) -> Row {
    Row { when, ..row }
}

/// Of several rows that fit, each must be met.
const ROWS: &[Row] = &[
    // Arithmetic.
    row("add|min|max", "u16x2|s16x2", 90, (8, 0)),
    row("min|max", "relu", 90, (8, 0)),
    row("min|max", "abs", 86, (8, 0)),
    row_when(|instruction| instruction.operands.len() > 3, row("min|max", "f32", 100, (8, 8))),
    row("add|sub|mul|fma", "f32x2", 100, (8, 6)),
    row("add|sub|mul|ex2|tanh|set|setp", "bf16|bf16x2", 90, (8, 0)),
    row("lop3", "and|or", 80, (8, 2)),
    // Conversions: of bf16 only those from and to f32 are older.
    row("cvt", "bf16 u8|s8|u16|s16|u32|s32|u64|s64|f16|f64|ftz|rni|rzi|rmi|rpi", 90, (8, 0)),
    row("cvt", "tf32 rn|rz", 90, (8, 0)),
    row("cvt", "tf32 rn|rz satfinite", 100, (8, 6)),
    row("cvt", "f16|bf16|f16x2|bf16x2|tf32 satfinite !e4m3x2 !e5m2x2", 80, (8, 1)),
    // (In 8.0 of sm_90 only, which one row cannot say, and accepting more changes no result.)
    row("cvt", "e4m3x2|e5m2x2", 89, (8, 0)),
    // Data movement.
    row("", "cluster|shared::cluster", 90, (8, 0)),
    row("mapa|getctarank", "", 90, (8, 0)),
    row("prefetch", "tensormap", 90, (8, 0)),
    row("", "param::entry|param::func", 80, (8, 3)),
    row("ld|st", "mmio", 80, (8, 2)),
    row_when(|instruction| vector_bytes(instruction) > 16, row("ld|st", "", 100, (8, 8))),
    row("stmatrix", "", 90, (8, 0)),
    // Asynchronous copies and barriers.
    row("cp", "bulk", 90, (8, 0)),
    row("cp", "bulk shared::cta mbarrier::complete_tx::bytes !shared::cluster", 90, (8, 6)),
    row("mbarrier", "expect_tx|complete_tx|try_wait", 90, (8, 0)),
    // A count of arrivals.
    row_when(
        |instruction| instruction.operands.len() > 2,
        row("mbarrier", "arrive|arrive_drop !noComplete", 90, (8, 0)),
    ),
    row("mbarrier", "arrive|arrive_drop|test_wait|try_wait relaxed", 90, (8, 6)),
    row("fence", "async", 90, (8, 0)),
    row("fence", "tensormap::generic", 90, (8, 3)),
    row("fence", "async::generic", 90, (8, 6)),
    row("fence", "sync_restrict::shared::cta|sync_restrict::shared::cluster", 90, (8, 6)),
    row("griddepcontrol|elect", "", 90, (8, 0)),
    // Atomic operations.
    row("atom|red", "bf16|bf16x2", 90, (8, 0)),
    row("atom|red", "v2|v4|v8", 90, (8, 1)),
    // Matrices.
    row("mma", "f64 m16n8k4|m16n8k8|m16n8k16", 90, (8, 0)),
    row("mma", "e4m3|e5m2", 89, (8, 4)),
    row("mma", "e4m3|e5m2 m16n8k16", 89, (8, 7)),
    row("mma", "e4m3|e5m2 f16", 89, (8, 7)),
    row("mma", "sp::ordered_metadata", 80, (8, 5)),
    // Registers of one architecture.
    Row {
        opcodes: "setmaxnreg",
        words: "",
        when: |_| true,
        needs: Needs { architecture: 90, specific: true, version: (8, 0) },
    },
];

/// Special registers that are not everywhere, without their axis.
const REGISTERS: &[(&str, Needs)] = &[
    ("%clusterid", CLUSTERS),
    ("%nclusterid", CLUSTERS),
    ("%cluster_ctaid", CLUSTERS),
    ("%cluster_nctaid", CLUSTERS),
    ("%cluster_ctarank", CLUSTERS),
    ("%cluster_nctarank", CLUSTERS),
    ("%is_explicit_cluster", CLUSTERS),
];

/// What clusters need, in instructions, registers and directives of a kernel alike.
pub(crate) const CLUSTERS: Needs = Needs { architecture: 90, specific: false, version: (8, 0) };

/// Bytes of the vector that a load or a store moves.
fn vector_bytes(instruction: &Instruction) -> usize {
    let count = ["v2", "v4", "v8"].iter().zip([2, 4, 8]).find(|(name, _)| instruction.has(name));
    count.map_or(1, |(_, count)| count) * instruction.last_type().map_or(0, Type::size)
}

impl Row {
    fn fits(&self, instruction: &Instruction) -> bool {
        let of_opcode = self.opcodes.is_empty() || self.opcodes.split('|').any(|opcode| opcode == instruction.opcode);
        of_opcode
            && self.words.split_ascii_whitespace().all(|words| match words.strip_prefix('!') {
                Some(word) => !instruction.has(word),
                None => words.split('|').any(|word| instruction.has(word)),
            })
            && (self.when)(instruction)
    }
}

/// Whether a module for `target`, written in `version`, can have this.
///
/// # Errors
/// Saying what it needs and what the module offers.
pub(crate) fn check_needs(what: &str, needs: Needs, target: &Target, (major, minor): (u32, u32)) -> Result<(), String> {
    if needs.met_by(target, (major, minor)) {
        return Ok(());
    }
    Err(format!("{what} needs {needs}, and the module is PTX {major}.{minor} for {target}"))
}

/// [`check_needs`] for all that an instruction needs.
///
/// # Errors
/// As there.
pub(crate) fn check(instruction: &Instruction, target: &Target, version: (u32, u32)) -> Result<(), String> {
    for row in ROWS.iter().filter(|row| !row.needs.met_by(target, version)) {
        if row.fits(instruction) {
            check_needs(&instruction.mnemonic(), row.needs, target, version)?;
        }
    }
    for operand in &instruction.operands {
        let Operand::Name(name) = operand else { continue };
        let stem = name.split('.').next().unwrap_or_default();
        if let Some((_, needs)) = REGISTERS.iter().find(|(register, _)| *register == stem) {
            check_needs(name, *needs, target, version)?;
        }
    }
    Ok(())
}
