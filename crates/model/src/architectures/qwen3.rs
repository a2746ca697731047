//! Qwen3 (arXiv 2505.09388): Qwen2 without its biases, with norms over each head of q and k.

use super::llama::Variant;
use super::{Config, Description, Error, qwen2};

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    let attention_bias = config.boolean("attention_bias", false)?;
    Variant {
        architecture: "qwen3",
        vocabulary: 151_936,
        feed_forward: 22016,
        kv_heads: Some(32),
        head_dim: Some(128),
        max_sequence_length: 32768,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        feed_forward_bias: false,
        qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
        windows: qwen2::windows,
    }
    .describe(config)
}
