//! What the lanes of a warp do together: shuffles, votes, matches, reductions, and their own barrier.
//!
//! All but `activemask` name the lanes that take part in a member mask, and wait for them; the warp lets an operation run
//! only when all of them that have not exited are there, if need be at different places of the program (PTX ISA,
//! `shfl.sync` and its like).

use super::Decoded;
use super::memory::Register;
use crate::machine::registers::{LANES, P, Registers, W, lanes, mask_of};
use crate::program::Scope;
use crate::ptx::ast::{Instruction, Operand, Type};
use std::mem::discriminant;

/// What a lane gets from a lane that does not take part: no value that a program could mean.
const POISON: u32 = u32::MAX;

/// The lane that a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as in PTX
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Whether it holds for all.
    All(P),
    /// Whether it holds for any.
    Any(P),
    /// Whether it is the same for all.
    Uniform(P),
    /// For which lanes it holds.
    Ballot(W),
}

/// What a reduction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as in PTX
pub enum Reduction {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// A decoded operation of this family.
#[derive(Clone, Debug)]
pub enum Action {
    /// `shfl.sync`: destination, whether the source lane was in range, value, lane operand, clamp and segment.
    Shuffle(Shuffle, W, Option<P>, W, W, W),
    /// `vote.sync` of a predicate, or with `true` of its negation.
    Vote(Vote, P, bool),
    /// `match.any.sync`.
    MatchAny(W, Register),
    /// `match.all.sync`, and whether all are equal.
    MatchAll(W, Option<P>, Register),
    /// `redux.sync`.
    Reduce(Reduction, Type, W, W),
    /// `elect.sync`.
    Elect(W, P),
    /// `bar.warp.sync`.
    Sync,
    /// `activemask`.
    ActiveMask(W),
}

/// A decoded operation of this family, and its member mask.
#[derive(Clone, Debug)]
pub struct Op {
    /// What is done.
    pub action: Action,
    /// The lanes that take part; `None` for those that happen to be there.
    pub members: Option<W>,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let operands = instruction.operands.as_slice();
    let sync = instruction.has("sync");
    let (action, members) = match (instruction.opcode.as_str(), operands) {
        ("activemask", [destination]) => (Action::ActiveMask(scope.word_to(destination, Type::B32)?), None),
        ("shfl" | "vote" | "match" | "redux" | "elect", _) if !sync => {
            return Err("only forms with .sync exist from sm_70 on".to_owned());
        }
        ("shfl", [destination, value, lane, clamp, members]) => {
            let mode = match instruction.modifiers.iter().find_map(|modifier| match modifier.as_str() {
                "up" => Some(Shuffle::Up),
                "down" => Some(Shuffle::Down),
                "bfly" => Some(Shuffle::Butterfly),
                "idx" => Some(Shuffle::Index),
                _ => None,
            }) {
                Some(mode) => mode,
                None => return Err("a mode was expected".to_owned()),
            };
            let (destination, inside) = match destination {
                Operand::Pair(word, predicate) => {
                    (scope.word_to_named(word, Type::B32)?, Some(scope.predicate_to_named(predicate)?))
                }
                other => (scope.word_to(other, Type::B32)?, None),
            };
            let value = scope.word(value, Type::B32)?;
            let (lane, clamp) = (scope.word(lane, Type::B32)?, scope.word(clamp, Type::B32)?);
            (Action::Shuffle(mode, destination, inside, value, lane, clamp), Some(members))
        }
        ("vote", [destination, predicate, members]) => {
            let (predicate, negated) = match predicate {
                Operand::Not(name) => (scope.predicate_named(name)?, true),
                Operand::Integer(value) => {
                    // A constant predicate: a register that holds nowhere, negated or not.
                    (scope.new_predicate(), *value != 0)
                }
                other => (scope.predicate(other)?, false),
            };
            let vote = if instruction.has("ballot") {
                Vote::Ballot(scope.word_to(destination, Type::B32)?)
            } else if instruction.has("all") {
                Vote::All(scope.predicate_to(destination)?)
            } else if instruction.has("any") {
                Vote::Any(scope.predicate_to(destination)?)
            } else if instruction.has("uni") {
                Vote::Uniform(scope.predicate_to(destination)?)
            } else {
                return Err("a mode was expected".to_owned());
            };
            (Action::Vote(vote, predicate, negated), Some(members))
        }
        ("match", [destination, value, members]) => {
            let (destination, all_equal) = match destination {
                Operand::Pair(word, predicate) => {
                    (scope.word_to_named(word, Type::B32)?, Some(scope.predicate_to_named(predicate)?))
                }
                other => (scope.word_to(other, Type::B32)?, None),
            };
            let value = match instruction.last_type() {
                Some(Type::B64) => Register::Double(scope.double(value, Type::B64)?),
                _ => Register::Word(scope.word(value, Type::B32)?),
            };
            let action = match instruction.has("all") {
                true => Action::MatchAll(destination, all_equal, value),
                false => Action::MatchAny(destination, value),
            };
            (action, Some(members))
        }
        ("redux", [destination, value, members]) => {
            let ty = instruction.last_type().ok_or("a type was expected")?;
            let reduction = instruction.modifiers.iter().find_map(|modifier| {
                Some(match modifier.as_str() {
                    "add" => Reduction::Add,
                    "min" => Reduction::Min,
                    "max" => Reduction::Max,
                    "and" => Reduction::And,
                    "or" => Reduction::Or,
                    "xor" => Reduction::Xor,
                    _ => return None,
                })
            });
            let reduction = reduction.ok_or("an operation was expected")?;
            if !matches!(ty, Type::U32 | Type::S32 | Type::B32) {
                return Err(format!("a reduction of {ty:?} is not supported"));
            }
            let destination = scope.word_to(destination, Type::B32)?;
            (Action::Reduce(reduction, ty, destination, scope.word(value, ty)?), Some(members))
        }
        ("elect", [Operand::Pair(leader, is_leader), members]) => {
            let is_leader = scope.predicate_to_named(is_leader)?;
            (Action::Elect(scope.word_to_named(leader, Type::B32)?, is_leader), Some(members))
        }
        ("bar" | "barrier", [members]) if instruction.has("warp") && sync => (Action::Sync, Some(members)),
        ("shfl" | "vote" | "match" | "redux" | "elect" | "activemask", _) => {
            return Err("other operands were expected".to_owned());
        }
        _ => return Ok(None),
    };
    let members = members.map(|operand| scope.word(operand, Type::B32)).transpose()?;
    Ok(Some(super::Op::Warp(Op { action, members })))
}

impl Op {
    /// Whether lanes that reach this and `other` with one member mask take part in one operation: that is so wherever they
    /// are, if the qualifiers are the same (PTX ISA, `shfl.sync` and its like).
    pub fn is_joined_with(&self, other: &Self) -> bool {
        let is_wide = |register: &Register| matches!(register, Register::Double(_));
        match (&self.action, &other.action) {
            (Action::Shuffle(mode, ..), Action::Shuffle(others, ..)) => mode == others,
            (Action::Vote(vote, ..), Action::Vote(others, ..)) => discriminant(vote) == discriminant(others),
            (Action::MatchAny(_, value), Action::MatchAny(_, others))
            | (Action::MatchAll(.., value), Action::MatchAll(.., others)) => is_wide(value) == is_wide(others),
            (Action::Reduce(reduction, ty, ..), Action::Reduce(others, other_type, ..)) => {
                reduction == others && ty == other_type
            }
            (Action::Elect(..), Action::Elect(..)) | (Action::Sync, Action::Sync) => true,
            _ => false,
        }
    }

