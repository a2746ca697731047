//! `wmma.load`, `wmma.mma` and `wmma.store`.
//!
//! PTX leaves open which elements a fragment holds. The layout here is the one that ptxas compiles for sm_80, read from
//! what it makes of loads of single fragments: products of the shape m16n8, side by side or one above the other, with the
//! fragments that `mma` has (see [`product`](super::product)). A matrix is a series of *blocks* of 8 *lines*; in each
//! block, lane 4·g + p holds the elements of line g from place p·`count` on. Lines of A are rows and those of B columns,
//! places the depth. m8n32 is m32n8 with everything transposed.
//!
//! ```text
//! wide   A of m16n16 and m32n8, B of m8n32:    16 lines after 16 lines, in these depth after depth, in these 8 and 8 lines
//! narrow B of m16n16 and m32n8, A of m8n32:    8 lines after 8 lines, in these depth after depth
//! C, D   of m16n16: 8 columns and 8 columns; of m32n8: 16 rows and 16 rows; in these 8 and 8 rows
//! ```
//!
//! Multiplicands of f16 always have eight registers: where they need fewer, the first ones are repeated.

use super::Op;
use super::mma::{self, Accumulator, Input, MultiplyDoubles, Tile, vector};
use crate::isa::memory::{Register, addresses as lane_addresses, space};
use crate::machine::context::{Context, LaneBytes, WIDEST, Where};
use crate::machine::registers::{D, Double, LANES, Registers, W};
use crate::machine::{Class, Fault};
use crate::program::{Address, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
use crate::report::Kind;

/// Rows, columns and depth of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    columns: usize,
    depth: usize,
}

impl Shape {
    fn parse(name: &str) -> Option<Self> {
        let (rows, columns, depth) = match name {
            "m16n16k16" => (16, 16, 16),
            "m8n32k16" => (8, 32, 16),
            "m32n8k16" => (32, 8, 16),
            "m16n16k8" => (16, 16, 8),
            "m8n8k4" => (8, 8, 4),
            _ => return None,
        };
        Some(Self { rows, columns, depth })
    }

    /// Whether it has multiplicands of this type.
    fn takes(self, input: Input) -> bool {
        match input {
            Input::F16 | Input::Bf16 | Input::S8 | Input::U8 => self.depth == 16,
            Input::Tf32 => self.depth == 8,
            Input::F64 => self.depth == 4,
            _ => false,
        }
    }

    /// Whether products are computed as Dᵀ = Bᵀ·Aᵀ.
    fn is_turned(self) -> bool {
        self.columns == 32
    }
}

/// A matrix of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matrix {
    A,
    B,
    /// C or D.
    Sum,
}

/// Where the elements of a fragment are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes of an element.
    element: usize,
    /// Elements that a lane holds of each block.
    count: usize,
    /// The first line and place of each block.
    blocks: Vec<(usize, usize)>,
    /// Registers of the fragment.
    registers: usize,
    /// Whether lines are columns.
    by_column: bool,
}

impl Layout {
    fn new(matrix: Matrix, shape: Shape, ty: Type) -> Self {
        let element = ty.size();
        if matrix == Matrix::Sum {
            let turned = shape.is_turned();
            let (lines, places) = if turned { (shape.columns, shape.rows) } else { (shape.rows, shape.columns) };
            let mut blocks = Vec::new();
            for first in (0..lines).step_by(16) {
                for place in (0..places).step_by(8) {
                    blocks.extend((first..lines.min(first + 16)).step_by(8).map(|line| (line, place)));
                }
            }
            let registers = if element == 2 { blocks.len() } else { 2 * blocks.len() };
            return Self { element, count: 2, blocks, registers, by_column: turned };
        }
        let by_column = matrix == Matrix::B;
        let lines = if by_column { shape.columns } else { shape.rows };
        let count = 4usize.div_ceil(element);
        // Of the two multiplicands, that with more lines is the wide one, A if they have the same.
        let is_wide = shape.depth > 4 && by_column == shape.is_turned();
        let tile = if is_wide { 16 } else { 8 };
        let mut blocks = Vec::new();
        for first in (0..lines).step_by(tile) {
            for place in (0..shape.depth).step_by(4 * count) {
                blocks.extend((first..first + tile).step_by(8).map(|line| (line, place)));
            }
        }
        let registers = if ty == Type::F16 { 8 } else { blocks.len() };
        Self { element, count, blocks, registers, by_column }
    }

    /// Bytes of a fragment, of one lane.
    fn bytes(&self) -> usize {
        self.registers * self.element.max(4)
    }
}

