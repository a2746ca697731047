//! A stand-in for cuBLAS over the emulated CUDA driver: handles, streams, and matrix products.
//!
//! Products are computed as the real library does for the compute types supported here: inputs of 16 bits are widened,
//! products summed in float32 (float64 for float64), and the result rounded once. The order of the sum differs, as it
//! does between GPUs. What is not supported answers CUBLAS_STATUS_NOT_SUPPORTED with a line on standard error.

mod api;
mod gemm;
mod numbers;

pub use api::*;
