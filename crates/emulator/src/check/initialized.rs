//! Which bytes of a memory were written: one bit for each.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each byte of an allocation, to be set and read by many threads at once.
#[derive(Debug, Default)]
pub struct Shared {
    words: Vec<AtomicU64>,
}

/// A bit for each byte of a memory that one thread uses.
#[derive(Clone, Debug, Default)]
pub struct Owned {
    words: Vec<u64>,
}

/// The words that a range of bits touches, each with the mask of its bits; ends of the range are cut to `words`.
fn masks(range: Range<usize>, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = range.end.min(words * 64);
    let start = range.start.min(end);
    let last = if start == end { start / 64 } else { end.div_ceil(64) };
    (start / 64..last).map(move |word| {
        let low = start.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        (word, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

/// Whether `range` lies in one word and all its bits are set: what most accesses find.
#[inline(always)]
fn is_set(range: &Range<usize>, word: impl Fn(usize) -> Option<u64>) -> bool {
    let length = range.end.wrapping_sub(range.start);
    let (at, shift) = (range.start / 64, range.start % 64);
    let fits = length.wrapping_sub(1) < 64 && shift + length <= 64;
    fits && word(at).is_some_and(|bits| !bits >> shift << (64 - length) == 0)
}

impl Shared {
    /// So many bytes, none of them written.
    pub fn new(bytes: usize) -> Self {
        let mut words = Vec::new();
        words.resize_with(bytes.div_ceil(64), AtomicU64::default);
        Self { words }
    }

    /// The bytes of `range` are written.
    #[inline]
    pub fn set(&self, range: Range<usize>) {
        for (word, mask) in masks(range, self.words.len()) {
            // Most stores go where others went before, and a read does not take the cache line from other cores.
            if self.words[word].load(Ordering::Relaxed) & mask != mask {
                self.words[word].fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// The first byte of `range` that nobody wrote.
    #[inline]
    pub fn first_unset(&self, range: Range<usize>) -> Option<usize> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        if is_set(&range, |word| self.words.get(word).map(load)) {
            return None;
        }
        masks(range, self.words.len()).find_map(|(word, mask)| {
            let missing = mask & !self.words[word].load(Ordering::Relaxed);
            (missing != 0).then(|| word * 64 + missing.trailing_zeros() as usize)
        })
    }

    /// Copies `length` bits from `from`, of another allocation, to `to`: a copy of memory carries along what was never
    /// written.
    pub fn copy(&self, to: usize, source: &Self, from: usize, length: usize) {
        self.copy_with(to, length, |at, count| source.bits(from + at, count));
    }

    /// As [`Shared::copy`] within this allocation, also where the ranges overlap.
    pub fn copy_within(&self, to: usize, from: usize, length: usize) {
        let before: Vec<u64> = (0..length).step_by(64).map(|at| self.bits(from + at, (length - at).min(64))).collect();
        self.copy_with(to, length, |at, _| before[at / 64]);
    }

    fn copy_with(&self, to: usize, length: usize, bits: impl Fn(usize, usize) -> u64) {
        for at in (0..length).step_by(64) {
            let count = (length - at).min(64);
            let (bits, start) = (bits(at, count), to + at);
            for (word, mask) in masks(start..start + count, self.words.len()) {
                let shifted = if word == start / 64 { bits << (start % 64) } else { bits >> (64 - start % 64) };
                self.words[word].fetch_or(mask & shifted, Ordering::Relaxed);
                self.words[word].fetch_and(!mask | shifted, Ordering::Relaxed);
            }
        }
    }

    /// `count` bits, at most 64, from `start` on.
    fn bits(&self, start: usize, count: usize) -> u64 {
        let word = |at: usize| self.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let low = word(start / 64) >> (start % 64);
        let high = if start.is_multiple_of(64) { 0 } else { word(start / 64 + 1) << (64 - start % 64) };
        (low | high) & (u64::MAX >> (64 - count))
    }
}

impl Owned {
    /// So many bytes, none of them written.
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(64)] }
    }

    /// None of the bytes is written any more.
    pub fn reset(&mut self) {
        self.words.fill(0);
    }

    /// The bytes of `range` are written.
    #[inline]
    pub fn set(&mut self, range: Range<usize>) {
        for (word, mask) in masks(range, self.words.len()) {
            self.words[word] |= mask;
        }
    }

    /// The first byte of `range` that nobody wrote.
    #[inline]
    pub fn first_unset(&self, range: Range<usize>) -> Option<usize> {
        if is_set(&range, |word| self.words.get(word).copied()) {
            return None;
        }
        masks(range, self.words.len()).find_map(|(word, mask)| {
            let missing = mask & !self.words[word];
            (missing != 0).then(|| word * 64 + missing.trailing_zeros() as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_words_and_their_ends() {
        let mut bits = Owned::new(300);
        assert_eq!(bits.first_unset(10..20), Some(10));
        bits.set(10..200);
        assert_eq!((bits.first_unset(10..200), bits.first_unset(10..201)), (None, Some(200)));
        assert_eq!(
            (bits.first_unset(9..10), bits.first_unset(64..128), bits.first_unset(50..50)),
            (Some(9), None, None)
        );
        bits.reset();
        assert_eq!(bits.first_unset(100..101), Some(100));
        // Beyond the end there is nothing to say.
        bits.set(0..10_000);
        assert_eq!(bits.first_unset(5..20_000), None);
    }

    proptest! {
        #[test]
        fn sets_and_copies_as_a_list_of_flags_does(
            sets in prop::collection::vec((0usize..400, 0usize..150), 1..6),
            (to, from, length) in (0usize..250, 0usize..250, 0usize..150),
        ) {
            let (source, target) = (Shared::new(400), Shared::new(400));
            let mut flags = [vec![false; 448], vec![false; 448]];
            for (at, &(start, length)) in sets.iter().enumerate() {
                let range = start..(start + length).min(400);
                [&source, &target][at % 2].set(range.clone());
                range.for_each(|bit| flags[at % 2][bit] = true);
            }
            target.copy(to, &source, from, length);
            let copied = flags[0][from..from + length].to_vec();
            flags[1][to..to + length].copy_from_slice(&copied);
            source.copy_within(to, from, length);
            flags[0].copy_within(from..from + length, to);
            for (bits, flags) in [(&source, &flags[0]), (&target, &flags[1])] {
                for start in 0..400 {
                    prop_assert_eq!(bits.first_unset(start..400), (start..400).find(|&bit| !flags[bit]));
                }
            }
        }
    }
}
