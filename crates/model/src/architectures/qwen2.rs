//! Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): LLaMA with biases on q, k and v and windows in the upper blocks.

use super::llama::Variant;
use super::{Config, Description, Error};

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    Variant {
        architecture: "qwen2",
        vocabulary: 151_936,
        feed_forward: 22016,
        kv_heads: Some(32),
        head_dim: None,
        max_sequence_length: 32768,
        qkv_bias: true,
        output_bias: false,
        feed_forward_bias: false,
        qk_norm: None,
        windows,
    }
    .describe(config)
}

/// Windows where `layer_types` says so; without it, from block `max_window_layers` on. None at all unless
/// `use_sliding_window`.
pub(super) fn windows(config: &Config, blocks: usize) -> Result<Vec<Option<usize>>, Error> {
    let window = match config.boolean("use_sliding_window", false)? && !config.is_null("sliding_window") {
        true => Some(config.size("sliding_window", 4096)?),
        false => None,
    };
    let Some(types) = config.get("layer_types") else {
        // Not a size: zero is a meaning.
        let first = match config.get("max_window_layers") {
            Some(value) => {
                value.as_u64().ok_or_else(|| config.unexpected("max_window_layers", "a number of blocks"))? as usize
            }
            None => 28,
        };
        return Ok((0..blocks).map(|block| window.filter(|_| block >= first)).collect());
    };
    let expected =
        || config.unexpected("layer_types", format!("\"full_attention\" or \"sliding_attention\" {blocks} times"));
    let types = types.as_array().filter(|types| types.len() == blocks).ok_or_else(expected)?;
    let window_of = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => Err(config.unexpected("sliding_window", "a number, with use_sliding_window true")),
        _ => Err(expected()),
    };
    types.iter().map(window_of).collect()
}
