//! `cp.async.bulk`: copies of many bytes by one thread, which complete an mbarrier or belong to a bulk group.

use super::copy::global;
use super::tensor::Tile;
use super::{Op, Shared, check_shared, pending, unsupported};
use crate::check::Access;
use crate::isa::matrix::load::addresses;
use crate::machine::Fault;
use crate::machine::context::{Context, Where};
use crate::machine::racing;
use crate::machine::registers::{LANES, W, lanes};
use crate::program::{Address, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
use crate::report::Kind;

/// Bytes that a copy, its source and its destination are multiples of.
const GRAIN: u64 = 16;

/// A bulk copy.
#[derive(Clone, Debug)]
pub struct Bulk {
    kind: Direction,
    size: W,
}

#[derive(Clone, Debug)]
enum Direction {
    FromGlobal { to: Shared, from: Address, barrier: Shared },
    Within { to: Shared, from: Shared, barrier: Shared },
    ToGlobal { to: Address, from: Shared },
}

/// What is said about bulk groups.
#[derive(Clone, Copy, Debug)]
pub enum Group {
    /// `cp.async.bulk.commit_group`.
    Commit,
    /// `cp.async.bulk.wait_group`: until at most so many groups are pending. With `.read` too, the copies are carried
    /// out as a whole.
    Wait(u32),
}

/// Decodes `commit_group` or `wait_group`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode_group(modifiers: &[&str], instruction: &Instruction) -> Result<Op, Reason> {
    match (modifiers, instruction.operands.as_slice()) {
        (["commit_group"], []) => Ok(Op::BulkGroup(Group::Commit)),
        (["wait_group"] | ["wait_group", "read"], [Operand::Integer(count)]) => {
            Ok(Op::BulkGroup(Group::Wait(u32::try_from(*count).unwrap_or(u32::MAX))))
        }
        _ => Err(unsupported(instruction)),
    }
}

/// Takes the hint of a cache policy off modifiers and operands.
pub(super) fn without_hint<'a, 'b>(
    scope: &mut Scope<'_>,
    modifiers: &'a [&'b str],
    operands: &'a [Operand],
) -> Result<(&'a [&'b str], &'a [Operand]), Reason> {
    match (modifiers, operands) {
        ([modifiers @ .., "L2::cache_hint"], [operands @ .., policy]) => {
            scope.double(policy, Type::B64)?;
            Ok((modifiers, operands))
        }
        all => Ok(all),
    }
}

/// Decodes what follows `cp.async.bulk.`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, modifiers: &[&str], instruction: &Instruction) -> Result<Op, Reason> {
    let (modifiers, operands) = without_hint(scope, modifiers, &instruction.operands)?;
    const TRANSACTIONS: &str = "mbarrier::complete_tx::bytes";
    let (kind, size) = match (modifiers, operands) {
        (["prefetch", "L2", "global"], [_, _]) => return Ok(Op::Nothing),
        (["shared::cluster" | "shared::cta", "global", TRANSACTIONS], [to, from, size, barrier]) => {
            let (to, barrier) = (Shared::decode(scope, to, true)?, Shared::decode(scope, barrier, true)?);
            (Direction::FromGlobal { to, from: global(scope, from)?, barrier }, size)
        }
        (["shared::cluster", "shared::cta", TRANSACTIONS], [to, from, size, barrier]) => {
            let (to, barrier) = (Shared::decode(scope, to, true)?, Shared::decode(scope, barrier, true)?);
            (Direction::Within { to, from: Shared::decode(scope, from, true)?, barrier }, size)
        }
        (["global", "shared::cta", "bulk_group"], [to, from, size]) => {
            (Direction::ToGlobal { to: global(scope, to)?, from: Shared::decode(scope, from, true)? }, size)
        }
        _ => return Err(unsupported(instruction)),
    };
    let size = scope.word(size, Type::U32)?;
    Ok(Op::Bulk(Box::new(Bulk { kind, size })))
}

/// A bulk copy under way. Its addresses have been checked.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The lane that issued it.
    pub(super) lane: usize,
    pub(super) pc: usize,
    pub(super) what: Moved,
}

