//! Asynchronous copies and the barriers in memory that tell when they are over: `cp.async` with its groups, `mbarrier`,
//! `cp.async.bulk` and its tensor form.
//!
//! Copies are carried out as late as a program allows. When one is issued, its addresses are checked and it is put on a
//! list of the thread block; the bytes move when its thread waits for its group, or when somebody tests the mbarrier
//! that it completes and that is not complete yet. A program that forgets to wait, or waits for too little, thus reads
//! what was there before. What is pending when its thread exits is dropped: shared memory ends with the block, and a
//! copy out of it that nobody waited for (not even with `.read`) reads from memory that the block no longer has.
//!
//! `fence.proxy` and `griddepcontrol` do nothing: there is one proxy here, and launches do not overlap. Clusters have
//! one block, so that `shared::cluster` addresses are those of the block. Not supported, and refused where they are
//! decoded: `multicast::cluster`, `cp.reduce.async.bulk`, im2col and gather modes of tensors, byte masks.

pub mod barrier;
pub mod bulk;
pub mod copy;
pub mod pending;
pub mod tensor;
pub mod tensor_map;

pub use pending::Pending;

use super::Decoded;
use super::matrix::load::addresses;
use crate::machine::context::{Context, Where};
use crate::machine::registers::Double;
use crate::machine::{Fault, Flow};
use crate::program::{Address, Reason, SHARED_WINDOW, Scope, WINDOW};
use crate::ptx::ast::{Instruction, Operand, Space};
use crate::report::Kind;

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each is documented at its type
pub enum Op {
    Copy(Box<copy::Copy>),
    Group(copy::Group),
    ArriveAfterCopies(copy::ArriveAfterCopies),
    Barrier(Box<barrier::Barrier>),
    Bulk(Box<bulk::Bulk>),
    BulkGroup(bulk::Group),
    Tensor(Box<tensor::Tensor>),
    /// A hint.
    Nothing,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the form does not exist, or is not supported, or if operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let modifiers: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    let op = match (instruction.opcode.as_str(), modifiers.as_slice()) {
        ("cp", ["async", "bulk", "commit_group" | "wait_group", ..]) => {
            bulk::decode_group(&modifiers[2..], instruction)?
        }
        ("cp", ["async", "bulk", "tensor", rest @ ..]) => tensor::decode(scope, rest, instruction)?,
        ("cp", ["async", "bulk", "prefetch", "tensor", ..]) => Op::Nothing,
        ("cp", ["async", "bulk", rest @ ..]) => bulk::decode(scope, rest, instruction)?,
        ("cp", ["async", rest @ ..]) => copy::decode(scope, rest, instruction)?,
        ("mbarrier", [action, rest @ ..]) => barrier::decode(scope, action, rest, instruction)?,
        ("fence", ["proxy", ..]) => Op::Nothing,
        ("fence", [first, ..]) if first.starts_with("proxy::") => Op::Nothing,
        ("griddepcontrol", ["launch_dependents" | "wait"]) => Op::Nothing,
        ("prefetch", ["tensormap", ..]) => Op::Nothing,
        ("cp" | "mbarrier" | "griddepcontrol", _) => return Err(unsupported(instruction)),
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Asynchronous(op)))
}

/// The reason that names a form which is not supported.
fn unsupported(instruction: &Instruction) -> Reason {
    format!("{} is not supported", instruction.mnemonic())
}

impl Op {
    /// Executes it for the lanes in `mask`.
    ///
    /// # Errors
    /// If an address is bad, an operand out of its range, or an mbarrier not one.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<Flow, Fault> {
        match self {
            Self::Copy(op) => op.execute(context, mask)?,
            Self::Group(op) => op.execute(context, mask),
            Self::ArriveAfterCopies(op) => op.execute(context, mask)?,
            Self::Barrier(op) => return op.execute(context, mask),
            Self::Bulk(op) => op.execute(context, mask)?,
            Self::BulkGroup(op) => op.execute(context, mask)?,
            Self::Tensor(op) => op.execute(context, mask)?,
            Self::Nothing => {}
        }
        Ok(Flow::Next)
    }
}

/// An operand that says where in shared memory something is.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    address: Address,
    at: Where,
}

impl Shared {
    /// Resolves it; `named` is whether the instruction says that it is shared.
    fn decode(scope: &mut Scope<'_>, operand: &Operand, named: bool) -> Result<Self, Reason> {
        let (address, space) = scope.address(operand)?;
        let at = match (named, space) {
            (_, Some(Space::Shared)) | (true, None) => Where::In(Space::Shared),
            (false, None) => Where::Generic,
            (_, Some(space)) => return Err(format!("an address in shared memory was expected, not in {space:?}")),
        };
        Ok(Self { address, at })
    }

    /// The offsets in shared memory, for all lanes; only those in `mask` must have one.
    fn offsets(&self, context: &Context<'_>, mask: u32) -> Result<Double, Fault> {
        let mut addresses = addresses(context.registers, &self.address);
        if self.at == Where::Generic {
            for (lane, address) in addresses.iter_mut().enumerate() {
                if mask >> lane & 1 == 1 && !(SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(address) {
                    let message = format!("takes {address:#x}, which is not in shared memory, for an address in it");
                    return Err(Fault::lane(Kind::OutOfBounds, lane, message));
                }
                *address = address.wrapping_sub(SHARED_WINDOW);
            }
        }
        Ok(addresses)
    }
}

/// Checks that `size` bytes from `offset` on are in shared memory, and that `offset` is a multiple of `align`.
fn check_shared(context: &mut Context<'_>, lane: usize, offset: u64, size: usize, align: u64) -> Result<(), Fault> {
    let (_, length) = context.block.bytes();
    if !offset.is_multiple_of(align) {
        let message = format!("takes {offset:#x} in shared memory, which is not a multiple of {align}");
        return Err(Fault::lane(Kind::Misaligned, lane, message));
    }
    if offset.saturating_add(size as u64) > length as u64 {
        let message = format!("takes {size} bytes at {offset:#x} of shared memory, which has {length} bytes");
        return Err(Fault::lane(Kind::OutOfBounds, lane, message));
    }
    Ok(())
}

/// Does something in the name of lanes of warp `warp`, at the operation `pc`: findings and the order of accesses are
/// theirs.
fn on_behalf<R>(context: &mut Context<'_>, warp: usize, pc: usize, f: impl FnOnce(&mut Context<'_>) -> R) -> R {
    let own = (context.first_thread, context.pc);
    (context.first_thread, context.pc) = (warp * crate::machine::registers::LANES, pc);
    let result = f(context);
    (context.first_thread, context.pc) = own;
    result
}

#[cfg(test)]
mod tests;
