//! The token sequences of a run: texts read and encoded once, the tokenizer gone afterwards.

use std::path::PathBuf;

use anyhow::Context;
use model::calibration::{Sequences, TextTokenizer, windows};

use crate::plan::Plan;

/// What a prune reads.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Calibration sequences; absent where no method looks at inputs.
    pub calibration: Option<Sequences>,
    /// Windows to measure the perplexity on; absent where none is asked for.
    pub evaluation: Option<Sequences>,
}

impl Inputs {
    /// Reads and encodes the texts of a prune.
    ///
    /// # Errors
    /// Those of [`TextTokenizer`] and [`windows`], with what the text was for.
    pub fn read(plan: &Plan) -> anyhow::Result<Self> {
        let settings = &plan.settings;
        let calibrates = settings.calibrates();
        if !calibrates && settings.evaluate.is_empty() {
            return Ok(Self { calibration: None, evaluation: None });
        }
        let tokenizer = TextTokenizer::load(&settings.model, plan.layout.vocabulary)?;
        let length = plan.sequence_length;
        let calibrate = || {
            tokenizer
                .calibrate(&settings.calibration, settings.sequences, length, settings.sampling, settings.seed)
                .context("cannot calibrate")
        };
        Ok(Self {
            calibration: calibrates.then(calibrate).transpose()?,
            evaluation: match settings.evaluate.as_slice() {
                [] => None,
                texts => Some(evaluation(&tokenizer, texts, length)?),
            },
        })
    }
}

/// The windows of `length` tokens of all the texts.
///
/// # Errors
/// Those of [`TextTokenizer::stream`] and [`windows`].
pub fn evaluation(tokenizer: &TextTokenizer, texts: &[PathBuf], length: usize) -> anyhow::Result<Sequences> {
    tokenizer.stream(texts, None).and_then(|tokens| windows(tokens, length)).context("cannot evaluate")
}
