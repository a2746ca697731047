//! `kernels/pack_bitmask.cu` and `kernels/pack_two_four.cu`: packed forms against what their documentation says, round trips
//! bit by bit, and products against float64. Here is what both have in common.
#![cfg(feature = "cuda")]

mod bitmask;
#[path = "../support/mod.rs"]
mod support;
mod two_four;

use half::{bf16, f16};
use proptest::prelude::*;
use prune_cuda::{
    Device, Element, Error, MatrixMut, MatrixRef, TwoFourInput, TwoFourOutput, multiply_bitmask, multiply_two_four,
    pack_bitmask, pack_two_four, unpack_bitmask, unpack_two_four,
};
use reference::Matrix;
use support::{Guarded, SIZES, on_device, on_fast_device, spread};
use testkit::generate::Random;
use testkit::tolerance;

/// What weights are made of, here.
trait Number: Element + Copy + PartialEq + std::fmt::Debug + bytemuck::Pod {
    /// Unit roundoff and the like, for [`tolerance::stored_tolerance`].
    const STORED: (f64, f64);
    /// Infinity, a NaN with a payload, −0, the least and the largest number.
    const SPECIAL: [Self; 5];
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! number {
    ($type:ty, $stored:path, $from:expr, $nan:literal, $sign:literal) => {
        impl Number for $type {
            const STORED: (f64, f64) = $stored;
            const SPECIAL: [Self; 5] = [
                <$type>::INFINITY,
                <$type>::from_bits($nan),
                <$type>::from_bits($sign),
                <$type>::from_bits(1),
                <$type>::MAX,
            ];
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
        }
    };
}

number!(f16, tolerance::F16, f16::from_f64, 0xFE5A, 0x8000);
number!(bf16, tolerance::BF16, bf16::from_f64, 0xFFA5, 0x8000);
number!(f32, tolerance::F32, |value| value as f32, 0xFFC1_2345, 0x8000_0000);

/// A weight, what of it is kept, and the mask as kernels take it.
struct Layer<T> {
    rows: usize,
    columns: usize,
    weight: Vec<T>,
    keep: Vec<bool>,
}

impl<T: Number> Layer<T> {
    /// Random numbers, none of them zero, of which `keep` says what is kept.
    fn new(seed: u64, rows: usize, columns: usize, mut keep: impl FnMut(&mut Random, usize, usize) -> bool) -> Self {
        let mut random = Random::new(seed);
        let weight = (0..rows * columns).map(|_| T::from_f64(random.student_t4() + 0.01)).collect();
        let keep = (0..rows * columns).map(|at| keep(&mut random, at / columns, at % columns)).collect();
        Self { rows, columns, weight, keep }
    }

    /// Each number with probability `density`; row 1 none, row 2 all of them.
    fn unstructured(seed: u64, rows: usize, columns: usize, density: f64) -> Self {
        Self::new(seed, rows, columns, |random, row, _| match row {
            1 => false,
            2 => true,
            _ => random.uniform() < density,
        })
    }

    /// At most two of four, mostly two; row 1 none.
    fn two_four(seed: u64, rows: usize, columns: usize) -> Self {
        let mut group = [false; 4];
        Self::new(seed, rows, columns, |random, row, column| {
            if column % 4 == 0 {
                group = [false; 4];
                let count = [2, 2, 2, 2, 1, 0][random.below(6)];
                random.choose(count, 4).into_iter().for_each(|i| group[i] = row != 1);
            }
            group[column % 4]
        })
    }

    /// The weight with zeros where nothing is kept.
    fn pruned(&self) -> Vec<T> {
        let zero = T::from_f64(0.0);
        self.weight.iter().zip(&self.keep).map(|(&value, &keep)| if keep { value } else { zero }).collect()
    }

    /// u32 [rows, ⌈columns / 32⌉], all ones beyond the columns: nobody may look there.
    fn words(&self) -> Vec<u32> {
        let word = |bits: &[bool]| bits.iter().rev().fold(!0, |word: u32, &keep| word << 1 | u32::from(keep));
        self.keep.chunks(self.columns.max(1)).flat_map(|row| row.chunks(32).map(word)).collect()
    }

