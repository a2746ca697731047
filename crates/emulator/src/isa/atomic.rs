//! Atomic read-modify-write operations: `atom` and `red`, in global and shared memory.

use super::Decoded;
use super::float::Extreme;
use super::memory::{Register, addresses, is_hint, reach, space};
use super::rounding::{bf16_to_f32, canonical, f16_to_f32, f32_to_bf16, f32_to_f16, flush};
use crate::check::clocks::{Order, Touch};
use crate::machine::Fault;
use crate::machine::context::{Access, Context, Where};
use crate::machine::registers::{Double, LANES, lanes};
use crate::program::{Address, LOCAL_WINDOW, PARAMETER_WINDOW, Reason, SHARED_WINDOW, Scope, WINDOW};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
use crate::report::Kind;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// What is done to the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as in PTX
pub enum Operation {
    Add,
    Inc,
    Dec,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// The most elements of a vector.
const MOST: usize = 8;

/// An atomic operation.
#[derive(Clone, Debug)]
pub struct Op {
    operation: Operation,
    ty: Type,
    at: Where,
    address: Address,
    access: Access,
    /// Where old values go, element by element; nowhere for `red`.
    destinations: Vec<Register>,
    /// The operands, element by element.
    sources: Vec<Register>,
    /// The new value of a compare-and-swap, whose `sources` it is compared with.
    swap: Option<Register>,
}

/// Decodes `atom` and `red`.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let returns = match instruction.opcode.as_str() {
        "atom" => true,
        "red" if !instruction.has("async") => false,
        _ => return Ok(None),
    };
    let (mut at, mut count, mut operation, mut ty) = (Where::Generic, 1, None, None);
    let (mut acquire, mut release, mut noftz) = (false, false, false);
    for modifier in &instruction.modifiers {
        match modifier.as_str() {
            "relaxed" => {}
            "noftz" => noftz = true,
            "acquire" => acquire = true,
            "release" => release = true,
            "acq_rel" => (acquire, release) = (true, true),
            "add" => operation = Some(Operation::Add),
            "inc" => operation = Some(Operation::Inc),
            "dec" => operation = Some(Operation::Dec),
            "min" => operation = Some(Operation::Min),
            "max" => operation = Some(Operation::Max),
            "and" => operation = Some(Operation::And),
            "or" => operation = Some(Operation::Or),
            "xor" => operation = Some(Operation::Xor),
            "exch" => operation = Some(Operation::Exchange),
            "cas" => operation = Some(Operation::CompareAndSwap),
            "v2" => count = 2,
            "v4" => count = 4,
            "v8" => count = 8,
            name if space(name).is_some() => at = space(name).map_or(at, Where::In),
            name if Type::parse(name).is_some() => ty = Type::parse(name),
            name if is_hint(name) => {}
            name => return Err(format!("the modifier .{name} is not supported")),
        }
    }
    let (operation, ty) = (operation.ok_or("an operation was expected")?, ty.ok_or("a type was expected")?);
    if ty == Type::B128 {
        return Err("128-bit registers are not supported".to_owned());
    }
    if !is_defined(operation, ty) {
        return Err(format!("{operation:?} is not defined for {ty:?}"));
    }
    let operands = instruction.operands.as_slice();
    let (destination, operands) = match (returns, operands) {
        (true, [destination, rest @ ..]) => (Some(destination), rest),
        (_, rest) => (None, rest),
    };
    let [address, value, rest @ ..] = operands else { return Err("an address and a value were expected".to_owned()) };
    let (address, named) = scope.address(address)?;
    if let (Where::Generic, Some(Space::Global | Space::Shared)) = (at, named) {
        at = named.map_or(at, Where::In);
    }
    if !matches!(at, Where::Generic | Where::In(Space::Global | Space::Shared)) {
        return Err("atomic operations take global or shared memory".to_owned());
    }
    let half = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
    if noftz != half {
        return Err(format!("{ty:?} {} .noftz", if half { "needs" } else { "does not take" }));
    }
    if count == 1 && half && operation != Operation::Add {
        return Err(format!("{operation:?} of {ty:?} is defined for vectors only"));
    }
    if count > 1 && (operation == Operation::CompareAndSwap || !is_vector(ty, count) || at == Where::In(Space::Shared))
    {
        return Err(format!("{operation:?} is not defined for vectors of {count} {ty:?} here"));
    }
    let sources = elements(value, count, |operand| source(scope, operand, ty))?;
    let swap = match (operation, rest) {
        (Operation::CompareAndSwap, [swap, ..]) => Some(source(scope, swap, ty)?),
        (Operation::CompareAndSwap, []) => return Err("a new value was expected".to_owned()),
        _ => None,
    };
    let destinations = match destination {
        Some(Operand::Sink) | None => Vec::new(),
        Some(operand) => elements(operand, count, |operand| {
            Ok(match ty.size() {
                8 => Register::Double(scope.double_to(operand, ty)?),
                _ => Register::Word(scope.word_to(operand, ty)?),
            })
        })?,
    };
    let order = match (acquire, release) {
        (false, false) => Order::Relaxed,
        (true, false) => Order::Acquire,
        (false, true) => Order::Release,
        (true, true) => Order::AcquireRelease,
    };
    let access = Access::strong(Touch::Update, order, reach(instruction));
    Ok(Some(super::Op::Atomic(Op { operation, ty, at, address, access, destinations, sources, swap })))
}

