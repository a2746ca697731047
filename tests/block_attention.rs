//! `kernels/block_attention.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use half::{bf16, f16};
use prune_cuda::{Device, Error, Heads, MatrixMut, MatrixRef, Stored, attention};
use reference::{Attention, Matrix};
use support::{Guarded, on_device, on_fast_device, spread};
use testkit::generate::Random;
use testkit::tolerance::{self, AttentionBound, attention_tolerance, stored_tolerance};

/// What Q, K and V are made of, here.
trait Number: Stored + Copy + PartialEq + std::fmt::Debug + bytemuck::Pod + Into<f64> {
    const ROUNDING: (f64, f64);
    fn of(value: f64) -> Self;
}

impl Number for f16 {
    const ROUNDING: (f64, f64) = tolerance::F16;
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
}

impl Number for bf16 {
    const ROUNDING: (f64, f64) = tolerance::BF16;
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
}

fn numbers<T: Number>(seed: u64, count: usize) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..count).map(|_| T::of(random.normal())).collect()
}

fn exact<T: Number>(rows: usize, columns: usize, values: &[T]) -> Matrix {
    Matrix::new(rows, columns, values.iter().map(|&value| value.into()).collect())
}

/// Heads of as many tokens one after the other.
fn plain(heads: usize, kv_heads: usize, head_dim: usize, sequence_length: usize) -> Attention {
    Attention { heads, kv_heads, head_dim, sequence_length, window: None, slopes: vec![] }
}

