//! The token sequences of a run: texts read and encoded once, the tokenizer gone afterwards.

use std::path::PathBuf;

use anyhow::Context;
use model::calibration::{Sequences, TextTokenizer, windows};

use prune::{Collective, Disconnected};

use crate::memory;
use crate::plan::Plan;
use crate::ranks::told_by_first;

/// What a prune reads.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Calibration sequences; absent where no method looks at inputs.
    pub calibration: Option<Sequences>,
    /// Windows to measure the perplexity on; absent where none is asked for.
    pub evaluation: Option<Sequences>,
}

impl Inputs {
    /// Reads and encodes the texts of a prune. Rank 0 does, and sends all tokens to the others: they are few beside
    /// anything that a rank holds, and the texts need not be on other machines.
    ///
    /// # Errors
    /// Those of [`TextTokenizer`] and [`windows`], with what the text was for; or if another rank failed.
    pub fn read(plan: &Plan, ranks: &dyn Collective) -> anyhow::Result<Self> {
        let settings = &plan.settings;
        let calibrates = settings.calibrates();
        if !calibrates && settings.evaluate.is_empty() {
            return Ok(Self { calibration: None, evaluation: None });
        }
        let read = match ranks.rank() {
            0 => encoding(|| Self::encode(plan, calibrates))?,
            _ => Self { calibration: None, evaluation: None },
        };
        let spread = |read| sequences_of_first(ranks, plan.sequence_length, read);
        Ok(Self {
            calibration: calibrates.then(|| spread(read.calibration)).transpose()?,
            evaluation: (!settings.evaluate.is_empty()).then(|| spread(read.evaluation)).transpose()?,
        })
    }

    fn encode(plan: &Plan, calibrates: bool) -> anyhow::Result<Self> {
        let (settings, length) = (&plan.settings, plan.sequence_length);
        let tokenizer = TextTokenizer::load(&settings.model, plan.layout.vocabulary)?;
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

/// Does work that encodes texts, in threads that end with it.
///
/// A tokenizer keeps words that it has encoded in variables of the threads that encode. Those of the program's own threads
/// would stay until its end: little, but scattered over as many pages as all encodings took.
///
/// # Errors
/// Those of `work`, and if a thread cannot be started.
pub fn encoding<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let mut threads = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).spawn_handler(|thread| {
        threads.push(std::thread::Builder::new().spawn(|| thread.run())?);
        Ok(())
    });
    let result = pool.build().context("cannot start the threads")?.install(work);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    memory::give_back();
    result
}

/// The sequences of `length` tokens that rank 0 has `read`, on all ranks.
///
/// # Errors
/// If another rank failed.
pub fn sequences_of_first(
    ranks: &dyn Collective,
    length: usize,
    read: Option<Sequences>,
) -> Result<Sequences, Disconnected> {
    let tokens = read.map_or(Vec::new(), |read| read.tokens);
    let bytes: Vec<_> = tokens.into_iter().flat_map(u32::to_le_bytes).collect();
    let bytes = told_by_first(ranks, &bytes)?;
    Ok(Sequences { tokens: bytes.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect(), length })
}

/// The windows of `length` tokens of all the texts.
///
/// # Errors
/// Those of [`TextTokenizer::stream`] and [`windows`].
pub fn evaluation(tokenizer: &TextTokenizer, texts: &[PathBuf], length: usize) -> anyhow::Result<Sequences> {
    tokenizer.stream(texts, None).and_then(|tokens| windows(tokens, length)).context("cannot evaluate")
}
