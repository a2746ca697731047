//! What can be wrong with a checkpoint, with the evidence.

use std::io;
use std::path::PathBuf;

use crate::Dtype;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not exist.
    #[error("{} does not exist", path.display())]
    NoFolder {
        /// The path given.
        path: PathBuf,
    },
    /// The path does not exist and reads like the name of a model on the Hugging Face Hub.
    #[error(
        "there is no folder `{id}` here; if it is a model of the Hugging Face Hub, download it first: `hf download {id} \
         --local-dir FOLDER`, then name FOLDER"
    )]
    HubId {
        /// The name given.
        id: String,
    },
    /// The path is not a folder.
    #[error("{} is a file; a checkpoint is the folder that holds config.json and the safetensors", path.display())]
    NotAFolder {
        /// The path given.
        path: PathBuf,
    },
    /// The folder has no `config.json`.
    #[error("{} has no config.json; a checkpoint is a folder as transformers' save_pretrained writes it", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// `config.json` or the index is not the JSON that it should be.
    #[error("{} is not valid: {source}; expected {expected}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// `config.json` is JSON, but not an object.
    #[error("{} holds {found}; expected a JSON object", path.display())]
    ConfigNotAnObject {
        /// The file.
        path: PathBuf,
        /// The kind of JSON value found.
        found: &'static str,
    },
    /// The folder holds no safetensors that belong to a model.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds weights in PyTorch's pickle format only.
    #[error(
        "{} is a PyTorch pickle, which is not read; convert it: load the folder with transformers' from_pretrained and \
         write it with save_pretrained, which makes model.safetensors",
        path.display()
    )]
    OnlyPickle {
        /// The pickled weights.
        path: PathBuf,
    },
    /// The index names a file with something other than a plain file name.
    #[error("{}: `{tensor}` is said to lie in `{found}`; expected the name of a file in the same folder", index.display())]
    IndexFileName {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file name found.
        found: String,
    },
    /// The index names a file that does not exist.
    #[error("{} names `{}` for `{tensor}`, and there is no such file; was the download complete?", index.display(), file.display())]
    IndexFileMissing {
        /// The index.
        index: PathBuf,
        /// The file that is missing.
        file: PathBuf,
        /// A tensor that should lie in it.
        tensor: String,
    },
    /// The index says that a tensor lies in a file, which does not have it.
    #[error("{} says that `{tensor}` lies in {}, which has no such tensor", index.display(), file.display())]
    IndexTensorMissing {
        /// The index.
        index: PathBuf,
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A file is not a well-formed safetensors file.
    #[error("{}: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{} has no tensor `{tensor}`", folder.display())]
    NoTensor {
        /// The checkpoint.
        folder: PathBuf,
        /// The tensor asked for.
        tensor: String,
    },
    /// A tensor's numbers are of a type that is not computed with.
    #[error("`{tensor}` is stored as {dtype}; expected F32, F16 or BF16")]
    TensorDtype {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        dtype: Dtype,
    },
    /// A tensor's bytes cannot be viewed as its type.
    #[error("the {length} bytes of `{tensor}` cannot be read as {dtype}: {reason}")]
    TensorBytes {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        dtype: Dtype,
        /// Bytes found.
        length: usize,
        /// Why not.
        reason: bytemuck::PodCastError,
    },
    /// Values were to be rounded to a type that is not a float of 16 or 32 bits.
    #[error("values cannot be rounded to {dtype}; expected F32, F16 or BF16")]
    NarrowDtype {
        /// The type asked for.
        dtype: Dtype,
    },
    /// A value has no finite counterpart in the type it is to be stored as.
    #[error("value {value} at position {position} does not fit {dtype}")]
    NotFinite {
        /// Index into the values.
        position: usize,
        /// The value: NaN, infinite, or too large for the type.
        value: f32,
        /// The type it should be stored as.
        dtype: Dtype,
    },
    /// The number of bytes to write differs from the tensor's.
    #[error("`{tensor}` takes {expected} bytes, {found} were given")]
    TensorLength {
        /// The tensor.
        tensor: String,
        /// Its length in bytes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// An extra file's name is not a plain file name, or is that of the weights or their index.
    #[error("`{name}` cannot be written beside the weights: {reason}")]
    FileName {
        /// The name given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The output is or contains the checkpoint that is read, or lies inside it.
    #[error("the output {} {relation} the checkpoint {} that is read; choose another folder", output.display(), source_folder.display())]
    OutputMeetsSource {
        /// The output.
        output: PathBuf,
        /// How the two meet: "is", "lies inside", "contains".
        relation: &'static str,
        /// The checkpoint.
        source_folder: PathBuf,
    },
    /// The output exists and may not be replaced.
    #[error("{} exists; overwrite it explicitly or choose another folder", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output exists and is not a folder.
    #[error("{} exists and is not a folder; choose another one", path.display())]
    OutputNotAFolder {
        /// The output.
        path: PathBuf,
    },
    /// The output is a folder which is not a checkpoint, and is therefore not replaced.
    #[error(
        "{} exists and has no config.json: it is not a checkpoint and is not overwritten; choose another folder or \
         remove it yourself",
        path.display()
    )]
    OutputNotACheckpoint {
        /// The output.
        path: PathBuf,
    },
    /// The output names no folder that could be created, such as `/`.
    #[error("{} cannot be created: it has no name of its own", path.display())]
    OutputUnnamed {
        /// The output.
        path: PathBuf,
    },
    /// The finished checkpoint could not be moved into place, and the one that it replaces not back.
    #[error("cannot move the finished checkpoint to {}; what stood there is now at {}", folder.display(), old.display())]
    ReplacedLeft {
        /// The output.
        folder: PathBuf,
        /// Where the checkpoint that stood there lies.
        old: PathBuf,
    },
    /// A folder to be copied contains itself through a symbolic link.
    #[error("{} links back to a folder that contains it and cannot be copied", path.display())]
    LinkLoop {
        /// The link.
        path: PathBuf,
    },
    /// Something to be copied is neither a file nor a folder.
    #[error("{} is neither a file nor a folder and cannot be copied", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Bytes could not be written, for example because the disk is full.
    #[error("cannot write {bytes} bytes to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// How many bytes it takes.
        bytes: u64,
        /// What the system says.
        source: io::Error,
    },
    /// Another operation on a file or folder failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: an operation on `path` failed.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// What is wrong with a safetensors file. Offsets of tensors count from the end of the header, as in the format.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file is too short to hold even the length of its header.
    #[error("the file has {found} bytes; a safetensors file has at least 8")]
    TooShort {
        /// Size of the file in bytes.
        found: usize,
    },
    /// The header would end after the end of the file.
    #[error("the header is said to take {header} bytes, but the file has only {file}; was the download complete?")]
    HeaderBeyondFile {
        /// The header's stated length in bytes.
        header: u64,
        /// Size of the file in bytes.
        file: usize,
    },
    /// The header is larger than the format allows.
    #[error("the header takes {found} bytes; the format allows {limit}")]
    HeaderTooLarge {
        /// The header's length in bytes.
        found: usize,
        /// The most the format allows.
        limit: usize,
    },
    /// The header is not JSON, or not of the form that the format describes.
    #[error("the header is not valid: {0}")]
    Header(#[source] serde_json::Error),
    /// The header describes the same tensor twice.
    #[error("the header describes `{tensor}` twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// The size of a tensor overflows.
    #[error("`{tensor}`: {dtype} of shape {shape:?} has more bytes than can be counted, or no whole number of them")]
    Uncountable {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor's offsets do not span the bytes that its shape takes.
    #[error("`{tensor}` lies at bytes {begin} to {end}, but {dtype} of shape {shape:?} takes {expected} bytes")]
    Span {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Where it begins.
        begin: usize,
        /// Where it ends.
        end: usize,
        /// The bytes that its shape takes.
        expected: usize,
    },
    /// Two tensors share bytes.
    #[error("`{tensor}` begins at byte {begin}, inside `{previous}`, which ends at byte {end}")]
    Overlap {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        begin: usize,
        /// The tensor before it.
        previous: String,
        /// Where that one ends.
        end: usize,
    },
    /// Bytes belong to no tensor.
    #[error("bytes {begin} to {end}, before `{tensor}`, belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where the hole begins.
        begin: usize,
        /// Where it ends.
        end: usize,
    },
    /// The file is not as long as its header and the tensors in it.
    #[error("the file has {found} bytes; its header describes {expected}; was the download complete?")]
    FileSize {
        /// Size of the file in bytes.
        found: usize,
        /// What the header describes.
        expected: usize,
    },
    /// A tensor does not begin at a multiple of its element size in the file.
    #[error(
        "`{tensor}` begins at byte {position} of the file, which is no multiple of the {expected} bytes of a {dtype}; \
         load and save it again with a current version of safetensors"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Where it begins, from the start of the file.
        position: usize,
        /// Bytes of an element.
        expected: usize,
    },
}
