//! `evaluate`: the perplexity of a checkpoint on texts; and the one way in which perplexities are measured.

use anyhow::Context;
use checkpoint::Checkpoint;
use model::calibration::{Sequences, TextTokenizer};
use model::{Cpu, Model};
use prune::{Collective, Method, share};

use crate::inputs;
use crate::progress::Progress;
use crate::report::Perplexity;
use crate::settings::Evaluation;

/// Evaluates a checkpoint, of which each rank reads the texts' share that falls to it.
///
/// # Errors
/// If the checkpoint is no model, the texts cannot be used, a weight or an activation is not finite, or another rank
/// failed.
pub fn evaluate(
    evaluation: &Evaluation,
    checkpoint: &Checkpoint,
    progress: &Progress,
    ranks: &dyn Collective,
) -> anyhow::Result<Perplexity> {
    let model = Model::open(checkpoint)?;
    let length = evaluation.sequence_length(model.max_sequence_length());
    let read = || {
        let tokenizer = TextTokenizer::load(&evaluation.model, model.description().vocabulary)?;
        inputs::evaluation(&tokenizer, &evaluation.texts, length)
    };
    let read = (ranks.rank() == 0).then(|| inputs::encoding(read)).transpose()?;
    let windows = inputs::sequences_of_first(ranks, length, read)?;
    measure(&model, None, &windows, progress, ranks)
}

/// Measures the perplexity of a model, each rank on its share of the windows; `method` is what pruned it, if anything.
///
/// # Errors
/// If a weight or an activation is not finite, or another rank failed.
pub fn measure(
    model: &Model<'_>,
    method: Option<Method>,
    windows: &Sequences,
    progress: &Progress,
    ranks: &dyn Collective,
) -> anyhow::Result<Perplexity> {
    let name = method.map_or("evaluating".to_owned(), |method| format!("evaluating {method}"));
    let task = progress.task(&name);
    let (count, length) = (windows.count(), windows.length);
    let own = share(count, ranks.rank(), ranks.size());
    // Of the predicted tokens: the sum of −ln p, and their number.
    let mut sums = [0.0; 2];
    if !own.is_empty() || count == 0 {
        let tokens = &windows.tokens[own.start * length..own.end * length];
        let result =
            model::evaluate(&Cpu::default(), model, tokens, length, |done, all| task.reach(done as u64, all as u64))
                .with_context(|| format!("cannot evaluate {}", model.checkpoint().folder().display()))?;
        if ranks.size() == 1 {
            return Ok(Perplexity { method, perplexity: result.perplexity, windows: count, window_length: length });
        }
        sums = [result.mean_loss * result.predicted as f64, result.predicted as f64];
    }
    ranks.sum_f64(&mut sums)?;
    Ok(Perplexity { method, perplexity: (sums[0] / sums[1]).exp(), windows: count, window_length: length })
}
