//! BLOOM (Scao et al., arXiv 2211.05100): ALiBi, one layer for q, k and v, a norm over the embedding.

use super::{Config, Description, Error};
use crate::activation::Activation;
use crate::description::{Attention, Blocks, Embedding, Head, Linear, Norm, NormKind, Positions, Residual};

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    let hidden_key = config.alias(&["n_embed", "hidden_size"]);
    let hidden = config.size(hidden_key, 64)?;
    let heads = config.divisor(config.alias(&["n_head", "num_attention_heads"]), 8, hidden_key, hidden)?;
    let normed = config.boolean("apply_residual_connection_post_layernorm", false)?;
    Ok(Description {
        architecture: "bloom",
        prefixes: &["transformer.", ""],
        vocabulary: config.size("vocab_size", 250_880)?,
        hidden,
        max_sequence_length: config.size("seq_length", 2048)?,
        norm: Norm {
            kind: NormKind::Layer,
            epsilon: config.positive("layer_norm_epsilon", 1e-5)? as f32,
            affine: true,
        },
        embedding: Embedding {
            tokens: "word_embeddings",
            width: hidden,
            positions: None,
            norm: Some("word_embeddings_layernorm"),
            project_in: None,
        },
        blocks: Blocks {
            name: "h",
            windows: vec![None; config.blocks(config.alias(&["n_layer", "num_hidden_layers"]), 2)?],
            norms: ["input_layernorm", "post_attention_layernorm"],
            residual: if normed { Residual::Normed } else { Residual::NormBefore },
            attention: Attention {
                heads,
                kv_heads: heads,
                head_dim: hidden / heads,
                positions: Positions::Alibi,
                qk_norm: None,
            },
            activation: Activation::GeluTanh,
            stages: [
                vec![Linear::new("self_attention.query_key_value", 3 * hidden, hidden, true)],
                vec![Linear::new("self_attention.dense", hidden, hidden, true)],
                vec![Linear::new("mlp.dense_h_to_4h", 4 * hidden, hidden, true)],
                vec![Linear::new("mlp.dense_4h_to_h", hidden, 4 * hidden, true)],
            ],
        },
        head: Head { norm: Some("ln_f"), project_out: None, tied: config.boolean("tie_word_embeddings", true)? },
    })
}
