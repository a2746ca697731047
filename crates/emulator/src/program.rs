//! A kernel, decoded: one flat list of operations with registers by index, device functions inlined where they are
//! called, and for every operation the line it comes from.

use crate::isa::{self, Op};
use crate::machine::registers::{D, LANES, P, Registers, W};
use crate::ptx::ast::{Function, Instruction, Module, Operand, Parameter, Space, Statement, Target, Type, Variable};
use crate::report::Place;
use std::collections::{HashMap, HashSet};

/// Where the shared memory of a thread block appears among generic addresses. Below what any process maps.
pub const SHARED_WINDOW: u64 = 0x0100_0000;
/// Where a thread's own memory appears.
pub const LOCAL_WINDOW: u64 = 0x0200_0000;
/// Where the parameters of a kernel appear.
pub const PARAMETER_WINDOW: u64 = 0x0300_0000;
/// The size of each of these windows.
pub const WINDOW: u64 = 0x0100_0000;

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}: `{text}`")]
pub struct DecodeError {
    /// The line of the text, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The instruction or declaration.
    pub text: String,
}

/// A value that is the same throughout a thread's life, and known when its warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in PTX
pub enum Special {
    Tid(usize),
    NTid(usize),
    CtaId(usize),
    NCtaId(usize),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    DynamicSharedSize,
    TotalSharedSize,
    /// Of clusters, which here always have one thread block.
    Zero,
    /// As [`Special::Zero`]: their number.
    One,
}

impl Special {
    fn parse(name: &str) -> Option<Self> {
        let (stem, axis) = match name.rsplit_once('.') {
            Some((stem, "x")) => (stem, 0),
            Some((stem, "y")) => (stem, 1),
            Some((stem, "z")) => (stem, 2),
            Some((stem, "w")) => (stem, 3),
            _ => (name, 0),
        };
        Some(match stem {
            "%tid" => Self::Tid(axis),
            "%ntid" => Self::NTid(axis),
            "%ctaid" => Self::CtaId(axis),
            "%nctaid" => Self::NCtaId(axis),
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::NWarpId,
            "%smid" => Self::SmId,
            "%nsmid" => Self::NSmId,
            "%gridid" => Self::GridId,
            "%lanemask_eq" => Self::LaneMaskEq,
            "%lanemask_le" => Self::LaneMaskLe,
            "%lanemask_lt" => Self::LaneMaskLt,
            "%lanemask_ge" => Self::LaneMaskGe,
            "%lanemask_gt" => Self::LaneMaskGt,
            "%dynamic_smem_size" => Self::DynamicSharedSize,
            "%total_smem_size" => Self::TotalSharedSize,
            "%cluster_ctaid" | "%cluster_ctarank" | "%is_explicit_cluster" => Self::Zero,
            "%cluster_nctaid" | "%cluster_nctarank" => Self::One,
            "%clusterid" => Self::CtaId(axis),
            "%nclusterid" => Self::NCtaId(axis),
            _ => return None,
        })
    }
}

/// A decoded operation.
#[derive(Clone, Debug)]
pub struct Step {
    /// The lanes that take part: those of this predicate, or with `true` those outside of it.
    pub guard: Option<(P, bool)>,
    /// What is done.
    pub op: Op,
}

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// What is done, by program counter.
    pub steps: Vec<Step>,
    /// Where each step comes from.
    pub places: Vec<Place>,
    /// Registers as a warp finds them at the start, immediate operands included.
    pub registers: Registers,
    /// Registers that hold special values from the start.
    pub specials: Vec<(Special, W)>,
    /// Offset and size of each parameter.
    pub parameters: Vec<(usize, usize)>,
    /// Bytes of shared memory that are declared with a size; what the launch gives comes after it, at
    /// [`Program::dynamic_offset`].
    pub static_shared: usize,
    /// Where the shared memory that the launch gives begins.
    pub dynamic_offset: usize,
    /// Bytes of local memory of a thread.
    pub local: usize,
    /// `.maxntid`, as a number of threads.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// What the module was compiled for.
    pub target: Target,
    /// Whether any operation waits for other thread blocks to be resident (grid barriers are spun on, so this only says
    /// that barriers are used): the number of the highest barrier, plus one.
    pub barriers: usize,
}

impl Program {
    /// Bytes of parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.parameters.last().map_or(0, |&(offset, size)| offset + size)
    }
}

/// Where module variables are, by name: their space and address.
pub type Addresses = HashMap<String, (Space, u64)>;

