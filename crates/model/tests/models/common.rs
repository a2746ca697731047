//! Golden models, and copies of them with something changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::Checkpoint;
use half::{bf16, f16};
use model::{Cpu, Model};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// The folder of a golden model, `models/llama` for example.
pub(crate) fn folder(name: &str) -> PathBuf {
    testkit::paths::golden().join(name)
}

/// The models in a folder of `golden/`, as `models/llama`.
pub(crate) fn names(of: &str) -> Vec<String> {
    let entries = fs::read_dir(folder(of)).expect("a folder of golden models");
    let mut names: Vec<String> =
        entries.map(|entry| format!("{of}/{}", entry.expect("an entry").file_name().to_string_lossy())).collect();
    names.sort();
    names
}

/// What `transformers` computes for a golden model.
pub(crate) struct Expected {
    pub(crate) tokens: Vec<u32>,
    pub(crate) sequence_length: usize,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Expected {
    pub(crate) fn of(name: &str) -> Self {
        let bytes = fs::read(folder(name).join("expected.safetensors")).expect("expected.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let ids = file.tensor("input_ids").expect("input_ids");
        let tokens = ids.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
        let floats = |data: &[u8]| data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let tensors = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
        let tensors = tensors.map(|(name, view)| (name.to_owned(), floats(view.data()))).collect();
        Self { tokens, sequence_length: ids.shape()[1], tensors }
    }

    pub(crate) fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name]
    }
}

/// The spread of numbers about their mean.
pub(crate) fn deviation(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// How far two f32 forward passes of `products` matrix products in a row, of up to `columns` terms each, may be apart,
/// as a share of the spread of what they compute: each product adds errors like a random walk of √columns steps of one
/// unit roundoff, on both sides; the worst of thousands of entries lies five standard deviations out.
pub(crate) fn forward_tolerance(products: usize, columns: usize) -> f64 {
    2.0 * 5.0 * products as f64 * (columns as f64).sqrt() * testkit::tolerance::UNIT_F32
}

/// The input of the first block.
pub(crate) fn embed(model: &Model, tokens: &[u32], sequence_length: usize) -> Vec<f32> {
    let embedding = model.embedding(&Cpu::default()).expect("tables");
    embedding.embed(tokens, sequence_length).expect("embeddings")
}

/// Logits of all tokens, `chunk` sequences at a time.
pub(crate) fn logits(model: &Model, tokens: &[u32], sequence_length: usize, chunk: usize) -> Vec<f32> {
    let chunks = tokens.chunks(chunk * sequence_length);
    chunks
        .flat_map(|tokens| {
            let mut x = embed(model, tokens, sequence_length);
            for index in 0..model.blocks() {
                model
                    .block(&Cpu::default(), index)
                    .expect("a block")
                    .forward(&mut x, tokens.len(), sequence_length)
                    .expect("finite activations");
            }
            model.head(&Cpu::default()).expect("a head").logits(&x).expect("finite logits")
        })
        .collect()
}

/// Logits of a checkpoint folder for the tokens of a golden model.
pub(crate) fn logits_of(folder: &Path, expected: &Expected) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    logits(&model, &expected.tokens, expected.sequence_length, 2)
}

/// A tensor: its type, shape and bytes.
pub(crate) type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden model whose configuration and tensors went through `edit`.
pub(crate) fn edited(name: &str, edit: impl FnOnce(&mut Value, &mut BTreeMap<String, Stored>)) -> TempDir {
    let from = folder(name);
    let config = fs::read(from.join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    let bytes = fs::read(from.join("model.safetensors")).expect("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let stored = |view: &TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut tensors = file.iter().map(|(name, view)| (name.to_owned(), stored(&view))).collect();
    edit(&mut config, &mut tensors);
    let to = TempDir::new().expect("a temporary folder");
    fs::write(to.path().join("config.json"), config.to_string()).expect("config.json is written");
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("bytes that fit the shape"))
    });
    safetensors::serialize_to_file(views, None, &to.path().join("model.safetensors")).expect("tensors are written");
    to
}

/// The f32 values of a stored tensor.
pub(crate) fn values((dtype, _, bytes): &Stored) -> Vec<f32> {
    assert_eq!(*dtype, Dtype::F32);
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Stores other values, rounded to `dtype`.
pub(crate) fn store((to_dtype, _, bytes): &mut Stored, values: &[f32], dtype: Dtype) {
    *to_dtype = dtype;
    *bytes = match dtype {
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
}
