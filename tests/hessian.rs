//! `kernels/hessian_accumulate.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use half::{bf16, f16};
use prune_cuda::{Device, Error, Input, MatrixMut, MatrixRef, accumulate, prepare};
use reference::Matrix;
use support::{Guarded, SIZES, on_device, on_fast_device, spread};
use testkit::generate::Random;
use testkit::tolerance;

/// What inputs are made of, here.
trait Number: Input + Copy + PartialEq + std::fmt::Debug + bytemuck::Pod {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// How far a sum over `tokens` products may be off, as a share of √(h_ii·h_jj).
    fn tolerance(tokens: usize) -> f64;
}

macro_rules! number {
    ($type:ty, $tolerance:path) => {
        impl Number for $type {
            fn from_f64(value: f64) -> Self {
                <$type>::from_f64(value)
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn tolerance(tokens: usize) -> f64 {
                $tolerance(tokens, 1.0, 1.0)
            }
        }
    };
}

number!(f16, tolerance::hessian_tolerance);
number!(bf16, tolerance::hessian_tolerance);

impl Number for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn tolerance(tokens: usize) -> f64 {
        tolerance::hessian_split_tolerance(tokens, 1.0, 1.0)
    }
}

fn numbers<T: Number>(seed: u64, count: usize) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..count).map(|_| T::from_f64(random.student_t4())).collect()
}

/// How a matrix lies: rows one after the other, or with a gap, which decides about alignment.
fn strides(columns: usize) -> [usize; 2] {
    [columns, columns.next_multiple_of(8) + 8]
}

/// Accumulates `inputs` into a Hessian of which nothing was written and compares the upper triangle; the lower one stays
/// what it was.
fn check<T: Number>(device: &Device, tokens: usize, columns: usize, stride: usize) {
    let values = numbers::<T>(tokens as u64 * 1001 + columns as u64, tokens * columns);
    let buffer = Guarded::new(device, &spread(&values, columns, stride, T::from_f64(f64::NAN)), T::from_f64(f64::NAN));
    let inputs = MatrixRef::with_stride(buffer.view(), tokens, columns, stride).expect("a matrix");
    let mut hessian = Guarded::poisoned(device, columns * stride, f32::NAN);
    let mut target = MatrixMut::with_stride(hessian.view_mut(), columns, columns, stride).expect("a matrix");
    accumulate(device, &inputs, &mut target, 1.0, 0.0).expect("accumulates");
    let got = hessian.download(device);

    let exact = Matrix::new(tokens, columns, values.iter().map(|&value| value.to_f64()).collect());
    let want = reference::hessian(&exact);
    let what = format!("{} [{tokens}, {columns}] every {stride}", std::any::type_name::<T>());
    for i in 0..columns {
        let row = &got[i * stride..][..stride];
        assert!(row[..i].iter().chain(&row[columns..]).all(|value| value.is_nan()), "{what}: beside the triangle");
        testkit::assert_close(&what, &row[i..columns], &want.row(i)[i..], |j| {
            T::tolerance(tokens) * (want[(i, i)] * want[(i + j, i + j)]).sqrt()
        });
    }
}

fn check_sizes<T: Number>() {
    on_device(|device| {
        for columns in SIZES.into_iter().filter(|&columns| columns <= 200) {
            for stride in strides(columns) {
                check::<T>(device, 33, columns, stride);
            }
        }
        for tokens in SIZES {
            check::<T>(device, tokens, 24, 24);
        }
        check::<T>(device, 129, 129, 136);
    });
    on_fast_device(|device| {
        check::<T>(device, 1000, 200, 200);
        check::<T>(device, 200, 1000, 1000);
    });
}

#[test]
fn f16_matches_the_reference_at_all_sizes() {
    check_sizes::<f16>();
}

#[test]
fn bf16_matches_the_reference_at_all_sizes() {
    check_sizes::<bf16>();
}

#[test]
fn f32_matches_the_reference_at_all_sizes() {
    check_sizes::<f32>();
}

/// No tokens: H ← β · H, and with β = 0 zeros.
#[test]
fn no_tokens_leave_what_beta_says() {
    on_device(|device| {
        let columns = 130;
        for beta in [0.0, 0.5] {
            let buffer = Guarded::<f16>::poisoned(device, 0, f16::NAN);
            let mut hessian = Guarded::new(device, &vec![3.0f32; columns * columns], f32::NAN);
            accumulate(device, &buffer.matrix(0, columns), &mut hessian.matrix_mut(columns, columns), 1.0, beta)
                .expect("accumulates");
            let got = hessian.download(device);
            for i in 0..columns {
                assert!((i..columns).all(|j| got[i * columns + j] == 3.0 * beta));
            }
        }
    });
}

