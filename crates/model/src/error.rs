//! What can be wrong with a model, with the evidence.

use std::path::PathBuf;

use checkpoint::Dtype;

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint itself: a tensor that is not there, for example.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A value of `config.json` that this program cannot work with.
    #[error("{}: `{key}` is {found}; expected {expected}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key, with a dot before each level below the first.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What would have been understood.
        expected: String,
    },
    /// A checkpoint whose weights are codes, or were rounded to a grid that pruning would leave.
    #[error(
        "{}: the checkpoint is quantized (`quantization_config` with the quant_method {method}): prune the original \
         checkpoint, or dequantize this one first, in transformers with `model.dequantize()` and `save_pretrained`",
        path.display()
    )]
    Quantized {
        /// The configuration file.
        path: PathBuf,
        /// The `quant_method`, as JSON, or that there is none.
        method: String,
    },
    /// A tensor whose shape is not the one that `config.json` asks for.
    #[error("`{tensor}` has shape {found:?}; config.json makes it {expected:?}")]
    Shape {
        /// The full name of the tensor.
        tensor: String,
        /// Its shape in the checkpoint.
        found: Vec<usize>,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of a block that the configuration does not have.
    #[error(
        "config.json makes {configured} blocks, but the checkpoint has `{tensor}` of block {found}, counted from 0: they do \
         not belong together"
    )]
    ExtraBlock {
        /// The full name of the tensor.
        tensor: String,
        /// The block that it belongs to by its name.
        found: usize,
        /// The number of blocks by the configuration.
        configured: usize,
    },
    /// A tensor of a type that this program does not compute with.
    #[error(
        "`{tensor}` is stored as {found}; expected F32, F16 or BF16: start from the original of a quantized checkpoint, and \
         convert any other with transformers, `from_pretrained(FOLDER, torch_dtype=torch.float16).save_pretrained(NEW)` \
         (or torch.bfloat16, torch.float32)"
    )]
    Dtype {
        /// The full name of the tensor.
        tensor: String,
        /// Its type in the checkpoint.
        found: Dtype,
    },
    /// A token that the model has no embedding for.
    #[error("token {token} at position {position}; the model's vocabulary has {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Its position among those given.
        position: usize,
        /// The number of tokens that the model knows.
        vocabulary: usize,
    },
    /// Sequences that the model has no positions for, or that are too short to predict anything.
    #[error("sequences of {found} tokens; expected {expected}")]
    SequenceLength {
        /// The length asked for.
        found: usize,
        /// The lengths that work.
        expected: String,
    },
    /// A weight that is NaN or infinite.
    #[error("`{tensor}` holds {value} at position {position}; the checkpoint is damaged or was not trained to an end")]
    WeightNotFinite {
        /// The full name of the tensor.
        tensor: String,
        /// The element, counted in row-major order.
        position: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// An activation that became NaN or infinite although all weights are finite.
    #[error(
        "the output of `{layer}`{} is {value} at token {token}, column {column}, although its weights are finite: the \
         numbers of the model overflow",
        block.map(|block| format!(" in block {block}")).unwrap_or_default()
    )]
    ActivationNotFinite {
        /// The decoder block, if it is in one.
        block: Option<usize>,
        /// The tensor whose product it is.
        layer: String,
        /// The token, counted over those computed together.
        token: usize,
        /// The column of the output.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

impl Error {
    /// Says which block an activation belongs to.
    pub(crate) fn in_block(mut self, index: usize) -> Self {
        if let Self::ActivationNotFinite { block, .. } = &mut self {
            *block = Some(index);
        }
        self
    }

    /// Counts the token of an activation from so many tokens earlier.
    pub(crate) fn after_tokens(mut self, tokens: usize) -> Self {
        if let Self::ActivationNotFinite { token, .. } = &mut self {
            *token += tokens;
        }
        self
    }
}