    /// Carries it out for the lanes in `mask`, which are all that take part.
    pub fn execute(&self, registers: &mut Registers, mask: u32) {
        Self::execute_together(&[(self, mask)], registers);
    }

    /// Carries out one operation that some lanes have reached at one place and some at another, each with the operands
    /// that it has there.
    pub fn execute_together(parts: &[(&Self, u32)], registers: &mut Registers) {
        let Some((first, _)) = parts.first() else { return };
        let mask = parts.iter().fold(0, |all, (_, lanes)| all | lanes);
        match &first.action {
            Action::Shuffle(mode, ..) => {
                let operand = |select: fn(W, W, W) -> W| {
                    merge(parts, |action| match action {
                        Action::Shuffle(.., value, lane, clamp) => Some(*registers.word(select(*value, *lane, *clamp))),
                        _ => None,
                    })
                };
                let value = operand(|value, _, _| value);
                let (lane, clamp) = (operand(|_, lane, _| lane), operand(|_, _, clamp| clamp));
                let (sources, in_range) = sources(*mode, &lane, &clamp);
                let moved = std::array::from_fn(|lane| {
                    let source = sources[lane];
                    if mask >> source & 1 == 1 { value[source] } else { POISON }
                });
                for (op, lanes) in parts {
                    if let Action::Shuffle(_, destination, inside, ..) = &op.action {
                        registers.set_word(*destination, *lanes, &moved);
                        if let Some(inside) = inside {
                            registers.set_predicate(*inside, *lanes, in_range);
                        }
                    }
                }
            }
            Action::Vote(..) => {
                let holds = parts.iter().fold(0, |holds, (op, lanes)| match op.action {
                    Action::Vote(_, predicate, negated) => {
                        holds | lanes & (registers.predicate(predicate) ^ if negated { u32::MAX } else { 0 })
                    }
                    _ => holds,
                });
                let every = |yes: bool| if yes { u32::MAX } else { 0 };
                for (op, lanes) in parts {
                    let Action::Vote(vote, ..) = &op.action else { continue };
                    match vote {
                        Vote::All(d) => registers.set_predicate(*d, *lanes, every(holds == mask)),
                        Vote::Any(d) => registers.set_predicate(*d, *lanes, every(holds != 0)),
                        Vote::Uniform(d) => registers.set_predicate(*d, *lanes, every(holds == 0 || holds == mask)),
                        Vote::Ballot(d) => registers.set_word(*d, *lanes, &[holds; LANES]),
                    }
                }
            }
            Action::MatchAny(..) => {
                let value = merge(parts, |action| match action {
                    Action::MatchAny(_, value) => Some(wide(registers, *value)),
                    _ => None,
                });
                let equal = std::array::from_fn(|lane| mask & mask_of(|other| value[other] == value[lane]));
                for (op, lanes) in parts {
                    if let Action::MatchAny(destination, _) = op.action {
                        registers.set_word(destination, *lanes, &equal);
                    }
                }
            }
            Action::MatchAll(..) => {
                let value = merge(parts, |action| match action {
                    Action::MatchAll(.., value) => Some(wide(registers, *value)),
                    _ => None,
                });
                let first = value[mask.trailing_zeros() as usize % LANES];
                let all = lanes(mask).all(|lane| value[lane] == first);
                for (op, lanes) in parts {
                    let Action::MatchAll(destination, all_equal, _) = op.action else { continue };
                    registers.set_word(destination, *lanes, &[if all { mask } else { 0 }; LANES]);
                    if let Some(predicate) = all_equal {
                        registers.set_predicate(predicate, *lanes, if all { u32::MAX } else { 0 });
                    }
                }
            }
            Action::Reduce(reduction, ty, ..) => {
                let value = merge(parts, |action| match action {
                    Action::Reduce(.., value) => Some(*registers.word(*value)),
                    _ => None,
                });
                let join = |a: u32, b: u32| match (reduction, ty) {
                    (Reduction::Add, _) => a.wrapping_add(b),
                    (Reduction::Min, Type::S32) => (a as i32).min(b as i32) as u32,
                    (Reduction::Max, Type::S32) => (a as i32).max(b as i32) as u32,
                    (Reduction::Min, _) => a.min(b),
                    (Reduction::Max, _) => a.max(b),
                    (Reduction::And, _) => a & b,
                    (Reduction::Or, _) => a | b,
                    (Reduction::Xor, _) => a ^ b,
                };
                let result = lanes(mask).map(|lane| value[lane]).reduce(join).unwrap_or(0);
                for (op, lanes) in parts {
                    if let Action::Reduce(_, _, destination, _) = op.action {
                        registers.set_word(destination, *lanes, &[result; LANES]);
                    }
                }
            }
            Action::Elect(..) => {
                for (op, lanes) in parts {
                    if let Action::Elect(leader, is_leader) = op.action {
                        registers.set_word(leader, *lanes, &[mask.trailing_zeros(); LANES]);
                        registers.set_predicate(is_leader, *lanes, mask & mask.wrapping_neg());
                    }
                }
            }
            Action::Sync => {}
            Action::ActiveMask(destination) => registers.set_word(*destination, mask, &[mask; LANES]),
        }
    }
}

/// An operand of all lanes, each from where it is.
#[inline(always)]
fn merge<T: Copy + Default>(parts: &[(&Op, u32)], operand: impl Fn(&Action) -> Option<[T; LANES]>) -> [T; LANES] {
    let mut merged = [T::default(); LANES];
    for (op, mask) in parts {
        let Some(values) = operand(&op.action) else { continue };
        if parts.len() == 1 {
            return values;
        }
        lanes(*mask).for_each(|lane| merged[lane] = values[lane]);
    }
    merged
}

fn wide(registers: &Registers, register: Register) -> [u64; LANES] {
    match register {
        Register::Word(word) => registers.word(word).map(u64::from),
        Register::Double(double) => *registers.double(double),
    }
}

/// The lane that each lane reads, and the lanes whose source was in range (PTX ISA, `shfl.sync`, semantics).
fn sources(mode: Shuffle, lane_operand: &[u32; LANES], clamp_operand: &[u32; LANES]) -> ([usize; LANES], u32) {
    let mut sources = [0; LANES];
    let mut in_range = 0;
    for lane in 0..LANES as u32 {
        let (b, clamp) = (lane_operand[lane as usize] & 31, clamp_operand[lane as usize] & 31);
        let segment = clamp_operand[lane as usize] >> 8 & 31;
        let most = lane & segment | clamp & !segment;
        let least = lane & segment;
        let (source, inside) = match mode {
            Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= most as i32),
            Shuffle::Down => (lane + b, lane + b <= most),
            Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
            Shuffle::Index => {
                let source = least | b & !segment;
                (source, source <= most)
            }
        };
        sources[lane as usize] = if inside { source as usize % LANES } else { lane as usize };
        in_range |= u32::from(inside) << lane;
    }
    (sources, in_range)
}

#[cfg(test)]
mod tests;
