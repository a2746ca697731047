//! Magnitude pruning and Wanda on the device against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Error, MatrixMut, MatrixRef, Pattern, magnitude, norms, wanda};
use reference::{Matrix, Selection};
use support::{Guarded, on_device, spread};
use testkit::generate::layer;
use testkit::tolerance::UNIT_F32;

const PATTERNS: [Pattern; 6] = [
    Pattern::Unstructured { sparsity: 0.0 },
    Pattern::Unstructured { sparsity: 0.5 },
    Pattern::Unstructured { sparsity: 1.0 },
    Pattern::Groups { keep: 2, group: 4 },
    Pattern::Groups { keep: 16, group: 32 },
    Pattern::Groups { keep: 3, group: 7 },
];

fn selection(pattern: Pattern) -> Selection {
    match pattern {
        Pattern::Unstructured { sparsity } => Selection::Unstructured { sparsity },
        Pattern::Groups { keep, group } => Selection::NOfM { keep, group },
    }
}

/// Choices are exact, so the scores that the reference is given are those of f32.
#[test]
fn the_baselines_prune_as_the_reference_does() {
    on_device(|device| {
        for (rows, columns, gap) in [(9, 130, 0), (33, 40, 3), (1, 1, 0), (3, 300, 4)] {
            let layer = layer(columns as u64, rows, columns, columns + 5, 1);
            let exact = reference::hessian(&Matrix::from_f32(columns + 5, columns, &layer.inputs));
            let hessian: Vec<f32> = exact.values().iter().map(|&h| h as f32).collect();
            let buffer = Guarded::new(device, &hessian, f32::NAN);
            let on_device = norms(device, &buffer.matrix(columns, columns)).expect("norms");
            let lengths = device.download(&on_device).expect("a copy");
            for (j, length) in lengths.iter().enumerate() {
                assert_eq!(length.to_bits(), hessian[j * (columns + 1)].sqrt().to_bits(), "norm {j}");
            }
            let column = MatrixRef::new(on_device.as_view(), columns, 1).expect("a column");
            for pattern in PATTERNS {
                for by_norms in [false, true] {
                    let mut weights =
                        Guarded::new(device, &spread(&layer.weight, columns, columns + gap, f32::NAN), f32::NAN);
                    let keep = {
                        let mut weights =
                            MatrixMut::with_stride(weights.view_mut(), rows, columns, columns + gap).expect("a matrix");
                        match by_norms {
                            false => magnitude(device, &mut weights, pattern, None).expect("prunes"),
                            true => wanda(device, &mut weights, pattern, &column).expect("prunes"),
                        }
                    };
                    let factor = |j: usize| if by_norms { lengths[j] } else { 1.0 };
                    let scores: Vec<f32> =
                        layer.weight.iter().enumerate().map(|(at, w)| (w * factor(at % columns)).abs()).collect();
                    let scores = Matrix::from_f32(rows, columns, &scores);
                    let want = match by_norms {
                        false => reference::magnitude(&scores, &selection(pattern)),
                        true => reference::wanda(&scores, &vec![1.0; columns], &selection(pattern)),
                    };
                    let (keep, words) = (device.download(&keep).expect("a copy"), columns.div_ceil(32));
                    let pruned = weights.download(device);
                    for (at, &want) in want.iter().enumerate() {
                        let (row, j) = (at / columns, at % columns);
                        let what = format!("{pattern:?}, by norms: {by_norms}: ({row}, {j}) of [{rows}, {columns}]");
                        assert_eq!(keep[row * words + j / 32] >> (j % 32) & 1 != 0, want, "{what}");
                        let expected = if want { layer.weight[at].to_bits() } else { 0 };
                        assert_eq!(pruned[row * (columns + gap) + j].to_bits(), expected, "{what}");
                    }
                }
            }
        }
    });
}

/// The length of a column of inputs in f64 is what the norm is of, to the rounding of H and of the root.
#[test]
fn norms_are_lengths_of_inputs() {
    on_device(|device| {
        let (tokens, columns) = (60, 50);
        let inputs = layer(4, 1, columns, tokens, 3).inputs;
        let exact = reference::hessian(&Matrix::from_f32(tokens, columns, &inputs));
        let hessian: Vec<f32> = exact.values().iter().map(|&h| h as f32).collect();
        let buffer = Guarded::new(device, &hessian, f32::NAN);
        let got = device.download(&norms(device, &buffer.matrix(columns, columns)).expect("norms")).expect("a copy");
        let want: Vec<f64> = (0..columns).map(|j| exact[(j, j)].sqrt()).collect();
        testkit::assert_close("norms", &got, &want, |j| 2.0 * UNIT_F32 * want[j]);
    });
}

#[test]
fn wrong_numbers_are_named() {
    on_device(|device| {
        let mut buffer = Guarded::new(device, &[1.0f32; 64], f32::NAN);
        let mut weights = buffer.matrix_mut(8, 8);
        let error = magnitude(device, &mut weights, Pattern::Unstructured { sparsity: 1.5 }, None).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "sparsity", .. }), "{error}");
        let error = magnitude(device, &mut weights, Pattern::Groups { keep: 3, group: 0 }, None).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "groups", .. }), "{error}");
        let lengths = Guarded::new(device, &[1.0f32; 7], f32::NAN);
        let error = wanda(device, &mut weights, PATTERNS[0], &lengths.matrix(7, 1)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "the scores' factors", .. }), "{error}");
    });
}
