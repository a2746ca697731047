//! What holds for every layer: proptest draws shapes, patterns, panels and grids, [`audit::audit`] judges each answer in
//! float64 (choices, weights, and the losses against ‖(W − Q)·V‖²), and the tests below add what relates answers.

mod audit;
mod given;

use audit::{Problem, Solve, Solved, assert_same_answer, audit, audit_factor};
use given::given_hessian;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use prune::Factor;
use reference::{Matrix, Selection, Settings, dropped};
use testkit::assert_close;
use testkit::generate::{Random, layer, positive_definite};
use testkit::golden::Choice;
use testkit::tolerance::{UNIT_F32, factor_residual};

const PANEL_WIDTHS: [usize; 5] = [1, 7, 64, 128, 1000];
const GROUPS: [(usize, usize); 8] = [(2, 4), (1, 4), (4, 8), (1, 2), (3, 7), (16, 32), (5, 6), (1, 100)];

/// The same problems on every run; forward comparisons are statistical and shall not fail once in a thousand runs.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(20230102), ..ProptestConfig::default() }
}

fn unstructured() -> impl Strategy<Value = (Choice, usize)> {
    let sparsity = prop_oneof![Just(0.0), Just(0.5), Just(0.999), 0.0..1.0];
    (sparsity, 1..150usize).prop_map(|(sparsity, columns)| (Choice::Unstructured { sparsity }, columns))
}

fn n_of_m() -> impl Strategy<Value = (Choice, usize)> {
    (prop::sample::select(&GROUPS), 1..=150usize)
        .prop_map(|((keep, group), columns)| (Choice::NOfM { keep, group }, columns.next_multiple_of(group)))
}

/// A choice is drawn with a number of columns that it can be made for; a fixed mask needs the number of rows as well.
fn problem(choice: impl Strategy<Value = (Choice, usize)>) -> impl Strategy<Value = Problem> {
    let bits = prop_oneof![3 => Just(None), 1 => (2..=8u32).prop_map(Some)];
    let shape = (1..40usize, 1..300usize, prop_oneof![Just(0), 1..4usize]);
    (choice, shape, prop::sample::select(&PANEL_WIDTHS), bits, any::<u64>(), any::<bool>()).prop_map(
        |((choice, columns), (rows, tokens, dead), panel_width, bits, seed, fixed)| {
            let layer = layer(seed, rows, columns, tokens, dead);
            let choice = match choice {
                Choice::Unstructured { sparsity } if fixed => {
                    let mut random = Random::new(seed ^ 1);
                    Choice::Fixed((0..rows * columns).map(|_| random.uniform() >= sparsity).collect())
                }
                choice => choice,
            };
            let (weight, inputs) = (layer.weight, layer.inputs);
            Problem { weight, rows, columns, inputs, choice, panel_width, damping: 0.01, bits }
        },
    )
}

fn solve(problem: &Problem, shards: usize) -> Solved {
    problem.solve(shards).unwrap_or_else(|error| panic!("{error}"))
}