/// Two halves added up are the whole, and the running mean is a mean.
#[test]
fn sums_and_means_run_over_calls() {
    on_device(|device| {
        let (tokens, columns) = (96, 72);
        let values = numbers::<f32>(5, tokens * columns);
        let buffer = Guarded::new(device, &values, f32::NAN);
        let want = reference::hessian(&Matrix::from_f32(tokens, columns, &values));
        for mean in [false, true] {
            let mut hessian = Guarded::poisoned(device, columns * columns, f32::NAN);
            let mut done = 0;
            for part in [32, 64] {
                let view = buffer.slice.slice(done * columns..(done + part) * columns);
                let inputs = MatrixRef::new(view, part, columns).expect("a matrix");
                let (alpha, beta) = match (mean, done) {
                    (false, 0) => (1.0, 0.0),
                    (false, _) => (1.0, 1.0),
                    (true, _) => (1.0 / (done + part) as f32, done as f32 / (done + part) as f32),
                };
                accumulate(device, &inputs, &mut hessian.matrix_mut(columns, columns), alpha, beta)
                    .expect("accumulates");
                done += part;
            }
            let share = if mean { 1.0 / tokens as f64 } else { 1.0 };
            let got = hessian.download(device);
            for i in 0..columns {
                let want_row: Vec<f64> = want.row(i)[i..].iter().map(|value| value * share).collect();
                testkit::assert_close("sum", &got[i * columns + i..][..columns - i], &want_row, |j| {
                    // Four more roundings: two products and two sums of the running mean.
                    f32::tolerance(tokens + 4) * share * (want[(i, i)] * want[(i + j, i + j)]).sqrt()
                });
            }
        }
    });
}

