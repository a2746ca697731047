//! `ldmatrix`, `stmatrix` and `movmatrix`: 8 × 8 matrices of 16-bit elements between rows in shared memory and
//! fragments, in which lane 4·r + c holds elements 2c and 2c + 1 of row r, or of column r with `.trans`.

use super::Op;
use super::mma::{words, words_to};
use crate::machine::Fault;
use crate::machine::context::{Context, LaneBytes, WIDEST, Where};
use crate::machine::registers::{Double, LANES, Registers, W, Word};
use crate::program::{Address, Base, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// Bytes of a row.
const ROW: usize = 16;

/// `ldmatrix`.
#[derive(Clone, Debug)]
pub struct Load {
    to: [W; 4],
    count: usize,
    transposed: bool,
    at: Where,
    address: Address,
}

/// `stmatrix`.
#[derive(Clone, Debug)]
pub struct Store {
    from: [W; 4],
    count: usize,
    transposed: bool,
    at: Where,
    address: Address,
}

/// `movmatrix`.
#[derive(Clone, Copy, Debug)]
pub struct Transpose {
    to: W,
    from: W,
}

/// Decodes an `ldmatrix`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode_load(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let (count, transposed, shared) = form(instruction)?;
    let [to, address] = instruction.operands.as_slice() else {
        return Err("ldmatrix takes a destination and an address".to_owned());
    };
    let to = words_to(scope, to, count)?;
    let (address, at) = self::address(scope, address, shared)?;
    Ok(Op::Load(Box::new(Load { to, count, transposed, at, address })))
}

/// Decodes an `stmatrix`.
///
/// # Errors
/// As for [`decode_load`].
pub fn decode_store(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let (count, transposed, shared) = form(instruction)?;
    let [address, from] = instruction.operands.as_slice() else {
        return Err("stmatrix takes an address and a source".to_owned());
    };
    let (address, at) = self::address(scope, address, shared)?;
    let from = words(scope, from, count, Type::B32)?;
    Ok(Op::Store(Box::new(Store { from, count, transposed, at, address })))
}

/// Decodes a `movmatrix`.
///
/// # Errors
/// As for [`decode_load`].
pub fn decode_transpose(scope: &mut Scope<'_>, instruction: &Instruction) -> Result<Op, Reason> {
    let modifiers: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    match (modifiers.as_slice(), instruction.operands.as_slice()) {
        (["sync", "aligned", "m8n8", "trans", "b16"], [to, from]) => {
            Ok(Op::Transpose(Transpose { to: words_to(scope, to, 1)?[0], from: scope.word(from, Type::B32)? }))
        }
        _ => Err(format!("{} is not supported", instruction.mnemonic())),
    }
}

