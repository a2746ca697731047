//! `kernels/factor_cholesky.cu` and `kernels/factor_invert.cu`, judged by what a factor and an inverse are.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{
    Device, Error, Failure, MatrixMut, RAISES, factor, factor_damped, factor_diagonals, failures, invert, prepare,
    restore, save,
};
use reference::Matrix;
use support::{Guarded, SIZES, on_device, on_fast_device};
use testkit::generate::{Random, positive_definite};
use testkit::tolerance;

/// Columns of a block.
const WIDTH: usize = 128;

/// Symmetric matrices of one size, on the host.
type Batch = Vec<Vec<f32>>;

fn rounded(matrix: &[f64]) -> Vec<f32> {
    matrix.iter().map(|&value| value as f32).collect()
}

/// A positive definite matrix whose columns have scales over two orders of magnitude, in no order, as those of a
/// transformer's inputs have: its condition is that of `positive_definite`, 1e4, times 1e4.
fn scaled(seed: u64, n: usize) -> Vec<f32> {
    let mut random = Random::new(seed + 1000);
    let scales: Vec<f64> = (0..n).map(|_| 10f64.powf(-2.0 * random.uniform())).collect();
    let matrix = positive_definite(seed, n, 1e4);
    (0..n * n).map(|at| (matrix[at] * scales[at / n] * scales[at % n]) as f32).collect()
}

/// The batch in device memory, with NaNs below the diagonals and between the rows, where nothing may be read.
struct Matrices {
    buffer: Guarded<f32>,
    n: usize,
    stride: usize,
    batch: usize,
}

impl Matrices {
    fn new(device: &Device, matrices: &[Vec<f32>], n: usize, stride: usize) -> Self {
        let mut values = vec![f32::NAN; matrices.len() * n * stride];
        for (matrix, target) in matrices.iter().zip(values.chunks_mut((n * stride).max(1))) {
            for i in 0..n {
                target[i * stride + i..i * stride + n].copy_from_slice(&matrix[i * n + i..(i + 1) * n]);
            }
        }
        Self { buffer: Guarded::new(device, &values, f32::NAN), n, stride, batch: matrices.len() }
    }

    fn matrix(&mut self) -> MatrixMut<'_, f32> {
        let (rows, n, stride) = (self.batch * self.n, self.n, self.stride);
        MatrixMut::with_stride(self.buffer.view_mut(), rows, n, stride).expect("a matrix")
    }

    /// The upper triangles, with zeros below, as f64. Beside them there must be what was there before.
    fn download(&self, device: &Device) -> Vec<Vec<f64>> {
        let (n, stride) = (self.n, self.stride);
        let values = self.buffer.download(device);
        let matrices = values.chunks((n * stride).max(1)).map(|matrix| {
            let mut upper = vec![0.0; n * n];
            for (i, row) in matrix.chunks(stride).enumerate() {
                assert!(row[..i].iter().chain(&row[n..]).all(|value| value.is_nan()), "row {i}: beside the triangle");
                upper[i * n + i..(i + 1) * n].iter_mut().zip(&row[i..n]).for_each(|(to, &from)| *to = from.into());
            }
            upper
        });
        matrices.collect()
    }
}

/// A·B of upper triangular matrices.
fn times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut product = vec![0.0; n * n];
    for i in 0..n {
        for k in i..n {
            let (factor, row) = (a[i * n + k], &b[k * n + k..(k + 1) * n]);
            product[i * n + k..(i + 1) * n].iter_mut().zip(row).for_each(|(to, &from)| *to += factor * from);
        }
    }
    product
}

fn absolute(a: &[f64]) -> Vec<f64> {
    a.iter().map(|value| value.abs()).collect()
}

