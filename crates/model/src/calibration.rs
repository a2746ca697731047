//! From texts to token sequences: the tokenizer of a model folder, the sampling of calibration sequences, and the
//! windows of an evaluation.
//!
//! A document is encoded by itself, with the special tokens that the tokenizer puts around a text (`</s>` in front for
//! OPT, `<s>` for LLaMA), exactly as `tokenizer(text)` of `transformers` does; the encodings of all documents make one
//! stream of tokens. Calibration takes sequences out of that stream ([`Sampling`]); evaluation cuts all of it
//! ([`windows`]).

use std::fmt;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::text::{self, TextError};

/// Bytes of text that are handed to the tokenizer at once, to be encoded document by document on all threads.
const BATCH_BYTES: usize = 1 << 20;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The model folder has no tokenizer.
    #[error(
        "no tokenizer.json in {folder}; where the model came with another tokenizer file, transformers writes one: \
         AutoTokenizer.from_pretrained(\"{folder}\").save_pretrained(\"{folder}\")",
        folder = .folder.display()
    )]
    NoTokenizer {
        /// The model folder.
        folder: PathBuf,
    },
    /// The tokenizer cannot be used.
    #[error("{path} is not a tokenizer that this program can read", path = .path.display())]
    BadTokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What the `tokenizers` crate says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer failed on a text.
    #[error("{path} cannot encode a text", path = .path.display())]
    Encoding {
        /// The tokenizer file.
        path: PathBuf,
        /// What the `tokenizers` crate says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer knows more tokens than the model.
    #[error(
        "{path} gives token {token}, but the model's vocabulary has {vocabulary}: the tokenizer belongs to another model",
        path = .path.display()
    )]
    OutsideVocabulary {
        /// The tokenizer file.
        path: PathBuf,
        /// The largest token id met.
        token: u32,
        /// The rows of the model's token embedding.
        vocabulary: usize,
    },
    /// The texts give fewer tokens than asked for.
    #[error(
        "the text is too short: {found} tokens found, {needed} needed ({sequences} x {length}); give more text, \
         fewer sequences or shorter ones"
    )]
    TooShort {
        /// Tokens in all the texts together.
        found: usize,
        /// Tokens that the sampling asks for.
        needed: usize,
        /// Sequences asked for; 1 where one window is the least.
        sequences: usize,
        /// Tokens per sequence.
        length: usize,
    },
    /// A text could not be read.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// How calibration sequences are taken from the stream of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// The beginning of the stream, cut into sequences. The default: it repeats without a seed, needs no more of the
    /// text than it uses, and never takes the same tokens twice.
    #[default]
    Contiguous,
    /// Windows that start anywhere in the stream with equal probability and may overlap, as the published
    /// implementations draw them; reads all of the text.
    Random,
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contiguous => "contiguous",
            Self::Random => "random",
        })
    }
}

/// Token sequences of one length, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// Token ids, `[sequences, length]`.
    pub tokens: Vec<u32>,
    /// Tokens per sequence, at least 1.
    pub length: usize,
}

impl Sequences {
    /// How many sequences there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }
}

/// The tokenizer of a model folder. It holds tens of megabytes for a large vocabulary; drop it once the texts are
/// encoded.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    vocabulary: usize,
}

