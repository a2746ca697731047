//! `mma.sync` and `mma.sp.sync`: which forms there are, and what they compute.
//!
//! Floating-point products are exact in f64 and are added to the accumulator in f64, always in the same order (that of
//! [`product::accumulate`]), then rounded once to the type of D. The ISA asks for at least single precision and leaves
//! order, rounding and the handling of subnormal inputs open; the difference to any sum in single precision with depth k
//! is at most about (k + 1)·2⁻²³·Σ|aᵢbᵢ| (twice the unit roundoff, since hardware truncates). f16 accumulators are
//! rounded once an instruction. Inputs and results that are subnormal are kept. The f64 forms are sequences of fused
//! multiply-adds in ascending order of the depth.

use super::elements::{Bf16, E4m3, E5m2, F16, S4, S8, Tf32, U4, U8, f16_to_f32, round_to_f16, round_to_f32};
use super::product::{self, COLUMNS, Fragments, Selection, Sums};
use super::sparse::{Layout, Metadata};
use crate::isa;
use crate::machine::Fault;
use crate::machine::registers::{D, LANES, Registers, W, Word};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};

/// The type of a multiplicand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
    B1,
    F64,
}

impl Input {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "tf32" => Self::Tf32,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "b1" => Self::B1,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    pub(super) fn bits(self) -> usize {
        match self {
            Self::F64 => 64,
            Self::Tf32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 8,
            Self::S4 | Self::U4 => 4,
            Self::B1 => 1,
        }
    }

    /// Types that may be multiplied with each other have the same family.
    fn family(self) -> Self {
        match self {
            Self::U8 => Self::S8,
            Self::U4 => Self::S4,
            Self::E5m2 => Self::E4m3,
            _ => self,
        }
    }
}

/// The type of the accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accumulator {
    F16,
    F32,
    S32,
}

/// How bits are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    And,
    Xor,
}

/// D ← A·B + C with 32-bit registers.
#[derive(Clone, Debug)]
pub struct Multiply {
    /// Shape and types, as [`super::Op::flops`] gives them.
    pub name: String,
    rows: usize,
    depth: usize,
    inputs: (Input, Input),
    /// Of D and of C.
    accumulators: (Accumulator, Accumulator),
    bits: Bits,
    saturate: bool,
    d: [W; 4],
    a: [W; 4],
    b: [W; 4],
    c: [W; 4],
    a_registers: usize,
    b_registers: usize,
    d_registers: usize,
    c_registers: usize,
    metadata: Option<Metadata>,
}

/// D ← A·B + C in f64.
#[derive(Clone, Debug)]
pub struct MultiplyDoubles {
    /// Shape and types, as [`super::Op::flops`] gives them.
    pub name: String,
    rows: usize,
    depth: usize,
    d: Vec<D>,
    a: Vec<D>,
    b: Vec<D>,
    c: Vec<D>,
}

/// What the modifiers of an `mma` say.
struct Form<'a> {
    shape: &'a str,
    sparse: bool,
    ordered: bool,
    saturate: bool,
    types: [&'a str; 4],
    bits: Bits,
}

/// A form that exists.
struct Shape {
    rows: usize,
    depth: usize,
    inputs: (Input, Input),
    accumulator: Type,
}

