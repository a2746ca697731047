//! What is wrong with a model is named: the tensor or key, what was found, what was expected.

use crate::common::{Expected, Stored, edited, store, values};
use checkpoint::Checkpoint;
use model::{Cpu, Error, Model, evaluate};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Why a folder cannot be opened as a model.
fn open_error(folder: &Path) -> String {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    Model::open(&checkpoint).expect_err("not a model").to_string()
}

/// Why a model cannot be evaluated.
fn evaluation_error(folder: &Path, tokens: &[u32], sequence_length: usize) -> Error {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    evaluate(&Cpu::default(), &model, tokens, sequence_length, |_, _| ()).expect_err("not to be evaluated")
}

fn assert_contains(error: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| error.contains(part)), "{error:?} does not have all of {parts:?}");
}

#[test]
fn tensors_are_checked_in_every_block() {
    let up = "model.layers.1.mlp.up_proj.weight";
    let missing = edited("models/llama", |_, tensors| drop(tensors.remove(up)));
    assert_contains(&open_error(missing.path()), &[up, "no tensor"]);

    let turned = edited("models/llama", |_, tensors| {
        tensors.entry(up.into()).and_modify(|(_, shape, _)| shape.reverse());
    });
    assert_contains(&open_error(turned.path()), &[up, "[64, 112]", "[112, 64]"]);

    let integers = edited("models/llama", |_, tensors| {
        tensors.entry(up.into()).and_modify(|(dtype, _, _)| *dtype = Dtype::I32);
    });
    assert_contains(&open_error(integers.path()), &[up, "I32", "BF16"]);

    let without_bias =
        edited("models/qwen2", |_, tensors| drop(tensors.remove("model.layers.1.self_attn.q_proj.bias")));
    assert_contains(&open_error(without_bias.path()), &["model.layers.1.self_attn.q_proj.bias"]);

    let without_head = edited("models/llama", |_, tensors| drop(tensors.remove("lm_head.weight")));
    assert_contains(&open_error(without_head.path()), &["lm_head.weight"]);

    let without_positions = edited("models/opt", |config, _| config["max_position_embeddings"] = json!(65));
    assert_contains(&open_error(without_positions.path()), &["embed_positions", "[66, 64]", "[67, 64]"]);
}

#[test]
fn configurations_that_make_no_model_are_named() {
    let none = |model: &str, edit: &dyn Fn(&mut Value)| open_error(edited(model, |config, _| edit(config)).path());
    let error = none("models/llama", &|config| config["model_type"] = json!("mamba"));
    assert_contains(&error, &["config.json", "`model_type` is \"mamba\"", "opt, bloom, llama, mistral, qwen2, qwen3"]);
    let error = none("models/llama", &|config| drop(config.as_object_mut().map(|config| config.remove("model_type"))));
    assert_contains(&error, &["`model_type` is missing", "opt, bloom"]);

    let cases = [
        ("opt", "num_attention_heads", json!(0), "from 1 to"),
        ("opt", "num_attention_heads", json!(5), "a divisor of `hidden_size`, 64"),
        ("opt", "hidden_size", json!(-64), "from 1 to"),
        ("opt", "hidden_size", json!(64.5), "from 1 to"),
        ("opt", "hidden_size", json!(1e300), "from 1 to"),
        ("opt", "ffn_dim", json!(u64::MAX), "from 1 to"),
        ("opt", "num_hidden_layers", json!(1 << 20), "at most 65536 blocks"),
        ("opt", "enable_bias", json!("yes"), "true or false"),
        ("opt", "activation_function", json!("mish"), "one of relu, silu"),
        ("opt", "activation_function", json!(3), "a string"),
        ("bloom", "n_head", json!(7), "a divisor of `hidden_size`, 96"),
        ("bloom", "layer_norm_epsilon", json!(-1e-5), "greater than zero"),
        ("llama", "num_key_value_heads", json!(3), "a divisor of `num_attention_heads`, 4"),
        ("llama", "num_key_value_heads", json!(8), "a divisor of `num_attention_heads`, 4"),
        ("llama", "head_dim", json!(15), "even"),
        ("llama", "rms_norm_eps", json!("1e-6"), "greater than zero"),
        ("llama", "vocab_size", json!(0), "from 1 to"),
        ("llama", "hidden_act", json!("quick_gelu"), "gelu_pytorch_tanh"),
        ("mistral-sliding-window", "sliding_window", json!(0), "from 1 to"),
        ("qwen2", "layer_types", json!(["full_attention"]), "2 times"),
        ("qwen2", "layer_types", json!(["full_attention", "linear_attention"]), "sliding_attention"),
        ("qwen3", "max_window_layers", json!(1), ""),
    ];
    for (model, key, value, expected) in cases {
        let shown = value.to_string();
        let edit = |config: &mut Value| {
            config[key] = value.clone();
            if key == "max_window_layers" {
                config["layer_types"] = json!(["sliding_attention", "full_attention"]);
            }
        };
        let error = none(&format!("models/{model}"), &edit);
        if expected.is_empty() {
            assert_contains(&error, &["`sliding_window` is null"]);
        } else {
            assert_contains(&error, &["config.json", &format!("`{key}` is {shown}"), expected]);
        }
    }
    let long = none("models/opt", &|config| config["activation_function"] = json!("é".repeat(10_000)));
    assert!(long.len() < 500, "{} characters", long.len());
}

