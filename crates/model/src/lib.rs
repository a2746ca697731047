//! Decoder-only transformers as stages: architectures, forward pass, calibration, evaluation.
//!
//! [`Model::open`] turns a checkpoint's `config.json` into a [`Description`] and checks every tensor against it. Tokens
//! ([`calibration`]) become activations ([`Model::embed`]), which go through one [`Block`] after another, whole
//! ([`Block::forward`]) or stage by stage ([`Block::stage_inputs`], [`Block::absorb`]), to the loss ([`Model::losses`],
//! [`evaluate()`]). All arithmetic is f32; weights stay in the type they are stored in.

mod activation;
pub mod architectures;
mod attention;
mod block;
pub mod calibration;
mod config;
pub mod description;
mod error;
mod evaluate;
mod head;
mod layer;
mod model;
mod norm;
mod rope;
mod simd;
pub mod text;

pub use activation::Activation;
pub use block::Block;
pub use description::Description;
pub use error::Error;
pub use evaluate::{Evaluation, evaluate};
pub use layer::{Layer, Stage, Weight, not_finite};
pub use model::Model;
pub use rope::{Rope, Scaling};
