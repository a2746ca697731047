//! Causal self-attention over whole sequences, a tile of queries at a time.
//!
//! ```text
//!          keys ─▶            a tile computes scores for the keys that any of its queries sees
//! queries  ░                  (░ and █), takes the softmax of each query over those that it sees
//!    │     ░░                 itself, and multiplies with the values; with a window, keys further
//!    ▼     ████ ◀ a tile      back are not visited either
//!          █████
//! ```
//! Scores are kept transposed, [keys, queries of the tile], a strip: K·Qᵀ writes what Vᵀ·softmax reads, without a copy,
//! and the softmax works on as many queries side by side as a vector has lanes. Keys and values are packed once for all
//! tiles and all heads that share them.

use std::ops::Range;

use linalg::{Buffer, MatrixRef, PackedLeft, strip_width, vectorized};
use rayon::prelude::*;

use crate::simd::exponentials;

/// Where the heads of queries, keys or values lie in a matrix with one row per token: head h of token t at
/// `t · row_stride + first + h · step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadsOf<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) first: usize,
    pub(crate) step: usize,
}

impl<'a> HeadsOf<'a> {
    /// Head `head` of the tokens in `tokens`: [tokens, head_dim].
    fn matrix(&self, head: usize, tokens: Range<usize>, head_dim: usize) -> MatrixRef<'a> {
        let start = tokens.start * self.row_stride + self.first + head * self.step;
        MatrixRef::with_stride(&self.data[start..], tokens.len(), head_dim, self.row_stride)
    }
}

/// Queries, keys and values of whole sequences, and what attention does with them.
#[derive(Clone, Debug)]
pub(crate) struct CausalAttention<'a> {
    pub(crate) queries: HeadsOf<'a>,
    pub(crate) keys: HeadsOf<'a>,
    pub(crate) values: HeadsOf<'a>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) sequence_length: usize,
    /// How many keys a query sees, its own included.
    pub(crate) window: Option<usize>,
    /// What is subtracted from a score per token of distance, for each head; empty for none.
    pub(crate) slopes: &'a [f32],
}

/// The keys and values of one head of one sequence.
struct Packed {
    /// [tokens, head_dim].
    keys: PackedLeft,
    /// [head_dim, tokens].
    values: PackedLeft,
}

impl CausalAttention<'_> {
    /// softmax(q·kᵀ / √head_dim)·v of all heads, into output [tokens, heads · head_dim].
    pub(crate) fn run(&self, output: &mut [f32]) {
        let (length, width) = (self.sequence_length, self.heads * self.head_dim);
        // One head of keys after another: what is packed at a time stays small beside the activations.
        for kv_head in 0..self.kv_heads {
            let packed: Vec<Packed> = (0..output.len() / (length * width))
                .into_par_iter()
                .map(|sequence| {
                    let tokens = sequence * length..(sequence + 1) * length;
                    let keys = self.keys.matrix(kv_head, tokens.clone(), self.head_dim);
                    let values = self.values.matrix(kv_head, tokens, self.head_dim);
                    let pack = |matrix| move || PackedLeft::new(matrix);
                    let (keys, values) = rayon::join(pack(keys), pack(values.transposed()));
                    Packed { keys, values }
                })
                .collect();
            let sequences = output.par_chunks_mut(length * width).zip(&packed).enumerate();
            let tiles = sequences.flat_map(|(sequence, (rows, packed))| {
                let tiles = rows.par_chunks_mut(strip_width() * width).enumerate();
                tiles.map(move |(tile, rows)| (sequence * length, tile * strip_width(), packed, rows))
            });
            tiles.for_each(|(start, position, packed, rows)| self.tile(kv_head, start, position, packed, rows));
        }
    }

    /// The keys of a sequence that the query at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let oldest = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        oldest..position + 1
    }

    /// The heads that read `kv_head`, of the queries from `position` on in the sequence that starts at token `start`,
    /// into their columns of output [queries, heads · head_dim].
    fn tile(&self, kv_head: usize, start: usize, position: usize, packed: &Packed, output: &mut [f32]) {
        let (d, width, lanes) = (self.head_dim, self.heads * self.head_dim, strip_width());
        let queries = output.len() / width;
        let keys = self.visible(position).start..position + queries;
        let scale = 1.0 / (d as f32).sqrt();
        let mut buffers = [d, keys.len(), d, 1].map(|rows| Buffer::take(rows * lanes));
        let [strip, scores, context, sums] = buffers.each_mut().map(Buffer::floats_mut);
        let (scores, sums) = (&mut scores[..keys.len() * lanes], &mut sums[..lanes]);
        let group = self.heads / self.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            strip[..d * lanes].fill(0.0);
            for query in 0..queries {
                let first = self.queries.first + head * self.queries.step;
                let row = (start + position + query) * self.queries.row_stride + first;
                for (to, q) in strip[query..].iter_mut().step_by(lanes).zip(&self.queries.data[row..row + d]) {
                    *to = q * scale;
                }
            }
            packed.keys.multiply(keys.clone(), 0..d, strip, scores);
            if let Some(&slope) = self.slopes.get(head) {
                lean(scores, lanes, (position - keys.start) as f32, slope);
            }
            self.hide(position, queries, keys.clone(), scores, f32::NEG_INFINITY);
            exponentials(scores, lanes, sums);
            self.hide(position, queries, keys.clone(), scores, 0.0);
            packed.values.multiply(0..d, keys.clone(), scores, context);
            for (query, row) in output.chunks_exact_mut(width).enumerate() {
                let share = 1.0 / sums[query];
                for (to, sum) in row[head * d..][..d].iter_mut().zip(context[query..].iter().step_by(lanes)) {
                    *to = sum * share;
                }
            }
        }
    }

    /// Overwrites the scores [keys, lanes] of keys that a query does not see.
    fn hide(&self, position: usize, queries: usize, keys: Range<usize>, scores: &mut [f32], with: f32) {
        let lanes = strip_width();
        // Between those that the last query no longer sees and those that the first does not see yet, all see all.
        let old = keys.start..self.visible(position + queries - 1).start;
        let new = old.end.max(position + 1)..keys.end;
        for key in old.chain(new) {
            for (query, score) in scores[(key - keys.start) * lanes..][..queries].iter_mut().enumerate() {
                if !self.visible(position + query).contains(&key) {
                    *score = with;
                }
            }
        }
    }
}

vectorized! {
    /// Subtracts `slope` per token of distance from scores [keys, lanes]; the first key is `distance` tokens before the
    /// query of the first lane.
    fn lean(scores: &mut [f32], lanes: usize, distance: f32, slope: f32) {
        for (key, row) in scores.chunks_exact_mut(lanes).enumerate() {
            let distance = distance - key as u32 as f32;
            for (lane, score) in row.iter_mut().enumerate() {
                *score -= slope * (distance + lane as u32 as f32);
            }
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
        let (sequences, n) = (2, 2 * strip_width() + 37);
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
            let view = |data, heads| HeadsOf { data, row_stride: heads * d, first: 0, step: d };
            let attention = CausalAttention {
                queries: view(&q, heads),
                keys: view(&k, kv_heads),
                values: view(&v, kv_heads),
                heads,
                kv_heads,
                head_dim: d,
                sequence_length: n,
                window,
                slopes: &slopes,
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
