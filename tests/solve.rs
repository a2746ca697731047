//! Whole layers on the device against the float64 reference, each decision and each number judged by what it means.
#![cfg(feature = "cuda")]

mod support;

use cudarc::driver::CudaViewMut;
use prune_cuda::{Device, Error, Factor, MatrixMut, MatrixRef, Selection, Settings, Shards, Stays, solve};
use reference::Matrix;
use std::sync::{Barrier, Mutex};
use support::{Guarded, SIZES, on_device, on_fast_device, spread};
use testkit::audit::{Problem, Solved, assert_same_answer, audit};
use testkit::generate::{Layer, Random, layer};
use testkit::golden::Choice;

/// V of a problem, rounded to f32, the inverses of its diagonal blocks, likewise, and the dead columns.
struct Factors {
    factor: Vec<f32>,
    inverses: Vec<f32>,
    dead: Vec<bool>,
}

impl Factors {
    fn new(problem: &Problem) -> Self {
        let n = problem.columns;
        let hessian = reference::hessian(&Matrix::from_f32(problem.tokens(), n, &problem.inputs));
        let damped = reference::damped(&hessian, problem.damping);
        let exact = reference::factor(&damped.hessian).expect("a factor");
        let factor: Vec<f32> = exact.values().iter().map(|&value| value as f32).collect();
        let mut inverses = Vec::new();
        for first in (0..n).step_by(128) {
            let own = (n - first).min(128);
            let block: Vec<f32> = (0..own).flat_map(|i| factor[(first + i) * n + first..][..own].to_vec()).collect();
            let inverse = reference::invert_upper(&Matrix::from_f32(own, own, &block));
            let inverse: Vec<f32> = inverse.values().iter().map(|&value| value as f32).collect();
            let mut block = spread(&inverse, own, 128, 0.0);
            block.resize(128 * 128, 0.0);
            inverses.extend(block);
        }
        Self { factor, inverses, dead: damped.dead }
    }
}

/// Solves some rows of a problem, with a gap beside the rows of W.
fn run(
    device: &Device,
    problem: &Problem,
    factors: &Factors,
    rows: std::ops::Range<usize>,
    gap: usize,
    shards: Option<(&dyn Shards, usize)>,
) -> Solved {
    let (n, words) = (problem.columns, problem.columns.div_ceil(32));
    let own = &problem.weight[rows.start * n..rows.end * n];
    let mut weights = Guarded::new(device, &spread(own, n, n + gap, f32::NAN), f32::NAN);
    // Nothing below the diagonal of V is read.
    let upper: Vec<f32> =
        factors.factor.iter().enumerate().map(|(at, &v)| if at / n > at % n { f32::NAN } else { v }).collect();
    let factor = Guarded::new(device, &spread(&upper, n, n + gap, f32::NAN), f32::NAN);
    let inverses = Guarded::new(device, &factors.inverses, f32::NAN);
    let dead: Vec<u8> = factors.dead.iter().map(|&dead| dead.into()).collect();
    let dead = Guarded::new(device, &dead, 7);
    let mut mask = vec![0u32; rows.len() * words];
    if let Choice::Fixed(keep) = &problem.choice {
        for (at, _) in keep[rows.start * n..rows.end * n].iter().enumerate().filter(|(_, keep)| **keep) {
            mask[at / n * words + at % n / 32] |= 1 << (at % n % 32);
        }
    }
    let mask = Guarded::new(device, &mask, 0);
    let mask = mask.matrix(rows.len(), words);
    let selection = match problem.choice {
        Choice::Unstructured { sparsity } => Selection::Unstructured { sparsity, panel_width: problem.panel_width },
        Choice::NOfM { keep, group } => Selection::Groups { keep, group },
        Choice::Fixed(_) => Selection::Fixed(&mask),
    };
    let outcome = {
        let mut weights = MatrixMut::with_stride(weights.view_mut(), rows.len(), n, n + gap).expect("a matrix");
        let factor = Factor {
            factor: MatrixRef::with_stride(factor.view(), n, n, n + gap).expect("a matrix"),
            inverses: inverses.view(),
            dead: dead.view(),
        };
        solve(device, &mut weights, &factor, &Settings { selection, bits: problem.bits, shards }).expect("solves")
    };
    assert_eq!(outcome.not_numbers(device).expect("a count"), 0);
    let keep = device.download(&outcome.keep).expect("a copy");
    let bit = |at: usize| keep[at / n * words + at % n / 32] >> (at % n % 32) & 1 != 0;
    Solved {
        weight: weights.download(device).chunks(n + gap).flat_map(|row| row[..n].to_vec()).collect(),
        keep: (0..rows.len() * n).map(bit).collect(),
        loss: device.download(&outcome.losses).expect("a copy"),
        factor: Matrix::from_f32(n, n, &factors.factor),
        dead: factors.dead.clone(),
        split: true,
    }
}

