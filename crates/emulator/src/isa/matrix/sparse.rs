//! Metadata of a sparse A: which of its elements each stored one is.
//!
//! Every two adjacent elements of tf32, and every four of the other types, keep half, described by four bits. Of the
//! four lanes of a group, those that the *selector* names hold the bits for the group's two rows. The ISA shows where in
//! figures; what follows is also what the order implies in which CUTLASS lays metadata out (`reorder_meta`), whose
//! words go to the lanes of a group one after another:
//!
//! ```text
//!                         selector   lane of the group           bits of the lane's word
//! 16-bit k16, tf32 k8     0 to 3     selector                    0..16 row group, 16..32 row group + 8
//! 16-bit k32, tf32 k16    0 or 1     2·selector + chunk / 4      the same, of chunks 0..4 or 4..8
//! 8-bit k32               0 or 1     2·selector + row / 8        0..32 of its row
//! 8-bit k64               0          2·(chunk / 8) + row / 8     the same, of chunks 0..8 or 8..16
//! ```

use super::product::{MAX_STORED, ROWS, Selection};
use crate::machine::Fault;
use crate::machine::registers::{W, Word};
use crate::report::Kind;

/// How the metadata of a shape lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Elements that are described together: 2 for tf32, of which one is stored, else 4, of which two are.
    pub chunk: usize,
    /// Chunks of a row.
    pub chunks: usize,
    /// Whether a word describes one row, as for 8-bit elements, or two.
    pub one_row: bool,
}

impl Layout {
    /// How many selectors there are.
    pub fn selectors(self) -> u64 {
        match (self.one_row, self.chunks) {
            (false, 4) => 4,
            (true, 16) => 1,
            _ => 2,
        }
    }
}

/// The metadata operands of an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    /// How they lie.
    pub layout: Layout,
    /// The register.
    pub register: W,
    /// The selector.
    pub selector: usize,
    /// `.sp::ordered_metadata`: indices ascend.
    pub ordered: bool,
}

impl Metadata {
    /// The rows of B that the stored elements meet.
    ///
    /// # Errors
    /// If four bits are none of the values that the ISA gives a meaning.
    #[inline(always)]
    pub fn selection(&self, word: &Word) -> Result<Selection, Fault> {
        let Layout { chunk, chunks, one_row } = self.layout;
        let mut selection = [[0; MAX_STORED]; ROWS];
        for (row, selected) in selection.iter_mut().enumerate() {
            let (group, half) = (row % 8, row / 8);
            for number in 0..chunks {
                let (lane, shift) = match one_row {
                    false => ((self.selector * chunks.div_ceil(4) + number / 4) % 4, 16 * half + 4 * (number % 4)),
                    true => ((2 * self.selector + 2 * (number / 8) + half) % 4, 4 * (number % 8)),
                };
                let lane = 4 * group + lane;
                let bits = word[lane] >> shift & 15;
                let first = (number * chunk) as u8;
                let (low, high) = (bits as u8 & 3, bits as u8 >> 2);
                match (chunk, bits) {
                    (2, 0b0100) => selected[number] = first,
                    (2, 0b1110) => selected[number] = first + 1,
                    (4, _) if low < high || low > high && !self.ordered => {
                        selected[2 * number] = first + low;
                        selected[2 * number + 1] = first + high;
                    }
                    _ => {
                        let message = format!(
                            "metadata {bits:#06b} for elements {first} to {} of row {row} of A has no meaning",
                            usize::from(first) + chunk - 1
                        );
                        return Err(Fault::lane(Kind::Undefined, lane, message));
                    }
                }
            }
        }
        Ok(selection)
    }
}