/// Decodes the kernel `entry` of a module whose variables lie at `addresses`.
///
/// # Errors
/// At the first instruction that is unknown or malformed.
pub fn decode(module: &Module, entry: &Function, addresses: &Addresses) -> Result<Program, DecodeError> {
    let mut scope = Scope::new(module, entry, addresses);
    scope.kernel(entry)?;
    scope.finish(entry)
}

/// Where in the source instructions come from: file and line, and those of the call where a function was inlined.
#[derive(Clone, Copy, Debug, Default)]
struct Location {
    at: (u32, u32),
    inlined_at: Option<(u32, u32)>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Symbol {
    Word(W, Type),
    Double(D, Type),
    Predicate(P),
    /// A variable at an address of its space.
    Variable(Space, u64),
    /// A parameter of the kernel, at an offset.
    Parameter(u64),
    Label(usize),
    BranchTargets(Vec<String>),
}

/// An address operand: `[register + offset]` or `[offset]` in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// What is added to the offset, if anything: 32 or 64 bits.
    pub base: Base,
    /// The offset; the whole address where there is no base.
    pub offset: i64,
}

/// The register of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// None.
    Nothing,
    /// A 32-bit one, zero-extended.
    Word(W),
    /// A 64-bit one.
    Double(D),
}

/// A label of the program, resolved to a program counter when all is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(pub usize);

/// The decoder at work: names in scope, registers given out so far, steps decoded so far. Instruction families resolve
/// their operands with it.
pub struct Scope<'a> {
    module: &'a Module,
    addresses: &'a Addresses,
    names: Vec<HashMap<String, Symbol>>,
    /// The functions being inlined, outermost first.
    calls: Vec<&'a str>,
    /// Where `ret` goes: none for the kernel itself.
    returns: Vec<Label>,
    labels: Vec<Option<usize>>,
    steps: Vec<Step>,
    places: Vec<Place>,
    location: Location,
    registers: Registers,
    word_constants: HashMap<u32, W>,
    double_constants: HashMap<u64, D>,
    specials: Vec<(Special, W)>,
    parameters: Vec<(usize, usize)>,
    /// Where shared variables lie.
    shared: Layout<'a>,
    dynamic_shared: usize,
    local: usize,
    barriers: usize,
    /// The carry flag of extended-precision arithmetic, once something uses it.
    carry: Option<P>,
}

/// The reason for which an instruction cannot be decoded; its line is added by the caller.
pub type Reason = String;

impl<'a> Scope<'a> {
    fn new(module: &'a Module, entry: &Function, addresses: &'a Addresses) -> Self {
        let mut parameters = Vec::new();
        let mut end = 0usize;
        for parameter in &entry.parameters {
            let offset = end.next_multiple_of(parameter.align.max(1));
            parameters.push((offset, parameter.size));
            end = offset + parameter.size;
        }
        Self {
            module,
            addresses,
            names: vec![HashMap::new()],
            calls: Vec::new(),
            returns: Vec::new(),
            labels: Vec::new(),
            steps: Vec::new(),
            places: Vec::new(),
            location: Location::default(),
            registers: Registers::default(),
            word_constants: HashMap::new(),
            double_constants: HashMap::new(),
            specials: Vec::new(),
            parameters,
            shared: Layout::default(),
            dynamic_shared: 0,
            local: 0,
            barriers: 0,
            carry: None,
        }
    }

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

    fn special(&mut self, special: Special) -> W {
        if let Some(&(_, register)) = self.specials.iter().find(|(other, _)| *other == special) {
            return register;
        }
        let register = self.new_word();
        self.specials.push((special, register));
        register
    }

