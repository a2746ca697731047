//! Values and metadata against what the ISA says, errors, and products on sparse tensor cores.

use super::*;

/// What the packed form of a kept group is: indices and values, as the kernel's file says.
pub(crate) fn packed_group<T: Number>(numbers: &[T], keep: &[bool]) -> (u32, [T; 2]) {
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

pub(crate) fn check_two_four<T: Number + TwoFourInput>(
    device: &Device,
    layer: &Layer<T>,
    by_mask: bool,
    stride: usize,
) {
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
fn is_as_the_isa_reads_it_and_unpacks() {
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
fn takes_every_pattern_in_every_position() {
    on_device(|device| {
        for by_mask in [false, true] {
            check_two_four(device, &every_pattern::<f16>(128), by_mask, 128);
            check_two_four(device, &every_pattern::<bf16>(70), by_mask, 70);
        }
    });
    on_fast_device(|device| check_two_four_product::<f16, f32>(device, &every_pattern(128), 40, 128, 128));
}

#[test]
fn keeps_every_bit_of_special_numbers() {
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
        for (rows, columns) in [(1, 72), (33, 8), (129, 136), (264, 64), (8, 1000)] {
            let layer = Layer::<T>::two_four(rows as u64, rows, columns);
            check_two_four_product::<T, O>(device, &layer, MANY, columns, rows.next_multiple_of(8));
        }
    });
}

/// So many tokens that even few rows make tiles for the wide kernel, the last of which is not full.
const MANY: usize = 39 * 128 + 5;

/// All checks of the emulated driver, on more slabs than the wide kernel has stages.
#[test]
fn many_tokens_pass_all_checks() {
    on_device(|device| {
        check_two_four_product::<bf16, bf16>(device, &Layer::two_four(6, 200, 200), MANY, 200, 200);
    });
}

/// Which kernel multiplies depends on the number of tokens; what it gives does not.
#[test]
fn few_tokens_among_many_give_the_same_bits() {
    on_fast_device(|device| {
        let (rows, columns, few) = (72, 328, 40);
        let weight = upload(device, &Layer::<bf16>::two_four(15, rows, columns).pruned(), columns, columns);
        let packed = pack_two_four(device, &weight.matrix(rows, columns), None).expect("packs");
        let inputs = upload(device, &numbers::<bf16>(16, MANY * columns), columns, columns);
        let [all, some] = [MANY, few].map(|tokens| {
            let inputs = MatrixRef::new(inputs.slice.slice(..tokens * columns), tokens, columns).expect("a matrix");
            written::<f32>(device, (tokens, rows, rows), |outputs| multiply_two_four(device, &packed, &inputs, outputs))
        });
        assert_eq!(bytes(&all[..few * rows]), bytes(&some));
    });
}

#[test]
fn products_of_f16_match_the_reference() {
    check_two_four_products::<f16, f16>();
}

#[test]
fn products_of_bf16_match_the_reference() {
    check_two_four_products::<bf16, bf16>();
}

#[test]
fn products_into_f32_match_the_reference() {
    check_two_four_products::<f16, f32>();
    on_fast_device(|device| check_two_four_product::<bf16, f32>(device, &Layer::two_four(9, 72, 200), 40, 200, 72));
}

#[test]
fn wrong_shapes_are_named() {
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
