//! `kernels/hessian_accumulate.cu`.

use super::numbers;
use crate::case::{Case, Rate, Set};
use crate::rivals::{Factor, Rivals};
use cudarc::driver::CudaSlice;
use half::f16;
use prune_cuda::{Device, Error, Input, MatrixMut, MatrixRef, accumulate};
use testkit::generate::Random;

/// The Gram matrix of inputs in 16 bits and in f32.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let shapes = if small { vec![(96, 136)] } else { vec![(2048, 768), (2048, 4096), (2048, 12288), (2048, 49152)] };
    let half =
        shapes.iter().map(|&(tokens, columns)| hessian::<f16>("hessian_accumulate_f16", Rate::Tensor, tokens, columns));
    let single = shapes[..shapes.len().min(2)].iter();
    let single =
        single.map(|&(tokens, columns)| hessian::<f32>("hessian_accumulate_f32", Rate::Split, tokens, columns));
    half.chain(single).collect()
}

struct Hessian<T> {
    inputs: CudaSlice<T>,
    hessian: CudaSlice<f32>,
    host: Vec<f64>,
    tokens: usize,
    columns: usize,
}

fn hessian<T>(name: &'static str, rate: Rate, tokens: usize, columns: usize) -> Case
where
    T: Input + Factor + Number + 'static,
{
    let (t, c) = (tokens as f64, columns as f64);
    let cost = (rate, t * c * c, t * c * size_of::<T>() as f64 + c * c * 2.0);
    Case::new(name, format!("[{tokens}, {columns}]"), cost, move |device, seed| {
        let inputs: Vec<T> = numbers(seed, tokens * columns).into_iter().map(T::of).collect();
        Ok(Box::new(Hessian {
            host: inputs.iter().map(|&value| value.exact()).collect(),
            inputs: device.upload(&inputs)?,
            hessian: device.zeros(columns * columns)?,
            tokens,
            columns,
        }))
    })
}

/// A number as f64, and from f32.
trait Number: Copy {
    fn of(value: f32) -> Self;
    fn exact(self) -> f64;
}

impl Number for f16 {
    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn exact(self) -> f64 {
        self.into()
    }
}

impl Number for f32 {
    fn of(value: f32) -> Self {
        value
    }
    fn exact(self) -> f64 {
        self.into()
    }
}

impl<T: Input + Factor + Number> Set for Hessian<T> {
    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let Self { inputs, hessian, tokens, columns, .. } = self;
        let inputs = MatrixRef::new(inputs.slice(..), *tokens, *columns)?;
        accumulate(device, &inputs, &mut MatrixMut::new(hessian.slice_mut(..), *columns, *columns)?, 1.0, 0.0)
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let Self { host, tokens, columns, .. } = self;
        let mut random = Random::new(1);
        for _ in 0..64 {
            let (i, j) = (random.below(*columns), random.below(*columns));
            let (i, j) = (i.min(j), i.max(j));
            let sum = |a: usize, b: usize| -> f64 {
                (0..*tokens).map(|token| host[token * *columns + a] * host[token * *columns + b]).sum()
            };
            let want = sum(i, j);
            let entry = self.hessian.slice(i * *columns + j..i * *columns + j + 1);
            let got = device.download(&entry).map_err(|error| error.to_string())?[0];
            let allowed = testkit::tolerance::hessian_split_tolerance(*tokens, sum(i, i), sum(j, j));
            let off = (f64::from(got) - want).abs();
            if off > allowed || off.is_nan() {
                return Err(format!("entry ({i}, {j}) is {got}, not {want}; {allowed:e} would be allowed"));
            }
        }
        Ok(())
    }

    fn run_rival(&mut self, device: &Device, rivals: &Rivals) -> Result<bool, Error> {
        rivals.gram(device, &self.inputs, &mut self.hessian, self.tokens, self.columns)
    }
}
