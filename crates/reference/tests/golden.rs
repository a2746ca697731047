//! The reference meets the twelve golden problems to 1e-9: |a − b| ≤ 1e-9 · max(1, |b|) for weights, losses, factors.

use reference::{Answer, Matrix, Selection, Settings, damped, dropped, hessian, inverse_factor, prune};
use testkit::golden::{Choice, PruneCase, prune_cases};
use testkit::{assert_close, tolerance};

fn settings(case: &PruneCase) -> Settings {
    let selection = match case.choice.clone() {
        Choice::Unstructured { sparsity } => Selection::Unstructured { sparsity },
        Choice::NOfM { keep, group } => Selection::NOfM { keep, group },
        Choice::Fixed(keep) => Selection::Fixed(keep),
    };
    Settings { selection, panel_width: case.panel_width, damping: case.damping, bits: case.bits }
}

fn solve(case: &PruneCase) -> (Matrix, Answer) {
    let weight = Matrix::from_f32(case.rows, case.columns, &case.weight);
    let hessian = hessian(&Matrix::from_f32(case.tokens, case.columns, &case.inputs));
    let answer = prune(&weight, &hessian, &settings(case)).expect("a golden Hessian is positive definite");
    (hessian, answer)
}

#[test]
fn every_golden_problem_is_solved() {
    let cases = prune_cases();
    assert_eq!(cases.len(), 12);
    for case in &cases {
        let (_, answer) = solve(case);
        let name = |what| format!("{}: {what}", case.name);
        assert_close(&name("weights"), answer.weight.values(), &case.pruned, |i| tolerance::golden(case.pruned[i]));
        assert_close(&name("loss"), &answer.loss_per_row, &case.loss, |i| tolerance::golden(case.loss[i]));
        let zeros = |values: &[f64]| values.iter().map(|&q| q == 0.0).collect::<Vec<_>>();
        assert_eq!(zeros(answer.weight.values()), zeros(&case.pruned), "{}", name("zeros"));
    }
}

#[test]
fn what_goes_is_zero_and_counted_exactly() {
    for case in prune_cases() {
        let (_, answer) = solve(&case);
        for (q, keep) in answer.weight.values().iter().zip(&answer.keep) {
            assert!(*keep || q.to_bits() == 0, "{}: a weight that goes becomes +0.0, not {q}", case.name);
        }
        let gone_of = |row: usize, first: usize, last: usize| {
            (first..last).filter(|j| !answer.keep[row * case.columns + j]).count()
        };
        match &case.choice {
            Choice::Unstructured { sparsity } => {
                for first in (0..case.columns).step_by(case.panel_width) {
                    let last = (first + case.panel_width).min(case.columns);
                    let gone: usize = (0..case.rows).map(|row| gone_of(row, first, last)).sum();
                    assert_eq!(gone, dropped(case.rows * (last - first), *sparsity), "{}: panel {first}", case.name);
                }
            }
            Choice::NOfM { keep, group } => {
                for row in 0..case.rows {
                    for first in (0..case.columns).step_by(*group) {
                        assert_eq!(gone_of(row, first, first + group), group - keep, "{}: {row}, {first}", case.name);
                    }
                }
            }
            Choice::Fixed(keep) => assert_eq!(&answer.keep, keep, "{}", case.name),
        }
    }
}

#[test]
fn golden_factors_are_met() {
    let mut compared = 0;
    for case in prune_cases() {
        let Some(want) = &case.inverse_factor else { continue };
        let hessian = hessian(&Matrix::from_f32(case.tokens, case.columns, &case.inputs));
        let damped = damped(&hessian, case.damping);
        let got = inverse_factor(&damped.hessian).expect("a golden Hessian is positive definite");
        assert_close(&case.name, got.values(), want, |i| tolerance::golden(want[i]));
        compared += 1;
    }
    assert_eq!(compared, 3);
}
