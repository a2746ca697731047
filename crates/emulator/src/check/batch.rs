//! The accesses of a warp in one instruction, word by word, and what is said of one that races.

use super::cell::Access;
use super::clocks::Touch;
use crate::machine::context::LaneBytes;
use crate::machine::registers::lanes;
use std::fmt;
use std::sync::Arc;

/// What the lanes of a warp access in one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The warp, by its number in the thread block.
    pub warp: usize,
    /// The lanes that take part.
    pub mask: u32,
    /// Where each lane's bytes begin, from the start of the shared memory or of the allocation.
    pub offsets: &'a [u64; 32],
    /// Bytes of each lane, 1 to 32.
    pub size: usize,
    /// What is done.
    pub access: Access,
    /// The program counter of the instruction.
    pub pc: u32,
    /// What a plain store writes: two lanes that write different values to one place are a race.
    pub values: Option<&'a LaneBytes>,
}

/// An access that is not ordered after an earlier one.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// The lane that came later; 0 for an operation of the driver.
    pub lane: u32,
    /// Offset of the word, from the start of the shared memory or of the allocation.
    pub offset: u64,
    /// Whether the later access writes.
    pub writes: bool,
    /// The earlier access.
    pub other: Other,
}

/// The earlier one of two accesses that race.
#[derive(Clone, Debug, PartialEq)]
pub enum Other {
    /// A thread of the same launch.
    Thread {
        /// The linear index of its block.
        block: u32,
        /// Its linear index in the block.
        thread: u32,
        /// The program counter of its instruction.
        pc: u32,
        /// Whether it wrote.
        writes: bool,
    },
    /// Another lane of the same store, with another value.
    SameInstruction {
        /// Its linear index in the block.
        thread: u32,
    },
    /// An asynchronous copy that nobody waited for.
    InFlight {
        /// The thread that issued it.
        thread: u32,
        /// The program counter of the copy.
        pc: u32,
        /// Whether it writes here, or reads.
        writes: bool,
    },
    /// An asynchronous copy that is over, but not known to be: its mbarrier was not waited for.
    Engine {
        /// The linear index of the block that issued it.
        block: u32,
        /// The program counter of the copy.
        pc: u32,
    },
    /// Another operation, on another stream.
    Operation {
        /// What it is; see [`super::order::Stamp::label`].
        label: Arc<str>,
        /// Whether it wrote.
        writes: bool,
        /// If it is a kernel: block, thread, and program counter in that kernel. Block and thread are missing where
        /// several blocks did the same.
        at: Option<(Option<(u32, u32)>, u32)>,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |writes| if writes { "write" } else { "read" };
        write!(f, "{} ", word(self.writes))?;
        match &self.other {
            Other::Thread { writes, .. } => write!(f, "without order after a {} by another thread", word(*writes)),
            Other::SameInstruction { .. } => write!(f, "of a value other than another lane writes at the same time"),
            Other::InFlight { writes: true, .. } => write!(f, "of what an asynchronous copy, not waited for, writes"),
            Other::InFlight { writes: false, .. } => write!(f, "of what an asynchronous copy, not waited for, reads"),
            Other::Engine { .. } => write!(f, "of what an asynchronous copy wrote, whose mbarrier was not waited for"),
            Other::Operation { label, writes, .. } => {
                write!(f, "without order after a {} by {label}", word(*writes))
            }
        }
    }
}

/// Lanes that access the same bytes of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) word: u64,
    pub(super) bytes: u8,
    pub(super) lanes: u32,
}