impl<'a> Form<'a> {
    /// Takes them apart in the order that the ISA prescribes.
    fn parse(instruction: &'a Instruction) -> Option<Self> {
        let words: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
        let (sparse, ordered, words) = match words.as_slice() {
            ["sp", rest @ ..] => (true, false, rest),
            ["sp::ordered_metadata", rest @ ..] => (true, true, rest),
            all => (false, false, all),
        };
        let ["sync", "aligned", shape, "row", "col", rest @ ..] = words else { return None };
        let (saturate, rest) = match rest {
            ["satfinite", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let (types, bits) = match rest {
            [d, a, b, c] if (*a, *b) != ("b1", "b1") => ([*d, *a, *b, *c], Bits::And),
            [d, "b1", "b1", c, "and", "popc"] => ([*d, "b1", "b1", *c], Bits::And),
            [d, "b1", "b1", c, "xor", "popc"] => ([*d, "b1", "b1", *c], Bits::Xor),
            _ => return None,
        };
        Some(Self { shape, sparse, ordered, saturate, types, bits })
    }

    /// What it is, if there is such a form (ISA, "Multiply-and-Accumulate Instruction: mma" and "mma.sp").
    fn resolve(&self) -> Option<Shape> {
        let [d, a, b, c] = self.types;
        let (a, b) = (Input::parse(a)?, Input::parse(b)?);
        let float = matches!(a, Input::F16 | Input::E4m3 | Input::E5m2);
        let accumulator = match (d, c) {
            ("f32", "f32") if float || matches!(a, Input::Bf16 | Input::Tf32) => Type::F32,
            // ptxas knows no sparse form of 8 bits with sums in f16.
            ("f16", "f16") if float && (a == Input::F16 || !self.sparse) => Type::F16,
            ("s32", "s32") if matches!(a.family(), Input::S8 | Input::S4 | Input::B1) => Type::S32,
            ("f64", "f64") if a == Input::F64 => Type::F64,
            _ => return None,
        };
        if a.family() != b.family() || self.saturate && (accumulator != Type::S32 || a == Input::B1) {
            return None;
        }
        let (rows, depth) = match (self.sparse, a.family(), self.shape) {
            (false, Input::F16 | Input::Bf16, "m16n8k8") => (16, 8),
            (false, Input::F16 | Input::Bf16, "m16n8k16") => (16, 16),
            (false, Input::Tf32, "m16n8k4") => (16, 4),
            (false, Input::Tf32, "m16n8k8") => (16, 8),
            (false, Input::F64, "m8n8k4") => (8, 4),
            (false, Input::F64, "m16n8k4") => (16, 4),
            (false, Input::F64, "m16n8k8") => (16, 8),
            (false, Input::F64, "m16n8k16") => (16, 16),
            (false, Input::S8, "m8n8k16") => (8, 16),
            (false, Input::S8, "m16n8k16") => (16, 16),
            (false, Input::S8, "m16n8k32") => (16, 32),
            (false, Input::S4, "m8n8k32") => (8, 32),
            (false, Input::S4, "m16n8k32") => (16, 32),
            (false, Input::S4, "m16n8k64") => (16, 64),
            (false, Input::B1, "m8n8k128") => (8, 128),
            (false, Input::B1, "m16n8k128") => (16, 128),
            (false, Input::B1, "m16n8k256") => (16, 256),
            (false, Input::E4m3, "m16n8k16") => (16, 16),
            (false, Input::E4m3, "m16n8k32") => (16, 32),
            (true, Input::F16 | Input::Bf16, "m16n8k16") => (16, 16),
            (true, Input::F16 | Input::Bf16, "m16n8k32") => (16, 32),
            (true, Input::Tf32, "m16n8k8") => (16, 8),
            (true, Input::Tf32, "m16n8k16") => (16, 16),
            (true, Input::S8, "m16n8k32") => (16, 32),
            (true, Input::S8, "m16n8k64") => (16, 64),
            (true, Input::E4m3, "m16n8k64") => (16, 64),
            _ => return None,
        };
        Some(Shape { rows, depth, inputs: (a, b), accumulator })
    }

    fn name(&self) -> String {
        let sparse = if self.sparse { "sp." } else { "" };
        let [d, a, b, c] = self.types;
        format!("{sparse}{}.{d}.{a}.{b}.{c}", self.shape)
    }
}

/// Decodes an `mma`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<isa::Op, Reason> {
    let unknown = || format!("{} is not supported", instruction.mnemonic());
    let form = Form::parse(instruction).ok_or_else(unknown)?;
    let Shape { rows, depth, inputs, accumulator } = form.resolve().ok_or_else(unknown)?;
    let ([d, a, b, c], rest) = match instruction.operands.as_slice() {
        [d, a, b, c, rest @ ..] => ([d, a, b, c], rest),
        _ => return Err("mma takes four fragments".to_owned()),
    };
    if rest.len() != if form.sparse { 2 } else { 0 } {
        return Err("mma takes four fragments, mma.sp metadata and a selector as well".to_owned());
    }
    let halves = rows / 8;
    if let Type::F64 = accumulator {
        let op = MultiplyDoubles {
            name: form.name(),
            rows,
            depth,
            d: vector(d, 2 * halves)?
                .iter()
                .map(|operand| scope.double_to(operand, Type::F64))
                .collect::<Result<_, _>>()?,
            a: doubles(scope, a, halves * depth / 4)?,
            b: doubles(scope, b, depth / 4)?,
            c: doubles(scope, c, 2 * halves)?,
        };
        return Ok(isa::Op::Matrix(super::Op::MultiplyDoubles(Box::new(op))));
    }
    let words = depth * inputs.0.bits() / 32;
    let stored = if form.sparse { words / 2 } else { words };
    let (a_registers, b_registers) = (halves * stored.div_ceil(4), words / 4);
    let c_registers = if accumulator == Type::F16 { halves } else { 2 * halves };
    let metadata = match rest {
        [register, selector] => Some(metadata(scope, &form, inputs.0, depth, register, selector)?),
        _ => None,
    };
    let operand_type = if accumulator == Type::F16 { Type::B32 } else { accumulator };
    let kind = match accumulator {
        Type::F16 => Accumulator::F16,
        Type::F32 => Accumulator::F32,
        _ => Accumulator::S32,
    };
    let op = Multiply {
        name: form.name(),
        rows,
        depth,
        inputs,
        accumulators: (kind, kind),
        bits: form.bits,
        saturate: form.saturate,
        d: words_to(scope, d, c_registers)?,
        a: self::words(scope, a, a_registers, Type::B32)?,
        b: self::words(scope, b, b_registers, Type::B32)?,
        c: self::words(scope, c, c_registers, operand_type)?,
        a_registers,
        b_registers,
        d_registers: c_registers,
        c_registers,
        metadata,
    };
    Ok(isa::Op::Matrix(super::Op::Multiply(Box::new(op))))
}

fn metadata(
    scope: &mut Scope<'_>,
    form: &Form<'_>,
    input: Input,
    depth: usize,
    register: &Operand,
    selector: &Operand,
) -> Result<Metadata, Reason> {
    let chunk = if input == Input::Tf32 { 2 } else { 4 };
    let layout = Layout { chunk, chunks: depth / chunk, one_row: input.bits() == 8 };
    let &Operand::Integer(selector) = selector else {
        return Err("the sparsity selector must be a constant".to_owned());
    };
    if selector >= layout.selectors() {
        return Err(format!("a sparsity selector of {selector} where there are {}", layout.selectors()));
    }
    let register = scope.word(register, Type::B32)?;
    Ok(Metadata { layout, register, selector: selector as usize, ordered: form.ordered })
}

/// The elements of a vector operand, of which there must be `count`; a single register is a vector of one.
pub fn vector(operand: &Operand, count: usize) -> Result<&[Operand], Reason> {
    let elements = match operand {
        Operand::Vector(elements) => elements.as_slice(),
        single => std::slice::from_ref(single),
    };
    match elements.len() {
        len if len == count => Ok(elements),
        len => Err(format!("a vector of {len} registers where {count} are taken")),
    }
}

/// A vector of `count` source words; the others repeat the first one, and are not read.
pub fn words(scope: &mut Scope<'_>, operand: &Operand, count: usize, ty: Type) -> Result<[W; 4], Reason> {
    let mut registers = [W(0); 4];
    for (register, element) in registers.iter_mut().zip(vector(operand, count)?) {
        *register = scope.word(element, ty)?;
    }
    let first = registers[0];
    registers[count.min(4)..].fill(first);
    Ok(registers)
}

/// A vector of `count` destination words; the others repeat the first one, and are not written.
pub fn words_to(scope: &mut Scope<'_>, operand: &Operand, count: usize) -> Result<[W; 4], Reason> {
    let mut registers = [W(0); 4];
    for (register, element) in registers.iter_mut().zip(vector(operand, count)?) {
        *register = scope.word_to(element, Type::B32)?;
    }
    Ok(registers)
}

fn doubles(scope: &mut Scope<'_>, operand: &Operand, count: usize) -> Result<Vec<D>, Reason> {
    vector(operand, count)?.iter().map(|operand| scope.double(operand, Type::F64)).collect()
}

/// The registers of one of the products that an instruction on greater matrices is made of, each a part of its own.
pub(super) struct Tile<'a> {
    pub(super) d: &'a [W],
    pub(super) a: &'a [W],
    pub(super) b: &'a [W],
    pub(super) c: &'a [W],
}