/// `wmma.load` and `wmma.store`.
#[derive(Clone, Debug)]
pub struct Transfer {
    store: bool,
    layout: Layout,
    /// Whether the elements of a line lie side by side in memory.
    along: bool,
    registers: Vec<Register>,
    at: Where,
    address: Address,
    /// Elements from one row or column in memory to the next.
    stride: W,
}

/// `wmma.mma`, but of f64: products of tiles.
#[derive(Clone, Debug)]
pub struct Multiply {
    /// Shape and types, as [`super::Op::flops`] gives them.
    pub name: String,
    /// Operations, likewise.
    pub flops: u64,
    tiles: Vec<mma::Multiply>,
    d: Vec<W>,
}

/// Decodes a `wmma`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let modifiers: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    let op = match modifiers.as_slice() {
        ["load", matrix, "sync", "aligned", layout @ ("row" | "col"), rest @ ..] => {
            let matrix = match *matrix {
                "a" => Some(Matrix::A),
                "b" => Some(Matrix::B),
                "c" => Some(Matrix::Sum),
                _ => None,
            };
            matrix.map(|matrix| transfer(scope, instruction, matrix, false, *layout == "row", rest))
        }
        ["store", "d", "sync", "aligned", layout @ ("row" | "col"), rest @ ..] => {
            Some(transfer(scope, instruction, Matrix::Sum, true, *layout == "row", rest))
        }
        ["mma", "sync", "aligned", "row" | "col", "row" | "col", shape, rest @ ..] => {
            Some(multiply(scope, instruction, shape, rest))
        }
        _ => None,
    };
    op.unwrap_or_else(|| Err(unknown(instruction)))
}

fn unknown(instruction: &Instruction) -> Reason {
    format!("{} is not supported", instruction.mnemonic())
}

/// The type that a matrix may have in a product of this shape.
fn element_type(matrix: Matrix, shape: Shape, name: &str) -> Option<Type> {
    let is_there = match matrix {
        Matrix::A | Matrix::B => Input::parse(name).is_some_and(|input| shape.takes(input)),
        Matrix::Sum => match name {
            "f16" | "s32" => shape.depth == 16,
            "f32" => shape.depth >= 8,
            "f64" => shape.depth == 4,
            _ => false,
        },
    };
    // Loads of tf32 take all 32 bits.
    let ty = if name == "tf32" { Some(Type::B32) } else { Type::parse(name) };
    ty.filter(|_| is_there)
}

fn register(scope: &mut Scope<'_>, operand: &Operand, ty: Type, source: bool) -> Result<Register, Reason> {
    // Registers that hold several elements are of untyped bits, or what agrees with the pair or the four.
    let word = match ty {
        Type::F16 => Type::F16x2,
        Type::S8 | Type::U8 => Type::U32,
        // As pairs of bf16, tf32 agrees with untyped bits only.
        Type::Bf16 | Type::B32 => Type::Bf16x2,
        ty => ty,
    };
    Ok(match (ty, source) {
        (Type::F64, true) => Register::Double(scope.double(operand, ty)?),
        (Type::F64, false) => Register::Double(scope.double_to(operand, Type::F64)?),
        (_, true) => Register::Word(scope.word(operand, word)?),
        (_, false) => Register::Word(scope.word_to(operand, word)?),
    })
}

fn transfer(
    scope: &mut Scope<'_>,
    instruction: &Instruction,
    matrix: Matrix,
    store: bool,
    by_row: bool,
    rest: &[&str],
) -> Result<Op, Reason> {
    let (shape, named, ty) = match rest {
        [shape, ty] => (shape, None, ty),
        [shape, named, ty] => match space(named) {
            Some(space @ (Space::Global | Space::Shared)) => (shape, Some(space), ty),
            _ => return Err(unknown(instruction)),
        },
        _ => return Err(unknown(instruction)),
    };
    let shape = Shape::parse(shape).ok_or_else(|| unknown(instruction))?;
    let ty = element_type(matrix, shape, ty).ok_or_else(|| unknown(instruction))?;
    let (fragment, address, stride) = match (store, instruction.operands.as_slice()) {
        (false, [fragment, address, stride @ ..]) if stride.len() < 2 => (fragment, address, stride.first()),
        (true, [address, fragment, stride @ ..]) if stride.len() < 2 => (fragment, address, stride.first()),
        _ => return Err("a fragment, an address and at most a stride were expected".to_owned()),
    };
    let layout = Layout::new(matrix, shape, ty);
    let registers = vector(fragment, layout.registers)?
        .iter()
        .map(|operand| register(scope, operand, ty, store))
        .collect::<Result<_, _>>()?;
    let (address, of_variable) = scope.address(address)?;
    let at = match named.or(of_variable) {
        Some(space @ (Space::Global | Space::Shared)) => Where::In(space),
        None => Where::Generic,
        Some(_) => return Err("matrices must be in global or in shared memory".to_owned()),
    };
    // Without a stride, rows or columns follow each other without a gap.
    let (rows, columns) = match matrix {
        Matrix::A => (shape.rows, shape.depth),
        Matrix::B => (shape.depth, shape.columns),
        Matrix::Sum => (shape.rows, shape.columns),
    };
    let dense = Operand::Integer(if by_row { columns } else { rows } as u64);
    let stride = scope.word(stride.unwrap_or(&dense), Type::U32)?;
    let along = by_row != layout.by_column;
    Ok(Op::Transfer(Box::new(Transfer { store, layout, along, registers, at, address, stride })))
}

