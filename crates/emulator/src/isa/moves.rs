//! Moves: PTX ISA 9.7.9 (`mov`, `cvta`, `isspacep`, `mapa`, `getctarank`, and the hints to caches, which do nothing
//! here), with packing and unpacking of registers.

use super::Decoded;
use super::forms::{Source, check, no_type, operands};
use crate::machine::registers::{D, LANES, P, Registers, W, mask_of};
use crate::program::{LOCAL_WINDOW, PARAMETER_WINDOW, Reason, SHARED_WINDOW, Scope, WINDOW};
use crate::ptx::ast::{Instruction, Operand, Type};

/// A decoded operation of this family.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // destination, then sources
pub enum Op {
    Word(W, W),
    Double(D, D),
    Predicate(P, Source),
    /// A word into a double, zero-extended: special registers of 32 bits where 64 are asked for.
    Extend(D, W),
    /// Parts of so many bits, the first of them lowest.
    PackWord(W, Parts),
    PackDouble(D, Parts),
    UnpackWord(Parts, W),
    UnpackDouble(Parts, D),
    /// A double plus a number: between the addresses of a space and generic ones.
    Shift(D, D, u64),
    /// Whether a generic address lies in the window that begins here.
    InWindow(P, D, u64),
    /// Whether it lies in no window.
    InGlobal(P, D),
    /// A counter of time: its lower half, its upper half, all of it.
    ClockLow(W),
    ClockHigh(W),
    Clock(D),
    /// A hint.
    Nothing,
}

/// Registers side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    registers: [W; 4],
    count: u8,
    bits: u8,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let op = match instruction.opcode.as_str() {
        "mov" => mov(scope, instruction)?,
        "cvta" => cvta(scope, instruction)?,
        "isspacep" => is_space(scope, instruction)?,
        "mapa" | "getctarank" => cluster(scope, instruction)?,
        "prefetch" | "prefetchu" | "discard" | "applypriority" => hint(scope, instruction)?,
        "createpolicy" => {
            // What it yields is given to loads and stores, which do not look at it.
            let Some(d) = instruction.operands.first() else { return Err("createpolicy lacks a destination".into()) };
            Op::Double(scope.double_to(d, Type::B64)?, scope.constant_double(0))
        }
        _ => return Ok(None),
    };
    Ok(Some(super::Op::Move(op)))
}

fn mov(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(instruction, &[], 1)?;
    let Some(ty) = instruction.last_type() else { return no_type(instruction) };
    let [d, a] = operands(instruction)?;
    match ty {
        // No launch here says how many blocks a cluster has, so it holds nowhere, like a predicate that nobody writes.
        Type::Pred if matches!(a, Operand::Name(name) if name == "%is_explicit_cluster") => {
            return Ok(Op::Predicate(scope.predicate_to(d)?, Source::decode(scope, &Operand::Integer(0))?));
        }
        Type::Pred => return Ok(Op::Predicate(scope.predicate_to(d)?, Source::decode(scope, a)?)),
        Type::B16 | Type::U16 | Type::S16 | Type::B32 | Type::U32 | Type::S32 | Type::F32 => {}
        Type::B64 | Type::U64 | Type::S64 | Type::F64 => {}
        _ => return no_type(instruction),
    }
    let wide = ty.size() == 8;
    match (d, a) {
        (Operand::Vector(_), Operand::Vector(_)) => Err("mov takes one vector".to_owned()),
        (d, Operand::Vector(elements)) => {
            let part = part_type(ty, elements.len())?;
            let parts = parts(elements, part, |element| scope.word(element, part))?;
            Ok(if wide {
                Op::PackDouble(scope.double_to(d, ty)?, parts)
            } else {
                Op::PackWord(scope.word_to(d, ty)?, parts)
            })
        }
        (Operand::Vector(elements), a) => {
            let part = part_type(ty, elements.len())?;
            let parts = parts(elements, part, |element| scope.word_to(element, part))?;
            Ok(if wide {
                Op::UnpackDouble(parts, scope.double(a, ty)?)
            } else {
                Op::UnpackWord(parts, scope.word(a, ty)?)
            })
        }
        (d, Operand::Name(name)) if is_clock(name) => match (name.as_str(), wide) {
            ("%clock64" | "%globaltimer", true) => Ok(Op::Clock(scope.double_to(d, ty)?)),
            ("%clock" | "%globaltimer_lo", false) => Ok(Op::ClockLow(scope.word_to(d, Type::U32)?)),
            ("%clock_hi" | "%globaltimer_hi", false) => Ok(Op::ClockHigh(scope.word_to(d, Type::U32)?)),
            _ => Err(format!("{name} has another size")),
        },
        // Special registers are words; the upper half of this one is zero here.
        (d, Operand::Name(name)) if wide && name == "%gridid" => {
            Ok(Op::Extend(scope.double_to(d, ty)?, scope.word(a, Type::U32)?))
        }
        _ if wide => Ok(Op::Double(scope.double_to(d, ty)?, scope.double(a, ty)?)),
        _ => Ok(Op::Word(scope.word_to(d, ty)?, scope.word(a, ty)?)),
    }
}

