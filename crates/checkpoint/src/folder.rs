//! A checkpoint folder, opened and checked as a whole.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::map::MappedFile;
use crate::{Error, Tensor, index};

/// The weights in one file.
const SINGLE: &str = "model.safetensors";
/// The index of weights in several files.
const INDEX: &str = "model.safetensors.index.json";
/// Weights as PyTorch pickles them, or their index.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// A Hugging Face checkpoint, memory-mapped for reading. Clones share the maps.
///
/// The files must not be changed or truncated by others while they are mapped.
#[derive(Clone, Debug)]
pub struct Checkpoint(Arc<Contents>);

#[derive(Debug)]
struct Contents {
    folder: PathBuf,
    config: Value,
    weights: Weights,
}

#[derive(Debug)]
struct Weights {
    files: Vec<MappedFile>,
    /// By name: the file that a tensor lies in, and its entry there, as indices.
    tensors: BTreeMap<String, (usize, usize)>,
    /// Whether the files are those of the index.
    indexed: bool,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`: `config.json` and either `model.safetensors` or, where that does not exist, the
    /// files that `model.safetensors.index.json` names (the order in which transformers looks). A tensor that lies in
    /// one of these files without being in the index is not part of the checkpoint; an [`Output`](crate::Output)
    /// copies it.
    ///
    /// # Errors
    /// One variant of [`Error`] for each thing that can be missing or malformed. Nothing is allocated by a length that
    /// has not been compared with the size of the file.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        check_folder(folder)?;
        let config = read_config(folder.join("config.json")).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::NoConfig { folder: folder.to_owned() }
            }
            other => other,
        })?;
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let weights = if single.exists() {
            let file = MappedFile::open(single)?;
            let tensors = file.entries().iter().enumerate().map(|(at, entry)| (entry.name.clone(), (0, at))).collect();
            Weights { files: vec![file], tensors, indexed: false }
        } else if index.exists() {
            open_indexed(folder, &index)?
        } else {
            return Err(match PICKLES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
                Some(path) => Error::OnlyPickle { path },
                None => Error::NoWeights { folder: folder.to_owned() },
            });
        };
        Ok(Self(Arc::new(Contents { folder: folder.to_owned(), config, weights })))
    }

    /// The folder, as given to [`open`](Self::open).
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// `config.json`; always an object.
    pub fn config(&self) -> &Value {
        &self.0.config
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::NoTensor`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.get(name).ok_or_else(|| self.no_tensor(name))
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.locate(name).map(|location| self.at(location))
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.0.weights.tensors.values().map(|&location| self.at(location))
    }

    /// Says that a tensor is not needed for now, so that its pages leave this process's memory; they are read again
    /// where it is used again. Does nothing for an unknown name, and where the system has no such advice.
    pub fn release(&self, name: &str) {
        if let Some((file, entry)) = self.locate(name) {
            let file = &self.0.weights.files[file];
            file.release(file.entries()[entry].range.clone());
        }
    }

    pub(crate) fn files(&self) -> &[MappedFile] {
        &self.0.weights.files
    }

    /// The names of the files that hold the weights, and of their index.
    pub(crate) fn weight_files(&self) -> impl Iterator<Item = &OsStr> {
        let index = self.0.weights.indexed.then_some(INDEX.as_ref());
        self.0.weights.files.iter().filter_map(|file| file.path().file_name()).chain(index)
    }

    /// The file that a tensor lies in, and its entry there, as indices.
    pub(crate) fn locate(&self, name: &str) -> Option<(usize, usize)> {
        self.0.weights.tensors.get(name).copied()
    }

    pub(crate) fn no_tensor(&self, name: &str) -> Error {
        Error::NoTensor { folder: self.0.folder.clone(), tensor: name.to_owned() }
    }

    fn at(&self, (file, entry): (usize, usize)) -> Tensor<'_> {
        let file = &self.0.weights.files[file];
        file.tensor(&file.entries()[entry])
    }
}

/// There is a folder at this path; if not, says what the caller may have meant.
fn check_folder(folder: &Path) -> Result<(), Error> {
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotAFolder { path: folder.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(match hub_id(folder) {
            Some(id) => Error::HubId { id: id.to_owned() },
            None => Error::NoFolder { path: folder.to_owned() },
        }),
        Err(error) => Err(Error::io("read", folder)(error)),
    }
}

/// The path as a name on the Hub, `model` or `owner/model`, if it can be one.
fn hub_id(path: &Path) -> Option<&str> {
    let id = path.to_str()?;
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    let characters = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte));
    (plain && characters && path.components().count() <= 2 && !id.is_empty() && !id.ends_with('/')).then_some(id)
}

/// Reads a `config.json`, with or without a checkpoint around it; what is returned is an object.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`] or [`Error::ConfigNotAnObject`].
pub fn read_config(path: impl Into<PathBuf>) -> Result<Value, Error> {
    let path = path.into();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let found = match serde_json::from_slice(&text) {
        Ok(config @ Value::Object(_)) => return Ok(config),
        Ok(Value::Array(_)) => "an array",
        Ok(Value::String(_)) => "a string",
        Ok(Value::Number(_)) => "a number",
        Ok(Value::Bool(_)) => "a boolean",
        Ok(Value::Null) => "null",
        Err(source) => return Err(Error::Json { path, expected: "a JSON object", source }),
    };
    Err(Error::ConfigNotAnObject { path, found })
}

/// The files that an index names, and where in them its tensors lie.
fn open_indexed(folder: &Path, index: &Path) -> Result<Weights, Error> {
    let mut by_file = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in index::read(index)? {
        by_file.entry(file).or_default().push(tensor);
    }
    let mut weights = Weights { files: Vec::new(), tensors: BTreeMap::new(), indexed: true };
    for (name, tensors) in by_file {
        let path = folder.join(name);
        if !path.exists() {
            let tensor = tensors.into_iter().next().unwrap_or_default();
            return Err(Error::IndexFileMissing { index: index.to_owned(), file: path, tensor });
        }
        let file = MappedFile::open(path)?;
        let entries = file.entries().iter().enumerate().map(|(at, entry)| (entry.name.as_str(), at));
        let entries: HashMap<_, _> = entries.collect();
        for tensor in tensors {
            let Some(&entry) = entries.get(tensor.as_str()) else {
                let (index, file) = (index.to_owned(), file.path().to_owned());
                return Err(Error::IndexTensorMissing { index, file, tensor });
            };
            weights.tensors.insert(tensor, (weights.files.len(), entry));
        }
        drop(entries);
        weights.files.push(file);
    }
    Ok(weights)
}
