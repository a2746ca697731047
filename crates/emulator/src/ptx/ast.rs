//! What a PTX module says, as a tree. Opcodes and their modifiers stay words here: what they mean is decided where
//! instructions are decoded, family by family.

use std::fmt;

/// A parsed module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// `.version`: major and minor.
    pub version: (u32, u32),
    /// `.target`.
    pub target: Target,
    /// `.file`: index and name, of which `.loc` speaks.
    pub files: Vec<(u32, String)>,
    /// Variables of the module, in the order of their declarations.
    pub variables: Vec<Variable>,
    /// Kernels and device functions, declarations included.
    pub functions: Vec<Function>,
}

/// A `.target` such as `sm_90a`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// 80 for sm_80.
    pub architecture: u32,
    /// `a` or `f`, for features of one architecture or family.
    pub suffix: Option<char>,
}

impl Target {
    /// The first version of PTX that has it, as ptxas sees it: suffixes `a` come with their architecture (from sm_90 on),
    /// families (`f`) with 8.8. `None` for a target that is not known.
    pub fn first_version(&self) -> Option<(u32, u32)> {
        let architecture = match self.architecture {
            80 | 86..=90 => (8, 0),
            100 | 101 => (8, 6),
            120 => (8, 7),
            103 | 121 => (8, 8),
            110 => (9, 0),
            _ => return None,
        };
        match self.suffix {
            None => Some(architecture),
            Some('a') if self.architecture >= 90 => Some(architecture),
            Some('f') if self.architecture >= 100 => Some(architecture.max((8, 8))),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.architecture)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.global`.
    Global,
    /// `.const`.
    Constant,
    /// `.shared`, also written `.shared::cta` and `.shared::cluster` in instructions.
    Shared,
    /// `.local`.
    Local,
    /// `.param`.
    Parameter,
}

/// A fundamental type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in PTX
pub enum Type {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    B8,
    B16,
    B32,
    B64,
    B128,
    Pred,
}

impl Type {
    /// The type of this name, without the dot.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    /// Its size in bytes; a predicate counts as one.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::S8 | Self::B8 | Self::Pred => 1,
            Self::U16 | Self::S16 | Self::F16 | Self::Bf16 | Self::B16 => 2,
            Self::U32 | Self::S32 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 | Self::B32 => 4,
            Self::U64 | Self::S64 | Self::F64 | Self::B64 => 8,
            Self::B128 => 16,
        }
    }

    /// Whether it is a signed integer.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Whether it is an integer, signed or not.
    pub fn is_integer(self) -> bool {
        self.is_signed() || matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }
}

/// `.global .align 4 .f32 name[2] = {…};` and its like, in a module or in a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Its alignment in bytes: as declared, else that of its type.
    pub align: usize,
    /// Its size in bytes; `None` for an array without length (`.extern .shared .b8 s[]`), which takes what the launch
    /// gives.
    pub size: Option<usize>,
    /// Its initial bytes from the first on; what they do not reach is zero.
    pub initial: Vec<u8>,
    /// Addresses to be written into it: at this byte the address of that name plus so many bytes, 8 bytes each.
    pub addresses: Vec<(usize, String, i64)>,
    /// Whether it is declared here and defined elsewhere (`.extern`).
    pub external: bool,
    /// The line of the text, from 1.
    pub line: u32,
}

/// A kernel (`.entry`) or a device function (`.func`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it can be launched.
    pub is_entry: bool,
    /// What it returns; kernels nothing.
    pub returns: Vec<Parameter>,
    /// What it is given.
    pub parameters: Vec<Parameter>,
    /// `.maxntid`: the most threads of a block, along each axis.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: exactly so many threads.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: thread blocks of a cluster, along each axis.
    pub cluster: Option<[u32; 3]>,
    /// Whether a directive speaks of clusters.
    pub clustered: bool,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// Statements; `None` for a declaration.
    pub body: Option<Vec<Statement>>,
    /// The line of the text, from 1.
    pub line: u32,
}

/// A parameter or return value, in `.param` space or (of functions) in a register.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
    /// Its type where it is a `.reg` parameter.
    pub register: Option<Type>,
}

/// A statement of a function's body.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `name:`.
    Label(String),
    /// `.reg .b32 %r<3>, %x;`: the type and the names, where `<3>` is written out as `%r0`, `%r1`, `%r2`.
    Registers(Type, Vec<String>),
    /// A variable of the function.
    Variable(Variable),
    /// An instruction.
    Instruction(Instruction),
    /// `.loc file line …`: where what follows comes from.
    Location {
        /// Index of the file, as in [`Module::files`].
        file: u32,
        /// Its line, from 1.
        line: u32,
        /// File and line of the call, where it stands in a function that was inlined.
        inlined_at: Option<(u32, u32)>,
    },
    /// `{ … }`: names declared inside end with it.
    Scope(Vec<Statement>),
    /// `name: .branchtargets a, b, c;`, for `brx.idx`.
    BranchTargets(String, Vec<String>),
}

/// One instruction: `@!%p opcode.modifier.modifier operand, operand;`.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// The predicate that lanes must have, and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The word before the first dot.
    pub opcode: String,
    /// The words between dots, `::` included: `global`, `v4`, `L2::128B`, `mbarrier::arrive::one`.
    pub modifiers: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// The line of the text where it begins, from 1.
    pub line: u32,
}

impl Instruction {
    /// Whether a modifier is among its own.
    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers.iter().any(|own| own == modifier)
    }

    /// Its types, in order: those modifiers that name one.
    pub fn types(&self) -> impl Iterator<Item = Type> + '_ {
        self.modifiers.iter().filter_map(|modifier| Type::parse(modifier))
    }

    /// The last of its types, which is that of the operation for nearly all instructions.
    pub fn last_type(&self) -> Option<Type> {
        self.types().last()
    }

    /// Opcode and modifiers as written.
    pub fn mnemonic(&self) -> String {
        let mut name = self.opcode.clone();
        for modifier in &self.modifiers {
            name.push('.');
            name.push_str(modifier);
        }
        name
    }
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, a special register (`%tid.x`, one name), a variable, a label or a function.
    Name(String),
    /// `name+4`: the address of a variable with an offset.
    Offset(String, i64),
    /// An integer; negative ones as their two's complement in 64 bits.
    Integer(u64),
    /// `0f3F800000`: the bits.
    Single(u32),
    /// `0d3FF0000000000000`, or a decimal fraction: the bits.
    Double(u64),
    /// `[name+4]`, `[name]`, `[4]` (no name).
    Address(Option<String>, i64),
    /// `{a, b, _}`.
    Vector(Vec<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `[tensorMap, {x, y}]`: the address of a tensor map, and coordinates.
    Tensor(Box<Operand>, Vec<Operand>),
    /// `!%p`.
    Not(String),
    /// `%p|%q`, `%r|%p`: two destinations; the second of them, and also the first, may be `_`.
    Pair(String, String),
    /// `_`: nothing is written.
    Sink,
}
