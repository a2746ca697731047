//! The product of fragments.
//!
//! All shapes with 32-bit registers share one layout, that of rows of A and columns of B as strings of words. With
//! `group = lane / 4` and `place = lane % 4`:
//!
//! ```text
//!              words 0..4     words 4..8                                    words 0..4  4..8  8..12  12..16
//! A  row  group      a0             a2        (m8 shapes: a0 only)    B  column group   b0    b1     b2     b3
//!    row  group + 8  a1             a3                                                  word `place` of each four
//! ```
//!
//! How many elements a word has (1 tf32, 2 of 16 bits, 4 of 8, 8 of 4, 32 of 1) is all that tells the types apart; it
//! reproduces the formulas of the ISA's sections "Matrix Fragments for mma.m…n…k…" one by one, as the tests check. The
//! accumulators lie as `c[2p + i]` = (row `group + 8p`, column `2·place + i`), packed in pairs where they are f16.

use super::elements::Element;
use crate::machine::registers::{LANES, Word};

/// Rows of the greatest A and D.
pub const ROWS: usize = 16;
/// Columns of every B and D.
pub const COLUMNS: usize = 8;
/// The most elements of a row of A that are stored: 4-bit ones of m16n8k64.
pub const MAX_STORED: usize = 64;
/// The most rows of B.
const MAX_DEPTH: usize = 64;

/// Sums by row and column.
pub type Sums<V> = [[V; COLUMNS]; ROWS];

/// For each row of A, the row of B that each stored element meets.
pub type Selection = [[u8; MAX_STORED]; ROWS];

/// The registers of A and B, those that a shape does not have left as they may be.
pub struct Fragments<'a> {
    /// A, by register.
    pub a: [&'a Word; 4],
    /// B, by register.
    pub b: [&'a Word; 4],
    /// Registers of A: 1 for shapes of 8 rows, else 2 for each four words of a row.
    pub a_registers: usize,
    /// Registers of B: one for each four words of a column.
    pub b_registers: usize,
    /// For a sparse A, what its elements meet; else each stored element meets the row of B of its own number.
    pub selection: Option<&'a Selection>,
}

impl Fragments<'_> {
    /// Rows of A, by eights.
    fn halves(&self) -> usize {
        self.a_registers.min(2)
    }
}

/// Adds the products of A and B to `sums`: for each of them four words of the row at a time, the elements of these at
/// one place in their word after the other, from the first word on.
#[inline(always)]
pub fn accumulate<A: Element, B: Element<Value = A::Value>>(fragments: &Fragments<'_>, sums: &mut Sums<A::Value>) {
    // B by depth and column, so that the innermost loop runs over columns side by side.
    let mut b = [[B::Value::default(); COLUMNS]; MAX_DEPTH];
    for (number, register) in fragments.b.iter().enumerate().take(fragments.b_registers) {
        for index in 0..B::PER_WORD {
            let lanes = expand::<B>(register, index);
            for place in 0..4 {
                let to = &mut b[((4 * number + place) * B::PER_WORD + index) % MAX_DEPTH];
                for column in 0..COLUMNS {
                    to[column] = lanes[4 * column + place];
                }
            }
        }
    }
    let halves = fragments.halves();
    for (number, register) in fragments.a.iter().enumerate().take(fragments.a_registers) {
        let (half, first) = (number % halves, number / halves * 4);
        for index in 0..A::PER_WORD {
            let lanes = expand::<A>(register, index);
            let stored = |place: usize| ((first + place) * A::PER_WORD + index) % MAX_STORED;
            match fragments.selection {
                None => {
                    let b = [b[stored(0)], b[stored(1)], b[stored(2)], b[stored(3)]];
                    for group in 0..8 {
                        let sum = &mut sums[half * 8 + group];
                        for place in 0..4 {
                            add_scaled::<A>(sum, lanes[4 * group + place], &b[place]);
                        }
                    }
                }
                Some(selection) => {
                    for group in 0..8 {
                        let (sum, selected) = (&mut sums[half * 8 + group], &selection[half * 8 + group]);
                        for place in 0..4 {
                            let depth = usize::from(selected[stored(place)]) % MAX_DEPTH;
                            add_scaled::<A>(sum, lanes[4 * group + place], &b[depth]);
                        }
                    }
                }
            }
        }
    }
}

