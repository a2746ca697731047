//! `kernels/block_norm.cu`, `kernels/block_rotary.cu`, `kernels/block_elementwise.cu`, `kernels/block_loss.cu`: what a block does
//! in the time that memory takes.

use super::{compare, numbers};
use crate::case::{Case, Rate, Set};
use cudarc::driver::CudaSlice;
use half::f16;
use prune_cuda::{
    Activation, Device, Error, Losses, MatrixMut, MatrixRef, Norm, Rotary, Rotation, activate, normalize,
    rotate_in_place,
};

/// Each at the width of LLaMA-7B: 2048 tokens.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let (tokens, hidden, wide, vocabulary) = if small { (24, 128, 344, 1000) } else { (2048, 4096, 11008, 32000) };
    vec![
        case(Kind::Norm, "block_norm_f32_f16", tokens, hidden, 6.0),
        case(Kind::Rotary, "block_rotary_f16", tokens, hidden, 4.0),
        case(Kind::Activate, "block_activate_f16", tokens, wide, 6.0),
        case(Kind::Loss, "block_loss_part", tokens, vocabulary, 4.0),
    ]
}

#[derive(Clone, Copy)]
enum Kind {
    Norm,
    Rotary,
    Activate,
    Loss,
}

/// Columns of a head.
const HEAD: usize = 64;

struct Rows {
    kind: Kind,
    rows: usize,
    columns: usize,
    host: Vec<f32>,
    /// The same in f32 and f16.
    single: CudaSlice<f32>,
    half: CudaSlice<f16>,
    output: CudaSlice<f16>,
    /// Ones, and for each row zeros for half a head.
    ones: CudaSlice<f32>,
    zeros: CudaSlice<f32>,
    losses: Option<Losses>,
}

fn case(kind: Kind, name: &'static str, rows: usize, columns: usize, bytes_each: f64) -> Case {
    let count = rows * columns;
    let cost = (Rate::Memory, 0.0, bytes_each * count as f64);
    Case::new(name, format!("[{rows}, {columns}]"), cost, move |device, seed| {
        // What f16 holds, so that both types say the same.
        let half: Vec<f16> = numbers(seed, count).into_iter().map(f16::from_f32).collect();
        let host: Vec<f32> = half.iter().map(|value| value.to_f32()).collect();
        Ok(Box::new(Rows {
            kind,
            rows,
            columns,
            single: device.upload(&host)?,
            host,
            half: device.upload(&half)?,
            output: device.upload(&half)?,
            ones: device.upload(&vec![1.0; columns.max(rows * HEAD / 2)])?,
            zeros: device.zeros(rows * HEAD / 2)?,
            losses: None,
        }))
    })
}

impl Set for Rows {
    fn reset(&mut self, device: &Device) -> Result<(), Error> {
        if matches!(self.kind, Kind::Rotary) {
            device.stream().memcpy_dtod(&self.half, &mut self.output)?;
        }
        self.losses = match self.kind {
            Kind::Loss => Some(Losses::new(device, &vec![Some(0); self.rows])?),
            _ => None,
        };
        Ok(())
    }

    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let &mut Self { kind, rows, columns, .. } = self;
        let single = MatrixRef::new(self.single.slice(..), rows, columns)?;
        let half = MatrixRef::new(self.half.slice(..), rows, columns)?;
        let mut output = MatrixMut::new(self.output.slice_mut(..), rows, columns)?;
        let scale = self.ones.slice(..);
        match kind {
            Kind::Norm => {
                let norm = Norm { centered: false, epsilon: 0.0, scale: &scale, shift: None };
                normalize(device, &single, &mut output, &norm)
            }
            Kind::Rotary => {
                // By a quarter of a turn, everywhere.
                let cosines = MatrixRef::new(self.zeros.slice(..), rows, HEAD / 2)?;
                let sines = MatrixRef::new(self.ones.slice(..), rows, HEAD / 2)?;
                let rotation = Some(Rotation { cosines: &cosines, sines: &sines });
                let rotary = Rotary {
                    heads: columns / HEAD,
                    head_dim: HEAD,
                    first: 0,
                    step: HEAD,
                    sequence_length: rows,
                    norm: None,
                    rotation,
                };
                rotate_in_place(device, &mut output, &rotary)
            }
            Kind::Activate => activate(device, Activation::Silu, (&half, None), Some((&half, None)), &mut output),
            Kind::Loss => match &mut self.losses {
                Some(losses) => losses.add(device, &single, 0),
                None => Ok(()),
            },
        }
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let (columns, host) = (self.columns, &self.host);
        if let Some(losses) = self.losses.take() {
            let losses = device.download(&losses.finish(device).map_err(text)?).map_err(text)?;
            for (row, loss) in losses.into_iter().enumerate().step_by(7) {
                let logits: Vec<f64> = host[row * columns..][..columns].iter().map(|&z| z.into()).collect();
                let want = reference::cross_entropy(&logits, 0);
                let allowed = testkit::tolerance::loss_tolerance(columns / 1024 + 2, 12.0);
                compare(|| format!("the loss of token {row}"), loss, want, allowed)?;
            }
            return Ok(());
        }
        let got = device.download(&self.output).map_err(text)?;
        for row in (0..self.rows).step_by(7) {
            let x: Vec<f64> = host[row * columns..][..columns].iter().map(|&x| x.into()).collect();
            let want: Vec<f64> = match self.kind {
                Kind::Norm => reference::rms_norm(&x, &vec![1.0; columns], 0.0),
                Kind::Rotary => {
                    let turn = |head: &[f64]| reference::rotate(head, &[0.0; HEAD / 2], &[1.0; HEAD / 2]);
                    x.chunks(HEAD).flat_map(turn).collect()
                }
                _ => x.iter().map(|&x| reference::activation(reference::Activation::Silu, x) * x).collect(),
            };
            for (column, (want, got)) in want.iter().zip(&got[row * columns..]).enumerate() {
                // A rounding to eleven bits; what f32 leaves is far below.
                let allowed = want.abs() / 2000.0 + 1e-6;
                compare(|| format!("({row}, {column})"), f64::from(*got), *want, allowed)?;
            }
        }
        Ok(())
    }
}
