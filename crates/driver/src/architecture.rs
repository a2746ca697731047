//! A model's shapes: blocks, stages and layers by name, without their weights.

use checkpoint::{Checkpoint, Dtype};
use model::Model;
use serde::Serialize;

/// What the stages of a block are called, in order.
pub const STAGES: [&str; 4] = ["q, k, v", "attention out", "up", "down"];

/// The shapes of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Layout {
    /// The architecture, as `config.json` names it.
    pub architecture: String,
    /// Decoder blocks.
    pub blocks: usize,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Positions the model was made for.
    pub longest: usize,
    /// Whether positions end there, as those of a table do, or can go on.
    #[serde(skip)]
    pub positions_end: bool,
    /// The dtype of the first layer.
    #[serde(skip)]
    pub dtype: Dtype,
    /// All stages of all blocks, in order.
    pub stages: Vec<Stage>,
}

/// Layers that share their inputs.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// The block.
    pub block: usize,
    /// The place among the block's stages.
    pub index: usize,
    /// What it is called.
    pub name: &'static str,
    /// The layers.
    pub layers: Vec<Layer>,
}

/// A linear layer.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// The full name, such as `model.layers.0.mlp.up_proj`; `.weight` makes it that of the tensor.
    pub name: String,
    /// The name within the block.
    pub short: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

impl Layout {
    /// The shapes of a model.
    pub fn of(model: &Model<'_>) -> Self {
        let description = model.description();
        let stages_of = |block: usize| {
            let named = model.stages(block).into_iter().zip(&description.blocks.stages).zip(STAGES);
            named.enumerate().map(move |(index, ((stage, linears), name))| {
                let layers = stage.layers.into_iter().zip(linears).map(|(layer, linear)| Layer {
                    name: layer.name.strip_suffix(".weight").unwrap_or(&layer.name).to_owned(),
                    short: linear.name,
                    rows: layer.rows,
                    columns: layer.columns,
                });
                Stage { block, index, name, layers: layers.collect() }
            })
        };
        let stages: Vec<_> = (0..model.blocks()).flat_map(stages_of).collect();
        let first = stages.first().and_then(|stage| stage.layers.first());
        let tensor = first.and_then(|layer| model.checkpoint().get(&format!("{}.weight", layer.name)));
        Self {
            architecture: description.architecture.to_owned(),
            blocks: model.blocks(),
            vocabulary: description.vocabulary,
            hidden: model.hidden(),
            longest: model.max_sequence_length(),
            positions_end: description.embedding.positions.is_some(),
            dtype: tensor.map_or(Dtype::F32, |tensor| tensor.dtype),
            stages,
        }
    }

    /// The shapes of a checkpoint.
    ///
    /// # Errors
    /// Those of [`Model::open`].
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, model::Error> {
        Model::open(checkpoint).map(|model| Self::of(&model))
    }

    /// Whether a tensor is the weight of a layer.
    pub fn has_layer(&self, tensor: &str) -> bool {
        let name = tensor.strip_suffix(".weight");
        name.is_some_and(|name| self.stages.iter().flat_map(|stage| &stage.layers).any(|layer| layer.name == name))
    }
}

impl Stage {
    /// Inputs of each of its layers.
    pub fn columns(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.columns)
    }

    /// Whether two stages of different blocks have the same layers.
    pub fn looks_like(&self, other: &Self) -> bool {
        let shape = |layer: &Layer| (layer.short, layer.rows, layer.columns);
        self.layers.iter().map(shape).eq(other.layers.iter().map(shape))
    }
}
