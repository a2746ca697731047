//! The instructions, family by family: each file holds the decoded form of its instructions, how they are decoded, and
//! what they do.

pub mod approximate;
pub mod asynchronous;
pub mod atomic;
pub mod bits;
pub mod compare;
pub mod control;
pub mod convert;
pub mod double;
pub mod float;
pub mod forms;
pub mod half;
pub mod integer;
pub mod matrix;
pub mod memory;
pub mod moves;
pub(crate) mod requirements;
pub mod rounding;
pub mod system;
#[cfg(test)]
pub(crate) mod testing;
pub mod video;
pub mod warp;

use crate::machine::context::Context;
use crate::machine::registers::Registers;
use crate::machine::{Class, Fault, Flow};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is documented at its type
pub enum Op {
    Integer(integer::Op),
    Bits(bits::Op),
    Video(video::Op),
    Float(float::Op),
    Half(half::Op),
    Compare(compare::Op),
    Convert(convert::Op),
    Move(moves::Op),
    Memory(memory::Op),
    Atomic(atomic::Op),
    Control(control::Op),
    Warp(warp::Op),
    Matrix(matrix::Op),
    Asynchronous(asynchronous::Op),
}

/// What a family makes of an instruction: `None` where the opcode (with its modifiers) is not one of its own.
pub type Decoded = Result<Option<Op>, Reason>;

/// Decodes an instruction.
///
/// # Errors
/// If no family knows it, its operands are not what it takes, or the module's target or version does not have it.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    const FAMILIES: [fn(&mut Scope<'_>, &Instruction) -> Decoded; 14] = [
        integer::decode,
        bits::decode,
        video::decode,
        float::decode,
        half::decode,
        compare::decode,
        convert::decode,
        moves::decode,
        memory::decode,
        atomic::decode,
        control::decode,
        warp::decode,
        matrix::decode,
        asynchronous::decode,
    ];
    if let Some(name) = instruction.operands.iter().find_map(|operand| scope.value_by_name(operand))
        && !takes_values(instruction, name)
    {
        return Err(format!("{} takes registers: {name} must be moved into one", instruction.opcode));
    }
    if instruction.operands.first() == Some(&Operand::Sink)
        && !matches!(instruction.opcode.as_str(), "setp" | "lop3" | "atom" | "mbarrier")
    {
        return Err(format!("the result of {} cannot be discarded", instruction.opcode));
    }
    for family in FAMILIES {
        if let Some(op) = family(scope, instruction)? {
            requirements::check(instruction, scope.target(), scope.version())?;
            return Ok(op);
        }
    }
    Err("this instruction is not supported".to_owned())
}

/// Whether an instruction takes what `name` stands for, without a register. (That `cvt` between integers takes special
/// registers is what ptxas does.)
fn takes_values(instruction: &Instruction, name: &str) -> bool {
    match instruction.opcode.as_str() {
        "mov" | "call" => true,
        "cvta" => !instruction.has("to"),
        "cvt" => name.starts_with('%') && instruction.types().all(Type::is_integer),
        _ => false,
    }
}

impl Op {
    /// Replaces labels by program counters, `targets[label]`.
    pub(crate) fn resolve(&mut self, targets: &[usize]) {
        if let Self::Control(op) = self {
            op.resolve(targets);
        }
    }

    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match self {
            Self::Integer(_) | Self::Bits(_) | Self::Video(_) => Class::Integer,
            Self::Float(op) => op.class(),
            Self::Half(_) => Class::Half,
            Self::Compare(_) => Class::Compare,
            Self::Convert(_) => Class::Convert,
            Self::Move(_) => Class::Move,
            Self::Memory(op) => op.class(),
            Self::Atomic(_) => Class::Atomic,
            Self::Control(op) => op.class(),
            Self::Warp(_) => Class::Warp,
            Self::Matrix(op) => op.class(),
            Self::Asynchronous(_) => Class::Asynchronous,
        }
    }
}

/// Proof that the processor has the vector instructions that the families are compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vectors(());

impl Vectors {
    /// The proof, if it can be given. On x86-64 that is AVX2 with FMA and F16C, which all processors of the last ten
    /// years have; a second copy of every family for older ones would double what there is to compile.
    pub(crate) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let found = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("lzcnt")
            && std::is_x86_feature_detected!("popcnt");
        #[cfg(not(target_arch = "x86_64"))]
        let found = true;
        found.then_some(Self(()))
    }
}

/// Defines the function that runs operations of one family, compiled so that loops over lanes become vector instructions
/// and `mul_add` is one of them.
macro_rules! family {
    ($name:ident, $op:ty, $($argument:ident: $ty:ty),+ => $result:ty) => {
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"))]
        fn $name(op: &$op, $($argument: $ty),+) -> $result {
            op.execute($($argument),+)
        }
    };
}

family!(run_integer, integer::Op, registers: &mut Registers, mask: u32 => ());
family!(run_bits, bits::Op, registers: &mut Registers, mask: u32 => ());
family!(run_video, video::Op, registers: &mut Registers, mask: u32 => ());
family!(run_float, float::Op, registers: &mut Registers, mask: u32 => ());
family!(run_half, half::Op, registers: &mut Registers, mask: u32 => ());
family!(run_compare, compare::Op, registers: &mut Registers, mask: u32 => ());
family!(run_convert, convert::Op, registers: &mut Registers, mask: u32 => ());
family!(run_move, moves::Op, registers: &mut Registers, mask: u32 => ());
family!(run_memory, memory::Op, context: &mut Context<'_>, mask: u32 => Result<(), Fault>);
family!(run_matrix, matrix::Op, context: &mut Context<'_>, mask: u32 => Result<Flow, Fault>);

impl Op {
    /// Carries out an operation that needs nothing but registers, for the lanes in `mask`; `false` if it is another one.
    #[allow(unused_unsafe)] // only x86-64 has features to promise
    #[inline(always)]
    pub(crate) fn compute(&self, _: Vectors, registers: &mut Registers, mask: u32) -> bool {
        // SAFETY: the proof says that the processor has the features that these functions are compiled for.
        unsafe {
            match self {
                Self::Integer(op) => run_integer(op, registers, mask),
                Self::Bits(op) => run_bits(op, registers, mask),
                Self::Video(op) => run_video(op, registers, mask),
                Self::Float(op) => run_float(op, registers, mask),
                Self::Half(op) => run_half(op, registers, mask),
                Self::Compare(op) => run_compare(op, registers, mask),
                Self::Convert(op) => run_convert(op, registers, mask),
                Self::Move(op) => run_move(op, registers, mask),
                _ => return false,
            }
        }
        true
    }

    /// Carries out an operation for the lanes in `mask`; those that decide where a warp goes, and those that wait for
    /// other lanes, are the thread block's to carry out.
    ///
    /// # Errors
    /// If a lane cannot do what it is told.
    #[allow(unused_unsafe)] // as above
    #[inline(always)]
    pub(crate) fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<Flow, Fault> {
        if self.compute(context.environment.vectors, context.registers, mask) {
            return Ok(Flow::Next);
        }
        match self {
            // SAFETY: the environment holds the proof that the processor has these features.
            Self::Memory(op) => unsafe { run_memory(op, context, mask) }?,
            Self::Atomic(op) => op.execute(context, mask)?,
            // SAFETY: as above.
            Self::Matrix(op) => return unsafe { run_matrix(op, context, mask) },
            Self::Asynchronous(op) => return op.execute(context, mask),
            Self::Warp(op) => op.execute(context.registers, mask),
            _ => {}
        }
        Ok(Flow::Next)
    }
}
