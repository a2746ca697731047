//! `kernels/prune_sweep.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Block, Device, Error, Grid, MatrixMut, MatrixRef, Stays, Swept, sweep};
use reference::Matrix;
use std::sync::Mutex;
use support::{Guarded, SIZES, on_device, on_fast_device, profiles, spread};
use testkit::audit::{Problem, Solved, audit};
use testkit::generate::{Layer, Random, layer};
use testkit::golden::Choice;
use testkit::tolerance::{UNIT_F32, gamma};

const PANEL: usize = 128;

/// One panel to be swept, and how it lies in memory.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    width: usize,
    /// n and m, or what stays is given.
    groups: Option<(usize, usize)>,
    bits: Option<u32>,
    /// Numbers beside every row.
    gap: usize,
    /// The first bit.
    first: usize,
    /// Whether W̃ lies apart from W.
    apart: bool,
}

impl Case {
    fn new(rows: usize, width: usize, groups: Option<(usize, usize)>) -> Self {
        Self { rows, width, groups, bits: None, gap: 0, first: 0, apart: false }
    }

    fn stays(&self) -> Stays {
        self.groups.map_or(Stays::Given, |(keep, group)| Stays::Groups { keep, group })
    }
}

/// V [n, n] of a layer, rounded to f32, and its inverse, likewise, a row every 128.
fn factors(inputs: &[f32], n: usize) -> (Vec<f32>, Vec<f32>) {
    let hessian = reference::hessian(&Matrix::from_f32(inputs.len() / n, n, inputs));
    let exact = reference::factor(&reference::damped(&hessian, 0.01).hessian).expect("a factor");
    let factor: Vec<f32> = exact.values().iter().map(|&value| value as f32).collect();
    let inverse = reference::invert_upper(&Matrix::from_f32(n, n, &factor));
    let inverse: Vec<f32> = inverse.values().iter().map(|&value| value as f32).collect();
    (factor, spread(&inverse, n, PANEL, f32::NAN))
}

fn bit(words: &[u32], row: usize, stride: usize, at: usize) -> bool {
    words[row * stride + at / 32] >> (at % 32) & 1 != 0
}

/// Everything that a sweep wrote.
#[derive(Debug)]
struct Outcome {
    weight: Vec<f32>,
    keep: Vec<bool>,
    loss: Vec<f64>,
    delta: Vec<f32>,
    errors: Vec<f32>,
}

fn run(device: &Device, case: &Case, weight: &[f32], factor: &[f32], inverse: &[f32], given: &[bool]) -> Outcome {
    let Case { rows, width, first, .. } = *case;
    let (stride, words) = (width + case.gap, (first + width).div_ceil(32) + 1);
    let spread_weight = spread(weight, width, stride, f32::NAN);
    let current = Guarded::new(device, &spread_weight, f32::NAN);
    let mut weights = Guarded::new(device, &spread_weight, f32::NAN);
    let mut delta = Guarded::poisoned(device, rows * stride, f32::NAN);
    let mut errors = Guarded::poisoned(device, rows * stride, f32::NAN);
    let mut bits = vec![0x5a5a_5a5au32; rows * words];
    if case.groups.is_none() {
        for (at, &stays) in given.iter().enumerate() {
            let (row, bit) = (at / width, first + at % width);
            let word = &mut bits[row * words + bit / 32];
            *word = *word & !(1 << (bit % 32)) | u32::from(stays) << (bit % 32);
        }
    }
    let mut keep = Guarded::new(device, &bits, 0xdead_beef);
    let mut losses = Guarded::new(device, &vec![1.0f64; rows], f64::NAN);
    let factor = Guarded::new(device, factor, f32::NAN);
    let inverse = Guarded::new(device, inverse, f32::NAN);
    let grid = case.bits.map(|bits| {
        let weights = MatrixRef::with_stride(current.view(), rows, width, stride).expect("a matrix");
        Grid::new(device, &weights, bits).expect("a grid")
    });
    {
        let matrix = |data| MatrixMut::with_stride(data, rows, width, stride).expect("a matrix");
        let block = Block {
            inverse: &MatrixRef::with_stride(inverse.view(), width, width, PANEL).expect("a matrix"),
            pivots: &MatrixRef::with_stride(factor.view(), width, 1, width + 1).expect("a diagonal"),
            stays: case.stays(),
            grid: grid.as_ref(),
        };
        let apart = MatrixRef::with_stride(current.view(), rows, width, stride).expect("a matrix");
        let swept = Swept {
            keep: MatrixMut::new(keep.view_mut(), rows, words).expect("a matrix"),
            first,
            losses: losses.view_mut(),
            delta: case.apart.then_some(matrix(delta.view_mut())),
            errors: Some(matrix(errors.view_mut())),
        };
        sweep(device, case.apart.then_some(&apart), &mut matrix(weights.view_mut()), &block, swept).expect("sweeps");
    }
    let packed = |buffer: &Guarded<f32>| -> Vec<f32> {
        let all = buffer.download(device);
        assert!(all.chunks(stride).all(|row| row[width..].iter().all(|gap| gap.is_nan())), "{case:?}: beside the rows");
        all.chunks(stride).flat_map(|row| row[..width].to_vec()).collect()
    };
    let words_out = keep.download(device);
    for row in 0..rows {
        for at in 0..first {
            assert_eq!(bit(&words_out, row, words, at), 0x5a5a_5a5au32 >> (at % 32) & 1 != 0, "{case:?}: bit {at}");
        }
        // One word more than there are bits.
        assert_eq!(words_out[row * words + words - 1], 0x5a5a_5a5a, "{case:?}: behind the bits");
    }
    Outcome {
        weight: packed(&weights),
        keep: (0..rows * width).map(|at| bit(&words_out, at / width, words, first + at % width)).collect(),
        loss: losses.download(device).into_iter().map(|loss| loss - 1.0).collect(),
        delta: packed(&delta),
        errors: packed(&errors),
    }
}