/// One element of the word of every lane.
#[inline(always)]
fn expand<E: Element>(register: &Word, index: usize) -> [E::Value; LANES] {
    let mut lanes = [E::Value::default(); LANES];
    for lane in 0..LANES {
        lanes[lane] = E::expand(register[lane], index);
    }
    lanes
}

/// sums ← sums + a·b.
#[inline(always)]
fn add_scaled<E: Element>(sums: &mut [E::Value; COLUMNS], a: E::Value, b: &[E::Value; COLUMNS]) {
    for column in 0..COLUMNS {
        sums[column] = E::add_product(sums[column], a, b[column]);
    }
}

/// Adds to `sums` how many bits of `f(a, b)` are set, for rows of A and columns of B of single bits.
#[inline(always)]
pub fn accumulate_bits(fragments: &Fragments<'_>, sums: &mut Sums<i32>, f: impl Fn(u32, u32) -> u32) {
    let halves = fragments.halves();
    for (number, a) in fragments.a.iter().enumerate().take(fragments.a_registers) {
        let (half, b) = (number % halves, fragments.b[number / halves]);
        for row in 0..8 {
            for column in 0..COLUMNS {
                for place in 0..4 {
                    let bits = f(a[4 * row + place], b[4 * column + place]);
                    let sum = &mut sums[8 * half + row][column];
                    *sum = sum.wrapping_add(bits.count_ones() as i32);
                }
            }
        }
    }
}

/// The elements of accumulators of 32 bits by row and column: 2 registers for 8 rows, or 4 for 16.
#[inline(always)]
pub fn gather<V: Copy + Default>(registers: &[&Word], f: impl Fn(u32) -> V) -> Sums<V> {
    let mut sums = [[V::default(); COLUMNS]; ROWS];
    for (number, register) in registers.iter().enumerate() {
        for lane in 0..LANES {
            sums[number / 2 % 2 * 8 + lane / 4][lane % 4 * 2 + number % 2] = f(register[lane]);
        }
    }
    sums
}

/// Register `number` of accumulators of 32 bits, the reverse of [`gather`].
#[inline(always)]
pub fn scatter<V: Copy>(sums: &Sums<V>, number: usize, f: impl Fn(V) -> u32) -> Word {
    let mut word = [0; LANES];
    for lane in 0..LANES {
        word[lane] = f(sums[number / 2 % 2 * 8 + lane / 4][lane % 4 * 2 + number % 2]);
    }
    word
}

/// The elements of accumulators of 16 bits: 2 registers of pairs.
#[inline(always)]
pub fn gather_pairs<V: Copy + Default>(registers: &[&Word], f: impl Fn(u32) -> V) -> Sums<V> {
    let mut sums = [[V::default(); COLUMNS]; ROWS];
    for (number, register) in registers.iter().enumerate() {
        for lane in 0..LANES {
            let row = &mut sums[number % 2 * 8 + lane / 4];
            row[lane % 4 * 2] = f(register[lane] & 0xffff);
            row[lane % 4 * 2 + 1] = f(register[lane] >> 16);
        }
    }
    sums
}

/// Register `number` of accumulators of 16 bits, the reverse of [`gather_pairs`].
#[inline(always)]
pub fn scatter_pairs<V: Copy>(sums: &Sums<V>, number: usize, f: impl Fn(V) -> u32) -> Word {
    let mut word = [0; LANES];
    for lane in 0..LANES {
        let row = &sums[number % 2 * 8 + lane / 4];
        word[lane] = f(row[lane % 4 * 2]) & 0xffff | f(row[lane % 4 * 2 + 1]) << 16;
    }
    word
}
