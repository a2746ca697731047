//! Loads and stores: `ld`, `ldu`, `st`, in every space, width and vector form.

use super::Decoded;
use crate::check::clocks::{Order, Scope as Reach, Touch};
use crate::machine::context::{Access, Context, LaneBytes, Where};
use crate::machine::racing;
use crate::machine::registers::{D, Double, LANES, W, Word, lanes};
use crate::machine::{Class, Fault};
use crate::program::{Address, Base, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// A register that is loaded into or stored from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Of up to 32 bits.
    Word(W),
    /// Of 64 bits.
    Double(D),
}

/// A load or a store.
#[derive(Clone, Debug)]
pub struct Op {
    /// Whether it stores.
    pub store: bool,
    /// Where the address lies.
    pub at: Where,
    /// The address.
    pub address: Address,
    /// The type of one element.
    pub element: Type,
    /// The elements, one after another in memory, and the bits that a loaded signed one is extended to: those of its
    /// register.
    pub registers: Vec<(Register, usize)>,
    /// How it takes part in the order of accesses: `.volatile`, `.relaxed`, `.acquire`, `.release`.
    pub access: Access,
}

/// Modifiers that say how caches are used, which changes no value.
pub(crate) fn is_hint(modifier: &str) -> bool {
    matches!(
        modifier,
        "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "unified" | "cta" | "gpu" | "sys" | "cluster"
    ) || modifier.starts_with("L1::")
        || modifier.starts_with("L2::")
}

/// How far a strong access reaches: `.volatile` as far as `.sys` (PTX ISA, memory consistency model).
pub(crate) fn reach(instruction: &Instruction) -> Reach {
    if instruction.has("cta") || instruction.has("cluster") { Reach::Block } else { Reach::Device }
}

/// The space that a modifier names.
pub(crate) fn space(modifier: &str) -> Option<Space> {
    Some(match modifier {
        "global" => Space::Global,
        "const" => Space::Constant,
        "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Parameter,
        _ => return None,
    })
}