fn is_clock(name: &str) -> bool {
    matches!(name, "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi")
}

/// The type of each of `count` parts.
fn part_type(whole: Type, count: usize) -> Result<Type, Reason> {
    match (whole, count) {
        (Type::B64, 2) => Ok(Type::B32),
        (Type::B64, 4) | (Type::B32, 2) => Ok(Type::B16),
        (Type::B32, 4) | (Type::B16, 2) => Ok(Type::B8),
        _ => Err(format!("mov cannot take {whole:?} as {count} parts")),
    }
}

fn parts(
    elements: &[Operand],
    part: Type,
    mut register: impl FnMut(&Operand) -> Result<W, Reason>,
) -> Result<Parts, Reason> {
    let mut registers = [W(0); 4];
    for (slot, element) in registers.iter_mut().zip(elements) {
        *slot = register(element)?;
    }
    Ok(Parts { registers, count: elements.len() as u8, bits: 8 * part.size() as u8 })
}

/// What is added to an address of a space to make it generic; nothing for an unknown space.
fn window(space: &str) -> Option<u64> {
    match space {
        // Global and constant memory lie at their generic addresses.
        "global" | "const" => Some(0),
        "shared" | "shared::cta" | "shared::cluster" => Some(SHARED_WINDOW),
        "local" => Some(LOCAL_WINDOW),
        "param" | "param::entry" => Some(PARAMETER_WINDOW),
        _ => None,
    }
}

fn cvta(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let names: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    let (to, space) = match names.as_slice() {
        ["to", space, "u64"] => (true, space),
        [space, "u64"] => (false, space),
        _ => return Err("cvta takes a space and .u64".to_owned()),
    };
    let offset = window(space).ok_or_else(|| format!("cvta has no space .{space}"))?;
    let [d, a] = operands(instruction)?;
    let (d, a) = (scope.double_to(d, Type::U64)?, scope.double(a, Type::U64)?);
    Ok(match (offset, to) {
        (0, _) => Op::Double(d, a),
        (_, false) => Op::Shift(d, a, offset),
        (_, true) => Op::Shift(d, a, offset.wrapping_neg()),
    })
}

fn is_space(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let [p, a] = operands(instruction)?;
    let [space] = instruction.modifiers.as_slice() else { return Err("isspacep takes one space".to_owned()) };
    let (p, a) = (scope.predicate_to(p)?, scope.double(a, Type::U64)?);
    match (space.as_str(), window(space)) {
        ("const", _) => Err("isspacep.const is not supported: constants lie among the global variables".to_owned()),
        ("global", _) => Ok(Op::InGlobal(p, a)),
        (_, Some(start)) => Ok(Op::InWindow(p, a, start)),
        _ => Err(format!("isspacep has no space .{space}")),
    }
}

/// `mapa` and `getctarank`: a cluster has one thread block here, of rank 0, so every address is its own.
fn cluster(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(instruction, &["shared::cluster"], 1)?;
    let Some(ty @ (Type::U32 | Type::U64)) = instruction.last_type() else { return no_type(instruction) };
    if instruction.opcode == "getctarank" {
        let [d, _] = operands(instruction)?;
        return Ok(Op::Word(scope.word_to(d, Type::U32)?, scope.constant_word(0)));
    }
    let [d, a, rank] = operands(instruction)?;
    scope.word(rank, Type::U32)?;
    Ok(if ty == Type::U64 {
        Op::Double(scope.double_to(d, ty)?, scope.double(a, ty)?)
    } else {
        Op::Word(scope.word_to(d, ty)?, scope.word(a, ty)?)
    })
}