/// |V·Vᵀ − H| within its tolerance, above the diagonal.
fn check_factor(what: &str, v: &[f64], hessian: &[f32], n: usize) {
    let share = tolerance::split_factor_residual(n);
    for i in 0..n {
        let product: Vec<f64> = (i..n)
            .map(|j| v[i * n + j..(i + 1) * n].iter().zip(&v[j * n + j..(j + 1) * n]).map(|(a, b)| a * b).sum())
            .collect();
        let diagonal = |j: usize| f64::from(hessian[j * n + j]);
        testkit::assert_close(&format!("{what}: V·Vᵀ, row {i}"), &product, &hessian[i * n + i..(i + 1) * n], |j| {
            share * (diagonal(i) * diagonal(i + j)).sqrt()
        });
        assert!(v[i * n + i] > 0.0, "{what}: V[{i}, {i}]");
    }
}

/// |U·V − I| within its tolerance.
fn check_inverse(what: &str, u: &[f64], v: &[f64], n: usize) {
    let bound = times(&absolute(u), &absolute(v), n);
    let bound = times(&bound, &bound, n);
    let share = tolerance::split_inverse_residual(n);
    let identity: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    testkit::assert_close(&format!("{what}: U·V"), &times(u, v, n), &identity, |at| share * bound[at]);
}

/// Blocks [128, 128] on the diagonal of V and their inverses: zeros below the diagonal and beyond n.
fn check_blocks(what: &str, inverses: &[f32], v: &[f64], n: usize) {
    for (block, inverse) in inverses.chunks(WIDTH * WIDTH).enumerate() {
        let size = (n - block * WIDTH).min(WIDTH);
        let (mut own, mut inverted) = (Vec::new(), Vec::new());
        for (i, row) in inverse.chunks(WIDTH).enumerate() {
            let zeros = (0..WIDTH).filter(|&j| j < i || j >= size || i >= size);
            zeros.for_each(|j| assert_eq!(row[j].to_bits(), 0, "{what}: block {block} at ({i}, {j})"));
            if i < size {
                let at = (block * WIDTH + i) * n + block * WIDTH;
                own.extend_from_slice(&v[at..at + size]);
                inverted.extend(row[..size].iter().map(|&value| f64::from(value)));
            }
        }
        check_inverse(&format!("{what}: block {block}"), &inverted, &own, size);
    }
}

/// A batch all the way: V, the inverses of its blocks, U.
fn check(device: &Device, what: &str, hessians: &[Vec<f32>], n: usize, stride: usize) {
    let batch = hessians.len();
    let mut matrices = Matrices::new(device, hessians, n, stride);
    let mut failed = device.zeros::<i32>(batch).expect("memory");
    let factored = factor(device, &mut matrices.matrix(), batch, &mut failed).expect("factors");
    assert_eq!(failures(device, &failed, &factored).expect("a copy"), [], "{what}");
    let factors = matrices.download(device);
    let inverses = device.download(&factored.inverses).expect("a copy");
    let diagonals = factor_diagonals(device, &matrices.matrix(), batch, &failed).expect("inverts");
    let diagonals = device.download(&diagonals).expect("a copy");
    let each = n.div_ceil(WIDTH) * WIDTH * WIDTH;
    for (number, (v, hessian)) in factors.iter().zip(hessians).enumerate() {
        let what = format!("{what}, matrix {number}");
        check_factor(&what, v, hessian, n);
        check_blocks(&what, &inverses[number * each..][..each], v, n);
        check_blocks(&what, &diagonals[number * each..][..each], v, n);
    }
    invert(device, &mut matrices.matrix(), &factored.inverses, batch, &failed).expect("inverts");
    for (number, (u, v)) in matrices.download(device).iter().zip(&factors).enumerate() {
        check_inverse(&format!("{what}, matrix {number}"), u, v, n);
    }
}

fn check_size(device: &Device, n: usize) {
    let alone = [rounded(&positive_definite(n as u64, n, 1e5))];
    check(device, &format!("n = {n}"), &alone, n, n);
    let conditions = [1.0, 1e3, 1e6].map(|condition| rounded(&positive_definite(n as u64 + 1, n, condition)));
    let stride = n.next_multiple_of(8) + 8;
    check(device, &format!("n = {n}, three every {stride}"), &conditions, n, stride);
}

