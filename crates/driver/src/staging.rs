//! The folder in which a result comes into being, written by all ranks together.
//!
//! Rank 0 makes the temporary folder, copies what surrounds the weights and, at the end, renames it; each rank makes and
//! writes its own files of weights in it. The folder is renamed, or removed, when all ranks have closed their files.

use std::path::{Path, PathBuf};

use anyhow::Context;
use checkpoint::{Checkpoint, Output, Writer};
use prune::Collective;

use crate::interrupt::{self, Guard};
use crate::ranks::{Ranks, told_by_first, wait_for_all};

/// The exit code of what can fail while a result is made: no flag is at fault by then.
const FAILURE: u8 = 1;

/// Where results go, and by whom they are made.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// The result's folder.
    pub folder: &'a Path,
    /// Whether it may replace another one.
    pub overwrite: bool,
    /// Who writes.
    pub ranks: &'a Ranks,
}

/// A result in the making, as one rank sees it.
#[derive(Debug)]
pub struct Staged {
    folder: PathBuf,
    // Before its guard: its own removal may be interrupted, too.
    files: Files,
    guard: Guard,
}

#[derive(Debug)]
enum Files {
    /// Rank 0's, with the folder.
    First(Output),
    /// Another rank's.
    Other(Writer),
}

impl Place<'_> {
    /// Begins a result together with all other ranks and does `work` on it, which must be their common work: should it
    /// fail on one of them, it does on all, and the result is removed.
    ///
    /// # Errors
    /// Those of [`Output::create`] and of `work`, and if another rank failed.
    pub fn stage<T>(&self, work: impl FnOnce(&Staged) -> anyhow::Result<T>) -> anyhow::Result<(Staged, T)> {
        let staged = self.begin()?;
        match wait_for_all(&self.ranks.collective()).map_err(Into::into).and_then(|()| work(&staged)) {
            Ok(done) => Ok((staged, done)),
            Err(error) => {
                let Staged { files, guard: _guard, .. } = staged;
                // Closed before they are removed: some shared file systems keep what is open, and with it the folder.
                let output = files.close();
                self.ranks.fail(FAILURE);
                drop(output);
                Err(error)
            }
        }
    }

    fn begin(&self) -> anyhow::Result<Staged> {
        let ranks = &self.ranks.collective();
        if ranks.rank() == 0 {
            let create = || Output::create_shared(self.checkpoint, self.folder, self.overwrite, ranks.size());
            let (guard, output) = interrupt::guard(create)?;
            let folder = output.staged().to_owned();
            told_by_first(ranks, &serde_json::to_vec(&(&folder, output.created()))?)?;
            return Ok(Staged { folder, files: Files::First(output), guard });
        }
        let (folder, created): (PathBuf, Vec<PathBuf>) = serde_json::from_slice(&told_by_first(ranks, &[])?)?;
        let guard = interrupt::guard_shared(folder.clone(), created);
        let writer = Writer::create(self.checkpoint, &folder, ranks.rank(), ranks.size())
            .context("cannot join the output that rank 0 began: it must be in a folder that all machines share")?;
        Ok(Staged { folder, files: Files::Other(writer), guard })
    }
}

impl Staged {
    /// The temporary folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files of this rank.
    pub fn writer(&self) -> &Writer {
        match &self.files {
            Files::First(output) => output.writer(),
            Files::Other(writer) => writer,
        }
    }

    /// Completes the files of all ranks, which can be read by all afterwards.
    ///
    /// # Errors
    /// If a file cannot be written, or another rank failed.
    pub fn complete(&self, ranks: &Ranks) -> anyhow::Result<()> {
        let ranks = &ranks.collective();
        self.writer().complete()?;
        if ranks.size() > 1 {
            self.writer().flush()?;
        }
        Ok(wait_for_all(ranks)?)
    }

    /// Leaves the result, which is complete, to rank 0: to be published, or dropped. The others know nothing of it any more
    /// by then, so that an interrupt of one of them cannot remove what is being published.
    ///
    /// # Errors
    /// If another rank failed.
    pub fn close(self, ranks: &Ranks) -> anyhow::Result<Option<(Guard, Output)>> {
        let Self { files, guard, .. } = self;
        let output = files.close();
        let kept = output.map(|output| (guard, output));
        wait_for_all(&ranks.collective())?;
        Ok(kept)
    }
}

impl Files {
    /// Closes the files of a rank that does not have the folder.
    fn close(self) -> Option<Output> {
        match self {
            Self::First(output) => Some(output),
            Self::Other(_) => None,
        }
    }
}