fn multiply(scope: &mut Scope<'_>, instruction: &Instruction, name: &str, rest: &[&str]) -> Result<Op, Reason> {
    let (types, saturate) = match rest {
        [d @ ("f16" | "f32"), c @ ("f16" | "f32")] => ([*d, "f16", *c], false),
        ["f32", a @ ("bf16" | "tf32"), b, "f32"] if a == b => (["f32", *a, "f32"], false),
        ["s32", a @ ("s8" | "u8"), b, "s32", saturate @ ..] if a == b && matches!(saturate, [] | ["satfinite"]) => {
            (["s32", *a, "s32"], !saturate.is_empty())
        }
        ["f64", "f64", "f64", "f64"]
        | ["rn", "f64", "f64", "f64", "f64"]
        // The ISA has the rounding before the types; ptxas takes it behind them, too.
        | ["f64", "f64", "f64", "f64", "rn"] => (["f64"; 3], false),
        _ => return Err(unknown(instruction)),
    };
    let shape = Shape::parse(name).ok_or_else(|| unknown(instruction))?;
    let [d_type, input, c_type] = types;
    let (Some(d_type), Some(ty), Some(c_type), Some(kind)) = (
        element_type(Matrix::Sum, shape, d_type),
        element_type(Matrix::A, shape, input),
        element_type(Matrix::Sum, shape, c_type),
        Input::parse(input),
    ) else {
        return Err(unknown(instruction));
    };
    let [d, a, b, c] = instruction.operands.as_slice() else { return Err("wmma.mma takes four fragments".to_owned()) };
    let name = format!("wmma.{name}.{}.{input}.{input}.{}", types[0], types[2]);
    let matrices = [(d, Matrix::Sum, d_type), (a, Matrix::A, ty), (b, Matrix::B, ty), (c, Matrix::Sum, c_type)];
    let mut fragments = Vec::new();
    for (number, (operand, matrix, ty)) in matrices.into_iter().enumerate() {
        let layout = Layout::new(matrix, shape, ty);
        // Repeated registers are not read.
        let used = if matrix == Matrix::Sum { layout.registers } else { layout.blocks.len() };
        let registers = vector(operand, layout.registers)?
            .iter()
            .map(|operand| register(scope, operand, ty, number > 0))
            .collect::<Result<Vec<_>, _>>()?;
        fragments.push(registers.into_iter().take(used).collect::<Vec<_>>());
    }
    if kind == Input::F64 {
        let doubles = std::array::from_fn(|index| doubles(&fragments[index]));
        return Ok(Op::MultiplyDoubles(Box::new(MultiplyDoubles::m8n8k4(name, doubles))));
    }
    let [d, a, b, c] = std::array::from_fn(|index| words(&fragments[index]));
    let (wide, narrow) = if shape.is_turned() { (&b, &a) } else { (&a, &b) };
    let accumulators = [d_type, c_type].map(|ty| match ty {
        Type::F16 => Accumulator::F16,
        Type::F32 => Accumulator::F32,
        _ => Accumulator::S32,
    });
    // Every shape is made of two products m16n8: of one wide tile with two narrow ones, or the reverse.
    let half = |registers: &[W], number: usize, is_split: bool| -> std::ops::Range<usize> {
        let size = registers.len() / if is_split { 2 } else { 1 };
        if is_split { number * size..(number + 1) * size } else { 0..size }
    };
    let is_square = shape.rows == shape.columns;
    let tiles = (0..2)
        .map(|number| {
            let tile = Tile {
                d: &d[half(&d, number, true)],
                a: &wide[half(wide, number, !is_square)],
                b: &narrow[half(narrow, number, is_square)],
                c: &c[half(&c, number, true)],
            };
            mma::Multiply::of_tile(&tile, shape.depth, kind, (accumulators[0], accumulators[1]), saturate)
        })
        .collect();
    let flops = (2 * shape.rows * shape.columns * shape.depth) as u64;
    Ok(Op::MultiplyTiles(Box::new(Multiply { name, flops, tiles, d })))
}