    fn find(&self, name: &str) -> Option<Symbol> {
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

    fn sized(&self, operand: &Operand, ty: Type) -> Result<(), Reason> {
        match self.register_type(operand) {
            Some(own) if own.size() != ty.size() && own != Type::Pred => {
                Err(format!("a register of type {own:?} where the instruction takes {ty:?}"))
            }
            _ => Ok(()),
        }
    }

    fn variable(&self, name: &str) -> Result<u64, Reason> {
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

    fn label_named(&self, name: &str) -> Result<Label, Reason> {
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

    fn declare(&mut self, name: &str, symbol: Symbol) {
        if let Some(names) = self.names.last_mut() {
            names.insert(name.to_owned(), symbol);
        }
    }

    fn declare_register(&mut self, ty: Type, name: &str) -> Result<(), Reason> {
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
    fn new_local(&mut self, size: usize, align: usize) -> usize {
        let start = self.local.next_multiple_of(align.max(1));
        self.local = start + size;
        start
    }

    fn declare_variable(&mut self, variable: &Variable) -> Result<(), Reason> {
        let address = match (variable.space, variable.size) {
            (Space::Shared, Some(_)) => self.shared.address(variable),
            (Space::Local | Space::Parameter, Some(size)) => self.new_local(size, variable.align),
            _ => return Err("a variable of this space cannot be declared in a function".to_owned()),
        };
        let space = if variable.space == Space::Parameter { Space::Local } else { variable.space };
        self.declare(&variable.name, Symbol::Variable(space, address as u64));
        Ok(())
    }

    fn error(line: u32, text: impl Into<String>, message: impl Into<String>) -> DecodeError {
        DecodeError { line, text: text.into(), message: message.into() }
    }

    fn kernel(&mut self, entry: &'a Function) -> Result<(), DecodeError> {
        // What the launch gives comes after what is declared, so all of that is laid out first.
        let shared = || self.module.variables.iter().filter(|variable| variable.space == Space::Shared);
        self.shared = Layout::of(self.module, entry);
        let dynamic = shared().filter(|variable| variable.size.is_none());
        let align = dynamic.map(|variable| variable.align).fold(16, usize::max);
        self.dynamic_shared = self.shared.end.next_multiple_of(align);
        for variable in shared() {
            let address = match variable.size {
                Some(_) => self.shared.address(variable),
                None => self.dynamic_shared,
            };
            self.declare(&variable.name, Symbol::Variable(Space::Shared, address as u64));
        }
        for (parameter, &(offset, _)) in entry.parameters.iter().zip(&self.parameters.clone()) {
            self.declare(&parameter.name, Symbol::Parameter(offset as u64));
        }
        let Some(body) = &entry.body else {
            return Err(Self::error(entry.line, entry.name.clone(), "the kernel has no body"));
        };
        self.calls.push(&entry.name);
        self.statements(body)?;
        self.calls.pop();
        // A body may end without `ret`.
        self.push(isa::control::exit(), None, Place::default());
        Ok(())
    }

    /// Decodes the statements of a scope.
    fn statements(&mut self, statements: &'a [Statement]) -> Result<(), DecodeError> {
        self.names.push(HashMap::new());
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    let label = self.new_label();
                    self.declare(name, Symbol::Label(label.0));
                }
                Statement::BranchTargets(name, targets) => self.declare(name, Symbol::BranchTargets(targets.clone())),
                _ => {}
            }
        }
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    if let Ok(label) = self.label_named(name) {
                        self.place_label(label);
                    }
                }
                Statement::Registers(ty, names) => {
                    for name in names {
                        self.declare_register(*ty, name).map_err(|reason| Self::error(0, name.clone(), reason))?;
                    }
                }
                Statement::Variable(variable) => self
                    .declare_variable(variable)
                    .map_err(|reason| Self::error(variable.line, variable.name.clone(), reason))?,
                Statement::Instruction(instruction) => self.instruction(instruction)?,
                Statement::Location { file, line, inlined_at } => {
                    self.location = Location { at: (*file, *line), inlined_at: *inlined_at };
                }
                Statement::Scope(inner) => self.statements(inner)?,
                Statement::BranchTargets(..) => {}
            }
        }
        self.names.pop();
        Ok(())
    }

    fn new_label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn place_label(&mut self, label: Label) {
        self.labels[label.0] = Some(self.steps.len());
    }

    fn push(&mut self, op: Op, guard: Option<(P, bool)>, place: Place) {
        self.steps.push(Step { guard, op });
        self.places.push(place);
    }

    fn instruction(&mut self, instruction: &'a Instruction) -> Result<(), DecodeError> {
        let fail = |message: Reason| Self::error(instruction.line, instruction.mnemonic(), message);
        let named = |(file, line): (u32, u32)| {
            let name = self.module.files.iter().find(|(index, _)| *index == file).map(|(_, name)| name.clone());
            (line > 0).then(|| (name.unwrap_or_default(), line))
        };
        let place = Place {
            ptx_line: instruction.line,
            instruction: instruction.mnemonic(),
            source: named(self.location.at),
            inlined_at: self.location.inlined_at.and_then(named),
        };
        let guard = match &instruction.guard {
            Some((name, negated)) => Some((self.predicate_named(name).map_err(fail)?, *negated)),
            None => None,
        };
        if instruction.opcode == "call" && self.inline(instruction, guard, &place)? {
            return Ok(());
        }
        let op = isa::decode(self, instruction).map_err(fail)?;
        self.push(op, guard, place);
        Ok(())
    }

    /// Decodes the body of a called function in the place of the call; `false` for functions of the system.
    fn inline(
        &mut self,
        instruction: &'a Instruction,
        guard: Option<(P, bool)>,
        place: &Place,
    ) -> Result<bool, DecodeError> {
        let fail = |message: String| Self::error(instruction.line, instruction.mnemonic(), message);
        let (results, name, arguments) = call_operands(&instruction.operands).map_err(fail)?;
        if isa::control::is_system_function(name) {
            return Ok(false);
        }
        let module = self.module;
        let function = module.functions.iter().find(|function| function.name == name && function.body.is_some());
        let Some((function, body)) = function.and_then(|function| Some((function, function.body.as_ref()?))) else {
            return Err(fail(format!(
                "there is no function {name} in the module, and indirect calls are not supported"
            )));
        };
        if self.calls.contains(&name) {
            return Err(fail(format!("{name} calls itself, which is not supported")));
        }
        if (results.len(), arguments.len()) != (function.returns.len(), function.parameters.len()) {
            return Err(fail(format!(
                "{name} takes {} arguments and returns {} values",
                function.parameters.len(),
                function.returns.len()
            )));
        }
        let (end, after) = (self.new_label(), self.new_label());
        if let Some((predicate, negated)) = guard {
            // Lanes outside of the guard skip the body.
            self.push(isa::control::branch(after), Some((predicate, !negated)), place.clone());
        }
        // Parameters are the function's own, so that what it does to them does not reach the caller.
        self.names.push(HashMap::new());
        let mut names = HashMap::new();
        for (operand, parameter) in arguments.iter().zip(&function.parameters) {
            let (symbol, copy) = self.parameter(operand, parameter).map_err(fail)?;
            if let Some([take, _]) = copy {
                self.copy(&take, place).map_err(fail)?;
            }
            names.insert(parameter.name.clone(), symbol);
        }
        let mut given_back = Vec::new();
        for (operand, parameter) in results.iter().zip(&function.returns) {
            let (symbol, copy) = self.parameter(operand, parameter).map_err(fail)?;
            given_back.extend(copy.map(|[_, give]| give));
            names.insert(parameter.name.clone(), symbol);
        }
        // The body sees its parameters and the module, nothing of the caller.
        let outer = std::mem::take(&mut self.names);
        self.names = vec![outer.first().cloned().unwrap_or_default(), names];
        self.calls.push(name);
        self.returns.push(end);
        self.statements(body)?;
        self.returns.pop();
        self.calls.pop();
        self.names = outer;
        self.place_label(end);
        for give in given_back {
            self.copy(&give, place).map_err(fail)?;
        }
        self.names.pop();
        self.place_label(after);
        Ok(true)
    }

    /// What a parameter of a function stands for when `operand` is given for it, and where that is a copy, the
    /// instructions that take it from the operand and give it back.
    fn parameter(
        &mut self,
        operand: &Operand,
        parameter: &Parameter,
    ) -> Result<(Symbol, Option<[Instruction; 2]>), Reason> {
        let outer = match operand {
            Operand::Name(name) => self.find(name),
            _ => None,
        };
        // No name in a program has a colon.
        let own = format!("call:{}", parameter.name);
        let instruction = |opcode: &str, modifiers: &[&str], operands: [Operand; 2]| Instruction {
            guard: None,
            opcode: opcode.to_owned(),
            modifiers: modifiers.iter().map(|&name| name.to_owned()).collect(),
            operands: operands.into(),
            line: 0,
        };
        let size = parameter.register.map_or(parameter.size, Type::size);
        let bits = match (parameter.register, size) {
            (Some(Type::Pred), _) => "pred",
            (_, 1) => "b8",
            (_, 2) => "b16",
            (_, 4) => "b32",
            (_, 8) => "b64",
            _ => "",
        };
        match (parameter.register, outer) {
            (None, Some(variable @ Symbol::Variable(Space::Local, _))) => Ok((variable, None)),
            (Some(_), Some(Symbol::Variable(..) | Symbol::Parameter(_))) => {
                Err(format!("a variable given for the register {}", parameter.name))
            }
            (Some(ty), _) => {
                self.declare_register(ty, &own)?;
                let name = Operand::Name(own.clone());
                let take = instruction("mov", &[bits], [name.clone(), operand.clone()]);
                let give = instruction("mov", &[bits], [operand.clone(), name]);
                Ok((self.find(&own).ok_or("a parameter was expected")?, Some([take, give])))
            }
            (None, _) => {
                let symbol = Symbol::Variable(Space::Local, self.new_local(size, parameter.align.max(16)) as u64);
                self.declare(&own, symbol.clone());
                let address = Operand::Address(Some(own), 0);
                let take = instruction("st", &["param", bits], [address.clone(), operand.clone()]);
                let give = instruction("ld", &["param", bits], [operand.clone(), address]);
                Ok((symbol, Some([take, give])))
            }
        }
    }

    fn copy(&mut self, instruction: &Instruction, place: &Place) -> Result<(), Reason> {
        let op = isa::decode(self, instruction)?;
        self.push(op, None, place.clone());
        Ok(())
    }

    fn finish(mut self, entry: &Function) -> Result<Program, DecodeError> {
        let end = self.steps.len();
        let targets: Vec<usize> = self.labels.iter().map(|label| label.unwrap_or(end)).collect();
        for step in &mut self.steps {
            step.op.resolve(&targets);
        }
        let threads = |[x, y, z]: [u32; 3]| x.saturating_mul(y).saturating_mul(z);
        Ok(Program {
            name: entry.name.clone(),
            steps: self.steps,
            places: self.places,
            registers: self.registers,
            specials: self.specials,
            parameters: self.parameters,
            static_shared: self.shared.end,
            dynamic_offset: self.dynamic_shared,
            local: self.local.next_multiple_of(16),
            max_threads: entry.max_threads.or(entry.required_threads).map_or(1024, threads),
            required_threads: entry.required_threads,
            min_blocks: entry.min_blocks,
            target: self.module.target.clone(),
            barriers: self.barriers,
        })
    }
}

