//! Rotary positions.

/// One head of d columns turned: columns j and j + d/2 are a complex number, multiplied by `cosines[j] + i·sines[j]`.
///
/// # Panics
/// If there are fewer than d/2 of either.
pub fn rotate(head: &[f64], cosines: &[f64], sines: &[f64]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut turned = head.to_vec();
    for j in 0..half {
        turned[j] = head[j] * cosines[j] - head[half + j] * sines[j];
        turned[half + j] = head[half + j] * cosines[j] + head[j] * sines[j];
    }
    turned
}