fn words(registers: &[Register]) -> Vec<W> {
    let word = |register: &Register| match register {
        Register::Word(word) => Some(*word),
        Register::Double(_) => None,
    };
    registers.iter().filter_map(word).collect()
}

fn doubles(registers: &[Register]) -> Vec<D> {
    let double = |register: &Register| match register {
        Register::Double(double) => Some(*double),
        Register::Word(_) => None,
    };
    registers.iter().filter_map(double).collect()
}

/// The elements of one block: of each lane up to four.
type Elements = [[u64; LANES]; 4];

impl Transfer {
    /// What a profile counts it as.
    pub fn class(&self) -> Class {
        match (self.at, self.store) {
            (Where::In(Space::Shared), false) => Class::LoadShared,
            (Where::In(Space::Shared), true) => Class::StoreShared,
            (_, false) => Class::LoadGlobal,
            (_, true) => Class::StoreGlobal,
        }
    }

    /// Executes it for the whole warp.
    ///
    /// # Errors
    /// If lanes do not agree where the matrix is, or it is not there.
    pub fn execute(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let (addresses, strides) = (lane_addresses(context, &self.address), *context.registers.word(self.stride));
        let (base, stride) = (addresses[0], u64::from(strides[0]));
        if let Some(lane) = (0..LANES).find(|&lane| addresses[lane] != base || u64::from(strides[lane]) != stride) {
            return Err(Fault::lane(Kind::Undefined, lane, "names another matrix or stride than lane 0 of its warp"));
        }
        self.check_alignment(base, stride)?;
        for (number, &block) in self.layout.blocks.iter().enumerate() {
            if self.store {
                let elements = self.elements_of(context.registers, number);
                self.store_block(context, (base, stride), block, &elements)?;
            } else {
                let elements = self.load_block(context, (base, stride), block)?;
                self.set_elements(context.registers, number, &elements);
            }
        }
        Ok(())
    }

    /// ISA, "Matrix Storage for WMMA": every row or column begins at a multiple of the size of a fragment. CUDA asks for
    /// no more of a stride than 16 bytes, and kernels that pad their rows rely on it.
    fn check_alignment(&self, base: u64, stride: u64) -> Result<(), Fault> {
        let fragment = self.layout.bytes() as u64;
        let between = stride * self.layout.element as u64;
        if base.is_multiple_of(fragment) && between.is_multiple_of(fragment.min(16)) {
            return Ok(());
        }
        let message = format!(
            "a matrix at {base:#x} with {between} bytes from line to line: the first must be a multiple of {fragment}, the \
             other of {}",
            fragment.min(16)
        );
        Err(Fault::lane(Kind::Misaligned, 0, message))
    }

    /// The address of an element.
    #[inline(always)]
    fn element(&self, (base, stride): (u64, u64), line: usize, place: usize) -> u64 {
        let (outer, inner) = if self.along { (line, place) } else { (place, line) };
        base.wrapping_add((outer as u64 * stride + inner as u64) * self.layout.element as u64)
    }

    /// How a block is accessed: for each access the elements it covers (all, or one), the addresses, and the bytes.
    /// Elements that lie side by side are accessed together. Pairs of 16 bits that do not are accessed with their
    /// neighbours of the next line instead, and then exchanged between lanes.
    fn accesses(&self, at: (u64, u64), (line, place): (usize, usize)) -> Vec<(Double, usize)> {
        let Layout { element, count, .. } = self.layout;
        if self.along {
            let addresses = |lane: usize| self.element(at, line + lane / 4, place + count * (lane % 4));
            return vec![(std::array::from_fn(addresses), element * count)];
        }
        if element == 2 {
            let addresses = |lane: usize| self.element(at, line + 2 * (lane % 4), place + lane / 4);
            return vec![(std::array::from_fn(addresses), 4)];
        }
        let single = |index: usize| {
            let addresses = |lane: usize| self.element(at, line + lane / 4, place + count * (lane % 4) + index);
            (std::array::from_fn(addresses), element)
        };
        (0..count).map(single).collect()
    }