/// Decodes `ld`, `ldu` and `st`.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let store = match instruction.opcode.as_str() {
        "ld" | "ldu" => false,
        "st" => true,
        _ => return Ok(None),
    };
    let touch = if store { Touch::Store } else { Touch::Load };
    let (mut at, mut order, mut count, mut element) = (Where::Generic, None, 1, None);
    for modifier in &instruction.modifiers {
        match modifier.as_str() {
            "weak" => {}
            "volatile" | "relaxed" | "mmio" => order = Some(Order::Relaxed),
            "acquire" if !store => order = Some(Order::Acquire),
            "release" if store => order = Some(Order::Release),
            "v2" => count = 2,
            "v4" => count = 4,
            "v8" => count = 8,
            name if space(name).is_some() => at = space(name).map_or(at, Where::In),
            name if Type::parse(name).is_some() => element = Type::parse(name),
            name if is_hint(name) => {}
            name => return Err(format!("the modifier .{name} is not supported")),
        }
    }
    let element = element.filter(|ty| *ty != Type::Pred).ok_or("a type was expected")?;
    if element == Type::B128 {
        return Err("128-bit registers are not supported".to_owned());
    }
    // `.level::cache_hint` adds a policy as the last operand, which changes no value.
    let (destination, address) = match (store, instruction.operands.as_slice()) {
        (false, [value, address] | [value, address, _]) | (true, [address, value] | [address, value, _]) => {
            (value, address)
        }
        _ => return Err("a register and an address were expected".to_owned()),
    };
    let bytes = count * element.size();
    if !store && scope.is_guess(destination, bytes) {
        // It races with plain writes only. That it may also complete an acquire pattern is no loss: the compare-and-swap,
        // which reads the same location later, does.
        order = order.or(Some(Order::Relaxed));
    }
    let access = Access { touch, strong: order.map(|order| (order, reach(instruction))) };
    // PTX ISA, `ld` and `st`: 256 bits only in global memory, as .v8 of 32 or .v4 of 64 bits; priorities in the L2 cache
    // only of these.
    let is_longest = matches!((count, element.size()), (8, 4) | (4, 8));
    if !is_longest && (count == 8 || count * element.size() > 16) {
        return Err(format!("there are no vectors of {count} {element:?}"));
    }
    if is_longest && !matches!(at, Where::Generic | Where::In(Space::Global)) {
        return Err("vectors of 256 bits lie in global memory".to_owned());
    }
    if !is_longest && instruction.modifiers.iter().any(|modifier| modifier.starts_with("L2::evict_")) {
        return Err("a priority in the L2 cache is that of vectors of 256 bits".to_owned());
    }
    if instruction.operands.len() > 2 && !instruction.has("L2::cache_hint") {
        return Err("a third operand is a cache policy, which .L2::cache_hint takes".to_owned());
    }
    let (address, named) = scope.address(address)?;
    if let Some(named) = named {
        // A `.param` of a call lies in local memory; a variable without a space in the instruction has its own.
        at = match (at, named) {
            (Where::In(Space::Parameter), Space::Local) => Where::In(Space::Local),
            (Where::Generic, own) => Where::In(own),
            (at, _) => at,
        };
    }
    if store && matches!(at, Where::In(Space::Constant | Space::Parameter)) {
        return Err("constants and parameters of a kernel cannot be written".to_owned());
    }
    // The parameters of a function are named: only those of a kernel have addresses in `.param` space.
    if at == Where::In(Space::Parameter) && named.is_none() && scope.return_label().is_some() {
        return Err("parameters of a function are not read through registers".to_owned());
    }
    let elements = match destination {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    if elements.len() != count {
        return Err(format!("{count} registers were expected, and there are {}", elements.len()));
    }
    let registers = elements.iter().map(|operand| value(scope, operand, element, store)).collect::<Result<_, _>>()?;
    Ok(Some(super::Op::Memory(Op { store, at, address, element, registers, access })))
}

/// The register of an element, and its width in bits. It may be wider than the element.
fn value(scope: &mut Scope<'_>, operand: &Operand, element: Type, store: bool) -> Result<(Register, usize), Reason> {
    let wide = scope.register_type(operand).map_or(element.size() == 8, |own| own.size() == 8);
    let size = scope.register_type(operand).map_or(element.size(), Type::size);
    if size < element.size() && *operand != Operand::Sink {
        return Err(format!("a register of {} bits is too narrow for {element:?}", 8 * size));
    }
    let register = match (wide, store) {
        (true, false) => Register::Double(scope.double_to_any(operand, element)?),
        (true, true) => Register::Double(scope.double_any(operand, element)?),
        (false, false) => Register::Word(scope.word_to_any(operand, element)?),
        (false, true) => Register::Word(scope.word_any(operand, element)?),
    };
    Ok((register, 8 * size))
}

/// The addresses of all lanes.
#[inline(always)]
pub(crate) fn addresses(context: &Context<'_>, address: &Address) -> Double {
    match address.base {
        Base::Nothing => [address.offset as u64; LANES],
        Base::Word(register) => {
            let base = context.registers.word(register);
            std::array::from_fn(|lane| u64::from(base[lane]).wrapping_add_signed(address.offset))
        }
        Base::Double(register) => {
            let base = context.registers.double(register);
            std::array::from_fn(|lane| base[lane].wrapping_add_signed(address.offset))
        }
    }
}