impl Batch<'_> {
    pub(super) fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        lanes(self.mask)
    }

    /// The words that the lanes access, each once for all lanes that access the same bytes of it. Atomics of several
    /// lanes happen one after another, in the order of lanes: each sees those before it, and is a group of its own.
    pub(super) fn groups(&self, out: &mut Vec<Group>) {
        out.clear();
        if self.mask == 0 {
            return;
        }
        let first = self.offsets[self.mask.trailing_zeros() as usize];
        let updates = self.access.touch == Touch::Update;
        if !updates && self.lanes().all(|lane| self.offsets[lane] == first) {
            words(first, self.size, |word, bytes| out.push(Group { word, bytes, lanes: self.mask }));
            return;
        }
        if !updates && self.whole_words(out) {
            return;
        }
        // Atomics need their order within a word only, and have it.
        let mut sorted = true;
        for lane in self.lanes() {
            words(self.offsets[lane], self.size, |word, bytes| {
                sorted &= out.last().is_none_or(|last| (last.word, last.bytes) < (word, bytes));
                out.push(Group { word, bytes, lanes: 1 << lane });
            });
        }
        if !sorted && !updates {
            out.sort_unstable_by_key(|group| (group.word, group.bytes, group.lanes));
            out.dedup_by(|group, kept| {
                let same = (group.word, group.bytes) == (kept.word, kept.bytes);
                kept.lanes |= if same { group.lanes } else { 0 };
                same
            });
        }
    }

    /// The groups where lanes access whole words near each other: sorted by counting. `false` where they do not.
    fn whole_words(&self, out: &mut Vec<Group>) -> bool {
        const SPAN: usize = 256;
        let (mut low, mut high, mut all) = (u64::MAX, 0, self.size as u64);
        for lane in self.lanes() {
            let offset = self.offsets[lane];
            (low, high, all) = (low.min(offset), high.max(offset), all | offset);
        }
        let count = self.size / 4;
        let span = (high - low) / 4 + count as u64;
        if !all.is_multiple_of(4) || span > SPAN as u64 {
            return false;
        }
        let mut lanes_of = [0u32; SPAN];
        for lane in self.lanes() {
            let first = ((self.offsets[lane] - low) / 4) as usize;
            lanes_of[first..first + count].iter_mut().for_each(|lanes| *lanes |= 1 << lane);
        }
        let words = lanes_of[..span as usize].iter().enumerate().filter(|(_, lanes)| **lanes != 0);
        out.extend(words.map(|(at, &lanes)| Group { word: low / 4 + at as u64, bytes: 15, lanes }));
        true
    }

    /// Two lanes of the group that store different values there.
    pub(super) fn collision(&self, group: &Group) -> Option<(u32, u32)> {
        let values = self.values.filter(|_| group.lanes.count_ones() > 1)?;
        let byte = |lane: usize, at: u64| values[lane].get(at.checked_sub(self.offsets[lane])? as usize);
        let mut lanes = self.lanes().filter(|lane| group.lanes >> lane & 1 == 1);
        let first = lanes.next()?;
        let differs = |lane: &usize| {
            (0..4).any(|at| {
                group.bytes >> at & 1 == 1 && byte(*lane, group.word * 4 + at) != byte(first, group.word * 4 + at)
            })
        };
        lanes.find(differs).map(|lane| (first as u32, lane as u32))
    }
}

/// The words of `size` bytes from `offset` on, each with the mask of its bytes.
pub(super) fn words(offset: u64, size: usize, mut each: impl FnMut(u64, u8)) {
    let end = offset + size as u64;
    let mut at = offset;
    while at < end {
        let next = (at / 4 + 1) * 4;
        let stop = next.min(end);
        each(at / 4, ((1u8 << (stop - at)) - 1) << (at % 4));
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::context::WIDEST;

    fn groups(mask: u32, size: usize, offset: impl Fn(usize) -> u64) -> Vec<(u64, u8, u32)> {
        let offsets = std::array::from_fn(offset);
        let batch = Batch { warp: 0, mask, offsets: &offsets, size, access: Access::LOAD, pc: 0, values: None };
        let mut out = Vec::new();
        batch.groups(&mut out);
        out.iter().map(|group| (group.word, group.bytes, group.lanes)).collect()
    }

    #[test]
    fn lanes_with_the_same_bytes_are_one_group() {
        assert_eq!(groups(u32::MAX, 4, |_| 8), [(2, 15, u32::MAX)]);
        assert_eq!(groups(0b111, 8, |lane| 8 * lane as u64).len(), 6);
        assert_eq!(groups(0b1111, 2, |lane| [2, 0, 2, 4][lane % 4]), [(0, 3, 2), (0, 12, 5), (1, 3, 8)]);
        assert_eq!(
            groups(0b11, 32, |lane| 16 * lane as u64).iter().map(|g| g.2).collect::<Vec<_>>(),
            [1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 2]
        );
        assert_eq!(groups(0, 4, |_| 8), []);
    }

    #[test]
    fn a_collision_needs_different_values() {
        let offsets = [4; 32];
        let mut values = [[7; WIDEST]; 32];
        let find = |values: &LaneBytes| {
            let batch = Batch {
                warp: 0,
                mask: 0b1110,
                offsets: &offsets,
                size: 2,
                access: Access::STORE,
                pc: 0,
                values: Some(values),
            };
            batch.collision(&Group { word: 1, bytes: 3, lanes: 0b1110 })
        };
        values[2][2] = 8; // beyond the two bytes that are stored
        values[0][0] = 8; // not in the mask
        assert_eq!(find(&values), None);
        values[3][1] = 8;
        assert_eq!(find(&values), Some((1, 3)));
    }
}
