//! f32 matrix products on packed panels, on one triangle where the result is symmetric.
//!
//! What the forward pass, the Hessian, the factor and the panel updates have in common is `C ← βC + αA·B`. This crate
//! is that one product: operands of f32, f16 or bf16 are widened while they are packed, and a micro-kernel chosen at run
//! time (AVX-512, AVX2 with FMA, or what the compiler makes of plain loops) does the rest.

mod element;
mod gemm;
mod kernel;
mod matrix;
mod pack;
mod strip;
mod vectorized;

pub use element::Element;
pub use gemm::{Part, Region, gemm, gemm_serial, gemm_within, gemm_within_serial};
pub use matrix::{MatrixMut, MatrixRef};
pub use pack::Buffer;
pub use strip::{PackedLeft, strip_width};
