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
pub mod rounding;
#[cfg(test)]
pub(crate) mod testing;
pub mod warp;

use crate::machine::Class;
use crate::program::{Reason, Scope};
use crate::ptx::ast::Instruction;

/// A decoded operation.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is documented at its type
pub enum Op {
    Integer(integer::Op),
    Bits(bits::Op),
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
/// If no family knows it, or its operands are not what it takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    const FAMILIES: [fn(&mut Scope<'_>, &Instruction) -> Decoded; 13] = [
        integer::decode,
        bits::decode,
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
    for family in FAMILIES {
        if let Some(op) = family(scope, instruction)? {
            return Ok(op);
        }
    }
    Err("this instruction is not supported".to_owned())
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
            Self::Integer(_) | Self::Bits(_) => Class::Integer,
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