/// Few tiles and many tokens are split over thread blocks; the same input gives the same bits, in every order of those.
#[test]
fn the_same_inputs_give_the_same_bits() {
    let bits = std::sync::Mutex::new(Vec::new());
    on_device(|device| {
        let (tokens, columns) = (1100, 40);
        let buffer = Guarded::new(device, &numbers::<bf16>(7, tokens * columns), bf16::NAN);
        for _ in 0..2 {
            let mut hessian = Guarded::new(device, &vec![0.25f32; columns * columns], f32::NAN);
            accumulate(device, &buffer.matrix(tokens, columns), &mut hessian.matrix_mut(columns, columns), 1.0, 1.0)
                .expect("accumulates");
            bits.lock()
                .expect("bits")
                .push(hessian.download(device).iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        }
    });
    let bits = bits.into_inner().expect("bits");
    assert!(bits.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The largest f16 squares to 4.3e9, which f32 sums hold; what is not finite stays visible in its own row and column.
#[test]
fn extremes_are_exact_and_infinities_stay_in_their_column() {
    on_device(|device| {
        let (tokens, columns) = (40, 48);
        let values = vec![f16::MAX; tokens * columns];
        let buffer = Guarded::new(device, &values, f16::NAN);
        let mut hessian = Guarded::poisoned(device, columns * columns, f32::NAN);
        accumulate(device, &buffer.matrix(tokens, columns), &mut hessian.matrix_mut(columns, columns), 1.0, 0.0)
            .expect("accumulates");
        let want = 65504.0f64 * 65504.0 * tokens as f64;
        let got = hessian.download(device);
        for i in 0..columns {
            testkit::assert_close("largest", &got[i * columns + i..][..columns - i], &vec![want; columns - i], |_| {
                f16::tolerance(tokens) * want
            });
        }

        let mut values = numbers::<f16>(3, tokens * columns);
        values[5 * columns + 17] = f16::INFINITY;
        let buffer = Guarded::new(device, &values, f16::NAN);
        accumulate(device, &buffer.matrix(tokens, columns), &mut hessian.matrix_mut(columns, columns), 1.0, 0.0)
            .expect("accumulates");
        let got = hessian.download(device);
        for i in 0..columns {
            for j in i..columns {
                assert_eq!(got[i * columns + j].is_finite(), i != 17 && j != 17, "({i}, {j})");
            }
        }
        let prepared = prepare(device, &mut hessian.matrix_mut(columns, columns), 1, 0.01).expect("prepares");
        assert_eq!(device.download(&prepared.summaries).expect("a copy")[0].not_finite, 17);
        assert_eq!(device.download(&prepared.failed).expect("a copy"), [18]);
    });
}

/// Whatever bits a number of f32 has that is not one, splitting it does not make it one: not even those that arithmetic on a
/// GPU gives, all ones behind the sign, to which nothing may be added.
#[test]
fn what_is_not_finite_in_f32_stays_visible_whatever_its_bits() {
    on_device(|device| {
        let (tokens, columns) = (40, 48);
        for bits in [0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7fff_efff, 0x7f80_0001] {
            let mut values = numbers::<f32>(3, tokens * columns);
            values[5 * columns + 17] = f32::from_bits(bits);
            let buffer = Guarded::new(device, &values, f32::NAN);
            let mut hessian = Guarded::poisoned(device, columns * columns, f32::NAN);
            accumulate(device, &buffer.matrix(tokens, columns), &mut hessian.matrix_mut(columns, columns), 1.0, 0.0)
                .expect("accumulates");
            let got = hessian.download(device);
            for i in 0..columns {
                for j in i..columns {
                    assert_eq!(got[i * columns + j].is_finite(), i != 17 && j != 17, "{bits:x}: ({i}, {j})");
                }
            }
        }
    });
}

/// Dead columns and damping of a batch, against the reference.
#[test]
fn preparation_matches_the_reference() {
    on_device(|device| {
        for columns in SIZES {
            let batch = if columns == 1000 { 1 } else { 3 };
            let mut random = Random::new(columns as u64);
            let mut values: Vec<f32> = (0..batch * columns * columns).map(|_| random.uniform() as f32).collect();
            for matrix in values.chunks_mut(columns * columns) {
                random.choose(columns / 5, columns).into_iter().for_each(|j| matrix[j * columns + j] = 0.0);
            }
            let mut buffer = Guarded::new(device, &values, f32::NAN);
            let prepared =
                prepare(device, &mut buffer.matrix_mut(batch * columns, columns), batch, 0.01).expect("prepares");
            let (got, dead) = (buffer.download(device), device.download(&prepared.dead).expect("a copy"));
            let summaries = device.download(&prepared.summaries).expect("a copy");
            assert_eq!(device.download(&prepared.failed).expect("a copy"), vec![0; batch]);
            for (number, matrix) in values.chunks(columns * columns).enumerate() {
                let want = reference::damped(&Matrix::from_f32(columns, columns, matrix), f64::from(0.01f32));
                let own = &dead[number * columns..][..columns];
                assert!(own.iter().zip(&want.dead).all(|(&got, &want)| (got != 0) == want));
                assert_eq!(summaries[number].dead_columns as usize, want.dead.iter().filter(|&&dead| dead).count());
                assert_eq!(summaries[number].not_finite, -1);
                // damp is rounded once, and once more with the entry that it is added to.
                let got = &got[number * columns * columns..][..columns * columns];
                testkit::assert_close("damped", got, want.hessian.values(), |at| {
                    2.0 * tolerance::UNIT_F32 * want.hessian.values()[at].abs()
                });
            }
        }
    });
}

#[test]
fn wrong_shapes_are_named() {
    on_device(|device| {
        let inputs = Guarded::<f32>::new(device, &[0.0; 64], 0.0);
        let mut hessian = Guarded::<f32>::new(device, &[0.0; 64], 0.0);
        let error = accumulate(device, &inputs.matrix(4, 16), &mut hessian.matrix_mut(8, 8), 1.0, 0.0).unwrap_err();
        assert_eq!(error.to_string(), "hessian: found [8, 8], expected [16, 16] for inputs [4, 16]");
        let error = prepare(device, &mut hessian.matrix_mut(8, 8), 2, 0.01).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "hessians", .. }), "{error}");
        // 2^61 + 1 times 8 wraps to 8.
        let error = prepare(device, &mut hessian.matrix_mut(8, 8), (1 << 61) + 1, 0.01).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "hessians", .. }), "{error}");
        // 2^62 + 1 times four bytes wraps to four.
        let error = device.zeros::<f32>((1 << 62) + 1).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(MatrixRef::new(inputs.view(), 9, 8).is_err());
        assert!(MatrixRef::with_stride(inputs.view(), 8, 8, 7).is_err());
    });
}