fn check(device: &Device, case: &Case) {
    let Case { rows, width, .. } = *case;
    let Layer { weight, inputs } = layer((rows * 1009 + width) as u64, rows, width, width + 20, 0);
    let (factor, inverse) = factors(&inputs, width);
    let mut random = Random::new(9);
    let given: Vec<bool> = (0..rows * width).map(|_| random.uniform() < 0.5).collect();
    let outcome = run(device, case, &weight, &factor, &inverse, &given);

    let choice = case.groups.map_or(Choice::Fixed(given), |(keep, group)| Choice::NOfM { keep, group });
    let columns = width;
    let problem = Problem {
        weight: weight.clone(),
        rows,
        columns,
        inputs,
        choice,
        panel_width: PANEL,
        damping: 0.01,
        bits: case.bits,
    };
    let mut solved = Solved {
        weight: outcome.weight.clone(),
        keep: outcome.keep,
        loss: outcome.loss,
        factor: Matrix::from_f32(width, width, &factor),
        dead: vec![false; width],
        split: false,
    };
    let what = format!("{case:?}");
    // The loss began at one, and lost the digits below that one's.
    solved.loss.iter_mut().zip(outcome.errors.chunks(width)).for_each(|(loss, errors)| {
        let exact = errors.iter().map(|&e| f64::from(e).powi(2) / 2.0).sum::<f64>();
        assert!((*loss - exact).abs() <= gamma(width + 2, UNIT_F32) * exact + 1e-15, "{what}: {loss} for {exact}");
        *loss = exact;
    });
    audit(&what, &problem, &solved);
    if case.apart {
        for (at, delta) in outcome.delta.iter().enumerate() {
            assert_eq!(delta.to_bits(), (weight[at] - outcome.weight[at]).to_bits(), "{what}: Δ at {at}");
        }
    }
}

/// Groups that have kernels of their own, that leave slots empty, and of one column.
const GROUPS: [(usize, usize); 12] =
    [(2, 4), (4, 8), (8, 16), (16, 32), (1, 4), (1, 2), (2, 3), (3, 7), (5, 12), (20, 31), (1, 1), (0, 5)];

#[test]
fn what_is_given_goes_at_all_sizes() {
    on_device(|device| {
        for rows in SIZES.into_iter().filter(|&rows| rows <= 200) {
            let width = if rows == 33 { 128 } else { 40 };
            check(device, &Case { gap: 4, ..Case::new(rows, width, None) });
        }
        for width in SIZES.into_iter().filter(|&width| width <= PANEL) {
            for (gap, first, apart) in [(0, 0, true), (width.next_multiple_of(4) - width + 4, 32, false), (3, 45, true)]
            {
                check(device, &Case { gap, first, apart, ..Case::new(5, width, None) });
            }
        }
    });
    on_fast_device(|device| check(device, &Case { apart: true, ..Case::new(1000, 128, None) }));
}

