//! A model over a checkpoint: opened and checked as a whole, loaded one block at a time.

use std::sync::Arc;

use checkpoint::{Checkpoint, Dtype, Values};
use linalg::Element;
use rayon::prelude::*;

use crate::Error;
use crate::block::Block;
use crate::description::{Description, HEAD_WEIGHT, Linear, Norm, NormKind};
use crate::layer::{Layer, LoadedLayer, Stage, Weight, not_finite};
use crate::norm::{LoadedNorm, add};
use crate::rope::Rotations;
use crate::simd::first_not_finite;

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

    /// Loads a block: norms and biases as f32, weights where they lie.
    ///
    /// # Errors
    /// [`Error::WeightNotFinite`] for a norm or bias with NaN or infinity.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, index: usize) -> Result<Block<'a>, Error> {
        assert!(index < self.blocks(), "block {index} of {}", self.blocks());
        let blocks = &self.description.blocks;
        let norm = |name: &str, columns| self.norm(&self.name_in_block(index, name), columns);
        let qk_norms = match blocks.attention.qk_norm {
            Some([q, k]) => Some([norm(q, blocks.attention.head_dim)?, norm(k, blocks.attention.head_dim)?]),
            None => None,
        };
        let load = |linear: &Linear| {
            let layer = self.layer(index, linear);
            let weight = self.checkpoint.tensor(&layer.name)?.values()?.into();
            let bias = format!("{}.bias", self.name_in_block(index, linear.name));
            let bias = linear.bias.then(|| self.vector(&bias)).transpose()?;
            Ok(LoadedLayer { layer, weight, bias })
        };
        let mut layers: [Vec<LoadedLayer<'a>>; 4] = Default::default();
        for (layers, linears) in layers.iter_mut().zip(&blocks.stages) {
            *layers = linears.iter().map(load).collect::<Result<_, Error>>()?;
        }
        Ok(Block {
            index,
            description: self.description.clone(),
            stages: self.stages(index),
            layers,
            norms: [norm(blocks.norms[0], self.hidden())?, norm(blocks.norms[1], self.hidden())?],
            qk_norms,
            rotations: self.rotations.clone(),
            rounds_inputs: false,
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

    /// The input [tokens, hidden] of the first block.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary; [`Error::SequenceLength`] if there are fewer learned
    /// positions; [`Error::WeightNotFinite`] for an embedding with NaN or infinity.
    ///
    /// # Panics
    /// If `tokens` is no whole number of sequences.
    pub fn embed(&self, tokens: &[u32], sequence_length: usize) -> Result<Vec<f32>, Error> {
        assert!(
            sequence_length > 0 && tokens.len().is_multiple_of(sequence_length),
            "{} tokens are no whole number of sequences of {sequence_length}",
            tokens.len()
        );
        let Description { vocabulary, hidden, max_sequence_length, .. } = *self.description;
        let embedding = &self.description.embedding;
        if let Some((position, &token)) = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocabulary) {
            return Err(Error::Token { token, position, vocabulary });
        }
        let mut x = self.look_up(tokens, embedding.width)?;
        if let Some(projection) = embedding.project_in {
            x = self.projection(projection, hidden, embedding.width)?.apply(Values::F32(&x))?;
        }
        if let Some(positions) = embedding.positions {
            if sequence_length > max_sequence_length {
                let expected = format!("at most {max_sequence_length}, for which the model has positions");
                return Err(Error::SequenceLength { found: sequence_length, expected });
            }
            let vectors = self.vector(&format!("{}.weight", self.name(positions.name)))?;
            let vectors = &vectors[positions.offset * hidden..];
            x.par_chunks_mut(hidden).enumerate().for_each(|(token, row)| {
                add(row, &vectors[token % sequence_length * hidden..][..hidden]);
            });
        }
        if let Some(norm) = embedding.norm {
            self.norm(&self.name(norm), hidden)?.apply(&mut x);
        }
        Ok(x)
    }

    /// The rows [tokens, width] of the embedding.
    fn look_up(&self, tokens: &[u32], width: usize) -> Result<Vec<f32>, Error> {
        fn gather<T: Element>(table: &[T], tokens: &[u32], width: usize, rows: &mut [f32]) {
            rows.par_chunks_mut(width).zip(tokens).with_min_len(16).for_each(|(row, &token)| {
                T::widen(&table[token as usize * width..][..width], row);
            });
        }
        let mut rows = vec![0.0; tokens.len() * width];
        match self.checkpoint.tensor(&self.embedding)?.values()? {
            Values::F32(table) => gather(table, tokens, width, &mut rows),
            Values::F16(table) => gather(table, tokens, width, &mut rows),
            Values::Bf16(table) => gather(table, tokens, width, &mut rows),
        }
        match not_finite(&rows, width) {
            None => Ok(rows),
            Some((token, column, value)) => {
                let position = tokens[token] as usize * width + column;
                Err(Error::WeightNotFinite { tensor: self.embedding.clone(), position, value })
            }
        }
    }

    /// A linear layer [rows, columns] without bias, outside the blocks.
    pub(crate) fn projection(&self, name: &str, rows: usize, columns: usize) -> Result<LoadedLayer<'a>, Error> {
        let name = format!("{}.weight", self.name(name));
        let weight = self.checkpoint.tensor(&name)?.values()?.into();
        Ok(LoadedLayer { layer: Layer { name, rows, columns }, weight, bias: None })
    }

    /// The weight [vocabulary, width] that makes logits, and its name.
    pub(crate) fn head(&self) -> Result<(Weight<'a>, &str), Error> {
        Ok((self.checkpoint.tensor(&self.head)?.values()?.into(), &self.head))
    }

    /// A norm over rows of so many columns.
    pub(crate) fn norm(&self, name: &str, columns: usize) -> Result<LoadedNorm, Error> {
        let norm = self.description.norm;
        let scale = match norm.affine {
            true => self.vector(&format!("{name}.weight"))?,
            false => vec![1.0; columns],
        };
        let shift = match norm.affine && norm.kind == NormKind::Layer {
            true => self.vector(&format!("{name}.bias"))?,
            false => Vec::new(),
        };
        Ok(LoadedNorm { norm, scale, shift })
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
