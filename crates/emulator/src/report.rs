//! What was found: each finding with the place in the program and the thread that met it.

use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Of what kind a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An access outside of every allocation, or of a shared, local, constant or parameter space.
    OutOfBounds,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An access to another device's memory without peer access.
    PeerAccess,
    /// A launch that cannot be: parameters, threads, shared memory, grid.
    InvalidLaunch,
    /// Threads that wait at a barrier for others that cannot come, or `.aligned` under divergence.
    Barrier,
    /// Threads that all wait for each other.
    Deadlock,
    /// A shuffle, vote or match whose mask does not name the threads that execute it.
    Mask,
    /// What the ISA leaves undefined, such as an operand out of its range.
    Undefined,
    /// `trap`.
    Trap,
    /// A failed device-side assertion.
    Assertion,
    /// The instruction limit was reached.
    Endless,
    /// A read of memory that nobody wrote.
    Uninitialized,
    /// Two accesses to one address, at least one of them a write, without an order between them.
    Race,
    /// Memory, streams, events or modules that were not given back before their context was destroyed.
    Leak,
}

impl Kind {
    /// Whether the launch goes on after it, as a tool's finding, or ends with an error of the driver.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::Uninitialized | Self::Race | Self::Leak)
    }
}

/// A line of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Line of the PTX text, from 1; 0 where there is none.
    pub ptx_line: u32,
    /// Instruction as written, without operands.
    pub instruction: String,
    /// File and line of the source, where the PTX carries `.loc`.
    pub source: Option<(String, u32)>,
    /// File and line of the call, where the source is of a function that was inlined.
    pub inlined_at: Option<(String, u32)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (PTX line {}", self.instruction, self.ptx_line)?;
        if let Some((file, line)) = &self.source {
            write!(f, ", {file}:{line}")?;
        }
        if let Some((file, line)) = &self.inlined_at {
            write!(f, " called at {file}:{line}")?;
        }
        write!(f, ")")
    }
}

/// A thread of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ThreadId {
    /// Index of the thread block.
    pub block: [u32; 3],
    /// Index of the thread in it.
    pub thread: [u32; 3],
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([a, b, c], [x, y, z]) = (self.block, self.thread);
        write!(f, "thread ({x}, {y}, {z}) of block ({a}, {b}, {c})")
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Of what kind.
    pub kind: Kind,
    /// The kernel, or the driver function, that met it.
    pub kernel: String,
    /// The instruction, if it was one.
    pub place: Option<Place>,
    /// The thread, if it was one.
    pub thread: Option<ThreadId>,
    /// What happened: address, size, what is there, and so on.
    pub message: String,
    /// For a race, the other access: its instruction (or operation) and thread.
    pub other: Option<(Place, Option<ThreadId>)>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kernel, self.message)?;
        if let Some(thread) = self.thread {
            write!(f, ", by {thread}")?;
        }
        if let Some(place) = &self.place {
            write!(f, " at {place}")?;
        }
        if let Some((place, thread)) = &self.other {
            write!(f, "; the other is {place}")?;
            if let Some(thread) = thread {
                write!(f, " by {thread}")?;
            }
        }
        Ok(())
    }
}

/// Collects findings of all threads; the same kind at the same instruction is kept once a kernel.
#[derive(Debug, Default)]
pub struct Findings {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    findings: Vec<Finding>,
    /// Kind, kernel and PTX line of those that have one.
    seen: HashSet<(Kind, String, u32)>,
}

impl Findings {
    /// Adds a finding, unless its like is there.
    pub fn add(&self, finding: Finding) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let line = finding.place.as_ref().map_or(0, |place| place.ptx_line);
        if finding.place.is_none() || kept.seen.insert((finding.kind, finding.kernel.clone(), line)) {
            kept.findings.push(finding);
        }
    }

    /// Takes all that were found since the last call.
    pub fn take(&self) -> Vec<Finding> {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner)).findings
    }
}
