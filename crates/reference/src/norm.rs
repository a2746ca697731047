//! Norms over rows.

/// A norm and its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Whether the mean is subtracted first: a layer norm; without, an RMS norm.
    pub centered: bool,
    /// What is added to the mean square.
    pub epsilon: f64,
    /// `[columns]`.
    pub scale: Vec<f64>,
    /// `[columns]`; empty for none.
    pub shift: Vec<f64>,
}

/// (x − c) / √(mean (x − c)² + ε) · scale + shift of one row, with c the mean of x or 0.
pub fn norm(x: &[f64], norm: &Norm) -> Vec<f64> {
    let n = x.len() as f64;
    let center = if norm.centered { x.iter().sum::<f64>() / n } else { 0.0 };
    let square = x.iter().map(|x| (x - center).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (square + norm.epsilon).sqrt();
    let shift = |j: usize| norm.shift.get(j).copied().unwrap_or(0.0);
    x.iter().enumerate().map(|(j, x)| (x - center) * factor * norm.scale[j] + shift(j)).collect()
}

/// x / √(mean x² + ε) · scale of one row.
pub fn rms_norm(x: &[f64], scale: &[f64], epsilon: f64) -> Vec<f64> {
    norm(x, &Norm { centered: false, epsilon, scale: scale.to_vec(), shift: vec![] })
}
