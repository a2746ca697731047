//! CUDA kernels for SparseGPT, and the thin runtime that drives them: one safe function per stage, in the order of the
//! data flow.
//!
//! ```text
//! inputs X ─▶ hessian ─▶ factor ─▶ select, sweep, trailing ─▶ pack
//!             H = XᵀX    V, U      mask, Q, what Q owes       2:4, bitmask
//! ```
//!
//! The kernels are in `kernels/`, a file per stage; `build.rs` compiles them to PTX, which is embedded and loaded at run
//! time. A program built with the feature `cuda` starts on a machine without a driver, and is told so by
//! [`Device::open`]. Everything else is there only with that feature.
//!
//! Every function checks shapes, strides and devices before it launches anything. All of them enqueue work on the stream of
//! their [`Device`] and return at once, unless they say that they wait.

#[cfg(feature = "cuda")]
mod baselines;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod factor;
#[cfg(feature = "cuda")]
mod hessian;
#[cfg(feature = "cuda")]
mod matrix;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod select;
#[cfg(feature = "cuda")]
mod solve;
#[cfg(feature = "cuda")]
mod sweep;
#[cfg(feature = "cuda")]
mod trailing;

#[cfg(feature = "cuda")]
pub use baselines::{Pattern, magnitude, norms, wanda};
#[cfg(feature = "cuda")]
pub use device::Device;
#[cfg(feature = "cuda")]
pub use error::Error;
#[cfg(feature = "cuda")]
pub use factor::{Factored, Failure, RAISES, factor, factor_damped, factor_diagonals, failures, invert, restore, save};
#[cfg(feature = "cuda")]
pub use hessian::{Input, Prepared, Summary, accumulate, prepare};
#[cfg(feature = "cuda")]
pub use matrix::{MatrixMut, MatrixRef};
#[cfg(feature = "cuda")]
pub use select::{PASSES, Score, Selector, Shards, apply};
#[cfg(feature = "cuda")]
pub use solve::{Factor, Outcome, Selection, Settings, solve};
#[cfg(feature = "cuda")]
pub use sweep::{Block, Grid, Stays, Swept, WIDEST_GROUP, sweep};
#[cfg(feature = "cuda")]
pub use trailing::{bring_errors, clear_columns, invert_panels, push_errors};
