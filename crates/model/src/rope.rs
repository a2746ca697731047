//! Rotary positions (Su et al., arXiv 2104.09864) and the ways to stretch them over longer sequences.
//!
//! Columns j and j + d/2 of a head of d columns are one complex number, turned by `position · frequency_j`. The
//! frequencies are θ^(−2j/d); the kinds of scaling change them, with the formulas of transformers'
//! `modeling_rope_utils.py`, rounded to f32 in the same places: at position 2048 one unit in the last place of a
//! frequency already moves an angle by 10⁻⁴.

use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::Error;
use crate::config::Config;

/// Rotary positions of heads of `head_dim` columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Columns of a head, even.
    pub head_dim: usize,
    /// The base θ of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: Scaling,
}

/// How frequencies are stretched. `original` is the sequence length that the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// θ grows with the sequence where it is longer than `original` ("NTK-aware").
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// The longest sequence without scaling.
        original: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, a blend between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Frequencies with fewer turns over `original` are low.
        low: f64,
        /// Frequencies with more turns over `original` are high.
        high: f64,
        /// The length first trained on.
        original: usize,
    },
    /// As [`Scaling::Llama3`], blended over columns, with sharper attention (Peng et al., arXiv 2309.00071).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// What rotated queries and keys are multiplied by.
        attention_factor: f64,
        /// Frequencies with more turns over `original` are kept.
        beta_fast: f64,
        /// Frequencies with fewer turns over `original` are divided.
        beta_slow: f64,
        /// Whether the bounds of the blend are rounded to whole columns.
        truncate: bool,
        /// The length first trained on.
        original: usize,
    },
}

/// The kinds as `config.json` names them.
const KINDS: &str = "one of default, linear, dynamic, llama3, yarn";

