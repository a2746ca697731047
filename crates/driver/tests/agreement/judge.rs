//! A layer's answer, judged by its problem in f64. Each choice is judged where the sweep stood when it was made: a choice among
//! near-ties turns all weights behind it, and must not count against them.

use driver::backend::Solver;
use prune::{Pattern, effective_panel_width};
use reference::{Grid, Matrix, damped, dropped, factor, hessian, invert_upper};
use testkit::tolerance::{Turned, UNIT_F32, stored_tolerance};
use testkit::{assert_close, assert_possible_choice};

use crate::watched::Layer;

/// The worst of thousands of numbers lies so many standard deviations out.
const DEVIATIONS: f64 = 5.0;

/// The problem of a stage, by the inputs of one run.
pub(crate) struct Judge {
    tokens: usize,
    /// √H_jj of the inputs.
    norms: Vec<f64>,
    dead: Vec<bool>,
    /// ι_j = Σ_k U_jk² h_kk of the damped H.
    inflations: Vec<f64>,
    /// U [columns, columns], H⁻¹ = UᵀU for the damped H.
    inverse_factor: Matrix,
}

/// What a run judged by the inputs of another one has of its own.
#[derive(Clone)]
pub(crate) struct Doubts {
    /// ‖δx_j‖² of how far its inputs are from the others.
    pub(crate) moved: Vec<f64>,
    /// Half an ulp of weights as they are stored, and of their subnormal numbers.
    pub(crate) stored: (f64, f64),
}

impl Judge {
    pub(crate) fn new(layer: &Layer) -> Self {
        let (n, tokens) = (layer.columns, layer.inputs.len() / layer.columns);
        let hessian = hessian(&Matrix::from_f32(tokens, n, &layer.inputs));
        let norms = (0..n).map(|j| hessian[(j, j)].sqrt()).collect();
        let damped = damped(&hessian, layer.damping.unwrap_or(0.01));
        let inverse_factor = invert_upper(&factor(&damped.hessian).expect("positive definite"));
        let share = |j: usize, k: usize| inverse_factor[(j, k)].powi(2) * damped.hessian[(k, k)];
        let inflations = (0..n).map(|j| (j..n).map(|k| share(j, k)).sum()).collect();
        Self { tokens, norms, dead: damped.dead, inflations, inverse_factor }
    }

    /// ‖δx_j‖² of each column of other inputs of the same stage.
    pub(crate) fn moved(&self, own: &Layer, other: &Layer) -> Vec<f64> {
        let mut moved = vec![0.0; own.columns];
        for (at, (a, b)) in own.inputs.iter().zip(other.inputs.iter()).enumerate() {
            moved[at % own.columns] += (f64::from(*a) - f64::from(*b)).powi(2);
        }
        moved
    }

    /// ‖δX‖ / ‖X‖.
    pub(crate) fn share(&self, moved: &[f64]) -> f64 {
        (moved.iter().sum::<f64>() / self.norms.iter().map(|norm| norm * norm).sum::<f64>()).sqrt()
    }

