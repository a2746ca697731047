//! A dense row-major matrix of f64 with the three operations that the algorithm is written in.

use std::ops::{Index, IndexMut};

/// A dense matrix [rows, columns] of f64, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// The matrix [rows, columns] whose entry (i, j) is `values[i · columns + j]`.
    ///
    /// # Panics
    /// If there are not `rows · columns` values.
    pub fn new(rows: usize, columns: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * columns, "values of a {rows} × {columns} matrix");
        Self { rows, columns, values }
    }

    /// [`Matrix::new`] from f32, every value exactly.
    pub fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Self {
        Self::new(rows, columns, values.iter().map(|&value| f64::from(value)).collect())
    }

    /// The zero matrix [rows, columns].
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, vec![0.0; rows * columns])
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All entries, row after row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Row `i`, `[columns]`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..(i + 1) * self.columns]
    }

    /// Aᵀ, [columns, rows].
    pub fn transposed(&self) -> Self {
        let mut transposed = Self::zeros(self.columns, self.rows);
        for i in 0..self.rows {
            for j in 0..self.columns {
                transposed[(j, i)] = self[(i, j)];
            }
        }
        transposed
    }

    /// A·B, [rows of A, columns of B].
    ///
    /// # Panics
    /// If A has not as many columns as B has rows.
    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows, "inner dimensions of a product");
        let mut product = Self::zeros(self.rows, other.columns);
        for i in 0..self.rows {
            for k in 0..self.columns {
                for j in 0..other.columns {
                    product[(i, j)] += self[(i, k)] * other[(k, j)];
                }
            }
        }
        product
    }

    /// A − B.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn minus(&self, other: &Self) -> Self {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns), "shapes of a difference");
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a - b).collect();
        Self::new(self.rows, self.columns, values)
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;

    fn index(&self, (i, j): (usize, usize)) -> &f64 {
        assert!(j < self.columns, "column {j} of {}", self.columns);
        &self.values[i * self.columns + j]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut f64 {
        assert!(j < self.columns, "column {j} of {}", self.columns);
        &mut self.values[i * self.columns + j]
    }
}