impl Op {
    /// Carries it out for the lanes in `mask`.
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    #[inline(always)]
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        let addresses = addresses(context, &self.address);
        let size = self.element.size();
        if self.store && context.block.compares_values() {
            context.block.storing = Some(self.values(context));
        }
        let pointers = context.locate(mask, self.at, &addresses, size * self.registers.len(), self.access)?;
        if self.store {
            context.block.end_store();
        }
        for (index, &(register, width)) in self.registers.iter().enumerate() {
            let offset = index * size;
            // Each choice is a loop of its own, without a branch for each lane.
            match (self.at, self.store) {
                (Where::In(Space::Global), true) => {
                    self.store_element::<GLOBAL>(context, mask, &pointers, offset, register)
                }
                (Where::Generic, true) => self.store_element::<ANY>(context, mask, &pointers, offset, register),
                (_, true) => self.store_element::<OWN>(context, mask, &pointers, offset, register),
                (Where::In(Space::Global), false) => {
                    self.load_element::<GLOBAL>(context, mask, &pointers, offset, register, width);
                }
                (Where::Generic, false) => {
                    self.load_element::<ANY>(context, mask, &pointers, offset, register, width);
                }
                (_, false) => self.load_element::<OWN>(context, mask, &pointers, offset, register, width),
            }
        }
        Ok(())
    }

    /// What every lane stores, for those who look.
    #[cold]
    fn values(&self, context: &mut Context<'_>) -> Box<LaneBytes> {
        let mut values = context.block.room_for_values();
        let size = self.element.size();
        for (index, register) in self.registers.iter().enumerate() {
            for (lane, bytes) in values.iter_mut().enumerate() {
                let bits = match register.0 {
                    Register::Word(word) => u64::from(context.registers.word(word)[lane]),
                    Register::Double(double) => context.registers.double(double)[lane],
                };
                if let Some(bytes) = bytes.get_mut(index * size..(index + 1) * size) {
                    bytes.copy_from_slice(&bits.to_le_bytes()[..size]);
                }
            }
        }
        values
    }

    #[inline(always)]
    fn load_element<const MEMORY: u8>(
        &self,
        context: &mut Context<'_>,
        mask: u32,
        pointers: &[*mut u8; LANES],
        offset: usize,
        register: Register,
        width: usize,
    ) {
        if let (Register::Word(word), 4, 32) = (register, self.element.size(), width) {
            let values = read_words::<MEMORY>(mask, pointers, offset);
            context.registers.set_word(word, mask, &values);
            return;
        }
        let bits = read::<MEMORY>(mask, pointers, offset, self.element.size());
        // A signed element is extended to the register's width, any other with zeros.
        let shift = 64 - 8 * self.element.size();
        let signed = self.element.is_signed();
        let extend = |value: u64| if signed { (((value << shift) as i64) >> shift) as u64 } else { value };
        match register {
            Register::Word(word) => {
                let cut = if width >= 32 { u32::MAX } else { (1 << width) - 1 };
                let values = std::array::from_fn(|lane| extend(bits[lane]) as u32 & cut);
                context.registers.set_word(word, mask, &values);
            }
            Register::Double(double) => {
                let values = std::array::from_fn(|lane| extend(bits[lane]));
                context.registers.set_double(double, mask, &values);
            }
        }
    }

    #[inline(always)]
    fn store_element<const MEMORY: u8>(
        &self,
        context: &mut Context<'_>,
        mask: u32,
        pointers: &[*mut u8; LANES],
        offset: usize,
        register: Register,
    ) {
        if let (Register::Word(word), 4, u32::MAX) = (register, self.element.size(), mask) {
            let values = context.registers.word(word);
            for lane in 0..LANES {
                // SAFETY: `locate` gave a pointer to as many bytes as all elements take for every lane, aligned to them
                // in global memory.
                unsafe { put::<MEMORY>(pointers[lane].add(offset), 4, u64::from(values[lane])) };
            }
            return;
        }
        let values: Double = match register {
            Register::Word(word) => context.registers.word(word).map(u64::from),
            Register::Double(double) => *context.registers.double(double),
        };
        for lane in lanes(mask) {
            // SAFETY: as above, for every lane in the mask.
            unsafe { put::<MEMORY>(pointers[lane].add(offset), self.element.size(), values[lane]) };
        }
    }

    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match (self.at, self.store) {
            (Where::In(Space::Shared), false) => Class::LoadShared,
            (Where::In(Space::Shared), true) => Class::StoreShared,
            (Where::In(Space::Local), false) => Class::LoadLocal,
            (Where::In(Space::Local), true) => Class::StoreLocal,
            (Where::In(Space::Parameter | Space::Constant), _) => Class::LoadParameter,
            (_, false) => Class::LoadGlobal,
            (_, true) => Class::StoreGlobal,
        }
    }
}

