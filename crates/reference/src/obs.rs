//! The oracle of the oracle: Optimal Brain Surgeon (Hassibi & Stork 1992) as in the textbook, one weight at a time, with
//! the inverse of the remaining Hessian computed afresh and explicitly at each step. For tiny layers.

use crate::Matrix;

/// What removing weights one by one leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Removed {
    /// The weights that are left, [rows, columns].
    pub weight: Matrix,
    /// `Σ w_j² / (2·[H_F⁻¹]_jj)` over the weights removed from each row, `[rows]`.
    pub loss_per_row: Vec<f64>,
}

/// Goes through the columns of `weight` [rows, columns] from the left. At column j the weights left of it are frozen, F
/// are the columns from j on, and where `keep` is false the weight goes and those of F answer with
/// `δw_F = −w_j / [H_F⁻¹]_jj · H_F⁻¹[:, j]`. `hessian` [columns, columns] is damped already.
///
/// # Panics
/// If a remaining Hessian is singular.
pub fn obs(weight: &Matrix, hessian: &Matrix, keep: &[bool]) -> Removed {
    let columns = weight.columns();
    let mut removed = Removed { weight: weight.clone(), loss_per_row: vec![0.0; weight.rows()] };
    for row in 0..weight.rows() {
        for j in (0..columns).filter(|&j| !keep[row * columns + j]) {
            let inverse = remaining_inverse(hessian, j);
            let going = removed.weight[(row, j)];
            removed.loss_per_row[row] += going * going / (2.0 * inverse[(0, 0)]);
            for after in j..columns {
                removed.weight[(row, after)] -= going / inverse[(0, 0)] * inverse[(after - j, 0)];
            }
            removed.weight[(row, j)] = 0.0;
        }
    }
    removed
}

/// `[H_F⁻¹]_jj` for F the columns from j on, for each j, `[columns]`: what the paper's U_jj² stands for.
///
/// # Panics
/// If a remaining Hessian is singular.
pub fn obs_inverse_diagonal(hessian: &Matrix) -> Vec<f64> {
    (0..hessian.columns()).map(|j| remaining_inverse(hessian, j)[(0, 0)]).collect()
}

/// The inverse of `H[first.., first..]` by Gauss–Jordan elimination with row exchanges: shares no code with the
/// factorizations it is there to check.
fn remaining_inverse(hessian: &Matrix, first: usize) -> Matrix {
    let n = hessian.columns() - first;
    let mut left = Matrix::new(n, n, (first..first + n).flat_map(|i| hessian.row(i)[first..].to_vec()).collect());
    let mut right = Matrix::zeros(n, n);
    for j in 0..n {
        right[(j, j)] = 1.0;
    }
    for j in 0..n {
        let largest = (j..n).max_by(|&a, &b| left[(a, j)].abs().total_cmp(&left[(b, j)].abs())).unwrap_or(j);
        let pivot = left[(largest, j)];
        assert!(pivot != 0.0, "the Hessian of the columns from {first} on is singular");
        for matrix in [&mut left, &mut right] {
            for k in 0..n {
                let (upper, lower) = (matrix[(j, k)], matrix[(largest, k)]);
                matrix[(largest, k)] = upper;
                matrix[(j, k)] = lower / pivot;
            }
        }
        for i in (0..n).filter(|&i| i != j) {
            let multiple = left[(i, j)];
            for matrix in [&mut left, &mut right] {
                for k in 0..n {
                    matrix[(i, k)] -= multiple * matrix[(j, k)];
                }
            }
        }
    }
    right
}
