//! The float32 backend beside the float64 reference: the Hessian, SparseGPT on fresh layers, the baselines.

mod audit;

use audit::{Problem, Solve, assert_same_answer, audit, audit_factor};
use linalg::MatrixRef;
use prune::{ColumnNorms, Error, Pattern, Weight, magnitude, run_shards, share, wanda};
use reference::{Matrix, Selection, Settings, hessian, prune as solve_exactly};
use testkit::generate::{Layer, layer};
use testkit::golden::Choice;
use testkit::tolerance::{UNIT_F32, gamma, hessian_tolerance};
use testkit::{assert_close, assert_same_mask};

const SHARDS: [usize; 4] = [1, 2, 3, 8];
const PATTERNS: [Pattern; 7] = [
    Pattern::Unstructured { sparsity: 0.0 },
    Pattern::Unstructured { sparsity: 0.3 },
    Pattern::Unstructured { sparsity: 0.5 },
    Pattern::Unstructured { sparsity: 0.97 },
    Pattern::NOfM { keep: 2, group: 4 },
    Pattern::NOfM { keep: 3, group: 7 },
    Pattern::NOfM { keep: 16, group: 32 },
];

/// A number of columns that every group of [`PATTERNS`] divides.
const COLUMNS: usize = 224;

fn selection(pattern: Pattern) -> Selection {
    match pattern {
        Pattern::Unstructured { sparsity } => Selection::Unstructured { sparsity },
        Pattern::NOfM { keep, group } => Selection::NOfM { keep, group },
    }
}

#[test]
fn fresh_layers_are_solved_as_the_reference_solves_them() {
    for (seed, pattern) in (100..).zip(PATTERNS) {
        for bits in [None, Some(4)] {
            let (rows, tokens, panel_width) = (32, 300, 100);
            let Layer { weight, inputs } = layer(seed, rows, COLUMNS, tokens, 2);
            let settings = Settings { selection: selection(pattern), panel_width, damping: 0.01, bits };
            let exact_inputs = Matrix::from_f32(tokens, COLUMNS, &inputs);
            let want = solve_exactly(&Matrix::from_f32(rows, COLUMNS, &weight), &hessian(&exact_inputs), &settings)
                .unwrap_or_else(|error| panic!("{pattern}: {error}"));
            let choice = match pattern {
                Pattern::Unstructured { sparsity } => Choice::Unstructured { sparsity },
                Pattern::NOfM { keep, group } => Choice::NOfM { keep, group },
            };
            let problem = Problem { weight, rows, columns: COLUMNS, inputs, choice, panel_width, damping: 0.01, bits };
            for shards in SHARDS {
                let what = format!("{pattern}, {bits:?} bits, {shards} shards");
                let got = problem.solve(shards).unwrap_or_else(|error| panic!("{what}: {error}"));
                audit_factor(&what, &problem, &got);
                audit(&what, &problem, &got);
                assert_same_answer(&what, &problem, &got, want.weight.values(), &want.loss_per_row);
            }
        }
    }
}

#[test]
fn the_hessian_is_the_sum_over_batches_and_shards() {
    let (columns, tokens) = (70, 333);
    let inputs = layer(7, 1, columns, tokens, 3).inputs;
    let want = hessian(&Matrix::from_f32(tokens, columns, &inputs));
    for shards in SHARDS {
        let sums = run_shards(shards, |collective| {
            let mut hessian = prune::Hessian::new(columns);
            for batch in inputs[..].chunks(50 * columns).skip(collective.rank()).step_by(collective.size()) {
                hessian.accumulate(MatrixRef::new(batch, batch.len() / columns, columns));
            }
            hessian.sum(collective)?;
            // With a mean that is ten times all there is, what is read back is V·Vᵀ = H + damp.
            prune::Factor::new(hessian, 10.0, columns)
        });
        let factors = sums.unwrap_or_else(|error: Error| panic!("{error}"));
        let exact = reference::damped(&want, 10.0).hessian;
        for factor in factors {
            let n = columns;
            let upper = Matrix::new(n, n, (0..n * n).map(|at| f64::from(factor.at(at / n, at % n))).collect());
            let got = upper.times(&upper.transposed());
            assert_close(&format!("H on {shards} shards"), got.values(), exact.values(), |at| {
                let (a, b) = (exact[(at / n, at / n)], exact[(at % n, at % n)]);
                hessian_tolerance(tokens + 8, a, b) + testkit::tolerance::factor_residual(n, UNIT_F32) * (a * b).sqrt()
            });
        }
    }
}

