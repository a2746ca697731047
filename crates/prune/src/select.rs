//! The exact k-th smallest score over all shards, by histograms.
//!
//! Scores are not negative, so their bits, read as integers, are ordered as they are: three histograms of ten or eleven
//! bits find the k-th smallest without moving a score, and histograms of shards simply add up.

use crate::{Collective, Disconnected};
use rayon::prelude::*;

/// (shift, bits) of each histogram: 31 bits in all, since the sign is zero.
const DIGITS: [(u32, u32); 3] = [(20, 11), (10, 10), (0, 10)];

/// The bits of a score as the histograms read them.
#[inline(always)]
pub(crate) fn key(score: f32) -> u32 {
    score.to_bits() & 0x7fff_ffff
}

/// Clears `keep` for the `count` smallest `keys` over the rows of all shards, and sets it for the others; equal ones go
/// in order of (row, column). Both are [columns, rows] of this shard.
///
/// # Errors
/// If another shard ended early.
pub(crate) fn drop_smallest(
    keys: &[u32],
    rows: usize,
    count: u64,
    keep: &mut [bool],
    collective: &dyn Collective,
) -> Result<(), Disconnected> {
    if count == 0 {
        keep.fill(true);
        return Ok(());
    }
    let (mut prefix, mut left) = (0u32, count);
    for (shift, bits) in DIGITS {
        let mut histogram = histogram(keys, prefix, shift, bits);
        collective.sum_u64(&mut histogram)?;
        let mut digit = 0;
        while digit + 1 < histogram.len() && left > histogram[digit] {
            left -= histogram[digit];
            digit += 1;
        }
        prefix = prefix << bits | digit as u32;
    }
    let threshold = prefix;
    let own = keys.par_iter().filter(|&&key| key == threshold).count();
    let before = collective.sum_before(own as u64)?;
    let ties = left.saturating_sub(before).min(own as u64) as usize;
    let all = ties == own;
    keep.par_iter_mut().zip(keys).with_min_len(1 << 12).for_each(|(keep, &key)| {
        *keep = key > threshold || key == threshold && !all;
    });
    if !all {
        let equal = keys.iter().enumerate().filter(|&(_, &key)| key == threshold);
        let mut equal: Vec<_> = equal.map(|(at, _)| (at % rows, at / rows)).collect();
        equal.sort_unstable();
        for (row, column) in &equal[..ties] {
            keep[column * rows + row] = false;
        }
    }
    Ok(())
}

/// How many keys whose bits above `shift + bits` equal `prefix` have each value of the next `bits`.
fn histogram(keys: &[u32], prefix: u32, shift: u32, bits: u32) -> Vec<u64> {
    let empty = || vec![0u64; 1 << bits];
    let count = |mut counts: Vec<u64>, keys: &[u32]| {
        for &key in keys {
            if key >> (shift + bits) == prefix {
                counts[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        counts
    };
    let add = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    keys.par_chunks(1 << 15).fold(empty, count).reduce(empty, add)
}

/// Sets `keep` to zero for the `group − stay` smallest scores of one group of consecutive columns, lane by lane, and to
/// all ones for the others; equal ones go in order of columns. Both are column by column, with a row in each lane.
#[inline(always)]
pub(crate) fn drop_smallest_of_group<const LANES: usize>(
    scores: &[[f32; LANES]],
    stay: usize,
    keep: &mut [[u32; LANES]],
) {
    match scores.len() {
        4 => rank::<4, LANES>(scores, stay, keep),
        8 => rank::<8, LANES>(scores, stay, keep),
        group => {
            let go = (group - stay) as i32;
            for (c, keep) in keep.iter_mut().enumerate() {
                let mut smaller = [0; LANES];
                for (other, others) in scores.iter().enumerate() {
                    for lane in 0..LANES {
                        smaller[lane] += goes_first(others[lane], scores[c][lane], other < c);
                    }
                }
                *keep = smaller.map(|smaller| at_least(smaller, go));
            }
        }
    }
}

/// A group of SIZE columns. All of one lane, and the lanes in a loop: this is how a compiler gives each number a register
/// and each lane of it a lane of that.
#[inline(always)]
fn rank<const SIZE: usize, const LANES: usize>(scores: &[[f32; LANES]], stay: usize, keep: &mut [[u32; LANES]]) {
    let (Some(scores), Some(keep)) = (scores.first_chunk::<SIZE>(), keep.first_chunk_mut::<SIZE>()) else { return };
    let go = (SIZE - stay) as i32;
    for lane in 0..LANES {
        let mut smaller = [0; SIZE];
        for later in 1..SIZE {
            for earlier in 0..later {
                let first = goes_first(scores[earlier][lane], scores[later][lane], true);
                smaller[later] += first;
                smaller[earlier] += 1 - first;
            }
        }
        for c in 0..SIZE {
            keep[c][lane] = at_least(smaller[c], go);
        }
    }
}

/// One if a column with this score goes before the other one, else zero: equal ones go in order of columns.
#[inline(always)]
fn goes_first(score: f32, other: f32, earlier: bool) -> i32 {
    i32::from(if earlier { score <= other } else { score < other })
}

/// All ones if `count` is at least `least`, else zero, without a branch.
#[inline(always)]
fn at_least(count: i32, least: i32) -> u32 {
    ((least - 1 - count) >> 31) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run_shards, share};

    /// The definition: sort by (key, row, column), drop the first `count`.
    fn expected(keys: &[u32], rows: usize, count: usize) -> Vec<bool> {
        let mut order: Vec<_> = (0..keys.len()).collect();
        order.sort_by_key(|&at| (keys[at], at % rows, at / rows));
        let mut keep = vec![true; keys.len()];
        order[..count].iter().for_each(|&at| keep[at] = false);
        keep
    }

    #[test]
    fn the_smallest_go_over_all_shards_ties_by_row_and_column() {
        let (rows, columns) = (37, 11);
        for distinct in [1, 2, 50, 1 << 30] {
            let keys: Vec<u32> =
                (0..rows * columns).map(|i| (i as u32).wrapping_mul(2_654_435_761) % distinct).collect();
            for count in [0, 1, 17, 200, rows * columns - 1, rows * columns] {
                let want = expected(&keys, rows, count);
                for size in [1, 2, 3, 8, 50] {
                    let shards = run_shards(size, |collective| {
                        let own = share(rows, collective.rank(), size);
                        let part = |all: &[u32]| -> Vec<u32> {
                            all.chunks(rows).flat_map(|column| column[own.clone()].to_vec()).collect()
                        };
                        let mut keep = vec![false; own.len() * columns];
                        drop_smallest(&part(&keys), own.len(), count as u64, &mut keep, collective)?;
                        Ok::<_, Disconnected>((own, keep))
                    });
                    for (own, keep) in shards.unwrap() {
                        for (at, keep) in keep.into_iter().enumerate() {
                            let (row, column) = (own.start + at % own.len(), at / own.len());
                            assert_eq!(keep, want[column * rows + row], "{count} of {distinct} at ({row}, {column})");
                        }
                    }
                }
            }
        }
    }
}
