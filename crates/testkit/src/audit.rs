//! A layer problem, its answer in f32, and its judgment in f64 by what it means.

use crate::golden::Choice;
use crate::tolerance::{
    UNIT_F32, factor_residual, gamma, hessian_split_tolerance, hessian_tolerance, solve_tolerance,
    split_factor_residual, sweep_split_tolerance, sweep_tolerance,
};
use crate::{assert_close, assert_same_mask};
use reference::{
    Grid, Matrix, Selection, damped, dropped, effective_panel_width, hessian, inverse, invert_upper, n_of_m, smallest,
};

/// A layer problem. Matrices are row-major.
#[derive(Clone, Debug)]
pub struct Problem {
    /// W [rows, columns].
    pub weight: Vec<f32>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// X [tokens, columns].
    pub inputs: Vec<f32>,
    /// Which weights go.
    pub choice: Choice,
    /// Columns handled together, where groups do not ask for fewer.
    pub panel_width: usize,
    /// The share of the mean of H's diagonal that is added to the diagonal.
    pub damping: f64,
    /// Where given, what stays is rounded to a grid of `2^bits` points.
    pub bits: Option<u32>,
}

/// What the f32 backend made of it, all shards put together. Matrices are row-major.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Q [rows, columns].
    pub weight: Vec<f32>,
    /// [rows, columns], true = kept.
    pub keep: Vec<bool>,
    /// `[rows]`.
    pub loss: Vec<f64>,
    /// V [columns, columns].
    pub factor: Matrix,
    /// `[columns]`: which columns no input ever touched.
    pub dead: Vec<bool>,
    /// Whether products were made of numbers split into two of tf32.
    pub split: bool,
}

impl Problem {
    /// How many rows X has.
    pub fn tokens(&self) -> usize {
        self.inputs.len() / self.columns
    }

    /// The panel width in force.
    pub fn width(&self) -> usize {
        let Choice::NOfM { keep, group } = self.choice else { return self.panel_width };
        effective_panel_width(&Selection::NOfM { keep, group }, self.panel_width)
    }
}

/// Asserts that `solved` is an answer to `problem` for the factor V that it was computed with: what goes is +0.0, what
/// stays is w̃ or the grid point next to it, the choices are those of the scores, the losses those of E = (W − Q)·V.
///
/// # Panics
/// If it is not.
///
/// The tolerances are rigorous bounds for f32 arithmetic in any order. With the local error t_j ≤ `sweep_tolerance` of
/// w̃_j and Q as it came out, the sweep of panel b solves r·U_b = t for the errors r_j = V_jj·(w̃_j − what was computed
/// for it), so |r| ≤ t·|V_bb|: it does not grow from column to column, nor with the condition of H.
pub fn audit(what: &str, problem: &Problem, solved: &Solved) {
    let (rows, n) = (problem.rows, problem.columns);
    let factor = &solved.factor;
    let tolerance = if solved.split { sweep_split_tolerance(n) } else { sweep_tolerance(n) };
    let mut original = Matrix::from_f32(rows, n, &problem.weight);
    for (row, j) in (0..rows).flat_map(|row| (0..n).map(move |j| (row, j))) {
        if solved.dead[j] {
            original[(row, j)] = 0.0;
        }
    }
    let weight = Matrix::from_f32(rows, n, &solved.weight);
    let change = original.minus(&weight);
    let errors = change.times(factor);
    let absolute = |matrix: &Matrix| map(matrix, f64::abs);
    let mut residual = Matrix::zeros(rows, n);
    for first in (0..n).step_by(problem.width()) {
        let last = (first + problem.width()).min(n);
        let block = part(factor, first..last, first..last);
        let inverse = invert_upper(&block);
        let (done, above) = (part(&change, 0..rows, 0..first), part(factor, 0..first, first..last));
        let (start, errors) = (done.times(&above).times(&inverse), part(&errors, 0..rows, first..last));
        let original = part(&original, 0..rows, first..last);
        let brought = absolute(&done).times(&absolute(&above)).times(&absolute(&inverse));
        let swept = absolute(&errors).times(&absolute(&inverse));
        let mut local = absolute(&original);
        let mut current = original;
        for (row, j) in (0..rows).flat_map(|row| (0..last - first).map(move |j| (row, j))) {
            current[(row, j)] += start[(row, j)];
            local[(row, j)] = tolerance * (local[(row, j)] + brought[(row, j)] + swept[(row, j)]);
        }
        let bound = local.times(&absolute(&block));
        for (row, j) in (0..rows).flat_map(|row| (0..last - first).map(move |j| (row, j))) {
            residual[(row, first + j)] = bound[(row, j)];
        }
        let panel = Panel { first, block, inverse, errors, local, residual: bound, current };
        panel.audit_choice(&format!("{what}, panel at {first}"), problem, solved);
    }
    audit_weights(what, problem, solved, &original, &errors, &residual);
    let of_loss = |row: usize| {
        let of = |j: usize| (errors[(row, j)].abs(), residual[(row, j)]);
        let square = |(e, r): (f64, f64)| (2.0 * e + r) * r + gamma(n + 6, UNIT_F32) * (e + r) * (e + r);
        (0..n).map(|j| square(of(j)) / 2.0).sum::<f64>()
    };
    let losses: Vec<f64> = (0..rows).map(|row| errors.row(row).iter().map(|e| e * e / 2.0).sum()).collect();
    assert_close(&format!("{what}: Σ e² / 2 against ‖(W − Q)·V‖² / 2"), &solved.loss, &losses, of_loss);
}

