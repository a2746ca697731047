//! `kernels/block_loss.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Device, Losses, MatrixRef};
use support::{Guarded, on_device, spread};
use testkit::generate::Random;
use testkit::tolerance::loss_tolerance;

/// Losses of logits [tokens, vocabulary] that come in parts of this many columns.
fn losses(device: &Device, logits: &[f32], vocabulary: usize, targets: &[Option<u32>], part: usize) -> Vec<f64> {
    let tokens = targets.len();
    let mut losses = Losses::new(device, targets).expect("memory");
    for first in (0..vocabulary).step_by(part) {
        let columns = part.min(vocabulary - first);
        let own: Vec<f32> =
            logits.chunks(vocabulary).flat_map(|row| row[first..first + columns].iter().copied()).collect();
        let buffer = Guarded::new(device, &spread(&own, columns, columns + 3, f32::NAN), f32::NAN);
        let logits = MatrixRef::with_stride(buffer.view(), tokens, columns, columns + 3).expect("a matrix");
        losses.add(device, &logits, first).expect("adds");
    }
    let losses = losses.finish(device).expect("losses");
    device.download(&losses).expect("a copy")
}

fn numbers(tokens: usize, vocabulary: usize, size: f64) -> Vec<f32> {
    let mut random = Random::new(vocabulary as u64);
    (0..tokens * vocabulary).map(|_| (random.normal() * size) as f32).collect()
}

#[test]
fn losses_match_the_reference_however_the_vocabulary_is_cut() {
    on_device(|device| {
        for vocabulary in [1, 31, 33, 129, 1000, 3001] {
            for size in [0.0, 3.0, 40.0] {
                let logits = numbers(4, vocabulary, size);
                let targets: Vec<Option<u32>> =
                    (0..4u32).map(|at| (at != 2).then_some(at * 7919 % vocabulary as u32)).collect();
                for part in [vocabulary, vocabulary.div_ceil(2), vocabulary.div_ceil(5)] {
                    let got = losses(device, &logits, vocabulary, &targets, part);
                    let exact: Vec<f64> = logits.iter().map(|&z| z.into()).collect();
                    let want: Vec<f64> = exact
                        .chunks(vocabulary)
                        .zip(&targets)
                        .map(|(row, target)| target.map_or(0.0, |at| reference::cross_entropy(row, at as usize)))
                        .collect();
                    // A thread takes four logits at a time of 256, part by part.
                    let steps = vocabulary.div_ceil(1024) + vocabulary.div_ceil(part);
                    testkit::assert_close(&format!("{vocabulary} {size} {part}"), &got, &want, |_| {
                        loss_tolerance(steps, 12.0 * size)
                    });
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_shows_in_its_token_alone() {
    on_device(|device| {
        for bad in [f32::NAN, f32::INFINITY] {
            for target in [Some(1), None] {
                let mut logits = numbers(3, 300, 1.0);
                logits[300 + 200] = bad;
                let got = losses(device, &logits, 300, &[Some(0), target, Some(2)], 100);
                assert!(got[0].is_finite() && !got[1].is_finite() && got[2].is_finite(), "{bad} {got:?}");
            }
        }
        // A logit of −∞ has no probability, which is a number for all targets but itself; a part may have nothing else.
        let mut logits = numbers(2, 300, 1.0);
        logits[..100].fill(f32::NEG_INFINITY);
        let got = losses(device, &logits, 300, &[Some(200), Some(0)], 50);
        let exact: Vec<f64> = logits.iter().map(|&z| z.into()).collect();
        assert!((got[0] - reference::cross_entropy(&exact[..300], 200)).abs() < loss_tolerance(8, 12.0));
        assert!(!losses(device, &logits, 300, &[Some(50), None], 50)[0].is_finite());
    });
}

#[test]
fn wrong_shapes_are_refused() {
    on_device(|device| {
        let buffer = device.zeros::<f32>(64).expect("memory");
        let mut losses = Losses::new(device, &[None, None]).expect("memory");
        let logits = MatrixRef::new(buffer.slice(..), 4, 16).expect("a matrix");
        let error = losses.add(device, &logits, 0).expect_err("four rows for two tokens");
        assert_eq!(error.to_string(), "logits: found [4, 16], expected [2, …]");
    });
}
