//! The grid that what stays is rounded to when a layer is pruned and quantized together.

use crate::Weight;

/// Per row an asymmetric grid of 2^bits equidistant points that contains zero:
/// `q = scale · (clamp(round(w / scale) + zero, 0, 2^bits − 1) − zero)`, rounding half to even.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) scale: Vec<f32>,
    pub(crate) zero: Vec<f32>,
    pub(crate) top: f32,
}

impl Grid {
    /// The grid that spans each row of W and zero.
    pub(crate) fn new(weight: &Weight, bits: u32) -> Self {
        let top = (1u32 << bits) as f32 - 1.0;
        let (mut low, mut high) = (vec![0f32; weight.rows()], vec![0f32; weight.rows()]);
        for column in weight.values().chunks_exact(weight.rows().max(1)) {
            for ((low, high), &w) in low.iter_mut().zip(&mut high).zip(column) {
                *low = low.min(w);
                *high = high.max(w);
            }
        }
        let span = low.iter().zip(&high).map(|(&low, &high)| if low == high { (-1.0, 1.0) } else { (low, high) });
        let (scale, zero) = span
            .map(|(low, high)| {
                // In f64, so that a tie of the zero point falls as it does in the definition.
                let scale = (f64::from(high) - f64::from(low)) / f64::from(top);
                // A smaller one would be inexact in f32, or zero.
                let scale = scale.max(f64::from(f32::MIN_POSITIVE));
                (scale as f32, (-f64::from(low) / scale).round_ties_even() as f32)
            })
            .unzip();
        Self { scale, zero, top }
    }
}
