//! Tiny checkpoints for the tests of this crate.
#![allow(dead_code, reason = "each test file uses some of these")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A safetensors file: the length of the header, the header, the data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A well-formed file of three tensors: `a` F32 [2, 3], `b` F16 [4], `c` I64 [1]; `a` lies last in the header, first in
/// the data.
pub(crate) fn valid_file() -> Vec<u8> {
    let mut header = String::from(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[1],"data_offsets":[32,40]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
    );
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let data: Vec<u8> = (0..40).map(|byte| byte * 3 + 1).collect();
    safetensors(&header, &data)
}

/// A file of F32 vectors, as `safetensors` itself writes it.
pub(crate) fn vectors(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let bytes: Vec<_> = tensors.iter().map(|(name, values)| (*name, bytemuck::cast_slice::<f32, u8>(values))).collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![bytes.len() / 4], bytes);
        (*name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A folder with these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// A checkpoint folder whose weights are this one file.
pub(crate) fn single(weights: &[u8]) -> TempDir {
    folder(&[("config.json", b"{}"), ("model.safetensors", weights)])
}

/// A checkpoint of two files: `x`, `y` in the first, `z` and `unlisted` in the second.
pub(crate) fn indexed() -> TempDir {
    folder(&[
        ("config.json", br#"{"model_type":"opt"}"#),
        ("model-00001-of-00002.safetensors", &vectors(&[("x", &[1.0, 2.0]), ("y", &[3.0])])),
        ("model-00002-of-00002.safetensors", &vectors(&[("unlisted", &[7.0]), ("z", &[4.0, 5.0, 6.0])])),
        (
            "model.safetensors.index.json",
            br#"{"metadata":{"total_size":24},"weight_map":{"x":"model-00001-of-00002.safetensors","y":"model-00001-of-00002.safetensors","z":"model-00002-of-00002.safetensors"}}"#,
        ),
        ("tokenizer.json", b"{ }\n"),
        ("original/params.json", b"[]"),
    ])
}

/// Every file below a folder, by its path there.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for item in fs::read_dir(next).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
