//! A model over a checkpoint: opened and checked as a whole, loaded one block at a time.

use std::sync::Arc;

use checkpoint::{Checkpoint, Dtype};

use crate::attention::alibi_slopes;
use crate::block::Block;
use crate::description::{Description, HEAD_WEIGHT, Linear, Norm, NormKind, Positions};
use crate::forward::{Forward, LoadedLayer, LoadedNorm, Table};
use crate::layer::{Layer, Stage, Weight};
use crate::rope::Rotations;
use crate::simd::first_not_finite;
use crate::{Cpu, Error};

/// A decoder-only transformer in a checkpoint.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    checkpoint: &'a Checkpoint,
    description: Arc<Description>,
    /// What the names of this checkpoint's tensors begin with.
    prefix: &'static str,
    /// The tensor that tokens are looked up in.
    embedding: String,
    /// The tensor that makes logits; the embedding itself where the two are tied.
    head: String,
    rotations: Rotations,
}

/// What precedes the first block.
pub struct Embedding<'a, F: Forward = Cpu> {
    forward: F,
    tokens: Table<'a, F>,
    projection: Option<LoadedLayer<'a, F>>,
    /// With the row of position 0.
    positions: Option<(Table<'a, F>, usize)>,
    norm: Option<LoadedNorm<F::Vector>>,
}

impl<F: Forward> Embedding<'_, F> {
    /// The input [tokens, hidden] of the first block.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary; [`Error::SequenceLength`] if there are fewer learned
    /// positions; [`Error::WeightNotFinite`] for an embedding with NaN or infinity, where that is known; if there is no room.
    ///
    /// # Panics
    /// If `tokens` is no whole number of sequences.
    pub fn embed(&self, tokens: &[u32], sequence_length: usize) -> Result<F::Stream, F::Error> {
        assert!(
            sequence_length > 0 && tokens.len().is_multiple_of(sequence_length),
            "{} tokens are no whole number of sequences of {sequence_length}",
            tokens.len()
        );
        let vocabulary = self.tokens.rows;
        if let Some((position, &token)) = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocabulary) {
            return Err(Error::Token { token, position, vocabulary }.into());
        }
        let mut x = self.forward.look_up(&self.tokens, tokens)?;
        if let Some(projection) = &self.projection {
            let inputs = self.forward.inputs(&x, self.tokens.columns)?;
            x = self.forward.project(projection, F::view(&inputs))?;
        }
        if let Some((table, offset)) = &self.positions {
            let most = table.rows - offset;
            if sequence_length > most {
                let expected = format!("at most {most}, for which the model has positions");
                return Err(Error::SequenceLength { found: sequence_length, expected }.into());
            }
            self.forward.add_positions(&mut x, table, *offset, sequence_length)?;
        }
        if let Some(norm) = &self.norm {
            self.forward.norm_in_place(norm, &mut x)?;
        }
        Ok(x)
    }
}

impl<'a> Model<'a> {
    /// Reads the configuration and checks that every tensor of the model is there, with the right shape and a type that
    /// can be computed with. No numbers are read.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown architecture or a value that makes no model; [`Error::Quantized`] for a quantized
    /// checkpoint; [`Error::Checkpoint`], [`Error::Shape`], [`Error::Dtype`] or [`Error::ExtraBlock`] for a tensor.
    pub fn open(checkpoint: &'a Checkpoint) -> Result<Self, Error> {
        let description = Description::of_config(checkpoint.folder().join("config.json"), checkpoint.config())?;
        let has = |name: &str| checkpoint.get(name).is_some();
        let Description { prefixes, blocks, embedding, head, .. } = &description;
        let marker = |prefix: &str| format!("{prefix}{}.0.{}.weight", blocks.name, blocks.stages[1][0].name);
        let prefix = prefixes.iter().copied().find(|prefix| has(&marker(prefix))).unwrap_or(prefixes[0]);
        let lookup = format!("{prefix}{}.weight", embedding.tokens);
        // Of two tied tensors a file may hold either one; where it holds both, transformers uses each for its own.
        let (embedding, head) = match (head.tied, has(&lookup), has(HEAD_WEIGHT)) {
            (true, false, true) => (HEAD_WEIGHT.to_owned(), HEAD_WEIGHT.to_owned()),
            (true, _, false) => (lookup.clone(), lookup),
            _ => (lookup, HEAD_WEIGHT.to_owned()),
        };
        let rotations = Rotations::default();
        let model = Self { checkpoint, description: description.into(), prefix, embedding, head, rotations };
        model.check_tensors()?;
        Ok(model)
    }

