//! Weights come to a device while it works with others, and leave it again: under all checks, on streams that run late.
#![cfg(feature = "cuda")]

mod support;

use cuda::{Element, Gpu, Rows, Weight};
use emulator::options::Options;
use half::{bf16, f16};
use model::forward::LoadedLayer;
use model::{Forward, Layer};
use support::on_device;

const ROWS: usize = 24;
const COLUMNS: usize = 16;
const TOKENS: usize = 8;

/// Streams that run as late as they may, in an order drawn from the seed.
fn late(seed: u64) -> Options {
    Options { deferred: true, ..Options::checked(seed) }
}

/// Small whole numbers, of which f16 holds all sums of products here exactly.
fn numbers(first: usize, count: usize) -> Vec<f32> {
    (first..first + count).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
}

/// The linear layer of this number, [ROWS, COLUMNS] with a bias.
fn layer(gpu: &Gpu<f16>, number: usize) -> LoadedLayer<'static, Gpu<f16>> {
    let values: Vec<f16> = numbers(number, ROWS * COLUMNS).into_iter().map(f16::from_f32).collect();
    let weight = gpu.weight(model::Weight::F16(values.into()), ROWS, COLUMNS).expect("room");
    let bias = gpu.vector(numbers(3 * number, ROWS)).expect("room");
    LoadedLayer { layer: Layer { name: number.to_string(), rows: ROWS, columns: COLUMNS }, weight, bias: Some(bias) }
}

#[test]
fn layers_come_change_and_leave_beside_the_work() {
    const LAYERS: usize = 6;
    let x = numbers(2, TOKENS * COLUMNS);
    // Of each layer: its weight as it leaves, without its first row; and W·x + b.
    let expected: Vec<(Vec<f16>, Vec<f32>)> = (0..LAYERS)
        .map(|number| {
            let mut weight = numbers(number, ROWS * COLUMNS);
            weight[..COLUMNS].fill(0.0);
            let bias = numbers(3 * number, ROWS);
            let outputs = x.chunks(COLUMNS).flat_map(|x| {
                let product = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                weight.chunks(COLUMNS).zip(&bias).map(|(row, bias)| product(row) + bias).collect::<Vec<_>>()
            });
            let outputs = outputs.collect();
            (weight.into_iter().map(f16::from_f32).collect(), outputs)
        })
        .collect();
    for seed in 0..12 {
        on_device(&late(seed), |device| {
            let gpu = Gpu::<f16>::new(device.clone()).expect("cuBLAS");
            let x: Vec<f16> = x.iter().copied().map(f16::from_f32).collect();
            let inputs = Rows::new(device.upload(&x).expect("room"), TOKENS, COLUMNS).expect("a matrix");
            let mut present = layer(&gpu, 0);
            let mut left = Vec::new();
            for number in 1..=LAYERS {
                let next = std::thread::scope(|scope| {
                    let coming = scope.spawn(|| layer(&gpu, number));
                    // As pruning does: it writes to the weight, and the work goes on with that, before it leaves or after.
                    let values = present.weight.values_mut().expect("a weight that nobody else has");
                    device.stream().memset_zeros(&mut values.slice_mut(..COLUMNS)).expect("a fill");
                    let work = || gpu.project(&present, Gpu::view(&inputs)).expect("room");
                    let before = number.is_multiple_of(2).then(work);
                    let bytes = gpu.fetch(present.weight.values()).expect("room");
                    left.push((bytes, before.unwrap_or_else(work)));
                    coming.join().expect("no panic")
                });
                // Neither its way out nor the work with it need be over.
                present = next;
            }
            for ((bytes, outputs), (weight, expected)) in left.iter().zip(&expected) {
                assert_eq!(device.download(outputs.values()).expect("a copy"), *expected);
                let bytes = bytes.as_slice().expect("a copy");
                let left: Vec<f16> = bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
                assert_eq!(left, *weight);
            }
        });
    }
}

/// Loads weights of `length` numbers one after another in pieces of `piece`, and only then looks at them.
fn come_in_pieces<T: Element + PartialEq>(gpu: &Gpu<T>, length: usize, piece: usize) {
    // Thirds, which all types round.
    let weights: Vec<Vec<f32>> =
        (0..4).map(|first| (first..first + length).map(|i| i as f32 / 3.0).collect()).collect();
    let narrow = |values: &[f32]| {
        let mut narrow = vec![T::default(); length];
        T::narrow(values, &mut narrow);
        narrow
    };
    let gpu = gpu.with_pieces_of(piece);
    let load = |weight: model::Weight<'_>| gpu.weight(weight, 1, length).expect("room");
    let come = |weight: &Weight<T>| gpu.device().download(weight.values()).expect("a copy");
    let f32s: Vec<_> = weights.iter().map(|values| load(model::Weight::F32(values.into()))).collect();
    let bf16s: Vec<Vec<bf16>> =
        weights.iter().map(|values| values.iter().map(|&value| bf16::from_f32(value)).collect()).collect();
    let from_bf16s: Vec<_> = bf16s.iter().map(|values| load(model::Weight::Bf16(values.into()))).collect();
    for (weight, values) in f32s.iter().zip(&weights) {
        assert!(come(weight) == narrow(values), "f32, {length} numbers in pieces of {piece}");
    }
    for (weight, values) in from_bf16s.iter().zip(&bf16s) {
        let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        assert!(come(weight) == narrow(&values), "bf16, {length} numbers in pieces of {piece}");
    }
}

#[test]
fn weights_come_in_pieces_and_are_rounded_on_the_way() {
    for seed in 0..4 {
        on_device(&late(seed), |device| {
            let gpu = Gpu::<f16>::new(device.clone()).expect("cuBLAS");
            // Pieces that grow, that are a whole weight or more, and the numbers that are rounded together.
            for (length, piece) in [(371, 100), (371, 371), (371, 1000), (200, 100), (9000, 4500)] {
                come_in_pieces(&gpu, length, piece);
            }
            come_in_pieces(&Gpu::<f32>::new(device.clone()).expect("cuBLAS"), 371, 100);
        });
    }
}
