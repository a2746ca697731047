//! Perplexity as the field computes it: windows that do not overlap, mean over predicted tokens.

use crate::{Error, Forward, Model};

/// Activations held at a time: 256 MiB. Every block's weights are read once for as many windows as that holds.
const ACTIVATIONS: usize = (1 << 28) / 4;
/// Tokens that go through a block at a time: bounds what lies between its stages.
const TOKENS: usize = 2048;

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean of −ln p over the predicted tokens.
    pub mean_loss: f64,
    /// e to the power of the mean loss.
    pub perplexity: f64,
    /// The windows that the text was cut into.
    pub windows: usize,
    /// Predicted tokens: a window of n predicts n − 1.
    pub predicted: usize,
}

impl Evaluation {
    /// That of all windows, from those of parts of them.
    pub fn of_all(parts: &[Self]) -> Self {
        let (windows, predicted) = parts.iter().fold((0, 0), |(w, p), part| (w + part.windows, p + part.predicted));
        let total: f64 = parts.iter().map(|part| part.mean_loss * part.predicted as f64).sum();
        let mean_loss = if parts.len() == 1 { parts[0].mean_loss } else { total / predicted as f64 };
        Self { mean_loss, perplexity: mean_loss.exp(), windows, predicted }
    }
}

/// Evaluates a model on windows of `sequence_length` tokens, one after another in `tokens`; a tail shorter than a window
/// is left out. `progress` is told how many steps are done, and of how many.
///
/// # Errors
/// [`Error::SequenceLength`] if a window predicts nothing, or `tokens` are not one window; those of
/// [`Embedding::embed`](crate::Embedding::embed), [`Model::block`], [`Block::forward`](crate::Block::forward) and
/// [`Head::losses`](crate::Head::losses).
pub fn evaluate<F: Forward>(
    forward: &F,
    model: &Model<'_>,
    tokens: &[u32],
    sequence_length: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Evaluation, F::Error> {
    if sequence_length < 2 || tokens.len() < sequence_length {
        let expected = format!("at least 2, of which the second is predicted, and at most the {} given", tokens.len());
        return Err(Error::SequenceLength { found: sequence_length, expected }.into());
    }
    let windows = tokens.len() / sequence_length;
    let tokens = &tokens[..windows * sequence_length];
    let window = sequence_length * model.hidden();
    let together = (TOKENS / sequence_length).max(1);
    let chunk = together * sequence_length;
    // As many as there is room for make no difference to what passes through a block at a time.
    let group = (ACTIVATIONS.min(forward.room() / 4) / window).max(together) / together * together;

    let steps = windows.div_ceil(group) * (model.blocks() + 1);
    let mut done = 0;
    let mut total = 0.0;
    for tokens in tokens.chunks(group * sequence_length) {
        let embedding = model.embedding(forward)?;
        let mut parts: Vec<F::Stream> =
            tokens.chunks(chunk).map(|tokens| embedding.embed(tokens, sequence_length)).collect::<Result<_, _>>()?;
        drop(embedding);
        for index in 0..model.blocks() {
            let block = model.block(forward, index)?;
            for (part, (x, tokens)) in parts.iter_mut().zip(tokens.chunks(chunk)).enumerate() {
                let done = block.forward(x, tokens.len(), sequence_length);
                done.map_err(|error| F::locate(error, None, part * chunk))?;
            }
            model.release(index);
            done += 1;
            progress(done, steps);
        }
        let head = model.head(forward)?;
        for (part, (x, tokens)) in parts.iter().zip(tokens.chunks(chunk)).enumerate() {
            let losses = head.losses(x, tokens, sequence_length);
            total += losses.map_err(|error| F::locate(error, None, part * chunk))?.iter().sum::<f64>();
        }
        done += 1;
        progress(done, steps);
    }
    let predicted = windows * (sequence_length - 1);
    let mean_loss = total / predicted as f64;
    Ok(Evaluation { mean_loss, perplexity: mean_loss.exp(), windows, predicted })
}