    /// Asserts that SparseGPT may have made this of a layer: that it chose by the scores, that what stays is w̃ or the point of the
    /// grid next to it, that the loss is Σ e²/2. Returns how many weights could go as well as stay.
    pub(crate) fn assert_pruned(&self, what: &str, layer: &Layer, solver: &Solver, doubts: &Doubts) -> usize {
        let n = layer.columns;
        let width = match solver.pattern {
            Pattern::Unstructured { .. } => effective_panel_width(solver.panel_width, 1),
            Pattern::NOfM { group, .. } => group,
        };
        let turned = Turned {
            tokens: self.tokens,
            // As `solve_tolerance` has it; three sums take the place of one where numbers are split.
            hessian: UNIT_F32 * ((self.tokens as f64).sqrt() + (n as f64).sqrt()),
        };
        let u = &self.inverse_factor;
        let of_column = |j: usize| -> (f64, f64) {
            ((j..n).map(|k| u[(j, k)].powi(2) * doubts.moved[k]).sum(), self.inflations[j])
        };
        let of_column: Vec<(f64, f64)> = (0..n).map(of_column).collect();
        let grid = solver.bits.map(|bits| Grid::new(&Matrix::from_f32(layer.rows, n, &layer.weight), bits));
        let (mut scores, mut score_doubts) = (Vec::new(), Vec::new());
        let (mut swept, mut swept_doubts) = (Vec::new(), Vec::new());
        let (mut loss, mut loss_doubt) = (0.0, 0.0);
        for row in 0..layer.rows {
            let mut current: Vec<f64> =
                (0..n).map(|j| if self.dead[j] { 0.0 } else { layer.weight[row * n + j].into() }).collect();
            // Of all that was added to a weight: each time it is rounded by a share of it.
            let mut sizes: Vec<f64> = current.iter().map(|w| w.abs()).collect();
            let mut variances = vec![0.0; n];
            let mut sums = [0.0; 3];
            for j in 0..n {
                // w̃_k of this moment, and a standard deviation of it and of its pivot.
                let doubt = |k: usize| {
                    let error = |i: usize| turned.error(of_column[i], sums) * u[(i, k)].powi(2);
                    let rounding = 3.0 * n as f64 * (UNIT_F32 * sizes[k]).powi(2);
                    let variance = variances[k] + (j..=k).map(error).sum::<f64>() + rounding;
                    (variance.sqrt(), turned.pivot(of_column[k]).sqrt())
                };
                if j % width == 0 {
                    for k in j..(j + width).min(n) {
                        let (weight, pivot) = doubt(k);
                        let score = current[k].abs() / u[(k, k)];
                        scores.push(score);
                        score_doubts
                            .push(DEVIATIONS * (weight / u[(k, k)]).hypot(pivot * score) + 4.0 * UNIT_F32 * score);
                    }
                }
                let (weight, pivot) = doubt(j);
                let stored = f64::from(layer.pruned[row * n + j]);
                // Before it was rounded to be stored.
                let q = match &grid {
                    Some(grid) => grid.nearest(row, stored),
                    None if stored == 0.0 => 0.0,
                    None => current[j],
                };
                swept.push(current[j]);
                swept_doubts.push(DEVIATIONS * weight + 4.0 * UNIT_F32 * current[j].abs());
                let e = (current[j] - q) / u[(j, j)];
                let (moved, inflation) = of_column[j];
                sums = [sums[0] + e * e, sums[1] + e * e * moved, sums[2] + e * e * inflation];
                loss += e * e / 2.0;
                loss_doubt += DEVIATIONS * e.abs() * (weight / u[(j, j)]).hypot(pivot * e);
                let variance = turned.error(of_column[j], sums);
                for k in j..n {
                    let moved = e * u[(j, k)];
                    current[k] -= moved;
                    sizes[k] += moved.abs();
                    variances[k] += variance * u[(j, k)].powi(2);
                }
            }
        }
        // Scores came row by row, of each row in the order of columns.
        let stays = |at: usize| layer.pruned[at] != 0.0;
        let choose = |what: &str, positions: &[usize], gone: usize| {
            let of = |values: &[f64]| positions.iter().map(|&at| values[at]).collect::<Vec<_>>();
            let mut zeros: Vec<usize> = (0..positions.len()).filter(|&at| !stays(positions[at])).collect();
            zeros.sort_by(|&a, &b| scores[positions[a]].total_cmp(&scores[positions[b]]));
            // What is more is kept and zero, by the grid or where no input ever was; if so, the highest of them.
            let more = zeros.split_off(gone.min(zeros.len()));
            assert!(
                grid.is_some() || more.iter().all(|&at| self.dead[positions[at] % n]),
                "{what}: {} too many zeros",
                more.len()
            );
            let mut keep = vec![true; positions.len()];
            zeros.iter().for_each(|&at| keep[at] = false);
            assert_possible_choice(what, &keep, &of(&scores), &of(&score_doubts), gone)
        };
        let mut either = 0;
        for first in (0..n).step_by(width) {
            let last = (first + width).min(n);
            let row = |row: usize| (first..last).map(move |j| row * n + j);
            either += match solver.pattern {
                Pattern::Unstructured { sparsity } => {
                    let all: Vec<usize> = (0..layer.rows).flat_map(row).collect();
                    choose(&format!("{what}, columns {first}..{last}"), &all, dropped(all.len(), sparsity))
                }
                Pattern::NOfM { keep, group } => {
                    let gone = (last - first) * (group - keep) / group;
                    let of = |at| choose(&format!("{what}, row {at}, {first}"), &row(at).collect::<Vec<_>>(), gone);
                    (0..layer.rows).map(of).sum()
                }
            };
        }
        let kept: Vec<usize> = (0..scores.len()).filter(|&at| stays(at)).collect();
        let got: Vec<f32> = kept.iter().map(|&at| layer.pruned[at]).collect();
        let want: Vec<f64> = kept.iter().map(|&at| swept[at]).collect();
        assert_close(&format!("{what}: what stays"), &got, &want, |at| {
            let (at, row) = (kept[at], kept[at] / n);
            let beyond = grid.as_ref().map_or(0.0, |grid| {
                let ends = [f64::MIN, f64::MAX].map(|end| grid.nearest(row, end));
                grid.step(row) / 2.0 + (swept[at] - swept[at].clamp(ends[0], ends[1])).abs()
            });
            stored_tolerance(swept_doubts[at] + beyond, swept[at], doubts.stored)
        });
        let got = layer.obs_loss.expect("SparseGPT has a loss");
        let rounding = 8.0 * (n as f64).sqrt() * UNIT_F32 * loss;
        assert_close(&format!("{what}: loss"), &[got], &[loss], |_| loss_doubt + rounding);
        either
    }

    /// Asserts that Wanda may have made this of a layer, whose weights that stay are as they were; likewise.
    pub(crate) fn assert_wanda(&self, what: &str, layer: &Layer, pattern: Pattern, doubts: &Doubts) -> usize {
        let n = layer.columns;
        let (width, gone) = match pattern {
            Pattern::Unstructured { sparsity } => (n, dropped(n, sparsity)),
            Pattern::NOfM { keep, group } => (group, group - keep),
        };
        let score = |at: usize| f64::from(layer.weight[at]).abs() * self.norms[at % n];
        // x·δx of all tokens, as a share of ‖x‖²; a sum in f32, its root, and the product.
        let share = |j: usize| {
            let of_inputs = (doubts.moved[j] / self.tokens as f64).sqrt() / self.norms[j].max(f64::MIN_POSITIVE);
            DEVIATIONS * of_inputs.hypot((self.tokens as f64).sqrt() * UNIT_F32) + 4.0 * UNIT_F32
        };
        let choose = |first: usize| {
            let scores: Vec<f64> = (first..first + width).map(score).collect();
            let doubts: Vec<f64> = scores.iter().zip(first..).map(|(score, at)| share(at % n) * score).collect();
            let keep: Vec<bool> = layer.pruned[first..first + width].iter().map(|&q| q != 0.0).collect();
            assert_possible_choice(&format!("{what}, row {}, {}", first / n, first % n), &keep, &scores, &doubts, gone)
        };
        for (&w, &q) in layer.weight.iter().zip(&layer.pruned) {
            assert!(q == w || q == 0.0, "{what}: {w} became {q}");
        }
        (0..layer.pruned.len()).step_by(width).map(choose).sum()
    }
}
