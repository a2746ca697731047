//! `model.safetensors.index.json`: which file each tensor of a checkpoint lies in.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::Error;

/// The part of the index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The file that each tensor lies in, as the index at `path` says. The names are those of files in the same folder, not
/// paths.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let index: Index = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        expected: "an object whose weight_map maps tensors to files",
        source,
    })?;
    match index.weight_map.iter().find(|(_, file)| !is_file_name(file)) {
        Some((tensor, file)) => {
            Err(Error::IndexFileName { index: path.to_owned(), tensor: tensor.clone(), found: file.clone() })
        }
        None => Ok(index.weight_map),
    }
}

/// Whether a name stays in the folder it is joined to.
pub(crate) fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}
