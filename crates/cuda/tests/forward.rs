//! Every golden model on a device against the processor: what each stage reads, the residual stream, losses, perplexity.
#![cfg(feature = "cuda")]

mod support;

use std::path::Path;

use checkpoint::{Checkpoint, Values};
use cuda::{Element, Gpu, Rows, View};
use emulator::options::Options;
use half::{bf16, f16};
use model::{Block, Cpu, Forward, Model, evaluate};
use prune_cuda::Device;
use safetensors::Dtype;
use support::{folder, names, on_device, rounded, tokens};
use testkit::assert_close;
use testkit::tolerance::{forward_tolerance, rounded_forward_tolerance};

/// The widest product of the golden models: BLOOM's way down has 384 columns.
const COLUMNS: usize = 384;

/// A type of inputs, with what it rounds and how: see [`rounded_forward_tolerance`].
trait Rounding: Element + Into<f64> {
    /// The unit roundoff.
    const UNIT: f64;
    /// How many roundings lie between a block's input and the inputs of each stage, and the output.
    const ROUNDINGS: [usize; 5];
    /// Between the output of the last block and logits, at most.
    const LAST: usize;
}

/// Of f32 inputs none is rounded but q, k, v, the softmax and its product with v, to f16.
impl Rounding for f32 {
    const UNIT: f64 = testkit::tolerance::F16.0;
    const ROUNDINGS: [usize; 5] = [0, 5, 5, 5, 5];
    const LAST: usize = 0;
}

/// Inputs of each stage, and in attention q, k, v and the softmax.
impl Rounding for f16 {
    const UNIT: f64 = testkit::tolerance::F16.0;
    const ROUNDINGS: [usize; 5] = [1, 6, 7, 8, 8];
    const LAST: usize = 2;
}

/// Likewise.
impl Rounding for bf16 {
    const UNIT: f64 = testkit::tolerance::BF16.0;
    const ROUNDINGS: [usize; 5] = [1, 6, 7, 8, 8];
    const LAST: usize = 2;
}

/// The spread of numbers about their mean.
fn deviation(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

fn download<T: Element>(device: &Device, rows: &Rows<T>) -> Vec<T> {
    let mut values = device.download(rows.values()).expect("a copy");
    values.truncate(rows.tokens() * rows.columns());
    values
}

/// Compares activations with the processor's, after so many products and roundings. A number that is larger than the spread, as
/// products of a gate are, carries errors in proportion to itself.
fn compare<T: Rounding, A: Copy + Into<f64>>(what: &str, got: &[A], want: &[f32], products: usize, roundings: usize) {
    let share = forward_tolerance(products, COLUMNS) + rounded_forward_tolerance(roundings, T::UNIT);
    let spread = deviation(want);
    assert!(spread > 0.0, "{what}: all the same");
    let scale = |want: f32| spread + f64::from(want.abs());
    let shares = got.iter().zip(want).map(|(&got, &want)| (got.into() - f64::from(want)).abs() / scale(want));
    println!("{what}: {:.2e} of {share:.2e}", shares.fold(0.0, f64::max));
    assert_close(what, got, want, |at| share * scale(want[at]));
}

/// Runs a model on both, stage by stage and as a whole.
fn check<T: Rounding>(device: &Device, name: &str, folder: &Path) {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let (tokens, length) = tokens(name);
    let (cpu, gpu) = (Cpu::default(), Gpu::<T>::new(device.clone()).expect("cuBLAS"));
    let name = format!("{name} in {}", std::any::type_name::<T>());

    let mut want = model.embedding(&cpu).expect("a load").embed(&tokens, length).expect("embeddings");
    let mut got = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
    // One rounding, where the embedding is projected.
    let first = usize::from(T::LAST > 0);
    compare::<T, _>(&format!("{name}: embeddings"), &download(device, &got), &want, 2, first);
    for index in 0..model.blocks() {
        let on_cpu = model.block(&cpu, index).expect("a block");
        let on_gpu = model.block(&gpu, index).expect("a block");
        let mut whole = gpu.part(&got, model.hidden(), 0..tokens.len()).expect("a copy");
        on_gpu.forward(&mut whole, tokens.len(), length).expect("a forward pass");
        let before = first + index * T::ROUNDINGS[4];
        let products = 2 + 6 * (index + 1);
        for stage in 0..4 {
            let what = format!("{name}: block {index}, stage {stage}");
            let want_inputs = on_cpu.stage_inputs(stage, &want, length).expect("finite inputs");
            let got_inputs = on_gpu.stage_inputs(stage, &got, length).expect("inputs");
            let values = download(device, &got_inputs);
            compare::<T, _>(&what, &values, &want_inputs, products, before + T::ROUNDINGS[stage]);
            if Block::<Cpu>::absorbs(stage) {
                on_cpu.absorb(stage, &mut want, Values::F32(&want_inputs)).expect("finite outputs");
                on_gpu.absorb(stage, &mut got, Gpu::<T>::view(&got_inputs)).expect("outputs");
            }
        }
        let what = format!("{name}: after block {index}");
        compare::<T, _>(&what, &download(device, &got), &want, products, before + T::ROUNDINGS[4]);
        // The same operations in the same order.
        let bits = |rows| download::<f32>(device, rows).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&whole), "{what}: stage by stage and as a whole");
    }

    let head = model.head(&cpu).expect("a load");
    let want_losses = head.losses(&want, &tokens, length).expect("finite losses");
    let losses = model.head(&gpu).expect("a load").losses(&got, &tokens, length).expect("finite losses");
    let products = 4 + 6 * model.blocks();
    let roundings = first + model.blocks() * T::ROUNDINGS[4] + T::LAST;
    let share = forward_tolerance(products, COLUMNS) + rounded_forward_tolerance(roundings, T::UNIT);
    let spread = deviation(&head.logits(&want).expect("finite logits"));
    // Each of the terms is off by at most twice what a logit is.
    assert_close(&format!("{name}: losses"), &losses, &want_losses, |_| 2.0 * length as f64 * share * spread);

    let want = evaluate(&cpu, &model, &tokens, length, |_, _| ()).expect("an evaluation");
    let got = evaluate(&gpu, &model, &tokens, length, |_, _| ()).expect("an evaluation");
    let difference = (got.perplexity / want.perplexity - 1.0).abs();
    println!("{name}: perplexity {difference:.2e} apart");
    // What the project promises, of types that hold as much as f16; bf16 is three bits coarser.
    let promised = 1e-3 * T::UNIT / testkit::tolerance::F16.0;
    assert!(difference < promised, "{name}: perplexity {} and {}", got.perplexity, want.perplexity);
    assert_eq!((got.windows, got.predicted), (want.windows, want.predicted));
}

#[test]
fn every_model_in_f32() {
    on_device(&Options::default(), |device| {
        let names = names();
        assert!(names.len() >= 18, "{names:?}");
        for name in names {
            check::<f32>(device, &name, &folder(&name));
        }
    });
}

#[test]
fn every_model_in_16_bits() {
    on_device(&Options::default(), |device| {
        for name in names() {
            check::<f16>(device, &name, rounded(&name, Dtype::F16).path());
            check::<bf16>(device, &name, rounded(&name, Dtype::BF16).path());
        }
    });
}