impl TextTokenizer {
    /// Loads `tokenizer.json` of a model folder. `vocabulary` is the number of rows of the model's token embedding.
    ///
    /// # Errors
    /// [`CalibrationError::NoTokenizer`] and [`CalibrationError::BadTokenizer`].
    pub fn load(folder: &Path, vocabulary: usize) -> Result<Self, CalibrationError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(CalibrationError::NoTokenizer { folder: folder.into() });
        }
        let load = || {
            let mut tokenizer = Tokenizer::from_file(&path)?;
            // A tokenizer file may carry the padding and truncation of its last use; `tokenizer(text)` ignores both.
            tokenizer.with_truncation(None)?.with_padding(None);
            Ok(tokenizer)
        };
        match load() {
            Ok(tokenizer) => Ok(Self { tokenizer, path, vocabulary }),
            Err(source) => Err(CalibrationError::BadTokenizer { path, source }),
        }
    }

    /// The stream of tokens of several files: all of it, or as many whole documents as reach `enough` tokens.
    ///
    /// # Errors
    /// [`CalibrationError::Text`], [`CalibrationError::Encoding`] and [`CalibrationError::OutsideVocabulary`].
    pub fn stream(&self, texts: &[PathBuf], enough: Option<usize>) -> Result<Vec<u32>, CalibrationError> {
        let mut documents = text::documents(texts).peekable();
        let mut tokens = Vec::new();
        while documents.peek().is_some() && enough.is_none_or(|enough| tokens.len() < enough) {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while bytes < BATCH_BYTES
                && let Some(document) = documents.next().transpose()?
            {
                bytes += document.len();
                batch.push(document);
            }
            let encodings = self
                .tokenizer
                .encode_batch_fast(batch, true)
                .map_err(|source| CalibrationError::Encoding { path: self.path.clone(), source })?;
            tokens.extend(encodings.iter().flat_map(|encoding| encoding.get_ids()));
        }
        match tokens.iter().copied().max() {
            Some(token) if token as usize >= self.vocabulary => {
                Err(CalibrationError::OutsideVocabulary { path: self.path.clone(), token, vocabulary: self.vocabulary })
            }
            _ => Ok(tokens),
        }
    }

    /// The calibration sequences, `count` of `length` tokens each. `seed` matters to [`Sampling::Random`] alone.
    ///
    /// # Errors
    /// Those of [`TextTokenizer::stream`], and [`CalibrationError::TooShort`]: contiguous sampling needs
    /// `count · length` tokens, random sampling one sequence's worth.
    ///
    /// # Panics
    /// If `length` is 0.
    pub fn calibrate(
        &self,
        texts: &[PathBuf],
        count: usize,
        length: usize,
        sampling: Sampling,
        seed: u64,
    ) -> Result<Sequences, CalibrationError> {
        let wanted = count.saturating_mul(length);
        match sampling {
            Sampling::Contiguous => {
                let mut tokens = self.stream(texts, Some(wanted))?;
                check_length(tokens.len(), count, length)?;
                tokens.truncate(wanted);
                tokens.shrink_to_fit();
                Ok(Sequences { tokens, length })
            }
            Sampling::Random => draw(&self.stream(texts, None)?, count, length, seed),
        }
    }
}

/// Draws `count` windows of `length` tokens, each starting at any of the `tokens − length + 1` places with equal
/// probability, by ChaCha8 seeded with `seed`: the same seed draws the same windows on every machine.
///
/// # Errors
/// [`CalibrationError::TooShort`] if there are fewer than `length` tokens.
///
/// # Panics
/// If `length` is 0.
pub fn draw(tokens: &[u32], count: usize, length: usize, seed: u64) -> Result<Sequences, CalibrationError> {
    check_length(tokens.len(), 1, length)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let last_start = (tokens.len() - length) as u64;
    let mut sampled = Vec::with_capacity(count.saturating_mul(length).min(1 << 28));
    for _ in 0..count {
        let start = random.random_range(0..=last_start) as usize;
        sampled.extend_from_slice(&tokens[start..start + length]);
    }
    Ok(Sequences { tokens: sampled, length })
}

/// Cuts a stream into windows that do not overlap and drops the tail: what perplexity is measured on.
///
/// # Errors
/// [`CalibrationError::TooShort`] if there is not one whole window.
///
/// # Panics
/// If `length` is 0.
pub fn windows(mut tokens: Vec<u32>, length: usize) -> Result<Sequences, CalibrationError> {
    check_length(tokens.len(), 1, length)?;
    tokens.truncate(tokens.len() / length * length);
    Ok(Sequences { tokens, length })
}

fn check_length(found: usize, sequences: usize, length: usize) -> Result<(), CalibrationError> {
    assert!(length > 0, "a sequence has at least one token");
    let needed = sequences.saturating_mul(length);
    if found < needed {
        return Err(CalibrationError::TooShort { found, needed, sequences, length });
    }
    Ok(())
}
