//! `kernels/block_norm.cu` and `kernels/block_rotary.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use half::{bf16, f16};
use prune_cuda::{
    Device, Error, HeadNorm, MatrixMut, MatrixRef, Norm, Rotary, Rotation, Rounds, normalize, normalize_in_place,
    rotate_in_place,
};
use support::{Guarded, SIZES, Value, on_device, on_fast_device, spread};
use testkit::generate::Random;
use testkit::tolerance::{norm_tolerance, rotation_tolerance, stored_tolerance};

fn numbers<T: Value>(seed: u64, count: usize, shift: f64) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..count).map(|_| T::of(random.normal() + shift)).collect()
}

fn exact<T: Value>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.exact()).collect()
}

fn check_norm<I: Value + Rounds<O>, O: Value>(
    device: &Device,
    rows: usize,
    columns: usize,
    gap: usize,
    centered: bool,
) {
    let values = numbers::<I>(columns as u64, rows * columns, 0.5);
    let (scale, shift) = (numbers::<f32>(1, columns, 1.0), numbers::<f32>(2, columns, 0.0));
    let stride = columns + gap;
    let buffer = Guarded::new(device, &spread(&values, columns, stride, I::of(f64::NAN)), I::of(f64::NAN));
    let inputs = MatrixRef::with_stride(buffer.view(), rows, columns, stride).expect("a matrix");
    let [scales, shifts] = [&scale, &shift].map(|vector| Guarded::new(device, vector, f32::NAN));
    let (scales, shifts) = (scales.view(), shifts.view());
    let epsilon = 1e-5;
    let norm = Norm { centered, epsilon, scale: &scales, shift: centered.then_some(&shifts) };
    let mut output = Guarded::poisoned(device, rows * stride, O::of(f64::NAN));
    let mut target = MatrixMut::with_stride(output.view_mut(), rows, columns, stride).expect("a matrix");
    normalize(device, &inputs, &mut target, &norm).expect("normalizes");
    let got = output.download(device);
    let reference = reference::Norm {
        centered,
        epsilon: epsilon.into(),
        scale: exact(&scale),
        shift: if centered { exact(&shift) } else { vec![] },
    };
    for (row, x) in values.chunks(columns).enumerate() {
        let x = exact(x);
        let want = reference::norm(&x, &reference);
        let got = &got[row * stride..][..stride];
        assert!(got[columns..].iter().all(|value| value.exact().is_nan()), "the gaps");
        let plain = reference::Norm { scale: vec![1.0; columns], shift: vec![], ..reference.clone() };
        let gains = reference::norm(&x, &plain);
        let size = x.iter().map(|x| x.abs()).sum::<f64>() / columns as f64;
        // Of the row's deviation, which the factor divides by.
        let mean = if centered { x.iter().sum::<f64>() / columns as f64 } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let factor = 1.0 / (square + f64::from(epsilon)).sqrt();
        let what = format!("[{rows}, {columns}] every {stride}, centered: {centered}");
        testkit::assert_close(&what, &exact(&got[..columns]), &want, |j| {
            let scale = f64::from(scale[j]).abs();
            let shift = reference.shift.get(j).copied().unwrap_or(0.0);
            let error = norm_tolerance(columns, gains[j].abs() * scale, size * factor * scale, shift);
            stored_tolerance(error, want[j], O::ROUNDING)
        });
    }
    // In place the same, where types allow.
    if std::any::TypeId::of::<I>() == std::any::TypeId::of::<O>() {
        let mut x = Guarded::new(device, &spread(&values, columns, stride, I::of(f64::NAN)), I::of(f64::NAN));
        let mut target = MatrixMut::with_stride(x.view_mut(), rows, columns, stride).expect("a matrix");
        normalize_in_place(device, &mut target, &norm).expect("normalizes");
        let bytes = |row: &[I]| bytemuck::cast_slice::<I, u8>(row).to_vec();
        for (row, same) in x.download(device).chunks(stride).zip(got.chunks(stride)) {
            assert_eq!(bytes(&row[..columns]), bytemuck::cast_slice::<O, u8>(&same[..columns]));
        }
    }
}

#[test]
fn norms_match_the_reference() {
    on_device(|device| {
        for columns in SIZES {
            check_norm::<f32, f16>(device, 2, columns, 0, true);
            check_norm::<f32, bf16>(device, 2, columns, 0, false);
        }
        for centered in [false, true] {
            check_norm::<f32, f32>(device, 3, 200, 4, centered);
            check_norm::<f16, f16>(device, 3, 200, 1, centered);
            check_norm::<bf16, bf16>(device, 3, 128, 8, centered);
            check_norm::<f16, f32>(device, 3, 128, 0, centered);
            check_norm::<bf16, f32>(device, 3, 33, 0, centered);
        }
    });
    on_fast_device(|device| {
        // More than the registers hold, aligned and not.
        check_norm::<f32, f16>(device, 2, 12288 + 1028, 0, true);
        check_norm::<f32, bf16>(device, 2, 3072 + 301, 0, true);
    });
}

/// Heads and what is done with them.
struct Case {
    heads: usize,
    head_dim: usize,
    length: usize,
    norm: bool,
    turns: bool,
}

