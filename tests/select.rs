//! `kernels/prune_select.cu` against the float64 reference, exactly.
#![cfg(feature = "cuda")]

mod support;

use prune_cuda::{Device, Error, MatrixMut, MatrixRef, PASSES, Score, Selector, apply};
use reference::{Matrix, Selection};
use std::sync::Mutex;
use support::{Guarded, SIZES, on_device, on_fast_device, spread};
use testkit::generate::Random;

/// Which score, and with it which factors.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Obs,
    Magnitude,
    Wanda,
}

const KINDS: [Kind; 3] = [Kind::Obs, Kind::Magnitude, Kind::Wanda];

/// A matrix of weights and a factor for each column, on the host.
#[derive(Clone, Debug)]
struct Layer {
    rows: usize,
    columns: usize,
    weight: Vec<f32>,
    factors: Vec<f32>,
}

impl Layer {
    /// With few values, many of them equal, where `values` says how few.
    fn new(seed: u64, rows: usize, columns: usize, values: Option<usize>) -> Self {
        let mut random = Random::new(seed);
        let mut number = |scale: f64| match values {
            Some(values) => random.below(values) as f32 * 0.5 - 1.0,
            None => (random.normal() * scale) as f32,
        };
        let weight = (0..rows * columns).map(|_| number(0.05)).collect();
        let factors = (0..columns).map(|_| number(3.0).abs() + 0.25).collect();
        Self { rows, columns, weight, factors }
    }

    /// The scores as f32 has them, so that the choice is exact.
    fn scores(&self, kind: Kind) -> Matrix {
        let score = |(at, &weight): (usize, &f32)| {
            let factor = self.factors[at % self.columns];
            match kind {
                Kind::Obs => (weight * factor) * (weight * factor),
                Kind::Magnitude => weight.abs(),
                Kind::Wanda => (weight * factor).abs(),
            }
        };
        let scores: Vec<f32> = self.weight.iter().enumerate().map(score).collect();
        Matrix::from_f32(self.rows, self.columns, &scores)
    }

    fn smallest_go(&self, kind: Kind, count: usize) -> Vec<bool> {
        let mut keep = vec![true; self.weight.len()];
        for at in reference::smallest(self.scores(kind).values(), count) {
            keep[at] = false;
        }
        keep
    }
}

/// A layer on the device, and bits for it.
struct Uploaded {
    weights: Guarded<f32>,
    factors: Guarded<f32>,
    keep: Guarded<u32>,
    rows: usize,
    columns: usize,
    stride: usize,
    first: usize,
}

impl Uploaded {
    fn new(device: &Device, layer: &Layer, gap: usize, first: usize) -> Self {
        let (rows, columns, stride) = (layer.rows, layer.columns, layer.columns + gap);
        let words = (first + columns).div_ceil(32);
        Self {
            weights: Guarded::new(device, &spread(&layer.weight, columns, stride, f32::NAN), f32::NAN),
            // As the diagonal of a matrix would lie.
            factors: Guarded::new(device, &spread(&layer.factors, 1, 3, f32::NAN), f32::NAN),
            keep: Guarded::new(device, &vec![0xabcd_ef01; rows * words], 0xdead_beef),
            rows,
            columns,
            stride,
            first,
        }
    }

