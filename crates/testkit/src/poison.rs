//! Outputs are poisoned before a run, so that what was not written shows.

/// A NaN that no arithmetic makes: its payload tells "never written" from "computed as NaN".
const POISON: u32 = 0x7fc0_dead;

/// `count` poisoned values.
pub fn poisoned(count: usize) -> Vec<f32> {
    vec![f32::from_bits(POISON); count]
}

/// Asserts that no value is poison any more.
///
/// # Panics
/// If one is: with `what`, the first such position and how many there are.
pub fn assert_overwritten(what: &str, values: &[f32]) {
    let left: Vec<usize> = (0..values.len()).filter(|&i| values[i].to_bits() == POISON).collect();
    if let Some(first) = left.first() {
        panic!("{what}: {} of {} values were never written, the first at {first}", left.len(), values.len());
    }
}
