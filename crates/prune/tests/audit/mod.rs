//! Solving a layer over shards, for [`testkit::audit`] to judge.

use linalg::MatrixRef;
use prune::{Error, Factor, Hessian, Mask, Pattern, Selection, Settings, Weight, run_shards, share, sparsegpt};
use reference::Matrix;
use testkit::golden::Choice;

#[allow(unused_imports)] // each test file uses its own part
pub(crate) use testkit::audit::{Problem, Solved, assert_same_answer, audit, audit_factor};

pub(crate) trait Solve {
    /// Solves the problem on this many shards: tokens and rows divided among them.
    fn solve(&self, shards: usize) -> Result<Solved, Error>;
}

impl Solve for Problem {
    fn solve(&self, shards: usize) -> Result<Solved, Error> {
        let parts = run_shards(shards, |collective| {
            let (rank, size) = (collective.rank(), collective.size());
            let tokens = share(self.tokens(), rank, size);
            let mut hessian = Hessian::new(self.columns);
            let inputs = &self.inputs[tokens.start * self.columns..tokens.end * self.columns];
            hessian.accumulate(MatrixRef::new(inputs, tokens.len(), self.columns));
            hessian.sum(collective)?;
            let factor = Factor::shared(hessian, self.damping, self.width(), collective)?;
            let rows = share(self.rows, rank, size);
            let own = &self.weight[rows.start * self.columns..rows.end * self.columns];
            let mut weight = Weight::from_row_major(own, rows.len(), self.columns);
            let fixed;
            let selection = match &self.choice {
                Choice::Unstructured { sparsity } => Selection::Pattern(Pattern::Unstructured { sparsity: *sparsity }),
                Choice::NOfM { keep, group } => Selection::Pattern(Pattern::NOfM { keep: *keep, group: *group }),
                Choice::Fixed(keep) => {
                    let keeps = |row: usize, j: usize| keep[(rows.start + row) * self.columns + j];
                    fixed = Mask::from_fn(rows.len(), self.columns, keeps);
                    Selection::Fixed(&fixed)
                }
            };
            let settings = Settings { selection, bits: self.bits };
            let outcome = sparsegpt(&mut weight, &factor, &settings, collective)?;
            Ok::<_, Error>((weight, outcome, factor))
        })?;
        let (_, _, factor) = &parts[0];
        let n = self.columns;
        let values = (0..n * n).map(|at| f64::from(factor.at(at / n, at % n))).collect();
        let mut solved = Solved {
            weight: Vec::new(),
            keep: Vec::new(),
            loss: Vec::new(),
            factor: Matrix::new(n, n, values),
            dead: factor.dead().to_vec(),
            split: false,
        };
        for (weight, outcome, _) in parts {
            solved.weight.extend(weight.to_row_major());
            solved.keep.extend((0..weight.rows() * n).map(|at| outcome.keep.keeps(at / n, at % n)));
            solved.loss.extend(outcome.obs_loss);
        }
        Ok(solved)
    }
}
