//! The sweep: Algorithm 1 of the paper, and the same written with the factor of H instead of that of its inverse.

use std::ops::Range;

use crate::select::{Selection, dropped, effective_panel_width, n_of_m, smallest};
use crate::{Grid, Matrix, NotPositive, damped, inverse_factor};

/// What is to be done to a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Which weights go.
    pub selection: Selection,
    /// Columns handled together: the unstructured choice is made once per panel. For n:m see
    /// [`effective_panel_width`].
    pub panel_width: usize,
    /// The share of the mean of H's diagonal that is added to the diagonal.
    pub damping: f64,
    /// Where given, what stays is rounded to a grid of `2^bits` points.
    pub bits: Option<u32>,
}

/// A pruned layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Q [rows, columns]: the pruned, corrected and perhaps quantized weights.
    pub weight: Matrix,
    /// [rows, columns] row-major, true where a weight was kept. A kept weight can still be zero.
    pub keep: Vec<bool>,
    /// The scores w̃² / d² by which unstructured and n:m choose, at the moment of choosing, [rows, columns].
    pub scores: Matrix,
    /// E [rows, columns], e = (w̃ − q) / d. It equals (W − Q)·V.
    pub errors: Matrix,
    /// Σ e² / 2 over each row, `[rows]`.
    pub loss_per_row: Vec<f64>,
}

/// Prunes weights [rows, columns] for the Hessian [columns, columns] of their inputs, as the paper does: dead columns,
/// damping, the Cholesky factor of the inverse, the right-looking sweep.
///
/// # Errors
/// [`NotPositive`] if the damped Hessian cannot be factored. The damping is not raised here.
pub fn prune(weight: &Matrix, hessian: &Matrix, settings: &Settings) -> Result<Answer, NotPositive> {
    let damped = damped(hessian, settings.damping);
    let mut weight = weight.clone();
    for j in (0..weight.columns()).filter(|&j| damped.dead[j]) {
        for row in 0..weight.rows() {
            weight[(row, j)] = 0.0;
        }
    }
    Ok(sweep_with_inverse_factor(&weight, &inverse_factor(&damped.hessian)?, settings))
}

/// The sweep of the paper, right-looking, with U [columns, columns], H⁻¹ = UᵀU: after each panel b,
/// `W[:, after b] −= E_b · U[b, after b]`. `weight` [rows, columns] has its dead columns zeroed already.
pub fn sweep_with_inverse_factor(weight: &Matrix, inverse_factor: &Matrix, settings: &Settings) -> Answer {
    let mut sweep = Sweep::new(weight, settings);
    for panel in panels(weight.columns(), settings) {
        sweep.panel(panel.clone(), &diagonal_block(inverse_factor, &panel));
        for row in 0..weight.rows() {
            for j in panel.clone() {
                for after in panel.end..weight.columns() {
                    sweep.answer.weight[(row, after)] -= sweep.answer.errors[(row, j)] * inverse_factor[(j, after)];
                }
            }
        }
    }
    sweep.answer
}

/// The same sweep, left-looking, with V [columns, columns], H = V·Vᵀ: before each panel b,
/// `W̃_b = W_b + (Δ_{<b} · V_{<b,b}) · U_b` with Δ = W − Q and U_b = V_bb⁻¹. H is never inverted.
///
/// Why this is the same: the right-looking form has W̃_b = W_b − E_{<b}·U_{<b,b}, and E = Δ·V column by column. Since
/// U = V⁻¹, the rows of V·U above b read V_{<b,<b}·U_{<b,b} + V_{<b,b}·U_b = 0, so −E_{<b}·U_{<b,b} =
/// −Δ_{<b}·V_{<b,<b}·U_{<b,b} = Δ_{<b}·V_{<b,b}·U_b.
pub fn sweep_with_factor(weight: &Matrix, factor: &Matrix, settings: &Settings) -> Answer {
    let mut sweep = Sweep::new(weight, settings);
    for panel in panels(weight.columns(), settings) {
        let inverse_block = crate::invert_upper(&diagonal_block(factor, &panel));
        for row in 0..weight.rows() {
            let mut change = vec![0.0; panel.len()]; // Δ_{<b} · V_{<b,b}
            for (k, change) in panel.clone().zip(&mut change) {
                for i in 0..panel.start {
                    *change += (weight[(row, i)] - sweep.answer.weight[(row, i)]) * factor[(i, k)];
                }
            }
            for j in 0..panel.len() {
                for k in 0..=j {
                    sweep.answer.weight[(row, panel.start + j)] += change[k] * inverse_block[(k, j)];
                }
            }
        }
        sweep.panel(panel, &inverse_block);
    }
    sweep.answer
}

