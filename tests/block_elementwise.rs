//! `kernels/block_elementwise.cu` against the float64 reference.
#![cfg(feature = "cuda")]

mod support;

use half::{bf16, f16};
use prune_cuda::{Activation, Device, MatrixMut, MatrixRef, Rounds, activate, activate_in_place, add, convert, embed};
use support::{Guarded, SIZES, Value, on_device, spread};
use testkit::generate::Random;
use testkit::tolerance::{UNIT_F32, activation_tolerance, stored_tolerance};

fn numbers<T: Value>(seed: u64, count: usize) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..count).map(|_| T::of(3.0 * random.normal())).collect()
}

/// A matrix on the device with a gap of NaN behind each row.
struct Placed<T> {
    buffer: Guarded<T>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<T: Value> Placed<T> {
    fn new(device: &Device, values: &[T], columns: usize, gap: usize) -> Self {
        let stride = columns + gap;
        let nan = T::of(f64::NAN);
        let buffer = Guarded::new(device, &spread(values, columns, stride, nan), nan);
        Self { buffer, rows: values.len() / columns, columns, stride }
    }

    fn matrix(&self) -> MatrixRef<'_, T> {
        MatrixRef::with_stride(self.buffer.view(), self.rows, self.columns, self.stride).expect("a matrix")
    }

    fn matrix_mut(&mut self) -> MatrixMut<'_, T> {
        MatrixMut::with_stride(self.buffer.view_mut(), self.rows, self.columns, self.stride).expect("a matrix")
    }

    fn download(&self, device: &Device) -> Vec<T> {
        let all = self.buffer.download(device);
        let rows = all.chunks(self.stride);
        assert!(rows.clone().all(|row| row[self.columns..].iter().all(|value| value.exact().is_nan())), "the gaps");
        rows.flat_map(|row| row[..self.columns].to_vec()).collect()
    }
}

const ACTIVATIONS: [(Activation, reference::Activation); 5] = [
    (Activation::Identity, reference::Activation::Identity),
    (Activation::Relu, reference::Activation::Relu),
    (Activation::Silu, reference::Activation::Silu),
    (Activation::Gelu, reference::Activation::Gelu),
    (Activation::GeluTanh, reference::Activation::GeluTanh),
];

/// Bits 0 and 1 of `with`: whether there are biases, whether there is a gate.
fn check<I: Value + Rounds<O>, O: Value>(device: &Device, columns: usize, gap: usize, with: usize) {
    let (biased, gated) = (with % 2 == 1, with / 2 == 1);
    let rows = 3;
    let [x, up] = [1, 2].map(|seed| numbers::<I>(seed, rows * columns));
    let [bias, up_bias] = [3, 4].map(|seed| numbers::<f32>(seed, columns));
    let [x_there, up_there] = [&x, &up].map(|values| Placed::new(device, values, columns, gap));
    let [bias_there, up_bias_there] = [&bias, &up_bias].map(|values| Guarded::new(device, values, f32::NAN));
    let [bias_view, up_bias_view] = [bias_there.view(), up_bias_there.view()];
    let (bias_view, up_bias_view) = (biased.then_some(&bias_view), biased.then_some(&up_bias_view));
    for (activation, exact) in ACTIVATIONS {
        let mut output = Placed::new(device, &vec![O::of(f64::NAN); rows * columns], columns, gap);
        let (x_matrix, up_matrix) = (x_there.matrix(), up_there.matrix());
        let gate = gated.then_some((&up_matrix, up_bias_view));
        activate(device, activation, (&x_matrix, bias_view), gate, &mut output.matrix_mut()).expect("activates");
        let got = output.download(device);
        let sum = |values: &[I], bias: &[f32], at: usize| {
            values[at].exact() + if biased { f64::from(bias[at % columns]) } else { 0.0 }
        };
        let size = |values: &[I], bias: &[f32], at: usize| {
            values[at].exact().abs() + if biased { f64::from(bias[at % columns]).abs() } else { 0.0 }
        };
        let factor = |at: usize| if gated { sum(&up, &up_bias, at) } else { 1.0 };
        let want: Vec<f64> =
            (0..x.len()).map(|at| reference::activation(exact, sum(&x, &bias, at)) * factor(at)).collect();
        let got: Vec<f64> = got.into_iter().map(Value::exact).collect();
        testkit::assert_close(&format!("{activation:?} {columns} {gap} {with}"), &got, &want, |at| {
            let factor = if gated { size(&up, &up_bias, at) } else { 1.0 };
            stored_tolerance(activation_tolerance(size(&x, &bias, at), factor), want[at], O::ROUNDING)
        });
        if std::any::TypeId::of::<I>() == std::any::TypeId::of::<O>() {
            let mut own = Placed::new(device, &x, columns, gap);
            activate_in_place(device, activation, (&mut own.matrix_mut(), bias_view), gate).expect("activates");
            let own: Vec<f64> = own.download(device).into_iter().map(Value::exact).collect();
            assert_eq!(own, got, "in place");
        }
    }
}

