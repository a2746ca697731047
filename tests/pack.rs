//! `kernels/pack_bitmask.cu` and `kernels/pack_two_four.cu`: packed forms against what their documentation says, round trips
//! bit by bit, and products against float64.
#![cfg(feature = "cuda")]

mod support;

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

// ---- bitmask

/// Packs by mask or by value, checks every part of the packed form, and unpacks.
fn check_bitmask<T: Number>(device: &Device, layer: &Layer<T>, by_mask: bool, stride: usize) {
    let Layer { rows, columns, .. } = *layer;
    let what = format!("{} [{rows}, {columns}] every {stride}, by mask: {by_mask}", std::any::type_name::<T>());
    let words = columns.div_ceil(32);
    let source = if by_mask { layer.weight.clone() } else { layer.pruned() };
    let weight = upload(device, &source, columns, stride);
    let mask = Guarded::new(device, &spread(&layer.words(), words, words + 3, !0), !0);
    let mask = MatrixRef::with_stride(mask.view(), rows, words, words + 3).expect("a matrix");
    let packed = pack_bitmask(device, &view(&weight, rows, columns, stride), by_mask.then_some(&mask)).expect("packs");

    let is_zero = |value: T| value.to_f64() == 0.0;
    let kept: Vec<bool> = match by_mask {
        true => layer.keep.clone(),
        false => source.iter().map(|&value| !is_zero(value)).collect(),
    };
    let mut want_offsets = vec![0u64];
    let mut want_bits = Vec::new();
    for row in kept.chunks(columns) {
        want_offsets.push(want_offsets[want_offsets.len() - 1] + row.iter().filter(|&&keep| keep).count() as u64);
        let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, &keep| word << 1 | u32::from(keep));
        want_bits.extend(row.chunks(32).map(word));
    }
    let want_values: Vec<T> = source.iter().zip(&kept).filter(|(_, keep)| **keep).map(|(&value, _)| value).collect();
    assert_eq!(packed.kept(), want_values.len(), "{what}");
    assert_eq!(device.download(packed.bits()).expect("a copy"), want_bits, "{what}: bits");
    assert_eq!(device.download(packed.offsets()).expect("a copy"), want_offsets, "{what}: offsets");
    let values = device.download(packed.values()).expect("a copy");
    assert_eq!(bytes(&values[..packed.kept()]), bytes(&want_values), "{what}: values");

    let want: Vec<T> =
        source.iter().zip(&kept).map(|(&value, &keep)| if keep { value } else { T::from_f64(0.0) }).collect();
    let got = written(device, (rows, columns, stride), |weight| unpack_bitmask(device, &packed, weight));
    assert_eq!(bytes(&got), bytes(&want), "{what}: unpacked");
}

fn check_bitmask_sizes<T: Number>() {
    on_device(|device| {
        for size in SIZES.into_iter().filter(|&size| size <= 200) {
            for (rows, columns) in [(size, 33), (5, size)] {
                let layer = Layer::<T>::unstructured(size as u64, rows, columns, 0.5);
                check_bitmask(device, &layer, size % 2 == 0, strides(columns)[size / 2 % 2]);
            }
        }
    });
    on_fast_device(|device| {
        for (rows, columns, density) in [(1000, 200, 0.3), (33, 1000, 0.9), (9, 2081, 0.5), (20000, 3, 0.5)] {
            let layer = Layer::<T>::unstructured(7, rows, columns, density);
            for by_mask in [false, true] {
                strides(columns).into_iter().for_each(|stride| check_bitmask(device, &layer, by_mask, stride));
            }
        }
    });
}

#[test]
fn bitmask_of_16_bits_is_as_documented_and_unpacks() {
    check_bitmask_sizes::<bf16>();
}

#[test]
fn bitmask_of_32_bits_is_as_documented_and_unpacks() {
    check_bitmask_sizes::<f32>();
}