    fn is_exchanged(&self) -> bool {
        !self.along && self.layout.element == 2
    }

    fn load_block(&self, context: &mut Context<'_>, at: (u64, u64), block: (usize, usize)) -> Result<Elements, Fault> {
        let mut elements = [[0; LANES]; 4];
        let size = self.layout.element;
        let mut next = 0;
        for (addresses, bytes) in self.accesses(at, block) {
            let values = context.load(u32::MAX, self.at, &addresses, bytes)?;
            for index in 0..bytes / size {
                elements[next] = std::array::from_fn(|lane| {
                    let mut element = [0; 8];
                    element[..size].copy_from_slice(&values[lane][index * size..(index + 1) * size]);
                    u64::from_le_bytes(element)
                });
                next += 1;
            }
        }
        Ok(if self.is_exchanged() { exchange(&elements) } else { elements })
    }

    fn store_block(
        &self,
        context: &mut Context<'_>,
        at: (u64, u64),
        block: (usize, usize),
        elements: &Elements,
    ) -> Result<(), Fault> {
        let elements = if self.is_exchanged() { exchange(elements) } else { *elements };
        let size = self.layout.element;
        let mut next = 0;
        for (addresses, bytes) in self.accesses(at, block) {
            let mut values: LaneBytes = [[0; WIDEST]; LANES];
            for index in 0..bytes / size {
                for (value, element) in values.iter_mut().zip(&elements[next]) {
                    value[index * size..(index + 1) * size].copy_from_slice(&element.to_le_bytes()[..size]);
                }
                next += 1;
            }
            context.store(u32::MAX, self.at, &addresses, bytes, &values)?;
        }
        Ok(())
    }

    /// The elements of a block as the registers hold them.
    fn elements_of(&self, registers: &Registers, block: usize) -> Elements {
        let Layout { element, count, .. } = self.layout;
        let mut elements = [[0; LANES]; 4];
        for (index, values) in elements.iter_mut().enumerate().take(count) {
            let packed = element < 4;
            let number = if packed || count == 1 { block } else { block * count + index };
            let shift = if packed { 8 * element * index } else { 0 };
            match self.registers[number] {
                Register::Word(word) => {
                    let mask = u64::MAX >> (64 - 8 * element);
                    let word = registers.word(word);
                    *values = std::array::from_fn(|lane| u64::from(word[lane]) >> shift & mask);
                }
                Register::Double(double) => *values = *registers.double(double),
            }
        }
        elements
    }

    /// The reverse of [`Transfer::elements_of`], into every register that holds the block.
    fn set_elements(&self, registers: &mut Registers, block: usize, elements: &Elements) {
        let Layout { element, count, ref blocks, .. } = self.layout;
        if element < 4 {
            let word = |lane: usize| {
                let join = |word: u32, index: usize| word | (elements[index][lane] as u32) << (8 * element * index);
                (0..count).fold(0, join)
            };
            let word = std::array::from_fn(word);
            for register in self.registers.iter().skip(block).step_by(blocks.len()) {
                if let Register::Word(to) = register {
                    registers.set_word(*to, u32::MAX, &word);
                }
            }
            return;
        }
        for (register, values) in self.registers[block * count..].iter().zip(&elements[..count]) {
            match register {
                Register::Word(to) => registers.set_word(*to, u32::MAX, &values.map(|value| value as u32)),
                Register::Double(to) => registers.set_double(*to, u32::MAX, values),
            }
        }
    }
}

/// Transposes 8 × 8 elements of which lane 4·g + p holds two, 2p and 2p + 1 of line g.
fn exchange(elements: &Elements) -> Elements {
    let mut to = [[0; LANES]; 4];
    for (index, values) in to.iter_mut().enumerate().take(2) {
        for (lane, value) in values.iter_mut().enumerate() {
            let (line, place) = (lane % 4 * 2 + index, lane / 4);
            *value = elements[place % 2][4 * line + place / 2];
        }
    }
    to
}

impl Multiply {
    /// Executes it for the whole warp.
    pub fn execute(&self, registers: &mut Registers) {
        // D may share registers with A and B: all is read before anything is written.
        let tiles: Vec<_> = self.tiles.iter().map(|tile| tile.dispatch(registers, None)).collect();
        let each = self.d.len() / self.tiles.len().max(1);
        for (number, register) in self.d.iter().enumerate() {
            registers.set_word(*register, u32::MAX, &tiles[number / each][number % each]);
        }
    }
}

#[cfg(test)]
mod tests;