/// What is moved.
#[derive(Clone, Debug)]
pub(super) enum Moved {
    /// From global to shared memory.
    In { to: u64, from: u64, size: usize },
    /// Within shared memory.
    Within { to: u64, from: u64, size: usize },
    /// From shared to global memory.
    Out { to: u64, from: u64, size: usize },
    /// A tile of a tensor into shared memory.
    TileIn(Box<Tile>),
    /// A tile of a tensor out of shared memory.
    TileOut(Box<Tile>),
}

impl Transfer {
    /// Bytes that it counts as transferred.
    pub(super) fn bytes(&self) -> usize {
        match &self.what {
            Moved::In { size, .. } | Moved::Within { size, .. } | Moved::Out { size, .. } => *size,
            Moved::TileIn(tile) | Moved::TileOut(tile) => tile.bytes(),
        }
    }

    /// Moves the bytes, in the name of the lane that issued it.
    pub(super) fn carry_out(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        match &self.what {
            &Moved::In { to, from, size } => {
                let mut bytes = vec![0; size];
                read_global(from, &mut bytes);
                context.block.land_copy(to, size, true);
                write_shared(context, to, &bytes);
            }
            &Moved::Within { to, from, size } => {
                let mut bytes = vec![0; size];
                read_shared(context, from, &mut bytes);
                context.block.land_copy(from, size, true);
                context.block.land_copy(to, size, true);
                write_shared(context, to, &bytes);
            }
            &Moved::Out { to, from, size } => {
                let mut bytes = vec![0; size];
                read_shared(context, from, &mut bytes);
                context.block.land_copy(from, size, false);
                write_global(context, self.lane, to, &bytes)?;
            }
            Moved::TileIn(tile) => tile.carry_in(context),
            Moved::TileOut(tile) => tile.carry_out(context, self.lane)?,
        }
        Ok(())
    }
}

/// Reads from global memory that was checked when the copy was issued.
pub(super) fn read_global(from: u64, bytes: &mut [u8]) {
    // SAFETY: the range was checked by `look_at_global` when the copy was issued, in this launch, which holds all
    // memory that was allocated when it began.
    unsafe { racing::read(from as *const u8, bytes) };
}

/// Reads from shared memory; what lies outside is left as it is.
pub(super) fn read_shared(context: &mut Context<'_>, from: u64, bytes: &mut [u8]) {
    let (start, length) = context.block.bytes();
    if from.saturating_add(bytes.len() as u64) <= length as u64 {
        // SAFETY: the range is within shared memory, of which no reference is held.
        unsafe { std::ptr::copy_nonoverlapping(start.add(from as usize), bytes.as_mut_ptr(), bytes.len()) };
    }
}

/// Writes to shared memory; what lies outside is not written.
pub(super) fn write_shared(context: &mut Context<'_>, to: u64, bytes: &[u8]) {
    let (start, length) = context.block.bytes();
    if to.saturating_add(bytes.len() as u64) <= length as u64 {
        // SAFETY: as for `read_shared`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(to as usize), bytes.len()) };
    }
}

