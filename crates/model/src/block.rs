//! One decoder block: loaded, run stage by stage with whatever weights it has at the time, or as a whole.

use std::sync::Arc;

use checkpoint::Values;
use half::bf16;
use rayon::prelude::*;

use crate::attention::{CausalAttention, Heads, alibi_slopes};
use crate::description::{Positions, Residual};
use crate::layer::{Layer, LoadedLayer, Stage, Weight, round};
use crate::norm::LoadedNorm;
use crate::rope::Rotations;
use crate::{Description, Error};

/// Tokens that the feed-forward half of [`Block::forward`] takes at a time: its intermediate activations are the widest
/// of a block, and products gain nothing from more rows.
const FEED_FORWARD_TOKENS: usize = 512;

/// A decoder block. Activations are the residual stream x, f32 [tokens, hidden]; tokens are those of whole sequences,
/// one after another.
///
/// A pruner goes through the stages in order: [`stage_inputs`](Self::stage_inputs), new weights by
/// [`set_weight`](Self::set_weight), then, where the stage [`absorbs`](Self::absorbs), [`absorb`](Self::absorb) with the
/// same inputs. That leaves x as [`forward`](Self::forward) would with the new weights.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    pub(crate) index: usize,
    pub(crate) description: Arc<Description>,
    pub(crate) stages: Vec<Stage>,
    /// The layers of the stages, in the same order.
    pub(crate) layers: [Vec<LoadedLayer<'a>>; 4],
    pub(crate) norms: [LoadedNorm; 2],
    /// Those of heads of q and of k.
    pub(crate) qk_norms: Option<[LoadedNorm; 2]>,
    pub(crate) rotations: Rotations,
    pub(crate) rounds_inputs: bool,
}

impl<'a> Block<'a> {
    /// The number of the block in its model.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The four stages, in order.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Replaces the weight of a layer.
    ///
    /// # Panics
    /// If this block has no layer of this name, or the weight does not have its size.
    pub fn set_weight(&mut self, layer: &str, weight: Weight<'static>) {
        let Some(loaded) = self.layers.iter_mut().flatten().find(|loaded| loaded.layer.name == layer) else {
            panic!("block {} has no layer `{layer}`", self.index);
        };
        let Layer { rows, columns, .. } = loaded.layer;
        assert_eq!(weight.len(), rows * columns, "a weight [{rows}, {columns}] for `{layer}`");
        loaded.weight = weight;
    }

    /// From now on, linear layers whose weights are bf16 read their inputs rounded to bf16 too. Processors that multiply
    /// bf16 do so at twice the rate of f32; on all of them the results are the same but for the order of sums. What
    /// [`stage_inputs`](Self::stage_inputs) returns is rounded only as far as layers before it were.
    ///
    /// For a residual stream that is itself kept in bf16: what a norm makes of it is then known no better than that.
    pub fn round_inputs(&mut self) {
        self.rounds_inputs = true;
    }

    /// The inputs [tokens, width] of a stage, with the present weights of the stage before where that is in the same
    /// half. Stages 0 and 1 need the block's input x; stages 2 and 3 need x after stage 1 was absorbed.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If there is no such stage, or x is no whole number of sequences.
    pub fn stage_inputs(&self, stage: usize, x: &[f32], sequence_length: usize) -> Result<Vec<f32>, Error> {
        self.check_extent(x, sequence_length);
        match stage {
            0 => Ok(self.half_input(0, x)),
            1 => self.attention(&self.half_input(0, x), sequence_length),
            2 => Ok(self.half_input(1, x)),
            3 => self.feed_forward(&self.half_input(1, x)),
            _ => panic!("a block has stages 0 to 3, not {stage}"),
        }
    }

    /// Whether the output of a stage joins the residual stream.
    pub fn absorbs(stage: usize) -> bool {
        stage % 2 == 1
    }

    /// Updates x with the output of a stage that [`absorbs`](Self::absorbs), from the stage's inputs
    /// [tokens, width], in whatever type they were kept, and its present weight.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If the stage does not absorb, or x and inputs are of different numbers of tokens.
    pub fn absorb(&self, stage: usize, x: &mut [f32], inputs: Values<'_>) -> Result<(), Error> {
        assert!(Self::absorbs(stage), "the output of stage {stage} goes to stage {}", stage + 1);
        let norm = &self.norms[stage / 2];
        let residual = self.description.blocks.residual;
        if residual == Residual::Normed {
            norm.apply(x);
        }
        let rounded = self.rounded(stage, inputs);
        let inputs = rounded.as_deref().map_or(inputs, Values::Bf16);
        for layer in &self.layers[stage] {
            layer.add_to(x, inputs).map_err(|error| error.in_block(self.index))?;
        }
        if residual == Residual::NormAfter {
            norm.apply(x);
        }
        Ok(())
    }

