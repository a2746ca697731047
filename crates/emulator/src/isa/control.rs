//! What decides which operation comes next: branches, exits, barriers of a thread block, fences, and calls of the system
//! (`printf`, assertions).

use super::Decoded;
use crate::check::clocks::Scope as Reach;
use crate::machine::Class;
use crate::machine::registers::{P, W};
use crate::program::{Label, Reason, Scope, call_operands};
use crate::ptx::ast::{Instruction, Operand, Type};

/// What a barrier does beside waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierKind {
    /// `.sync`: waits.
    Sync,
    /// `.arrive`: does not wait.
    Arrive,
    /// `.red.popc`: waits, and counts the threads for which the predicate (or with `true` its negation) holds.
    Count(W, P, bool),
    /// `.red.and`.
    All(P, P, bool),
    /// `.red.or`.
    Any(P, P, bool),
}

/// A control operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// `bra`: to a program counter (a label's number until all is decoded).
    Branch(usize),
    /// `brx.idx`: to one of several.
    BranchIndexed(W, Vec<usize>),
    /// The thread ends.
    Exit,
    /// `trap`: the launch ends with an error.
    Trap,
    /// `bar`, `barrier`: the number of the barrier, how many threads it waits for (all without a number), what it does,
    /// and whether all threads of a warp must be there together.
    Barrier(W, Option<W>, BarrierKind, bool),
    /// `membar`, `fence`.
    Fence(Reach),
    /// `nanosleep`: lets others run.
    Pause,
    /// Nothing: `brkpt`, `pmevent`, `setmaxnreg`, `griddepcontrol`.
    Nothing,
    /// `vprintf(format, values)`, and where its result goes: offsets of `.param` variables in local memory.
    Print(u64, u64, Option<u64>),
    /// `__assertfail(condition, file, line, …)`, likewise.
    AssertFail([u64; 3]),
}

/// Functions that the driver provides.
pub(crate) fn is_system_function(name: &str) -> bool {
    matches!(name, "vprintf" | "__assertfail")
}

pub(crate) fn exit() -> super::Op {
    super::Op::Control(Op::Exit)
}

pub(crate) fn branch(label: Label) -> super::Op {
    super::Op::Control(Op::Branch(label.0))
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let operands = instruction.operands.as_slice();
    let op = match instruction.opcode.as_str() {
        "bra" => match operands {
            [target] => Op::Branch(scope.label(target)?.0),
            _ => return Err("a label was expected".to_owned()),
        },
        "brx" => match operands {
            [index, list] => {
                let targets = scope.branch_targets(list)?;
                Op::BranchIndexed(scope.word(index, Type::U32)?, targets.into_iter().map(|label| label.0).collect())
            }
            _ => return Err("an index and a list of targets were expected".to_owned()),
        },
        "ret" => match scope.return_label() {
            Some(label) => Op::Branch(label.0),
            None => Op::Exit,
        },
        "exit" => Op::Exit,
        "trap" => Op::Trap,
        "brkpt" | "pmevent" | "setmaxnreg" | "griddepcontrol" => Op::Nothing,
        "nanosleep" => Op::Pause,
        "bar" | "barrier" if instruction.has("warp") || instruction.has("cluster") => return Ok(None),
        "bar" | "barrier" => barrier(scope, instruction)?,
        "membar" => Op::Fence(if instruction.has("cta") { Reach::Block } else { Reach::Device }),
        "fence" if instruction.modifiers.first().is_some_and(|first| first.starts_with("proxy")) => Op::Nothing,
        "fence" if instruction.has("mbarrier_init") => Op::Fence(Reach::Block),
        "fence" => {
            Op::Fence(if instruction.has("cta") || instruction.has("cluster") { Reach::Block } else { Reach::Device })
        }
        "call" => call(scope, instruction)?,
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Control(op)))
}

/// `bar{.cta}.sync a{, b}`, `barrier…` and their forms.
fn barrier(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let operands = instruction.operands.as_slice();
    let aligned = instruction.opcode == "bar" || instruction.has("aligned");
    let mut word = |operand: &Operand| scope.word(operand, Type::U32);
    if instruction.has("sync") || instruction.has("arrive") {
        let kind = if instruction.has("sync") { BarrierKind::Sync } else { BarrierKind::Arrive };
        return Ok(match operands {
            [number] if kind == BarrierKind::Sync => Op::Barrier(word(number)?, None, kind, aligned),
            [number, count] => Op::Barrier(word(number)?, Some(word(count)?), kind, aligned),
            _ => return Err("the number of a barrier, and of threads, were expected".to_owned()),
        });
    }
    if !instruction.has("red") {
        return Err("this form of a barrier is not supported".to_owned());
    }
    let (destination, number, count, predicate) = match operands {
        [destination, number, predicate] => (destination, number, None, predicate),
        [destination, number, count, predicate] => (destination, number, Some(count), predicate),
        _ => return Err("a destination, a barrier and a predicate were expected".to_owned()),
    };
    let (number, count) = (word(number)?, count.map(word).transpose()?);
    let (predicate, negated) = match predicate {
        Operand::Not(name) => (scope.predicate_named(name)?, true),
        other => (scope.predicate(other)?, false),
    };
    let kind = if instruction.has("popc") {
        BarrierKind::Count(scope.word_to(destination, Type::U32)?, predicate, negated)
    } else if instruction.has("and") {
        BarrierKind::All(scope.predicate_to(destination)?, predicate, negated)
    } else if instruction.has("or") {
        BarrierKind::Any(scope.predicate_to(destination)?, predicate, negated)
    } else {
        return Err("this form of a barrier is not supported".to_owned());
    };
    Ok(Op::Barrier(number, count, kind, aligned))
}

fn call(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let (results, name, arguments) = call_operands(&instruction.operands)?;
    let arguments = arguments.iter().map(|operand| scope.argument(operand)).collect::<Result<Vec<_>, _>>()?;
    match (name, arguments.as_slice()) {
        ("vprintf", [format, values]) => {
            let result = results.first().map(|operand| scope.argument(operand)).transpose()?;
            Ok(Op::Print(*format, *values, result))
        }
        ("__assertfail", [condition, file, line, ..]) => Ok(Op::AssertFail([*condition, *file, *line])),
        _ => Err(format!("{name} was called with {} arguments", arguments.len())),
    }
}

impl Op {
    /// Replaces labels by program counters, `targets[label]`.
    pub(crate) fn resolve(&mut self, targets: &[usize]) {
        match self {
            Self::Branch(target) => *target = targets[*target],
            Self::BranchIndexed(_, list) => list.iter_mut().for_each(|target| *target = targets[*target]),
            _ => {}
        }
    }

    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match self {
            Self::Branch(_) | Self::BranchIndexed(..) | Self::Exit | Self::Trap => Class::Branch,
            Self::Barrier(..) => Class::Barrier,
            Self::Fence(_) => Class::Fence,
            _ => Class::Other,
        }
    }
}

#[cfg(test)]
mod tests;
