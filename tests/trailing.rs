//! `kernels/prune_trailing.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Device, Error, MatrixMut, MatrixRef, bring_errors, clear_columns, invert_panels, push_errors};
use reference::Matrix;
use std::sync::Mutex;
use support::{Guarded, SIZES, on_device, on_fast_device, spread};
use testkit::generate::Random;
use testkit::tolerance::{UNIT_F32, UNIT_F64, gamma, split_gemm_tolerance};

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.normal() as f32).collect()
}

/// An upper triangular matrix [n, n] with `below` under its diagonal, and a large one.
fn triangle(seed: u64, n: usize, below: f32) -> Vec<f32> {
    let mut values = numbers(seed, n * n);
    for (at, value) in values.iter_mut().enumerate() {
        match (at / n).cmp(&(at % n)) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => *value = 2.0 + value.abs() + (n as f32).sqrt(),
            std::cmp::Ordering::Greater => *value = below,
        }
    }
    values
}

fn absolute(matrix: &Matrix) -> Matrix {
    Matrix::new(matrix.rows(), matrix.columns(), matrix.values().iter().map(|value| value.abs()).collect())
}

/// Rows without what lies beside them.
fn packed(values: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    values.chunks(stride).flat_map(|row| row[..columns].to_vec()).collect()
}

/// `before` columns are done, `width` are next.
fn check_left(device: &Device, rows: usize, before: usize, width: usize, gap: usize) {
    let n = before + width;
    let (weight, delta) = (numbers(1, rows * n), numbers(2, rows * before));
    let factor = triangle(3, n, f32::NAN);
    let inverse = triangle(4, width, 0.0);
    let stride = n + gap;
    let on_device =
        |values: &[f32], columns, stride| Guarded::new(device, &spread(values, columns, stride, f32::NAN), f32::NAN);
    let weights = on_device(&weight, n, stride);
    let deltas = on_device(&delta, before, before + gap);
    let factors = on_device(&factor, n, stride);
    let inverses = on_device(&inverse, width, 128);
    let mut owed = Guarded::poisoned(device, rows * (width + gap), f32::NAN);
    let mut current = Guarded::poisoned(device, rows * (width + gap), f32::NAN);
    {
        let weights = MatrixRef::with_stride(weights.view(), rows, n, stride).expect("a matrix");
        let deltas = MatrixRef::with_stride(deltas.view(), rows, before, before + gap).expect("a matrix");
        let factors = MatrixRef::with_stride(factors.view(), n, n, stride).expect("a matrix");
        bring_errors(
            device,
            &weights.columns_at(before..n).expect("columns"),
            (&deltas, &factors.part(0..before, before..n).expect("a part")),
            &MatrixRef::with_stride(inverses.view(), width, width, 128).expect("a matrix"),
            &mut MatrixMut::with_stride(owed.view_mut(), rows, width, width + gap).expect("a matrix"),
            &mut MatrixMut::with_stride(current.view_mut(), rows, width, width + gap).expect("a matrix"),
        )
        .expect("brings errors");
    }
    let got = packed(&current.download(device), width, width + gap);
    let part = |values: &[f32], rows: usize| -> Matrix {
        Matrix::from_f32(
            rows,
            width,
            &values.chunks(n).take(rows).flat_map(|row| row[before..].to_vec()).collect::<Vec<_>>(),
        )
    };
    let (above, weight) = (part(&factor, before), part(&weight, rows));
    let (delta, inverse) = (Matrix::from_f32(rows, before, &delta), Matrix::from_f32(width, width, &inverse));
    let change = delta.times(&above).times(&inverse);
    let size = absolute(&delta).times(&absolute(&above)).times(&absolute(&inverse));
    let want: Vec<f64> = weight.values().iter().zip(change.values()).map(|(w, change)| w + change).collect();
    testkit::assert_close(&format!("[{rows}, {before} + {width}], {gap} beside"), &got, &want, |at| {
        // Both products; two more roundings where the splits of the depth and W are added.
        split_gemm_tolerance(before + width + 40, size.values()[at]) + 2.0 * UNIT_F32 * want[at].abs()
    });
}