fn gone(solved: &Solved, columns: usize, rows: std::ops::Range<usize>, among: std::ops::Range<usize>) -> usize {
    rows.map(|row| among.clone().filter(|j| !solved.keep[row * columns + j]).count()).sum()
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn every_answer_is_right_on_any_number_of_shards(problem in problem(prop_oneof![unstructured(), n_of_m()])) {
        let alone = solve(&problem, 1);
        let as_f64: Vec<f64> = alone.weight.iter().map(|&q| f64::from(q)).collect();
        audit_factor("alone", &problem, &alone);
        audit("alone", &problem, &alone);
        for shards in [2, 3, 8] {
            let what = format!("{shards} shards");
            let together = solve(&problem, shards);
            audit_factor(&what, &problem, &together);
            audit(&what, &problem, &together);
            // The same thing to rounding: each is within the tolerance of the exact answer, so twice that apart.
            assert_same_answer(&what, &problem, &together, &as_f64, &alone.loss);
        }
    }

    #[test]
    fn panels_lose_exactly_their_share(problem in problem(unstructured())) {
        let Choice::Unstructured { sparsity } = problem.choice else { return Ok(()) };
        for shards in [1, 3] {
            let solved = solve(&problem, shards);
            for first in (0..problem.columns).step_by(problem.panel_width) {
                let panel = first..(first + problem.panel_width).min(problem.columns);
                let share = dropped(problem.rows * panel.len(), sparsity);
                prop_assert_eq!(gone(&solved, problem.columns, 0..problem.rows, panel), share);
            }
        }
    }

    #[test]
    fn groups_lose_exactly_theirs(problem in problem(n_of_m())) {
        let Choice::NOfM { keep, group } = problem.choice else { return Ok(()) };
        let solved = solve(&problem, 2);
        for row in 0..problem.rows {
            for first in (0..problem.columns).step_by(group) {
                prop_assert_eq!(gone(&solved, problem.columns, row..row + 1, first..first + group), group - keep);
            }
        }
    }

    #[test]
    fn the_scale_of_the_inputs_changes_nothing(
        mut problem in problem(prop_oneof![unstructured(), n_of_m()]),
        exponent in -8..8i32,
        scale in 0.01..100f32,
    ) {
        // A dead column gets a one on the diagonal whatever the scale of the rest, so there shall be none.
        prop_assume!((0..problem.columns).all(|j| problem.inputs.iter().skip(j).step_by(problem.columns).any(|&x| x != 0.0)));
        let plain = solve(&problem, 1);
        let original = problem.inputs.clone();
        // X by 2^k is H by 4^k and V by 2^k: every number on the way keeps its digits.
        problem.inputs.iter_mut().for_each(|x| *x *= 2f32.powi(exponent));
        let scaled = solve(&problem, 1);
        prop_assert_eq!(&plain.weight, &scaled.weight);
        prop_assert_eq!(&plain.keep, &scaled.keep);
        let losses: Vec<f64> = plain.loss.iter().map(|loss| loss * 4f64.powi(exponent)).collect();
        prop_assert_eq!(&losses, &scaled.loss);
        problem.inputs = original.iter().map(|x| x * scale).collect();
        let scaled = solve(&problem, 1);
        let as_f64: Vec<f64> = plain.weight.iter().map(|&q| f64::from(q)).collect();
        let losses: Vec<f64> = plain.loss.iter().map(|loss| loss * f64::from(scale).powi(2)).collect();
        audit("scaled", &problem, &scaled);
        assert_same_answer("scaled", &problem, &scaled, &as_f64, &losses);
    }

    #[test]
    fn rows_that_change_places_take_their_answers_along(problem in problem(n_of_m()), seed in any::<u64>()) {
        let plain = solve(&problem, 1);
        let n = problem.columns;
        let order = Random::new(seed).choose(problem.rows, problem.rows);
        let mut permuted = problem.clone();
        permuted.weight = order.iter().flat_map(|&row| problem.weight[row * n..(row + 1) * n].to_vec()).collect();
        let solved = solve(&permuted, 1);
        let expected: Vec<f64> =
            order.iter().flat_map(|&row| plain.weight[row * n..(row + 1) * n].iter().map(|&q| f64::from(q))).collect();
        let losses: Vec<f64> = order.iter().map(|&row| plain.loss[row]).collect();
        audit("permuted", &permuted, &solved);
        assert_same_answer("permuted", &permuted, &solved, &expected, &losses);
    }

    #[test]
    fn equal_scores_go_in_order_of_row_and_column_on_any_number_of_shards(
        (rows, columns) in (1..30usize, 1..60usize),
        panel_width in prop::sample::select(&PANEL_WIDTHS),
        distinct in 1..4usize,
        sparsity in 0.0..1.0,
        seed in any::<u64>(),
    ) {
        // One token per column: H is a multiple of the identity, nothing is corrected, and the arithmetic of the scores is
        // the same for equal weights. The reference, whose order of ties is by definition, must be met exactly.
        let mut inputs = vec![0.0; columns * columns];
        (0..columns).for_each(|j| inputs[j * columns + j] = 2.0);
        let mut random = Random::new(seed);
        let weight: Vec<f32> = (0..rows * columns)
            .map(|_| (1 + random.below(distinct)) as f32 * if random.uniform() < 0.5 { -1.0 } else { 1.0 })
            .collect();
        let choice = Choice::Unstructured { sparsity };
        let problem = Problem { weight, rows, columns, inputs, choice, panel_width, damping: 0.01, bits: None };
        let settings =
            Settings { selection: Selection::Unstructured { sparsity }, panel_width, damping: 0.01, bits: None };
        let original = Matrix::from_f32(rows, columns, &problem.weight);
        let hessian = reference::hessian(&Matrix::from_f32(columns, columns, &problem.inputs));
        let want = reference::prune(&original, &hessian, &settings).expect("a multiple of the identity");
        for shards in [1, 2, 3, 8] {
            let solved = solve(&problem, shards);
            prop_assert_eq!(&solved.keep, &want.keep, "{} shards", shards);
            let as_f64: Vec<f64> = solved.weight.iter().map(|&q| f64::from(q)).collect();
            prop_assert_eq!(&as_f64[..], want.weight.values());
        }
    }

    #[test]
    fn dead_columns_become_zero(mut problem in problem(prop_oneof![unstructured(), n_of_m()]), count in 1..5usize) {
        let dead = Random::new(count as u64).choose(count, problem.columns);
        for token in problem.inputs.chunks_mut(problem.columns) {
            dead.iter().for_each(|&j| token[j] = 0.0);
        }
        let solved = solve(&problem, 2);
        audit("dead", &problem, &solved);
        for &j in &dead {
            prop_assert!(solved.dead[j]);
            for row in 0..problem.rows {
                prop_assert_eq!(solved.weight[row * problem.columns + j].to_bits(), 0, "row {} of column {}", row, j);
            }
        }
    }
}

#[test]
fn every_pattern_is_solved_with_every_panel_width() {
    for (seed, (keep, group)) in GROUPS.into_iter().enumerate() {
        for panel_width in PANEL_WIDTHS {
            let (rows, columns) = (19, 140usize.next_multiple_of(group));
            let layer = layer(seed as u64, rows, columns, 200, 0);
            let choice = Choice::NOfM { keep, group };
            let (weight, inputs) = (layer.weight, layer.inputs);
            let problem = Problem { weight, rows, columns, inputs, choice, panel_width, damping: 0.01, bits: None };
            audit(&format!("{keep}:{group}, panels of {panel_width}"), &problem, &solve(&problem, 1));
        }
    }
}

#[test]
fn the_factor_times_itself_is_the_hessian() {
    for n in [1, 31, 32, 33, 64, 127, 128, 129, 200, 513] {
        for condition in [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6] {
            let what = format!("n = {n}, condition {condition:e}");
            let values: Vec<f32> = positive_definite(n as u64, n, condition).iter().map(|&h| h as f32).collect();
            let factor = Factor::new(given_hessian(n, &values), 0.0, 128).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(factor.raises(), 0, "{what}");
            let upper = Matrix::new(n, n, (0..n * n).map(|at| f64::from(factor.at(at / n, at % n))).collect());
            let diagonal = |j: usize| f64::from(values[j * n + j]);
            assert_close(&what, upper.times(&upper.transposed()).values(), &values, |at| {
                factor_residual(n, UNIT_F32) * (diagonal(at / n) * diagonal(at % n)).sqrt()
            });
        }
    }
}