/// −0 is dropped by value and kept by mask; NaN keeps its payload.
#[test]
fn bitmask_keeps_every_bit_of_special_numbers() {
    fn check<T: Number>(device: &Device) {
        let mut layer = Layer::<T>::unstructured(3, 7, 70, 0.5);
        for (at, value) in layer.weight.iter_mut().enumerate() {
            *value = T::SPECIAL[at % 5];
        }
        check_bitmask(device, &layer, true, 70);
        check_bitmask(device, &layer, false, 70);
    }
    on_device(|device| {
        check::<f16>(device);
        check::<bf16>(device);
        check::<f32>(device);
    });
}

fn check_bitmask_product<T: Number>(device: &Device, layer: &Layer<T>, vectors: usize, stride: usize) {
    let Layer { rows, columns, .. } = *layer;
    let weight = upload(device, &layer.pruned(), columns, columns);
    let packed = pack_bitmask(device, &weight.matrix(rows, columns), None).expect("packs");
    let inputs = numbers::<T>(vectors as u64, vectors * columns);
    let buffer = upload(device, &inputs, columns, stride);
    let got = written(device, (vectors, rows, rows + 3), |outputs| {
        multiply_bitmask(device, &packed, &view(&buffer, vectors, columns, stride), outputs)
    });
    let what = format!("{} [{rows}, {columns}] · {vectors} every {stride}", std::any::type_name::<T>());
    assert_product(&what, &got, &inputs, &layer.exact());
}

fn check_bitmask_products<T: Number>() {
    on_device(|device| {
        for size in SIZES.into_iter().filter(|&size| size <= 200) {
            let vectors = 1 + size % 8;
            for stride in strides(size) {
                let layer = Layer::<T>::unstructured(size as u64, 9, size, 0.5);
                check_bitmask_product(device, &layer, vectors, stride);
            }
        }
        for vectors in 1..=8 {
            check_bitmask_product(device, &Layer::<T>::unstructured(5, 5, 264, 0.5), vectors, 264);
        }
        // More values than the ring holds.
        check_bitmask_product(device, &Layer::<T>::unstructured(6, 4, 4700, 0.6), 2, 4700);
    });
    on_fast_device(|device| {
        for (rows, columns, density) in [(200, 1000, 0.5), (33, 3000, 0.05), (33, 3001, 1.0), (9, 4096, 0.5)] {
            let layer = Layer::<T>::unstructured(1, rows, columns, density);
            for (vectors, stride) in [(1, columns), (3, strides(columns)[1])] {
                check_bitmask_product(device, &layer, vectors, stride);
            }
        }
    });
}

#[test]
fn bitmask_products_of_f16_match_the_reference() {
    check_bitmask_products::<f16>();
}

#[test]
fn bitmask_products_of_bf16_match_the_reference() {
    check_bitmask_products::<bf16>();
}

#[test]
fn bitmask_products_of_f32_match_the_reference() {
    check_bitmask_products::<f32>();
}

#[test]
fn bitmask_wrong_shapes_are_named() {
    on_device(|device| {
        let weight = Guarded::<f32>::new(device, &[1.0; 64], 0.0);
        let keep = Guarded::<u32>::new(device, &[1; 64], 0);
        let error = pack_bitmask(device, &weight.matrix(2, 32), Some(&keep.matrix(2, 2))).unwrap_err();
        assert_eq!(error.to_string(), "keep: found [2, 2], expected [2, 1]: 32 columns a word of a weight [2, 32]");
        let packed = pack_bitmask(device, &weight.matrix(2, 32), None).expect("packs");
        let mut other = Guarded::<f32>::new(device, &[0.0; 400], 0.0);
        let inputs = Guarded::<f32>::new(device, &[0.0; 400], 0.0);
        let error = unpack_bitmask(device, &packed, &mut other.matrix_mut(32, 2)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "weight", .. }), "{error}");
        let error = multiply_bitmask(device, &packed, &inputs.matrix(9, 32), &mut other.matrix_mut(9, 2)).unwrap_err();
        assert_eq!(error.to_string(), "inputs: found [9, 32], expected [at most 8, 32]");
        let error = multiply_bitmask(device, &packed, &inputs.matrix(3, 32), &mut other.matrix_mut(2, 2)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "outputs", .. }), "{error}");
    });
}

