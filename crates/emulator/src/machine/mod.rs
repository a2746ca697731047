//! The machine that runs a program: warps of 32 lanes, thread blocks of warps, and launches of thread blocks over the
//! cores of the host.

mod barrier;
pub mod block;
pub mod context;
pub mod launch;
pub(crate) mod racing;
mod random;
pub mod registers;
pub mod shared;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod warp;

use serde::{Deserialize, Serialize};

/// What a profile counts an operation as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // they say it
pub enum Class {
    Integer,
    Float32,
    Float64,
    Half,
    Compare,
    Convert,
    Move,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    LoadLocal,
    StoreLocal,
    LoadParameter,
    Atomic,
    Branch,
    Barrier,
    Fence,
    Warp,
    Matrix,
    MatrixLoad,
    Asynchronous,
    Other,
}

/// Why a warp cannot go on: what becomes a [`crate::report::Finding`] once the place and the thread are added.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Of what kind.
    pub kind: crate::report::Kind,
    /// The lane that met it, if it was one.
    pub lane: Option<usize>,
    /// What happened.
    pub message: String,
}

impl Fault {
    /// A fault of one lane.
    pub fn lane(kind: crate::report::Kind, lane: usize, message: impl Into<String>) -> Self {
        Self { kind, lane: Some(lane), message: message.into() }
    }

    /// A fault of a whole warp.
    pub fn warp(kind: crate::report::Kind, message: impl Into<String>) -> Self {
        Self { kind, lane: None, message: message.into() }
    }
}

/// What a warp does after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on with the next one.
    Next,
    /// Goes on with the next one, after other warps had a turn: what it waits for may need them.
    Yield,
}
