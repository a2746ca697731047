//! Causal self-attention.

use std::ops::Range;

use crate::Matrix;

/// The shape of an attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// How many keys a query sees, its own included; `None` for all before it.
    pub window: Option<usize>,
    /// What is subtracted from a score per token of distance, for each head; empty for nothing.
    pub slopes: Vec<f64>,
}

impl Attention {
    /// The tokens whose keys the query at `token` sees: those of its sequence up to itself, within the window.
    pub fn seen(&self, token: usize) -> Range<usize> {
        let start = token - token % self.sequence_length;
        let oldest = self.window.map_or(0, |window| (token + 1).saturating_sub(window));
        start.max(oldest)..token + 1
    }

    /// The score of a key for a query, of one head: q·k / √d − slope · distance.
    pub fn score(&self, queries: &Matrix, keys: &Matrix, head: usize, query: usize, key: usize) -> f64 {
        let (d, kv_head) = (self.head_dim, head / (self.heads / self.kv_heads));
        let q = &queries.row(query)[head * d..][..d];
        let k = &keys.row(key)[kv_head * d..][..d];
        let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        let slope = self.slopes.get(head).copied().unwrap_or(0.0);
        product / (d as f64).sqrt() - slope * (query - key) as f64
    }

    /// The softmax of the scores of the keys that a query sees, in their order.
    pub fn weights(&self, queries: &Matrix, keys: &Matrix, head: usize, query: usize) -> Vec<f64> {
        let scores: Vec<f64> = self.seen(query).map(|key| self.score(queries, keys, head, query, key)).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }
}

/// softmax(Q·Kᵀ / √d)·V, each query over the keys that it sees: [tokens, heads · head_dim] from Q of that shape and K, V
/// [tokens, kv_heads · head_dim].
///
/// # Panics
/// If a matrix has too few columns.
pub fn attention(queries: &Matrix, keys: &Matrix, values: &Matrix, shape: &Attention) -> Matrix {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let mut output = Matrix::zeros(queries.rows(), shape.heads * d);
    for query in 0..queries.rows() {
        for head in 0..shape.heads {
            let weights = shape.weights(queries, keys, head, query);
            for (key, weight) in shape.seen(query).zip(weights) {
                for column in 0..d {
                    output[(query, head * d + column)] += weight * values[(key, head / group * d + column)];
                }
            }
        }
    }
    output
}