// ---- 2:4

/// What the packed form of a kept group is: indices and values, as the kernel's file says.
fn packed_group<T: Number>(numbers: &[T], keep: &[bool]) -> (u32, [T; 2]) {
    let zero = T::from_f64(0.0);
    let kept: Vec<usize> = (0..numbers.len()).filter(|&i| keep[i]).collect();
    match *kept.as_slice() {
        [] => (0b1100, [zero, zero]),
        [3] => (0b1100, [zero, numbers[3]]),
        [i] => (i as u32 | 3 << 2, [numbers[i], zero]),
        [i, j] => (i as u32 | (j as u32) << 2, [numbers[i], numbers[j]]),
        _ => panic!("not 2:4"),
    }
}

fn check_two_four<T: Number + TwoFourInput>(device: &Device, layer: &Layer<T>, by_mask: bool, stride: usize) {
    let Layer { rows, columns, .. } = *layer;
    let what = format!("{} [{rows}, {columns}] every {stride}, by mask: {by_mask}", std::any::type_name::<T>());
    let words = columns.div_ceil(32);
    let source = if by_mask { layer.weight.clone() } else { layer.pruned() };
    let weight = upload(device, &source, columns, stride);
    let mask = Guarded::new(device, &spread(&layer.words(), words, words + 3, !0), !0);
    let mask = MatrixRef::with_stride(mask.view(), rows, words, words + 3).expect("a matrix");
    let packed = pack_two_four(device, &view(&weight, rows, columns, stride), by_mask.then_some(&mask)).expect("packs");

    let values = device.download(packed.values()).expect("a copy");
    let metadata = device.download(packed.metadata()).expect("a copy");
    let (padded_rows, padded_columns) = (rows.next_multiple_of(64), columns.next_multiple_of(64));
    assert_eq!((values.len(), metadata.len()), (padded_rows * padded_columns / 2, padded_rows * padded_columns / 32));
    for row in 0..padded_rows {
        for first in (0..padded_columns).step_by(4) {
            let (indices, pair) = if row < rows && first < columns {
                let range = row * columns + first..row * columns + (first + 4).min(columns);
                let keep: Vec<bool> =
                    range.clone().map(|at| layer.keep[at] && (by_mask || source[at].to_f64() != 0.0)).collect();
                packed_group(&source[range], &keep)
            } else {
                packed_group::<T>(&[], &[])
            };
            // The ISA's figures, by row and column: lane 4·(row % 8) + (column / 16) % 4, the upper half for rows 8 to 15.
            let part = row / 64 * (padded_columns / 64) + first / 64;
            let word = metadata[(part * 32 + row % 8 * 4 + first / 16 % 4) * 4 + row / 16 % 4];
            assert_eq!(word >> (row / 8 % 2 * 16 + first % 16) & 15, indices, "{what}: metadata of ({row}, {first})");
            let at = (row * padded_columns + first) / 2;
            assert_eq!(bytes(&values[at..at + 2]), bytes(&pair), "{what}: values of ({row}, {first})");
        }
    }
    let mut want = layer.pruned();
    if !by_mask {
        // By value, −0 is a zero like any other.
        want.iter_mut().filter(|value| value.to_f64() == 0.0).for_each(|value| *value = T::from_f64(0.0));
    }
    let got = written(device, (rows, columns, stride), |weight| unpack_two_four(device, &packed, weight));
    assert_eq!(bytes(&got), bytes(&want), "{what}: unpacked");
}

