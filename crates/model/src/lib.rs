//! Decoder-only transformers as stages: architectures, forward pass, calibration, evaluation.
//!
//! [`Model::open`] turns a checkpoint's `config.json` into a [`Description`] and checks every tensor against it. Tokens
//! ([`calibration`]) become activations ([`Embedding::embed`]), which go through one [`Block`] after another, whole
//! ([`Block::forward`]) or stage by stage ([`Block::stage_inputs`], [`Block::absorb`]), to the loss ([`Head::losses`],
//! [`evaluate()`]). Where that happens is a [`Forward`]'s business: here on the processor ([`Cpu`]).

mod activation;
pub mod architectures;
mod attention;
mod block;
pub mod calibration;
mod config;
mod cpu;
pub mod description;
mod error;
mod evaluate;
pub mod forward;
mod head;
mod layer;
mod model;
mod norm;
mod rope;
mod simd;
pub mod text;

pub use activation::Activation;
pub use block::Block;
pub use cpu::Cpu;
pub use description::Description;
pub use error::Error;
pub use evaluate::{Evaluation, evaluate};
pub use forward::Forward;
pub use head::Head;
pub use layer::{Layer, Stage, Weight, not_finite};
pub use model::{Embedding, Model};
pub use rope::{Rope, Rotation, Scaling};
