//! What a model is made of, as plain data: the one thing that an architecture declares and that everything else reads.
//!
//! A decoder block is two half-blocks, attention and feed-forward, of two stages each; a stage is the set of linear
//! layers that read the same input.
//!
//! ```text
//! x ─ norm ─▶ stage 0: q, k, v ─ attention ─▶ stage 1: output ─▶ + x
//! x ─ norm ─▶ stage 2: up (and gate) ─ activation ─▶ stage 3: down ─▶ + x
//! ```

use std::path::PathBuf;

use serde_json::Value;

use crate::activation::Activation;
use crate::config::Config;
use crate::rope::Rope;
use crate::{Error, architectures};

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The architecture, as `model_type` names it.
    pub architecture: &'static str,
    /// What the names of tensors may begin with in a checkpoint, the usual prefix first. All names below but
    /// [`HEAD_WEIGHT`] come after it.
    pub prefixes: &'static [&'static str],
    /// The number of tokens.
    pub vocabulary: usize,
    /// Columns of the activations between blocks.
    pub hidden: usize,
    /// The longest sequence that the model was made for.
    pub max_sequence_length: usize,
    /// The kind of all its norms.
    pub norm: Norm,
    /// From tokens to the input of the first block.
    pub embedding: Embedding,
    /// The decoder blocks.
    pub blocks: Blocks,
    /// From the output of the last block to logits.
    pub head: Head,
}

impl Description {
    /// What a `config.json` describes, which lies at `path` and holds `value`. No checkpoint is needed.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown architecture or a value that makes no model; [`Error::Quantized`].
    pub fn of_config(path: impl Into<PathBuf>, value: &Value) -> Result<Self, Error> {
        architectures::describe(&Config::new(path.into(), value))
    }
}

/// The weight [vocabulary, [`Embedding::width`]] that makes logits, where the embedding does not.
pub const HEAD_WEIGHT: &str = "lm_head.weight";

/// How rows are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The statistics used.
    pub kind: NormKind,
    /// What is added to the mean square.
    pub epsilon: f32,
    /// Whether a learned scale follows, and after [`NormKind::Layer`] a shift.
    pub affine: bool,
}

/// The statistics that rows are normalized by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// (x − mean) / √(variance + ε).
    Layer,
    /// x / √(mean square + ε).
    Rms,
}

/// From tokens to activations.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The embedding [vocabulary, width].
    pub tokens: &'static str,
    /// Columns of the embedding; other than `hidden` only where there are projections.
    pub width: usize,
    /// Learned positions, added to the (projected) embedding.
    pub positions: Option<LearnedPositions>,
    /// A norm over the sum.
    pub norm: Option<&'static str>,
    /// A linear layer [hidden, width] without bias, before positions are added.
    pub project_in: Option<&'static str>,
}

/// A vector for each position: [max_sequence_length + offset, hidden].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedPositions {
    /// The tensor.
    pub name: &'static str,
    /// The row of position 0.
    pub offset: usize,
}

/// The decoder blocks, all alike but for their attention windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// What a block's tensors are called, before its number.
    pub name: &'static str,
    /// For each block, how many keys a query sees, its own included; `None` for all before it.
    pub windows: Vec<Option<usize>>,
    /// The norms of the two half-blocks.
    pub norms: [&'static str; 2],
    /// How a half-block's output joins the residual stream.
    pub residual: Residual,
    /// What happens between stages 0 and 1.
    pub attention: Attention,
    /// What happens between stages 2 and 3.
    pub activation: Activation,
    /// Stage 0 is q, k and v, or one layer with all three (for each head q, k, v); stage 1 the attention's output;
    /// stage 2 the way up, after a gate if there is one; stage 3 the way down.
    pub stages: [Vec<Linear>; 4],
}

/// How the output f of a half-block joins the residual stream x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x ← x + f(norm(x)).
    NormBefore,
    /// x ← norm(x) + f(norm(x)).
    Normed,
    /// x ← norm(x + f(x)).
    NormAfter,
}

/// Self-attention with a causal mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// How scores depend on positions.
    pub positions: Positions,
    /// RMS norms over each head of q and of k, before positions.
    pub qk_norm: Option<[&'static str; 2]>,
}

/// How attention scores depend on positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// They do not: positions are in the embedding.
    Embedded,
    /// A slope per head, times the distance, is subtracted (Press et al., arXiv 2108.12409).
    Alibi,
    /// Queries and keys are rotated (Su et al., arXiv 2104.09864).
    Rope(Rope),
}

/// A linear layer y = W·x + b of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its name inside the block; the tensors are called `.weight` and `.bias` after it.
    pub name: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Linear {
    /// A layer with a weight [rows, columns].
    pub fn new(name: &'static str, rows: usize, columns: usize, bias: bool) -> Self {
        Self { name, rows, columns, bias }
    }
}

/// From activations to logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The final norm.
    pub norm: Option<&'static str>,
    /// A linear layer [width, hidden] without bias.
    pub project_out: Option<&'static str>,
    /// Whether the embedding serves as the head where the checkpoint has no [`HEAD_WEIGHT`].
    pub tied: bool,
}