#[test]
fn magnitude_is_that_of_the_reference_exactly() {
    for (seed, pattern) in (200..).zip(PATTERNS) {
        for rows in [1, 2, 37] {
            let mut weight = layer(seed, rows, COLUMNS, 1, 0).weight;
            // Rounded to few values, so that many are equal.
            weight.iter_mut().step_by(2).for_each(|w| *w = (*w * 20.0).round() / 20.0);
            let want = reference::magnitude(&Matrix::from_f32(rows, COLUMNS, &weight), &selection(pattern));
            for shards in SHARDS {
                let parts = run_shards(shards, |collective| {
                    let rows = share(rows, collective.rank(), collective.size());
                    let own = &weight[rows.start * COLUMNS..rows.end * COLUMNS];
                    let mut own = Weight::from_row_major(own, rows.len(), COLUMNS);
                    let mask = magnitude(&mut own, pattern, collective)?;
                    Ok::<_, Error>((own.to_row_major(), mask))
                });
                let (mut got, mut keep) = (Vec::new(), Vec::new());
                for (weight, mask) in parts.unwrap_or_else(|error| panic!("{pattern}: {error}")) {
                    keep.extend((0..weight.len()).map(|at| mask.keeps(at / COLUMNS, at % COLUMNS)));
                    got.extend(weight);
                }
                assert_eq!(keep, want, "{pattern}, {rows} rows, {shards} shards");
                assert_kept_as_it_was(&got, &weight, &keep);
            }
        }
    }
}

#[test]
fn wanda_is_that_of_the_reference() {
    for (seed, pattern) in (300..).zip(PATTERNS) {
        let (rows, tokens) = (23, 97);
        let Layer { weight, inputs } = layer(seed, rows, COLUMNS, tokens, 2);
        let exact: Vec<f64> = (0..COLUMNS)
            .map(|j| inputs.iter().skip(j).step_by(COLUMNS).map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt())
            .collect();
        for shards in SHARDS {
            let what = format!("{pattern}, {shards} shards");
            let norms = run_shards(shards, |collective| {
                let mut norms = ColumnNorms::new(COLUMNS);
                let tokens = share(tokens, collective.rank(), collective.size());
                norms.accumulate(&inputs[tokens.start * COLUMNS..tokens.end * COLUMNS]);
                norms.sum(collective)?;
                Ok::<_, Error>(norms.norms())
            });
            let norms = norms.unwrap_or_else(|error| panic!("{what}: {error}")).remove(0);
            // A root halves the relative error of at most eight f32 roundings in the sum; one more of its own.
            assert_close(&what, &norms, &exact, |j| gamma(5, UNIT_F32) * exact[j]);

            let mut got = Weight::from_row_major(&weight, rows, COLUMNS);
            let mask = wanda(&mut got, pattern, &norms).unwrap_or_else(|error| panic!("{what}: {error}"));
            let keep: Vec<bool> = (0..rows * COLUMNS).map(|at| mask.keeps(at / COLUMNS, at % COLUMNS)).collect();
            let want = reference::wanda(&Matrix::from_f32(rows, COLUMNS, &weight), &exact, &selection(pattern));
            let compared = if let Pattern::NOfM { group, .. } = pattern { group } else { COLUMNS };
            for first in (0..rows * COLUMNS).step_by(compared) {
                let among = first..first + compared;
                let score = |at: usize| f64::from(weight[at]).abs() * exact[at % COLUMNS];
                let scores: Vec<f64> = among.clone().map(score).collect();
                let threshold = among.clone().filter(|&at| !want[at]).map(score).fold(0.0, f64::max);
                // The score next to the threshold, and the threshold itself: the norm's five roundings and the product.
                let doubt = 2.0 * gamma(6, UNIT_F32) * threshold;
                assert_same_mask(&what, &keep[among.clone()], &want[among], &scores, threshold, doubt);
            }
            assert_kept_as_it_was(&got.to_row_major(), &weight, &keep);
        }
    }
}

#[test]
fn equal_scores_of_wanda_go_from_the_left() {
    // Few weights and norms, all powers of two: products are exact, and many are equal.
    let rows = 11;
    let power = |at: usize, of: usize| f32::from(1u8 << (at * 7919 % 5 % of));
    let weight: Vec<f32> =
        (0..rows * COLUMNS).map(|at| if at % 2 == 0 { power(at, 3) } else { -power(at, 3) }).collect();
    let norms: Vec<f32> = (0..COLUMNS).map(|j| power(j, 2)).collect();
    let exact: Vec<f64> = norms.iter().map(|&norm| f64::from(norm)).collect();
    for pattern in PATTERNS {
        let mut got = Weight::from_row_major(&weight, rows, COLUMNS);
        let mask = wanda(&mut got, pattern, &norms).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let keep: Vec<bool> = (0..rows * COLUMNS).map(|at| mask.keeps(at / COLUMNS, at % COLUMNS)).collect();
        let want = reference::wanda(&Matrix::from_f32(rows, COLUMNS, &weight), &exact, &selection(pattern));
        assert_eq!(keep, want, "{pattern}");
    }
}

/// The baselines correct nothing: what is kept has its bits, what goes is +0.0.
fn assert_kept_as_it_was(got: &[f32], weight: &[f32], keep: &[bool]) {
    for (at, (&got, &weight)) in got.iter().zip(weight).enumerate() {
        let want = if keep[at] { weight.to_bits() } else { 0 };
        assert_eq!(got.to_bits(), want, "weight {at}: {got} from {weight}");
    }
}