    /// Calls `select` with the weights, the score and the bits.
    fn with<R>(
        &mut self,
        kind: Kind,
        select: impl FnOnce(&MatrixRef<'_, f32>, Score<'_>, &mut MatrixMut<'_, u32>) -> R,
    ) -> R {
        let Self { weights, factors, keep, rows, columns, stride, first } = self;
        let weights = MatrixRef::with_stride(weights.view(), *rows, *columns, *stride).expect("a matrix");
        let factors = MatrixRef::with_stride(factors.view(), *columns, 1, 3).expect("a column");
        let score = match kind {
            Kind::Obs => Score::Obs(&factors),
            Kind::Magnitude => Score::Magnitude,
            Kind::Wanda => Score::Wanda(&factors),
        };
        let words = (*first + *columns).div_ceil(32);
        select(&weights, score, &mut MatrixMut::new(keep.view_mut(), *rows, words).expect("a matrix"))
    }

    fn bits(&self, device: &Device) -> Vec<bool> {
        let (words, each) = (self.keep.download(device), (self.first + self.columns).div_ceil(32));
        for row in words.chunks(each) {
            assert!(row[..self.first / 32].iter().all(|&word| word == 0xabcd_ef01), "bits before the first");
            let end = self.first + self.columns;
            assert!(end.is_multiple_of(32) || row[end / 32] >> (end % 32) == 0, "bits behind the last");
        }
        let bit = |at: usize| {
            let bit = self.first + at % self.columns;
            words[at / self.columns * each + bit / 32] >> (bit % 32) & 1 != 0
        };
        (0..self.rows * self.columns).map(bit).collect()
    }
}

fn check(device: &Device, layer: &Layer, kind: Kind, count: usize, gap: usize, first: usize) {
    let mut selector = Selector::new(device).expect("a selector");
    let mut uploaded = Uploaded::new(device, layer, gap, first);
    uploaded.with(kind, |weights, score, keep| {
        selector.select(device, weights, score, count as u64, keep, first, None).expect("selects");
    });
    let what = format!("{kind:?} [{}, {}], {count} go", layer.rows, layer.columns);
    assert_eq!(uploaded.bits(device), layer.smallest_go(kind, count), "{what}");
    assert_eq!(selector.not_numbers(device).expect("a count"), 0, "{what}");
}

#[test]
fn the_smallest_of_all_go_at_all_sizes() {
    on_device(|device| {
        for (number, rows) in SIZES.into_iter().filter(|&rows| rows <= 200).enumerate() {
            for columns in [1, 31, 32, 33, 127, 128, 129, 200] {
                let all = rows * columns;
                let layer = Layer::new((rows * 7 + columns) as u64, rows, columns, None);
                let count = [0, 1.min(all), all / 2, all * 7 / 10, all - 1, all][(number + columns) % 6];
                check(device, &layer, KINDS[(number + columns) % 3], count, columns % 4, columns % 2 * 64);
            }
        }
        for count in [0, 1, 2000, 4095, 4096] {
            check(device, &Layer::new(1, 32, 128, None), Kind::Obs, count, 0, 0);
        }
    });
    on_fast_device(|device| {
        check(device, &Layer::new(2, 1000, 128, None), Kind::Obs, 64000, 0, 128);
        check(device, &Layer::new(3, 200, 1000, None), Kind::Magnitude, 100_000, 0, 0);
    });
}

#[test]
fn equal_scores_go_in_order_of_row_and_column() {
    on_device(|device| {
        for (values, rows, columns) in [(1, 40, 129), (2, 77, 40), (5, 9, 300), (1, 1, 31)] {
            let layer = Layer::new(11, rows, columns, Some(values));
            let all = rows * columns;
            for count in [1, all / 3, all / 2, all - 1] {
                check(device, &layer, Kind::Obs, count, 0, 0);
            }
        }
    });
    // More segments than warps: several turns of each thread block.
    on_fast_device(|device| {
        for count in [300_000, 599_999] {
            check(device, &Layer::new(11, 5000, 120, Some(1)), Kind::Magnitude, count, 0, 0);
        }
    });
}

#[test]
fn extremes_are_in_order_too() {
    on_device(|device| {
        let mut layer = Layer::new(4, 16, 40, None);
        for (at, value) in
            [f32::INFINITY, -f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, -0.0, 0.0, 1e30].into_iter().enumerate()
        {
            layer.weight[at * 71] = value;
        }
        for count in [1, 3, 320, 637, 638, 639] {
            check(device, &layer, Kind::Magnitude, count, 0, 0);
            check(device, &layer, Kind::Obs, count, 0, 0);
        }
    });
}

/// They are larger than all numbers, and counted.
#[test]
fn what_is_not_a_number_stays_and_is_reported() {
    on_device(|device| {
        let mut layer = Layer::new(4, 16, 40, None);
        for at in [3, 500, 639] {
            layer.weight[at] = if at == 500 { -f32::NAN } else { f32::NAN };
        }
        let mut selector = Selector::new(device).expect("a selector");
        let mut uploaded = Uploaded::new(device, &layer, 0, 0);
        for (selected, kind) in (1..).zip(KINDS) {
            uploaded.with(kind, |weights, score, keep| {
                selector.select(device, weights, score, 600, keep, 0, None).expect("selects");
            });
            let bits = uploaded.bits(device);
            assert_eq!(bits.iter().filter(|&&keep| keep).count(), 40);
            assert!(bits[3] && bits[500] && bits[639]);
            assert_eq!(selector.not_numbers(device).expect("a count"), 3 * selected);
        }
        uploaded.with(Kind::Wanda, |weights, score, keep| {
            selector.select_rows(device, weights, score, 20, keep).expect("selects");
            selector.select_groups(device, weights, score, (2, 4), keep).expect("selects");
        });
        assert_eq!(selector.not_numbers(device).expect("a count"), 15);
    });
}

/// Two shards on one device, whose histograms and ties are added by hand.
#[test]
fn shards_select_together() {
    on_device(|device| {
        for (values, count) in [(None, 3000), (Some(2), 3000), (Some(1), 17), (Some(1), 5000), (None, 0), (None, 6400)]
        {
            let whole = Layer::new(21, 100, 64, values);
            let want = whole.smallest_go(Kind::Obs, count);
            let parts = [(0, 37), (37, 100)].map(|(from, to)| Layer {
                rows: to - from,
                weight: whole.weight[from * 64..to * 64].to_vec(),
                ..whole.clone()
            });
            let mut shards: Vec<_> = parts
                .iter()
                .map(|part| (Uploaded::new(device, part, 0, 0), Selector::new(device).expect("a selector")))
                .collect();
            for (_, selector) in &mut shards {
                selector.begin(device).expect("begins");
            }
            let count = count as u64;
            for pass in 0..PASSES {
                let mut sum = vec![0u64; 2048];
                for (uploaded, selector) in &mut shards {
                    uploaded.with(Kind::Obs, |weights, score, _| {
                        selector.histogram(device, weights, score, count, pass).expect("counts");
                    });
                    let own = device.download(&selector.histogram_mut(pass)).expect("a copy");
                    sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                }
                for (_, selector) in &mut shards {
                    device.stream().memcpy_htod(&sum, &mut selector.histogram_mut(pass)).expect("a copy");
                }
            }
            let (mut before, mut got) = (0, Vec::new());
            for (uploaded, selector) in &mut shards {
                uploaded.with(Kind::Obs, |weights, score, keep| {
                    selector.ties(device, weights, score, count).expect("counts");
                    let mut ties = selector.ties_mut(device).expect("ties");
                    let own = device.download(&ties).expect("a copy")[0];
                    device.stream().memcpy_htod(&[before], &mut ties).expect("a copy");
                    before += own;
                    selector.drop(device, weights, score, count, keep, 0).expect("drops");
                });
                got.extend(uploaded.bits(device));
            }
            assert_eq!(got, want, "{values:?}, {count}");
        }
    });
}

#[test]
fn the_baselines_choose_as_the_reference_does() {
    on_device(|device| {
        for (number, columns) in [1usize, 31, 33, 128, 300].into_iter().enumerate() {
            for values in [None, Some(3)] {
                let layer = Layer::new(31, 7, columns, values);
                let mut uploaded = Uploaded::new(device, &layer, number % 3, 0);
                let mut selector = Selector::new(device).expect("a selector");
                for sparsity in [0.0, 0.5, 0.9, 1.0] {
                    let count = (columns as f64 * sparsity) as usize;
                    uploaded.with(Kind::Wanda, |weights, score, keep| {
                        selector.select_rows(device, weights, score, count, keep).expect("selects");
                    });
                    // The scores as f32 has them are magnitudes of their own.
                    let ones = vec![1.0; columns];
                    let want =
                        reference::wanda(&layer.scores(Kind::Wanda), &ones, &Selection::Unstructured { sparsity });
                    assert_eq!(uploaded.bits(device), want, "{columns} columns, {sparsity}, {values:?}");
                }
                for (stay, group) in [(2, 4), (4, 8), (16, 32), (3, 7), (1, 1), (0, 3), (20, 100)] {
                    for kind in KINDS {
                        uploaded.with(kind, |weights, score, keep| {
                            selector.select_groups(device, weights, score, (stay, group), keep).expect("selects");
                        });
                        let want = reference::n_of_m(&layer.scores(kind), stay, group);
                        assert_eq!(uploaded.bits(device), want, "{kind:?} {stay}:{group} of {columns}");
                    }
                }
                let keep = uploaded.bits(device);
                {
                    let Uploaded { weights, keep, rows, columns, stride, .. } = &mut uploaded;
                    let words = columns.div_ceil(32);
                    let keep = MatrixRef::new(keep.view(), *rows, words).expect("a matrix");
                    let mut weights =
                        MatrixMut::with_stride(weights.view_mut(), *rows, *columns, *stride).expect("a matrix");
                    apply(device, &mut weights, &keep).expect("applies");
                }
                let applied = uploaded.weights.download(device);
                for (at, keep) in keep.into_iter().enumerate() {
                    let got = applied[at / columns * uploaded.stride + at % columns];
                    assert_eq!(got.to_bits(), if keep { layer.weight[at].to_bits() } else { 0 });
                }
            }
        }
    });
}

#[test]
fn the_same_scores_give_the_same_bits() {
    let seen = Mutex::new(Vec::new());
    on_device(|device| {
        let layer = Layer::new(8, 129, 96, Some(4));
        let mut selector = Selector::new(device).expect("a selector");
        for _ in 0..2 {
            let mut uploaded = Uploaded::new(device, &layer, 0, 0);
            uploaded.with(Kind::Obs, |weights, score, keep| {
                selector.select(device, weights, score, 5000, keep, 0, None).expect("selects");
            });
            seen.lock().expect("bits").push(uploaded.keep.download(device));
        }
    });
    let seen = seen.into_inner().expect("bits");
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn wrong_shapes_are_named() {
    on_device(|device| {
        let layer = Layer::new(8, 9, 40, None);
        let mut selector = Selector::new(device).expect("a selector");
        let mut uploaded = Uploaded::new(device, &layer, 0, 0);
        uploaded.with(Kind::Obs, |weights, score, keep| {
            let result = |what: &str, result: Result<(), Error>| {
                assert!(
                    matches!(&result, Err(Error::Shape { what: found, .. }) if *found == what),
                    "{what}: {result:?}"
                );
            };
            result("count", selector.select(device, weights, score, 361, keep, 0, None));
            result("keep", selector.select(device, weights, score, 36, keep, 32, None));
            result("keep", selector.select(device, weights, score, 36, keep, 8, None));
            // With 40 columns the bits wrap to eight.
            result("keep", selector.select(device, weights, score, 36, keep, usize::MAX - 31, None));
            result("count", selector.select_rows(device, weights, score, 41, keep));
            result("groups", selector.select_groups(device, weights, score, (5, 4), keep));
            result("the scores' factors", selector.select(device, weights, Score::Wanda(weights), 3, keep, 0, None));
        });
    });
}
