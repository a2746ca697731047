//! The weight of a layer as the solver works on it.

use linalg::Element;
use rayon::prelude::*;

/// W [rows, columns] of one layer (or of a shard's rows of it), in f32, column after column: the sweep goes from column
/// to column and treats all rows alike, so a column is what must lie together.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// Side of the squares in which a matrix is turned: a square of source and one of target fit L1.
const SQUARE: usize = 32;

impl Weight {
    /// Takes W over from row-major [rows, columns], as checkpoints store it.
    ///
    /// # Panics
    /// If `values` does not have `rows · columns` elements.
    pub fn from_row_major<T: Element>(values: &[T], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a weight [{rows}, {columns}]");
        let mut turned = vec![0.0; rows * columns];
        turn(values, columns, rows, &mut turned);
        Self { rows, columns, values: turned }
    }

    /// W as checkpoints store it: row-major [rows, columns].
    pub fn to_row_major(&self) -> Vec<f32> {
        let mut turned = vec![0.0; self.values.len()];
        turn(&self.values, self.rows, self.columns, &mut turned);
        turned
    }

    /// Row and column of some value that is NaN or infinite, if there is one.
    pub fn not_finite(&self) -> Option<(usize, usize)> {
        let at = self.values.par_iter().position_any(|value| !value.is_finite())?;
        Some((at % self.rows, at / self.rows))
    }

    /// The number of rows: outputs of the layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns: inputs of the layer.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The columns, one after another, [columns, rows].
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The columns, one after another, [columns, rows].
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The columns one by one, each of `rows` values; none where there are no rows.
    pub(crate) fn columns_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [f32]> {
        self.values.par_chunks_exact_mut(self.rows.max(1))
    }
}

/// Writes the transpose of `from` (lines of `length`) to `to` (lines of `count`).
fn turn<T: Element>(from: &[T], length: usize, count: usize, to: &mut [f32]) {
    if from.is_empty() {
        return;
    }
    to.par_chunks_mut(SQUARE * count).enumerate().for_each(|(strip, to)| {
        let lines = to.len() / count;
        let mut square = [[0f32; SQUARE]; SQUARE];
        for first in (0..count).step_by(SQUARE) {
            let side = SQUARE.min(count - first);
            for (line, square) in square[..side].iter_mut().enumerate() {
                let start = (first + line) * length + strip * SQUARE;
                T::widen(&from[start..start + lines], &mut square[..lines]);
            }
            for (line, to) in to.chunks_exact_mut(count).enumerate() {
                for (to, square) in to[first..first + side].iter_mut().zip(&square) {
                    *to = square[line];
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_survives_being_turned_twice() {
        for (rows, columns) in [(1, 1), (1, 40), (40, 1), (33, 65), (64, 32), (0, 5)] {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let weight = Weight::from_row_major(&values, rows, columns);
            assert_eq!(weight.to_row_major(), values);
            if rows > 1 && columns > 1 {
                assert_eq!(weight.values()[1], values[columns], "row 1 follows row 0 within column 0");
            }
        }
    }
}
