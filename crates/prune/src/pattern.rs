//! What a user asks for: a method, and how many weights are to go.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the weights that go are chosen, and whether the others are corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Smallest w̃² / d² panel by panel, the rest corrected (Frantar & Alistarh 2023, arXiv 2301.00774).
    Sparsegpt,
    /// Smallest |w| · ‖x‖ per row (Sun et al. 2023, arXiv 2306.11695); nothing is corrected.
    Wanda,
    /// Smallest |w|; nothing is corrected.
    Magnitude,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Sparsegpt => "SparseGPT",
            Method::Wanda => "Wanda",
            Method::Magnitude => "magnitude",
        })
    }
}

/// How many weights go, and where they may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// A fraction of the weights goes, wherever they are.
    Unstructured {
        /// The fraction that goes, in [0, 1).
        sparsity: f64,
    },
    /// `keep` of every `group` consecutive columns of a row stay; written `2:4`.
    NOfM {
        /// How many stay.
        keep: usize,
        /// Out of how many.
        group: usize,
    },
}

/// The widest group of n:m: beyond it, a pattern is no easier on hardware than none.
const WIDEST_GROUP: usize = 1024;

impl Pattern {
    /// The columns that are decided together: m of n:m, otherwise 1.
    pub fn group(&self) -> usize {
        match *self {
            Pattern::Unstructured { .. } => 1,
            Pattern::NOfM { group, .. } => group,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured { sparsity } => write!(f, "{} %", (1e6 * sparsity).round() / 1e4),
            Pattern::NOfM { keep, group } => write!(f, "{keep}:{group}"),
        }
    }
}

/// Why a text is no n:m pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no n:m pattern: {why}; n of every m consecutive columns are kept, as in 2:4")]
pub struct ParsePatternError {
    found: String,
    why: &'static str,
}

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why| ParsePatternError { found: text.to_owned(), why };
        let (keep, group) = text.split_once(':').ok_or_else(|| wrong("there is no colon"))?;
        let number = |digits: &str| digits.trim().parse::<usize>().map_err(|_| wrong("n and m are whole numbers"));
        let (keep, group) = (number(keep)?, number(group)?);
        match () {
            () if keep == 0 => Err(wrong("n is at least 1")),
            () if keep >= group => Err(wrong("n is smaller than m")),
            () if group > WIDEST_GROUP => Err(wrong("m is at most 1024")),
            () => Ok(Pattern::NOfM { keep, group }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for (text, keep, group) in [("2:4", 2, 4), ("1:4", 1, 4), ("16:32", 16, 32), ("3:7", 3, 7)] {
            assert_eq!(text.parse(), Ok(Pattern::NOfM { keep, group }));
            assert_eq!(Pattern::NOfM { keep, group }.to_string(), text);
        }
        for text in ["", "2", "2:", ":4", "4:4", "5:4", "0:4", "-1:4", "2:4:8", "a:b", "2:4096"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
