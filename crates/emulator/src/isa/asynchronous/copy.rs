//! `cp.async`: small copies from global to shared memory, each thread its own, and the groups by which they are waited
//! for (ISA, "Data Movement and Conversion Instructions: Asynchronous copy", non-bulk copies).

use super::bulk::{read_global, write_shared};
use super::pending::{self, Wait};
use super::{Op, Shared, check_shared, unsupported};
use crate::check::Access;
use crate::isa::matrix::load::addresses;
use crate::machine::Fault;
use crate::machine::context::{Context, Where};
use crate::machine::registers::{Double, LANES, P, W, lanes, mask_of};
use crate::program::{Address, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
use crate::report::Kind;

/// `cp.async.ca` and `cp.async.cg`.
#[derive(Clone, Debug)]
pub struct Copy {
    to: Shared,
    from: Address,
    size: usize,
    taken: Taken,
}

/// How much of a copy comes from the source; what is left is zero.
#[derive(Clone, Copy, Debug)]
enum Taken {
    All,
    /// So many bytes.
    Bytes(W),
    /// None where the predicate holds.
    Unless(P),
}

/// What is said about groups.
#[derive(Clone, Copy, Debug)]
pub enum Group {
    /// `cp.async.commit_group`.
    Commit,
    /// `cp.async.wait_group`, `cp.async.wait_all`.
    Wait(Wait),
}

/// `cp.async.mbarrier.arrive`.
#[derive(Clone, Copy, Debug)]
pub struct ArriveAfterCopies {
    barrier: Shared,
    /// Without `.noinc`: the arrival is one more than the phase expected, so that it has no effect on its count.
    extra: bool,
}

/// Decodes what follows `cp.async.`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, modifiers: &[&str], instruction: &Instruction) -> Result<Op, Reason> {
    match (modifiers, instruction.operands.as_slice()) {
        (["commit_group"], []) => Ok(Op::Group(Group::Commit)),
        (["wait_all"], []) => Ok(Op::Group(Group::Wait(Wait::All))),
        (["wait_group"], [Operand::Integer(count)]) => {
            Ok(Op::Group(Group::Wait(Wait::Groups(u32::try_from(*count).unwrap_or(u32::MAX)))))
        }
        (["mbarrier", "arrive", rest @ ..], [barrier]) => {
            let (extra, rest) = match rest {
                ["noinc", rest @ ..] => (false, rest),
                rest => (true, rest),
            };
            let named = match rest {
                ["b64"] => false,
                ["shared" | "shared::cta", "b64"] => true,
                _ => return Err(unsupported(instruction)),
            };
            let barrier = Shared::decode(scope, barrier, named)?;
            Ok(Op::ArriveAfterCopies(ArriveAfterCopies { barrier, extra }))
        }
        ([cache @ ("ca" | "cg"), "shared" | "shared::cta", "global", hints @ ..], [to, from, size, rest @ ..]) => {
            let hint = |hint: &&str| matches!(*hint, "L2::cache_hint" | "L2::64B" | "L2::128B" | "L2::256B");
            if !hints.iter().all(hint) {
                return Err(unsupported(instruction));
            }
            let size = match size {
                Operand::Integer(size @ (4 | 8)) if *cache == "ca" => *size as usize,
                Operand::Integer(16) => 16,
                _ => return Err("cp.async copies 4, 8 or 16 bytes, and with .cg 16".to_owned()),
            };
            let rest = match (hints.contains(&"L2::cache_hint"), rest) {
                (true, [rest @ .., policy]) => {
                    scope.double(policy, Type::B64)?;
                    rest
                }
                (true, []) => return Err("a cache policy was expected".to_owned()),
                (false, rest) => rest,
            };
            let taken = match rest {
                [] => Taken::All,
                [operand] if scope.register_type(operand) == Some(Type::Pred) => {
                    Taken::Unless(scope.predicate(operand)?)
                }
                [operand] => Taken::Bytes(scope.word(operand, Type::U32)?),
                _ => return Err("cp.async takes at most five operands".to_owned()),
            };
            let to = Shared::decode(scope, to, true)?;
            let from = global(scope, from)?;
            Ok(Op::Copy(Box::new(Copy { to, from, size, taken })))
        }
        _ => Err(unsupported(instruction)),
    }
}

/// An address in global memory.
pub(super) fn global(scope: &mut Scope<'_>, operand: &Operand) -> Result<Address, Reason> {
    match scope.address(operand)? {
        (address, None | Some(Space::Global)) => Ok(address),
        (_, Some(space)) => Err(format!("an address in global memory was expected, not in {space:?}")),
    }
}