fn elements(
    operand: &Operand,
    count: usize,
    mut element: impl FnMut(&Operand) -> Result<Register, Reason>,
) -> Result<Vec<Register>, Reason> {
    let operands = match operand {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if operands.len() != count {
        return Err(format!("{count} registers were expected, and there are {}", operands.len()));
    }
    operands.iter().map(&mut element).collect()
}

fn source(scope: &mut Scope<'_>, operand: &Operand, ty: Type) -> Result<Register, Reason> {
    Ok(match ty.size() {
        8 => Register::Double(scope.double(operand, ty)?),
        _ => Register::Word(scope.word(operand, ty)?),
    })
}

/// The types of each operation (PTX ISA, `atom`).
fn is_defined(operation: Operation, ty: Type) -> bool {
    use Operation::{Add, And, CompareAndSwap, Dec, Exchange, Inc, Max, Min, Or, Xor};
    let integer = matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64);
    let half = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
    match operation {
        Add => integer || half || matches!(ty, Type::F32 | Type::F64),
        Inc | Dec => ty == Type::U32,
        Min | Max => integer || half,
        And | Or | Xor | Exchange => matches!(ty, Type::B32 | Type::B64),
        CompareAndSwap => matches!(ty, Type::B16 | Type::B32 | Type::B64),
    }
}

/// Whether there are vectors of so many elements (PTX ISA, `atom`: singles up to four, pairs of halves too, halves up to
/// eight).
fn is_vector(ty: Type, count: usize) -> bool {
    match ty {
        Type::F32 | Type::F16x2 | Type::Bf16x2 => count <= 4,
        Type::F16 | Type::Bf16 => count <= 8,
        _ => false,
    }
}

impl Op {
    /// Carries it out for the lanes in `mask`, in their order.
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        let addresses = addresses(context, &self.address);
        let size = self.ty.size();
        let writes = context.block.writes;
        let is_own = |lane: &usize| (LOCAL_WINDOW..PARAMETER_WINDOW + WINDOW).contains(&addresses[*lane]);
        if self.at == Where::Generic
            && let Some(lane) = lanes(mask).find(is_own)
        {
            return Err(Fault::lane(
                Kind::Undefined,
                lane,
                "updates local memory, where there are no atomic operations",
            ));
        }
        let pointers = context.locate(mask, self.at, &addresses, size * self.sources.len(), self.access)?;
        let values = |register: &Register| -> Double {
            match register {
                Register::Word(word) => context.registers.word(*word).map(u64::from),
                Register::Double(double) => *context.registers.double(*double),
            }
        };
        let swap = self.swap.as_ref().map(values);
        // An operation that leaves everything as it was is nothing that anybody could wait for.
        let mut changes = false;
        let mut results = [[0; LANES]; MOST];
        for (index, (source, old)) in self.sources.iter().zip(&mut results).enumerate() {
            let operands = values(source);
            for lane in lanes(mask) {
                // PTX ISA, `atom`: an addition of singles flushes subnormals in global memory and keeps them in shared.
                let ftz = match self.at {
                    Where::In(space) => space == Space::Global,
                    Where::Generic => !(SHARED_WINDOW..LOCAL_WINDOW).contains(&addresses[lane]),
                };
                let change = |old: u64| match &swap {
                    Some(new) => (old == operands[lane]).then_some(new[lane]),
                    None => Some(apply(self.operation, self.ty, ftz, old, operands[lane])),
                };
                let pointer = pointers[lane].wrapping_add(index * size);
                // SAFETY: `locate` gave a pointer to the bytes of all elements for every lane in the mask, aligned to
                // their size; other threads of the host reach them by atomic operations or race in the program itself.
                old[lane] = unsafe { update(pointer, size, change) };
                changes |= change(old[lane]).is_some_and(|new| new != old[lane]);
            }
        }
        if !changes {
            context.block.writes = writes;
        }
        for (destination, old) in self.destinations.iter().zip(&results) {
            match *destination {
                Register::Word(word) => context.registers.set_word(word, mask, &old.map(|value| value as u32)),
                Register::Double(double) => context.registers.set_double(double, mask, old),
            }
        }
        Ok(())
    }
}