fn check_rotation<T: Value>(device: &Device, case: &Case) {
    let &Case { heads, head_dim: d, length, norm, turns } = case;
    // Heads lie with a gap between them, after columns of something else.
    let (tokens, first, step) = (2 * length, 3, d + 5);
    let width = first + heads * step;
    let values = numbers::<T>(d as u64, tokens * width, 0.0);
    let mut random = Random::new(3);
    let angles: Vec<f64> = (0..length * d / 2).map(|_| random.uniform() * 7.0).collect();
    let [cosines, sines] =
        [f64::cos, f64::sin].map(|f| angles.iter().map(|&angle| f(angle) as f32).collect::<Vec<_>>());
    let scale = numbers::<f32>(4, d, 1.0);
    let [cosine_table, sine_table, scales] =
        [&cosines, &sines, &scale].map(|values| Guarded::new(device, values, f32::NAN));
    let (cosine_table, sine_table) = (cosine_table.matrix(length, d / 2), sine_table.matrix(length, d / 2));
    let scales = scales.view();
    let mut x = Guarded::new(device, &values, T::of(f64::NAN));
    let rotary = Rotary {
        heads,
        head_dim: d,
        first,
        step,
        sequence_length: length,
        norm: norm.then_some(HeadNorm { scale: &scales, epsilon: 1e-6 }),
        rotation: turns.then_some(Rotation { cosines: &cosine_table, sines: &sine_table }),
    };
    rotate_in_place(device, &mut x.matrix_mut(tokens, width), &rotary).expect("turns");
    let got = x.download(device);
    for token in 0..tokens {
        let row = |values: &[T]| values[token * width..][..width].to_vec();
        let (before, after) = (row(&values), row(&got));
        assert_eq!(before[..first], after[..first], "what is not of a head");
        for head in 0..heads {
            let at = first + head * step;
            assert_eq!(before[at + d..at + step], after[at + d..at + step], "what is not of a head");
            let mut x = exact(&before[at..at + d]);
            if norm {
                x = reference::rms_norm(&x, &exact(&scale), f64::from(1e-6f32));
            }
            let table = token % length * d / 2;
            let part = |values: &[f32]| exact(&values[table..table + d / 2]);
            let (cosines, sines) = match turns {
                true => (part(&cosines), part(&sines)),
                false => (vec![1.0; d / 2], vec![0.0; d / 2]),
            };
            let want = reference::rotate(&x, &cosines, &sines);
            testkit::assert_close(
                &format!("token {token}, head {head} of {d}"),
                &exact(&after[at..at + d]),
                &want,
                |j| {
                    let pair = j % (d / 2);
                    let size = (x[j] * cosines[pair]).abs() + (x[(j + d / 2) % d] * sines[pair]).abs();
                    stored_tolerance(rotation_tolerance(d, size), want[j], T::ROUNDING)
                },
            );
        }
    }
}

#[test]
fn heads_are_normalized_and_turned() {
    on_device(|device| {
        for head_dim in [2, 16, 62, 64, 66, 128, 256] {
            check_rotation::<f16>(device, &Case { heads: 3, head_dim, length: 5, norm: false, turns: true });
            check_rotation::<bf16>(device, &Case { heads: 2, head_dim, length: 3, norm: true, turns: true });
        }
        check_rotation::<f32>(device, &Case { heads: 1, head_dim: 64, length: 4, norm: true, turns: false });
        check_rotation::<f32>(device, &Case { heads: 5, head_dim: 32, length: 7, norm: true, turns: true });
    });
}

#[test]
fn what_is_not_finite_spreads_over_its_row_alone() {
    on_device(|device| {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = numbers::<f32>(7, 3 * 64, 0.0);
            values[64 + 9] = bad;
            let scale = Guarded::new(device, &[1.0f32; 64], f32::NAN);
            let scale = scale.view();
            let mut x = Guarded::new(device, &values, f32::NAN);
            let norm = Norm { centered: true, epsilon: 1e-5, scale: &scale, shift: None };
            normalize_in_place(device, &mut x.matrix_mut(3, 64), &norm).expect("normalizes");
            let got = x.download(device);
            assert!(got[64..128].iter().any(|value| value.is_nan()), "{bad}");
            assert!(got[..64].iter().chain(&got[128..]).all(|value| value.is_finite()), "{bad}");
        }
    });
}

#[test]
fn wrong_shapes_are_refused() {
    on_device(|device| {
        let buffer = Guarded::new(device, &[0.0f32; 256], 0.0);
        let mut output = Guarded::new(device, &[0.0f32; 256], 0.0);
        let short = buffer.slice.slice(..15);
        let norm = Norm { centered: false, epsilon: 0.0, scale: &short, shift: None };
        let error =
            normalize(device, &buffer.matrix(16, 16), &mut output.matrix_mut(16, 16), &norm).expect_err("short");
        assert_eq!(error.to_string(), "scale: found 15, expected 16: one for each column");
        let error = normalize(device, &buffer.matrix(16, 16), &mut output.matrix_mut(8, 16), &norm).expect_err("shape");
        assert_eq!(error.to_string(), "outputs: found [8, 16], expected [16, 16]");
        let table = buffer.matrix(2, 4);
        let good = Rotary {
            heads: 2,
            head_dim: 8,
            first: 0,
            step: 8,
            sequence_length: 2,
            norm: None,
            rotation: Some(Rotation { cosines: &table, sines: &table }),
        };
        for (rotary, want) in [
            (Rotary { head_dim: 7, ..good }, "columns of a head: found 7"),
            (Rotary { head_dim: 258, ..good }, "columns of a head: found 258"),
            (Rotary { heads: 3, ..good }, "x: found [16, 16]"),
            (Rotary { step: 4, ..good }, "x: found [16, 16]"),
            (Rotary { sequence_length: 4, ..good }, "cosines: found [2, 4]"),
            (Rotary { sequence_length: 3, ..good }, "the sequence length: found 3"),
        ] {
            let error = rotate_in_place(device, &mut output.matrix_mut(16, 16), &rotary).expect_err("refused");
            assert!(matches!(error, Error::Shape { .. }) && error.to_string().contains(want), "{error}");
        }
    });
}