#[test]
fn factors_and_inverses_are_what_they_are_called() {
    on_device(|device| {
        for n in SIZES.into_iter().filter(|&n| n <= 200) {
            check_size(device, n);
        }
    });
}

/// With a last block that is not whole; rows at multiples of 16 bytes, and not. Many blocks are split in halves: that
/// path is taken by a batch of which two matrices fail.
#[test]
fn large_matrices_have_them_too() {
    on_fast_device(|device| {
        let n = 1300;
        let hessian: Vec<f32> = (0..n * n).map(|at: usize| 1.0 / (1 + (at / n).abs_diff(at % n)) as f32).collect();
        let mut bad = hessian.clone();
        bad[1290 * n + 1290] = -1.0;
        let mut matrices = Matrices::new(device, &[bad.clone(), hessian.clone(), bad], n, n);
        let mut failed = device.zeros::<i32>(3).expect("memory");
        let factored = factor(device, &mut matrices.matrix(), 3, &mut failed).expect("factors");
        let found = failures(device, &failed, &factored).expect("a copy");
        let found: Vec<_> = found.iter().map(|failure| (failure.matrix, failure.column)).collect();
        assert_eq!(found, [(0, 1290), (2, 1290)]);
        let v = &matrices.download(device)[1];
        let inverses = device.download(&factored.inverses).expect("a copy");
        let each = inverses.len() / 3;
        check_factor("n = 1300", v, &hessian, n);
        check_blocks("n = 1300", &inverses[each..2 * each], v, n);
        check(device, "n = 1000", &[rounded(&positive_definite(1, 1000, 1e4))], 1000, 1000);
    });
    on_device(|device| check(device, "n = 400 every 401", &[scaled(3, 400)], 400, 401));
}

/// So many matrices that even one block each is more than are factored one by one.
#[test]
fn large_batches_have_them_too() {
    on_fast_device(|device| {
        let many: Batch = (0..300).map(|seed| rounded(&positive_definite(seed, 3, 1e3))).collect();
        check(device, "300 of n = 3", &many, 3, 3);
    });
}

/// Condition 1e8: from the scales of columns, to which a factorization is indifferent; and from the spectrum alone,
/// where f32 holds no more of the smallest eigenvalue than its order of magnitude, so that a pivot may be a rounding
/// error below zero.
#[test]
fn the_worst_condition_is_factored_or_refused() {
    on_device(|device| {
        for n in [33, 129, 200] {
            check(device, &format!("n = {n}, scaled"), &[scaled(n as u64, n)], n, n);
            let hessian = rounded(&positive_definite(n as u64, n, 1e8));
            let mut matrices = Matrices::new(device, std::slice::from_ref(&hessian), n, n);
            let mut failed = device.zeros::<i32>(1).expect("memory");
            let factored = factor(device, &mut matrices.matrix(), 1, &mut failed).expect("factors");
            match failures(device, &failed, &factored).expect("a copy")[..] {
                [] => check_factor(&format!("n = {n}"), &matrices.download(device)[0], &hessian, n),
                [Failure { matrix, column, pivot }] => {
                    let allowed = tolerance::split_factor_residual(n) * f64::from(hessian[column * n + column]);
                    assert!(matrix == 0 && f64::from(-pivot) <= allowed, "n = {n}: {pivot:e} of column {column}");
                }
                _ => panic!("one matrix"),
            }
        }
    });
}

