//! Every architecture against what `transformers` computes, whole, in chunks and stage by stage.

use crate::common::{
    Expected, deviation, edited, embed, folder, forward_tolerance, logits, logits_of, names, store, values,
};
use checkpoint::{Checkpoint, Values};
use half::bf16;
use model::{Block, Cpu, Model, Stage, Weight, evaluate};
use safetensors::Dtype;
use serde_json::{Value, json};
use testkit::assert_close;

/// The widest product of the golden models: BLOOM's way down has 384 columns.
const COLUMNS: usize = 384;
/// Products in a row: four stages and two attention products per block, two blocks, a projection at either end, the head.
const PRODUCTS: usize = 15;
/// One block: four stages and two products of attention.
const BLOCK_PRODUCTS: usize = 6;

fn with_model(name: &str, test: impl FnOnce(&Model, &Expected)) {
    let checkpoint = Checkpoint::open(&folder(name)).expect("a checkpoint");
    test(&Model::open(&checkpoint).expect(name), &Expected::of(name));
}

fn assert_logits(what: &str, got: &[f32], want: &[f32]) {
    let tolerance = forward_tolerance(PRODUCTS, COLUMNS) * deviation(want);
    assert_close(what, got, want, |_| tolerance);
}

#[test]
fn logits_are_those_of_transformers_however_chunked() {
    let all = [names("models"), names("variants")].concat();
    assert!(all.len() >= 18, "{all:?}");
    for name in all {
        with_model(&name, |model, expected| {
            for chunk in [2, 1] {
                let got = logits(model, &expected.tokens, expected.sequence_length, chunk);
                assert_logits(&format!("{name}, {chunk} sequences at a time"), &got, expected.get("logits"));
            }
        });
    }
}

#[test]
fn the_first_block_is_that_of_transformers() {
    for name in names("models") {
        with_model(&name, |model, expected| {
            let (input, want) = (expected.get("block0_input"), expected.get("block0_output"));
            let tolerance = forward_tolerance(BLOCK_PRODUCTS, COLUMNS) * deviation(want);
            let embedded = embed(model, &expected.tokens, expected.sequence_length);
            let spread = deviation(input);
            assert_close(&format!("{name}: embeddings"), &embedded, input, |_| forward_tolerance(2, 64) * spread);
            let block = model.block(&Cpu::default(), 0).expect("a block");
            let mut x = input.to_vec();
            block.forward(&mut x, expected.tokens.len(), expected.sequence_length).expect("finite activations");
            assert_close(&name, &x, want, |_| tolerance);
        });
    }
}

#[test]
fn stages_one_by_one_are_the_whole_block() {
    for name in [names("models"), names("variants")].concat() {
        with_model(&name, |model, expected| {
            let mut x = embed(model, &expected.tokens, expected.sequence_length);
            for index in 0..model.blocks() {
                let block = model.block(&Cpu::default(), index).expect("a block");
                let mut whole = x.clone();
                block.forward(&mut whole, expected.tokens.len(), expected.sequence_length).expect("finite activations");
                assert_eq!(block.stages(), model.stages(index));
                for (number, stage) in block.stages().iter().enumerate() {
                    let inputs = block.stage_inputs(number, &x, expected.sequence_length).expect("finite inputs");
                    assert_eq!(inputs.len(), expected.tokens.len() * stage.width, "{name}: stage {number}");
                    assert!(stage.layers.iter().all(|layer| layer.columns == stage.width));
                    if Stage::absorbs(number) {
                        block.absorb(number, &mut x, Values::F32(&inputs)).expect("finite outputs");
                    }
                }
                // The same operations in the same order.
                assert_eq!(x, whole, "{name}: block {index}");
            }
        });
    }
}

#[test]
fn new_weights_are_used_by_the_stages_that_follow() {
    with_model("models/llama", |model, expected| {
        let length = expected.sequence_length;
        let x = &expected.get("block0_input").to_vec();
        let mut block = model.block(&Cpu::default(), 0).expect("a block");
        let layer = &model.stages(0)[0].layers[2];
        assert_eq!(layer.name, "model.layers.0.self_attn.v_proj.weight");
        let zeros = Weight::zeros(layer.rows * layer.columns, checkpoint::Dtype::F32).expect("zeros");
        let before = block.stage_inputs(1, x, length).expect("finite inputs");
        assert!(before.iter().any(|&x| x != 0.0));
        *block.weight_mut(&layer.name) = zeros;
        let after = block.stage_inputs(1, x, length).expect("finite inputs");
        assert!(after.iter().all(|&x| x == 0.0), "without values attention gives nothing");
        let mut y = x.to_vec();
        block.absorb(1, &mut y, Values::F32(&after)).expect("finite outputs");
        assert_eq!(&y, x);
    });
}

