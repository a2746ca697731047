//! The cases, in the order of the data flow, at layers of OPT-125M, LLaMA-7B and OPT-175B. A file for each stage.

mod block;
mod elementwise;
mod factor;
mod hessian;
mod pack;
mod prune;

use crate::case::Case;
use testkit::generate::Random;

/// All cases; small ones for the emulated driver.
pub(crate) fn all(small: bool) -> Vec<Case> {
    [hessian::cases, factor::cases, prune::cases, pack::cases, block::cases, elementwise::cases]
        .into_iter()
        .flat_map(|cases| cases(small))
        .collect()
}

/// Random numbers, quickly: a few thousand of them, again and again at a distance that no shape divides.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    const PERIOD: usize = 8191;
    let mut random = Random::new(seed);
    let some: Vec<f32> = (0..PERIOD).map(|_| random.normal() as f32).collect();
    (0..count).map(|at| some[at % PERIOD]).collect()
}

/// Says what is wrong with a number, if it is.
fn compare(what: impl Fn() -> String, got: f64, want: f64, allowed: f64) -> Result<(), String> {
    let off = (got - want).abs();
    // A NaN is off.
    if off <= allowed {
        Ok(())
    } else {
        Err(format!("{} is {got:e}, not {want:e}; {allowed:e} would be allowed", what()))
    }
}
