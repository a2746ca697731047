//! What operands stand for: registers, immediates, addresses, labels, by the names in scope.

use super::{Address, Base, Label, Reason, Scope, Special, Symbol};
use crate::machine::registers::{D, LANES, P, W};
use crate::ptx::ast::{Operand, Space, Target, Type, Variable};

/// Registers of a kernel with all that it calls; a warp takes 128 or 256 bytes for each.
const MOST_REGISTERS: usize = 1 << 18;

/// Whether a register of type `own` can be an operand of type `ty` (PTX ISA 9.4, operand type checking; where that is
/// silent, what ptxas takes): untyped bits go with every type of their size, integers with integers of either sign,
/// floating-point numbers with their own kind.
fn holds(own: Type, ty: Type) -> bool {
    own.size() == ty.size() && same_kind(own, ty)
}

/// [`holds`] where the register may also be larger (PTX ISA 9.4, operand size exceeding instruction-type size): an integer one then, or one of untyped bits.
fn holds_more(own: Type, ty: Type) -> bool {
    let larger = own.size() > ty.size() && !matches!(ty, Type::F64 | Type::Bf16 | Type::Tf32);
    holds(own, ty) || larger && (same_kind(own, ty))
}

fn same_kind(own: Type, ty: Type) -> bool {
    let bits = |ty| matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64);
    // ptxas takes a register of type f16x2 for one of untyped bits.
    let integer = |ty: Type| ty.is_integer() || ty == Type::F16x2;
    bits(own) || bits(ty) || own == ty || integer(own) && ty.is_integer()
}

/// Whether a literal can be an operand of type `ty`: an integer is no floating-point number, and the other way round
/// only untyped bits take one, as it is written (PTX ISA 4, constants).
fn literal_fits(operand: &Operand, ty: Type) -> Result<(), Reason> {
    let fits = match operand {
        Operand::Integer(_) => ty.is_integer() || matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64),
        Operand::Single(_) => matches!(ty, Type::F32 | Type::F64 | Type::B32),
        Operand::Double(_) => matches!(ty, Type::F32 | Type::F64 | Type::B64),
        _ => true,
    };
    if fits { Ok(()) } else { Err(format!("a literal that is no value of type {ty:?}")) }
}