#[test]
fn inputs_are_rounded_once_and_only_for_bf16_weights() {
    with_model("models/llama", |model, expected| {
        let (x, length) = (&expected.get("block0_input").to_vec(), expected.sequence_length);
        let mut block = model.block(&Cpu::default(), 0).expect("a block");
        let mut rounding = model.block(&Cpu::rounding_inputs(), 0).expect("a block");
        let inputs = block.stage_inputs(1, x, length).expect("finite inputs");
        assert_eq!(rounding.stage_inputs(1, x, length).expect("finite inputs"), inputs, "weights are f32");
        let name = model.stages(0)[1].layers[0].name.clone();
        let stored = model.checkpoint().tensor(&name).and_then(|tensor| tensor.values()).expect("o_proj");
        let Values::F32(weight) = stored else { panic!("f32 weights") };
        let bytes: Vec<u8> = weight.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect();
        let mut narrow = Weight::zeros(weight.len(), checkpoint::Dtype::BF16).expect("zeros");
        narrow.bytes_mut().copy_from_slice(&bytes);
        for block in [&mut block, &mut rounding] {
            *block.weight_mut(&name) = narrow.clone();
        }
        let rounded: Vec<bf16> = inputs.iter().map(|&x| bf16::from_f32(x)).collect();
        let absorbed = |block: &Block, inputs: Values| {
            let mut x = x.to_vec();
            block.absorb(1, &mut x, inputs).expect("finite outputs");
            x
        };
        let want = absorbed(&block, Values::Bf16(&rounded));
        assert_eq!(absorbed(&rounding, Values::F32(&inputs)), want);
        assert_ne!(absorbed(&block, Values::F32(&inputs)), want, "nobody asked for rounding");
    });
}

/// `rope_parameters` as transformers 4 wrote them.
fn as_transformers_4(config: &mut Value, kind: &str) {
    let config = config.as_object_mut().expect("an object");
    if let Some(Value::Object(mut rope)) = config.remove("rope_parameters") {
        config.insert("rope_theta".into(), rope.remove("rope_theta").expect("rope_theta"));
        let rope_type = rope.remove("rope_type").expect("rope_type");
        let scaling = if rope_type == "default" {
            Value::Null
        } else {
            rope.insert(kind.into(), rope_type);
            Value::Object(rope)
        };
        config.insert("rope_scaling".into(), scaling);
    }
    // Those versions left out what a class's own default said, and knew no layer types.
    for key in ["layer_types", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"] {
        let usual = match key {
            "head_dim" => config.get("head_dim") == Some(&json!(16)),
            "layer_types" => true,
            _ => config.get(key) == Some(&json!(false)),
        };
        if usual {
            config.remove(key);
        }
    }
}