impl Multiply {
    /// The product m16n8 of a tile.
    pub(super) fn of_tile(
        tile: &Tile<'_>,
        depth: usize,
        input: Input,
        accumulators: (Accumulator, Accumulator),
        saturate: bool,
    ) -> Self {
        let padded = |registers: &[W]| std::array::from_fn(|index| registers[index.min(registers.len() - 1)]);
        Self {
            name: String::new(),
            rows: product::ROWS,
            depth,
            inputs: (input, input),
            accumulators,
            bits: Bits::And,
            saturate,
            d: padded(tile.d),
            a: padded(tile.a),
            b: padded(tile.b),
            c: padded(tile.c),
            a_registers: tile.a.len(),
            b_registers: tile.b.len(),
            d_registers: tile.d.len(),
            c_registers: tile.c.len(),
            metadata: None,
        }
    }

    /// As [`super::Op::flops`] says.
    pub fn flops(&self) -> u64 {
        let stored = if self.metadata.is_some() { self.depth / 2 } else { self.depth };
        (2 * self.rows * COLUMNS * stored) as u64
    }

    /// Executes it for the whole warp.
    ///
    /// # Errors
    /// If metadata is not what the ISA allows.
    pub fn execute(&self, registers: &mut Registers) -> Result<(), Fault> {
        let selection = match &self.metadata {
            None => None,
            Some(metadata) => Some(metadata.selection(registers.word(metadata.register))?),
        };
        let d = self.dispatch(registers, selection.as_ref());
        for (register, values) in self.d.iter().zip(&d).take(self.d_registers) {
            registers.set_word(*register, u32::MAX, values);
        }
        Ok(())
    }

