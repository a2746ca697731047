//! SparseGPT, Wanda and magnitude pruning of one layer, over shards.
//!
//! In the order of the data flow: inputs are added into a [`Hessian`], which becomes a [`Factor`]; with it
//! [`sparsegpt`] chooses what goes and corrects what stays, panel by panel; [`wanda`] and [`magnitude`] are the
//! baselines, which only choose. A layer's rows may be divided among several shards, which talk through a
//! [`Collective`] where the answer needs all rows.
//!
//! The mathematics, with its sources, is in `docs/mathematics.md`.

mod baselines;
mod cholesky;
mod collective;
mod error;
mod factor;
mod hessian;
mod mask;
mod pattern;
mod quantize;
mod select;
mod solve;
mod sweep;
mod triangle;
mod weight;

pub use baselines::{magnitude, wanda};
pub use collective::{Collective, Disconnected, Host, Memory, Solo, assert_parts, run_shards, share};
pub use error::Error;
pub use factor::{Factor, RAISES};
pub use hessian::{ColumnNorms, Hessian};
pub use mask::Mask;
pub use pattern::{Method, ParsePatternError, Pattern};
pub use solve::{Outcome, Selection, Settings, effective_panel_width, sparsegpt};
pub use weight::Weight;
