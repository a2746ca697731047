//! To be written.

use crate::check::order::Stamp;
use crate::memory::Memory;
use crate::options::Options;
use crate::profile::Profile;
use crate::program::Program;
use crate::report::{Findings, Kind};

/// A launch.
#[allow(missing_docs)]
pub struct Launch<'a> {
    pub program: &'a Program,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: usize,
    pub parameters: &'a [u8],
    pub cooperative: bool,
    pub device: usize,
    pub peers: &'a [bool],
    pub options: &'a Options,
    pub stamp: Stamp,
    pub number: u64,
}

/// Runs it.
///
/// # Errors
/// The kind of the finding that ended it.
pub fn run(_: &Launch<'_>, _: &Memory, _: &Findings) -> Result<Option<Profile>, Kind> {
    Ok(None)
}