/// Replaces a value by what `change` makes of it, if anything, and returns the old one.
///
/// # Safety
/// `pointer` is valid for `size` bytes (2, 4 or 8) and aligned to them.
unsafe fn update(pointer: *mut u8, size: usize, change: impl Fn(u64) -> Option<u64>) -> u64 {
    macro_rules! update {
        ($atomic:ty, $integer:ty) => {{
            // SAFETY: as the caller promises.
            let value = unsafe { <$atomic>::from_ptr(pointer.cast()) };
            let change = |old: $integer| change(u64::from(old)).map(|new| new as $integer);
            match value.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change) {
                Ok(old) | Err(old) => u64::from(old),
            }
        }};
    }
    match size {
        2 => update!(AtomicU16, u16),
        4 => update!(AtomicU32, u32),
        _ => update!(AtomicU64, u64),
    }
}

/// f of two half-precision numbers as singles, where a sum that is rounded once more comes to no harm: 24 ≥ 2·11 + 2
/// bits.
fn binary16(f: impl Fn(f32, f32) -> f32) -> impl Fn(u32, u32) -> u32 {
    move |a, b| f32_to_f16(f(f16_to_f32(a & 0xffff), f16_to_f32(b & 0xffff)))
}

/// As [`binary16`].
fn bfloat16(f: impl Fn(f32, f32) -> f32) -> impl Fn(u32, u32) -> u32 {
    move |a, b| f32_to_bf16(f(bf16_to_f32(a & 0xffff), bf16_to_f32(b & 0xffff))) & 0xffff
}

/// f on both halves of a word.
fn halves(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a & 0xffff, b & 0xffff) | f(a >> 16, b >> 16) << 16
}

/// f on halves; `None` for any other type.
fn half(ty: Type, a: u32, b: u32, f: impl Fn(f32, f32) -> f32) -> Option<u64> {
    Some(u64::from(match ty {
        Type::F16 => binary16(f)(a, b),
        Type::F16x2 => halves(a, b, binary16(f)),
        Type::Bf16 => bfloat16(f)(a, b),
        Type::Bf16x2 => halves(a, b, bfloat16(f)),
        _ => return None,
    }))
}

/// The new value; with `ftz`, subnormal singles are zeros.
fn apply(operation: Operation, ty: Type, ftz: bool, old: u64, operand: u64) -> u64 {
    let (a, b) = (old as u32, operand as u32);
    let extreme = |max: bool| {
        let extreme = Extreme { max, nan: false, abs: false, xorsign: false, ftz: false };
        half(ty, a, b, |a, b| extreme.of(a, b))
    };
    match operation {
        Operation::Add => match ty {
            Type::F32 => {
                let single = |bits: u32| flush(f32::from_bits(bits), ftz);
                u64::from(canonical(flush(single(a) + single(b), ftz)))
            }
            Type::F64 => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
            Type::U64 | Type::S64 => old.wrapping_add(operand),
            _ => half(ty, a, b, |a, b| a + b).unwrap_or_else(|| u64::from(a.wrapping_add(b))),
        },
        Operation::Inc => u64::from(if a >= b { 0 } else { a + 1 }),
        Operation::Dec => u64::from(if a == 0 || a > b { b } else { a - 1 }),
        Operation::Min => extreme(false).unwrap_or_else(|| match ty {
            Type::S32 => u64::from((a as i32).min(b as i32) as u32),
            Type::S64 => (old as i64).min(operand as i64) as u64,
            _ => old.min(operand),
        }),
        Operation::Max => extreme(true).unwrap_or_else(|| match ty {
            Type::S32 => u64::from((a as i32).max(b as i32) as u32),
            Type::S64 => (old as i64).max(operand as i64) as u64,
            _ => old.max(operand),
        }),
        Operation::And => old & operand,
        Operation::Or => old | operand,
        Operation::Xor => old ^ operand,
        Operation::Exchange | Operation::CompareAndSwap => operand,
    }
}

#[cfg(test)]
mod tests;