impl Scope<'_> {
    /// What the module was compiled for.
    pub fn target(&self) -> &Target {
        &self.module.target
    }

    /// The version of PTX in which the module is written: major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.module.version
    }

    /// A new word register.
    pub fn new_word(&mut self) -> W {
        self.registers.add_word(0)
    }

    /// A new double register.
    pub fn new_double(&mut self) -> D {
        self.registers.add_double(0)
    }

    /// A new predicate register.
    pub fn new_predicate(&mut self) -> P {
        self.registers.add_predicate()
    }

    /// The predicate that stands for the carry flag, one for the whole program.
    pub fn carry(&mut self) -> P {
        if let Some(flag) = self.carry {
            return flag;
        }
        let flag = self.new_predicate();
        self.carry = Some(flag);
        flag
    }

    /// A constant word.
    pub fn constant_word(&mut self, value: u32) -> W {
        let registers = &mut self.registers;
        *self.word_constants.entry(value).or_insert_with(|| registers.add_word(value))
    }

    /// A constant double.
    pub fn constant_double(&mut self, value: u64) -> D {
        let registers = &mut self.registers;
        *self.double_constants.entry(value).or_insert_with(|| registers.add_double(value))
    }

    pub(super) fn special(&mut self, special: Special) -> W {
        if let Some(&(_, register)) = self.specials.iter().find(|(other, _)| *other == special) {
            return register;
        }
        let register = self.new_word();
        self.specials.push((special, register));
        register
    }

    pub(super) fn find(&self, name: &str) -> Option<Symbol> {
        if let Some(symbol) = self.names.iter().rev().find_map(|names| names.get(name)) {
            return Some(symbol.clone());
        }
        self.addresses.get(name).map(|&(space, address)| Symbol::Variable(space, address))
    }

    /// The declared type of a register operand; `None` for anything else.
    pub fn register_type(&self, operand: &Operand) -> Option<Type> {
        let Operand::Name(name) = operand else { return None };
        match self.find(name) {
            Some(Symbol::Word(_, ty) | Symbol::Double(_, ty)) => Some(ty),
            Some(Symbol::Predicate(_)) => Some(Type::Pred),
            _ => Special::parse(name).map(|_| Type::U32),
        }
    }

    /// A source of up to 32 bits for an instruction of type `ty`: a register, an immediate (converted as PTX says: an
    /// integer is cut to the size, a floating-point one rounded), a special register or the address of a variable.
    ///
    /// # Errors
    /// If there is no such name, or it is of a type that does not agree.
    pub fn word(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        self.agree(operand, ty, holds)?;
        self.word_of(operand, ty)
    }

    /// [`Scope::word`] where the register may be larger than the type, as for `st` and `cvt`.
    ///
    /// # Errors
    /// If there is no such name, or it is of a type that does not agree.
    pub fn word_any(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        self.agree(operand, ty, holds_more)?;
        self.word_of(operand, ty)
    }

    fn word_of(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        let cut = |value: u64| match ty.size() {
            1 => value as u8 as u32,
            2 => value as u16 as u32,
            _ => value as u32,
        };
        literal_fits(operand, ty)?;
        match operand {
            Operand::Integer(value) => Ok(self.constant_word(cut(*value))),
            Operand::Single(bits) => Ok(self.constant_word(*bits)),
            Operand::Double(bits) => Ok(self.constant_word((f64::from_bits(*bits) as f32).to_bits())),
            Operand::Name(name) => match self.find(name) {
                Some(Symbol::Word(register, _)) => Ok(register),
                Some(Symbol::Variable(_, address) | Symbol::Parameter(address)) => {
                    Ok(self.constant_word(address as u32))
                }
                Some(_) => Err(format!("{name} is not a register of up to 32 bits")),
                None if name == "WARP_SZ" => Ok(self.constant_word(LANES as u32)),
                None => match Special::parse(name) {
                    Some(special) => Ok(self.special(special)),
                    None => Err(format!("there is no {name}")),
                },
            },
            Operand::Offset(name, offset) => {
                let address = self.variable(name)?;
                Ok(self.constant_word(address.wrapping_add_signed(*offset) as u32))
            }
            _ => Err(format!("an operand of type {ty:?} was expected")),
        }
    }

    /// A 64-bit source, as [`Scope::word`].
    ///
    /// # Errors
    /// If there is no such name, or it is of a type that does not agree.
    pub fn double(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        self.agree(operand, ty, holds)?;
        self.double_of(operand, ty)
    }

    /// [`Scope::double`] where the register may be larger than the type, as for `st` and `cvt`.
    ///
    /// # Errors
    /// If there is no such name, or it is of a type that does not agree.
    pub fn double_any(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        self.agree(operand, ty, holds_more)?;
        self.double_of(operand, ty)
    }

    fn double_of(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        literal_fits(operand, ty)?;
        match operand {
            Operand::Integer(value) => Ok(self.constant_double(*value)),
            Operand::Single(bits) => Ok(self.constant_double(f64::from(f32::from_bits(*bits)).to_bits())),
            Operand::Double(bits) => Ok(self.constant_double(*bits)),
            Operand::Name(name) => match self.find(name) {
                Some(Symbol::Double(register, _)) => Ok(register),
                Some(Symbol::Variable(_, address) | Symbol::Parameter(address)) => Ok(self.constant_double(address)),
                Some(_) => Err(format!("{name} is not a 64-bit register")),
                None => Err(format!("there is no {name}")),
            },
            Operand::Offset(name, offset) => {
                let address = self.variable(name)?;
                Ok(self.constant_double(address.wrapping_add_signed(*offset)))
            }
            _ => Err(format!("an operand of type {ty:?} was expected")),
        }
    }

    /// Whether a register, if the operand is one, is of a type that `holds` takes for that of the instruction.
    fn agree(&self, operand: &Operand, ty: Type, holds: fn(Type, Type) -> bool) -> Result<(), Reason> {
        match self.register_type(operand) {
            Some(own) if !holds(own, ty) && own != Type::Pred && !self.is_special(operand) => {
                Err(format!("a register of type {own:?} where the instruction takes {ty:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the operand is a special register, which stands for a value of the size that is asked for.
    fn is_special(&self, operand: &Operand) -> bool {
        matches!(operand, Operand::Name(name) if self.find(name).is_none() && Special::parse(name).is_some())
    }

    /// The name of a special register, a variable or a parameter, if the operand is one.
    pub(crate) fn value_by_name<'o>(&self, operand: &'o Operand) -> Option<&'o str> {
        let (Operand::Name(name) | Operand::Offset(name, _)) = operand else { return None };
        match self.find(name) {
            Some(Symbol::Variable(..) | Symbol::Parameter(_)) => Some(name),
            Some(_) => None,
            None => Special::parse(name).map(|_| name.as_str()),
        }
    }

    pub(super) fn variable(&self, name: &str) -> Result<u64, Reason> {
        match self.find(name) {
            Some(Symbol::Variable(_, address) | Symbol::Parameter(address)) => Ok(address),
            _ => Err(format!("there is no variable {name}")),
        }
    }

    /// A predicate source.
    ///
    /// # Errors
    /// If it is not one.
    pub fn predicate(&mut self, operand: &Operand) -> Result<P, Reason> {
        match operand {
            Operand::Name(name) => self.predicate_named(name),
            _ => Err("a predicate was expected".to_owned()),
        }
    }

    /// The predicate of this name.
    ///
    /// # Errors
    /// If it is not one.
    pub fn predicate_named(&self, name: &str) -> Result<P, Reason> {
        match self.find(name) {
            Some(Symbol::Predicate(register)) => Ok(register),
            _ => Err(format!("there is no predicate {name}")),
        }
    }

    /// A destination of up to 32 bits for a result of type `ty`; `_` gives a register that nobody reads.
    ///
    /// # Errors
    /// If it is not a register, or not of the size of the type.
    pub fn word_to(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        self.agree(operand, ty, holds)?;
        self.word_to_of(operand)
    }

    /// [`Scope::word_to`] where the register may be wider than the type, as for `ld` and `cvt`.
    ///
    /// # Errors
    /// If it is not a register of up to 32 bits, or of a type that does not agree.
    pub fn word_to_any(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        self.agree(operand, ty, holds_more)?;
        self.word_to_of(operand)
    }

    fn word_to_of(&mut self, operand: &Operand) -> Result<W, Reason> {
        match operand {
            Operand::Name(name) => match self.find(name) {
                Some(Symbol::Word(register, _)) => Ok(register),
                _ => Err(format!("{name} is not a register of up to 32 bits")),
            },
            Operand::Sink => Ok(self.new_word()),
            _ => Err("a destination register was expected".to_owned()),
        }
    }

    /// The destination of this name, as [`Scope::word_to`]; `_` gives a register that nobody reads.
    ///
    /// # Errors
    /// If it is not a register, or not of the size of the type.
    pub fn word_to_named(&mut self, name: &str, ty: Type) -> Result<W, Reason> {
        let operand = if name == "_" { Operand::Sink } else { Operand::Name(name.to_owned()) };
        self.word_to(&operand, ty)
    }

    /// A 64-bit destination for a result of type `ty`; `_` gives a register that nobody reads.
    ///
    /// # Errors
    /// If it is not a 64-bit register, or of a type that does not agree.
    pub fn double_to(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        self.agree(operand, ty, holds)?;
        self.double_to_of(operand)
    }

    /// [`Scope::double_to`] where the register may be larger than the type, as for `ld` and `cvt`.
    ///
    /// # Errors
    /// If it is not a 64-bit register, or of a type that does not agree.
    pub fn double_to_any(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        self.agree(operand, ty, holds_more)?;
        self.double_to_of(operand)
    }

    fn double_to_of(&mut self, operand: &Operand) -> Result<D, Reason> {
        match operand {
            Operand::Name(name) => match self.find(name) {
                Some(Symbol::Double(register, _)) => Ok(register),
                _ => Err(format!("{name} is not a 64-bit register")),
            },
            Operand::Sink => Ok(self.new_double()),
            _ => Err("a destination register was expected".to_owned()),
        }
    }

    /// A predicate destination; `_` gives a predicate that nobody reads.
    ///
    /// # Errors
    /// If it is not a predicate.
    pub fn predicate_to(&mut self, operand: &Operand) -> Result<P, Reason> {
        match operand {
            Operand::Name(name) => self.predicate_named(name),
            Operand::Sink => Ok(self.new_predicate()),
            _ => Err("a destination predicate was expected".to_owned()),
        }
    }

    /// The predicate of this name, or for `_` one that nobody reads.
    ///
    /// # Errors
    /// If it is not a predicate.
    pub fn predicate_to_named(&mut self, name: &str) -> Result<P, Reason> {
        if name == "_" { Ok(self.new_predicate()) } else { self.predicate_named(name) }
    }

    /// An address operand, and the space of the variable it names, if it names one. (A `.param` of a call is a variable
    /// in local space.)
    ///
    /// # Errors
    /// If it is not an address, or names nothing that has one.
    pub fn address(&mut self, operand: &Operand) -> Result<(Address, Option<Space>), Reason> {
        let Operand::Address(name, offset) = operand else {
            return Err("an address in brackets was expected".to_owned());
        };
        let Some(name) = name else {
            return Ok((Address { base: Base::Nothing, offset: *offset }, None));
        };
        let fixed = |address: u64| Address { base: Base::Nothing, offset: (address as i64).wrapping_add(*offset) };
        Ok(match self.find(name) {
            Some(Symbol::Word(register, _)) => (Address { base: Base::Word(register), offset: *offset }, None),
            Some(Symbol::Double(register, _)) => (Address { base: Base::Double(register), offset: *offset }, None),
            Some(Symbol::Variable(space, address)) => (fixed(address), Some(space)),
            Some(Symbol::Parameter(address)) => (fixed(address), Some(Space::Parameter)),
            _ => return Err(format!("{name} has no address")),
        })
    }

    /// Where a branch to `operand` goes.
    ///
    /// # Errors
    /// If there is no such label.
    pub fn label(&self, operand: &Operand) -> Result<Label, Reason> {
        match operand {
            Operand::Name(name) => self.label_named(name),
            _ => Err("a label was expected".to_owned()),
        }
    }

    pub(super) fn label_named(&self, name: &str) -> Result<Label, Reason> {
        match self.find(name) {
            Some(Symbol::Label(label)) => Ok(Label(label)),
            _ => Err(format!("there is no label {name}")),
        }
    }

    /// The labels of a `.branchtargets` list.
    ///
    /// # Errors
    /// If there is no such list, or a label of it does not exist.
    pub fn branch_targets(&self, operand: &Operand) -> Result<Vec<Label>, Reason> {
        let Operand::Name(name) = operand else { return Err("a list of branch targets was expected".to_owned()) };
        match self.find(name) {
            Some(Symbol::BranchTargets(names)) => names.iter().map(|name| self.label_named(name)).collect(),
            _ => Err(format!("there are no branch targets {name}")),
        }
    }

    /// The offset in local memory of a `.param` variable that is given to a call.
    ///
    /// # Errors
    /// If the operand is not one.
    pub fn argument(&self, operand: &Operand) -> Result<u64, Reason> {
        match operand {
            Operand::Name(name) => match self.find(name) {
                Some(Symbol::Variable(Space::Local, address)) => Ok(address),
                _ => Err(format!("{name} is not a .param variable")),
            },
            _ => Err("a .param variable was expected".to_owned()),
        }
    }

    /// Where `ret` goes here: the end of the function that is being inlined, or nowhere for the kernel itself.
    pub fn return_label(&self) -> Option<Label> {
        self.returns.last().copied()
    }

    /// Says that barrier number `barrier` is used.
    pub fn uses_barrier(&mut self, barrier: usize) {
        self.barriers = self.barriers.max(barrier + 1);
    }

    pub(super) fn declare(&mut self, name: &str, symbol: Symbol) {
        if let Some(names) = self.names.last_mut() {
            names.insert(name.to_owned(), symbol);
        }
    }

    pub(super) fn declare_register(&mut self, ty: Type, name: &str) -> Result<(), Reason> {
        let (words, doubles, predicates) = self.registers.counts();
        if words + doubles + predicates >= MOST_REGISTERS {
            return Err(format!("with what it calls, the kernel has more than {MOST_REGISTERS} registers"));
        }
        let symbol = match ty {
            Type::Pred => Symbol::Predicate(self.new_predicate()),
            Type::B128 => return Err("128-bit registers are not supported".to_owned()),
            _ if ty.size() == 8 => Symbol::Double(self.new_double(), ty),
            _ => Symbol::Word(self.new_word(), ty),
        };
        self.declare(name, symbol);
        Ok(())
    }

    /// `size` bytes of local memory.
    pub(super) fn new_local(&mut self, size: usize, align: usize) -> usize {
        let start = self.local.next_multiple_of(align.max(1));
        self.local = start + size;
        start
    }

    pub(super) fn declare_variable(&mut self, variable: &Variable) -> Result<(), Reason> {
        let address = match (variable.space, variable.size) {
            (Space::Shared, Some(_)) => self.shared.address(variable),
            (Space::Local | Space::Parameter, Some(size)) => self.new_local(size, variable.align),
            _ => return Err("a variable of this space cannot be declared in a function".to_owned()),
        };
        let space = if variable.space == Space::Parameter { Space::Local } else { variable.space };
        self.declare(&variable.name, Symbol::Variable(space, address as u64));
        Ok(())
    }
}
