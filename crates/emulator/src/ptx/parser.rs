//! To be written.

use super::ast::Module;

/// Why a text is not PTX.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

/// Parses a module.
///
/// # Errors
/// At the first thing that is not PTX.
pub fn parse(_: &str) -> Result<Module, ParseError> {
    Err(ParseError { line: 1, message: "no parser yet".to_owned() })
}