/// Copies of the lanes of a warp by one instruction.
#[derive(Clone, Debug)]
pub struct Copies {
    /// Lanes whose copy is not carried out.
    pub(super) mask: u32,
    /// The group that it belongs to, by lane.
    pub(super) group: [u32; LANES],
    /// Copies of a warp are numbered in the order of issue.
    pub(super) number: u64,
    from: Double,
    to: Double,
    size: usize,
    taken: [u8; LANES],
}

impl Copy {
    /// Issues it.
    ///
    /// # Errors
    /// If an address is bad, or more bytes are to come from the source than are copied.
    #[inline(always)]
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        let size = self.size;
        let to = self.to.offsets(context, mask)?;
        let from = addresses(context.registers, &self.from);
        let mut taken = [size as u8; LANES];
        match self.taken {
            Taken::All => {}
            Taken::Bytes(bytes) => {
                let bytes = context.registers.word(bytes);
                for lane in lanes(mask) {
                    if bytes[lane] as usize > size {
                        let message = format!("takes {} bytes from the source of a copy of {size}", bytes[lane]);
                        return Err(Fault::lane(Kind::Undefined, lane, message));
                    }
                    taken[lane] = bytes[lane] as u8;
                }
            }
            Taken::Unless(ignored) => {
                let ignored = context.registers.predicate(ignored);
                for lane in lanes(mask & ignored) {
                    taken[lane] = 0;
                }
            }
        }
        for lane in lanes(mask) {
            check_shared(context, lane, to[lane], size, size as u64)?;
            if !from[lane].is_multiple_of(size as u64) {
                let message = format!("copies {size} bytes from {:#x}, which is not a multiple of {size}", from[lane]);
                return Err(Fault::lane(Kind::Misaligned, lane, message));
            }
        }
        self.look_at_source(context, mask, &from, &taken)?;
        for lane in lanes(mask) {
            context.in_flight(lane, to[lane], size);
        }
        if let Some(counters) = &mut context.block.counters {
            counters.shared(context.pc as u32, mask, &to, size, true);
            counters.asynchronous(context.pc as u32, u64::from(mask.count_ones()) * size as u64);
        }
        let copies = Copies { mask, group: [0; LANES], number: 0, from, to, size, taken };
        context.pending.issue(context.first_thread / LANES, copies);
        Ok(())
    }

    /// Has the source checked and counted now, at the instruction that names it: what is loaded is thrown away.
    #[inline(always)]
    fn look_at_source(
        &self,
        context: &mut Context<'_>,
        mask: u32,
        from: &Double,
        taken: &[u8; LANES],
    ) -> Result<(), Fault> {
        let at = Where::In(Space::Global);
        let whole = mask & mask_of(|lane| taken[lane] as usize == self.size);
        if whole != 0 {
            context.locate(whole, at, from, self.size, Access::LOAD)?;
        }
        for lane in lanes(mask & !whole) {
            // The source is a multiple of the size, so that its parts are aligned from the greatest to the least.
            let mut done = 0;
            for part in [8, 4, 2, 1] {
                if taken[lane] & part != 0 {
                    let mut addresses = [0; LANES];
                    addresses[lane] = from[lane] + u64::from(done);
                    context.locate(1 << lane, at, &addresses, part.into(), Access::LOAD)?;
                    done += part;
                }
            }
        }
        Ok(())
    }
}

impl Copies {
    /// Carries out those of `mask`; `by_engine` if an mbarrier tells of it.
    pub(super) fn land(&self, context: &mut Context<'_>, mask: u32, by_engine: bool) {
        for lane in lanes(mask) {
            let mut bytes = [0; 16];
            read_global(self.from[lane], &mut bytes[..self.taken[lane].into()]);
            context.block.land_copy(self.to[lane], self.size, by_engine);
            write_shared(context, self.to[lane], &bytes[..self.size]);
        }
    }
}

impl Group {
    /// Executes it.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) {
        match *self {
            Self::Commit => context.pending.commit(context.first_thread / LANES, mask),
            Self::Wait(wait) => pending::wait(context, mask, wait),
        }
    }
}

impl ArriveAfterCopies {
    /// Executes it.
    ///
    /// # Errors
    /// If there is no mbarrier, or it cannot take one more arrival.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        let offsets = self.barrier.offsets(context, mask)?;
        let mut rest = mask;
        while rest != 0 {
            let offset = offsets[rest.trailing_zeros() as usize];
            let same = rest & mask_of(|lane| offsets[lane] == offset);
            super::barrier::announce(context, same, offset, self.extra)?;
            context.pending.signal_arrival(offset, context.first_thread / LANES, context.pc, same);
            rest &= !same;
        }
        Ok(())
    }
}