fn check_right(device: &Device, rows: usize, width: usize, behind: usize, gap: usize) {
    let n = width + behind;
    let (weight, error) = (numbers(1, rows * n), numbers(2, rows * width));
    let inverse = triangle(3, n, f32::NAN);
    let stride = n + gap;
    let mut weights = Guarded::new(device, &spread(&weight, n, stride, f32::NAN), f32::NAN);
    let errors = Guarded::new(device, &spread(&error, width, width + gap, f32::NAN), f32::NAN);
    let inverses = Guarded::new(device, &spread(&inverse, n, stride, f32::NAN), f32::NAN);
    {
        let mut weights = MatrixMut::with_stride(weights.view_mut(), rows, n, stride).expect("a matrix");
        let inverses = MatrixRef::with_stride(inverses.view(), n, n, stride).expect("a matrix");
        push_errors(
            device,
            &MatrixRef::with_stride(errors.view(), rows, width, width + gap).expect("a matrix"),
            &inverses.part(0..width, width..n).expect("a part"),
            &mut weights.columns_at(width..n).expect("columns"),
        )
        .expect("pushes errors");
    }
    let got = packed(&weights.download(device), n, stride);
    let error = Matrix::from_f32(rows, width, &error);
    let right: Vec<f32> = inverse.chunks(n).take(width).flat_map(|row| row[width..].to_vec()).collect();
    let right = Matrix::from_f32(width, behind, &right);
    let (change, size) = (error.times(&right), absolute(&error).times(&absolute(&right)));
    for row in 0..rows {
        let (got, old) = (&got[row * n..][..n], &weight[row * n..][..n]);
        assert_eq!(got[..width], old[..width], "the panel itself");
        let want: Vec<f64> = (0..behind).map(|j| f64::from(old[width + j]) - change[(row, j)]).collect();
        testkit::assert_close("behind the panel", &got[width..], &want, |j| {
            split_gemm_tolerance(width, size[(row, j)]) + 2.0 * UNIT_F32 * want[j].abs()
        });
    }
}

#[test]
fn errors_are_brought_at_all_sizes() {
    on_device(|device| {
        for rows in SIZES.into_iter().filter(|&rows| rows <= 200) {
            check_left(device, rows, 64, 33, rows % 2 * 3);
        }
        for (before, width) in [(1, 1), (31, 128), (33, 127), (128, 128), (200, 32), (129, 31)] {
            check_left(device, 40, before, width, 0);
        }
    });
    on_fast_device(|device| {
        check_left(device, 200, 1024, 128, 0);
        check_left(device, 1000, 128, 128, 4);
    });
}

#[test]
fn errors_are_pushed_at_all_sizes() {
    on_device(|device| {
        for rows in SIZES.into_iter().filter(|&rows| rows <= 200) {
            check_right(device, rows, 32, 33, rows % 2 * 3);
        }
        for (width, behind) in [(1, 1), (128, 200), (127, 129), (128, 128)] {
            check_right(device, 40, width, behind, 0);
        }
    });
    on_fast_device(|device| check_right(device, 200, 128, 1000, 0));
}