/// Global memory, aligned: where thread blocks on other threads of the host may be.
const GLOBAL: u8 = 0;
/// Memory that belongs to one thread block, or that nobody writes during a launch.
const OWN: u8 = 1;
/// Either, by the address. What is not aligned for the host is not global.
const ANY: u8 = 2;

/// Whether an element is loaded and stored atomically.
#[inline(always)]
fn is_atomic<const MEMORY: u8>(pointer: *mut u8, size: usize) -> bool {
    MEMORY == GLOBAL || MEMORY == ANY && pointer.addr() & (size - 1) == 0
}

/// Loads an element of 1, 2, 4 or 8 bytes, zero-extended.
///
/// # Safety
/// `pointer` is valid for `size` bytes; in global memory, it is aligned to them.
#[inline(always)]
unsafe fn get<const MEMORY: u8>(pointer: *mut u8, size: usize) -> u64 {
    // SAFETY: as the caller promises. Memory that is not accessed atomically belongs to the thread block that runs here.
    unsafe {
        match size {
            _ if is_atomic::<MEMORY>(pointer, size) => racing::load(pointer, size),
            1 => u64::from(pointer.read()),
            2 => u64::from(pointer.cast::<u16>().read_unaligned()),
            4 => u64::from(pointer.cast::<u32>().read_unaligned()),
            _ => pointer.cast::<u64>().read_unaligned(),
        }
    }
}

/// Stores an element of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// As for [`get`].
#[inline(always)]
unsafe fn put<const MEMORY: u8>(pointer: *mut u8, size: usize, value: u64) {
    // SAFETY: as for `get`.
    unsafe {
        match size {
            _ if is_atomic::<MEMORY>(pointer, size) => racing::store(pointer, size, value),
            1 => pointer.write(value as u8),
            2 => pointer.cast::<u16>().write_unaligned(value as u16),
            4 => pointer.cast::<u32>().write_unaligned(value as u32),
            _ => pointer.cast::<u64>().write_unaligned(value),
        }
    }
}

/// An element of 4 bytes of every lane in the mask.
#[inline(always)]
fn read_words<const MEMORY: u8>(mask: u32, pointers: &[*mut u8; LANES], offset: usize) -> Word {
    // SAFETY: called for lanes in the mask only, for which `locate` gave a pointer to as many bytes as all elements take,
    // aligned to them in global memory.
    let read = |lane: usize| unsafe { get::<MEMORY>(pointers[lane].add(offset), 4) as u32 };
    if mask == u32::MAX {
        return std::array::from_fn(read);
    }
    let mut words = [0; LANES];
    lanes(mask).for_each(|lane| words[lane] = read(lane));
    words
}

/// An element of `size` bytes of every lane in the mask, zero-extended.
#[inline(always)]
fn read<const MEMORY: u8>(mask: u32, pointers: &[*mut u8; LANES], offset: usize, size: usize) -> Double {
    let mut bits = [0; LANES];
    for lane in lanes(mask) {
        // SAFETY: `locate` gave a pointer to as many bytes as all elements take for every lane in the mask, aligned to
        // them in global memory.
        bits[lane] = unsafe { get::<MEMORY>(pointers[lane].add(offset), size) };
    }
    bits
}

#[cfg(test)]
mod tests;