/// What stops one matrix of a batch, in which column, and what is reported; the others do not notice.
#[test]
fn a_failing_pivot_is_named_and_leaves_the_others_alone() {
    on_device(|device| {
        let n = 130;
        let good = scaled(7, n);
        let mut alone = Matrices::new(device, std::slice::from_ref(&good), n, n + 2);
        let mut failed = device.zeros::<i32>(1).expect("memory");
        let factored = factor(device, &mut alone.matrix(), 1, &mut failed).expect("factors");
        invert(device, &mut alone.matrix(), &factored.inverses, 1, &failed).expect("inverts");
        let alone = alone.download(device);
        for (column, value, row) in [
            (129, -2.0, 129),
            (100, -3.0, 100),
            (40, 0.0, 40),
            (0, f32::NAN, 0),
            (77, f32::INFINITY, 77),
            (5, f32::INFINITY, 3),
            (128, f32::NAN, 60),
        ] {
            // Everything else is an identity, so that the pivot is the entry; or what an entry off the diagonal makes
            // of it.
            let mut bad: Vec<f32> = (0..n * n).map(|at| f32::from(u8::from(at / n == at % n))).collect();
            bad[row * n + column] = value;
            let hessians: Batch = vec![good.clone(), bad, good.clone()];
            let mut matrices = Matrices::new(device, &hessians, n, n + 2);
            let mut failed = device.zeros::<i32>(3).expect("memory");
            let factored = factor(device, &mut matrices.matrix(), 3, &mut failed).expect("factors");
            let found = failures(device, &failed, &factored).expect("a copy");
            assert_eq!(found.len(), 1, "{value} in row {row}, column {column}: {found:?}");
            assert_eq!((found[0].matrix, found[0].column), (1, row));
            if row == column {
                assert!(found[0].pivot == value || found[0].pivot.is_nan() && value.is_nan(), "{}", found[0]);
            } else {
                assert!(!found[0].pivot.is_finite(), "{}", found[0]);
            }
            invert(device, &mut matrices.matrix(), &factored.inverses, 3, &failed).expect("inverts");
            let all = matrices.download(device);
            assert!(all[0] == alone[0] && all[2] == alone[0], "the others differ from what they are alone");
        }
        let failure = Failure { matrix: 1, column: 5, pivot: -0.5 };
        assert_eq!(
            failure.to_string(),
            "matrix 1 of the batch is not positive definite: the pivot of column 5 is -5e-1"
        );
    });
}

/// The first failing column, from the right, in each of four blocks.
#[test]
fn a_failing_pivot_is_named_in_every_block() {
    on_device(|device| {
        let n = 400;
        let bad = |column: usize| -> Vec<f32> {
            let mut matrix = vec![0.0; n * n];
            (0..n).for_each(|j| matrix[j * n + j] = if j == column { -1.0 } else { 4.0 });
            matrix[0] = -1.0;
            matrix
        };
        let columns = [17, 130, 300, 399];
        let hessians: Batch = columns.map(bad).into();
        let mut matrices = Matrices::new(device, &hessians, n, n);
        let mut failed = device.zeros::<i32>(columns.len()).expect("memory");
        let factored = factor(device, &mut matrices.matrix(), columns.len(), &mut failed).expect("factors");
        let found = failures(device, &failed, &factored).expect("a copy");
        assert_eq!(found.iter().map(|failure| failure.column).collect::<Vec<_>>(), columns);
        assert!(found.iter().all(|failure| failure.pivot == -1.0));
    });
}