#[test]
fn two_four_is_as_the_isa_reads_it_and_unpacks() {
    on_device(|device| {
        for size in SIZES.into_iter().filter(|&size| size <= 200) {
            for (rows, columns) in [(size, 36), (17, size)] {
                let layer = Layer::<f16>::two_four(size as u64, rows, columns);
                check_two_four(device, &layer, size % 2 == 0, strides(columns)[size / 2 % 2]);
            }
        }
    });
    on_fast_device(|device| {
        for (rows, columns) in [(1000, 200), (200, 1000), (129, 129)] {
            let layer = Layer::<bf16>::two_four(7, rows, columns);
            for by_mask in [false, true] {
                strides(columns).into_iter().for_each(|stride| check_two_four(device, &layer, by_mask, stride));
            }
        }
    });
}

/// A layer in which every way to keep none, one or two of four stands in every group of a row.
fn every_pattern<T: Number>(columns: usize) -> Layer<T> {
    let patterns: Vec<u32> = (0u32..16).filter(|bits| bits.count_ones() <= 2).collect();
    let count = patterns.len();
    assert_eq!(count, 11);
    Layer::new(2, 8 * count, columns, |_, row, column| patterns[(row + column / 4) % count] >> (column % 4) & 1 == 1)
}

#[test]
fn two_four_takes_every_pattern_in_every_position() {
    on_device(|device| {
        for by_mask in [false, true] {
            check_two_four(device, &every_pattern::<f16>(128), by_mask, 128);
            check_two_four(device, &every_pattern::<bf16>(70), by_mask, 70);
        }
    });
    on_fast_device(|device| check_two_four_product::<f16, f32>(device, &every_pattern(128), 40, 128, 128));
}

#[test]
fn two_four_keeps_every_bit_of_special_numbers() {
    fn check<T: Number + TwoFourInput>(device: &Device) {
        let mut layer = Layer::<T>::two_four(3, 30, 72);
        for (at, value) in layer.weight.iter_mut().enumerate() {
            *value = T::SPECIAL[at % 5];
        }
        check_two_four(device, &layer, true, 72);
        check_two_four(device, &layer, false, 72);
    }
    on_device(|device| {
        check::<f16>(device);
        check::<bf16>(device);
    });
}

/// The first group with three, by row and then by column, whatever thread block finds one first.
#[test]
fn three_of_four_are_an_error_that_says_where() {
    on_device(|device| {
        let mut layer = Layer::<f16>::two_four(4, 140, 100);
        for (row, group) in [(139, 0), (70, 24), (70, 23), (133, 2)] {
            layer.keep[row * 100 + group * 4..][..3].fill(true);
        }
        let weight = upload(device, &layer.pruned(), 100, 100);
        let error = pack_two_four(device, &weight.matrix(140, 100), None).unwrap_err();
        assert_eq!(error, Error::NotTwoFour { row: 70, group: 23 });
        assert_eq!(error.to_string(), "row 70 keeps more than two of columns 92 to 95: not a 2:4 weight");
        let weight = upload(device, &layer.weight, 100, 100);
        let keep = Guarded::new(device, &layer.words(), 0);
        let error = pack_two_four(device, &weight.matrix(140, 100), Some(&keep.matrix(140, 4))).unwrap_err();
        assert_eq!(error, Error::NotTwoFour { row: 70, group: 23 });
    });
}

fn check_two_four_product<T, O>(
    device: &Device,
    layer: &Layer<T>,
    tokens: usize,
    input_stride: usize,
    output_stride: usize,
) where
    T: Number + TwoFourInput,
    O: Number + TwoFourOutput<T>,
{
    let Layer { rows, columns, .. } = *layer;
    let weight = upload(device, &layer.pruned(), columns, columns);
    let packed = pack_two_four(device, &weight.matrix(rows, columns), None).expect("packs");
    let inputs = numbers::<T>(tokens as u64, tokens * columns);
    let buffer = upload(device, &inputs, columns, input_stride);
    let got = written::<O>(device, (tokens, rows, output_stride), |outputs| {
        multiply_two_four(device, &packed, &view(&buffer, tokens, columns, input_stride), outputs)
    });
    let what = format!("[{tokens}, {columns}] · [{rows}, {columns}] every {input_stride}, {output_stride}");
    assert_product(&what, &got, &inputs, &layer.exact());
}

