//! `evaluate`: the perplexity of a checkpoint on texts; and the one way in which perplexities are measured.

use anyhow::Context;
use checkpoint::Checkpoint;
use model::Model;
use model::calibration::{Sequences, TextTokenizer};
use prune::Method;

use crate::inputs;
use crate::progress::Progress;
use crate::report::Perplexity;
use crate::settings::Evaluation;

/// Evaluates a checkpoint.
///
/// # Errors
/// If the checkpoint is no model, the texts cannot be used, or a weight or an activation is not finite.
pub fn evaluate(evaluation: &Evaluation, checkpoint: &Checkpoint, progress: &Progress) -> anyhow::Result<Perplexity> {
    let model = Model::open(checkpoint)?;
    let length = evaluation.sequence_length(model.max_sequence_length());
    let windows = inputs::encoding(|| {
        let tokenizer = TextTokenizer::load(&evaluation.model, model.description().vocabulary)?;
        inputs::evaluation(&tokenizer, &evaluation.texts, length)
    })?;
    measure(&model, None, &windows, progress)
}

/// Measures the perplexity of a model; `method` is what pruned it, if anything.
///
/// # Errors
/// If a weight or an activation is not finite.
pub fn measure(
    model: &Model<'_>,
    method: Option<Method>,
    windows: &Sequences,
    progress: &Progress,
) -> anyhow::Result<Perplexity> {
    let name = method.map_or("evaluating".to_owned(), |method| format!("evaluating {method}"));
    let task = progress.task(&name);
    let result =
        model::evaluate(model, &windows.tokens, windows.length, |done, all| task.reach(done as u64, all as u64))
            .with_context(|| format!("cannot evaluate {}", model.checkpoint().folder().display()))?;
    Ok(Perplexity { method, perplexity: result.perplexity, windows: result.windows, window_length: windows.length })
}
