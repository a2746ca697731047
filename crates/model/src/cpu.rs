//! The forward pass on the processor, all cores, in f32; weights stay in the type they are stored in.

use std::ops::Range;

use checkpoint::Values;
use half::bf16;
use linalg::Element;
use rayon::prelude::*;

use crate::attention::{CausalAttention, HeadsOf};
use crate::forward::{Attend, Forward, LoadedLayer, LoadedNorm, Table};
use crate::layer::{multiply, not_finite, round};
use crate::norm::add;
use crate::simd::{max, sum_of_exponentials};
use crate::{Activation, Error, Weight};

/// Logits held at a time: 64 MiB.
const LOGITS: usize = (64 << 20) / 4;

/// The processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    rounds_inputs: bool,
}

impl Cpu {
    /// Linear layers whose weights are bf16 read their inputs rounded to bf16 too. Processors that multiply bf16 do so at
    /// twice the rate of f32; on all of them the results are the same but for the order of sums. What
    /// [`Block::stage_inputs`](crate::Block::stage_inputs) returns is rounded only as far as layers before it were.
    ///
    /// For a residual stream that is itself kept in bf16: what a norm makes of it is then known no better than that.
    pub fn rounding_inputs() -> Self {
        Self { rounds_inputs: true }
    }

    /// The inputs as all of these layers read them, if they have to be rounded for that.
    fn rounded(self, layers: &[LoadedLayer<'_, Self>], inputs: Values<'_>) -> Option<Vec<bf16>> {
        let wanted = self.rounds_inputs && layers.iter().all(|layer| matches!(layer.weight, Weight::Bf16(_)));
        match inputs {
            Values::F32(inputs) if wanted => Some(round(inputs)),
            _ => None,
        }
    }
}

impl Forward for Cpu {
    type Stream = Vec<f32>;
    type Inputs = Vec<f32>;
    type View<'i> = Values<'i>;
    type Outputs = Vec<f32>;
    type Vector = Vec<f32>;
    type Weight<'a> = Weight<'a>;
    type Error = Error;

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, Error> {
        Ok(values)
    }