/// One panel in f64, for Q as it came out.
struct Panel {
    first: usize,
    /// V_bb and U_b.
    block: Matrix,
    inverse: Matrix,
    errors: Matrix,
    /// Bounds of the error of w̃, and of V_jj · what became of it.
    local: Matrix,
    residual: Matrix,
    /// W̃ when the panel begins.
    current: Matrix,
}

impl Panel {
    /// The choice is that of |w̃ / d|, which orders like its square but whose error does not grow with it.
    fn audit_choice(&self, what: &str, problem: &Problem, solved: &Solved) {
        let (rows, width) = (self.current.rows(), self.current.columns());
        let kept = |row: usize, j: usize| solved.keep[row * problem.columns + self.first + j];
        match &problem.choice {
            Choice::Unstructured { sparsity } => {
                let count = dropped(rows * width, *sparsity);
                let (mut scores, mut doubt, mut got) = (Vec::new(), 0f64, Vec::new());
                for (row, j) in (0..rows).flat_map(|row| (0..width).map(move |j| (row, j))) {
                    let score = (self.current[(row, j)] * self.block[(j, j)]).abs();
                    // Two roundings of the product and its square; and equal keys may stand for scores one step apart.
                    doubt = doubt.max(self.local[(row, j)] * self.block[(j, j)] + 2.0 * UNIT_F32 * score);
                    scores.push(score);
                    got.push(kept(row, j));
                }
                let order = smallest(&scores, count);
                let mut want = vec![true; got.len()];
                order.iter().for_each(|&at| want[at] = false);
                let threshold = order.last().map_or(0.0, |&at| scores[at]);
                assert_same_mask(what, &got, &want, &scores, threshold, 2.0 * doubt);
            }
            Choice::NOfM { keep, group } => {
                for (row, g) in (0..rows).flat_map(|row| (0..width).step_by(*group).map(move |g| (row, g))) {
                    let (mut scores, mut doubt, mut got) = (Vec::new(), 0f64, Vec::new());
                    let end = (g + group).min(width);
                    for j in g..end {
                        let swept: f64 = (0..g).map(|i| self.errors[(row, i)] * self.inverse[(i, j)]).sum();
                        let followed: f64 = (0..g).map(|i| self.residual[(row, i)] * self.inverse[(i, j)].abs()).sum();
                        let score = ((self.current[(row, j)] - swept) * self.block[(j, j)]).abs();
                        let error = (self.local[(row, j)] + followed) * self.block[(j, j)];
                        doubt = doubt.max(error + 2.0 * UNIT_F32 * score);
                        scores.push(score);
                        got.push(kept(row, j));
                    }
                    let want = n_of_m(&Matrix::new(1, end - g, scores.clone()), *keep, *group);
                    let gone = scores.iter().zip(&want).filter(|(_, keep)| !**keep);
                    let threshold = gone.map(|(score, _)| *score).fold(0.0, f64::max);
                    assert_same_mask(&format!("{what}, row {row}, {g}"), &got, &want, &scores, threshold, 2.0 * doubt);
                }
            }
            Choice::Fixed(_) => {}
        }
    }
}