#[test]
fn blocks_that_the_configuration_does_not_have_are_named() {
    for (model, key, tensor) in [
        ("models/llama", "num_hidden_layers", "model.layers.1."),
        ("models/opt", "num_hidden_layers", "model.decoder.layers.1."),
        ("models/bloom", "n_layer", "transformer.h.1."),
    ] {
        let cut = edited(model, |config, _| config[key] = json!(1));
        assert_contains(&open_error(cut.path()), &["config.json", "1 blocks", tensor, "block 1"]);
    }
    // What old checkpoints keep beside the tensors of the architecture is not a block.
    let extra = edited("models/llama", |_, tensors| {
        for name in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.1.self_attn.masked_bias",
            "model.layers_of_another_kind.7.weight",
            "model.layers.norms.weight",
            "other.layers.7.weight",
        ] {
            tensors.insert(name.to_owned(), (Dtype::F32, vec![2], vec![0; 8]));
        }
    });
    Model::open(&Checkpoint::open(extra.path()).expect("a checkpoint")).expect("a model");
}

#[test]
fn sizes_that_no_tensor_has_are_refused_before_anything_is_allocated() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_hidden_layers"] {
        let large = if key == "num_hidden_layers" { 1 << 16 } else { 1 << 24 };
        let error = open_error(edited("models/llama", |config, _| config[key] = json!(large)).path());
        assert!(error.contains("`model.") || error.contains("`lm_head"), "{key}: {error}");
    }
}

/// A golden model with one value of one tensor replaced.
fn with_value(name: &str, tensor: &str, position: usize, value: f32) -> tempfile::TempDir {
    edited(name, |_, tensors: &mut BTreeMap<String, Stored>| {
        let stored = tensors.get_mut(tensor).expect(tensor);
        let mut numbers = values(stored);
        numbers[position] = value;
        store(stored, &numbers, Dtype::F32);
    })
}

#[test]
fn nan_and_infinity_in_weights_are_found() {
    let expected = Expected::of("models/opt");
    for (tensor, position, value) in [
        ("model.decoder.layers.1.fc1.weight", 70, f32::NAN),
        ("model.decoder.layers.1.fc2.weight", 5, f32::INFINITY),
        ("model.decoder.layers.0.self_attn.k_proj.weight", 7, f32::NEG_INFINITY),
        ("model.decoder.layers.0.self_attn.out_proj.bias", 3, f32::NAN),
        ("model.decoder.layers.1.final_layer_norm.weight", 0, f32::NAN),
        ("model.decoder.final_layer_norm.bias", 63, f32::INFINITY),
        ("model.decoder.embed_positions.weight", 128, f32::NAN),
    ] {
        let damaged = with_value("models/opt", tensor, position, value);
        let error = evaluation_error(damaged.path(), &expected.tokens, expected.sequence_length);
        match &error {
            Error::WeightNotFinite { tensor: named, position: at, value: found } => {
                assert_eq!((named.as_str(), *at), (tensor, position));
                assert!(found.to_bits() == value.to_bits() || (found.is_nan() && value.is_nan()));
            }
            other => panic!("{tensor}: {other}"),
        }
    }
    // The embedding of a token that is used.
    let token = expected.tokens[4] as usize;
    let damaged = with_value("models/opt", "model.decoder.embed_tokens.weight", token * 64 + 9, f32::NAN);
    let error = evaluation_error(damaged.path(), &expected.tokens, expected.sequence_length).to_string();
    assert_contains(&error, &["embed_tokens", &format!("position {}", token * 64 + 9)]);
}

#[test]
fn activations_that_overflow_name_their_block_and_layer() {
    let expected = Expected::of("models/llama");
    // Finite weights whose product is not: 1e30 on the way up, 1e30 on the way down.
    let damaged = edited("models/llama", |_, tensors| {
        for name in ["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"] {
            let stored = tensors.get_mut(name).expect(name);
            let large: Vec<f32> = values(stored).iter().map(|x| x * 1e30).collect();
            store(stored, &large, Dtype::F32);
        }
    });
    let error = evaluation_error(damaged.path(), &expected.tokens, expected.sequence_length);
    match &error {
        Error::ActivationNotFinite { block, layer, token, column, .. } => {
            assert_eq!((*block, layer.as_str()), (Some(1), "model.layers.1.mlp.down_proj.weight"));
            assert!(*token < expected.tokens.len() && *column < 64);
        }
        other => panic!("{other}"),
    }
    assert_contains(&error.to_string(), &["block 1", "down_proj", "overflow"]);
    // The token is counted over all that a block was given: of zeros nothing overflows, so the first is the 700th.
    let checkpoint = Checkpoint::open(damaged.path()).expect("a checkpoint");
    let block = Model::open(&checkpoint).expect("a model").block(&Cpu::default(), 1).expect("a block");
    let mut x = vec![0.0; 30 * 24 * 64];
    x[700 * 64..701 * 64].fill(1.0);
    x[700 * 64] = -3.0;
    match block.forward(&mut x, 30 * 24, 24).expect_err("an overflow") {
        Error::ActivationNotFinite { token, .. } => assert_eq!(token, 700),
        other => panic!("{other}"),
    }
}

#[test]
fn tokens_and_lengths_out_of_range_are_named() {
    let checkpoint = Checkpoint::open(&crate::common::folder("models/opt")).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let embedding = model.embedding(&Cpu::default()).expect("tables");
    let error = embedding.embed(&[5, 160, 7, 8], 4).expect_err("no such token").to_string();
    assert_contains(&error, &["token 160", "position 1", "160"]);
    let tokens = vec![5; 65];
    assert!(embedding.embed(&tokens[..64], 64).is_ok());
    let error = embedding.embed(&tokens, 65).expect_err("too long").to_string();
    assert_contains(&error, &["65 tokens", "at most 64"]);
    for (length, given) in [(1, 65), (0, 65), (66, 65)] {
        let error = evaluate(&Cpu::default(), &model, &tokens[..given], length, |_, _| ())
            .expect_err("nothing to predict")
            .to_string();
        assert_contains(&error, &[&format!("sequences of {length} tokens"), "at most the 65"]);
    }
}
