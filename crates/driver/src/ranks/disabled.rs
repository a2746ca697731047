//! A build without MPI: this process is alone.

use std::process::ExitCode;

use anyhow::ensure;
use prune::{Collective, Solo};

/// See [`crate::ranks`].
#[derive(Debug)]
pub struct Ranks(());

impl Ranks {
    /// This process.
    ///
    /// # Errors
    /// If a launcher of MPI started it as one of several: they would all do the same job in each other's way.
    pub fn start() -> anyhow::Result<Self> {
        let size = super::launched().unwrap_or(1);
        ensure!(
            size == 1,
            "this is one of {size} ranks of MPI, of which this build knows nothing: build the program with --features \
             mpi, or start it once and divide its job by --shards"
        );
        Ok(Self(()))
    }

    /// The ranks as shards of one another.
    pub fn collective(&self) -> impl Collective {
        Solo
    }

    /// How many ranks share this machine, this one included.
    pub fn on_this_machine(&self) -> usize {
        1
    }

    /// Which of those this one is, from 0.
    pub fn place_on_this_machine(&self) -> usize {
        0
    }

    /// [`prune::run_shards`] over `local` shards of each rank.
    ///
    /// # Errors
    /// The error of the first shard of this rank that failed of its own.
    pub fn run_shards<T: Send, E: Send>(
        &self,
        local: usize,
        shard: impl Fn(&dyn Collective) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        prune::run_shards(local, shard)
    }

    /// Says that this rank has failed, and waits until all ranks have stopped working.
    pub fn fail(&self, _: u8) {}

    /// Ends the job with an exit code, 0 if all went well; `speak` is called where there is something to say, with the
    /// name of the rank if it is one of several.
    pub fn conclude(self, code: u8, speak: impl FnOnce(Option<String>)) -> ExitCode {
        speak(None);
        ExitCode::from(code)
    }
}