/// Results, name and arguments of a call.
pub(crate) fn call_operands(operands: &[Operand]) -> Result<(&[Operand], &str, &[Operand]), Reason> {
    match operands {
        [Operand::Name(name)] => Ok((&[], name, &[])),
        [Operand::Name(name), Operand::List(arguments), ..] => Ok((&[], name, arguments)),
        [Operand::List(results), Operand::Name(name)] => Ok((results, name, &[])),
        [Operand::List(results), Operand::Name(name), Operand::List(arguments), ..] => Ok((results, name, arguments)),
        _ => Err("a function's name was expected".to_owned()),
    }
}

/// Where the shared variables of a kernel lie: those of its body, of the functions it calls (each once, however often it
/// is called), and those of the module that it names.
#[derive(Debug, Default)]
struct Layout<'a> {
    /// By the variable itself: names may repeat.
    addresses: HashMap<*const Variable, usize>,
    end: usize,
    functions: Vec<&'a str>,
    names: HashSet<&'a str>,
}

impl<'a> Layout<'a> {
    fn of(module: &'a Module, entry: &'a Function) -> Self {
        let mut layout = Self::default();
        layout.function(module, entry);
        for variable in &module.variables {
            let is_sized = variable.space == Space::Shared && variable.size.is_some();
            if is_sized && layout.names.contains(variable.name.as_str()) {
                layout.add(variable);
            }
        }
        layout
    }