    /// [`Multiply::compute`] with the vector instructions of the machine.
    pub(super) fn dispatch(&self, registers: &Registers, selection: Option<&Selection>) -> [Word; 4] {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            #[target_feature(enable = "avx2,fma")]
            fn compute(op: &Multiply, registers: &Registers, selection: Option<&Selection>) -> [Word; 4] {
                op.compute(registers, selection)
            }
            // SAFETY: the features that the function is compiled for were just detected.
            return unsafe { compute(self, registers, selection) };
        }
        self.compute(registers, selection)
    }

    /// The registers of D.
    #[inline(always)]
    fn compute(&self, registers: &Registers, selection: Option<&Selection>) -> [Word; 4] {
        let fragments = Fragments {
            a: self.a.map(|register| registers.word(register)),
            b: self.b.map(|register| registers.word(register)),
            a_registers: self.a_registers,
            b_registers: self.b_registers,
            selection,
        };
        let c = self.c.map(|register| registers.word(register));
        let c = &c[..self.c_registers];
        match self.accumulators {
            (d @ (Accumulator::F32 | Accumulator::F16), c_type) => {
                let mut sums = match c_type {
                    Accumulator::F16 => product::gather_pairs(c, |bits| f64::from(f16_to_f32(bits))),
                    _ => product::gather(c, |bits| f64::from(f32::from_bits(bits))),
                };
                self.accumulate_floats(&fragments, &mut sums);
                std::array::from_fn(|number| match d {
                    Accumulator::F16 => product::scatter_pairs(&sums, number, round_to_f16),
                    _ => product::scatter(&sums, number, round_to_f32),
                })
            }
            (Accumulator::S32, _) => {
                // Sums of products cannot overflow 32 bits; adding C to them can.
                let mut sums = [[0; COLUMNS]; product::ROWS];
                self.accumulate_integers(&fragments, &mut sums);
                let saturate = self.saturate;
                std::array::from_fn(|number| {
                    let products = product::scatter(&sums, number, |sum| sum as u32);
                    let c = c.get(number).copied().unwrap_or(&[0; LANES]);
                    std::array::from_fn(|lane| {
                        let (product, c) = (products[lane] as i32, c[lane] as i32);
                        if saturate { product.saturating_add(c) as u32 } else { product.wrapping_add(c) as u32 }
                    })
                })
            }
        }
    }

    #[inline(always)]
    fn accumulate_floats(&self, fragments: &Fragments<'_>, sums: &mut Sums<f64>) {
        match self.inputs {
            (Input::F16, _) => product::accumulate::<F16, F16>(fragments, sums),
            (Input::Bf16, _) => product::accumulate::<Bf16, Bf16>(fragments, sums),
            (Input::Tf32, _) => product::accumulate::<Tf32, Tf32>(fragments, sums),
            (Input::E4m3, Input::E4m3) => product::accumulate::<E4m3, E4m3>(fragments, sums),
            (Input::E4m3, _) => product::accumulate::<E4m3, E5m2>(fragments, sums),
            (_, Input::E4m3) => product::accumulate::<E5m2, E4m3>(fragments, sums),
            _ => product::accumulate::<E5m2, E5m2>(fragments, sums),
        }
    }

    #[inline(always)]
    fn accumulate_integers(&self, fragments: &Fragments<'_>, sums: &mut Sums<i32>) {
        match self.inputs {
            (Input::S8, Input::S8) => product::accumulate::<S8, S8>(fragments, sums),
            (Input::S8, _) => product::accumulate::<S8, U8>(fragments, sums),
            (Input::U8, Input::S8) => product::accumulate::<U8, S8>(fragments, sums),
            (Input::U8, _) => product::accumulate::<U8, U8>(fragments, sums),
            (Input::S4, Input::S4) => product::accumulate::<S4, S4>(fragments, sums),
            (Input::S4, _) => product::accumulate::<S4, U4>(fragments, sums),
            (Input::U4, Input::S4) => product::accumulate::<U4, S4>(fragments, sums),
            (Input::U4, _) => product::accumulate::<U4, U4>(fragments, sums),
            _ => match self.bits {
                Bits::And => product::accumulate_bits(fragments, sums, |a, b| a & b),
                Bits::Xor => product::accumulate_bits(fragments, sums, |a, b| a ^ b),
            },
        }
    }
}

