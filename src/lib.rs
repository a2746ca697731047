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
mod device;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod hessian;
#[cfg(feature = "cuda")]
mod matrix;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
mod pack;
#[cfg(feature = "cuda")]
mod product;

#[cfg(feature = "cuda")]
pub use device::Device;
#[cfg(feature = "cuda")]
pub use error::Error;
#[cfg(feature = "cuda")]
pub use hessian::{Input, Prepared, Summary, accumulate, prepare};
#[cfg(feature = "cuda")]
pub use matrix::{MatrixMut, MatrixRef};
#[cfg(feature = "cuda")]
pub use pack::{
    Bitmask, Element, TwoFour, TwoFourInput, TwoFourOutput, multiply_bitmask, multiply_two_four, pack_bitmask,
    pack_two_four, unpack_bitmask, unpack_two_four,
};
