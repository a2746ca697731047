//! To be written.

use super::Decoded;
use crate::program::Scope;
use crate::ptx::ast::Instruction;

/// A decoded operation of this family.
#[derive(Clone, Debug)]
pub enum Op {}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(_: &mut Scope<'_>, _: &Instruction) -> Decoded {
    Ok(None)
}
