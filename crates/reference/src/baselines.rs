//! What SparseGPT is compared with: pruning by magnitude, and Wanda. Neither corrects the weights that stay.

use crate::Matrix;
use crate::select::{Selection, dropped, n_of_m, smallest};

/// What magnitude pruning keeps, [rows, columns], true where a weight stays. Unstructured: the smallest |w| of the whole
/// layer go, equal ones in order of (row, column). n:m: those of each group, equal ones from the left.
pub fn magnitude(weight: &Matrix, selection: &Selection) -> Vec<bool> {
    let scores = Matrix::new(weight.rows(), weight.columns(), weight.values().iter().map(|w| w.abs()).collect());
    let everything = scores.values().len();
    choose(&scores, selection, everything)
}

/// What Wanda (Sun et al. 2023, arXiv 2306.11695) keeps, [rows, columns], true where a weight stays: the score is
/// |w_ij| · ‖x_j‖ with `input_norms` `[columns]` the ‖x_j‖ = √H_jj of the calibration inputs. Unstructured: the smallest
/// of each output row go, equal ones from the left. n:m: those of each group.
///
/// # Panics
/// If there is not one norm per column.
pub fn wanda(weight: &Matrix, input_norms: &[f64], selection: &Selection) -> Vec<bool> {
    assert_eq!(input_norms.len(), weight.columns(), "one norm per column");
    let scores = (0..weight.rows())
        .flat_map(|row| weight.row(row).iter().zip(input_norms).map(|(w, norm)| w.abs() * norm).collect::<Vec<_>>());
    let scores = Matrix::new(weight.rows(), weight.columns(), scores.collect());
    choose(&scores, selection, weight.columns())
}

/// Unstructured, the smallest scores among each `compared` consecutive ones go.
fn choose(scores: &Matrix, selection: &Selection, compared: usize) -> Vec<bool> {
    match selection {
        Selection::Unstructured { sparsity } => {
            let mut keep = vec![true; scores.values().len()];
            for (scores, keep) in scores.values().chunks(compared).zip(keep.chunks_mut(compared)) {
                for position in smallest(scores, dropped(compared, *sparsity)) {
                    keep[position] = false;
                }
            }
            keep
        }
        Selection::NOfM { keep, group } => n_of_m(scores, *keep, *group),
        Selection::Fixed(keep) => keep.clone(),
    }
}
