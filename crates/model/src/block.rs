//! One decoder block: loaded, run stage by stage with whatever weights it has at the time, or as a whole.

use std::sync::Arc;

use crate::description::{Positions, Residual};
use crate::forward::{Attend, Forward, Heads, LoadedLayer, LoadedNorm};
use crate::layer::Stage;
use crate::rope::Rotations;
use crate::{Cpu, Description};

/// Tokens that the feed-forward half of [`Block::forward`] takes at a time: its intermediate activations are the widest
/// of a block, and products gain nothing from more rows.
const FEED_FORWARD_TOKENS: usize = 512;

/// A decoder block. Activations are the residual stream x, f32 [tokens, hidden]; tokens are those of whole sequences,
/// one after another.
///
/// A pruner goes through the stages in order: [`stage_inputs`](Self::stage_inputs), new weights by
/// [`weight_mut`](Self::weight_mut), then, where the stage [`absorbs`](Stage::absorbs), [`absorb`](Self::absorb) with the
/// same inputs. That leaves x as [`forward`](Self::forward) would with the new weights.
#[derive(Clone)]
pub struct Block<'a, F: Forward = Cpu> {
    pub(crate) forward: F,
    pub(crate) index: usize,
    pub(crate) description: Arc<Description>,
    pub(crate) stages: Vec<Stage>,
    /// The layers of the stages, in the same order.
    pub(crate) layers: [Vec<LoadedLayer<'a, F>>; 4],
    pub(crate) norms: [LoadedNorm<F::Vector>; 2],
    /// Those of heads of q and of k.
    pub(crate) qk_norms: Option<[LoadedNorm<F::Vector>; 2]>,
    /// `[heads]`, of ALiBi.
    pub(crate) slopes: Option<F::Vector>,
    pub(crate) rotations: Rotations,
}

