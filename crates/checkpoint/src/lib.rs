//! Hugging Face checkpoints: safetensors read through memory maps, written whole or not at all.
//!
//! A [`Checkpoint`] is a folder with a `config.json` and its tensors in `model.safetensors`, or in several files that
//! `model.safetensors.index.json` lists. Opening one checks every length and offset in it, so that reading a tensor
//! afterwards is taking a slice. An [`Output`] is a copy of a checkpoint in the making: same files, same layout, some
//! tensors replaced. It lives in a temporary folder beside its destination and appears there by a rename.

mod copy;
mod dtype;
mod error;
mod folder;
mod header;
mod index;
mod map;
mod output;
mod target;
mod tensor;
mod writer;

pub use dtype::{Dtype, narrow};
pub use error::{Error, Fault};
pub use folder::{Checkpoint, read_config};
pub use output::Output;
pub use target::resolve;
pub use tensor::{Tensor, Values};
pub use writer::Writer;

#[cfg(not(target_endian = "little"))]
compile_error!("safetensors are little endian, and tensors are read where they lie");
