//! What is looked for beyond the checks that every access gets: races, and reads of memory that nobody wrote.

pub mod order;
