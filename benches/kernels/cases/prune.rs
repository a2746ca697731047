//! `kernels/prune_select.cu`, `kernels/prune_sweep.cu`, `kernels/prune_trailing.cu`.

use super::{compare, numbers};
use crate::case::{Case, Rate, Set};
use cudarc::driver::CudaSlice;
use prune_cuda::{Block, Device, Error, MatrixMut, MatrixRef, Score, Selector, Stays, Swept, bring_errors, sweep};
use testkit::generate::Random;

const PANEL: usize = 128;

/// A panel in the middle of a layer: what must go, the sweep, and the update before it.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let rows = if small { vec![160] } else { vec![768, 4096, 12288, 49152] };
    let mut cases = Vec::new();
    for &rows in &rows {
        // Every pass reads the panel from L2; memory gives it once.
        let bytes = (rows * PANEL * 4 + rows * PANEL / 8) as f64;
        cases.push(Case::new(
            "prune_select",
            format!("[{rows}, 128]"),
            (Rate::Memory, 0.0, bytes),
            move |device, seed| Ok(Box::new(Panel::new(device, seed, rows, Work::Select)?)),
        ));
    }
    for (name, stays) in [("prune_sweep_given", Stays::Given), ("prune_sweep_4", Stays::Groups { keep: 2, group: 4 })] {
        for &rows in &rows {
            // Each weight meets the errors of the columns before it: 127 · 128 / 2 multiply-adds a row.
            let cost = (Rate::Single, (rows * PANEL * (PANEL - 1)) as f64, (rows * PANEL * 4 * 3) as f64);
            cases.push(Case::new(name, format!("[{rows}, 128]"), cost, move |device, seed| {
                Ok(Box::new(Panel::new(device, seed, rows, Work::Sweep(stays))?))
            }));
        }
    }
    let layers = if small { vec![(160, 256)] } else { vec![(768, 768), (4096, 4096), (12288, 12288)] };
    for (rows, before) in layers {
        let operations = 2.0 * (rows * PANEL * (before + PANEL)) as f64;
        let bytes = 4.0 * (rows * before + before * PANEL + 3 * rows * PANEL) as f64;
        let shape = format!("[{rows}, {before}] · [{before}, 128]");
        cases.push(Case::new("prune_trailing", shape, (Rate::Split, operations, bytes), move |device, seed| {
            Ok(Box::new(Update::new(device, seed, rows, before)?))
        }));
    }
    cases
}

#[derive(Clone, Copy)]
enum Work {
    Select,
    Sweep(Stays),
}

struct Panel {
    original: CudaSlice<f32>,
    weights: CudaSlice<f32>,
    inverse: CudaSlice<f32>,
    pivots: CudaSlice<f32>,
    keep: CudaSlice<u32>,
    losses: CudaSlice<f64>,
    delta: CudaSlice<f32>,
    selector: Selector,
    rows: usize,
    work: Work,
}

impl Panel {
    fn new(device: &Device, seed: u64, rows: usize, work: Work) -> Result<Self, Error> {
        let original = device.upload(&numbers(seed, rows * PANEL))?;
        // U_b with ones on its diagonal and small numbers above.
        let above = numbers(seed + 100, PANEL * PANEL);
        let entry = |i: usize, j: usize| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.05 * above[i * PANEL + j],
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.0,
        };
        let inverse: Vec<f32> = (0..PANEL * PANEL).map(|at| entry(at / PANEL, at % PANEL)).collect();
        Ok(Self {
            weights: device.zeros(rows * PANEL)?,
            original,
            inverse: device.upload(&inverse)?,
            pivots: device.upload(&[1.0; PANEL])?,
            // Every other weight stays.
            keep: device.upload(&vec![0x5555_5555; rows * PANEL / 32])?,
            losses: device.zeros(rows)?,
            delta: device.zeros(rows * PANEL)?,
            selector: Selector::new(device)?,
            rows,
            work,
        })
    }
}