fn panels(columns: usize, settings: &Settings) -> impl Iterator<Item = Range<usize>> {
    let width = effective_panel_width(&settings.selection, settings.panel_width);
    (0..columns).step_by(width).map(move |first| first..(first + width).min(columns))
}

fn diagonal_block(matrix: &Matrix, panel: &Range<usize>) -> Matrix {
    let values = panel.clone().flat_map(|i| matrix.row(i)[panel.clone()].to_vec()).collect();
    Matrix::new(panel.len(), panel.len(), values)
}

struct Sweep<'a> {
    settings: &'a Settings,
    grid: Option<Grid>,
    /// Left of the sweep finished, right of it (right-looking) already corrected for what went.
    answer: Answer,
}

impl<'a> Sweep<'a> {
    fn new(weight: &Matrix, settings: &'a Settings) -> Self {
        let (rows, columns) = (weight.rows(), weight.columns());
        let keep = match &settings.selection {
            Selection::Fixed(keep) => keep.clone(),
            _ => vec![true; rows * columns],
        };
        assert_eq!(keep.len(), rows * columns, "a fixed choice has one entry per weight");
        let answer = Answer {
            weight: weight.clone(),
            keep,
            scores: Matrix::zeros(rows, columns),
            errors: Matrix::zeros(rows, columns),
            loss_per_row: vec![0.0; rows],
        };
        Self { settings, grid: settings.bits.map(|bits| Grid::new(weight, bits)), answer }
    }

    /// Chooses and sweeps the columns of one panel, given U_b, the block of U on the diagonal.
    fn panel(&mut self, panel: Range<usize>, inverse_block: &Matrix) {
        let diagonal = |j: usize| inverse_block[(j - panel.start, j - panel.start)];
        match self.settings.selection {
            Selection::Unstructured { sparsity } => {
                let scores = self.score(panel.clone(), &diagonal);
                for position in smallest(scores.values(), dropped(scores.values().len(), sparsity)) {
                    self.drop(position / panel.len(), panel.start + position % panel.len());
                }
            }
            Selection::NOfM { .. } => {} // chosen when the sweep reaches the first column of a group
            Selection::Fixed(_) => {
                self.score(panel.clone(), &diagonal);
            }
        }
        for j in panel.clone() {
            if let Selection::NOfM { keep, group } = self.settings.selection
                && j % group == 0
            {
                let columns = j..(j + group).min(panel.end);
                let scores = self.score(columns.clone(), &diagonal);
                for (position, keep) in n_of_m(&scores, keep, group).into_iter().enumerate() {
                    if !keep {
                        self.drop(position / columns.len(), j + position % columns.len());
                    }
                }
            }
            for row in 0..self.answer.weight.rows() {
                let weight = self.answer.weight[(row, j)];
                let mut q = if self.answer.keep[row * self.answer.weight.columns() + j] { weight } else { 0.0 };
                if let Some(grid) = &self.grid {
                    q = grid.nearest(row, q);
                }
                let error = (weight - q) / diagonal(j);
                for after in j..panel.end {
                    self.answer.weight[(row, after)] -= error * inverse_block[(j - panel.start, after - panel.start)];
                }
                self.answer.weight[(row, j)] = q;
                self.answer.errors[(row, j)] = error;
                self.answer.loss_per_row[row] += error * error / 2.0;
            }
        }
    }

    /// w̃² / d_j² over all rows of these columns, noted in the answer.
    fn score(&mut self, columns: Range<usize>, diagonal: &impl Fn(usize) -> f64) -> Matrix {
        let mut scores = Matrix::zeros(self.answer.weight.rows(), columns.len());
        for row in 0..scores.rows() {
            for j in columns.clone() {
                let score = self.answer.weight[(row, j)].powi(2) / diagonal(j).powi(2);
                scores[(row, j - columns.start)] = score;
                self.answer.scores[(row, j)] = score;
            }
        }
        scores
    }

    fn drop(&mut self, row: usize, column: usize) {
        self.answer.keep[row * self.answer.weight.columns() + column] = false;
    }
}