#[test]
fn activations_match_the_reference() {
    on_device(|device| {
        for columns in SIZES {
            check::<f32, f16>(device, columns, 0, 1);
        }
        for with in 0..4 {
            check::<f32, f32>(device, 64, 4, with);
            check::<f32, bf16>(device, 33, 0, with);
            check::<f16, f16>(device, 64, 1, with);
            check::<bf16, bf16>(device, 64, 0, with);
            check::<f16, f32>(device, 40, 0, with);
            check::<bf16, f32>(device, 40, 4, with);
        }
    });
}

#[test]
fn nan_is_kept() {
    on_device(|device| {
        for (activation, _) in ACTIVATIONS {
            let mut x = Placed::new(device, &[f32::NAN, 1.0, -1.0, f32::NAN], 4, 0);
            activate_in_place(device, activation, (&mut x.matrix_mut(), None), None).expect("activates");
            let got = x.download(device);
            assert!(got[0].is_nan() && got[1] > 0.0 && got[2].is_finite() && got[3].is_nan(), "{activation:?} {got:?}");
        }
    });
}

fn check_residual<T: Value>(device: &Device, columns: usize, gap: usize) {
    let (stream, y) = (numbers::<f32>(1, 2 * columns), numbers::<T>(2, 2 * columns));
    let bias = numbers::<f32>(3, columns);
    let there = Guarded::new(device, &bias, f32::NAN);
    let bias_view = there.view();
    for biased in [false, true] {
        let mut x = Placed::new(device, &stream, columns, gap);
        let inputs = Placed::new(device, &y, columns, gap);
        add(device, &mut x.matrix_mut(), &inputs.matrix(), biased.then_some(&bias_view)).expect("adds");
        let bias = |at: usize| if biased { f64::from(bias[at % columns]) } else { 0.0 };
        let want: Vec<f64> = (0..y.len()).map(|at| f64::from(stream[at]) + (y[at].exact() + bias(at))).collect();
        testkit::assert_close("a residual", &x.download(device), &want, |at| {
            UNIT_F32 * (2.0 * (y[at].exact().abs() + bias(at).abs()) + f64::from(stream[at]).abs())
        });
    }
}

#[test]
fn residuals_are_added() {
    on_device(|device| {
        for (columns, gap) in [(1, 0), (33, 0), (64, 1), (128, 4), (1000, 0)] {
            check_residual::<f32>(device, columns, gap);
            check_residual::<f16>(device, columns, gap);
            check_residual::<bf16>(device, columns, gap);
        }
    });
}

fn check_embedding<T: Value>(device: &Device, columns: usize, gap: usize) {
    let (vocabulary, length, offset) = (11, 5, 2);
    let (table, places) = (numbers::<T>(1, vocabulary * columns), numbers::<T>(2, (length + offset) * columns));
    let tokens: Vec<u32> = vec![0, 10, 3, 3, 7, 1, 11, u32::MAX, 9, 2];
    let ids = Guarded::new(device, &tokens, 0);
    let [table_there, places_there] = [&table, &places].map(|values| Placed::new(device, values, columns, gap));
    for positions in [false, true] {
        let mut x = Placed::new(device, &vec![f32::NAN; tokens.len() * columns], columns, gap);
        let place_matrix = places_there.matrix();
        let learned = positions.then_some((&place_matrix, offset));
        embed(device, &ids.view(), &table_there.matrix(), learned, length, &mut x.matrix_mut()).expect("embeds");
        for (row, got) in x.download(device).chunks(columns).enumerate() {
            let id = tokens[row] as usize;
            if id >= vocabulary {
                assert!(got.iter().all(|value| value.is_nan()), "token {id}");
                continue;
            }
            let place = |j: usize| match positions {
                true => places[(row % length + offset) * columns + j].exact() as f32,
                false => 0.0,
            };
            let want: Vec<f32> = (0..columns).map(|j| table[id * columns + j].exact() as f32 + place(j)).collect();
            assert_eq!(got, want, "row {row}");
        }
    }
}