    fn exact(&self) -> Matrix {
        Matrix::new(self.rows, self.columns, self.pruned().iter().map(|&value| value.to_f64()).collect())
    }
}

fn nan<T: Number>() -> T {
    T::from_f64(f64::NAN)
}

fn bytes<T: Number>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// How a matrix lies: rows one after the other, or with a gap, which decides about alignment.
fn strides(columns: usize) -> [usize; 2] {
    [columns, columns.next_multiple_of(8) + 8]
}

/// A matrix on the device, with NaN in the gaps.
fn upload<T: Number>(device: &Device, values: &[T], columns: usize, stride: usize) -> Guarded<T> {
    Guarded::new(device, &spread(values, columns, stride, nan()), nan())
}

fn view<T: Number>(buffer: &Guarded<T>, rows: usize, columns: usize, stride: usize) -> MatrixRef<'_, T> {
    MatrixRef::with_stride(buffer.view(), rows, columns, stride).expect("a matrix")
}

/// Runs `write` on a matrix that holds NaN, and returns it after a look at the gaps.
fn written<T: Number>(
    device: &Device,
    (rows, columns, stride): (usize, usize, usize),
    write: impl FnOnce(&mut MatrixMut<'_, T>) -> Result<(), Error>,
) -> Vec<T> {
    let mut buffer = Guarded::poisoned(device, rows * stride, nan::<T>());
    write(&mut MatrixMut::with_stride(buffer.view_mut(), rows, columns, stride).expect("a matrix")).expect("runs");
    let all = buffer.download(device);
    let gaps = all.chunks(stride.max(1)).flat_map(|row| &row[columns..]);
    assert!(gaps.copied().all(|value| bytes(&[value]) == bytes(&[nan::<T>()])), "something was written between rows");
    all.chunks(stride.max(1)).flat_map(|row| row[..columns].to_vec()).collect()
}

/// Compares [tokens, rows] with X · Wᵀ: γ(columns) · Σ|x·w|, and one rounding.
fn assert_product<T: Number, O: Number>(what: &str, got: &[O], inputs: &[T], weight: &Matrix) {
    let columns = weight.columns();
    let inputs = Matrix::new(inputs.len() / columns.max(1), columns, inputs.iter().map(|&x| x.to_f64()).collect());
    let size = |matrix: &Matrix| {
        Matrix::new(matrix.rows(), matrix.columns(), matrix.values().iter().map(|value| value.abs()).collect())
    };
    let want = inputs.times(&weight.transposed());
    let scale = size(&inputs).times(&size(weight).transposed());
    let got: Vec<f64> = got.iter().map(|&value| value.to_f64()).collect();
    testkit::assert_close(what, &got, want.values(), |at| {
        let sum = tolerance::gemm_tolerance(columns, scale.values()[at]);
        tolerance::stored_tolerance(sum, want.values()[at], O::STORED)
    });
}

fn numbers<T: Number>(seed: u64, count: usize) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..count).map(|_| T::from_f64(random.normal())).collect()
}

