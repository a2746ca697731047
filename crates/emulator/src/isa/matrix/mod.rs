//! Matrix instructions of a warp: `mma` and `mma.sp`, what carries fragments between shared memory and registers
//! (`ldmatrix`, `stmatrix`, `movmatrix`), and `wmma`, which nvcc makes of `nvcuda::wmma`.
//!
//! All of them are `.sync.aligned`: every lane of the warp takes part, or the behaviour is undefined, which is a fault
//! here. `wgmma` and `tcgen05` are refused.

pub mod elements;
pub mod load;
pub mod mma;
pub mod product;
pub mod sparse;
pub mod wmma;

use super::Decoded;
use crate::machine::context::Context;
use crate::machine::{Class, Fault, Flow};
use crate::program::Scope;
use crate::ptx::ast::Instruction;
use crate::report::Kind;

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is documented at its type
pub enum Op {
    Multiply(Box<mma::Multiply>),
    MultiplyDoubles(Box<mma::MultiplyDoubles>),
    Load(Box<load::Load>),
    Store(Box<load::Store>),
    Transpose(load::Transpose),
    Transfer(Box<wmma::Transfer>),
    MultiplyTiles(Box<wmma::Multiply>),
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the form does not exist, does not exist on the target, or is not supported.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    match instruction.opcode.as_str() {
        "mma" => mma::decode(scope, instruction).map(Some),
        "ldmatrix" => load::decode_load(scope, instruction).map(|op| Some(super::Op::Matrix(op))),
        "stmatrix" => load::decode_store(scope, instruction).map(|op| Some(super::Op::Matrix(op))),
        "movmatrix" => load::decode_transpose(scope, instruction).map(|op| Some(super::Op::Matrix(op))),
        "wmma" => wmma::decode(scope, instruction).map(|op| Some(super::Op::Matrix(op))),
        "wgmma" => Err("wgmma is not supported".to_owned()),
        "tcgen05" => Err("tcgen05 is not supported".to_owned()),
        _ => Ok(None),
    }
}

impl Op {
    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match self {
            Self::Multiply(_) | Self::MultiplyDoubles(_) | Self::MultiplyTiles(_) => Class::Matrix,
            Self::Load(_) => Class::MatrixLoad,
            Self::Store(_) => Class::StoreShared,
            Self::Transpose(_) => Class::Warp,
            Self::Transfer(op) => op.class(),
        }
    }

    /// For a multiplication its shape and types (`m16n8k16.f32.bf16.bf16.f32`, `sp.` or `wmma.` before it), and
    /// the operations of the whole warp: two for every product of elements that are stored, so that a sparse one counts
    /// half of what its shape says.
    pub fn flops(&self) -> Option<(&str, u64)> {
        match self {
            Self::Multiply(op) => Some((&op.name, op.flops())),
            Self::MultiplyDoubles(op) => Some((&op.name, op.flops())),
            Self::MultiplyTiles(op) => Some((&op.name, op.flops)),
            _ => None,
        }
    }

    /// Executes it for the lanes in `mask`.
    ///
    /// # Errors
    /// If lanes are missing, if an address is bad, or if metadata is not what the ISA allows.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<Flow, Fault> {
        if mask != u32::MAX {
            let message = format!("an aligned instruction is executed by the lanes {mask:#010x} only");
            return Err(Fault::warp(Kind::Barrier, message));
        }
        match self {
            Self::Multiply(op) => op.execute(context.registers)?,
            Self::MultiplyDoubles(op) => op.execute(context.registers),
            Self::Load(op) => op.execute(context)?,
            Self::Store(op) => op.execute(context)?,
            Self::Transpose(op) => op.execute(context.registers),
            Self::Transfer(op) => op.execute(context)?,
            Self::MultiplyTiles(op) => op.execute(context.registers),
        }
        Ok(Flow::Next)
    }
}
