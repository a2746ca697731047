//! The sweep against the textbook on tiny layers, and against what makes an answer optimal.

use reference::{
    Answer, Grid, Matrix, NotPositive, Selection, Settings, damped, factor, hessian, inverse_factor, obs,
    obs_inverse_diagonal, prune, sweep_with_factor, sweep_with_inverse_factor,
};
use testkit::generate::{Random, layer};
use testkit::{assert_close, tolerance};

struct Problem {
    weight: Matrix,
    hessian: Matrix,
}

fn problem(seed: u64, rows: usize, columns: usize) -> Problem {
    let layer = layer(seed, rows, columns, 3 * columns, 0);
    let hessian = hessian(&Matrix::from_f32(3 * columns, columns, &layer.inputs));
    Problem { weight: Matrix::from_f32(rows, columns, &layer.weight), hessian }
}

fn selections(seed: u64, rows: usize, columns: usize) -> Vec<Selection> {
    let mut random = Random::new(seed);
    vec![
        Selection::Unstructured { sparsity: 0.0 },
        Selection::Unstructured { sparsity: 0.5 },
        Selection::Unstructured { sparsity: 0.9 },
        Selection::NOfM { keep: 2, group: 4 },
        Selection::NOfM { keep: 3, group: 7 },
        Selection::NOfM { keep: 1, group: 3 },
        Selection::Fixed((0..rows * columns).map(|_| random.uniform() < 0.5).collect()),
    ]
}

/// Both forms of the sweep on the same damped Hessian.
fn both(problem: &Problem, settings: &Settings) -> Result<[Answer; 2], NotPositive> {
    let damped = damped(&problem.hessian, settings.damping);
    Ok([
        sweep_with_inverse_factor(&problem.weight, &inverse_factor(&damped.hessian)?, settings),
        sweep_with_factor(&problem.weight, &factor(&damped.hessian)?, settings),
    ])
}

/// Every combination of choice, panel width and grid that the tests below go through.
fn for_each_answer(test: impl Fn(&str, &Problem, &Settings, [Answer; 2])) {
    for (seed, rows, columns) in [(1, 1, 1), (2, 5, 12), (3, 3, 21), (4, 8, 40)] {
        let problem = problem(seed, rows, columns);
        for selection in selections(seed, rows, columns) {
            for panel_width in [1, 5, 16, 100] {
                for bits in [None, Some(3)] {
                    let settings = Settings { selection: selection.clone(), panel_width, damping: 0.01, bits };
                    let answers = both(&problem, &settings).expect("damped");
                    test(&format!("{rows} × {columns}, {settings:?}"), &problem, &settings, answers);
                }
            }
        }
    }
}

#[test]
fn the_sweep_is_the_textbook_method() {
    for_each_answer(|what, problem, settings, [answer, _]| {
        if settings.bits.is_some() {
            return; // the textbook removes weights, it does not round them
        }
        let removed = obs(&problem.weight, &damped(&problem.hessian, settings.damping).hessian, &answer.keep);
        assert_close(what, answer.weight.values(), removed.weight.values(), |_| 1e-11);
        assert_close(what, &answer.loss_per_row, &removed.loss_per_row, |i| 1e-11 * removed.loss_per_row[i].max(1.0));
    });
}

#[test]
fn the_scores_are_those_of_the_textbook() {
    for columns in [1, 4, 11, 24] {
        let damped = damped(&problem(9, 1, columns).hessian, 0.01).hessian;
        let factor = inverse_factor(&damped).expect("damped");
        let want = obs_inverse_diagonal(&damped);
        let got: Vec<f64> = (0..columns).map(|j| factor[(j, j)].powi(2)).collect();
        assert_close("U_jj² = [H_F⁻¹]_jj", &got, &want, |j| 1e-11 * want[j]);
    }
}

#[test]
fn both_forms_give_the_same_answer() {
    for_each_answer(|what, _, _, [right, left]| {
        assert_eq!(right.keep, left.keep, "{what}");
        assert_close(what, left.weight.values(), right.weight.values(), |_| 1e-12);
        assert_close(what, left.errors.values(), right.errors.values(), |i| {
            1e-12 * right.errors.values()[i].abs().max(1.0)
        });
        assert_close(what, &left.loss_per_row, &right.loss_per_row, |i| 1e-12 * right.loss_per_row[i].max(1.0));
    });
}

#[test]
fn the_errors_are_the_change_times_the_factor() {
    for_each_answer(|what, problem, settings, [answer, _]| {
        let factor = factor(&damped(&problem.hessian, settings.damping).hessian).expect("damped");
        let want = problem.weight.minus(&answer.weight).times(&factor);
        assert_close(what, answer.errors.values(), want.values(), |i| 1e-11 * want.values()[i].abs().max(1.0));
        for (row, loss) in answer.loss_per_row.iter().enumerate() {
            let half: f64 = want.row(row).iter().map(|e| e * e / 2.0).sum();
            assert!((loss - half).abs() <= 1e-11 * half.max(1.0), "{what}: {loss} is not {half}");
        }
    });
}

/// Where all that goes stands before all that stays, nothing is frozen too early, and the sweep has to find the
/// minimum of ‖(W − Q)·X‖² over what stays: the gradient (W − Q)·H vanishes there.
#[test]
fn the_answer_is_optimal_where_the_order_does_not_bind() {
    let (rows, columns) = (4, 24);
    let problem = problem(5, rows, columns);
    let keep: Vec<bool> = (0..rows * columns).map(|i| i % columns >= 5 + 3 * (i / columns)).collect();
    for panel_width in [1, 8, 24] {
        let settings = Settings { selection: Selection::Fixed(keep.clone()), panel_width, damping: 0.01, bits: None };
        let answer = prune(&problem.weight, &problem.hessian, &settings).expect("damped");
        let damped = damped(&problem.hessian, 0.01).hessian;
        let gradient = problem.weight.minus(&answer.weight).times(&damped);
        let scale = (0..columns).map(|j| damped[(j, j)]).fold(0.0, f64::max);
        for (position, gradient) in gradient.values().iter().enumerate() {
            assert!(!keep[position] || gradient.abs() <= 1e-12 * scale, "weight {position}: {gradient:e}");
        }
    }
}

#[test]
fn quantized_weights_lie_on_the_grid_of_their_row() {
    for_each_answer(|what, problem, settings, [answer, _]| {
        let Some(bits) = settings.bits else { return };
        let grid = Grid::new(&problem.weight, bits);
        for row in 0..answer.weight.rows() {
            let mut points: Vec<u64> = answer.weight.row(row).iter().map(|q| q.to_bits()).collect();
            points.sort_unstable();
            points.dedup();
            assert!(points.len() <= 1 << bits, "{what}: {} points", points.len());
            for &q in answer.weight.row(row) {
                assert!((grid.nearest(row, q) - q).abs() <= tolerance::UNIT_F64 * 8.0, "{what}: {q} is off the grid");
            }
        }
    });
}
