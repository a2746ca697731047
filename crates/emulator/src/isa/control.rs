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

impl Op {
    /// What a profile counts it as.
    pub fn class(&self) -> crate::machine::Class {
        match *self {}
    }
}

impl Op {
    pub(crate) fn resolve(&mut self, _: &[usize]) {}
}

pub(crate) fn exit() -> super::Op {
    unimplemented!()
}

pub(crate) fn branch(_: crate::program::Label) -> super::Op {
    unimplemented!()
}

pub(crate) fn is_system_function(_: &str) -> bool {
    false
}
