//! The float32 CPU backend on the twelve golden problems: every decision and every number judged in float64, and the
//! whole compared with the float64 answers.

mod audit;

use audit::{Problem, Solve, assert_same_answer, audit, audit_factor};
use testkit::golden::prune_cases;

#[test]
fn every_golden_problem_is_solved() {
    let cases = prune_cases();
    assert_eq!(cases.len(), 12);
    for case in cases {
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
        for shards in [1, 3] {
            let what = format!("{} on {shards} shards", case.name);
            let solved = problem.solve(shards).unwrap_or_else(|error| panic!("{what}: {error}"));
            audit_factor(&what, &problem, &solved);
            audit(&what, &problem, &solved);
            assert_same_answer(&what, &problem, &solved, &case.pruned, &case.loss);
        }
    }
}