/// H survives below the diagonal, and comes back to failed matrices only.
#[test]
fn a_saved_hessian_is_restored() {
    on_device(|device| {
        for n in [1, 2, 31, 32, 33, 100, 129] {
            let stride = n + 3;
            let mut random = Random::new(n as u64);
            let values: Vec<f32> = (0..3 * n * stride).map(|_| random.normal() as f32).collect();
            let mut buffer = Guarded::new(device, &values, f32::NAN);
            let mut view = MatrixMut::with_stride(buffer.view_mut(), 3 * n, n, stride).expect("a matrix");
            let diagonals = save(device, &mut view, 3).expect("saves");
            let saved = buffer.download(device);
            let at = |matrix: usize, i: usize, j: usize| matrix * n * stride + i * stride + j;
            for matrix in 0..3 {
                for (i, j) in (0..n).flat_map(|i| (0..stride).map(move |j| (i, j))) {
                    let source = if j < i { at(matrix, j, i) } else { at(matrix, i, j) };
                    assert_eq!(saved[at(matrix, i, j)].to_bits(), values[source].to_bits(), "n = {n}: ({i}, {j})");
                }
            }
            let mut spoiled = saved.clone();
            for (matrix, i) in (0..3).flat_map(|matrix| (0..n).map(move |i| (matrix, i))) {
                spoiled[at(matrix, i, i)..at(matrix, i, n)].fill(-1.0);
            }
            let mut buffer = Guarded::new(device, &spoiled, f32::NAN);
            let mut view = MatrixMut::with_stride(buffer.view_mut(), 3 * n, n, stride).expect("a matrix");
            let added = device.upload(&[0.5f32, 0.25, 0.0]).expect("memory");
            let failed = device.upload(&[0, 7, -1]).expect("memory");
            restore(device, &mut view, 3, &diagonals, &added, &failed).expect("restores");
            let restored = buffer.download(device);
            for (matrix, i) in (0..3).flat_map(|matrix| (0..n).map(move |i| (matrix, i))) {
                for j in i..n {
                    let gain = if i == j { 0.25 } else { 0.0 };
                    let want = if matrix == 1 { values[at(1, i, j)] + gain } else { -1.0 };
                    assert_eq!(restored[at(matrix, i, j)].to_bits(), want.to_bits(), "n = {n}: ({matrix}, {i}, {j})");
                }
            }
        }
    });
}

/// The damping of a matrix is raised as often as it takes, at most three times, and only its own.
#[test]
fn damping_is_raised_until_there_is_a_factor() {
    on_device(|device| {
        let n = 132;
        // A diagonal of ones and one value below: damping of 0.01 adds about 0.01, then 0.1, 1, 10.
        let matrix = |value: f32| -> Vec<f32> {
            (0..n * n)
                .map(|at| {
                    if at / n != at % n {
                        0.0
                    } else if at / n == 60 {
                        value
                    } else {
                        1.0
                    }
                })
                .collect()
        };
        let values = [1.0, -0.05, -0.5, -5.0, -50.0, f32::NAN];
        let hessians: Batch = values.map(matrix).into();
        let mut buffer = Vec::new();
        hessians.iter().for_each(|matrix| buffer.extend_from_slice(matrix));
        let mut buffer = Guarded::new(device, &buffer, f32::NAN);
        let batch = values.len();
        let mut view = buffer.matrix_mut(batch * n, n);
        let mut prepared = prepare(device, &mut view, batch, 0.01).expect("prepares");
        let (factored, raises) = factor_damped(device, &mut view, batch, &mut prepared).expect("factors");
        assert_eq!(raises, [0, 1, 2, 3, RAISES, 0]);
        let found = failures(device, &prepared.failed, &factored).expect("a copy");
        assert_eq!(
            found.iter().map(|failure| (failure.matrix, failure.column)).collect::<Vec<_>>(),
            [(4, 60), (5, 60)]
        );
        let summaries = device.download(&prepared.summaries).expect("a copy");
        let got = buffer.download(device);
        for number in 0..4 {
            let damp = f64::from(summaries[number].damp) * 10f64.powi(raises[number] as i32);
            for i in 0..n {
                let value = f64::from(got[(number * n + i) * n + i]);
                let want = f64::from(hessians[number][i * n + i]) + damp;
                // Two roundings of numbers of about the damping's size, and the factorization.
                let allowed = (8.0 * tolerance::UNIT_F32) * (1.0 + damp) + tolerance::split_factor_residual(n) * want;
                assert!((value * value - want).abs() <= allowed, "matrix {number}, column {i}: {value} for {want}");
            }
        }
    });
}

