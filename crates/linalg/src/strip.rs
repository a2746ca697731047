//! Products with a strip: a left operand that is packed once, times right operands as narrow as a tile of the
//! micro-kernel.
//!
//! A row-major strip is what the kernel reads, and a row-major strip is what it writes. So the result of one product is
//! the right operand of the next as it stands: softmax(K·Qᵀ) and its product with Vᵀ need no copy in between.

use crate::gemm::pack;
use crate::kernel::{Kernel, LARGEST_TILE, Update};
use crate::pack::{Buffer, Operand};
use crate::{Element, MatrixRef};
use std::ops::Range;

/// Columns of a strip on this machine, a multiple of 16.
pub fn strip_width() -> usize {
    Kernel::get().columns
}

/// A left operand [rows, depth], packed for any number of products.
pub struct PackedLeft {
    kernel: Kernel,
    panels: Buffer,
    rows: usize,
    depth: usize,
}

impl PackedLeft {
    /// Packs `matrix` on the calling thread.
    pub fn new<T: Element>(matrix: MatrixRef<'_, T>) -> Self {
        Self::with_kernel(Kernel::get(), matrix)
    }

    fn with_kernel<T: Element>(kernel: Kernel, matrix: MatrixRef<'_, T>) -> Self {
        let MatrixRef { data, rows, columns: depth, row_stride, column_stride } = matrix;
        let operand = Operand { data: data.as_ptr(), extent_stride: row_stride, depth_stride: column_stride };
        let mut panels = Buffer::take(rows.next_multiple_of(kernel.rows) * depth);
        if depth > 0 {
            // SAFETY: all of a matrix that is borrowed for the call.
            unsafe { pack(operand, (0, rows), (0, depth), kernel.rows, panels.floats_mut(), false) };
        }
        Self { kernel, panels, rows, depth }
    }

    /// `output ← A·strip` for the part A of the operand in `rows` and, along the depth, in `depth`; strip
    /// [depth.len(), width] and output [rows.len(), width] with the [`strip_width`]. On the calling thread.
    ///
    /// # Panics
    /// If a range lies outside the operand, or the strip or the output is shorter than that.
    pub fn multiply(&self, rows: Range<usize>, depth: Range<usize>, strip: &[f32], output: &mut [f32]) {
        let Kernel { rows: height, columns: width, run } = self.kernel;
        assert!(
            rows.start <= rows.end && rows.end <= self.rows && depth.start <= depth.end && depth.end <= self.depth,
            "rows {rows:?} and depth {depth:?} of [{}, {}]",
            self.rows,
            self.depth
        );
        let strip = &strip[..depth.len() * width];
        let output = &mut output[..rows.len() * width];
        let update = Update { alpha: 1.0, beta: 0.0 };
        for first in (rows.start / height * height..rows.end).step_by(height) {
            let a = &self.panels.floats()[first * self.depth + depth.start * height..][..depth.len() * height];
            let own = first.max(rows.start)..(first + height).min(rows.end);
            let c = &mut output[(own.start - rows.start) * width..][..own.len() * width];
            if own.len() == height {
                // SAFETY: the panel and the strip hold `depth` lines each, and c is a whole tile.
                unsafe { run(depth.len(), a.as_ptr(), strip.as_ptr(), c.as_mut_ptr(), width, update) };
            } else {
                let mut tile = [0f32; LARGEST_TILE];
                // SAFETY: as above, and no kernel's tile is larger than the largest.
                unsafe { run(depth.len(), a.as_ptr(), strip.as_ptr(), tile.as_mut_ptr(), width, update) };
                c.copy_from_slice(&tile[(own.start - first) * width..][..own.len() * width]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_multiplies_every_part() {
        // Integers: every order of summation gives the same exact result.
        let number = |i: usize| ((i * 7919) % 17) as f32 - 8.0;
        for (name, kernel) in Kernel::all() {
            let width = kernel.columns;
            for (m, k) in [(1, 1), (5, 3), (12, 8), (13, 70), (40, 1), (64, 500)] {
                let data: Vec<f32> = (0..m * k).map(number).collect();
                let strip: Vec<f32> = (1..=k * width).map(number).collect();
                for (turned, rows, depth) in [
                    (false, 0..m, 0..k),
                    (true, 0..m, 0..k),
                    (false, m / 3..m, k / 4..k - k / 5),
                    (true, m / 5..m - m / 4, k / 2..k),
                    (false, m..m, k..k),
                ] {
                    let matrix = match turned {
                        true => MatrixRef::new(&data, k, m).transposed(),
                        false => MatrixRef::new(&data, m, k),
                    };
                    let left = PackedLeft::with_kernel(kernel, matrix);
                    let mut output = vec![f32::NAN; rows.len() * width];
                    left.multiply(rows.clone(), depth.clone(), &strip, &mut output);
                    for (at, &got) in output.iter().enumerate() {
                        let (i, j) = (rows.start + at / width, at % width);
                        let left = |k: usize| data[i * matrix.row_stride + k * matrix.column_stride];
                        let want: f32 = depth.clone().map(|k| left(k) * strip[(k - depth.start) * width + j]).sum();
                        assert_eq!(got, want, "{name} [{m}, {k}] {turned} {rows:?} {depth:?} at ({i}, {j})");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "of [2, 3]")]
    fn a_part_outside_is_refused() {
        let left = PackedLeft::new(MatrixRef::new(&[0.0; 6], 2, 3));
        left.multiply(0..3, 0..3, &[0.0; 96], &mut [0.0; 96]);
    }
}