#[test]
fn panels_of_any_width_are_inverted() {
    on_device(|device| {
        for (n, width) in [(1, 1), (31, 128), (250, 112), (96, 96), (200, 120), (70, 33)] {
            let factor = triangle(5, n, f32::NAN);
            let buffer = Guarded::new(device, &spread(&factor, n, n + 3, f32::NAN), f32::NAN);
            let matrix = MatrixRef::with_stride(buffer.view(), n, n, n + 3).expect("a matrix");
            let got = device.download(&invert_panels(device, &matrix, width).expect("inverts")).expect("a copy");
            for (number, got) in got.chunks(128 * 128).enumerate() {
                let first = number * width;
                let own = width.min(n - first);
                let block: Vec<f32> = (0..own * own)
                    .map(|at| (at / own, at % own))
                    .map(|(i, j)| if i <= j { factor[(first + i) * n + first + j] } else { 0.0 })
                    .collect();
                let block = Matrix::from_f32(own, own, &block);
                let want = reference::invert_upper(&block);
                let spread_out = absolute(&want).times(&absolute(&block)).times(&absolute(&want));
                for (at, &got) in got.iter().enumerate() {
                    let (i, j) = (at / 128, at % 128);
                    if i >= own || j >= own || i > j {
                        assert_eq!(got.to_bits(), 0, "({i}, {j}) of panel {number}");
                    } else {
                        let off = (f64::from(got) - want[(i, j)]).abs();
                        let allowed = gamma(2 * own + 4, UNIT_F64) * spread_out[(i, j)] + UNIT_F32 * want[(i, j)].abs();
                        assert!(off <= allowed, "({i}, {j}) of panel {number}: {got} for {}", want[(i, j)]);
                    }
                }
            }
        }
    });
}

#[test]
fn dead_columns_are_cleared() {
    on_device(|device| {
        for (rows, columns, stride) in [(1, 1, 1), (33, 40, 43), (3, 129, 129)] {
            let weight = numbers(6, rows * columns);
            let dead: Vec<u8> = (0..columns).map(|j| u8::from(j % 7 == 0)).collect();
            let mut weights = Guarded::new(device, &spread(&weight, columns, stride, f32::NAN), f32::NAN);
            let flags = Guarded::new(device, &dead, 9);
            let mut matrix = MatrixMut::with_stride(weights.view_mut(), rows, columns, stride).expect("a matrix");
            clear_columns(device, &mut matrix, &flags.view()).expect("clears");
            for (at, got) in packed(&weights.download(device), columns, stride).into_iter().enumerate() {
                let want = if dead[at % columns] != 0 { 0.0 } else { weight[at] };
                assert_eq!(got.to_bits(), want.to_bits(), "{at}");
            }
        }
    });
}

#[test]
fn the_same_errors_give_the_same_bits() {
    let seen = Mutex::new(Vec::new());
    on_device(|device| {
        let (rows, before, width) = (30, 600, 40);
        let delta = Guarded::new(device, &numbers(1, rows * before), f32::NAN);
        let right = Guarded::new(device, &numbers(2, before * width), f32::NAN);
        for _ in 0..2 {
            let mut weights = Guarded::new(device, &numbers(3, rows * width), f32::NAN);
            push_errors(
                device,
                &delta.matrix(rows, before),
                &right.matrix(before, width),
                &mut weights.matrix_mut(rows, width),
            )
            .expect("pushes errors");
            seen.lock().expect("bits").push(weights.download(device).iter().map(|w| w.to_bits()).collect::<Vec<_>>());
        }
    });
    let seen = seen.into_inner().expect("bits");
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn wrong_shapes_are_named() {
    on_device(|device| {
        let (a, b) = (Guarded::new(device, &[0.0f32; 64], 0.0), Guarded::new(device, &[0.0f32; 64], 0.0));
        let mut c = Guarded::new(device, &[0.0f32; 64], 0.0);
        let error = push_errors(device, &a.matrix(4, 8), &b.matrix(7, 8), &mut c.matrix_mut(4, 8)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "the inverse right of the panel", .. }), "{error}");
        let error = push_errors(device, &a.matrix(5, 8), &b.matrix(8, 8), &mut c.matrix_mut(4, 8)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "errors", .. }), "{error}");
        assert!(invert_panels(device, &a.matrix(8, 8), 129).is_err());
        assert!(invert_panels(device, &a.matrix(4, 8), 4).is_err());
        assert!(a.matrix(8, 8).part(0..9, 0..8).is_err());
        assert!(a.matrix(8, 8).columns_at(5..9).is_err());
    });
}