fn problem(seed: u64, rows: usize, columns: usize, choice: Choice, bits: Option<u32>) -> Problem {
    let tokens = columns + 30;
    let Layer { weight, inputs } = layer(seed, rows, columns, tokens, columns / 50);
    let panel_width = match choice {
        Choice::NOfM { keep, group } => Stays::Groups { keep, group }.widest_panel().expect("a width"),
        _ => 128,
    };
    Problem { weight, rows, columns, inputs, choice, panel_width, damping: 0.01, bits }
}

/// Judges the answer by itself and beside that of the reference.
fn check(device: &Device, problem: &Problem, gap: usize) {
    let factors = Factors::new(problem);
    let solved = run(device, problem, &factors, 0..problem.rows, gap, None);
    let what =
        format!("{:?} of [{}, {}], {:?} bits", short(&problem.choice), problem.rows, problem.columns, problem.bits);
    audit(&what, problem, &solved);
    let selection = match &problem.choice {
        Choice::Unstructured { sparsity } => reference::Selection::Unstructured { sparsity: *sparsity },
        Choice::NOfM { keep, group } => reference::Selection::NOfM { keep: *keep, group: *group },
        Choice::Fixed(keep) => reference::Selection::Fixed(keep.clone()),
    };
    let settings = reference::Settings {
        selection,
        panel_width: problem.panel_width,
        damping: problem.damping,
        bits: problem.bits,
    };
    let hessian = reference::hessian(&Matrix::from_f32(problem.tokens(), problem.columns, &problem.inputs));
    let weight = Matrix::from_f32(problem.rows, problem.columns, &problem.weight);
    let want = reference::prune(&weight, &hessian, &settings).expect("an answer");
    assert_same_answer(&what, problem, &solved, want.weight.values(), &want.loss_per_row);
}

fn short(choice: &Choice) -> String {
    if let Choice::Fixed(_) = choice { "a fixed mask".to_owned() } else { format!("{choice:?}") }
}

fn fixed(rows: usize, columns: usize) -> Choice {
    let mut random = Random::new(17);
    Choice::Fixed((0..rows * columns).map(|_| random.uniform() < 0.6).collect())
}

#[test]
fn unstructured_layers_of_all_sizes() {
    on_device(|device| {
        for columns in SIZES.into_iter().filter(|&columns| columns <= 200) {
            let sparsity = if columns % 2 == 0 { 0.5 } else { 0.7 };
            check(device, &problem(columns as u64, 20, columns, Choice::Unstructured { sparsity }, None), columns % 3);
        }
        for rows in [1, 33, 129] {
            check(device, &problem(7, rows, 160, Choice::Unstructured { sparsity: 0.5 }, None), 0);
        }
        for panel_width in [32, 64] {
            let whole = problem(8, 24, 200, Choice::Unstructured { sparsity: 0.5 }, None);
            check(device, &Problem { panel_width, ..whole }, 0);
        }
        for sparsity in [0.0, 1.0] {
            check(device, &problem(9, 5, 140, Choice::Unstructured { sparsity }, None), 0);
        }
    });
    on_fast_device(|device| {
        check(device, &problem(10, 200, 400, Choice::Unstructured { sparsity: 0.5 }, None), 0);
    });
}

#[test]
fn groups_of_all_kinds() {
    on_device(|device| {
        for (keep, group, columns) in
            [(2, 4, 200), (4, 8, 140), (8, 16, 130), (16, 32, 161), (3, 7, 250), (2, 3, 100), (1, 2, 129)]
        {
            check(device, &problem(group as u64, 12, columns, Choice::NOfM { keep, group }, None), columns % 3);
        }
    });
}

#[test]
fn fixed_masks_and_grids() {
    on_device(|device| {
        check(device, &problem(3, 12, 200, fixed(12, 200), None), 0);
        check(device, &problem(4, 12, 150, fixed(12, 150), Some(4)), 2);
        check(device, &problem(5, 12, 160, Choice::NOfM { keep: 2, group: 4 }, Some(4)), 0);
        check(device, &problem(6, 12, 160, Choice::Unstructured { sparsity: 0.5 }, Some(3)), 0);
        // Errors of an 8-bit grid are so small that their digits are mostly those of W's rounding, for which the model behind
        // the comparison with float64 has no term: judged by itself alone.
        let fine = problem(7, 12, 140, Choice::Unstructured { sparsity: 0.0 }, Some(8));
        audit("8 bits", &fine, &run(device, &fine, &Factors::new(&fine), 0..12, 0, None));
    });
}

