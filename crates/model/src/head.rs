//! From the output of the last block to logits, and to the loss without ever holding all logits.

use checkpoint::Values;

use crate::forward::{Forward, LoadedLayer, LoadedNorm};
use crate::layer::{Layer, multiply, not_finite};
use crate::{Cpu, Error, Model, Weight};

/// What follows the last block.
#[derive(Clone)]
pub struct Head<'a, F: Forward = Cpu> {
    forward: F,
    hidden: usize,
    norm: Option<LoadedNorm<F::Vector>>,
    projection: Option<LoadedLayer<'a, F>>,
    /// [vocabulary, width].
    logits: LoadedLayer<'a, F>,
    /// The same as it is stored.
    stored: Weight<'a>,
}

impl<'a> Model<'a> {
    /// Loads what follows the last block.
    ///
    /// # Errors
    /// [`Error::WeightNotFinite`] for a norm with NaN or infinity; if there is no room.
    pub fn head<F: Forward>(&self, forward: &F) -> Result<Head<'a, F>, F::Error> {
        let (hidden, width) = (self.hidden(), self.description().embedding.width);
        let head = &self.description().head;
        let (stored, name) = self.head_weight()?;
        let layer = Layer { name: name.to_owned(), rows: self.description().vocabulary, columns: width };
        let projection = head.project_out.map(|name| self.projection(forward, name, width, hidden));
        Ok(Head {
            forward: forward.clone(),
            hidden,
            norm: head.norm.map(|norm| self.norm(forward, &self.name(norm), hidden)).transpose()?,
            projection: projection.transpose()?,
            logits: LoadedLayer {
                weight: forward.weight(stored.clone(), layer.rows, layer.columns)?,
                layer,
                bias: None,
            },
            stored,
        })
    }
}

impl<F: Forward> Head<'_, F> {
    /// For each sequence, Σ −ln p(token t+1 | tokens up to t) over its `sequence_length − 1` predicted tokens, from the
    /// output x [tokens, hidden] of the last block.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite; if there is no room.
    ///
    /// # Panics
    /// If x does not have a row for each token, or they are no whole number of sequences.
    pub fn losses(&self, x: &F::Stream, tokens: &[u32], sequence_length: usize) -> Result<Vec<f64>, F::Error> {
        assert!(sequence_length > 0 && tokens.len().is_multiple_of(sequence_length), "whole sequences");
        // The token that follows each one in its sequence.
        let target = |next: usize| (!next.is_multiple_of(sequence_length)).then(|| tokens[next]);
        let targets: Vec<Option<u32>> = (1..=tokens.len()).map(target).collect();
        let inputs = self.inputs(x)?;
        let terms = self.forward.losses(&self.logits, F::view(&inputs), &targets)?;
        if let Some(token) = terms.iter().position(|term| !term.is_finite()) {
            let column = targets[token].unwrap_or(0) as usize;
            return Err(
                not_finite_logit(&self.stored, &self.logits.layer.name, token, column, terms[token] as f32).into()
            );
        }
        Ok(terms.chunks(sequence_length).map(|terms| terms.iter().sum()).collect())
    }

    /// What the head multiplies [tokens, width].
    fn inputs(&self, x: &F::Stream) -> Result<F::Inputs, F::Error> {
        let normed = |x: &F::Stream| match &self.norm {
            Some(norm) => self.forward.norm(norm, x),
            None => self.forward.inputs(x, self.hidden),
        };
        match &self.projection {
            None => normed(x),
            Some(projection) => {
                let projected = self.forward.project(projection, F::view(&normed(x)?))?;
                self.forward.inputs(&projected, projection.layer.rows)
            }
        }
    }
}

impl Head<'_> {
    /// Logits [tokens, vocabulary] for the output x [tokens, hidden] of the last block. All of them at once: for small
    /// inputs, and to look at.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If x is no whole number of tokens.
    pub fn logits(&self, x: &Vec<f32>) -> Result<Vec<f32>, Error> {
        let Layer { ref name, rows: vocabulary, columns: width } = self.logits.layer;
        let inputs = self.inputs(x)?;
        let mut logits = vec![0.0; inputs.len() / width * vocabulary];
        multiply(self.stored.values(), 0..vocabulary, width, Values::F32(&inputs), 0.0, &mut logits);
        match not_finite(&logits, vocabulary) {
            None => Ok(logits),
            Some((token, column, value)) => Err(not_finite_logit(&self.stored, name, token, column, value)),
        }
    }
}

/// Blames the weight of the head if it is at fault.
fn not_finite_logit(weight: &Weight<'_>, name: &str, token: usize, column: usize, value: f32) -> Error {
    weight.check_finite(name).err().unwrap_or_else(|| Error::ActivationNotFinite {
        block: None,
        layer: name.to_owned(),
        token,
        column,
        value,
    })
}
