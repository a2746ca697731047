//! The CUDA backend: the kernels of `prune-cuda` and the libraries of CUDA behind the traits that the processor implements too.
//!
//! A [`Gpu`] is a [`model::Forward`]: models run on it as they do on [`model::Cpu`]. [`Nccl`] is a [`prune::Collective`] of
//! GPUs, as threads and ranks of MPI are one of processors. Everything is enqueued on the stream of its device, but what travels
//! between host and device beside that, on another one. Without the feature `cuda` there is nothing here, and nothing of CUDA is
//! needed to build it.

#![cfg(feature = "cuda")]

mod buffers;
mod collective;
mod element;
mod error;
mod forward;
mod gpu;
mod products;
mod staging;
mod store;

pub use buffers::{Inputs, Outputs, Rows, Stream, Vector, View, Weight};
pub use collective::{DeviceMemory, Nccl, Shards};
pub use element::Element;
pub use error::Error;
pub use gpu::Gpu;
pub use store::{Place, Store};
