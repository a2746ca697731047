//! Every golden model on a device against the processor: what each stage reads, the residual stream, losses, perplexity.
#![cfg(feature = "cuda")]

mod support;

use std::path::Path;

use checkpoint::{Checkpoint, Values};
use cuda::{Element, Gpu, Rows, View};
use emulator::options::Options;
use half::{bf16, f16};
use model::{Block, Cpu, Forward, Model, Stage, evaluate};
use prune_cuda::Device;
use safetensors::Dtype;
use support::{folder, on_device, tokens};
use testkit::assert_close;
use testkit::generate::Random;
use testkit::golden::{model_names, rounded_model};
use testkit::tolerance::{forward_tolerance, rounded_forward_tolerance};

/// The widest product of the golden models: BLOOM's way down has 384 columns.
const COLUMNS: usize = 384;

/// Models of which perplexities are compared on many tokens: one for each way to tell positions.
const MANY_TOKENS: [&str; 3] = ["models/bloom", "models/opt", "models/qwen2"];

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
    let golden = name;
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
            if Stage::absorbs(stage) {
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

    // Roundings move the loss of each token at random, and their mean the less the more there are: with twice as many more tokens as
    // the square of the unit is larger, perplexities are closer in bf16 than in f16.
    let mut random = Random::new(3);
    let coarser = T::UNIT / testkit::tolerance::F16.0;
    let more = if coarser > 1.0 && MANY_TOKENS.contains(&golden) { 2 * (coarser * coarser) as usize } else { 1 };
    let vocabulary = model.description().vocabulary;
    let tokens: Vec<u32> = (0..more * tokens.len())
        .map(|at| tokens.get(at).copied().unwrap_or_else(|| random.below(vocabulary) as u32))
        .collect();
    let want = evaluate(&cpu, &model, &tokens, length, |_, _| ()).expect("an evaluation");
    let got = evaluate(&gpu, &model, &tokens, length, |_, _| ()).expect("an evaluation");
    let difference = (got.perplexity / want.perplexity - 1.0).abs();
    println!("{name}: perplexity {difference:.2e} apart");
    // What the project promises, and what few tokens leave of it.
    let promised = if more > 1 { 1e-3 } else { 1e-3 * coarser };
    assert!(difference < promised, "{name}: perplexity {} and {}", got.perplexity, want.perplexity);
    assert_eq!((got.windows, got.predicted), (want.windows, want.predicted));
}

#[test]
fn every_model_in_f32() {
    on_device(&Options::default(), |device| {
        let names = model_names();
        assert!(names.len() >= 18, "{names:?}");
        for name in names {
            check::<f32>(device, &name, &folder(&name));
        }
    });
}

#[test]
fn every_model_in_16_bits() {
    on_device(&Options::default(), |device| {
        for name in model_names() {
            check::<f16>(device, &name, rounded_model(&name, Dtype::F16).path());
            check::<bf16>(device, &name, rounded_model(&name, Dtype::BF16).path());
        }
    });
}

/// What a device makes of a golden model: the inputs of all stages, the residual stream and the losses, one after another.
fn everything<T: Rounding>(device: &Device, name: &str, folder: &Path) -> Vec<f64> {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let (tokens, length) = tokens(name);
    let gpu = Gpu::<T>::new(device.clone()).expect("cuBLAS");
    let mut x = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
    let mut all = Vec::new();
    for index in 0..model.blocks() {
        let block = model.block(&gpu, index).expect("a block");
        for stage in 0..4 {
            let inputs = block.stage_inputs(stage, &x, length).expect("inputs");
            all.extend(download(device, &inputs).into_iter().map(Into::<f64>::into));
            if Stage::absorbs(stage) {
                block.absorb(stage, &mut x, Gpu::<T>::view(&inputs)).expect("outputs");
            }
        }
    }
    all.extend(download(device, &x).into_iter().map(f64::from));
    all.extend(model.head(&gpu).expect("a load").losses(&x, &tokens, length).expect("finite losses"));
    all
}

