//! The layer problems of `golden/prune/` with their float64 answers (`golden/make_prune.py` made them), and the models of
//! `golden/models/` and `golden/variants/`, also in 16 bits.

use std::collections::HashMap;
use std::fmt::Debug;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::paths;

/// How a golden problem chooses the weights that go.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// This share of each panel's weights; zero where the problem only quantizes.
    Unstructured {
        /// In [0, 1).
        sparsity: f64,
    },
    /// `keep` of every `group` consecutive columns of a row stay.
    NOfM {
        /// How many stay.
        keep: usize,
        /// Of how many.
        group: usize,
    },
    /// Chosen beforehand: [rows, columns] row-major, true where a weight stays.
    Fixed(Vec<bool>),
}

/// One layer problem and its answer. Matrices are row-major.
#[derive(Debug, Clone)]
pub struct PruneCase {
    /// The file's stem.
    pub name: String,
    /// Outputs of the layer.
    pub rows: usize,
    /// Inputs of the layer.
    pub columns: usize,
    /// Rows of `inputs`.
    pub tokens: usize,
    /// Which weights go.
    pub choice: Choice,
    /// Columns handled together.
    pub panel_width: usize,
    /// The share of the mean of H's diagonal that is added to the diagonal.
    pub damping: f64,
    /// Where given, what stays is rounded to a grid of `2^bits` points.
    pub bits: Option<u32>,
    /// W [rows, columns].
    pub weight: Vec<f32>,
    /// X [tokens, columns].
    pub inputs: Vec<f32>,
    /// Q [rows, columns].
    pub pruned: Vec<f64>,
    /// Σ e² / 2 of each row, for H = XᵀX, `[rows]`.
    pub loss: Vec<f64>,
    /// U [columns, columns], upper triangular, H⁻¹ = UᵀU for the damped H; three of the problems have it.
    pub inverse_factor: Option<Vec<f64>>,
}

/// All problems of `golden/prune/`, in order of their names.
///
/// # Panics
/// If the folder or a file in it is not what `golden/make_prune.py` writes.
pub fn prune_cases() -> Vec<PruneCase> {
    let folder = paths::golden().join("prune");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("reading {}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a readable folder entry").path()).collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let name = path.file_stem().expect("a file name").to_string_lossy();
            let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
            prune_case(&name, &bytes)
        })
        .collect()
}

fn prune_case(name: &str, bytes: &[u8]) -> PruneCase {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let settings = header.metadata().as_ref().unwrap_or_else(|| panic!("{name}: no metadata"));
    let tensors = SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let shape = |tensor: &str| match tensors.tensor(tensor) {
        Ok(view) => view.shape().to_vec(),
        Err(error) => panic!("{name}: {tensor}: {error}"),
    };
    let (weight, inputs) = (shape("weight"), shape("inputs"));
    let (keep, group) = (setting(name, settings, "keep"), setting(name, settings, "group"));
    let choice = if let Ok(mask) = tensors.tensor("mask") {
        Choice::Fixed(mask.data().iter().map(|&goes| goes == 0).collect())
    } else if group > 0 {
        Choice::NOfM { keep, group }
    } else {
        Choice::Unstructured { sparsity: setting(name, settings, "sparsity") }
    };
    PruneCase {
        name: name.to_owned(),
        rows: weight[0],
        columns: weight[1],
        tokens: inputs[0],
        choice,
        panel_width: setting(name, settings, "block"),
        damping: setting(name, settings, "damping"),
        bits: Some(setting(name, settings, "bits")).filter(|&bits| bits > 0),
        weight: values(name, &tensors, "weight", Dtype::F32, f32::from_le_bytes),
        inputs: values(name, &tensors, "inputs", Dtype::F32, f32::from_le_bytes),
        pruned: values(name, &tensors, "pruned", Dtype::F64, f64::from_le_bytes),
        loss: values(name, &tensors, "loss", Dtype::F64, f64::from_le_bytes),
        inverse_factor: tensors.tensor("factor").is_ok().then(|| {
            // The file holds L = Uᵀ, lower triangular: `.T` is a view in numpy, and its memory was written as it lay.
            let lower = values(name, &tensors, "factor", Dtype::F64, f64::from_le_bytes);
            let n = weight[1];
            (0..n * n).map(|i| lower[i % n * n + i / n]).collect()
        }),
    }
}

fn setting<T: FromStr<Err: Debug>>(name: &str, settings: &HashMap<String, String>, key: &str) -> T {
    let text = settings.get(key).unwrap_or_else(|| panic!("{name}: no {key} in the metadata"));
    text.parse().unwrap_or_else(|error| panic!("{name}: {key} = {text}: {error:?}"))
}

fn values<const N: usize, T>(
    name: &str,
    tensors: &SafeTensors,
    tensor: &str,
    dtype: Dtype,
    from_bytes: impl Fn([u8; N]) -> T,
) -> Vec<T> {
    let view = tensors.tensor(tensor).unwrap_or_else(|error| panic!("{name}: {tensor}: {error}"));
    assert_eq!(view.dtype(), dtype, "{name}: dtype of {tensor}");
    view.data().as_chunks::<N>().0.iter().map(|&bytes| from_bytes(bytes)).collect()
}

/// All golden models, as `models/llama` or `variants/llama-yarn`, in order.
///
/// # Panics
/// If a folder of them cannot be read.
pub fn model_names() -> Vec<String> {
    let mut names = Vec::new();
    for of in ["models", "variants"] {
        let entries = std::fs::read_dir(paths::golden().join(of)).expect("a folder of golden models");
        names.extend(entries.map(|entry| format!("{of}/{}", entry.expect("an entry").file_name().to_string_lossy())));
    }
    names.sort();
    names
}

/// A copy of a golden model, such as `models/llama`, with all tensors rounded to a type: F32, F16 or BF16.
///
/// # Panics
/// If it cannot be copied, or for another type.
pub fn rounded_model(name: &str, dtype: Dtype) -> TempDir {
    let from = paths::golden().join(name);
    let read = |file: &str| std::fs::read(from.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
    let bytes = read("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let round = |view: &TensorView| -> Vec<u8> {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        match dtype {
            Dtype::F32 => view.data().to_vec(),
            Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            other => panic!("no copies in {other:?}"),
        }
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec(), round(&view))).collect();
    let to = TempDir::new().expect("a temporary folder");
    std::fs::write(to.path().join("config.json"), read("config.json")).expect("a copy");
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(dtype, shape.clone(), data).expect("bytes that fit the shape"))
    });
    safetensors::serialize_to_file(views, None, &to.path().join("model.safetensors")).expect("tensors are written");
    to
}