impl<'a, F: Forward> Block<'a, F> {
    /// The number of the block in its model.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The four stages, in order.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The weight of a layer, to be replaced by another of its shape.
    ///
    /// # Panics
    /// If this block has no layer of this name.
    pub fn weight_mut(&mut self, layer: &str) -> &mut F::Weight<'a> {
        match self.layers.iter_mut().flatten().find(|loaded| loaded.layer.name == layer) {
            Some(loaded) => &mut loaded.weight,
            None => panic!("block {} has no layer `{layer}`", self.index),
        }
    }

    /// The inputs [tokens, width] of a stage, with the present weights of the stage before where that is in the same
    /// half. Stages 0 and 1 need the block's input x; stages 2 and 3 need x after stage 1 was absorbed.
    ///
    /// # Errors
    /// [`ActivationNotFinite`](crate::Error::ActivationNotFinite) or [`WeightNotFinite`](crate::Error::WeightNotFinite) where a number is not finite and that is known; if there
    /// is no room.
    ///
    /// # Panics
    /// If there is no such stage, or x is no whole number of sequences.
    pub fn stage_inputs(&self, stage: usize, x: &F::Stream, sequence_length: usize) -> Result<F::Inputs, F::Error> {
        match stage {
            0 => self.half_input(0, x),
            1 => self.attention(self.half_input(0, x)?, sequence_length),
            2 => self.half_input(1, x),
            3 => self.feed_forward(self.half_input(1, x)?),
            _ => panic!("a block has stages 0 to 3, not {stage}"),
        }
    }

    /// Updates x with the output of a stage that [`absorbs`](Stage::absorbs), from the stage's inputs [tokens, width], in
    /// whatever type they were kept, and its present weight.
    ///
    /// # Errors
    /// As [`Block::stage_inputs`].
    ///
    /// # Panics
    /// If the stage does not absorb, or x and inputs are of different numbers of tokens.
    pub fn absorb(&self, stage: usize, x: &mut F::Stream, inputs: F::View<'_>) -> Result<(), F::Error> {
        assert!(Stage::absorbs(stage), "the output of stage {stage} goes to stage {}", stage + 1);
        let norm = &self.norms[stage / 2];
        let residual = self.description.blocks.residual;
        if residual == Residual::Normed {
            self.forward.norm_in_place(norm, x)?;
        }
        self.forward.add(x, &self.layers[stage], inputs).map_err(|error| self.locate(error))?;
        if residual == Residual::NormAfter {
            self.forward.norm_in_place(norm, x)?;
        }
        Ok(())
    }

    /// x ← the block's output for x, the residual stream of `tokens` tokens.
    ///
    /// # Errors
    /// As [`Block::stage_inputs`].
    ///
    /// # Panics
    /// If x is no whole number of sequences.
    pub fn forward(&self, x: &mut F::Stream, tokens: usize, sequence_length: usize) -> Result<(), F::Error> {
        let context = self.stage_inputs(1, x, sequence_length)?;
        self.absorb(1, x, F::view(&context))?;
        drop(context);
        let hidden = self.description.hidden;
        for first in (0..tokens).step_by(FEED_FORWARD_TOKENS) {
            let absorb = || {
                let mut part = self.forward.part(x, hidden, first..tokens.min(first + FEED_FORWARD_TOKENS))?;
                let inputs = self.stage_inputs(3, &part, 1)?;
                self.absorb(3, &mut part, F::view(&inputs))?;
                Ok(part)
            };
            let part = absorb().map_err(|error| F::locate(error, None, first))?;
            self.forward.put(x, hidden, first, &part)?;
        }
        Ok(())
    }

    /// What the first stage of a half reads.
    fn half_input(&self, half: usize, x: &F::Stream) -> Result<F::Inputs, F::Error> {
        match self.description.blocks.residual {
            Residual::NormBefore | Residual::Normed => self.forward.norm(&self.norms[half], x),
            Residual::NormAfter => self.forward.inputs(x, self.description.hidden),
        }
    }

    /// From the inputs of stage 0 to those of stage 1.
    fn attention(&self, inputs: F::Inputs, sequence_length: usize) -> Result<F::Inputs, F::Error> {
        let shape = &self.description.blocks.attention;
        let projected = self.apply(0, F::view(&inputs))?;
        drop(inputs);
        let fused = projected.len() == 1;
        let heads = |part: usize, count: usize| {
            let layer = if fused { 0 } else { part };
            let (first, step) = if fused { (part * shape.head_dim, 3 * shape.head_dim) } else { (0, shape.head_dim) };
            Heads { layer, width: self.layers[0][layer].layer.rows, first, step, count }
        };
        let attend = Attend {
            heads: [heads(0, shape.heads), heads(1, shape.kv_heads), heads(2, shape.kv_heads)],
            head_dim: shape.head_dim,
            sequence_length,
            window: self.description.blocks.windows[self.index],
            norms: self.qk_norms.as_ref(),
            rotation: match &shape.positions {
                Positions::Rope(rope) => Some(self.rotations.get(rope, sequence_length)),
                Positions::Embedded | Positions::Alibi => None,
            },
            slopes: self.slopes.as_ref(),
        };
        self.forward.attend(projected, &attend)
    }

    /// From the inputs of stage 2 to those of stage 3.
    fn feed_forward(&self, inputs: F::Inputs) -> Result<F::Inputs, F::Error> {
        let mut outputs = self.apply(2, F::view(&inputs))?.into_iter();
        drop(inputs);
        // Every architecture declares one layer here, or a gate and one.
        let Some(first) = outputs.next() else { unreachable!("a stage without layers") };
        self.forward.activate(self.description.blocks.activation, first, outputs.next())
    }

    /// The outputs of all layers of a stage.
    fn apply(&self, stage: usize, inputs: F::View<'_>) -> Result<Vec<F::Outputs>, F::Error> {
        self.forward.apply(&self.layers[stage], inputs).map_err(|error| self.locate(error))
    }

    fn locate(&self, error: F::Error) -> F::Error {
        F::locate(error, Some(self.index), 0)
    }
}
