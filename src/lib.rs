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

#![cfg(feature = "cuda")]

mod baselines;
mod block;
mod device;
mod error;
mod factor;
mod hessian;
mod matrix;
mod module;
mod pack;
mod product;
mod select;
mod solve;
mod sweep;
mod trailing;

pub use baselines::{Pattern, magnitude, norms, wanda};
pub use block::{
    Activation, Attention, HeadNorm, Heads, Losses, Norm, Number, Rotary, Rotation, Rounds, Stored, activate,
    activate_in_place, add, attention, convert, embed, normalize, normalize_in_place, rotate_in_place,
};
pub use device::Device;
pub use error::Error;
pub use factor::{Factored, Failure, RAISES, factor, factor_damped, factor_diagonals, failures, invert, restore, save};
pub use hessian::{Input, Prepared, Summary, accumulate, prepare};
pub use matrix::{Matrix, MatrixMut, MatrixRef};
pub use module::ptx;
pub use pack::{
    Bitmask, Element, TwoFour, TwoFourInput, TwoFourOutput, multiply_bitmask, multiply_two_four, pack_bitmask,
    pack_two_four, unpack_bitmask, unpack_two_four,
};
pub use select::{PASSES, Score, Selector, Shards, apply};
pub use solve::{Factor, Outcome, Selection, Settings, solve};
pub use sweep::{Block, Grid, Stays, Swept, WIDEST_GROUP, sweep};
pub use trailing::{bring_errors, clear_columns, invert_panels, push_errors};
