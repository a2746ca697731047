//! Which weights of a layer are kept.

use std::ops::Range;

/// Which weights of a layer [rows, columns] are kept: true = kept. Stored column after column, as the sweep goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    columns: usize,
    keep: Vec<bool>,
}

impl Mask {
    /// The mask that keeps (row, column) where `keep` says so.
    pub fn from_fn(rows: usize, columns: usize, keep: impl Fn(usize, usize) -> bool) -> Self {
        let mut mask = Self { rows, columns, keep: Vec::with_capacity(rows * columns) };
        for column in 0..columns {
            mask.keep.extend((0..rows).map(|row| keep(row, column)));
        }
        mask
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the weight at (row, column) is kept.
    ///
    /// # Panics
    /// If it lies outside the layer.
    pub fn keeps(&self, row: usize, column: usize) -> bool {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.keep[column * self.rows + row]
    }

    /// How many weights go.
    pub fn dropped(&self) -> usize {
        self.keep.iter().filter(|&&keep| !keep).count()
    }

    /// Some columns, [columns, rows].
    pub(crate) fn columns_of(&self, columns: Range<usize>) -> &[bool] {
        &self.keep[columns.start * self.rows..columns.end * self.rows]
    }

    /// Some columns to be decided, [columns, rows].
    pub(crate) fn columns_of_mut(&mut self, columns: Range<usize>) -> &mut [bool] {
        &mut self.keep[columns.start * self.rows..columns.end * self.rows]
    }
}
