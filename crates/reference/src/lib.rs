//! SparseGPT in float64, straight from the paper: what everything else is tested against.
//!
//! One thread, plain loops, never optimized: a reader should be able to hold each function next to the paper (Frantar &
//! Alistarh 2023, arXiv 2301.00774, Algorithm 1) and see that they say the same. The modules follow the data:
//!
//! ```text
//! inputs X ─▶ hessian ─▶ factor ─▶ select, quantize ─▶ prune ─▶ Answer
//!             H = XᵀX    V, U      which weights go    the sweep
//! ```
//!
//! Beside them is what a decoder block does between its linear layers, from its definitions: [`attention()`] and others.
//!
//! [`obs()`] is the oracle of this oracle: the textbook method, with an explicit inverse at every step, for tiny layers.
//! Wrong shapes are mistakes of the calling test and panic.

mod activation;
mod attention;
mod baselines;
mod factor;
mod hessian;
mod loss;
mod matrix;
mod norm;
mod obs;
mod prune;
mod quantize;
mod rope;
mod select;

pub use activation::{Activation, activation, erf};
pub use attention::{Attention, attention};
pub use baselines::{magnitude, wanda};
pub use factor::{NotPositive, cholesky, factor, inverse, inverse_factor, invert_upper};
pub use hessian::{Damped, damped, hessian};
pub use loss::cross_entropy;
pub use matrix::Matrix;
pub use norm::{Norm, norm, rms_norm};
pub use obs::{Removed, obs, obs_inverse_diagonal};
pub use prune::{Answer, Settings, prune, sweep_with_factor, sweep_with_inverse_factor};
pub use quantize::Grid;
pub use rope::rotate;
pub use select::{Selection, dropped, effective_panel_width, n_of_m, smallest};