/// Q, K and V of all tokens, each with a row of its own.
struct Inputs<T> {
    queries: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Number> Inputs<T> {
    fn random(seed: u64, tokens: usize, shape: &Attention) -> Self {
        let kv = tokens * shape.kv_heads * shape.head_dim;
        Self {
            queries: numbers(seed, tokens * shape.heads * shape.head_dim),
            keys: numbers(seed + 1, kv),
            values: numbers(seed + 2, kv),
        }
    }

    /// Attention with rows that are `gap` elements apart from each other, and columns of nothing before the first head.
    fn attend(&self, device: &Device, shape: &Attention, gap: usize) -> Vec<T> {
        let (d, q_width, kv_width) = (shape.head_dim, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let tokens = self.queries.len() / q_width;
        let nan = T::of(f64::NAN);
        let place = |values: &[T], width: usize| {
            let mut data = vec![nan; gap];
            data.extend(spread(values, width, width + gap, nan));
            data.truncate(data.len() - gap);
            Guarded::new(device, &data, nan)
        };
        let buffers = [place(&self.queries, q_width), place(&self.keys, kv_width), place(&self.values, kv_width)];
        let widths = [q_width, kv_width, kv_width].map(|width| width + gap);
        let matrices: Vec<MatrixRef<'_, T>> =
            (0..3).map(|at| MatrixRef::new(buffers[at].view(), tokens, widths[at]).expect("a matrix")).collect();
        let [queries, keys, values] = [0, 1, 2].map(|at| Heads { matrix: &matrices[at], first: gap, step: d });
        let mut output = Guarded::poisoned(device, tokens * (q_width + gap), nan);
        let slopes: Vec<f32> = shape.slopes.iter().map(|&slope| slope as f32).collect();
        let slopes = Guarded::new(device, &slopes, f32::NAN);
        let slopes = slopes.view();
        {
            let mut target =
                MatrixMut::with_stride(output.view_mut(), tokens, q_width, q_width + gap).expect("a matrix");
            let shape = prune_cuda::Attention {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: d,
                sequence_length: shape.sequence_length,
                window: shape.window,
                slopes: (!shape.slopes.is_empty()).then_some(&slopes),
            };
            attention(device, &queries, &keys, &values, &mut target, &shape).expect("attends");
        }
        let rows = output.download(device);
        assert!(rows.chunks(q_width + gap).all(|row| row[q_width..].iter().all(|&v| v.into().is_nan())), "the gaps");
        rows.chunks(q_width + gap).flat_map(|row| row[..q_width].to_vec()).collect()
    }

    /// Compares the queries of these tokens.
    fn compare(&self, got: &[T], shape: &Attention, tokens: impl Iterator<Item = usize>) {
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let all = self.queries.len() / (shape.heads * d);
        let queries = exact(all, shape.heads * d, &self.queries);
        let [keys, values] = [&self.keys, &self.values].map(|values| exact(all, shape.kv_heads * d, values));
        let absolute = |matrix: &Matrix| {
            Matrix::new(matrix.rows(), matrix.columns(), matrix.values().iter().map(|value| value.abs()).collect())
        };
        let sizes = [absolute(&queries), absolute(&keys)];
        let leans = Attention { slopes: shape.slopes.iter().map(|slope| -slope).collect(), ..shape.clone() };
        for query in tokens {
            let seen = shape.seen(query);
            for head in 0..shape.heads {
                let weights = shape.weights(&queries, &keys, head, query);
                let score =
                    seen.clone().map(|key| leans.score(&sizes[0], &sizes[1], head, query, key)).fold(0.0, f64::max);
                let column = |c: usize| seen.clone().map(move |key| (key, head / group * d + c));
                let sum = |c: usize, term: &dyn Fn(f64) -> f64| -> f64 {
                    column(c).zip(&weights).map(|(at, weight)| weight * term(values[at])).sum()
                };
                let want: Vec<f64> = (0..d).map(|c| sum(c, &|v| v)).collect();
                let bound = |c: usize| AttentionBound {
                    columns: d,
                    keys: seen.len(),
                    rescalings: seen.len() / 32 + 2,
                    score,
                    spread: sum(c, &|v| (v - want[c]).abs()),
                    size: sum(c, &f64::abs),
                    reach: column(c).map(|at| (values[at] - want[c]).abs()).fold(0.0, f64::max),
                };
                let what = format!("{} {shape:?}, query {query}, head {head}", std::any::type_name::<T>());
                let got: Vec<f64> = got[(query * shape.heads + head) * d..][..d].iter().map(|&v| v.into()).collect();
                testkit::assert_close(&what, &got, &want, |c| {
                    stored_tolerance(attention_tolerance(&bound(c), T::ROUNDING), want[c], T::ROUNDING)
                });
            }
        }
    }
}

/// Attends to random numbers and compares all of it.
fn check<T: Number>(device: &Device, sequences: usize, shape: &Attention, gap: usize) {
    let tokens = sequences * shape.sequence_length;
    let inputs = Inputs::<T>::random(shape.head_dim as u64 * 1009 + tokens as u64, tokens, shape);
    let got = inputs.attend(device, shape, gap);
    inputs.compare(&got, shape, 0..tokens);
}

#[test]
fn heads_of_all_widths_match_the_reference() {
    on_device(|device| {
        for head_dim in [16, 32, 64, 80, 96, 128, 256] {
            check::<f16>(device, 1, &plain(1, 1, head_dim, 33), 0);
            check::<bf16>(device, 1, &plain(1, 1, head_dim, 70), 8);
        }
        // What cannot be copied 16 bytes at a time.
        check::<f16>(device, 1, &plain(2, 1, 3, 35), 0);
        check::<bf16>(device, 1, &plain(1, 1, 64, 33), 1);
    });
}

#[test]
fn sequences_of_all_lengths_match_the_reference() {
    on_device(|device| {
        for length in [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200] {
            check::<f16>(device, 1, &plain(1, 1, 32, length), 0);
        }
        check::<bf16>(device, 3, &plain(2, 2, 16, 65), 0);
    });
    on_fast_device(|device| {
        for head_dim in [64, 128, 256] {
            let shape = plain(1, 1, head_dim, 1000);
            let inputs = Inputs::<bf16>::random(1, 1000, &shape);
            inputs.compare(&inputs.attend(device, &shape, 0), &shape, (0..1000).step_by(13));
        }
    });
}

#[test]
fn groups_windows_and_slopes_match_the_reference() {
    on_device(|device| {
        check::<f16>(device, 2, &plain(6, 2, 16, 40), 0);
        for window in [1, 2, 31, 64, 65, 130, 1000] {
            check::<f16>(device, 1, &Attention { window: Some(window), ..plain(1, 1, 16, 200) }, 0);
        }
        let slopes = vec![0.0625, 0.00390625, 0.25];
        check::<bf16>(device, 1, &Attention { slopes: slopes.clone(), ..plain(3, 3, 32, 150) }, 0);
        check::<f16>(device, 1, &Attention { slopes, window: Some(70), ..plain(3, 1, 32, 150) }, 0);
        check::<f16>(device, 1, &Attention { window: Some(33), ..plain(1, 1, 256, 100) }, 0);
    });
    on_fast_device(|device| {
        // A window much shorter than the sequence: tiles before it are not visited.
        let shape = Attention { window: Some(100), ..plain(2, 1, 64, 1000) };
        let inputs = Inputs::<f16>::random(2, 1000, &shape);
        inputs.compare(&inputs.attend(device, &shape, 0), &shape, (0..1000).step_by(7));
    });
}

/// Queries, keys and values of one matrix, head by head, as BLOOM's layer makes them.
#[test]
fn heads_may_lie_between_each_other() {
    on_device(|device| {
        let (shape, tokens) = (plain(2, 2, 16, 50), 50);
        let inputs = Inputs::<f16>::random(9, tokens, &shape);
        let parts = [&inputs.queries, &inputs.keys, &inputs.values];
        let fused: Vec<f16> =
            (0..tokens * 2).flat_map(|at| parts.iter().flat_map(move |part| part[at * 16..][..16].to_vec())).collect();
        let buffer = Guarded::new(device, &fused, f16::NAN);
        let matrix = buffer.matrix(tokens, 2 * 3 * 16);
        let [queries, keys, values] = [0, 16, 32].map(|first| Heads { matrix: &matrix, first, step: 48 });
        let mut output = Guarded::poisoned(device, tokens * 32, f16::NAN);
        let attends = prune_cuda::Attention {
            heads: 2,
            kv_heads: 2,
            head_dim: 16,
            sequence_length: 50,
            window: None,
            slopes: None,
        };
        attention(device, &queries, &keys, &values, &mut output.matrix_mut(tokens, 32), &attends).expect("attends");
        assert_eq!(output.download(device), inputs.attend(device, &shape, 0));
    });
}

/// Scores of thousands: one key has all the weight, or all equal ones share it.
#[test]
fn extreme_scores_neither_overflow_nor_vanish() {
    on_device(|device| {
        let shape = plain(1, 1, 32, 100);
        let mut inputs = Inputs::<f16>::random(4, 100, &shape);
        inputs.queries.iter_mut().chain(&mut inputs.keys).for_each(|value| *value = f16::of(value.to_f64() * 60.0));
        inputs.compare(&inputs.attend(device, &shape, 0), &shape, 0..100);
        inputs.queries.fill(f16::ZERO);
        inputs.compare(&inputs.attend(device, &shape, 0), &shape, 0..100);
        // Values near the end of f16 stay within it.
        inputs.values.fill(f16::MAX);
        assert!(inputs.attend(device, &shape, 0).iter().all(|&value| value == f16::MAX));
    });
}

#[test]
fn the_same_input_gives_the_same_bits() {
    let first = std::sync::Mutex::new(None::<Vec<u16>>);
    on_device(|device| {
        let shape = plain(2, 1, 64, 150);
        let inputs = Inputs::<bf16>::random(5, 150, &shape);
        let bits: Vec<u16> = inputs.attend(device, &shape, 0).into_iter().map(bf16::to_bits).collect();
        let mut first = first.lock().expect("no panic");
        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits);
    });
}

#[test]
fn what_is_not_finite_shows() {
    on_device(|device| {
        let shape = plain(1, 1, 16, 100);
        for bad in [f16::NAN, f16::INFINITY] {
            for which in 0..3 {
                let mut inputs = Inputs::<f16>::random(6, 100, &shape);
                [&mut inputs.queries, &mut inputs.keys, &mut inputs.values][which][70 * 16 + 5] = bad;
                let got = inputs.attend(device, &shape, 0);
                // An infinite key has no weight at all for queries that point away from it, as it should be.
                let mut sees_it = if which == 1 { 70..100 } else { 70..71 };
                let shows = |query: usize| got[query * 16..][..16].iter().any(|value| !value.is_finite());
                assert!(sees_it.any(shows), "{bad} {which}");
                // Tiles of keys that end before it know nothing of it.
                inputs.compare(&got, &shape, 0..64);
            }
        }
    });
}

#[test]
fn wrong_shapes_are_refused() {
    on_device(|device| {
        let buffer = device.zeros::<f16>(4096).expect("memory");
        let matrix = MatrixRef::new(buffer.slice(..), 8, 512).expect("a matrix");
        let mut output = device.zeros::<f16>(4096).expect("memory");
        let good = prune_cuda::Attention {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            sequence_length: 4,
            window: None,
            slopes: None,
        };
        let mut refused = |shape: prune_cuda::Attention<'_>, first: usize| -> String {
            let heads = || Heads { matrix: &matrix, first, step: shape.head_dim };
            let width = shape.heads * shape.head_dim;
            let mut output = MatrixMut::with_stride(output.slice_mut(..), 8, width.min(512), 512).expect("a matrix");
            let error = attention(device, &heads(), &heads(), &heads(), &mut output, &shape).expect_err("refused");
            assert!(matches!(error, Error::Shape { .. }));
            error.to_string()
        };
        let cases = [
            (prune_cuda::Attention { sequence_length: 3, ..good }, 0, "the sequence length: found 3"),
            (prune_cuda::Attention { sequence_length: 0, ..good }, 0, "the sequence length: found 0"),
            (prune_cuda::Attention { kv_heads: 3, ..good }, 0, "heads of keys: found 3"),
            (prune_cuda::Attention { head_dim: 257, heads: 1, kv_heads: 1, ..good }, 0, "columns of a head: found 257"),
            (prune_cuda::Attention { head_dim: 0, ..good }, 0, "columns of a head: found 0"),
            (prune_cuda::Attention { window: Some(0), ..good }, 0, "window: found 0"),
            (good, 450, "queries: found [8, 512], expected [8, 514 or more]"),
        ];
        for (shape, first, want) in cases {
            let error = refused(shape, first);
            assert!(error.contains(want), "{error}");
        }
    });
}
