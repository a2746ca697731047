//! Which weights go: the smallest scores of a panel, of a group, or a choice made beforehand.

use crate::Matrix;

/// How the weights that go are chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// The smallest scores go, [`dropped`] of them.
    Unstructured {
        /// The share of weights that go, in [0, 1).
        sparsity: f64,
    },
    /// `keep` of every `group` consecutive columns of a row stay.
    NOfM {
        /// How many stay.
        keep: usize,
        /// Of how many.
        group: usize,
    },
    /// Chosen beforehand: [rows, columns] row-major, true where a weight stays.
    Fixed(Vec<bool>),
}

/// `floor(count · sparsity)`: how many of `count` weights go.
pub fn dropped(count: usize, sparsity: f64) -> usize {
    (count as f64 * sparsity) as usize
}

/// The panel width that is in force: a group never straddles two panels, so for n:m it is the largest multiple of
/// `group` that is not above `panel_width`, or `group` itself where that is larger.
pub fn effective_panel_width(selection: &Selection, panel_width: usize) -> usize {
    match *selection {
        Selection::NOfM { group, .. } => group.max(panel_width / group * group),
        _ => panel_width,
    }
}

/// The positions of the `count` smallest scores; equal scores go in order of position.
pub fn smallest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b])); // a stable sort
    order.truncate(count);
    order
}

/// What n:m keeps of one matrix of scores [rows, columns]: in every `group` consecutive columns of a row the smallest
/// `group − keep` go, equal scores from the left. Of a shorter last group of c columns, `floor(c · (group − keep) /
/// group)` go. Returns [rows, columns], true where a weight stays.
///
/// # Panics
/// If `group` is zero or `keep` above it.
pub fn n_of_m(scores: &Matrix, keep: usize, group: usize) -> Vec<bool> {
    let mut kept = vec![true; scores.rows() * scores.columns()];
    for row in 0..scores.rows() {
        for first in (0..scores.columns()).step_by(group) {
            let last = (first + group).min(scores.columns());
            for j in smallest(&scores.row(row)[first..last], (last - first) * (group - keep) / group) {
                kept[row * scores.columns() + first + j] = false;
            }
        }
    }
    kept
}