    fn weight<'a>(&self, weight: Weight<'a>, _rows: usize, _columns: usize) -> Result<Weight<'a>, Error> {
        Ok(weight)
    }

    fn view(inputs: &Vec<f32>) -> Values<'_> {
        Values::F32(inputs)
    }

    fn look_up(&self, table: &Table<'_, Self>, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let width = table.columns;
        let mut rows = vec![0.0; tokens.len() * width];
        rows.par_chunks_mut(width).zip(tokens).with_min_len(16).for_each(|(row, &token)| {
            widen(table.values.values(), token as usize * width, row);
        });
        match not_finite(&rows, width) {
            None => Ok(rows),
            Some((token, column, value)) => {
                let position = tokens[token] as usize * width + column;
                Err(Error::WeightNotFinite { tensor: table.name.clone(), position, value })
            }
        }
    }

    fn add_positions(
        &self,
        x: &mut Vec<f32>,
        table: &Table<'_, Self>,
        offset: usize,
        length: usize,
    ) -> Result<(), Error> {
        let width = table.columns;
        let mut rows = vec![0.0; length * width];
        widen(table.values.values(), offset * width, &mut rows);
        if let Some((row, column, value)) = not_finite(&rows, width) {
            let position = (offset + row) * width + column;
            return Err(Error::WeightNotFinite { tensor: table.name.clone(), position, value });
        }
        x.par_chunks_mut(width).enumerate().for_each(|(token, row)| {
            add(row, &rows[token % length * width..][..width]);
        });
        Ok(())
    }

    fn part(&self, x: &Vec<f32>, columns: usize, tokens: Range<usize>) -> Result<Vec<f32>, Error> {
        Ok(x[tokens.start * columns..tokens.end * columns].to_vec())
    }

    fn put(&self, x: &mut Vec<f32>, columns: usize, first: usize, part: &Vec<f32>) -> Result<(), Error> {
        x[first * columns..][..part.len()].copy_from_slice(part);
        Ok(())
    }

    fn norm(&self, norm: &LoadedNorm<Vec<f32>>, x: &Vec<f32>) -> Result<Vec<f32>, Error> {
        let mut normed = x.clone();
        norm.apply(&mut normed);
        Ok(normed)
    }

    fn norm_in_place(&self, norm: &LoadedNorm<Vec<f32>>, x: &mut Vec<f32>) -> Result<(), Error> {
        norm.apply(x);
        Ok(())
    }

    fn inputs(&self, x: &Vec<f32>, _columns: usize) -> Result<Vec<f32>, Error> {
        Ok(x.clone())
    }

    fn apply(&self, layers: &[LoadedLayer<'_, Self>], inputs: Values<'_>) -> Result<Vec<Vec<f32>>, Error> {
        let rounded = self.rounded(layers, inputs);
        let inputs = rounded.as_deref().map_or(inputs, Values::Bf16);
        layers.iter().map(|layer| layer.apply(inputs)).collect()
    }

    fn project(&self, layer: &LoadedLayer<'_, Self>, inputs: Values<'_>) -> Result<Vec<f32>, Error> {
        layer.apply(inputs)
    }

    fn add(&self, x: &mut Vec<f32>, layers: &[LoadedLayer<'_, Self>], inputs: Values<'_>) -> Result<(), Error> {
        let rounded = self.rounded(layers, inputs);
        let inputs = rounded.as_deref().map_or(inputs, Values::Bf16);
        layers.iter().try_for_each(|layer| layer.add_to(x, inputs))
    }

    fn attend(&self, mut projected: Vec<Vec<f32>>, attend: &Attend<'_, Vec<f32>>) -> Result<Vec<f32>, Error> {
        let (d, length) = (attend.head_dim, attend.sequence_length);
        if attend.norms.is_some() || attend.rotation.is_some() {
            for (part, heads) in attend.heads[..2].iter().enumerate() {
                let norm = attend.norms.map(|norms| &norms[part]);
                let rows = projected[heads.layer].par_chunks_mut(heads.width);
                rows.enumerate().with_min_len(8).for_each(|(token, row)| {
                    for head in 0..heads.count {
                        let head = &mut row[heads.first + head * heads.step..][..d];
                        if let Some(norm) = norm {
                            norm.apply_to_row(head);
                        }
                        if let Some(rotation) = &attend.rotation {
                            rotation.turn(token % length, head);
                        }
                    }
                });
            }
        }
        let [queries, keys, values] = attend.heads.map(|heads| HeadsOf {
            data: &projected[heads.layer],
            row_stride: heads.width,
            first: heads.first,
            step: heads.step,
        });
        let [q, k, _] = attend.heads;
        let attention = CausalAttention {
            queries,
            keys,
            values,
            heads: q.count,
            kv_heads: k.count,
            head_dim: d,
            sequence_length: length,
            window: attend.window,
            slopes: attend.slopes.map_or(&[], Vec::as_slice),
        };
        let mut context = vec![0.0; projected[q.layer].len() / q.width * q.count * d];
        attention.run(&mut context);
        Ok(context)
    }

    fn activate(&self, activation: Activation, first: Vec<f32>, up: Option<Vec<f32>>) -> Result<Vec<f32>, Error> {
        let mut first = first;
        match up {
            Some(up) => activation.apply_gated(&mut first, &up),
            None => activation.apply(&mut first),
        }
        Ok(first)
    }

    fn losses(
        &self,
        head: &LoadedLayer<'_, Self>,
        inputs: Values<'_>,
        targets: &[Option<u32>],
    ) -> Result<Vec<f64>, Error> {
        Ok(token_losses(head, inputs, targets, LOGITS))
    }

    fn locate(error: Error, block: Option<usize>, tokens: usize) -> Error {
        let error = error.after_tokens(tokens);
        match block {
            Some(block) => error.in_block(block),
            None => error,
        }
    }
}

/// Some of a table's values, from `first` on, in f32.
fn widen(values: Values<'_>, first: usize, to: &mut [f32]) {
    let range = first..first + to.len();
    match values {
        Values::F32(values) => f32::widen(&values[range], to),
        Values::F16(values) => half::f16::widen(&values[range], to),
        Values::Bf16(values) => bf16::widen(&values[range], to),
    }
}

/// With a running log-sum-exp over parts of the vocabulary, so that no more than `held` logits exist at a time.
fn token_losses(head: &LoadedLayer<'_, Cpu>, inputs: Values<'_>, targets: &[Option<u32>], held: usize) -> Vec<f64> {
    #[derive(Clone, Copy)]
    struct Running {
        largest: f32,
        /// Σ exp(logit − largest).
        sum: f64,
        target: f32,
    }
    let (vocabulary, width) = (head.layer.rows, head.layer.columns);
    let part = (held / targets.len().max(1)).clamp(1, vocabulary);
    let mut logits = vec![0.0; targets.len() * part];
    let mut running = vec![Running { largest: f32::NEG_INFINITY, sum: 0.0, target: 0.0 }; targets.len()];
    for first in (0..vocabulary).step_by(part) {
        let last = vocabulary.min(first + part);
        let logits = &mut logits[..targets.len() * (last - first)];
        multiply(head.weight.values(), first..last, width, inputs, 0.0, logits);
        let rows = logits.par_chunks(last - first).zip(&mut running).zip(targets);
        rows.for_each(|((row, running), target)| {
            let largest = running.largest.max(max(row));
            let kept = f64::from(running.largest - largest).exp();
            running.sum = running.sum * kept + f64::from(sum_of_exponentials(row, largest));
            running.largest = largest;
            if let Some(target) = target.map(|target| target as usize).filter(|target| (first..last).contains(target)) {
                running.target = row[target - first];
            }
        });
    }
    let loss = |running: &Running| f64::from(running.largest) + running.sum.ln() - f64::from(running.target);
    // A token without a target still shows that a logit was not finite.
    let of = |(running, target): (&Running, &Option<u32>)| match loss(running) {
        loss if target.is_some() || !loss.is_finite() => loss,
        _ => 0.0,
    };
    running.iter().zip(targets).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layer;

    #[test]
    fn losses_do_not_depend_on_how_the_vocabulary_is_cut() {
        let noise = |count: u32, scale: f32| -> Vec<f32> {
            (0..count).map(|i| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0) * scale).collect()
        };
        let layer = Layer { name: "head".to_owned(), rows: 160, columns: 64 };
        let head = LoadedLayer::<Cpu> { layer, weight: Weight::F32(noise(160 * 64, 0.2).into()), bias: None };
        let targets: Vec<Option<u32>> = (0..20).map(|token| (token % 5 != 4).then_some(token * 8)).collect();
        let x = noise(20 * 64, 1.0);
        let whole = token_losses(&head, Values::F32(&x), &targets, LOGITS);
        assert!(whole.iter().zip(&targets).all(|(&loss, target)| (loss != 0.0) == target.is_some()));
        for part in [1, 7, 64, 159] {
            let cut = token_losses(&head, Values::F32(&x), &targets, part * targets.len());
            // A sum of 160 positive f32 terms, of which the logarithm is taken.
            testkit::assert_close("cut", &cut, &whole, |_| 160.0 * testkit::tolerance::UNIT_F32);
        }
    }
}
