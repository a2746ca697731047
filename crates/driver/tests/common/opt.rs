//! OPT checkpoints of random weights in f16, made on the spot.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use serde_json::{Value, json};
use testkit::generate::Random;

/// Columns of a head.
const HEAD: usize = 64;

/// Weights repeat after so many: a prime, so that no two rows are alike.
const PERIOD: usize = 1_000_003;

/// The shape of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) blocks: usize,
}

impl Opt {
    /// Every tensor with its shape, in the order of the file.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { vocabulary, positions, hidden, feed_forward, blocks } = *self;
        let mut tensors = vec![
            ("embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("embed_positions.weight".to_owned(), vec![positions + 2, hidden]),
        ];
        let mut linear = |name: String, shape: Vec<usize>| {
            tensors.push((format!("{name}.bias"), vec![shape[0]]));
            tensors.push((format!("{name}.weight"), shape));
        };
        linear("final_layer_norm".to_owned(), vec![hidden]);
        for block in 0..blocks {
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(format!("layers.{block}.self_attn.{name}"), vec![hidden, hidden]);
            }
            linear(format!("layers.{block}.fc1"), vec![feed_forward, hidden]);
            linear(format!("layers.{block}.fc2"), vec![hidden, feed_forward]);
            for name in ["self_attn_layer_norm", "final_layer_norm"] {
                linear(format!("layers.{block}.{name}"), vec![hidden]);
            }
        }
        tensors.into_iter().map(|(name, shape)| (format!("model.decoder.{name}"), shape)).collect()
    }

    /// Bytes of a block's linear layers.
    pub(crate) fn block_bytes(&self) -> u64 {
        (2 * (4 * self.hidden * self.hidden + 2 * self.hidden * self.feed_forward)) as u64
    }

    /// Writes the shape into an OPT's `config.json`.
    pub(crate) fn configure(&self, config: &mut Value) {
        config["vocab_size"] = json!(self.vocabulary);
        config["max_position_embeddings"] = json!(self.positions);
        config["hidden_size"] = json!(self.hidden);
        config["word_embed_proj_dim"] = json!(self.hidden);
        config["ffn_dim"] = json!(self.feed_forward);
        config["num_hidden_layers"] = json!(self.blocks);
        config["num_attention_heads"] = json!(self.hidden / HEAD);
    }

    /// Writes the weights into a folder.
    pub(crate) fn write_weights(&self, folder: &Path) {
        let tensors = self.tensors();
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(name.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut random = Random::new(5);
        let noise: Vec<u8> = (0..PERIOD).flat_map(|_| f16::from_f64(0.02 * random.normal()).to_le_bytes()).collect();
        // Not piece by piece in memory: the model may be larger than that.
        let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        let mut at = 0;
        for (name, shape) in &tensors {
            let mut left = 2 * shape.iter().product::<usize>();
            if name.ends_with("norm.weight") {
                file.write_all(&f16::ONE.to_le_bytes().repeat(left / 2)).unwrap();
                continue;
            }
            while left > 0 {
                let piece = left.min(noise.len() - at);
                file.write_all(&noise[at..at + piece]).unwrap();
                (left, at) = (left - piece, (at + piece) % noise.len());
            }
        }
        file.flush().unwrap();
    }
}