#[test]
fn groups_are_chosen_when_the_sweep_reaches_them() {
    on_device(|device| {
        for (keep, group) in GROUPS {
            let stays = Stays::Groups { keep, group };
            let widest = stays.widest_panel().expect("a width");
            for (width, gap, first) in [(widest, 0, 0), (widest, 5, 7), (widest.min(70), 2, 32), (widest.min(3), 1, 64)]
            {
                check(device, &Case { gap, first, apart: gap > 0, ..Case::new(3, width, Some((keep, group))) });
            }
        }
        check(device, &Case::new(130, 64, Some((2, 4))));
    });
}

#[test]
fn what_stays_is_rounded_to_the_grid() {
    on_device(|device| {
        for (number, groups) in
            [None, Some((2, 4)), Some((4, 8)), Some((8, 16)), Some((16, 32)), Some((3, 5))].into_iter().enumerate()
        {
            for bits in [2, 4, 8] {
                check(device, &Case { bits: Some(bits), gap: number % 3 * 4, ..Case::new(9, 64, groups) });
            }
        }
        check(device, &Case { bits: Some(3), ..Case::new(64, 128, None) });
    });
}

/// With more rows fewer warps share one: every such share, in its own number of rows.
#[test]
fn rows_are_shared_by_one_two_and_four_warps() {
    on_device(|device| {
        for rows in [6913, 13825] {
            check(device, &Case::new(rows, 20, Some((2, 4))));
        }
    });
    on_fast_device(|device| {
        for rows in [6913, 13825] {
            check(device, &Case { apart: true, ..Case::new(rows, 36, None) });
        }
    });
}

