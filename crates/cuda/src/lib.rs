//! The CUDA backend: the kernels of `prune-cuda`, cuBLAS and NCCL behind the traits of `model` and `prune`.
//!
//! What is here knows both sides: the crates that run on CPUs, which know nothing of CUDA, and the kernels, which know
//! nothing of models. Everything is there only with the feature `cuda`.

#![cfg(feature = "cuda")]

mod collective;
mod error;

pub use collective::{Gpu, Nccl, Shards};
pub use error::Error;