impl Rope {
    /// Reads `rope_parameters` as transformers 5 writes them, or `rope_theta` and `rope_scaling` as 4 does.
    pub(crate) fn read(config: &Config, head_dim: usize, max_sequence_length: usize) -> Result<Self, Error> {
        if !head_dim.is_multiple_of(2) {
            let key = if config.get("head_dim").is_some() { "head_dim" } else { "hidden_size" };
            return Err(config.unexpected(key, format!("heads of an even number of columns, not {head_dim}")));
        }
        let sections = [config.object("rope_scaling")?, config.object("rope_parameters")?];
        let Some(section) = sections.into_iter().flatten().find(|section| section.entries().next().is_some()) else {
            return Ok(Self { head_dim, theta: read_theta(config)?, scaling: Scaling::Default });
        };
        if let Some((key, _)) = section.entries().find(|(_, value)| value.is_object()) {
            return Err(section.unexpected(key, "one set of parameters for all blocks"));
        }
        let theta = read_theta(if section.get("rope_theta").is_some() { &section } else { config })?;
        let required = |key: &str| match section.optional_positive(key)? {
            Some(number) => Ok(number),
            None => Err(section.unexpected(key, "a number greater than zero")),
        };
        let original = || match config.optional_size("original_max_position_embeddings")? {
            Some(original) => Ok(original),
            None => section.size("original_max_position_embeddings", max_sequence_length),
        };
        let kind = section.alias(&["rope_type", "type"]);
        let scaling = match section.text(kind, "default")? {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: required("factor")? },
            "dynamic" if head_dim < 4 => {
                return Err(section.unexpected(kind, format!("default or linear for heads of {head_dim} columns")));
            }
            "dynamic" => Scaling::Dynamic { factor: required("factor")?, original: max_sequence_length },
            "llama3" => {
                let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
                if high <= low {
                    return Err(section.unexpected("high_freq_factor", format!("more than `low_freq_factor`, {low}")));
                }
                Scaling::Llama3 { factor: required("factor")?, low, high, original: original()? }
            }
            "yarn" => {
                let original = original()?;
                let factor = match section.optional_positive("factor")? {
                    Some(factor) => factor,
                    None => max_sequence_length as f64 / original as f64,
                };
                Scaling::Yarn {
                    factor,
                    attention_factor: yarn_attention_factor(&section, factor)?,
                    beta_fast: section.positive("beta_fast", 32.0)?,
                    beta_slow: section.positive("beta_slow", 1.0)?,
                    truncate: section.boolean("truncate", true)?,
                    original,
                }
            }
            _ => return Err(section.unexpected(kind, KINDS)),
        };
        Ok(Self { head_dim, theta, scaling })
    }

    /// The frequencies [head_dim / 2] for sequences of this length, and the factor of cosines and sines.
    pub fn frequencies(&self, sequence_length: usize) -> (Vec<f32>, f32) {
        let d = self.head_dim as f32;
        let unscaled = |theta: f32| {
            let power = move |j: usize| f64::from(theta).powf(f64::from((2 * j) as f32 / d)) as f32;
            (0..self.head_dim / 2).map(move |j| 1.0 / power(j))
        };
        let theta = self.theta as f32;
        match self.scaling {
            Scaling::Default => (unscaled(theta).collect(), 1.0),
            Scaling::Linear { factor } => (unscaled(theta).map(|frequency| frequency / factor as f32).collect(), 1.0),
            Scaling::Dynamic { factor, original } => {
                let stretch = factor * sequence_length.max(original) as f64 / original as f64 - (factor - 1.0);
                let exponent = self.head_dim as f64 / (self.head_dim as f64 - 2.0);
                (unscaled((self.theta * stretch.powf(exponent)) as f32).collect(), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let (factor, low, high) = (factor as f32, low as f32, high as f32);
                let stretch = |frequency: f32| {
                    let turns = original as f32 / (2.0 * PI as f32 / frequency);
                    let high_share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - high_share) * frequency / factor + high_share * frequency
                };
                (unscaled(theta).map(stretch).collect(), 1.0)
            }
            Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow, truncate, original } => {
                // The column whose frequency makes so many turns over the original length.
                let column = |turns: f64| {
                    self.head_dim as f64 * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (column(beta_fast), column(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0) as f32, high.min(self.head_dim as f64 - 1.0) as f32);
                if low == high {
                    high += 0.001;
                }
                let stretch = |(j, frequency): (usize, f32)| {
                    let low_share = ((j as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    let high_share = 1.0 - low_share;
                    frequency / factor as f32 * (1.0 - high_share) + frequency * high_share
                };
                (unscaled(theta).enumerate().map(stretch).collect(), attention_factor as f32)
            }
        }
    }
}

fn read_theta(config: &Config) -> Result<f64, Error> {
    if config.positive("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(config.unexpected("partial_rotary_factor", "1: heads are rotated as a whole"));
    }
    let theta = config.positive("rope_theta", 10_000.0)?;
    if theta <= 1.0 {
        return Err(config.unexpected("rope_theta", "a number greater than 1"));
    }
    Ok(theta)
}

/// 0.1·m·ln(factor) + 1 for factors above 1; the ratio of two such numbers where both m are given.
fn yarn_attention_factor(section: &Config, factor: f64) -> Result<f64, Error> {
    if let Some(given) = section.optional_positive("attention_factor")? {
        return Ok(given);
    }
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let (m, m_all) = (section.optional_positive("mscale")?, section.optional_positive("mscale_all_dim")?);
    Ok(match (m, m_all) {
        (Some(m), Some(m_all)) => scale(m) / scale(m_all),
        _ => scale(1.0),
    })
}

/// Cosines and sines of all positions of a sequence.
#[derive(Debug)]
pub struct Rotation {
    sequence_length: usize,
    half: usize,
    /// [sequence_length, half].
    cosines: Vec<f32>,
    /// [sequence_length, half].
    sines: Vec<f32>,
}

impl Rotation {
    fn new(rope: &Rope, sequence_length: usize) -> Self {
        let (frequencies, factor) = rope.frequencies(sequence_length);
        let half = frequencies.len();
        let (mut cosines, mut sines) = (vec![0.0; sequence_length * half], vec![0.0; sequence_length * half]);
        let rows = cosines.par_chunks_mut(half).zip(sines.par_chunks_mut(half));
        rows.enumerate().for_each(|(position, (cosines, sines))| {
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                (*cosine, *sine) = (c as f32 * factor, s as f32 * factor);
            }
        });
        Self { sequence_length, half, cosines, sines }
    }

    /// [sequence_length, head_dim / 2].
    pub fn cosines(&self) -> &[f32] {
        &self.cosines
    }

    /// [sequence_length, head_dim / 2].
    pub fn sines(&self) -> &[f32] {
        &self.sines
    }

    /// Turns one head of the token at `position`.
    pub(crate) fn turn(&self, position: usize, head: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (real, imaginary) = head.split_at_mut(self.half);
        let turns = self.cosines[row.clone()].iter().zip(&self.sines[row]);
        for ((a, b), (cosine, sine)) in real.iter_mut().zip(imaginary).zip(turns) {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}

/// The last rotation made: all blocks and all chunks of a run ask for the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rotations(Arc<Mutex<Option<Arc<Rotation>>>>);

impl Rotations {
    pub(crate) fn get(&self, rope: &Rope, sequence_length: usize) -> Arc<Rotation> {
        let last = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |rotation: &&Arc<Rotation>| rotation.sequence_length == sequence_length;
        if let Some(rotation) = last().as_ref().filter(fits) {
            return rotation.clone();
        }
        // Not under the lock: while it waits for its tasks, this thread may run others that come here too.
        let rotation = Arc::new(Rotation::new(rope, sequence_length));
        *last() = Some(rotation.clone());
        rotation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(config: &Value, head_dim: usize, max_sequence_length: usize) -> Result<Rope, Error> {
        Rope::read(&Config::new("config.json".into(), config), head_dim, max_sequence_length)
    }

    /// Checks `frequencies` and `factor` against a case of `golden/rope.json`.
    fn assert_golden(case: &Value, config: &Value) {
        let number = |key: &str| case[key].as_u64().expect(key) as usize;
        let rope = read(config, number("head_dim"), number("max_position_embeddings")).expect("a good config");
        let (frequencies, factor) = rope.frequencies(number("sequence_length"));
        let want: Vec<f64> = case["frequencies"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        // Both sides round a power of θ to f32, with an error in its exponent of half a unit in the last place times
        // ln θ ≤ 14, and divide and blend in some ten more operations.
        testkit::assert_close(&config.to_string(), &frequencies, &want, |at| want[at] * 20.0 / f64::from(1 << 24));
        let want = case["factor"].as_f64().expect("factor");
        assert!((f64::from(factor) - want).abs() < 1e-7, "{config}: factor {factor}, want {want}");
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let path = testkit::paths::golden().join("rope.json");
        let cases = std::fs::read_to_string(path).expect("golden/rope.json");
        let cases: Vec<Value> = serde_json::from_str(&cases).expect("a list of cases");
        for kind in ["default", "linear", "dynamic", "llama3", "yarn"] {
            assert!(cases.iter().any(|case| case["config"]["rope_parameters"]["rope_type"] == kind), "{kind}");
        }
        for case in &cases {
            assert_golden(case, &case["config"]);
            // The same as transformers 4 wrote it, with the kind under either of its names.
            let mut scaling = case["config"]["rope_parameters"].clone();
            let theta = scaling["rope_theta"].take();
            scaling.as_object_mut().expect("an object").remove("rope_theta");
            assert_golden(case, &json!({ "rope_theta": theta, "rope_scaling": scaling }));
            scaling["type"] = scaling["rope_type"].take();
            assert_golden(case, &json!({ "rope_theta": theta, "rope_scaling": scaling }));
        }
        let default = json!({ "rope_theta": 10000, "rope_scaling": null });
        assert_golden(&cases[0], &default);
        assert_golden(&cases[0], &json!({}));
    }

    #[test]
    fn a_rotation_turns_pairs_by_the_angle_of_the_position() {
        let rope = read(&json!({ "rope_theta": 100.0 }), 4, 16).expect("a good config");
        let rotations = Rotations::default();
        for position in [0usize, 1, 7] {
            let mut head = [1.0, 2.0, 3.0, 4.0];
            rotations.get(&rope, 8).turn(position, &mut head);
            for (pair, frequency) in [(0, 1.0), (1, 0.1)] {
                let (s, c) = (position as f64 * frequency).sin_cos();
                let (re, im) = (pair as f64 + 1.0, pair as f64 + 3.0);
                let (want_re, want_im) = (re * c - im * s, im * c + re * s);
                assert!((f64::from(head[pair]) - want_re).abs() < 3e-6, "{position} {pair}");
                assert!((f64::from(head[pair + 2]) - want_im).abs() < 3e-6, "{position} {pair}");
            }
        }
    }

    #[test]
    fn bad_parameters_are_named() {
        let cases = [
            (
                json!({ "rope_scaling": { "type": "su", "factor": 2.0 } }),
                "`rope_scaling.type` is \"su\"; expected one of default",
            ),
            (json!({ "rope_parameters": { "rope_type": "linear" } }), "`rope_parameters.factor` is missing"),
            (json!({ "rope_parameters": { "rope_type": "linear", "factor": -1 } }), "`rope_parameters.factor` is -1"),
            (
                json!({ "rope_parameters": { "rope_type": "linear", "factor": "2" } }),
                "`rope_parameters.factor` is \"2\"",
            ),
            (json!({ "rope_theta": 0 }), "`rope_theta` is 0"),
            (json!({ "rope_theta": 0.5 }), "`rope_theta` is 0.5"),
            (json!({ "rope_scaling": 8 }), "`rope_scaling` is 8; expected an object or null"),
            (json!({ "partial_rotary_factor": 0.5 }), "`partial_rotary_factor` is 0.5"),
            (
                json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
                "`rope_parameters.full_attention`",
            ),
            (
                json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 } }),
                "`rope_scaling.high_freq_factor` is 4; expected more than",
            ),
            (
                json!({ "rope_scaling": { "type": "yarn", "factor": 8, "original_max_position_embeddings": 0 } }),
                "`rope_scaling.original_max_position_embeddings` is 0",
            ),
        ];
        for (config, want) in cases {
            let error = read(&config, 16, 64).expect_err("a bad config").to_string();
            assert!(error.contains(want), "{config}: {error}");
        }
        let error = read(&json!({ "head_dim": 15 }), 15, 64).expect_err("an odd head").to_string();
        assert!(error.contains("`head_dim` is 15"), "{error}");
        let error =
            read(&json!({ "rope_scaling": { "type": "dynamic", "factor": 2 } }), 2, 64).expect_err("too narrow");
        assert!(error.to_string().contains("heads of 2 columns"), "{error}");
    }
}
