//! A kernel, decoded: one flat list of operations with registers by index, device functions inlined where they are
//! called, and for every operation the line it comes from.

use crate::isa::Op;
use crate::machine::registers::{D, P, Registers, W};
use crate::ptx::ast::{Function, Module, Space, Target, Type};
use crate::report::Place;
use std::collections::HashMap;

mod guesses;
mod layout;
mod lower;
mod operands;
#[cfg(test)]
mod tests;

use layout::Layout;
pub(crate) use lower::call_operands;

/// Where the shared memory of a thread block appears among generic addresses. Below what any process maps.
pub const SHARED_WINDOW: u64 = 0x0100_0000;
/// Where a thread's own memory appears.
pub const LOCAL_WINDOW: u64 = 0x0200_0000;
/// Where the parameters of a kernel appear.
pub const PARAMETER_WINDOW: u64 = 0x0300_0000;
/// The size of each of these windows.
pub const WINDOW: u64 = 0x0100_0000;

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}: `{text}`")]
pub struct DecodeError {
    /// The line of the text, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The instruction or declaration.
    pub text: String,
}

/// A value that is the same throughout a thread's life, and known when its warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in PTX
pub enum Special {
    Tid(usize),
    NTid(usize),
    CtaId(usize),
    NCtaId(usize),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    DynamicSharedSize,
    TotalSharedSize,
    /// The address of the workspace of a cooperative launch.
    WorkspaceLow,
    WorkspaceHigh,
    /// Of clusters, which here always have one thread block.
    Zero,
    /// As [`Special::Zero`]: their number.
    One,
}

impl Special {
    fn parse(name: &str) -> Option<Self> {
        let (stem, axis) = match name.rsplit_once('.') {
            Some((stem, "x")) => (stem, 0),
            Some((stem, "y")) => (stem, 1),
            Some((stem, "z")) => (stem, 2),
            Some((stem, "w")) => (stem, 3),
            _ => (name, 0),
        };
        Some(match stem {
            "%tid" => Self::Tid(axis),
            "%ntid" => Self::NTid(axis),
            "%ctaid" => Self::CtaId(axis),
            "%nctaid" => Self::NCtaId(axis),
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::NWarpId,
            "%smid" => Self::SmId,
            "%nsmid" => Self::NSmId,
            "%gridid" => Self::GridId,
            "%lanemask_eq" => Self::LaneMaskEq,
            "%lanemask_le" => Self::LaneMaskLe,
            "%lanemask_lt" => Self::LaneMaskLt,
            "%lanemask_ge" => Self::LaneMaskGe,
            "%lanemask_gt" => Self::LaneMaskGt,
            "%dynamic_smem_size" => Self::DynamicSharedSize,
            "%total_smem_size" => Self::TotalSharedSize,
            // Where cooperative groups find what their grid barrier counts in.
            "%envreg1" => Self::WorkspaceHigh,
            "%envreg2" => Self::WorkspaceLow,
            "%cluster_ctaid" | "%cluster_ctarank" => Self::Zero,
            "%cluster_nctaid" | "%cluster_nctarank" => Self::One,
            "%clusterid" => Self::CtaId(axis),
            "%nclusterid" => Self::NCtaId(axis),
            _ => return None,
        })
    }
}

/// A decoded operation.
#[derive(Clone, Debug)]
pub struct Step {
    /// The lanes that take part: those of this predicate, or with `true` those outside of it.
    pub guard: Option<(P, bool)>,
    /// What is done.
    pub op: Op,
}

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// What is done, by program counter.
    pub steps: Vec<Step>,
    /// Where each step comes from.
    pub places: Vec<Place>,
    /// Registers as a warp finds them at the start, immediate operands included.
    pub registers: Registers,
    /// Registers that hold special values from the start.
    pub specials: Vec<(Special, W)>,
    /// Offset and size of each parameter.
    pub parameters: Vec<(usize, usize)>,
    /// Bytes of shared memory that are declared with a size; what the launch gives comes after it, at
    /// [`Program::dynamic_offset`].
    pub static_shared: usize,
    /// Where the shared memory that the launch gives begins.
    pub dynamic_offset: usize,
    /// Bytes of local memory of a thread.
    pub local: usize,
    /// `.maxntid`, as a number of threads.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// What the module was compiled for.
    pub target: Target,
    /// Whether any operation waits for other thread blocks to be resident (grid barriers are spun on, so this only says
    /// that barriers are used): the number of the highest barrier, plus one.
    pub barriers: usize,
}