#[test]
fn configurations_of_transformers_4_mean_the_same() {
    for name in ["llama", "llama-rope-scaled", "mistral-sliding-window", "qwen2", "qwen3"] {
        for kind in ["type", "rope_type"] {
            let name = format!("models/{name}");
            let expected = Expected::of(&name);
            let old = edited(&name, |config, _| as_transformers_4(config, kind));
            assert_eq!(logits_of(old.path(), &expected), logits_of(&folder(&name), &expected), "{name}");
        }
    }
    // Without layer types, `max_window_layers` says where windows begin.
    let name = "variants/qwen2-upper-window";
    let expected = Expected::of(name);
    let old = edited(name, |config, _| as_transformers_4(config, "type"));
    assert_eq!(logits_of(old.path(), &expected), logits_of(&folder(name), &expected));
    // BLOOM's first checkpoints name their extents otherwise.
    let old = edited("models/bloom", |config, _| {
        let config = config.as_object_mut().expect("an object");
        for (new, old) in
            [("hidden_size", "n_embed"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers")]
        {
            let value = config.remove(new).expect(new);
            config.insert(old.into(), value);
        }
    });
    let expected = Expected::of("models/bloom");
    assert_eq!(logits_of(old.path(), &expected), logits_of(&folder("models/bloom"), &expected));
}

#[test]
fn names_may_lack_their_prefix() {
    for (name, prefix) in [("opt", "model."), ("opt", "model.decoder."), ("bloom", "transformer."), ("llama", "model.")]
    {
        let name = format!("models/{name}");
        let expected = Expected::of(&name);
        let renamed = edited(&name, |_, tensors| {
            let old = std::mem::take(tensors);
            let rename = |name: String| name.strip_prefix(prefix).map_or(name.clone(), str::to_owned);
            tensors.extend(old.into_iter().map(|(name, tensor)| (rename(name), tensor)));
        });
        assert_eq!(logits_of(renamed.path(), &expected), logits_of(&folder(&name), &expected), "{name} less {prefix}");
    }
}

#[test]
fn a_tied_head_may_be_stored_as_either_tensor_or_both() {
    let expected = Expected::of("models/opt");
    let embedding = "model.decoder.embed_tokens.weight";
    let both = edited("models/opt", |_, tensors| {
        let table = tensors[embedding].clone();
        tensors.insert("lm_head.weight".into(), table);
    });
    let head = edited("models/opt", |_, tensors| {
        let table = tensors.remove(embedding).expect("an embedding");
        tensors.insert("lm_head.weight".into(), table);
    });
    let want = logits_of(&folder("models/opt"), &expected);
    assert_eq!(logits_of(both.path(), &expected), want);
    assert_eq!(logits_of(head.path(), &expected), want);
}

#[test]
fn sixteen_bits_give_logits_nearby() {
    for name in names("models") {
        let expected = Expected::of(&name);
        for (dtype, unit) in [(Dtype::F16, 2f64.powi(-11)), (Dtype::BF16, 2f64.powi(-8))] {
            let rounded = edited(&name, |_, tensors| {
                for tensor in tensors.values_mut() {
                    let values = values(tensor);
                    store(tensor, &values, dtype);
                }
            });
            let want = expected.get("logits");
            let spread = deviation(want);
            let got = logits_of(rounded.path(), &expected);
            // Each product's weights are off by at most one unit, at random; the worst entry lies five deviations out,
            // and what a block changes for one layer, softmax and activations may double for the next.
            let tolerance = 2.0 * 5.0 * (PRODUCTS as f64).sqrt() * unit * spread;
            assert_close(&format!("{name} as {dtype:?}"), &got, want, |_| tolerance);
            assert!(got.iter().zip(want).any(|(got, want)| got != want), "{name}: nothing was rounded to {dtype:?}");
            // And the rounded weights are used exactly: widened to f32 beforehand they give the same.
            let widened = edited(&name, |_, tensors| {
                for tensor in tensors.values_mut() {
                    let values: Vec<f32> = match dtype {
                        Dtype::F16 => values(tensor).iter().map(|&x| half::f16::from_f32(x).to_f32()).collect(),
                        _ => values(tensor).iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
                    };
                    store(tensor, &values, Dtype::F32);
                }
            });
            assert_eq!(got, logits_of(widened.path(), &expected), "{name} as {dtype:?}");
        }
    }
}

#[test]
fn losses_follow_from_logits() {
    for name in ["models/opt-post-norm", "models/bloom", "models/llama"] {
        with_model(name, |model, expected| {
            let (length, vocabulary) = (expected.sequence_length, model.description().vocabulary);
            let mut x = embed(model, &expected.tokens, length);
            for index in 0..model.blocks() {
                model
                    .block(&Cpu::default(), index)
                    .expect("a block")
                    .forward(&mut x, expected.tokens.len(), length)
                    .expect("finite activations");
            }
            let losses = model
                .head(&Cpu::default())
                .expect("a head")
                .losses(&x, &expected.tokens, length)
                .expect("finite losses");
            let want: Vec<f64> = expected
                .tokens
                .chunks(length)
                .zip(expected.get("logits").chunks(length * vocabulary))
                .map(|(tokens, logits)| {
                    let rows = logits.chunks(vocabulary).zip(&tokens[1..]);
                    rows.map(|(row, &target)| {
                        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                        total.ln() - f64::from(row[target as usize])
                    })
                    .sum()
                })
                .collect();
            let spread = deviation(expected.get("logits"));
            // Each of the terms is off by at most twice what a logit is.
            let tolerance = 2.0 * length as f64 * forward_tolerance(PRODUCTS, COLUMNS) * spread;
            assert_close(name, &losses, &want, |_| tolerance);

            let mut steps = Vec::new();
            let evaluation =
                evaluate(&Cpu::default(), model, &expected.tokens, length, |done, of| steps.push((done, of)));
            let evaluation = evaluation.expect("an evaluation");
            let mean = losses.iter().sum::<f64>() / (2 * (length - 1)) as f64;
            assert!((evaluation.mean_loss - mean).abs() < 1e-12 * mean, "{evaluation:?} {mean}");
            assert_eq!((evaluation.windows, evaluation.predicted), (2, 2 * (length - 1)));
            assert_eq!(evaluation.perplexity, evaluation.mean_loss.exp());
            assert_eq!(steps, [(1, 3), (2, 3), (3, 3)]);
            // A tail that is no whole window is left out.
            let tail = [&expected.tokens[..], &expected.tokens[..length - 1]].concat();
            assert_eq!(evaluate(&Cpu::default(), model, &tail, length, |_, _| ()).expect("an evaluation"), evaluation);
        });
    }
}