/// U of the golden problems. H that is off by ε·√(h_ii·h_jj) moves U by −up(U·δH·Uᵀ)·U (the differential of a Cholesky
/// factor), of which no entry exceeds ε · g_i · Σ_k g_k·|u_kj|, with g = |U|·√diag(H).
#[test]
fn golden_inverse_factors_are_met() {
    let cases = testkit::golden::prune_cases();
    let cases: Vec<_> = cases.iter().filter_map(|case| Some((case, case.inverse_factor.as_ref()?))).collect();
    assert!(!cases.is_empty());
    on_device(|device| {
        for (case, want) in &cases {
            let n = case.columns;
            let hessian = reference::hessian(&Matrix::from_f32(case.tokens, n, &case.inputs));
            let mut matrices = Matrices::new(device, &[rounded(hessian.values())], n, n);
            let damping = case.damping as f32;
            let mut prepared = prepare(device, &mut matrices.matrix(), 1, damping).expect("prepares");
            let factored = factor(device, &mut matrices.matrix(), 1, &mut prepared.failed).expect("factors");
            invert(device, &mut matrices.matrix(), &factored.inverses, 1, &prepared.failed).expect("inverts");
            let got = matrices.download(device);

            let damped = reference::damped(&hessian, case.damping).hessian;
            let g: Vec<f64> =
                (0..n).map(|i| (i..n).map(|k| want[i * n + k].abs() * damped[(k, k)].sqrt()).sum()).collect();
            // Of H: its rounding, the mean, the damping. Of the inverse: as much as of the factor again.
            let share =
                tolerance::split_factor_residual(n) + tolerance::split_inverse_residual(n) + 4.0 * tolerance::UNIT_F32;
            testkit::assert_close(&case.name, &got[0], want, |at| {
                let (i, j) = (at / n, at % n);
                share * g[i] * (i..=j).map(|k| g[k] * want[k * n + j].abs()).sum::<f64>()
            });
        }
    });
}

/// The same matrix gives the same bits, in every order of thread blocks, alone and in a batch.
#[test]
fn the_same_matrices_give_the_same_bits() {
    let bits = std::sync::Mutex::new(Vec::new());
    on_device(|device| {
        let n = 300;
        let hessian = scaled(11, n);
        let hessians: Batch = vec![hessian.clone(), hessian];
        let mut matrices = Matrices::new(device, &hessians, n, n);
        let mut failed = device.zeros::<i32>(2).expect("memory");
        let factored = factor(device, &mut matrices.matrix(), 2, &mut failed).expect("factors");
        let mut all = matrices.download(device);
        invert(device, &mut matrices.matrix(), &factored.inverses, 2, &failed).expect("inverts");
        let inverted = matrices.download(device);
        let mut bits = bits.lock().expect("bits");
        for matrix in 0..2 {
            let both = all[matrix].drain(..).chain(inverted[matrix].iter().copied());
            bits.push(both.map(f64::to_bits).collect::<Vec<_>>());
        }
    });
    let bits = bits.into_inner().expect("bits");
    assert!(bits.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn wrong_shapes_are_named() {
    on_device(|device| {
        let mut buffer = Guarded::<f32>::new(device, &[1.0; 64], 0.0);
        let mut failed = device.zeros::<i32>(1).expect("memory");
        let error = factor(device, &mut buffer.matrix_mut(8, 8), 2, &mut failed).expect_err("not two");
        assert_eq!(error.to_string(), "hessians: found [8, 8], expected [2 · 8, 8]");
        let error = factor(device, &mut buffer.matrix_mut(16, 4), 4, &mut failed).expect_err("four");
        assert_eq!(error.to_string(), "failed: found 1, expected at least 4");
        let inverses = device.zeros::<f32>(16).expect("memory");
        let error = invert(device, &mut buffer.matrix_mut(8, 8), &inverses, 1, &failed).expect_err("too short");
        assert!(matches!(error, Error::Shape { what: "inverses", .. }), "{error}");
        let mut empty = Guarded::<f32>::new(device, &[], 0.0);
        for (rows, columns, batch) in [(0, 8, 0), (0, 0, 1)] {
            let mut view = empty.matrix_mut(rows, columns);
            let factored = factor(device, &mut view, batch, &mut failed).expect("nothing to do");
            invert(device, &mut view, &factored.inverses, batch, &failed).expect("nothing to do");
            save(device, &mut view, batch).expect("nothing to do");
        }
    });
}
