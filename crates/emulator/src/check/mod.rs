//! What is looked for beyond the checks that every access gets: races, and reads of memory that nobody wrote.
//!
//! [`clocks`] keeps what each thread knows of the others, [`shared`] and [`global`] what was done to each word of memory
//! and whether the next access is ordered after it; [`initialized`] keeps a bit for each byte that was written.

pub mod batch;
mod cell;
pub mod clocks;
mod frontier;
pub mod global;
pub mod initialized;
mod knowledge;
mod location;
pub mod order;
pub mod shared;
#[cfg(test)]
mod tests;

pub use cell::Access;
