//! Models as wholes: every architecture against what `transformers` computes, and what is said about bad ones.

mod bad_input;
mod common;
mod golden;
