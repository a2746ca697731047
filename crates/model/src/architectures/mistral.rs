//! Mistral (Jiang et al., arXiv 2310.06825): LLaMA with one attention window for all blocks.

use super::llama::Variant;
use super::{Config, Description, Error};

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    Variant {
        architecture: "mistral",
        vocabulary: 32000,
        feed_forward: 14336,
        kv_heads: Some(8),
        head_dim: None,
        max_sequence_length: 131_072,
        qkv_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        qk_norm: None,
        windows: |config, blocks| {
            // null means none, but a missing key means the window that the first model had.
            let window =
                if config.is_null("sliding_window") { None } else { Some(config.size("sliding_window", 4096)?) };
            Ok(vec![window; blocks])
        },
    }
    .describe(config)
}