/// `prefetch`, `prefetchu`, `discard`, `applypriority`: an address, which is not accessed, and maybe a size.
fn hint(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    check(
        instruction,
        &["global", "local", "const", "param", "L1", "L2", "tensormap", "L2::evict_last", "L2::evict_normal"],
        0,
    )?;
    match instruction.operands.as_slice() {
        [address] | [address, Operand::Integer(_)] => scope.address(address).map(|_| Op::Nothing),
        _ => Err(format!("{} takes an address", instruction.opcode)),
    }
}

impl Parts {
    /// The parts of a lane's value, put together.
    #[inline(always)]
    fn gather(self, r: &Registers) -> [u64; LANES] {
        let mut values = [0; LANES];
        for (index, &register) in self.registers.iter().take(usize::from(self.count)).enumerate() {
            let word = r.word(register);
            for lane in 0..LANES {
                values[lane] |= u64::from(word[lane]) << (index as u32 * u32::from(self.bits));
            }
        }
        values
    }

    /// Writes the parts of each lane's value.
    #[inline(always)]
    fn scatter(self, r: &mut Registers, m: u32, values: &[u64; LANES]) {
        let mask = u32::MAX >> (32 - u32::from(self.bits));
        for (index, &register) in self.registers.iter().take(usize::from(self.count)).enumerate() {
            let shift = index as u32 * u32::from(self.bits);
            r.set_word(register, m, &std::array::from_fn(|lane| (values[lane] >> shift) as u32 & mask));
        }
    }
}

/// Whether a generic address lies in the window that begins at `start`.
#[inline(always)]
fn inside(address: u64, start: u64) -> bool {
    address.wrapping_sub(start) < WINDOW
}

impl Op {
    /// Executes it in the lanes of `mask`.
    #[inline(always)]
    pub fn execute(&self, r: &mut Registers, m: u32) {
        match *self {
            Self::Word(d, a) => r.map1(d, m, a, |a| a),
            Self::Double(d, a) => r.double_map1(d, m, a, |a| a),
            Self::Predicate(d, a) => {
                let a = a.lanes(r);
                r.set_predicate(d, m, a);
            }
            Self::Extend(d, a) => {
                let values = r.word(a).map(u64::from);
                r.set_double(d, m, &values);
            }
            Self::PackWord(d, parts) => {
                let values = parts.gather(r).map(|value| value as u32);
                r.set_word(d, m, &values);
            }
            Self::PackDouble(d, parts) => {
                let values = parts.gather(r);
                r.set_double(d, m, &values);
            }
            Self::UnpackWord(parts, a) => {
                let values = r.word(a).map(u64::from);
                parts.scatter(r, m, &values);
            }
            Self::UnpackDouble(parts, a) => {
                let values = *r.double(a);
                parts.scatter(r, m, &values);
            }
            Self::Shift(d, a, offset) => r.double_map1(d, m, a, |a| a.wrapping_add(offset)),
            Self::InWindow(p, a, start) => {
                let a = r.double(a);
                let lanes = mask_of(|lane| inside(a[lane], start));
                r.set_predicate(p, m, lanes);
            }
            Self::InGlobal(p, a) => {
                let a = r.double(a);
                let windows = [SHARED_WINDOW, LOCAL_WINDOW, PARAMETER_WINDOW];
                let lanes = mask_of(|lane| !windows.iter().any(|&start| inside(a[lane], start)));
                r.set_predicate(p, m, lanes);
            }
            Self::ClockLow(d) => {
                let time = r.tick();
                r.set_word(d, m, &[time as u32; LANES]);
            }
            Self::ClockHigh(d) => {
                let time = r.tick();
                r.set_word(d, m, &[(time >> 32) as u32; LANES]);
            }
            Self::Clock(d) => {
                let time = r.tick();
                r.set_double(d, m, &[time; LANES]);
            }
            Self::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests;