fn audit_weights(
    what: &str,
    problem: &Problem,
    solved: &Solved,
    original: &Matrix,
    errors: &Matrix,
    residual: &Matrix,
) {
    let n = problem.columns;
    if let Choice::Fixed(keep) = &problem.choice {
        assert_eq!(&solved.keep, keep, "{what}: a fixed mask");
    }
    let grid = problem.bits.map(|bits| Grid::new(original, bits));
    for (at, (&q, &keep)) in solved.weight.iter().zip(&solved.keep).enumerate() {
        let (row, j) = (at / n, at % n);
        let pivot = solved.factor[(j, j)];
        let (error, allowed) = (errors[(row, j)] / pivot, residual[(row, j)] / pivot);
        if !keep {
            assert_eq!(q.to_bits(), 0, "{what}: ({row}, {j}) goes, and is {q}");
        } else if let Some(grid) = &grid {
            let value = f64::from(q) + error;
            let clamped = value.clamp(grid.nearest(row, f64::MIN), grid.nearest(row, f64::MAX));
            // The step in f32, its multiple and the quotient: three roundings of a value at most as long as the grid.
            let roundings = 4.0 * UNIT_F32 * grid.step(row) * 2f64.powi(problem.bits.unwrap_or(0) as i32);
            let off = (f64::from(q) - grid.nearest(row, f64::from(q))).abs();
            assert!(off <= roundings, "{what}: ({row}, {j}) is {q}, {off:e} off the grid");
            let far = (f64::from(q) - clamped).abs() - grid.step(row) / 2.0;
            assert!(far <= allowed + roundings, "{what}: ({row}, {j}) is {q} for {value}: not the nearest point");
        } else {
            assert!(error.abs() <= allowed, "{what}: ({row}, {j}) is {q}, {error:e} off; {allowed:e} is allowed");
        }
    }
}

/// Asserts that V·Vᵀ is the damped Hessian of the problem's inputs, to the bounds of the f32 product and factorization.
///
/// # Panics
/// If it is not.
pub fn audit_factor(what: &str, problem: &Problem, solved: &Solved) {
    let n = problem.columns;
    let want = damped_hessian(problem);
    let got = solved.factor.times(&solved.factor.transposed());
    assert_close(&format!("{what}: V·Vᵀ"), got.values(), want.values(), |at| {
        let (a, b) = (want[(at / n, at / n)], want[(at % n, at % n)]);
        // Every shard's sum is one more rounding, the damping two.
        let tokens = problem.tokens() + 10;
        match solved.split {
            true => hessian_split_tolerance(tokens, a, b) + split_factor_residual(n) * (a * b).sqrt(),
            false => hessian_tolerance(tokens, a, b) + factor_residual(n, UNIT_F32) * (a * b).sqrt(),
        }
    });
}

/// Asserts that an answer agrees with another one, which may come from f64: to [`solve_tolerance`] in each row where both
/// took the same decisions. A decision on the edge of rounding may fall either way, and the rest of its row with it
/// (that it *was* on the edge is for [`audit`] to say): such rows are few, at most one or an eighth.
///
/// # Panics
/// If it does not.
pub fn assert_same_answer(what: &str, problem: &Problem, got: &Solved, weight: &[f64], loss: &[f64]) {
    let (rows, n) = (problem.rows, problem.columns);
    let hessian = damped_hessian(problem);
    let inverse = inverse(&hessian).unwrap_or_else(|error| panic!("{what}: {error}"));
    let inflation = (0..n).map(|j| hessian[(j, j)] * inverse[(j, j)]).sum::<f64>() / n as f64;
    let relative = solve_tolerance(problem.tokens(), n, inflation);
    let grid = problem.bits.map(|bits| Grid::new(&Matrix::from_f32(rows, n, &problem.weight), bits));
    let mut others = 0;
    for row in 0..rows {
        let (ours, theirs) = (&got.weight[row * n..(row + 1) * n], &weight[row * n..(row + 1) * n]);
        let same_decision = |(&a, &b): (&f32, &f64)| match &grid {
            Some(grid) => (f64::from(a) - b).abs() < grid.step(row) / 2.0,
            None => (a == 0.0) == (b == 0.0),
        };
        if !ours.iter().zip(theirs).all(same_decision) {
            others += 1;
            continue;
        }
        let what = format!("{what}, row {row}");
        let norm = (2.0 * loss[row]).sqrt();
        assert_close(&what, ours, theirs, |j| {
            relative * norm * inverse[(j, j)].sqrt() + 2.0 * UNIT_F32 * theirs[j].abs()
        });
        assert_close(&format!("{what}: loss"), &got.loss[row..=row], &loss[row..=row], |_| 2.0 * relative * loss[row]);
    }
    assert!(others <= 1.max(rows / 8), "{what}: other decisions in {others} of {rows} rows");
}

fn damped_hessian(problem: &Problem) -> Matrix {
    let inputs = Matrix::from_f32(problem.tokens(), problem.columns, &problem.inputs);
    damped(&hessian(&inputs), problem.damping).hessian
}

/// The entries of these rows and columns.
fn part(matrix: &Matrix, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> Matrix {
    let values = rows.clone().flat_map(|i| matrix.row(i)[columns.clone()].to_vec()).collect();
    Matrix::new(rows.len(), columns.len(), values)
}

fn map(matrix: &Matrix, f: impl Fn(f64) -> f64) -> Matrix {
    Matrix::new(matrix.rows(), matrix.columns(), matrix.values().iter().map(|&value| f(value)).collect())
}
