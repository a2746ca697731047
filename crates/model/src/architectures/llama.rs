//! LLaMA (Touvron et al., arXiv 2302.13971), and the shape that its descendants share: RoPE, RMS norms, a gated
//! feed-forward half, fewer heads of keys than of queries.

use super::{Config, Description, Error};
use crate::activation::Activation;
use crate::description::{Attention, Blocks, Embedding, Head, Linear, Norm, NormKind, Positions, Residual};
use crate::rope::Rope;

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    let attention_bias = config.boolean("attention_bias", false)?;
    Variant {
        architecture: "llama",
        vocabulary: 32000,
        feed_forward: 11008,
        kv_heads: None,
        head_dim: None,
        max_sequence_length: 2048,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        feed_forward_bias: config.boolean("mlp_bias", false)?,
        qk_norm: None,
        windows: |_, blocks| Ok(vec![None; blocks]),
    }
    .describe(config)
}

/// The attention window of each of so many blocks.
type Windows = fn(&Config, usize) -> Result<Vec<Option<usize>>, Error>;

/// What the descendants differ in; numbers are what transformers takes where `config.json` says nothing.
pub(super) struct Variant {
    pub(super) architecture: &'static str,
    pub(super) vocabulary: usize,
    pub(super) feed_forward: usize,
    /// As many as heads of queries if `None`.
    pub(super) kv_heads: Option<usize>,
    /// `hidden / heads` if `None`.
    pub(super) head_dim: Option<usize>,
    pub(super) max_sequence_length: usize,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) feed_forward_bias: bool,
    pub(super) qk_norm: Option<[&'static str; 2]>,
    pub(super) windows: Windows,
}

impl Variant {
    pub(super) fn describe(self, config: &Config) -> Result<Description, Error> {
        let hidden = config.size("hidden_size", 4096)?;
        let feed_forward = config.size("intermediate_size", self.feed_forward)?;
        let (heads, head_dim) = match config.optional_size("head_dim")?.or(self.head_dim) {
            Some(head_dim) => (config.size("num_attention_heads", 32)?, head_dim),
            None => {
                let heads = config.divisor("num_attention_heads", 32, "hidden_size", hidden)?;
                (heads, hidden / heads)
            }
        };
        let kv_heads = match self.kv_heads {
            Some(default) if !config.is_null("num_key_value_heads") => default,
            _ => heads,
        };
        let kv_heads = config.divisor("num_key_value_heads", kv_heads, "num_attention_heads", heads)?;
        let max_sequence_length = config.size("max_position_embeddings", self.max_sequence_length)?;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let bias = self.feed_forward_bias;
        Ok(Description {
            architecture: self.architecture,
            prefixes: &["model.", ""],
            vocabulary: config.size("vocab_size", self.vocabulary)?,
            hidden,
            max_sequence_length,
            norm: Norm { kind: NormKind::Rms, epsilon: config.positive("rms_norm_eps", 1e-6)? as f32, affine: true },
            embedding: Embedding {
                tokens: "embed_tokens",
                width: hidden,
                positions: None,
                norm: None,
                project_in: None,
            },
            blocks: Blocks {
                name: "layers",
                windows: (self.windows)(config, config.blocks("num_hidden_layers", 32)?)?,
                norms: ["input_layernorm", "post_attention_layernorm"],
                residual: Residual::NormBefore,
                attention: Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    positions: Positions::Rope(Rope::read(config, head_dim, max_sequence_length)?),
                    qk_norm: self.qk_norm,
                },
                activation: Activation::read(config, "hidden_act", "silu")?,
                stages: [
                    vec![
                        Linear::new("self_attn.q_proj", queries, hidden, self.qkv_bias),
                        Linear::new("self_attn.k_proj", keys, hidden, self.qkv_bias),
                        Linear::new("self_attn.v_proj", keys, hidden, self.qkv_bias),
                    ],
                    vec![Linear::new("self_attn.o_proj", hidden, queries, self.output_bias)],
                    vec![
                        Linear::new("mlp.gate_proj", feed_forward, hidden, bias),
                        Linear::new("mlp.up_proj", feed_forward, hidden, bias),
                    ],
                    vec![Linear::new("mlp.down_proj", hidden, feed_forward, bias)],
                ],
            },
            head: Head { norm: Some("norm"), project_out: None, tied: config.boolean("tie_word_embeddings", false)? },
        })
    }
}
