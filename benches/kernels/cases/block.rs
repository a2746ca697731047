//! `kernels/block_attention.cu`.

use super::{compare, numbers};
use crate::case::{Case, Rate, Set};
use cudarc::driver::CudaSlice;
use half::f16;
use prune_cuda::{Attention, Device, Error, Heads, MatrixMut, MatrixRef, attention};
use testkit::generate::Random;

/// Attention of one sequence.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let shapes = if small { vec![(96, 2, 64)] } else { vec![(2048, 12, 64), (2048, 32, 128), (2048, 96, 128)] };
    shapes.into_iter().map(|(tokens, heads, head_dim)| attending(tokens, heads, head_dim)).collect()
}

fn attending(tokens: usize, heads: usize, head_dim: usize) -> Case {
    let (n, width) = (tokens as f64, (heads * head_dim) as f64);
    let cost = (Rate::Tensor, 4.0 * width * n * (n + 1.0) / 2.0, 4.0 * n * width * 2.0);
    let name = if head_dim == 64 { "block_attention_f16_64" } else { "block_attention_f16_128" };
    Case::new(name, format!("{tokens} tokens, {heads} heads of {head_dim}"), cost, move |device, seed| {
        let count = tokens * heads * head_dim;
        let host = [0, 1, 2]
            .map(|part| -> Vec<f16> { numbers(3 * seed + part, count).into_iter().map(f16::from_f32).collect() });
        let [q, k, v] = [0, 1, 2].map(|part| device.upload(&host[part]));
        let (inputs, output) = ([q?, k?, v?], device.zeros(count)?);
        Ok(Box::new(Attending { host, inputs, output, tokens, heads, head_dim }))
    })
}

struct Attending {
    host: [Vec<f16>; 3],
    inputs: [CudaSlice<f16>; 3],
    output: CudaSlice<f16>,
    tokens: usize,
    heads: usize,
    head_dim: usize,
}

impl Set for Attending {
    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let &mut Self { tokens, heads, head_dim, .. } = self;
        let width = heads * head_dim;
        let [q, k, v] = [0, 1, 2].map(|part| MatrixRef::new(self.inputs[part].slice(..), tokens, width));
        let matrices = [q?, k?, v?];
        let [q, k, v] = [0, 1, 2].map(|part| Heads { matrix: &matrices[part], first: 0, step: head_dim });
        let mut output = MatrixMut::new(self.output.slice_mut(..), tokens, width)?;
        let shape = Attention { heads, kv_heads: heads, head_dim, sequence_length: tokens, window: None, slopes: None };
        attention(device, &q, &k, &v, &mut output, &shape)
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let &mut Self { tokens, heads, head_dim, .. } = self;
        let mut random = Random::new(5);
        for _ in 0..64 {
            let (query, head, column) = (random.below(tokens), random.below(heads), random.below(head_dim));
            let row = |part: usize, token: usize| {
                self.host[part][(token * heads + head) * head_dim..][..head_dim].iter().map(|&x| f64::from(x))
            };
            let powers: Vec<f64> = (0..=query)
                .map(|key| row(0, query).zip(row(1, key)).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt())
                .map(f64::exp)
                .collect();
            let terms = powers.iter().enumerate().map(|(key, power)| {
                let v = f64::from(self.host[2][(key * heads + head) * head_dim + column]);
                (power * v, power * v.abs(), power)
            });
            let (sum, size, all) = terms.fold((0.0, 0.0, 0.0), |(a, b, c), (x, y, z)| (a + x, b + y, c + z));
            let at = (query * heads + head) * head_dim + column;
            let got = device.download(&self.output.slice(at..at + 1)).map_err(|error| error.to_string())?[0];
            // Weights in 11 bits, and so the result; scores of a few tens in f32 leave far less.
            let allowed = (3.0 * size + sum.abs()) / all / 2048.0 + 1e-7;
            compare(|| format!("query {query}, head {head}, column {column}"), got.into(), sum / all, allowed)?;
        }
        Ok(())
    }
}
