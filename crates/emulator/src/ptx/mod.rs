//! PTX text, taken apart: tokens, then a syntax tree that keeps every line number.

pub mod ast;
pub mod parser;