/// Calls `f` with the mask and the addresses for each part of a range that one access can have, and where it begins.
fn parts(
    lane: usize,
    address: u64,
    size: usize,
    mut f: impl FnMut(&[u64; LANES], usize, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut done = 0;
    while done < size {
        let at = address + done as u64;
        // Parts of 32 bytes, which is a sector, where they are aligned; the ends in smaller ones.
        let aligned = 1 << at.trailing_zeros().min(5);
        let mut part: usize = aligned;
        while part > size - done {
            part /= 2;
        }
        let mut addresses = [0; LANES];
        addresses[lane] = at;
        f(&addresses, done, part)?;
        done += part;
    }
    Ok(())
}

/// Has a range of global memory checked and counted as read by a lane now.
pub(super) fn look_at_global(context: &mut Context<'_>, lane: usize, from: u64, size: usize) -> Result<(), Fault> {
    parts(lane, from, size, |addresses, _, part| {
        context.locate(1 << lane, Where::In(Space::Global), addresses, part, Access::LOAD).map(drop)
    })
}

/// Writes to global memory in the name of a lane.
pub(super) fn write_global(context: &mut Context<'_>, lane: usize, to: u64, bytes: &[u8]) -> Result<(), Fault> {
    parts(lane, to, bytes.len(), |addresses, done, part| {
        let pointers = context.locate(1 << lane, Where::In(Space::Global), addresses, part, Access::STORE)?;
        // SAFETY: `locate` gave a pointer to `part` bytes for the lane.
        unsafe { racing::write(&bytes[done..done + part], pointers[lane]) };
        Ok(())
    })
}

/// Marks shared bytes as the destination of a copy, once they are known to exist.
pub(super) fn destined(context: &mut Context<'_>, lane: usize, to: u64, size: usize, align: u64) -> Result<(), Fault> {
    check_shared(context, lane, to, size, align)?;
    context.in_flight(lane, to, size);
    Ok(())
}

/// Has a range of shared memory checked and counted as read by a lane now, and marks it as the source of a copy.
pub(super) fn look_at_shared(context: &mut Context<'_>, lane: usize, from: u64, size: usize) -> Result<(), Fault> {
    parts(lane, from, size, |addresses, _, part| {
        context.locate(1 << lane, Where::In(Space::Shared), addresses, part, Access::LOAD).map(drop)
    })?;
    context.block.begin_copy(context.environment, context.pc, context.first_thread + lane, from, size, false);
    Ok(())
}

/// Has the copy complete the barrier of its lane.
pub(super) fn signal(context: &mut Context<'_>, barrier: u64, lane: usize, what: Moved) -> Result<(), Fault> {
    super::barrier::announce(context, 1 << lane, barrier, false)?;
    let (warp, pc) = (context.first_thread / LANES, context.pc);
    context.pending.signal_transfer(barrier, warp, pc, Transfer { lane, pc, what });
    Ok(())
}

impl Bulk {
    /// Issues it.
    ///
    /// # Errors
    /// If an address or the size is bad, or the mbarrier is none.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        let sizes = *context.registers.word(self.size);
        for lane in lanes(mask) {
            let size = sizes[lane] as usize;
            if !u64::from(sizes[lane]).is_multiple_of(GRAIN) {
                let message = format!("copies {size} bytes in bulk, which is not a multiple of {GRAIN}");
                return Err(Fault::lane(Kind::Undefined, lane, message));
            }
            match &self.kind {
                Direction::FromGlobal { to, from, barrier } => {
                    let (to, barrier) = (to.offsets(context, mask)?[lane], barrier.offsets(context, mask)?[lane]);
                    let from = addresses(context.registers, from)[lane];
                    aligned(lane, from)?;
                    look_at_global(context, lane, from, size)?;
                    destined(context, lane, to, size, GRAIN)?;
                    signal(context, barrier, lane, Moved::In { to, from, size })?;
                }
                Direction::Within { to, from, barrier } => {
                    let (to, barrier) = (to.offsets(context, mask)?[lane], barrier.offsets(context, mask)?[lane]);
                    let from = from.offsets(context, mask)?[lane];
                    aligned(lane, from)?;
                    look_at_shared(context, lane, from, size)?;
                    destined(context, lane, to, size, GRAIN)?;
                    signal(context, barrier, lane, Moved::Within { to, from, size })?;
                }
                Direction::ToGlobal { to, from } => {
                    let from = from.offsets(context, mask)?[lane];
                    let to = addresses(context.registers, to)[lane];
                    aligned(lane, to)?;
                    check_shared(context, lane, from, size, GRAIN)?;
                    look_at_shared(context, lane, from, size)?;
                    let (warp, pc) = (context.first_thread / LANES, context.pc);
                    context.pending.issue_bulk(warp, Transfer { lane, pc, what: Moved::Out { to, from, size } });
                }
            }
        }
        Ok(())
    }
}

fn aligned(lane: usize, address: u64) -> Result<(), Fault> {
    match address % GRAIN {
        0 => Ok(()),
        _ => {
            let message = format!("copies in bulk at {address:#x}, which is not a multiple of {GRAIN}");
            Err(Fault::lane(Kind::Misaligned, lane, message))
        }
    }
}

impl Group {
    /// Executes it.
    ///
    /// # Errors
    /// If a copy to global memory goes where none is.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        match *self {
            Self::Commit => context.pending.commit_bulk(context.first_thread / LANES, mask),
            Self::Wait(allowed) => pending::wait_bulk(context, mask, allowed)?,
        }
        Ok(())
    }
}
