//! Rounding into a file's type: to nearest even, once, with every zero positive, and nothing that is not finite.

use checkpoint::{Dtype, Error, narrow};
use half::{bf16, f16};
use proptest::prelude::*;

/// The values that the bytes of `narrow` stand for.
fn stored(values: &[f32], dtype: Dtype) -> Result<Vec<f32>, Error> {
    let bytes = narrow(values, &dtype)?;
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    Ok(match dtype {
        Dtype::F16 => pairs.map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect(),
    })
}

/// `half`'s rounding of one value, with +0.0 for -0.0.
fn rounded(value: f32, dtype: Dtype) -> f32 {
    let rounded = match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    };
    if rounded == 0.0 { 0.0 } else { rounded }
}

const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

proptest! {
    /// Any bit patterns: the first without a finite counterpart is named, otherwise each is half's.
    #[test]
    fn rounds_as_half_does(bits in prop::collection::vec(any::<u32>(), 0..40), scale in any::<bool>(), pad in 0..5000_usize) {
        // Patterns all over f32 mostly overflow f16, so half of the cases keep the exponent small. What comes before
        // moves the values across the internal runs.
        let values: Vec<f32> = std::iter::repeat_n(0.5, pad)
            .chain(bits.iter().map(|&bits| f32::from_bits(if scale { bits & 0xc7ff_ffff } else { bits })))
            .collect();
        for dtype in TYPES {
            match values.iter().position(|&value| !rounded(value, dtype).is_finite()) {
                Some(first) => {
                    let error = narrow(&values, &dtype).unwrap_err();
                    let Error::NotFinite { position, value, dtype: named } = error else { panic!("{error:?}") };
                    prop_assert_eq!((position, value.to_bits(), named), (first, values[first].to_bits(), dtype));
                }
                None => {
                    let expected: Vec<_> = values.iter().map(|&value| rounded(value, dtype).to_bits()).collect();
                    let found: Vec<_> = stored(&values, dtype).unwrap().into_iter().map(f32::to_bits).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}

#[test]
fn ties_go_to_even() {
    // f16 keeps 10 bits of the fraction, bf16 7: halfway between neighbours, the even one wins; beside halfway, the
    // nearer one, also where the difference is the last bit of f32.
    let half = |steps: f32, bits: i32| 1.0 + steps * (-bits as f32).exp2();
    for (dtype, bits) in [(Dtype::F16, 10), (Dtype::BF16, 7)] {
        let values = [half(0.5, bits), half(1.5, bits), half(0.5, bits).next_up(), half(1.5, bits).next_down()];
        assert_eq!(
            stored(&values, dtype).unwrap(),
            [1.0, half(2.0, bits), half(1.0, bits), half(1.0, bits)],
            "{dtype}"
        );
    }
}

#[test]
fn every_zero_is_positive() {
    for dtype in TYPES {
        let bytes = narrow(&[-0.0, 0.0, -0.0], &dtype).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0) && bytes.len() == 3 * dtype.size(), "{dtype}: {bytes:?}");
    }
    // Below half of the smallest subnormal, f16 rounds to zero, from either side.
    assert_eq!(narrow(&[-1.0e-8, 1.0e-8], &Dtype::F16).unwrap(), [0; 4]);
}

#[test]
fn what_is_not_finite_is_named() {
    // The largest f16 is 65504; from 65520 on, nearest is infinity.
    assert_eq!(stored(&[65519.0], Dtype::F16).unwrap(), [65504.0]);
    for (value, dtype) in [
        (65520.0, Dtype::F16),
        (-1.0e6, Dtype::F16),
        (f32::MAX, Dtype::BF16),
        (f32::INFINITY, Dtype::F32),
        (f32::NEG_INFINITY, Dtype::BF16),
    ] {
        let error = narrow(&[0.0, 1.0, value, value], &dtype).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { position: 2, value: found, dtype: named } if found == value && named == dtype),
            "{error}"
        );
    }
    for dtype in TYPES {
        assert!(matches!(narrow(&[f32::NAN], &dtype), Err(Error::NotFinite { position: 0, .. })), "{dtype}");
    }
    let whole = Dtype::Other(safetensors::Dtype::I8);
    assert!(matches!(narrow(&[1.0], &whole), Err(Error::NarrowDtype { dtype }) if dtype == whole));
}