    /// What the model is made of.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The checkpoint that it reads.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The number of decoder blocks.
    pub fn blocks(&self) -> usize {
        self.description.blocks.windows.len()
    }

    /// Columns of the activations.
    pub fn hidden(&self) -> usize {
        self.description.hidden
    }

    /// The longest sequence that the model was made for: a hard limit with learned positions, a recommendation
    /// otherwise.
    pub fn max_sequence_length(&self) -> usize {
        self.description.max_sequence_length
    }

    /// The stages of a block, without loading it.
    pub fn stages(&self, block: usize) -> Vec<Stage> {
        let layers = |linears: &Vec<Linear>| linears.iter().map(|linear| self.layer(block, linear)).collect::<Vec<_>>();
        let stage = |linears: &Vec<Linear>| Stage { layers: layers(linears), width: linears[0].columns };
        self.description.blocks.stages.iter().map(stage).collect()
    }

    /// Loads a block: norms and biases as f32, weights as they are stored.
    ///
    /// # Errors
    /// [`Error::WeightNotFinite`] for a norm or bias with NaN or infinity; if there is no room.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block<F: Forward>(&self, forward: &F, index: usize) -> Result<Block<'a, F>, F::Error> {
        assert!(index < self.blocks(), "block {index} of {}", self.blocks());
        let blocks = &self.description.blocks;
        let norm = |name: &str, columns| self.norm(forward, &self.name_in_block(index, name), columns);
        let qk_norms = match blocks.attention.qk_norm {
            Some([q, k]) => Some([norm(q, blocks.attention.head_dim)?, norm(k, blocks.attention.head_dim)?]),
            None => None,
        };
        let load = |linear: &Linear| {
            let layer = self.layer(index, linear);
            let weight = forward.weight(self.stored(&layer.name)?, layer.rows, layer.columns)?;
            let bias = format!("{}.bias", self.name_in_block(index, linear.name));
            let bias = linear.bias.then(|| forward.vector(self.vector(&bias)?)).transpose()?;
            Ok(LoadedLayer { layer, weight, bias })
        };
        let mut layers: [Vec<LoadedLayer<'a, F>>; 4] = Default::default();
        for (layers, linears) in layers.iter_mut().zip(&blocks.stages) {
            *layers = linears.iter().map(load).collect::<Result<_, F::Error>>()?;
        }
        let slopes = match blocks.attention.positions {
            Positions::Alibi => Some(forward.vector(alibi_slopes(blocks.attention.heads))?),
            Positions::Embedded | Positions::Rope(_) => None,
        };
        Ok(Block {
            forward: forward.clone(),
            index,
            description: self.description.clone(),
            stages: self.stages(index),
            layers,
            norms: [norm(blocks.norms[0], self.hidden())?, norm(blocks.norms[1], self.hidden())?],
            qk_norms,
            slopes,
            rotations: self.rotations.clone(),
        })
    }

    /// Says that a block is not needed for now: the pages of its tensors leave this process's memory.
    pub fn release(&self, block: usize) {
        for (name, _) in self.block_tensors(block) {
            self.checkpoint.release(&name);
        }
    }

