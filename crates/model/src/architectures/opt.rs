//! OPT (Zhang et al., arXiv 2205.01068): learned positions; norms before each half-block, or after it in the 350M model,
//! which also projects narrow embeddings.

use super::{Config, Description, Error};
use crate::activation::Activation;
use crate::description::{
    Attention, Blocks, Embedding, Head, LearnedPositions, Linear, Norm, NormKind, Positions, Residual,
};

pub(super) fn describe(config: &Config) -> Result<Description, Error> {
    let hidden = config.size("hidden_size", 768)?;
    let feed_forward = config.size("ffn_dim", 3072)?;
    let heads = config.divisor("num_attention_heads", 12, "hidden_size", hidden)?;
    let width = config.size("word_embed_proj_dim", hidden)?;
    let bias = config.boolean("enable_bias", true)?;
    let norm_before = config.boolean("do_layer_norm_before", true)?;
    let final_norm = norm_before && !config.boolean("_remove_final_layer_norm", false)?;
    let affine = config.boolean("layer_norm_elementwise_affine", true)?;
    Ok(Description {
        architecture: "opt",
        prefixes: &["model.decoder.", "decoder.", ""],
        vocabulary: config.size("vocab_size", 50272)?,
        hidden,
        max_sequence_length: config.size("max_position_embeddings", 2048)?,
        norm: Norm { kind: NormKind::Layer, epsilon: 1e-5, affine },
        embedding: Embedding {
            tokens: "embed_tokens",
            width,
            positions: Some(LearnedPositions { name: "embed_positions", offset: 2 }),
            norm: None,
            project_in: (width != hidden).then_some("project_in"),
        },
        blocks: Blocks {
            name: "layers",
            windows: vec![None; config.blocks("num_hidden_layers", 12)?],
            norms: ["self_attn_layer_norm", "final_layer_norm"],
            residual: if norm_before { Residual::NormBefore } else { Residual::NormAfter },
            attention: Attention {
                heads,
                kv_heads: heads,
                head_dim: hidden / heads,
                positions: Positions::Embedded,
                qk_norm: None,
            },
            activation: Activation::read(config, "activation_function", "relu")?,
            stages: [
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
                    .map(|name| Linear::new(name, hidden, hidden, bias))
                    .into(),
                vec![Linear::new("self_attn.out_proj", hidden, hidden, bias)],
                vec![Linear::new("fc1", feed_forward, hidden, bias)],
                vec![Linear::new("fc2", hidden, feed_forward, bias)],
            ],
        },
        head: Head {
            norm: final_norm.then_some("final_layer_norm"),
            project_out: (width != hidden).then_some("project_out"),
            tied: config.boolean("tie_word_embeddings", true)?,
        },
    })
}