impl MultiplyDoubles {
    /// The product m8n8k4 of these registers.
    pub(super) fn m8n8k4(name: String, [d, a, b, c]: [Vec<D>; 4]) -> Self {
        Self { name, rows: 8, depth: 4, d, a, b, c }
    }

    /// As [`super::Op::flops`] says.
    pub fn flops(&self) -> u64 {
        (2 * self.rows * COLUMNS * self.depth) as u64
    }

    /// Executes it for the whole warp. Its layout is that of [`product`], a double for a word.
    pub fn execute(&self, registers: &mut Registers) {
        let halves = self.rows / 8;
        let d: Vec<[u64; LANES]> = (0..2 * halves)
            .map(|number| {
                let (half, column) = (number / 2, number % 2);
                let c = registers.double(self.c[number]);
                std::array::from_fn(|lane| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + column);
                    let mut sum = f64::from_bits(c[lane]);
                    for depth in 0..self.depth {
                        let a = registers.double(self.a[depth / 4 * halves + half])[4 * row + depth % 4];
                        let b = registers.double(self.b[depth / 4])[4 * column + depth % 4];
                        sum = f64::from_bits(a).mul_add(f64::from_bits(b), sum);
                    }
                    if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() }
                })
            })
            .collect();
        for (register, values) in self.d.iter().zip(&d) {
            registers.set_double(*register, u32::MAX, values);
        }
    }
}

#[cfg(test)]
mod tests;