#[test]
fn equal_scores_go_from_the_left_and_zeros_stay_zeros() {
    on_device(|device| {
        for group in [4, 8, 16, 32, 5] {
            let case = Case { apart: true, ..Case::new(2, group * 2, Some((group / 2, group))) };
            let width = case.width;
            // V = 1: no column pays for another, and scores are squares of weights.
            let factor: Vec<f32> = (0..width * width).map(|at| if at % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let inverse = spread(&factor, width, PANEL, f32::NAN);
            let mut weight = vec![-0.5f32; 2 * width];
            weight[width..].fill(0.0);
            let outcome = run(device, &case, &weight, &factor, &inverse, &[]);
            for (at, &stays) in outcome.keep.iter().enumerate() {
                assert_eq!(stays, at % width % group >= group - group / 2, "{group}: {at}");
                assert_eq!(outcome.weight[at].to_bits(), if stays { weight[at].to_bits() } else { 0 });
            }
        }
    });
}

#[test]
fn what_is_not_finite_shows_in_the_loss_of_its_row_alone() {
    on_device(|device| {
        for (bad, groups, bits) in [
            (f32::NAN, None, None),
            (f32::INFINITY, None, Some(4)),
            (f32::NAN, Some((2, 4)), Some(4)),
            (f32::INFINITY, Some((2, 4)), None),
        ] {
            let case = Case { ..Case::new(40, 32, groups) };
            let Layer { mut weight, inputs } = layer(3, case.rows, case.width, 60, 0);
            let (factor, inverse) = factors(&inputs, case.width);
            let given: Vec<bool> = (0..weight.len()).map(|at| at % 3 != 0).collect();
            let clean = run(device, &case, &weight, &factor, &inverse, &given);
            weight[7 * case.width + 9] = bad;
            let outcome = run(device, &Case { bits, ..case }, &weight, &factor, &inverse, &given);
            for (row, loss) in outcome.loss.iter().enumerate() {
                assert_eq!(loss.is_finite(), row != 7, "{bad}, {groups:?}: row {row}: {loss}");
            }
            if bits.is_none() {
                assert_eq!(outcome.weight[..7 * case.width], clean.weight[..7 * case.width]);
            }
        }
    });
}

#[test]
fn the_same_panel_gives_the_same_bits() {
    let seen = Mutex::new(Vec::new());
    on_device(|device| {
        let Layer { weight, inputs } = layer(5, 100, 96, 200, 0);
        let (factor, inverse) = factors(&inputs, 96);
        for gap in [0, 1] {
            let case = Case { gap, bits: Some(4), ..Case::new(100, 96, Some((2, 4))) };
            let outcome = run(device, &case, &weight, &factor, &inverse, &[]);
            let bits: Vec<u32> = outcome.weight.iter().chain(&outcome.errors).map(|value| value.to_bits()).collect();
            seen.lock().expect("bits").push((bits, outcome.keep, outcome.loss));
        }
    });
    let seen = seen.into_inner().expect("bits");
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

/// No bank conflict, no more sectors than hold what is moved, W̃ read once and each output written once.
#[test]
fn shared_memory_is_free_of_conflicts_and_global_memory_moves_whole_lines() {
    let rows = 64;
    for groups in [None, Some((2, 4)), Some((4, 8)), Some((8, 16)), Some((16, 32))] {
        let case = Case { apart: true, ..Case::new(rows, PANEL, groups) };
        for profile in profiles(|device| check(device, &case)) {
            let what = format!("{}: {case:?}", profile.geometry.kernel);
            let (loads, stores) = (profile.global_loads, profile.global_stores);
            assert_eq!((profile.shared_loads.conflicts(), profile.shared_stores.conflicts()), (0, 0), "{what}");
            assert_eq!(profile.local_bytes, [0, 0], "{what}");
            let panel = (rows * PANEL * size_of::<f32>()) as u64;
            // Q, Δ and E; then losses and bits, 24 bytes a row that fill no sector.
            assert!(
                stores.sectors <= 3 * panel / 32 + 6 * rows as u64,
                "{what}: {} sectors are stored",
                stores.sectors
            );
            // What is copied, and W for Δ; V's diagonal, of which every entry is a sector, losses and bits.
            let blocks = u64::from(profile.geometry.grid[0]);
            let few = (profile.asynchronous_bytes + panel) / 32 + blocks * PANEL as u64 + 24 * rows as u64;
            assert!(loads.sectors <= few, "{what}: {} sectors are loaded, {few} suffice", loads.sectors);
            // W̃, and U_b from each piece's first column on: at most three quarters of it.
            let most = panel + blocks * (PANEL * PANEL * size_of::<f32>() * 3 / 4) as u64;
            assert!(profile.asynchronous_bytes <= most, "{what}: {} bytes are copied", profile.asynchronous_bytes);
        }
    }
}

#[test]
fn wrong_shapes_are_named() {
    on_device(|device| {
        let buffer = Guarded::new(device, &vec![0.0f32; 1 << 16], 0.0);
        let matrix =
            |rows, columns, stride| MatrixRef::with_stride(buffer.view(), rows, columns, stride).expect("a matrix");
        let attempt = |rows: usize,
                       width: usize,
                       inverse: &MatrixRef<'_, f32>,
                       pivots: &MatrixRef<'_, f32>,
                       stays,
                       (words, first): (usize, usize)| {
            let mut weights = device.zeros::<f32>(1 << 14).expect("memory");
            let mut keep = device.zeros::<u32>(1 << 10).expect("memory");
            let mut losses = device.zeros::<f64>(rows).expect("memory");
            let losses = losses.slice_mut(..);
            let swept = Swept {
                keep: MatrixMut::new(keep.slice_mut(..), rows, words).expect("a matrix"),
                first,
                losses,
                delta: None,
                errors: None,
            };
            let mut weights = MatrixMut::new(weights.slice_mut(..), rows, width).expect("a matrix");
            sweep(device, None, &mut weights, &Block { inverse, pivots, stays, grid: None }, swept)
        };
        let (inverse, pivots) = (matrix(40, 40, PANEL), matrix(40, 1, 41));
        assert!(attempt(8, 40, &inverse, &pivots, Stays::Given, (2, 0)).is_ok());
        for (what, result) in [
            ("the inverse", attempt(8, 40, &matrix(40, 40, 40), &pivots, Stays::Given, (2, 0))),
            ("the pivots", attempt(8, 40, &inverse, &matrix(39, 1, 41), Stays::Given, (2, 0))),
            ("keep", attempt(8, 40, &inverse, &pivots, Stays::Given, (1, 0))),
            // With 40 columns the bits wrap to eight.
            ("keep", attempt(8, 40, &inverse, &pivots, Stays::Given, (2, usize::MAX - 31))),
            ("weights", attempt(8, 129, &matrix(129, 129, PANEL + 1), &pivots, Stays::Given, (5, 0))),
            ("groups", attempt(8, 40, &inverse, &pivots, Stays::Groups { keep: 2, group: 33 }, (2, 0))),
        ] {
            assert!(matches!(&result, Err(Error::Shape { what: found, .. }) if *found == what), "{what}: {result:?}");
        }
    });
}
