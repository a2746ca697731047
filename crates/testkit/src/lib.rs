//! What the tests share: golden data, tolerances, comparisons, generators.
//!
//! Everything here is for tests, where a missing or malformed file is a mistake of the repository: these functions
//! panic with the path and the reason instead of returning errors.

pub mod audit;
pub mod compare;
pub mod generate;
pub mod golden;
pub mod paths;
pub mod tolerance;

pub use compare::{assert_close, assert_possible_choice, assert_same_mask};
