//! The quantization grid of each row.

use crate::Matrix;

/// One asymmetric grid of `2^bits` points per row, which has zero among its points and spans the row.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    scale: Vec<f64>,
    zero: Vec<f64>,
    top: f64,
}

impl Grid {
    /// The grid of the original weights [rows, columns]: from min(row, 0) to max(row, 0) in `2^bits − 1` steps of at least
    /// 2⁻¹²⁶, the smallest normal number of float32; a row of zeros gets the grid of [−1, 1].
    pub fn new(weight: &Matrix, bits: u32) -> Self {
        let top = f64::from((1u32 << bits) - 1);
        let (mut scale, mut zero) = (Vec::new(), Vec::new());
        for row in 0..weight.rows() {
            let mut low = weight.row(row).iter().copied().fold(0.0, f64::min);
            let mut high = weight.row(row).iter().copied().fold(0.0, f64::max);
            if low == 0.0 && high == 0.0 {
                (low, high) = (-1.0, 1.0);
            }
            let step = ((high - low) / top).max(f64::from(f32::MIN_POSITIVE));
            scale.push(step);
            zero.push((-low / step).round_ties_even());
        }
        Self { scale, zero, top }
    }

    /// The distance of neighbouring points of a row's grid.
    pub fn step(&self, row: usize) -> f64 {
        self.scale[row]
    }

    /// The point of the row's grid nearest to `value`, round half to even, values outside clamped to its ends.
    pub fn nearest(&self, row: usize, value: f64) -> f64 {
        let (scale, zero) = (self.scale[row], self.zero[row]);
        let point = ((value / scale).round_ties_even() + zero).clamp(0.0, self.top);
        scale * (point - zero)
    }
}
