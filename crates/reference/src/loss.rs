//! The loss of a predicted token.

/// −ln softmax(z)_target = ln Σ e^z − z_target.
///
/// # Panics
/// If there is no such logit.
pub fn cross_entropy(logits: &[f64], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|z| (z - largest).exp()).sum();
    largest + sum.ln() - logits[target]
}
