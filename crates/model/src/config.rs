//! `config.json`, read with suspicion: every number has a kind and a bound, and what does not fit is named.

use std::path::PathBuf;

use serde_json::Value;

use crate::Error;

/// No extent of a model comes near this; products of two of them fit `usize` with room for a few more factors.
const LARGEST: u64 = 1 << 24;
/// No model has as many blocks; what is stored per block stays small.
const MOST_BLOCKS: usize = 1 << 16;

/// The object that `config.json` holds, or one inside it.
#[derive(Clone, Debug)]
pub(crate) struct Config<'a> {
    path: PathBuf,
    /// The keys that lead here from the top, each followed by a dot.
    within: String,
    value: &'a Value,
}

impl<'a> Config<'a> {
    /// The whole of `config.json`, which lies at `path`.
    pub(crate) fn new(path: PathBuf, value: &'a Value) -> Self {
        Self { path, within: String::new(), value }
    }

    /// The error that says what `key` holds and what it should.
    pub(crate) fn unexpected(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.value.get(key).map_or_else(|| "missing".to_owned(), shortened);
        Error::Config {
            path: self.path.clone(),
            key: format!("{}{key}", self.within),
            found,
            expected: expected.into(),
        }
    }

    /// Refuses the configuration of a quantized checkpoint: its weights may look like any others, but be codes.
    pub(crate) fn refuse_quantized(&self) -> Result<(), Error> {
        let Some(quantization) = self.get("quantization_config") else { return Ok(()) };
        let method = quantization.get("quant_method").map_or_else(|| "missing".to_owned(), shortened);
        Err(Error::Quantized { path: self.path.clone(), method })
    }

    /// The value of `key`; `None` where it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// Whether `key` is there and null, which in places means something else than missing.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.value.get(key).is_some_and(Value::is_null)
    }

    /// The entries, in the order of the file.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.value.as_object().into_iter().flatten()
    }

    /// The object under `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Config<'a>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => {
                Ok(Some(Self { path: self.path.clone(), within: format!("{}{key}.", self.within), value }))
            }
            Some(_) => Err(self.unexpected(key, "an object or null")),
        }
    }

    /// A number of things, at least one.
    pub(crate) fn size(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// A number of things, at least one, or none where the key is missing or null.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().filter(|size| (1..=LARGEST).contains(size)) {
            Some(size) => Ok(Some(size as usize)),
            None => Err(self.unexpected(key, format!("a whole number from 1 to {LARGEST}"))),
        }
    }

    /// A number of things that divides `whole`, the value of `whole_key`.
    pub(crate) fn divisor(&self, key: &str, default: usize, whole_key: &str, whole: usize) -> Result<usize, Error> {
        let divisor = self.size(key, default)?;
        if !whole.is_multiple_of(divisor) {
            return Err(self.unexpected(key, format!("a divisor of `{whole_key}`, {whole} (default {default})")));
        }
        Ok(divisor)
    }

    /// The number of decoder blocks.
    pub(crate) fn blocks(&self, key: &str, default: usize) -> Result<usize, Error> {
        let blocks = self.size(key, default)?;
        if blocks > MOST_BLOCKS {
            return Err(self.unexpected(key, format!("at most {MOST_BLOCKS} blocks")));
        }
        Ok(blocks)
    }

    /// A finite number greater than zero.
    pub(crate) fn positive(&self, key: &str, default: f64) -> Result<f64, Error> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A finite number greater than zero, or none where the key is missing or null.
    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Within the range of f32, in which these numbers are used.
        match value.as_f64().filter(|number| (1e-30..=1e30).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.unexpected(key, "a number greater than zero")),
        }
    }

    /// True or false.
    pub(crate) fn boolean(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.unexpected(key, "true or false")),
        }
    }

    /// A string.
    pub(crate) fn text(&self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.unexpected(key, "a string")),
        }
    }

    /// The first of several names for one thing that is there; the first name where none is.
    pub(crate) fn alias<'k>(&self, keys: &[&'k str]) -> &'k str {
        keys.iter().copied().find(|key| self.get(key).is_some()).unwrap_or(keys[0])
    }
}

/// JSON, cut where it would fill a screen.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
