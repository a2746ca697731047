//! From the output of the last block to logits, and to the loss without ever holding all logits.

use checkpoint::Values;
use rayon::prelude::*;

use crate::layer::{multiply, not_finite};
use crate::simd::{max, sum_of_exponentials};
use crate::{Error, Model};

/// Logits held at a time: 64 MiB.
const LOGITS: usize = (64 << 20) / 4;
/// Tokens taken together: the head is read, and packed for the product, once for as many.
const TOKENS: usize = 4096;

impl Model<'_> {
    /// Logits [tokens, vocabulary] for the output x [tokens, hidden] of the last block. All of them at once: for small
    /// inputs, and to look at.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If x is no whole number of tokens.
    pub fn logits(&self, x: &[f32]) -> Result<Vec<f32>, Error> {
        let (inputs, width) = self.head_inputs(x)?;
        let vocabulary = self.description().vocabulary;
        let (weight, _) = self.head()?;
        let mut logits = vec![0.0; inputs.len() / width * vocabulary];
        multiply(weight.values(), 0..vocabulary, width, Values::F32(&inputs), 0.0, &mut logits);
        match not_finite(&logits, vocabulary) {
            None => Ok(logits),
            Some((token, column, value)) => Err(self.not_finite_logit(token, column, value)),
        }
    }

    /// For each sequence, Σ −ln p(token t+1 | tokens up to t) over its `sequence_length − 1` predicted tokens, from the
    /// output x [tokens, hidden] of the last block.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If x does not have a row for each token, or they are no whole number of sequences.
    pub fn losses(&self, x: &[f32], tokens: &[u32], sequence_length: usize) -> Result<Vec<f64>, Error> {
        let hidden = self.hidden();
        assert_eq!(x.len(), tokens.len() * hidden, "activations [{}, {hidden}]", tokens.len());
        assert!(sequence_length > 0 && tokens.len().is_multiple_of(sequence_length), "whole sequences");
        let mut losses = vec![0.0; tokens.len() / sequence_length];
        for first in (0..tokens.len()).step_by(TOKENS) {
            let last = tokens.len().min(first + TOKENS);
            // The token that follows each one in its sequence.
            let targets: Vec<Option<u32>> =
                (first + 1..=last).map(|next| (next % sequence_length != 0).then(|| tokens[next])).collect();
            let terms = self.token_losses(&x[first * hidden..last * hidden], &targets, LOGITS);
            let terms = terms.map_err(|error| error.after_tokens(first))?;
            for (token, term) in (first..last).zip(terms) {
                losses[token / sequence_length] += term;
            }
        }
        Ok(losses)
    }

    /// −ln p(target) for each token that has one, 0 for others, with a running log-sum-exp over parts of the
    /// vocabulary, so that no more than `held` logits exist at a time.
    fn token_losses(&self, x: &[f32], targets: &[Option<u32>], held: usize) -> Result<Vec<f64>, Error> {
        #[derive(Clone, Copy)]
        struct Running {
            largest: f32,
            /// Σ exp(logit − largest).
            sum: f64,
            target: f32,
        }
        let (inputs, width) = self.head_inputs(x)?;
        let vocabulary = self.description().vocabulary;
        let (weight, _) = self.head()?;
        let part = (held / targets.len()).clamp(1, vocabulary);
        let mut logits = vec![0.0; targets.len() * part];
        let mut running = vec![Running { largest: f32::NEG_INFINITY, sum: 0.0, target: 0.0 }; targets.len()];
        for first in (0..vocabulary).step_by(part) {
            let last = vocabulary.min(first + part);
            let logits = &mut logits[..targets.len() * (last - first)];
            multiply(weight.values(), first..last, width, Values::F32(&inputs), 0.0, logits);
            let rows = logits.par_chunks(last - first).zip(&mut running).zip(targets);
            rows.for_each(|((row, running), target)| {
                let largest = running.largest.max(max(row));
                let kept = f64::from(running.largest - largest).exp();
                running.sum = running.sum * kept + f64::from(sum_of_exponentials(row, largest));
                running.largest = largest;
                if let Some(target) =
                    target.map(|target| target as usize).filter(|target| (first..last).contains(target))
                {
                    running.target = row[target - first];
                }
            });
        }
        let loss = |running: &Running| f64::from(running.largest) + running.sum.ln() - f64::from(running.target);
        let finite = |(token, (running, target)): (usize, (&Running, &Option<u32>))| {
            let loss = loss(running);
            if !loss.is_finite() {
                return Err(self.not_finite_logit(token, target.unwrap_or(0) as usize, loss as f32));
            }
            Ok(if target.is_some() { loss } else { 0.0 })
        };
        running.iter().zip(targets).enumerate().map(finite).collect()
    }

    /// What the head multiplies [tokens, width], and its width.
    fn head_inputs(&self, x: &[f32]) -> Result<(Vec<f32>, usize), Error> {
        let (hidden, width) = (self.hidden(), self.description().embedding.width);
        assert!(x.len().is_multiple_of(hidden), "{} activations of {hidden} columns", x.len());
        let head = &self.description().head;
        let mut x = match head.norm {
            Some(norm) => self.norm(&self.name(norm), hidden)?.applied(x),
            None => x.to_vec(),
        };
        if let Some(projection) = head.project_out {
            x = self.projection(projection, width, hidden)?.apply(Values::F32(&x))?;
        }
        Ok((x, width))
    }

    fn not_finite_logit(&self, token: usize, column: usize, value: f32) -> Error {
        let blame = |(weight, name): (crate::Weight, &str)| {
            weight.check_finite(name).err().unwrap_or_else(|| Error::ActivationNotFinite {
                block: None,
                layer: name.to_owned(),
                token,
                column,
                value,
            })
        };
        self.head().map_or_else(|error| error, blame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_do_not_depend_on_how_the_vocabulary_is_cut() {
        let folder = testkit::paths::golden().join("models/llama");
        let checkpoint = checkpoint::Checkpoint::open(&folder).expect("a checkpoint");
        let model = Model::open(&checkpoint).expect("a model");
        let targets: Vec<Option<u32>> = (0..20).map(|token| (token % 5 != 4).then_some(token * 8)).collect();
        let x: Vec<f32> = (0..20 * 64).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0).collect();
        let whole = model.token_losses(&x, &targets, LOGITS).expect("finite losses");
        assert!(whole.iter().zip(&targets).all(|(&loss, target)| (loss != 0.0) == target.is_some()));
        for part in [1, 7, 64, 159] {
            let cut = model.token_losses(&x, &targets, part * targets.len()).expect("finite losses");
            // A sum of 160 positive f32 terms, of which the logarithm is taken.
            testkit::assert_close("cut", &cut, &whole, |_| 160.0 * testkit::tolerance::UNIT_F32);
        }
    }
}
