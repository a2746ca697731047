//! The processes that share a job, one of which this is: ranks of MPI, or this one alone.
//!
//! ```text
//! rank 0: shards 0 .. n     rank 1: shards n .. 2n     …      threads within a rank, MPI between ranks
//! ```
//! All ranks make the same calls in the same order. Before any of them moves data they meet: each says what it is
//! about to do, or that it has failed, so that a failure ends all of them with one message instead of leaving
//! the others to wait. A rank that is killed cannot say so; its launcher ends the others then.

#[cfg(not(feature = "mpi"))]
mod disabled;
#[cfg(feature = "mpi")]
mod enabled;

#[cfg(not(feature = "mpi"))]
pub use disabled::Ranks;
#[cfg(feature = "mpi")]
pub use enabled::Ranks;

use prune::{Collective, Disconnected};

/// How many ranks there are, by the words of the launcher of MPI that started this process, if one did: Open MPI's,
/// MPICH's (and its relatives', and Slurm's for them), MVAPICH2's.
fn launched() -> Option<usize> {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"].iter().find_map(|name| variable(name))
}

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// What rank 0 has to say, on all ranks.
///
/// # Errors
/// If another rank failed.
pub fn told_by_first(collective: &dyn Collective, own: &[u8]) -> Result<Vec<u8>, Disconnected> {
    let own = if collective.rank() == 0 { own } else { &[] };
    Ok(collective.gather(own)?.swap_remove(0))
}

/// Waits until all ranks have come as far.
///
/// # Errors
/// If another rank failed.
pub fn wait_for_all(collective: &dyn Collective) -> Result<(), Disconnected> {
    collective.gather(&[]).map(drop)
}
