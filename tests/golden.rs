//! The golden problems end to end on the device: accumulate, prepare, factor, solve, each decision and each number judged in
//! float64, and the whole compared with the float64 answers.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Device, Factor, MatrixMut, Selection, Settings, accumulate, factor, failures, prepare, solve};
use reference::Matrix;
use support::{Guarded, on_fast_device};
use testkit::audit::{Problem, Solved, assert_same_answer, audit, audit_factor};
use testkit::golden::{Choice, prune_cases};

fn run(device: &Device, problem: &Problem) -> Solved {
    let Problem { rows, columns: n, .. } = *problem;
    let inputs = Guarded::new(device, &problem.inputs, f32::NAN);
    let mut hessian = Guarded::poisoned(device, n * n, f32::NAN);
    let mut weights = Guarded::new(device, &problem.weight, f32::NAN);
    let mut matrix = hessian.matrix_mut(n, n);
    accumulate(device, &inputs.matrix(problem.tokens(), n), &mut matrix, 1.0, 0.0).expect("accumulates");
    let mut prepared = prepare(device, &mut matrix, 1, problem.damping as f32).expect("prepares");
    let factored = factor(device, &mut matrix, 1, &mut prepared.failed).expect("factors");
    assert_eq!(failures(device, &prepared.failed, &factored).expect("no failures"), []);

    let words = n.div_ceil(32);
    let mut mask = vec![0u32; rows * words];
    if let Choice::Fixed(keep) = &problem.choice {
        for (at, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
            mask[at / n * words + at % n / 32] |= 1 << (at % n % 32);
        }
    }
    let mask = Guarded::new(device, &mask, 0);
    let mask = mask.matrix(rows, words);
    let selection = match problem.choice {
        Choice::Unstructured { sparsity } => Selection::Unstructured { sparsity, panel_width: problem.panel_width },
        Choice::NOfM { keep, group } => Selection::Groups { keep, group },
        Choice::Fixed(_) => Selection::Fixed(&mask),
    };
    let outcome = {
        let mut weights: MatrixMut<'_, f32> = weights.matrix_mut(rows, n);
        let factor = Factor {
            factor: hessian.matrix(n, n),
            inverses: factored.inverses.as_view(),
            dead: prepared.dead.as_view(),
        };
        let settings = Settings { selection, bits: problem.bits, shards: None };
        solve(device, &mut weights, &factor, &settings).expect("solves")
    };
    assert_eq!(outcome.not_numbers(device).expect("a count"), 0);
    let keep = device.download(&outcome.keep).expect("a copy");
    let upper: Vec<f64> = (hessian.download(device).iter().enumerate())
        .map(|(at, &v)| if at / n > at % n { 0.0 } else { f64::from(v) })
        .collect();
    Solved {
        weight: weights.download(device),
        keep: (0..rows * n).map(|at| keep[at / n * words + at % n / 32] >> (at % n % 32) & 1 != 0).collect(),
        loss: device.download(&outcome.losses).expect("a copy"),
        factor: Matrix::new(n, n, upper),
        dead: device.download(&prepared.dead).expect("a copy").iter().map(|&dead| dead != 0).collect(),
        split: true,
    }
}

#[test]
fn every_golden_problem_is_solved() {
    let cases = prune_cases();
    assert_eq!(cases.len(), 12);
    on_fast_device(|device| {
        for case in &cases {
            let case = case.clone();
            let problem = Problem {
                weight: case.weight,
                rows: case.rows,
                columns: case.columns,
                inputs: case.inputs,
                choice: case.choice,
                panel_width: case.panel_width,
                damping: case.damping,
                bits: case.bits,
            };
            let solved = run(device, &problem);
            audit_factor(&case.name, &problem, &solved);
            audit(&case.name, &problem, &solved);
            assert_same_answer(&case.name, &problem, &solved, &case.pruned, &case.loss);
        }
    });
}