/// Shards that are threads: what each knows, and where all meet.
struct Together {
    barrier: Barrier,
    counts: Mutex<Vec<Vec<u64>>>,
}

struct Shard<'a> {
    rank: usize,
    together: &'a Together,
}

impl Shard<'_> {
    /// Everybody's counts, in the order of the shards.
    fn gather(&self, device: &Device, own: &CudaViewMut<'_, u64>) -> Result<Vec<Vec<u64>>, Error> {
        let own = device.download(own)?;
        self.together.counts.lock().expect("counts")[self.rank] = own;
        self.together.barrier.wait();
        let all = self.together.counts.lock().expect("counts").clone();
        self.together.barrier.wait();
        Ok(all)
    }
}

impl Shards for Shard<'_> {
    fn sum(&self, device: &Device, counts: &mut CudaViewMut<'_, u64>) -> Result<(), Error> {
        let all = self.gather(device, counts)?;
        let sums: Vec<u64> = (0..counts.len()).map(|at| all.iter().map(|own| own[at]).sum()).collect();
        Ok(device.stream().memcpy_htod(&sums, counts)?)
    }

    fn before(&self, device: &Device, count: &mut CudaViewMut<'_, u64>) -> Result<(), Error> {
        let all = self.gather(device, count)?;
        let before: u64 = all[..self.rank].iter().map(|own| own[0]).sum();
        Ok(device.stream().memcpy_htod(&[before], count)?)
    }
}

#[test]
fn shards_give_the_answer_of_one() {
    on_device(|device| {
        let problem = problem(11, 50, 150, Choice::Unstructured { sparsity: 0.5 }, None);
        let factors = Factors::new(&problem);
        let alone = run(device, &problem, &factors, 0..50, 0, None);
        let parts = [0..17, 17..17, 17..50];
        let together =
            Together { barrier: Barrier::new(parts.len()), counts: Mutex::new(vec![Vec::new(); parts.len()]) };
        let solved = std::thread::scope(|scope| {
            let running: Vec<_> = parts
                .into_iter()
                .enumerate()
                .map(|(rank, rows)| {
                    let (together, problem, factors) = (&together, &problem, &factors);
                    let device = device.fork().expect("a stream");
                    scope.spawn(move || run(&device, problem, factors, rows, 0, Some((&Shard { rank, together }, 50))))
                })
                .collect();
            running.into_iter().map(|thread| thread.join().expect("a shard")).collect::<Vec<_>>()
        });
        let keep: Vec<bool> = solved.iter().flat_map(|part| part.keep.clone()).collect();
        let weight: Vec<u32> = solved.iter().flat_map(|part| part.weight.iter().map(|w| w.to_bits())).collect();
        assert_eq!(keep, alone.keep);
        assert_eq!(weight, alone.weight.iter().map(|w| w.to_bits()).collect::<Vec<_>>());
    });
}

#[test]
fn the_same_layer_gives_the_same_bits() {
    let seen = Mutex::new(Vec::new());
    on_device(|device| {
        let problem = problem(12, 40, 300, Choice::Unstructured { sparsity: 0.6 }, Some(4));
        let factors = Factors::new(&problem);
        let solved = run(device, &problem, &factors, 0..40, 0, None);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        seen.lock().expect("bits").push((bits(&solved.weight), solved.keep, solved.loss));
    });
    let seen = seen.into_inner().expect("bits");
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn wrong_settings_are_named() {
    on_device(|device| {
        let buffer = Guarded::new(device, &vec![0.0f32; 128 * 128], 0.0);
        let dead = Guarded::new(device, &[0u8; 40], 0);
        let mask = Guarded::new(device, &[0u32; 10], 0);
        let mask = mask.matrix(10, 1);
        for (what, selection, n) in [
            ("sparsity", Selection::Unstructured { sparsity: f64::NAN, panel_width: 128 }, 40),
            ("the panel width", Selection::Unstructured { sparsity: 0.5, panel_width: 100 }, 40),
            ("groups", Selection::Groups { keep: 5, group: 4 }, 40),
            ("the mask", Selection::Fixed(&mask), 40),
            ("the factor", Selection::Groups { keep: 2, group: 4 }, 39),
        ] {
            let mut weights = device.zeros::<f32>(400).expect("memory");
            let mut weights = MatrixMut::new(weights.slice_mut(..), 10, 40).expect("a matrix");
            let factor = MatrixRef::new(buffer.view(), n, n).expect("a matrix");
            let factor = Factor { factor, inverses: buffer.view(), dead: dead.view() };
            let result = solve(device, &mut weights, &factor, &Settings { selection, bits: None, shards: None });
            assert!(matches!(&result, Err(Error::Shape { what: found, .. }) if *found == what), "{what}: {result:?}");
        }
    });
}
