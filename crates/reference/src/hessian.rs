//! The Hessian of a layer, its dead columns and its damping.

use crate::Matrix;

/// H = XᵀX, [columns, columns], of inputs X [tokens, columns].
pub fn hessian(inputs: &Matrix) -> Matrix {
    inputs.transposed().times(inputs)
}

/// A Hessian made ready for factoring, and the columns that no input ever touched.
#[derive(Debug, Clone, PartialEq)]
pub struct Damped {
    /// H with a one on the diagonal of each dead column, plus `damp` on the whole diagonal.
    pub hessian: Matrix,
    /// `dead[j]` is true where H_jj was zero; the weights of these columns are to be zeroed.
    pub dead: Vec<bool>,
    /// What was added to the diagonal: `damping · mean(diag H)`, the mean taken after the ones were put in.
    pub damp: f64,
}

/// Replaces the zeros on the diagonal by ones, then adds `damping` times the mean of the diagonal to it.
///
/// # Panics
/// If `hessian` is not square.
pub fn damped(hessian: &Matrix, damping: f64) -> Damped {
    let n = hessian.columns();
    assert_eq!(hessian.rows(), n, "a Hessian is square");
    let mut hessian = hessian.clone();
    let dead: Vec<bool> = (0..n).map(|j| hessian[(j, j)] == 0.0).collect();
    for j in (0..n).filter(|&j| dead[j]) {
        hessian[(j, j)] = 1.0;
    }
    let damp = damping * (0..n).map(|j| hessian[(j, j)]).sum::<f64>() / n as f64;
    for j in 0..n {
        hessian[(j, j)] += damp;
    }
    Damped { hessian, dead, damp }
}