impl Set for Panel {
    fn reset(&mut self, device: &Device) -> Result<(), Error> {
        device.stream().memset_zeros(&mut self.losses)?;
        Ok(device.stream().memcpy_dtod(&self.original, &mut self.weights)?)
    }

    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let Self { weights, inverse, pivots, keep, losses, delta, selector, rows, work, .. } = self;
        let rows = *rows;
        let pivots = MatrixRef::new(pivots.slice(..), PANEL, 1)?;
        let mut keep = MatrixMut::new(keep.slice_mut(..), rows, PANEL / 32)?;
        match *work {
            Work::Select => {
                let weights = MatrixRef::new(weights.slice(..), rows, PANEL)?;
                let count = (rows * PANEL / 2) as u64;
                selector.select(device, &weights, Score::Obs(&pivots), count, &mut keep, 0, None)
            }
            Work::Sweep(stays) => {
                let inverse = MatrixRef::new(inverse.slice(..), PANEL, PANEL)?;
                let block = Block { inverse: &inverse, pivots: &pivots, stays, grid: None };
                let mut weights = MatrixMut::new(weights.slice_mut(..), rows, PANEL)?;
                let (losses, delta) = (losses.slice_mut(..), MatrixMut::new(delta.slice_mut(..), rows, PANEL)?);
                let swept = Swept { keep, first: 0, losses, delta: Some(delta), errors: None };
                sweep(device, None, &mut weights, &block, swept)
            }
        }
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let bits = device.download(&self.keep).map_err(text)?;
        let kept: u32 = bits.iter().map(|word| word.count_ones()).sum();
        if kept as usize != self.rows * PANEL / 2 {
            return Err(format!("{kept} of {} weights stay, not half", self.rows * PANEL));
        }
        if matches!(self.work, Work::Select) {
            let scores: Vec<f32> = device.download(&self.weights).map_err(text)?.iter().map(|w| w * w).collect();
            let stays = |at: &usize| bits[at / 32] >> (at % 32) & 1 == 1;
            let (stay, go): (Vec<usize>, Vec<usize>) = (0..scores.len()).partition(stays);
            let smallest = stay.iter().map(|&at| scores[at]).fold(f32::INFINITY, f32::min);
            let largest = go.iter().map(|&at| scores[at]).fold(0.0, f32::max);
            return compare(
                || "the largest score that goes".into(),
                f64::from(largest.min(smallest)),
                f64::from(largest),
                0.0,
            );
        }
        // W − Q = E·U, from the left: e_j is what is left of column j, and nothing is left of a row.
        let mut random = Random::new(2);
        let inverse = device.download(&self.inverse).map_err(text)?;
        for _ in 0..16 {
            let row = random.below(self.rows);
            let range = row * PANEL..(row + 1) * PANEL;
            let download = |slice: &CudaSlice<f32>| device.download(&slice.slice(range.clone())).map_err(text);
            let (before, after) = (download(&self.original)?, download(&self.weights)?);
            let mut current: Vec<f64> = before.iter().map(|&w| w.into()).collect();
            for j in 0..PANEL {
                let stays = bits[(row * PANEL + j) / 32] >> (j % 32) & 1 == 1;
                let want = if stays { current[j] } else { 0.0 };
                let allowed = testkit::tolerance::sweep_tolerance(PANEL) * PANEL as f64;
                compare(|| format!("weight ({row}, {j})"), after[j].into(), want, allowed)?;
                let error = current[j] - want;
                for k in j..PANEL {
                    current[k] -= error * f64::from(inverse[j * PANEL + k]);
                }
            }
        }
        Ok(())
    }
}

struct Update {
    weights: CudaSlice<f32>,
    delta: CudaSlice<f32>,
    above: CudaSlice<f32>,
    inverse: CudaSlice<f32>,
    owed: CudaSlice<f32>,
    current: CudaSlice<f32>,
    rows: usize,
    before: usize,
}

impl Update {
    fn new(device: &Device, seed: u64, rows: usize, before: usize) -> Result<Self, Error> {
        // U_b = 1: what is owed arrives as it is.
        let inverse: Vec<f32> = (0..PANEL * PANEL).map(|at| f32::from(u8::from(at / PANEL == at % PANEL))).collect();
        Ok(Self {
            weights: device.upload(&numbers(seed, rows * PANEL))?,
            delta: device.upload(&numbers(seed + 1, rows * before))?,
            above: device.upload(&numbers(seed + 2, before * PANEL))?,
            inverse: device.upload(&inverse)?,
            owed: device.zeros(rows * PANEL)?,
            current: device.zeros(rows * PANEL)?,
            rows,
            before,
        })
    }
}

impl Set for Update {
    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let (rows, before) = (self.rows, self.before);
        bring_errors(
            device,
            &MatrixRef::new(self.weights.slice(..), rows, PANEL)?,
            (
                &MatrixRef::new(self.delta.slice(..), rows, before)?,
                &MatrixRef::new(self.above.slice(..), before, PANEL)?,
            ),
            &MatrixRef::new(self.inverse.slice(..), PANEL, PANEL)?,
            &mut MatrixMut::new(self.owed.slice_mut(..), rows, PANEL)?,
            &mut MatrixMut::new(self.current.slice_mut(..), rows, PANEL)?,
        )
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let above = device.download(&self.above).map_err(text)?;
        let mut random = Random::new(3);
        for _ in 0..16 {
            let (row, j) = (random.below(self.rows), random.below(PANEL));
            let delta = self.delta.slice(row * self.before..(row + 1) * self.before);
            let delta = device.download(&delta).map_err(text)?;
            let at = row * PANEL + j;
            let one = |slice: &CudaSlice<f32>| device.download(&slice.slice(at..at + 1)).map_err(text);
            let (weight, got) = (f64::from(one(&self.weights)?[0]), f64::from(one(&self.current)?[0]));
            let terms = delta.iter().enumerate().map(|(k, &d)| f64::from(d) * f64::from(above[k * PANEL + j]));
            let (sum, scale) =
                terms.fold((weight, weight.abs()), |(sum, scale), term| (sum + term, scale + term.abs()));
            let allowed = testkit::tolerance::split_gemm_tolerance(self.before + PANEL, scale);
            compare(|| format!("entry ({row}, {j})"), got, sum, allowed)?;
        }
        Ok(())
    }
}