#[test]
fn tokens_and_positions_are_embedded() {
    on_device(|device| {
        for (columns, gap) in [(1, 0), (33, 0), (64, 1), (128, 4)] {
            check_embedding::<f32>(device, columns, gap);
            check_embedding::<f16>(device, columns, gap);
            check_embedding::<bf16>(device, columns, gap);
        }
    });
}

fn check_conversion<I: Value + Rounds<O>, O: Value>(device: &Device, columns: usize, gap: usize) {
    let values = numbers::<I>(1, 3 * columns);
    let convert = |values: &[I]| {
        let inputs = Placed::new(device, values, columns, gap);
        let mut output = Placed::new(device, &vec![O::of(0.0); values.len()], columns, gap);
        let first = convert(device, &inputs.matrix(), &mut output.matrix_mut()).expect("converts");
        (output.download(device), device.download(&first).expect("a copy")[0])
    };
    let (got, first) = convert(&values);
    assert_eq!(first, u64::MAX);
    // Both sides round once, to nearest even.
    assert_eq!(got, values.iter().map(|value| O::of(value.exact())).collect::<Vec<_>>());
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut values = values.clone();
        for at in [2 * columns, columns + columns / 2, 3 * columns - 1] {
            values[at] = I::of(bad);
        }
        assert_eq!(convert(&values).1, (columns + columns / 2) as u64, "{bad}");
    }
}

#[test]
fn conversions_round_and_report_what_is_not_finite() {
    on_device(|device| {
        for (columns, gap) in [(1, 0), (33, 0), (64, 1), (128, 4), (1000, 0)] {
            check_conversion::<f32, f16>(device, columns, gap);
            check_conversion::<f32, bf16>(device, columns, gap);
            check_conversion::<f16, f32>(device, columns, gap);
            check_conversion::<bf16, f32>(device, columns, gap);
        }
        // Finite, and too large for f16: 65520 is where rounding leaves it.
        let inputs = Placed::new(device, &[1.0f32, 65519.0, 65520.0, -1e6], 4, 0);
        let mut output = Placed::new(device, &[f16::ZERO; 4], 4, 0);
        let first = convert(device, &inputs.matrix(), &mut output.matrix_mut()).expect("converts");
        assert_eq!(device.download(&first).expect("a copy"), [2]);
        assert_eq!(output.download(device), [f16::ONE, f16::MAX, f16::INFINITY, f16::NEG_INFINITY]);
    });
}

#[test]
fn wrong_shapes_are_refused() {
    on_device(|device| {
        let buffer = Placed::new(device, &[0.0f32; 64], 16, 0);
        let mut output = Placed::new(device, &[0.0f32; 64], 8, 0);
        let error = add(device, &mut output.matrix_mut(), &buffer.matrix(), None).expect_err("refused");
        assert_eq!(error.to_string(), "inputs: found [4, 16], expected [8, 8]");
        let error = convert(device, &buffer.matrix(), &mut output.matrix_mut()).expect_err("refused");
        assert_eq!(error.to_string(), "outputs: found [8, 8], expected [4, 16]");
        let bias = Guarded::new(device, &[0.0f32; 7], 0.0);
        let bias = bias.view();
        let output_matrix = &mut output.matrix_mut();
        let activated = activate_in_place(device, Activation::Relu, (output_matrix, Some(&bias)), None);
        assert_eq!(activated.expect_err("refused").to_string(), "bias: found 7, expected 8: one for each column");
    });
}
