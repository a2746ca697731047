//! Triangular factors of a symmetric positive definite matrix and of its inverse.

use crate::Matrix;

/// The matrix is not positive definite: elimination met a pivot that is not a positive number.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("not positive definite: the pivot of column {column} is {pivot:e}")]
pub struct NotPositive {
    /// The column whose pivot it is, counted from zero.
    pub column: usize,
    /// The pivot: what is left of the diagonal entry once the columns before it are eliminated.
    pub pivot: f64,
}

fn root(column: usize, pivot: f64) -> Result<f64, NotPositive> {
    if pivot > 0.0 && pivot.is_finite() { Ok(pivot.sqrt()) } else { Err(NotPositive { column, pivot }) }
}

/// L, lower triangular, with A = L·Lᵀ.
///
/// # Errors
/// [`NotPositive`] with the first column, from the left, whose pivot is not positive.
pub fn cholesky(matrix: &Matrix) -> Result<Matrix, NotPositive> {
    let n = matrix.columns();
    let mut lower = Matrix::zeros(n, n);
    for j in 0..n {
        let pivot = matrix[(j, j)] - (0..j).map(|k| lower[(j, k)] * lower[(j, k)]).sum::<f64>();
        lower[(j, j)] = root(j, pivot)?;
        for i in j + 1..n {
            let rest = matrix[(i, j)] - (0..j).map(|k| lower[(i, k)] * lower[(j, k)]).sum::<f64>();
            lower[(i, j)] = rest / lower[(j, j)];
        }
    }
    Ok(lower)
}

/// V, upper triangular, with H = V·Vᵀ: the same elimination, from the last column to the first.
///
/// # Errors
/// [`NotPositive`] with the first column, from the right, whose pivot is not positive.
pub fn factor(hessian: &Matrix) -> Result<Matrix, NotPositive> {
    let n = hessian.columns();
    let mut upper = Matrix::zeros(n, n);
    for j in (0..n).rev() {
        let pivot = hessian[(j, j)] - (j + 1..n).map(|k| upper[(j, k)] * upper[(j, k)]).sum::<f64>();
        upper[(j, j)] = root(j, pivot)?;
        for i in 0..j {
            let rest = hessian[(i, j)] - (j + 1..n).map(|k| upper[(i, k)] * upper[(j, k)]).sum::<f64>();
            upper[(i, j)] = rest / upper[(j, j)];
        }
    }
    Ok(upper)
}

/// The inverse of an upper triangular matrix, itself upper triangular, by back substitution.
pub fn invert_upper(upper: &Matrix) -> Matrix {
    let n = upper.columns();
    let mut inverted = Matrix::zeros(n, n);
    for j in 0..n {
        inverted[(j, j)] = 1.0 / upper[(j, j)];
        for i in (0..j).rev() {
            let rest = (i + 1..=j).map(|k| upper[(i, k)] * inverted[(k, j)]).sum::<f64>();
            inverted[(i, j)] = -rest / upper[(i, i)];
        }
    }
    inverted
}

/// A⁻¹ = L⁻ᵀ·L⁻¹ of a symmetric positive definite A = L·Lᵀ.
///
/// # Errors
/// As [`cholesky`].
pub fn inverse(matrix: &Matrix) -> Result<Matrix, NotPositive> {
    let inverted = invert_upper(&cholesky(matrix)?.transposed());
    Ok(inverted.times(&inverted.transposed()))
}

/// U, upper triangular, with H⁻¹ = Uᵀ·U, as the paper has it: the transposed Cholesky factor of the inverse.
/// It is V⁻¹ for the V of [`factor`].
///
/// # Errors
/// As [`cholesky`].
pub fn inverse_factor(hessian: &Matrix) -> Result<Matrix, NotPositive> {
    Ok(cholesky(&inverse(hessian)?)?.transposed())
}
