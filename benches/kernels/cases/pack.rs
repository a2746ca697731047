//! `kernels/pack_bitmask.cu`, `kernels/pack_two_four.cu`.

use super::{compare, numbers};
use crate::case::{Case, Rate, Set};
use cudarc::driver::CudaSlice;
use half::f16;
use prune_cuda::{
    Bitmask, Device, Error, MatrixMut, MatrixRef, TwoFour, multiply_bitmask, multiply_two_four, pack_bitmask,
    pack_two_four,
};
use testkit::generate::Random;

/// Products with packed weights: one token with a bitmask, many with 2:4.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let layers = if small { vec![(160, 192)] } else { vec![(4096, 4096), (11008, 4096), (12288, 12288)] };
    let tokens = if small { 40 } else { 2048 };
    let mut cases = Vec::new();
    for &(rows, columns) in &layers {
        let dense = (rows * columns) as f64;
        let cost = (Rate::Memory, dense, dense / 8.0 + dense / 2.0 * 2.0);
        let shape = format!("[{rows}, {columns}], one token");
        cases.push(Case::new("pack_bitmask_multiply_f16_x1", shape, cost, move |device, seed| {
            Ok(Box::new(Product::new(device, seed, rows, columns, 1)?))
        }));
    }
    for &(rows, columns) in &layers {
        let (dense, inputs) = ((rows * columns) as f64, (tokens * columns) as f64);
        let bytes = dense * 9.0 / 8.0 + 2.0 * (inputs + (tokens * rows) as f64);
        let shape = format!("[{rows}, {columns}], {tokens} tokens");
        let cost = (Rate::Sparse, 2.0 * dense * tokens as f64, bytes);
        cases.push(Case::new("pack_two_four_multiply_f16", shape, cost, move |device, seed| {
            Ok(Box::new(Product::new(device, seed, rows, columns, tokens)?))
        }));
    }
    cases
}

enum Packed {
    Bitmask(Bitmask<f16>),
    TwoFour(TwoFour<f16>),
}

/// Y = X·Qᵀ with every other weight of Q kept.
struct Product {
    weights: Vec<f16>,
    inputs_host: Vec<f16>,
    packed: Packed,
    inputs: CudaSlice<f16>,
    outputs: CudaSlice<f16>,
    rows: usize,
    columns: usize,
    tokens: usize,
}

impl Product {
    fn new(device: &Device, seed: u64, rows: usize, columns: usize, tokens: usize) -> Result<Self, Error> {
        let half = |values: Vec<f32>| -> Vec<f16> { values.into_iter().map(f16::from_f32).collect() };
        let mut weights = half(numbers(seed, rows * columns));
        weights.iter_mut().step_by(2).for_each(|weight| *weight = f16::ZERO);
        let inputs_host = half(numbers(seed + 1, tokens * columns));
        let on_device = device.upload(&weights)?;
        let matrix = MatrixRef::new(on_device.slice(..), rows, columns)?;
        let packed = match tokens {
            1 => Packed::Bitmask(pack_bitmask(device, &matrix, None)?),
            _ => Packed::TwoFour(pack_two_four(device, &matrix, None)?),
        };
        let (inputs, outputs) = (device.upload(&inputs_host)?, device.zeros(tokens * rows)?);
        Ok(Self { weights, inputs_host, packed, inputs, outputs, rows, columns, tokens })
    }
}

impl Set for Product {
    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let inputs = MatrixRef::new(self.inputs.slice(..), self.tokens, self.columns)?;
        let mut outputs = MatrixMut::new(self.outputs.slice_mut(..), self.tokens, self.rows)?;
        match &self.packed {
            Packed::Bitmask(packed) => multiply_bitmask(device, packed, &inputs, &mut outputs),
            Packed::TwoFour(packed) => multiply_two_four(device, packed, &inputs, &mut outputs),
        }
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let mut random = Random::new(4);
        for _ in 0..64 {
            let (token, row) = (random.below(self.tokens), random.below(self.rows));
            let weights = &self.weights[row * self.columns..(row + 1) * self.columns];
            let inputs = &self.inputs_host[token * self.columns..(token + 1) * self.columns];
            let terms = weights.iter().zip(inputs).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, scale) =
                terms.fold((0.0, 0.0), |(sum, scale): (f64, f64), term| (sum + term, scale + term.abs()));
            let at = token * self.rows + row;
            let got = device.download(&self.outputs.slice(at..at + 1)).map_err(|error| error.to_string())?[0];
            // The sum in f32, rounded to f16 once: half a unit of eleven bits.
            let allowed = testkit::tolerance::gemm_tolerance(self.columns, scale) + sum.abs() / 2048.0;
            compare(|| format!("output ({token}, {row})"), got.into(), sum, allowed)?;
        }
        Ok(())
    }
}