/// With work deferred and in the order of a seed, and races and reads of what nobody wrote being looked for.
#[test]
fn runs_repeat_in_every_order_and_are_clean() {
    for (name, dtype) in [("models/mistral-sliding-window", Dtype::BF16), ("models/bloom", Dtype::F16)] {
        let folder = rounded_model(name, dtype);
        let runs: [std::cell::RefCell<Vec<f64>>; 2] = Default::default();
        for (run, seed) in runs.iter().zip([1, 2]) {
            on_device(&Options { log: false, ..Options::checked(seed) }, |device| {
                *run.borrow_mut() = match dtype {
                    Dtype::F16 => everything::<f16>(device, name, folder.path()),
                    _ => everything::<bf16>(device, name, folder.path()),
                };
            });
        }
        let [first, second] = runs.map(|run| run.into_inner().into_iter().map(f64::to_bits).collect::<Vec<_>>());
        assert!(!first.is_empty());
        assert_eq!(first, second, "{name}");
    }
}

/// Of more tokens than the second half of a block takes at a time.
#[test]
fn many_tokens_go_through_a_block_in_parts() {
    on_device(&Options::default(), |device| {
        let checkpoint = Checkpoint::open(&folder("models/qwen2")).expect("a checkpoint");
        let model = Model::open(&checkpoint).expect("a model");
        let (golden, length) = tokens("models/qwen2");
        let tokens: Vec<u32> = (0..30 * length).map(|at| golden[at * 7 % golden.len()]).collect();
        let (cpu, gpu) = (Cpu::default(), Gpu::<f32>::new(device.clone()).expect("cuBLAS"));
        let mut want = model.embedding(&cpu).expect("a load").embed(&tokens, length).expect("embeddings");
        let mut got = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
        let (on_cpu, on_gpu) = (model.block(&cpu, 0).expect("a block"), model.block(&gpu, 0).expect("a block"));
        on_cpu.forward(&mut want, tokens.len(), length).expect("finite activations");
        on_gpu.forward(&mut got, tokens.len(), length).expect("a forward pass");
        compare::<f32, _>("30 sequences", &download(device, &got), &want, 8, 5);
        // Logits of all tokens, so many at a time.
        let whole = model.head(&gpu).expect("a load").losses(&got, &tokens, length).expect("finite losses");
        for held in [0, 1000, 99 * tokens.len()] {
            let head = model.head(&gpu.holding_logits(held)).expect("a load");
            let cut = head.losses(&got, &tokens, length).expect("finite losses");
            // Sums of 160 positive f32 terms, of which the logarithm is taken, for each of a sequence's tokens.
            let unit = testkit::tolerance::UNIT_F32;
            assert_close("logits by parts", &cut, &whole, |at| (160.0 + whole[at]) * length as f64 * unit);
        }
    });
}

#[test]
fn inputs_may_lie_in_a_larger_buffer() {
    on_device(&Options::default(), |device| {
        let checkpoint = Checkpoint::open(&folder("models/llama")).expect("a checkpoint");
        let model = Model::open(&checkpoint).expect("a model");
        let (tokens, length) = tokens("models/llama");
        let gpu = Gpu::<f32>::new(device.clone()).expect("cuBLAS");
        let x = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
        let block = model.block(&gpu, 0).expect("a block");
        let inputs = block.stage_inputs(1, &x, length).expect("inputs");
        let absorbed = |view: View<'_, f32>| {
            let mut x = gpu.part(&x, model.hidden(), 0..tokens.len()).expect("a copy");
            block.absorb(1, &mut x, view).map(|()| download(device, &x))
        };
        let want = absorbed(Gpu::<f32>::view(&inputs)).expect("outputs");
        // One element further, no row begins where vectors do.
        for first in [0, 1, 64] {
            let values = [vec![f32::NAN; first], download(device, &inputs), vec![f32::NAN; 64]].concat();
            let buffer = device.upload(&values).expect("memory");
            let view = View::new(&buffer, first, inputs.tokens(), inputs.columns()).expect("a part");
            assert_eq!(absorbed(view).expect("outputs"), want);
            let error = View::new(&buffer, first + 65, inputs.tokens(), inputs.columns()).expect_err("too far");
            assert!(error.to_string().contains(&format!("from element {}", first + 65)), "{error}");
        }
        let fewer = View::new(inputs.values(), 0, length, inputs.columns()).expect("a sequence");
        let error = absorbed(fewer).expect_err("fewer tokens than x").to_string();
        assert!(error.contains(&format!("{} tokens", tokens.len())), "{error}");
    });
}