fn check_two_four_products<T, O>()
where
    T: Number + TwoFourInput,
    O: Number + TwoFourOutput<T>,
{
    on_device(|device| {
        // Aligned or not, few tokens or many; rows and columns at which tiles end.
        for size in [1, 31, 33, 64, 65, 200] {
            let layer = Layer::<T>::two_four(size as u64, size, 72);
            for rows_apart in [size, size.next_multiple_of(8)] {
                check_two_four_product::<T, O>(device, &layer, 33, 72, rows_apart);
            }
            let layer = Layer::<T>::two_four(size as u64, 24, size);
            strides(size).into_iter().for_each(|stride| check_two_four_product::<T, O>(device, &layer, 5, stride, 24));
        }
        check_two_four_product::<T, O>(device, &Layer::two_four(6, 264, 264), 129, 264, 264);
        // More slabs than stages.
        for columns in [712, 709] {
            check_two_four_product::<T, O>(device, &Layer::two_four(7, 8, columns), 9, columns, 8);
        }
    });
    on_fast_device(|device| {
        for tokens in SIZES {
            check_two_four_product::<T, O>(device, &Layer::two_four(5, 72, 136), tokens, 136, 72);
        }
        for size in SIZES {
            let layer = Layer::<T>::two_four(size as u64, size, 200);
            check_two_four_product::<T, O>(device, &layer, 40, 200, size.next_multiple_of(8));
            let layer = Layer::<T>::two_four(size as u64, 40, size);
            check_two_four_product::<T, O>(device, &layer, 33, size.next_multiple_of(8), 40);
        }
        check_two_four_product::<T, O>(device, &Layer::two_four(8, 520, 1000), 300, 1000, 520);
    });
}

#[test]
fn two_four_products_of_f16_match_the_reference() {
    check_two_four_products::<f16, f16>();
}

#[test]
fn two_four_products_of_bf16_match_the_reference() {
    check_two_four_products::<bf16, bf16>();
}

#[test]
fn two_four_products_into_f32_match_the_reference() {
    check_two_four_products::<f16, f32>();
    on_fast_device(|device| check_two_four_product::<bf16, f32>(device, &Layer::two_four(9, 72, 200), 40, 200, 72));
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
                let stored = packed_group(&[f16::ONE; 4], &group).0;
                let meets = stored & 3 == at as u32 % 4 || stored >> 2 == at as u32 % 4;
                assert_eq!(sparse[token * rows + row].is_finite(), token != 3 || !meets, "2:4 ({token}, {row})");
            }
        }
    });
}

#[test]
fn two_four_wrong_shapes_are_named() {
    on_device(|device| {
        let weight = Guarded::<f16>::new(device, &[f16::ZERO; 64], f16::ZERO);
        let keep = Guarded::<u32>::new(device, &[1; 64], 0);
        let error = pack_two_four(device, &weight.matrix(2, 32), Some(&keep.matrix(1, 1))).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "keep", .. }), "{error}");
        let packed = pack_two_four(device, &weight.matrix(2, 32), None).expect("packs");
        let mut other = Guarded::<f16>::new(device, &[f16::ZERO; 64], f16::ZERO);
        let error = unpack_two_four(device, &packed, &mut other.matrix_mut(32, 2)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "weight", .. }), "{error}");
        let error = multiply_two_four(device, &packed, &weight.matrix(2, 31), &mut other.matrix_mut(2, 2)).unwrap_err();
        assert_eq!(error.to_string(), "inputs: found [2, 31], expected [tokens, 32]");
        let error = multiply_two_four(device, &packed, &weight.matrix(2, 32), &mut other.matrix_mut(2, 3)).unwrap_err();
        assert_eq!(error.to_string(), "outputs: found [2, 3], expected [2, 2]");
    });
}

// ---- both

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
            check_bitmask(device, &Layer::<bf16>::unstructured(seed, rows, columns, density), by_mask, columns + gap);
            check_two_four(device, &Layer::<f16>::two_four(seed, rows, columns), by_mask, columns + gap);
        });
    }
}
