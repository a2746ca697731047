//! What the inputs of a stage leave behind: H = XᵀX for SparseGPT, the columns' norms for Wanda.

use crate::{Collective, Disconnected};
use linalg::{MatrixMut, MatrixRef, Region, gemm};

/// H = XᵀX [columns, columns], f32, of which only the triangle on and above the diagonal is computed.
///
/// The scale of H changes nothing in the answer (but where there are dead columns, see `docs/mathematics.md`), so the sum
/// is never divided by the number of tokens.
#[derive(Clone, Debug)]
pub struct Hessian {
    pub(crate) columns: usize,
    /// Row-major; nothing is promised below the diagonal.
    pub(crate) values: Vec<f32>,
}

impl Hessian {
    /// The Hessian of no tokens.
    pub fn new(columns: usize) -> Self {
        Self { columns, values: vec![0.0; columns * columns] }
    }

    /// The number of columns of the inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// H[i, j] for i ≤ j; for i > j the same by symmetry.
    ///
    /// # Panics
    /// If (i, j) lies outside H.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.values[i.min(j) * self.columns + i.max(j)]
    }

    /// Adds XᵀX for `inputs` X [tokens, columns]: tokens · columns² operations.
    ///
    /// # Panics
    /// If the inputs have another number of columns.
    pub fn accumulate(&mut self, inputs: MatrixRef<'_>) {
        let target = MatrixMut::new(&mut self.values, self.columns, self.columns);
        gemm(1.0, inputs.transposed(), inputs, 1.0, target, Region::Upper);
    }

    /// Adds up the Hessians of all shards, on all shards.
    ///
    /// # Errors
    /// If another shard ended early.
    pub fn sum(&mut self, collective: &dyn Collective) -> Result<(), Disconnected> {
        collective.sum_f32(&mut self.values)
    }
}

/// ‖x_j‖² of every column of the inputs: the diagonal of H, which is all that Wanda needs.
#[derive(Clone, Debug)]
pub struct ColumnNorms {
    squares: Vec<f64>,
}

impl ColumnNorms {
    /// The norms of no tokens.
    pub fn new(columns: usize) -> Self {
        Self { squares: vec![0.0; columns] }
    }

    /// Adds the squares of `inputs` X [tokens, columns], row-major.
    ///
    /// # Panics
    /// If `inputs` does not consist of whole tokens.
    pub fn accumulate(&mut self, inputs: &[f32]) {
        assert!(inputs.len().is_multiple_of(self.squares.len().max(1)), "inputs of whole tokens");
        for token in inputs.chunks_exact(self.squares.len().max(1)) {
            for (square, &x) in self.squares.iter_mut().zip(token) {
                *square += f64::from(x) * f64::from(x);
            }
        }
    }

    /// Adds up the squares of all shards, on all shards.
    ///
    /// # Errors
    /// If another shard ended early.
    pub fn sum(&mut self, collective: &dyn Collective) -> Result<(), Disconnected> {
        collective.sum_f64(&mut self.squares)
    }

    /// ‖x_j‖ of every column.
    pub fn norms(&self) -> Vec<f32> {
        self.squares.iter().map(|square| square.sqrt() as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run_shards, share};

    #[test]
    fn norms_do_not_depend_on_the_number_of_shards() {
        // 2²⁴ + 1 squares of one: the odd one is lost wherever a sum is held in f32.
        let tokens = [4096.0, 1.0, 1.0, 1.0];
        let of = |size| {
            let sums = run_shards(size, |collective| {
                let mut norms = ColumnNorms::new(1);
                norms.accumulate(&tokens[share(tokens.len(), collective.rank(), size)]);
                norms.sum(collective).map(|()| norms.squares)
            });
            sums.unwrap()
        };
        for size in [1, 2, 3, 8] {
            assert!(of(size).iter().all(|squares| *squares == [16_777_219.0]), "{size} shards");
        }
    }
}
