//! A CUDA driver in software: it runs the PTX that nvcc made, warp by warp, on the CPU, finds what is wrong with it, and
//! counts what it does.
//!
//! In the order of the data flow: [`ptx`] takes the text apart, [`program`] turns a kernel into a flat list of operations,
//! [`isa`] knows what each of them does, [`machine`] runs them.

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod api;
pub mod check;
pub mod driver;
pub mod isa;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod options;
pub mod profile;
pub mod program;
pub mod ptx;
pub mod report;