/// How many matrices, whether they are transposed, and whether the address is said to be shared.
fn form(instruction: &Instruction) -> Result<(usize, bool, bool), Reason> {
    let unknown = || format!("{} is not supported: only .m8n8 and .b16 are", instruction.mnemonic());
    let modifiers: Vec<&str> = instruction.modifiers.iter().map(String::as_str).collect();
    let ["sync", "aligned", "m8n8", count, rest @ ..] = modifiers.as_slice() else { return Err(unknown()) };
    let count = match *count {
        "x1" => 1,
        "x2" => 2,
        "x4" => 4,
        _ => return Err(unknown()),
    };
    let (transposed, rest) = match rest {
        ["trans", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    match rest {
        ["b16"] => Ok((count, transposed, false)),
        ["shared" | "shared::cta", "b16"] => Ok((count, transposed, true)),
        _ => Err(unknown()),
    }
}

fn address(scope: &mut Scope<'_>, operand: &Operand, shared: bool) -> Result<(Address, Where), Reason> {
    let (address, named) = scope.address(operand)?;
    match (shared, named) {
        (_, Some(Space::Shared)) | (true, None) => Ok((address, Where::In(Space::Shared))),
        (false, None) => Ok((address, Where::Generic)),
        _ => Err("the rows of matrices must be in shared memory".to_owned()),
    }
}

/// The addresses of all lanes.
#[inline(always)]
pub fn addresses(registers: &Registers, address: &Address) -> Double {
    match address.base {
        Base::Nothing => [address.offset as u64; LANES],
        Base::Word(base) => registers.word(base).map(|base| u64::from(base).wrapping_add_signed(address.offset)),
        Base::Double(base) => registers.double(base).map(|base| base.wrapping_add_signed(address.offset)),
    }
}

/// The lanes whose addresses are taken: eight a matrix.
fn rows(count: usize) -> u32 {
    u32::MAX >> (LANES - 8 * count)
}

impl Load {
    /// Executes it for the whole warp.
    ///
    /// # Errors
    /// At the first row whose address is bad.
    #[inline(always)]
    pub fn execute(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let addresses = addresses(context.registers, &self.address);
        let rows = context.load(rows(self.count), self.at, &addresses, ROW)?;
        for (number, register) in self.to.iter().enumerate().take(self.count) {
            context.registers.set_word(*register, u32::MAX, &fragment(&rows, number, self.transposed));
        }
        Ok(())
    }
}

impl Store {
    /// Executes it for the whole warp.
    ///
    /// # Errors
    /// At the first row whose address is bad.
    #[inline(always)]
    pub fn execute(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let addresses = addresses(context.registers, &self.address);
        let mut bytes = [[0; WIDEST]; LANES];
        for (number, register) in self.from.iter().enumerate().take(self.count) {
            lay_out(context.registers.word(*register), &mut bytes, number, self.transposed);
        }
        context.store(rows(self.count), self.at, &addresses, ROW, &bytes)
    }
}

impl Transpose {
    /// Executes it for the whole warp.
    #[inline(always)]
    pub fn execute(&self, registers: &mut Registers) {
        let mut rows = [[0; WIDEST]; LANES];
        lay_out(registers.word(self.from), &mut rows, 0, false);
        registers.set_word(self.to, u32::MAX, &fragment(&rows, 0, true));
    }
}

/// The fragment of matrix `number`, whose row r is at lane 8·number + r.
#[inline(always)]
fn fragment(rows: &LaneBytes, number: usize, transposed: bool) -> Word {
    let half = |row: usize, column: usize| {
        let bytes = &rows[8 * number + row];
        u32::from(u16::from_le_bytes([bytes[2 * column], bytes[2 * column + 1]]))
    };
    std::array::from_fn(|lane| {
        let (line, first) = (lane / 4, lane % 4 * 2);
        match transposed {
            false => half(line, first) | half(line, first + 1) << 16,
            true => half(first, line) | half(first + 1, line) << 16,
        }
    })
}

/// The reverse of [`fragment`].
#[inline(always)]
fn lay_out(fragment: &Word, rows: &mut LaneBytes, number: usize, transposed: bool) {
    for (lane, word) in fragment.iter().enumerate() {
        for (index, value) in [*word as u16, (word >> 16) as u16].into_iter().enumerate() {
            let (line, place) = (lane / 4, lane % 4 * 2 + index);
            let (row, column) = if transposed { (place, line) } else { (line, place) };
            rows[8 * number + row][2 * column..2 * column + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row r of matrix m holds m·64 + 8r + column.
    fn numbered() -> LaneBytes {
        std::array::from_fn(|lane| {
            std::array::from_fn(|byte| if byte < ROW && byte % 2 == 0 { (8 * lane + byte / 2) as u8 } else { 0 })
        })
    }

    /// ISA, "Warp-level matrix load instruction: ldmatrix", figure of the fragment layout: lane 0 holds elements 0 and
    /// 1 of row 0, lane 1 elements 2 and 3, … lane 31 elements 6 and 7 of row 7; lanes 8i to 8i + 7 give the rows of
    /// matrix i.
    #[test]
    fn ldmatrix_gives_each_lane_two_elements_of_a_row() {
        for number in 0..4 {
            let plain = fragment(&numbered(), number, false);
            let transposed = fragment(&numbered(), number, true);
            for lane in 0..32u32 {
                let (line, first) = (lane / 4, 2 * (lane % 4));
                let element = |row: u32, column: u32| 64 * number as u32 + 8 * row + column;
                assert_eq!(plain[lane as usize] & 0xffff, element(line, first));
                assert_eq!(plain[lane as usize] >> 16, element(line, first + 1));
                assert_eq!(transposed[lane as usize] & 0xffff, element(first, line));
                assert_eq!(transposed[lane as usize] >> 16, element(first + 1, line));
            }
        }
        assert_eq!((rows(1), rows(2), rows(4)), (0xff, 0xffff, u32::MAX));
    }

    #[test]
    fn stmatrix_is_the_reverse_of_ldmatrix() {
        let rows = numbered();
        for transposed in [false, true] {
            let mut back = [[0; WIDEST]; LANES];
            for number in 0..4 {
                lay_out(&fragment(&rows, number, transposed), &mut back, number, transposed);
            }
            assert_eq!(rows, back);
        }
    }

    #[test]
    fn movmatrix_transposes() {
        let mut registers = Registers::default();
        registers.add_word(0);
        registers.add_word(0);
        // Element (row, column) is 8·row + column.
        let from = std::array::from_fn(|lane| (2 * lane as u32) | ((2 * lane as u32 + 1) << 16));
        registers.set_word(W(0), u32::MAX, &from);
        Transpose { to: W(1), from: W(0) }.execute(&mut registers);
        let to = registers.word(W(1));
        assert_eq!(to[0], 8 << 16);
        assert_eq!(to[1], 16 | 24 << 16);
        assert_eq!(to[30], (8 * 4 + 7) | (8 * 5 + 7) << 16);
    }
}