impl Program {
    /// Bytes of parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |&(offset, size)| offset + size)
    }
}

/// Where module variables are, by name: their space and address.
pub type Addresses = HashMap<String, (Space, u64)>;

/// Decodes the kernel `entry` of a module whose variables lie at `addresses`.
///
/// # Errors
/// At the first instruction that is unknown or malformed.
pub fn decode(module: &Module, entry: &Function, addresses: &Addresses) -> Result<Program, DecodeError> {
    let mut scope = Scope::new(module, entry, addresses);
    scope.kernel(entry)?;
    scope.finish(entry)
}

/// Where in the source instructions come from: file and line, and those of the call where a function was inlined.
#[derive(Clone, Copy, Debug, Default)]
struct Location {
    at: (u32, u32),
    inlined_at: Option<(u32, u32)>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Symbol {
    Word(W, Type),
    Double(D, Type),
    Predicate(P),
    /// A variable at an address of its space.
    Variable(Space, u64),
    /// A parameter of the kernel, at an offset.
    Parameter(u64),
    Label(usize),
    BranchTargets(Vec<String>),
}

/// An address operand: `[register + offset]` or `[offset]` in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// What is added to the offset, if anything: 32 or 64 bits.
    pub base: Base,
    /// The offset; the whole address where there is no base.
    pub offset: i64,
}

/// The register of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// None.
    Nothing,
    /// A 32-bit one, zero-extended.
    Word(W),
    /// A 64-bit one.
    Double(D),
}

/// A label of the program, resolved to a program counter when all is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(pub usize);

/// The decoder at work: names in scope, registers given out so far, steps decoded so far. Instruction families resolve
/// their operands with it.
pub struct Scope<'a> {
    module: &'a Module,
    addresses: &'a Addresses,
    names: Vec<HashMap<String, Symbol>>,
    /// Of each function being inlined, the registers of [`guesses`].
    guesses: Vec<HashMap<String, usize>>,
    /// The functions being inlined, outermost first.
    calls: Vec<&'a str>,
    /// How many have been.
    inlined: usize,
    /// How deep scopes are nested, those of functions being inlined included.
    depth: usize,
    /// The line of the last instruction, or of the kernel before the first.
    line: u32,
    /// Where `ret` goes: none for the kernel itself.
    returns: Vec<Label>,
    labels: Vec<Option<usize>>,
    steps: Vec<Step>,
    places: Vec<Place>,
    location: Location,
    registers: Registers,
    word_constants: HashMap<u32, W>,
    double_constants: HashMap<u64, D>,
    specials: Vec<(Special, W)>,
    parameters: Vec<(usize, usize)>,
    /// Where shared variables lie.
    shared: Layout<'a>,
    dynamic_shared: usize,
    local: usize,
    barriers: usize,
    /// The carry flag of extended-precision arithmetic, once something uses it.
    carry: Option<P>,
}

/// The reason for which an instruction cannot be decoded; its line is added by the caller.
pub type Reason = String;

impl<'a> Scope<'a> {
    fn new(module: &'a Module, entry: &Function, addresses: &'a Addresses) -> Self {
        let mut parameters = Vec::new();
        let mut end = 0usize;
        for parameter in &entry.parameters {
            let offset = end.next_multiple_of(parameter.align.max(1));
            parameters.push((offset, parameter.size));
            end = offset + parameter.size;
        }
        Self {
            module,
            addresses,
            names: vec![HashMap::new()],
            guesses: Vec::new(),
            calls: Vec::new(),
            inlined: 0,
            depth: 0,
            line: 0,
            returns: Vec::new(),
            labels: Vec::new(),
            steps: Vec::new(),
            places: Vec::new(),
            location: Location::default(),
            registers: Registers::default(),
            word_constants: HashMap::new(),
            double_constants: HashMap::new(),
            specials: Vec::new(),
            parameters,
            shared: Layout::default(),
            dynamic_shared: 0,
            local: 0,
            barriers: 0,
            carry: None,
        }
    }
}
