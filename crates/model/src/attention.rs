//! Causal self-attention over whole sequences, a tile of queries at a time.
//!
//! ```text
//!          keys ─▶            a tile computes scores for the keys that any of its queries sees
//! queries  ░                  (░ and █), takes the softmax of each row over those that the query
//!    │     ░░                 itself sees, and multiplies with the values; with a window, keys
//!    ▼     ████ ◀ a tile      further back are not visited either
//!          █████
//! ```

use std::ops::Range;

use linalg::{MatrixMut, MatrixRef, gemm_serial};
use rayon::prelude::*;

use crate::simd::softmax;
use linalg::vectorized;

/// Queries of a tile: enough to make the copy of keys and values that the product takes worth it, few enough to leave
/// tasks for all threads and scores in the caches (64 · 2048 · 4 bytes = 512 KiB).
const TILE: usize = 64;

/// Where the heads of queries, keys or values lie in a matrix with one row per token: head h of token t at
/// `t · row_stride + first + h · step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) first: usize,
    pub(crate) step: usize,
}

impl<'a> Heads<'a> {
    /// Head `head` of the tokens in `tokens`: [tokens, head_dim].
    fn matrix(&self, head: usize, tokens: Range<usize>, head_dim: usize) -> MatrixRef<'a> {
        let start = tokens.start * self.row_stride + self.first + head * self.step;
        MatrixRef::with_stride(&self.data[start..], tokens.len(), head_dim, self.row_stride)
    }
}

/// Queries, keys and values of whole sequences, and what attention does with them.
#[derive(Clone, Debug)]
pub(crate) struct CausalAttention<'a> {
    pub(crate) queries: Heads<'a>,
    pub(crate) keys: Heads<'a>,
    pub(crate) values: Heads<'a>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) sequence_length: usize,
    /// How many keys a query sees, its own included.
    pub(crate) window: Option<usize>,
    /// What is subtracted from a score per token of distance, for each head; empty for none.
    pub(crate) slopes: Vec<f32>,
}

impl CausalAttention<'_> {
    /// softmax(q·kᵀ / √head_dim)·v of all heads, into output [tokens, heads · head_dim].
    pub(crate) fn run(&self, output: &mut [f32]) {
        let width = self.heads * self.head_dim;
        let sequences = output.par_chunks_mut(self.sequence_length * width).enumerate();
        let tiles = sequences.flat_map(|(sequence, rows)| {
            rows.par_chunks_mut(TILE * width).enumerate().map(move |(tile, rows)| (sequence, tile, rows))
        });
        tiles.for_each_init(Vec::new, |scores, (sequence, tile, rows)| {
            self.tile(sequence * self.sequence_length, tile * TILE, scores, rows);
        });
    }

    /// The keys of a sequence that the query at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let oldest = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        oldest..position + 1
    }

    /// All heads of the queries from `position` on, in the sequence that starts at token `start`.
    fn tile(&self, start: usize, position: usize, scores: &mut Vec<f32>, output: &mut [f32]) {
        let (d, width) = (self.head_dim, self.heads * self.head_dim);
        let queries = output.len() / width;
        let keys = self.visible(position).start..position + queries;
        scores.resize(queries * keys.len(), 0.0);
        for head in 0..self.heads {
            let kv_head = head / (self.heads / self.kv_heads);
            let q = self.queries.matrix(head, start + position..start + position + queries, d);
            let k = self.keys.matrix(kv_head, start + keys.start..start + keys.end, d);
            let v = self.values.matrix(kv_head, start + keys.start..start + keys.end, d);
            let scale = 1.0 / (d as f32).sqrt();
            gemm_serial(scale, q, k.transposed(), 0.0, MatrixMut::new(scores, queries, keys.len()));
            for (query, row) in scores.chunks_exact_mut(keys.len()).enumerate() {
                let visible = self.visible(position + query);
                let (before, after) = (visible.start - keys.start, visible.end - keys.start);
                row[..before].fill(0.0);
                row[after..].fill(0.0);
                if let Some(&slope) = self.slopes.get(head) {
                    lean(&mut row[before..after], slope);
                }
                softmax(&mut row[before..after]);
            }
            let context = MatrixMut::with_stride(&mut output[head * d..], queries, d, width);
            gemm_serial(1.0, MatrixRef::new(scores, queries, keys.len()), v, 0.0, context);
        }
    }
}

vectorized! {
    /// Subtracts `slope` per token of distance from the scores of keys that end at the query itself.
    fn lean(row: &mut [f32], slope: f32) {
        let last = row.len().wrapping_sub(1);
        for (key, score) in row.iter_mut().enumerate() {
            *score -= slope * (last - key) as u32 as f32;
        }
    }
}