/// An infinite input reaches the outputs whose weights keep its column, and no other; so does a NaN among the weights.
#[test]
fn infinities_reach_only_what_keeps_their_column() {
    on_device(|device| {
        let (rows, columns, tokens, at) = (70, 72, 40, 13);
        let layer = Layer::<f16>::two_four(11, rows, columns);
        let weight = upload(device, &layer.pruned(), columns, columns);
        let mut inputs = numbers::<f16>(5, tokens * columns);
        inputs[3 * columns + at] = f16::INFINITY;
        let buffer = upload(device, &inputs, columns, columns);
        let packed = pack_two_four(device, &weight.matrix(rows, columns), None).expect("packs");
        let sparse = written::<f32>(device, (tokens, rows, 72), |outputs| {
            multiply_two_four(device, &packed, &buffer.matrix(tokens, columns), outputs)
        });
        let packed = pack_bitmask(device, &weight.matrix(rows, columns), None).expect("packs");
        let first = MatrixRef::new(buffer.slice.slice(..8 * columns), 8, columns).expect("a matrix");
        let bitmask =
            written::<f16>(device, (8, rows, rows), |outputs| multiply_bitmask(device, &packed, &first, outputs));
        for row in 0..rows {
            let kept = layer.keep[row * columns + at];
            for token in 0..8 {
                let finite = token != 3 || !kept;
                assert_eq!(bitmask[token * rows + row].is_finite(), finite, "bitmask ({token}, {row})");
                // A group with less than two has zeros at index 0 or 3, which meet what is there.
                let group: Vec<bool> = layer.keep[row * columns + at / 4 * 4..][..4].to_vec();
                let stored = two_four::packed_group(&[f16::ONE; 4], &group).0;
                let meets = stored & 3 == at as u32 % 4 || stored >> 2 == at as u32 % 4;
                assert_eq!(sparse[token * rows + row].is_finite(), token != 3 || !meets, "2:4 ({token}, {row})");
            }
        }
    });
}

/// The same input gives the same bits, in every order of thread blocks.
#[test]
fn the_same_inputs_give_the_same_bits() {
    let bits = std::sync::Mutex::new(Vec::new());
    on_device(|device| {
        let (rows, columns, tokens) = (130, 300, 8);
        let layer = Layer::<f16>::two_four(12, rows, columns);
        let weight = upload(device, &layer.pruned(), columns, columns);
        let inputs = upload(device, &numbers::<f16>(13, tokens * columns), columns, columns + 4);
        let inputs = view(&inputs, tokens, columns, columns + 4);
        for _ in 0..2 {
            let packed = pack_two_four(device, &weight.matrix(rows, columns), None).expect("packs");
            let mut all = written::<f16>(device, (tokens, rows, 136), |outputs| {
                multiply_two_four(device, &packed, &inputs, outputs)
            });
            let packed = pack_bitmask(device, &weight.matrix(rows, columns), None).expect("packs");
            all.extend(written::<f16>(device, (tokens, rows, rows), |outputs| {
                multiply_bitmask(device, &packed, &inputs, outputs)
            }));
            bits.lock().expect("bits").push(bytes(&all).to_vec());
        }
    });
    let bits = bits.into_inner().expect("bits");
    assert!(bits.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Nothing to pack and nothing to multiply.
#[test]
fn empty_matrices_are_matrices() {
    on_device(|device| {
        for (rows, columns) in [(0, 5), (5, 0), (0, 0)] {
            let layer = Layer::<f16>::two_four(1, rows, columns);
            let weight = Guarded::new(device, &layer.weight, f16::NAN);
            let weight = weight.matrix(rows, columns);
            let inputs = Guarded::poisoned(device, 3 * columns, f16::ONE);
            let bitmask = pack_bitmask(device, &weight, None).expect("packs");
            let two_four = pack_two_four(device, &weight, None).expect("packs");
            let zeros = vec![f16::ZERO; 3 * rows];
            let got = written::<f16>(device, (3, rows, rows), |outputs| {
                multiply_bitmask(device, &bitmask, &inputs.matrix(3, columns), outputs)
            });
            assert_eq!(got, zeros);
            let got = written::<f16>(device, (3, rows, rows), |outputs| {
                multiply_two_four(device, &two_four, &inputs.matrix(3, columns), outputs)
            });
            assert_eq!(got, zeros);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any weight of any shape comes back, whichever way it is packed.
    #[test]
    fn what_is_packed_unpacks(
        seed in any::<u64>(), rows in 1usize..80, columns in 1usize..300, gap in 0usize..9, density in 0.0f64..=1.0, by_mask: bool
    ) {
        on_fast_device(|device| {
            bitmask::check_bitmask(device, &Layer::<bf16>::unstructured(seed, rows, columns, density), by_mask, columns + gap);
            two_four::check_two_four(device, &Layer::<f16>::two_four(seed, rows, columns), by_mask, columns + gap);
        });
    }
}
