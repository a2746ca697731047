//! The architectures, one file each: what `config.json` says becomes a [`Description`].

mod bloom;
mod llama;
mod mistral;
mod opt;
mod qwen2;
mod qwen3;

use crate::config::Config;
use crate::{Description, Error};

/// What an architecture's file provides.
type Describe = fn(&Config) -> Result<Description, Error>;

/// `model_type` and the file that describes it.
const KNOWN: [(&str, Describe); 6] = [
    ("opt", opt::describe),
    ("bloom", bloom::describe),
    ("llama", llama::describe),
    ("mistral", mistral::describe),
    ("qwen2", qwen2::describe),
    ("qwen3", qwen3::describe),
];

/// The model that a configuration describes.
pub(crate) fn describe(config: &Config) -> Result<Description, Error> {
    config.refuse_quantized()?;
    let found = config.text("model_type", "")?;
    match KNOWN.iter().find(|(model_type, _)| *model_type == found) {
        Some((_, describe)) => describe(config),
        None => Err(config.unexpected("model_type", format!("one of {}", known().collect::<Vec<_>>().join(", ")))),
    }
}

/// The architectures that can be opened, as `model_type` names them.
pub fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(model_type, _)| *model_type)
}