#[test]
fn a_weight_is_written_in_place() {
    on_device(&Options::default(), |device| {
        let checkpoint = Checkpoint::open(&folder("models/llama")).expect("a checkpoint");
        let model = Model::open(&checkpoint).expect("a model");
        let (tokens, length) = tokens("models/llama");
        let gpu = Gpu::<f16>::new(device.clone()).expect("cuBLAS");
        let x = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
        let mut block = model.block(&gpu, 0).expect("a block");
        let layer = block.stages()[0].layers[2].clone();
        assert_eq!(layer.name, "model.layers.0.self_attn.v_proj.weight");

        // It was stored in f32, and rounded on its way.
        let Values::F32(stored) = checkpoint.tensor(&layer.name).and_then(|tensor| tensor.values()).expect("v_proj")
        else {
            panic!("f32 weights")
        };
        let want: Vec<f16> = stored.iter().map(|&value| f16::from_f32(value)).collect();
        let weight = block.weight_mut(&layer.name);
        assert_eq!((weight.rows(), weight.columns()), (layer.rows, layer.columns));
        assert_eq!(device.download(weight.values()).expect("a copy"), want);

        let is_zero = |block: &Block<'_, Gpu<f16>>| {
            let inputs = block.stage_inputs(1, &x, length).expect("inputs");
            download(device, &inputs).iter().all(|&x| x == f16::ZERO)
        };
        assert!(!is_zero(&block));
        let clone = block.clone();
        assert!(block.weight_mut(&layer.name).values_mut().is_none(), "a clone reads it");
        drop(clone);
        let values = block.weight_mut(&layer.name).values_mut().expect("no clones");
        device.stream().memset_zeros(values).expect("zeros");
        assert!(is_zero(&block), "without values attention gives nothing");
    });
}

#[test]
fn what_goes_wrong_is_named() {
    let llama = folder("models/llama");
    let checkpoint = Checkpoint::open(&llama).expect("a checkpoint");
    let model = Model::open(&checkpoint).expect("a model");
    let (tokens, length) = tokens("models/llama");
    on_device(&Options { memory: 1 << 20, log: false, ..Options::default() }, |device| {
        let gpu = Gpu::<f32>::new(device.clone()).expect("cuBLAS");
        let many: Vec<u32> = tokens.iter().copied().cycle().take(200 * length).collect();
        let error = model.embedding(&gpu).expect("a load").embed(&many, length).expect_err("no room");
        assert!(matches!(error, cuda::Error::Device(prune_cuda::Error::OutOfMemory { .. })), "{error}");
        let error = model.embedding(&gpu).expect("a load").embed(&[1 << 20], 1).expect_err("no such token");
        assert!(matches!(error, cuda::Error::Model(model::Error::Token { token: 0x10_0000, .. })), "{error}");
    });
    // Finite weights whose products are not: nothing is said on the way, and the head says so.
    on_device(&Options::default(), |device| {
        let gpu = Gpu::<f32>::new(device.clone()).expect("cuBLAS");
        let x = model.embedding(&gpu).expect("a load").embed(&tokens, length).expect("embeddings");
        let mut values = download(device, &x);
        values[70] = f32::INFINITY;
        let mut x = Rows::new(device.upload(&values).expect("memory"), x.tokens(), x.columns()).expect("rows");
        model.block(&gpu, 0).expect("a block").forward(&mut x, tokens.len(), length).expect("nothing is waited for");
        let error = model.head(&gpu).expect("a load").losses(&x, &tokens, length).expect_err("not finite");
        assert!(matches!(error, cuda::Error::Model(model::Error::ActivationNotFinite { .. })), "{error}");
    });
}