/// The ALiBi slopes of any number of heads, as BLOOM was trained with: with n the largest power of two that is not more,
/// 2^(−8i/n) for i = 1…n, then 2^(−8i/2n) for i = 1, 3, 5, … (Press et al., arXiv 2108.12409, and its code).
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let slopes = |n: usize, step: usize| {
        // Powers of the rounded base, as transformers computes them.
        let base = (-8.0 / n as f64).exp2() as f32;
        (1..).step_by(step).map(move |i| f64::from(base).powi(i) as f32)
    };
    let Some(power) = heads.checked_ilog2() else { return Vec::new() };
    let n = 1 << power;
    slopes(n, 1).take(n).chain(slopes(2 * n, 2).take(heads - n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slopes by the definition, in f64.
    fn slopes_by_definition(heads: usize) -> Vec<f64> {
        let n = (1..=heads).filter(|n| n.is_power_of_two()).max().unwrap_or(1);
        let first = (1..=n).map(|i| 2f64.powf(-8.0 * i as f64 / n as f64));
        let extra = (1..).step_by(2).map(|i| 2f64.powf(-4.0 * i as f64 / n as f64));
        first.chain(extra).take(heads).collect()
    }

    #[test]
    fn slopes_for_any_number_of_heads() {
        for heads in [1, 2, 3, 6, 8, 12, 16, 112] {
            let (got, want) = (alibi_slopes(heads), slopes_by_definition(heads));
            assert_eq!(got.len(), heads);
            for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
                // The rounded base is raised to a power of at most 2n.
                let tolerance = (heads.next_power_of_two() + 2) as f64 / f64::from(1u32 << 24) * want;
                assert!((f64::from(got) - want).abs() <= tolerance, "{heads} heads, slope {i}: {got} {want}");
            }
        }
        // As the paper and transformers print them.
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(alibi_slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(alibi_slopes(6)[4..], [0.5, 0.125]);
    }

    #[test]
    fn tiles_agree_with_attention_by_definition() {
        let (heads, kv_heads, d) = (4, 2, 3);
        let (sequences, n) = (2, TILE + 37);
        for (window, slopes) in [
            (None, vec![]),
            (Some(1), vec![]),
            (Some(50), vec![]),
            (Some(1000), alibi_slopes(4)),
            (None, alibi_slopes(4)),
        ] {
            let noise = |count: usize, salt: u32| -> Vec<f32> {
                (0..count as u32).map(|i| ((i + salt).wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6 - 2.0).collect()
            };
            let (q, k) = (noise(sequences * n * heads * d, 1), noise(sequences * n * kv_heads * d, 2));
            let v = noise(sequences * n * kv_heads * d, 3);
            let view = |data, heads| Heads { data, row_stride: heads * d, first: 0, step: d };
            let attention = CausalAttention {
                queries: view(&q, heads),
                keys: view(&k, kv_heads),
                values: view(&v, kv_heads),
                heads,
                kv_heads,
                head_dim: d,
                sequence_length: n,
                window,
                slopes: slopes.clone(),
            };
            let mut output = vec![f32::NAN; q.len()];
            attention.run(&mut output);
            for s in 0..sequences {
                for (t, h) in (0..n).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                    let at = |data: &[f32], heads: usize, t: usize, h: usize, c: usize| {
                        f64::from(data[((s * n + t) * heads + h) * d + c])
                    };
                    let seen: Vec<usize> = (0..=t).filter(|key| window.is_none_or(|window| t - key < window)).collect();
                    let score = |key: usize| {
                        let dot: f64 = (0..d).map(|c| at(&q, heads, t, h, c) * at(&k, kv_heads, key, h / 2, c)).sum();
                        let lean = slopes.get(h).map_or(0.0, |&slope| f64::from(slope) * (t - key) as f64);
                        dot / (d as f64).sqrt() - lean
                    };
                    let weights: Vec<f64> = seen.iter().map(|&key| score(key).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for c in 0..d {
                        let values = seen.iter().map(|&key| at(&v, kv_heads, key, h / 2, c));
                        let want: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
                        let got = at(&output, heads, t, h, c);
                        // Values are at most 2.2, scores at most 50: their rounding counts in the exponential.
                        let tolerance = 2.2 * (50.0 + n as f64) / f64::from(1u32 << 24);
                        assert!((got - want).abs() < tolerance, "{window:?} {s} {t} {h} {c}: {got} {want}");
                    }
                }
            }
        }
    }
}
