//! Why a text was refused, with the line at fault.

use super::ast::Target;
use thiserror::Error;

/// Why a PTX text was refused. Lines count from 1; `text` is the line at fault, cut where it is very long.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// The text is not PTX from here on.
    #[error("PTX line {line}: found {found} where {expected} was expected, in `{text}`")]
    Unexpected {
        /// The line.
        line: u32,
        /// What stands there.
        found: String,
        /// What could have stood there.
        expected: String,
        /// The line at fault.
        text: String,
    },
    /// PTX that this driver knows of and cannot run.
    #[error("PTX line {line}: {what}, which is not supported, in `{text}`")]
    Unsupported {
        /// The line.
        line: u32,
        /// What was asked for.
        what: String,
        /// The line at fault.
        text: String,
    },
    /// A number or a nesting beyond any sane program; taken at its word it would exhaust memory or stack.
    #[error("PTX line {line}: {what}, in `{text}`")]
    Excessive {
        /// The line.
        line: u32,
        /// What is too large, and the limit.
        what: String,
        /// The line at fault.
        text: String,
    },
    /// A name that already stands for something in its scope.
    #[error("PTX line {line}: {name} is defined twice, in `{text}`")]
    Duplicate {
        /// The line of the second definition.
        line: u32,
        /// The name.
        name: String,
        /// The line at fault.
        text: String,
    },
    /// A `.version` other than 8.0 to 9.x.
    #[error("PTX line {line}: version {major}.{minor} is not supported, only 8.0 to 9.x are")]
    UnsupportedVersion {
        /// The line.
        line: u32,
        /// Before the dot.
        major: u32,
        /// After the dot.
        minor: u32,
    },
    /// A `.target` before sm_80, or one that is not known.
    #[error("PTX line {line}: target {target} is not known, or is before sm_80, the first that is supported")]
    UnsupportedTarget {
        /// The line.
        line: u32,
        /// The target as written.
        target: String,
    },
    /// A `.target` that the `.version` does not have yet.
    #[error("PTX line {line}: target {target} needs PTX {}.{}, and the module is PTX {}.{}", .first.0, .first.1, .version.0, .version.1)]
    TargetNeedsVersion {
        /// The line.
        line: u32,
        /// The target.
        target: Target,
        /// The first version that has it: major and minor.
        first: (u32, u32),
        /// The version of the module.
        version: (u32, u32),
    },
}

impl ParseError {
    /// The line at fault, from 1.
    pub fn line(&self) -> u32 {
        match self {
            Self::Unexpected { line, .. }
            | Self::Unsupported { line, .. }
            | Self::Excessive { line, .. }
            | Self::Duplicate { line, .. }
            | Self::TargetNeedsVersion { line, .. }
            | Self::UnsupportedVersion { line, .. }
            | Self::UnsupportedTarget { line, .. } => *line,
        }
    }
}