    /// The address of a variable; that of one which is not named does not matter.
    fn address(&self, variable: &Variable) -> usize {
        self.addresses.get(&std::ptr::from_ref(variable)).copied().unwrap_or(0)
    }

    fn add(&mut self, variable: &Variable) {
        let start = self.end.next_multiple_of(variable.align.max(1));
        self.end = start + variable.size.unwrap_or(0);
        self.addresses.insert(std::ptr::from_ref(variable), start);
    }

    fn function(&mut self, module: &'a Module, function: &'a Function) {
        if !self.functions.contains(&function.name.as_str()) {
            self.functions.push(&function.name);
            self.statements(module, function.body.as_deref().unwrap_or_default());
        }
    }

    fn statements(&mut self, module: &'a Module, statements: &'a [Statement]) {
        for statement in statements {
            match statement {
                Statement::Variable(variable) if variable.space == Space::Shared => self.add(variable),
                Statement::Scope(inner) => self.statements(module, inner),
                Statement::Instruction(instruction) => {
                    instruction.operands.iter().for_each(|operand| self.operand(operand));
                    let name = call_operands(&instruction.operands).map(|(_, name, _)| name);
                    if instruction.opcode == "call"
                        && let Some(callee) = module.functions.iter().find(|f| Ok(f.name.as_str()) == name)
                    {
                        self.function(module, callee);
                    }
                }
                _ => {}
            }
        }
    }

    fn operand(&mut self, operand: &'a Operand) {
        match operand {
            Operand::Name(name) | Operand::Offset(name, _) | Operand::Address(Some(name), _) => {
                self.names.insert(name);
            }
            Operand::Vector(inner) | Operand::List(inner) => inner.iter().for_each(|operand| self.operand(operand)),
            Operand::Tensor(map, inner) => {
                self.operand(map);
                inner.iter().for_each(|operand| self.operand(operand));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