    /// x ← the block's output for x.
    ///
    /// # Errors
    /// [`Error::ActivationNotFinite`] or [`Error::WeightNotFinite`] where a number is not finite.
    ///
    /// # Panics
    /// If x is no whole number of sequences.
    pub fn forward(&self, x: &mut [f32], sequence_length: usize) -> Result<(), Error> {
        let context = self.stage_inputs(1, x, sequence_length)?;
        self.absorb(1, x, Values::F32(&context))?;
        drop(context);
        let parts = x.chunks_mut(FEED_FORWARD_TOKENS * self.description.hidden);
        for (part, x) in parts.enumerate() {
            let inputs = self.feed_forward(&self.half_input(1, x));
            let absorbed = inputs.and_then(|inputs| self.absorb(3, x, Values::F32(&inputs)));
            absorbed.map_err(|error| error.after_tokens(part * FEED_FORWARD_TOKENS))?;
        }
        Ok(())
    }

    /// What the first stage of a half reads.
    fn half_input(&self, half: usize, x: &[f32]) -> Vec<f32> {
        match self.description.blocks.residual {
            Residual::NormBefore | Residual::Normed => self.norms[half].applied(x),
            Residual::NormAfter => x.to_vec(),
        }
    }

    /// The inputs of a stage as its layers read them, if they have to be rounded for that.
    fn rounded(&self, stage: usize, inputs: Values<'_>) -> Option<Vec<bf16>> {
        let wanted =
            self.rounds_inputs && self.layers[stage].iter().all(|layer| matches!(layer.weight, Weight::Bf16(_)));
        match inputs {
            Values::F32(inputs) if wanted => Some(round(inputs)),
            _ => None,
        }
    }

    /// From the inputs of stage 0 to those of stage 1.
    fn attention(&self, inputs: &[f32], sequence_length: usize) -> Result<Vec<f32>, Error> {
        let shape = &self.description.blocks.attention;
        let d = shape.head_dim;
        let mut projected = self.apply(0, inputs)?;
        // (matrix, column of head 0, columns from head to head, heads) of q, k and v.
        let counts = [shape.heads, shape.kv_heads, shape.kv_heads];
        let places: [(usize, usize, usize, usize); 3] = match projected.len() {
            1 => std::array::from_fn(|part| (0, part * d, 3 * d, counts[part])),
            _ => std::array::from_fn(|part| (part, 0, d, counts[part])),
        };
        let rotation = match &shape.positions {
            Positions::Rope(rope) => Some(self.rotations.get(rope, sequence_length)),
            Positions::Embedded | Positions::Alibi => None,
        };
        let row_stride = |matrix: usize| self.layers[0][matrix].layer.rows;
        if self.qk_norms.is_some() || rotation.is_some() {
            for (part, &(matrix, first, step, heads)) in places[..2].iter().enumerate() {
                let norm = self.qk_norms.as_ref().map(|norms| &norms[part]);
                let rows = projected[matrix].par_chunks_mut(row_stride(matrix));
                rows.enumerate().with_min_len(8).for_each(|(token, row)| {
                    for head in 0..heads {
                        let head = &mut row[first + head * step..][..d];
                        if let Some(norm) = norm {
                            norm.apply_to_row(head);
                        }
                        if let Some(rotation) = &rotation {
                            rotation.turn(token % sequence_length, head);
                        }
                    }
                });
            }
        }
        let [queries, keys, values] = places.map(|(matrix, first, step, _)| Heads {
            data: &projected[matrix],
            row_stride: row_stride(matrix),
            first,
            step,
        });
        let attention = CausalAttention {
            queries,
            keys,
            values,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: d,
            sequence_length,
            window: self.description.blocks.windows[self.index],
            slopes: match shape.positions {
                Positions::Alibi => alibi_slopes(shape.heads),
                Positions::Embedded | Positions::Rope(_) => Vec::new(),
            },
        };
        let mut context = vec![0.0; inputs.len() / self.stages[0].width * self.stages[1].width];
        attention.run(&mut context);
        Ok(context)
    }

    /// From the inputs of stage 2 to those of stage 3.
    fn feed_forward(&self, inputs: &[f32]) -> Result<Vec<f32>, Error> {
        let activation = self.description.blocks.activation;
        // Every architecture declares one layer here, or a gate and one.
        let mut outputs = self.apply(2, inputs)?.into_iter();
        let mut first = outputs.next().unwrap_or_default();
        match outputs.next() {
            Some(up) => activation.apply_gated(&mut first, &up),
            None => activation.apply(&mut first),
        }
        Ok(first)
    }

    /// The outputs of all layers of a stage.
    fn apply(&self, stage: usize, inputs: &[f32]) -> Result<Vec<Vec<f32>>, Error> {
        let rounded = self.rounded(stage, Values::F32(inputs));
        let inputs = rounded.as_deref().map_or(Values::F32(inputs), Values::Bf16);
        let outputs = self.layers[stage].iter().map(|layer| layer.apply(inputs));
        outputs.collect::<Result<_, _>>().map_err(|error| error.in_block(self.index))
    }

    fn check_extent(&self, x: &[f32], sequence_length: usize) {
        let sequence = sequence_length * self.description.hidden;
        assert!(
            sequence > 0 && x.len().is_multiple_of(sequence),
            "{} activations are no whole number of sequences [{sequence_length}, {}]",
            x.len(),
            self.description.hidden
        );
    }
}
