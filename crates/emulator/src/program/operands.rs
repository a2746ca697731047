//! What operands stand for: registers, immediates, addresses, labels, by the names in scope.

use super::{Address, Base, Label, Reason, Scope, Special, Symbol};
use crate::machine::registers::{D, LANES, P, W};
use crate::ptx::ast::{Operand, Space, Target, Type, Variable};

impl Scope<'_> {
    /// What the module was compiled for.
    pub fn target(&self) -> &Target {
        &self.module.target
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
    /// If there is no such name, or it has another size.
    pub fn word(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        self.sized(operand, ty)?;
        self.word_any(operand, ty)
    }

    /// [`Scope::word`] where the register may be of another size than the type, as for `ld`, `st` and `cvt`.
    ///
    /// # Errors
    /// If there is no such name, or it is not of up to 32 bits.
    pub fn word_any(&mut self, operand: &Operand, ty: Type) -> Result<W, Reason> {
        let cut = |value: u64| match ty.size() {
            1 => value as u8 as u32,
            2 => value as u16 as u32,
            _ => value as u32,
        };
        match operand {
            Operand::Integer(value) if matches!(ty, Type::F32) => {
                Ok(self.constant_word((*value as i64 as f32).to_bits()))
            }
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
    /// If there is no such name, or it has another size.
    pub fn double(&mut self, operand: &Operand, ty: Type) -> Result<D, Reason> {
        self.sized(operand, ty)?;
        match operand {
            Operand::Integer(value) if matches!(ty, Type::F64) => {
                Ok(self.constant_double((*value as i64 as f64).to_bits()))
            }
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

    pub(super) fn sized(&self, operand: &Operand, ty: Type) -> Result<(), Reason> {
        match self.register_type(operand) {
            Some(own) if own.size() != ty.size() && own != Type::Pred => {
                Err(format!("a register of type {own:?} where the instruction takes {ty:?}"))
            }
            _ => Ok(()),
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
        self.sized(operand, ty)?;
        self.word_to_any(operand)
    }

    /// [`Scope::word_to`] where the register may be wider than the type, as for `ld` and `cvt`.
    ///
    /// # Errors
    /// If it is not a register of up to 32 bits.
    pub fn word_to_any(&mut self, operand: &Operand) -> Result<W, Reason> {
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

    /// A 64-bit destination; `_` gives a register that nobody reads.
    ///
    /// # Errors
    /// If it is not a 64-bit register.
    pub fn double_to(&mut self, operand: &Operand) -> Result<D, Reason> {
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