    /// The full names of the tensors that the model computes with, each once. A checkpoint may hold others.
    pub fn tensor_names(&self) -> impl Iterator<Item = String> {
        let mut outer = self.outer_tensors();
        if self.head == self.embedding {
            outer.remove(1);
        }
        let blocks = (0..self.blocks()).flat_map(|block| self.block_tensors(block));
        outer.into_iter().chain(blocks).map(|(name, _)| name)
    }

    /// Loads what precedes the first block.
    ///
    /// # Errors
    /// [`Error::WeightNotFinite`] for a norm with NaN or infinity; if there is no room.
    pub fn embedding<F: Forward>(&self, forward: &F) -> Result<Embedding<'a, F>, F::Error> {
        let Description { vocabulary, hidden, max_sequence_length, ref embedding, .. } = *self.description;
        let table = |name: &str, rows: usize, columns: usize| {
            let values = forward.weight(self.stored(name)?, rows, columns)?;
            Ok::<_, F::Error>(Table { name: name.to_owned(), values, rows, columns })
        };
        let positions = embedding.positions.map(|positions| {
            let name = format!("{}.weight", self.name(positions.name));
            Ok::<_, F::Error>((table(&name, max_sequence_length + positions.offset, hidden)?, positions.offset))
        });
        let projection = embedding.project_in.map(|name| self.projection(forward, name, hidden, embedding.width));
        Ok(Embedding {
            forward: forward.clone(),
            tokens: table(&self.embedding, vocabulary, embedding.width)?,
            projection: projection.transpose()?,
            positions: positions.transpose()?,
            norm: embedding.norm.map(|norm| self.norm(forward, &self.name(norm), hidden)).transpose()?,
        })
    }

    /// A tensor as it is stored.
    fn stored(&self, name: &str) -> Result<Weight<'a>, Error> {
        Ok(self.checkpoint.tensor(name)?.values()?.into())
    }

    /// A linear layer [rows, columns] without bias, outside the blocks.
    pub(crate) fn projection<F: Forward>(
        &self,
        forward: &F,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<LoadedLayer<'a, F>, F::Error> {
        let name = format!("{}.weight", self.name(name));
        let weight = forward.weight(self.stored(&name)?, rows, columns)?;
        Ok(LoadedLayer { layer: Layer { name, rows, columns }, weight, bias: None })
    }

    /// The weight [vocabulary, width] that makes logits, and its name.
    pub(crate) fn head_weight(&self) -> Result<(Weight<'a>, &str), Error> {
        Ok((self.stored(&self.head)?, &self.head))
    }

    /// A norm over rows of so many columns.
    pub(crate) fn norm<F: Forward>(
        &self,
        forward: &F,
        name: &str,
        columns: usize,
    ) -> Result<LoadedNorm<F::Vector>, F::Error> {
        let norm = self.description.norm;
        let scale = match norm.affine {
            true => self.vector(&format!("{name}.weight"))?,
            false => vec![1.0; columns],
        };
        let shifts = norm.affine && norm.kind == NormKind::Layer;
        let shift = shifts.then(|| forward.vector(self.vector(&format!("{name}.bias"))?)).transpose()?;
        Ok(LoadedNorm { norm, scale: forward.vector(scale)?, shift })
    }

    /// A small tensor as f32, all of it finite.
    fn vector(&self, name: &str) -> Result<Vec<f32>, Error> {
        let vector = self.checkpoint.tensor(name)?.to_f32()?;
        match first_not_finite(&vector) {
            None => Ok(vector),
            Some((position, value)) => Err(Error::WeightNotFinite { tensor: name.to_owned(), position, value }),
        }
    }

    /// The full name of something outside the blocks.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The full name of something in a block.
    fn name_in_block(&self, block: usize, name: &str) -> String {
        format!("{}{}.{block}.{name}", self.prefix, self.description.blocks.name)
    }

    fn layer(&self, block: usize, linear: &Linear) -> Layer {
        let name = format!("{}.weight", self.name_in_block(block, linear.name));
        Layer { name, rows: linear.rows, columns: linear.columns }
    }

    /// The tensors of a block, with the shapes that they must have.
    fn block_tensors(&self, block: usize) -> Vec<(String, Vec<usize>)> {
        let Description { hidden, norm, ref blocks, .. } = *self.description;
        let mut tensors = Vec::new();
        for name in blocks.norms {
            norm_tensors(norm, &self.name_in_block(block, name), hidden, &mut tensors);
        }
        for name in blocks.attention.qk_norm.into_iter().flatten() {
            norm_tensors(norm, &self.name_in_block(block, name), blocks.attention.head_dim, &mut tensors);
        }
        for linear in blocks.stages.iter().flatten() {
            let name = self.name_in_block(block, linear.name);
            if linear.bias {
                tensors.push((format!("{name}.bias"), vec![linear.rows]));
            }
            tensors.push((format!("{name}.weight"), vec![linear.rows, linear.columns]));
        }
        tensors
    }

    /// The tensors outside the blocks, with the shapes that they must have: first the embedding and the head, which may be
    /// one tensor.
    fn outer_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Description { vocabulary, hidden, max_sequence_length, norm, embedding, head, .. } = &*self.description;
        let width = embedding.width;
        let mut tensors =
            vec![(self.embedding.clone(), vec![*vocabulary, width]), (self.head.clone(), vec![*vocabulary, width])];
        if let Some(positions) = embedding.positions {
            let rows = max_sequence_length + positions.offset;
            tensors.push((format!("{}.weight", self.name(positions.name)), vec![rows, *hidden]));
        }
        for name in [embedding.norm, head.norm].into_iter().flatten() {
            norm_tensors(*norm, &self.name(name), *hidden, &mut tensors);
        }
        if let Some(name) = embedding.project_in {
            tensors.push((format!("{}.weight", self.name(name)), vec![*hidden, width]));
        }
        if let Some(name) = head.project_out {
            tensors.push((format!("{}.weight", self.name(name)), vec![width, *hidden]));
        }
        tensors
    }

    fn check_tensors(&self) -> Result<(), Error> {
        let check = |(name, expected): (String, Vec<usize>)| {
            let tensor = self.checkpoint.tensor(&name)?;
            if let Dtype::Other(_) = tensor.dtype {
                return Err(Error::Dtype { tensor: name, found: tensor.dtype });
            }
            if tensor.shape != expected {
                return Err(Error::Shape { tensor: name, found: tensor.shape.to_vec(), expected });
            }
            Ok(())
        };
        self.outer_tensors().into_iter().try_for_each(check)?;
        (0..self.blocks()).try_for_each(|block| self.block_tensors(block).into_iter().try_for_each(check))?;
        self.check_no_more_blocks()
    }

    /// A model cut short by its configuration would run, with numbers of no use. Other tensors that the architecture
    /// does not know are none of its business: old checkpoints keep rotary frequencies and attention masks.
    fn check_no_more_blocks(&self) -> Result<(), Error> {
        let blocks = self.name(self.description.blocks.name);
        let block_of = |tensor: &str| {
            let (number, _) = tensor.strip_prefix(&blocks)?.strip_prefix('.')?.split_once('.')?;
            number.parse::<usize>().ok()
        };
        let configured = self.blocks();
        let mut found = self.checkpoint.tensors().filter_map(|tensor| Some((block_of(tensor.name)?, tensor.name)));
        match found.find(|&(block, _)| block >= configured) {
            None => Ok(()),
            Some((found, tensor)) => Err(Error::ExtraBlock { tensor: tensor.to_owned(), found, configured }),
        }
    }
}

fn norm_tensors(norm: Norm, name: &str, columns: usize, tensors: &mut Vec<(String, Vec<usize>)>) {
    if norm.affine {
        tensors.push((format!("{name}.weight"), vec![columns]));
        if norm.kind == NormKind::Layer {
            tensors.push((format!("{name}.bias"), vec![columns]));
        }
    }
}
