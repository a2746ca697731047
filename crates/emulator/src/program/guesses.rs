//! Which loads only guess what a compare-and-swap then verifies.
//!
//! The loop of every CUDA guide for an atomic operation that the hardware lacks begins with a plain load:
//! `old = *address; do { assumed = old; old = atomicCAS(address, assumed, f(assumed)); } while (assumed != old)`. By the
//! memory model it races with the compare-and-swap of others, but a wrong guess only costs a round. Such a load is a plain
//! one whose value a compare-and-swap of the same width expects, directly or through moves.

use crate::ptx::ast::{Instruction, Operand, Statement};
use std::collections::HashMap;

/// The registers that hold guesses, each with the bytes of what it is compared with.
pub(super) fn guesses(statements: &[Statement]) -> HashMap<String, usize> {
    let (mut guesses, mut moves) = (HashMap::new(), Vec::new());
    collect(statements, &mut guesses, &mut moves);
    // Copies of copies, whatever their order in the text.
    loop {
        let before = guesses.len();
        for (to, from) in &moves {
            if let Some(&bytes) = guesses.get(*to) {
                guesses.entry((*from).to_owned()).or_insert(bytes);
            }
        }
        if guesses.len() == before {
            return guesses;
        }
    }
}

fn collect<'a>(statements: &'a [Statement], guesses: &mut HashMap<String, usize>, moves: &mut Vec<(&'a str, &'a str)>) {
    for statement in statements {
        match statement {
            Statement::Scope(inner) => collect(inner, guesses, moves),
            Statement::Instruction(instruction) => match (instruction.opcode.as_str(), &*instruction.operands) {
                ("atom", [_, _, Operand::Name(expected), _, ..]) if instruction.has("cas") => {
                    guesses.insert(expected.clone(), bytes(instruction));
                }
                ("mov", [Operand::Name(to), Operand::Name(from)]) => moves.push((to, from)),
                _ => {}
            },
            _ => {}
        }
    }
}

fn bytes(instruction: &Instruction) -> usize {
    instruction.types().next().map_or(0, |ty| ty.size())
}
