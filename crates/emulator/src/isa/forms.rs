//! What decoders of all families ask of an instruction: that it has the operands it needs, and no modifier that nobody
//! looked at.

use crate::machine::registers::{P, Registers};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// Refuses modifiers beside `allowed` and the given number of types.
///
/// # Errors
/// Naming the modifier, or saying how many types there are.
pub(super) fn check(instruction: &Instruction, allowed: &[&str], types: usize) -> Result<(), Reason> {
    let mut found = 0;
    for modifier in &instruction.modifiers {
        if allowed.contains(&modifier.as_str()) {
            continue;
        }
        match Type::parse(modifier) {
            Some(_) => found += 1,
            None => return Err(format!("{} does not take .{modifier} here", instruction.opcode)),
        }
    }
    if found == types { Ok(()) } else { Err(format!("{} takes {types} types here, not {found}", instruction.opcode)) }
}

/// Its operands, exactly so many.
///
/// # Errors
/// If there are more or fewer.
pub(super) fn operands<const N: usize>(instruction: &Instruction) -> Result<&[Operand; N], Reason> {
    let found = instruction.operands.len();
    instruction
        .operands
        .as_slice()
        .try_into()
        .map_err(|_| format!("{} takes {N} operands here, not {found}", instruction.opcode))
}

/// The error for a type that an instruction does not have.
pub(super) fn no_type<T>(instruction: &Instruction) -> Result<T, Reason> {
    Err(format!("{} does not exist for this type", instruction.opcode))
}

/// A predicate that is read: a register, its negation, or a constant.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    register: P,
    /// All ones where it is negated.
    flip: u32,
}

impl Source {
    /// `%p`, `!%p`, or an integer that stands for true unless it is zero.
    ///
    /// # Errors
    /// For anything else.
    pub(super) fn decode(scope: &mut Scope<'_>, operand: &Operand) -> Result<Self, Reason> {
        Ok(match operand {
            Operand::Not(name) => Self { register: scope.predicate_named(name)?, flip: u32::MAX },
            // A register that nobody writes holds nowhere.
            Operand::Integer(value) => {
                Self { register: scope.new_predicate(), flip: if *value == 0 { 0 } else { u32::MAX } }
            }
            _ => Self { register: scope.predicate(operand)?, flip: 0 },
        })
    }

    /// The lanes in which it holds.
    #[inline(always)]
    pub(super) fn lanes(self, registers: &Registers) -> u32 {
        registers.predicate(self.register) ^ self.flip
    }
}
