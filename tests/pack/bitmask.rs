//! Bits, offsets and values against what their documentation says, and products with a few vectors.

use super::*;

/// Packs by mask or by value, checks every part of the packed form, and unpacks.
pub(crate) fn check_bitmask<T: Number>(device: &Device, layer: &Layer<T>, by_mask: bool, stride: usize) {
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
fn of_16_bits_is_as_documented_and_unpacks() {
    check_bitmask_sizes::<bf16>();
}

#[test]
fn of_32_bits_is_as_documented_and_unpacks() {
    check_bitmask_sizes::<f32>();
}

/// −0 is dropped by value and kept by mask; NaN keeps its payload.
#[test]
fn keeps_every_bit_of_special_numbers() {
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
fn products_of_f16_match_the_reference() {
    check_bitmask_products::<f16>();
}

#[test]
fn products_of_bf16_match_the_reference() {
    check_bitmask_products::<bf16>();
}

#[test]
fn products_of_f32_match_the_reference() {
    check_bitmask_products::<f32>();
}

#[test]
fn wrong_shapes_are_named() {
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
