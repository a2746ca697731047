//! A checkpoint being written: complete or not there at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::target::{CreatedFolders, Lock, Target};
use crate::{Checkpoint, Error, Writer, copy, index};

/// A copy of a checkpoint in the making: the same files with the same headers and the same layout, of which some tensors
/// are replaced. It lies in a temporary folder beside its destination until [`publish`](Self::publish) renames it;
/// dropped before that, it is removed.
#[derive(Debug)]
pub struct Output {
    writer: Writer,
    target: Target,
    /// The destination, as given.
    folder: PathBuf,
    source: Checkpoint,
    // Fields are dropped in this order: the temporary folder leaves its parents before they are removed.
    staged: TempDir,
    created: CreatedFolders,
    lock: Lock,
}

impl Output {
    /// Begins a copy of `source` that will be published as `folder`: reserves the space for the weights and copies all
    /// other files and sub-folders byte for byte (links as what they lead to; folders whose name begins with a dot are
    /// left out), so that a disk that is too small is noticed before any work is done. Missing parents are created.
    ///
    /// An existing folder is in the way unless it is empty, or `overwrite` is set and it is a checkpoint, that is, has
    /// a `config.json`; it stays untouched until [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Error::OutputMeetsSource`], [`Error::OutputExists`], [`Error::OutputNotAFolder`],
    /// [`Error::OutputNotACheckpoint`], [`Error::OutputUnnamed`]; [`Error::Write`] on a full disk; [`Error::Io`],
    /// [`Error::LinkLoop`] or [`Error::NotAFile`] if something cannot be copied. Nothing is left behind.
    ///
    /// A process that is killed cannot remove its temporary folder: the next one that makes the same output does, where the
    /// file system can lock folders.
    pub fn create(source: &Checkpoint, folder: &Path, overwrite: bool) -> Result<Self, Error> {
        Self::create_shared(source, folder, overwrite, 1)
    }

    /// [`create`](Self::create) for the first of several writers. The others each begin a [`Writer`] in
    /// [`staged`](Self::staged), and have completed and flushed it before [`publish`](Self::publish) is called: this
    /// output knows of its own files only.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_shared(source: &Checkpoint, folder: &Path, overwrite: bool, writers: usize) -> Result<Self, Error> {
        let target = Target::new(source, folder, overwrite)?;
        let created = target.create_parents()?;
        let (staged, lock) = target.stage()?;
        let writer = Writer::create(source, staged.path(), 0, writers)?;
        let skip: Vec<_> = source.files().iter().filter_map(|file| file.path().file_name()).collect();
        copy::surroundings(source.folder(), staged.path(), &skip)?;
        Ok(Self { writer, target, folder: folder.to_owned(), source: source.clone(), staged, created, lock })
    }

    /// The files of weights of this writer.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// [`Writer::write_tensor`].
    ///
    /// # Errors
    /// As there.
    pub fn write_tensor(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_tensor(name, bytes)
    }

    /// Writes a file beside the weights, in place of one of that name that was copied.
    ///
    /// # Errors
    /// [`Error::FileName`] if the name is not that of a file in this folder, or is that of the weights or their index;
    /// [`Error::Write`].
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let refuse = |reason| Error::FileName { name: name.to_owned(), reason };
        if !index::is_file_name(name) {
            return Err(refuse("it is not the name of a file in this folder"));
        }
        if self.source.weight_files().any(|weights| weights == name) {
            return Err(refuse("it is the name of the weights or of their index"));
        }
        let path = self.staged().join(name);
        // A copy may be read-only, as its original was: it is replaced, not written into.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("replace", path)(error)),
            _ => {}
        }
        fs::write(&path, bytes).map_err(|source| Error::Write { path, bytes: bytes.len() as u64, source })
    }

    /// The temporary folder.
    pub fn staged(&self) -> &Path {
        self.staged.path()
    }

    /// The parents that were created for it, each after those it lies in; they go with it where it is dropped and they
    /// are empty.
    pub fn created(&self) -> &[PathBuf] {
        self.created.paths()
    }

    /// Copies every tensor that was not written from the source: afterwards [`staged`](Self::staged) is a whole
    /// checkpoint, which can be opened. Tensors may still be written.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn complete(&self) -> Result<(), Error> {
        self.writer.complete()
    }

    /// Waits until what was written so far is on the disk, so that [`publish`](Self::publish) takes a moment only.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&self) -> Result<(), Error> {
        copy::flush(self.staged())
    }

    /// Completes the checkpoint, waits until it is on the disk and renames it to its destination, which is returned as
    /// it was given. A checkpoint that is overwritten is moved aside before, and removed after.
    ///
    /// # Errors
    /// Those of [`complete`](Self::complete); those of [`create`](Self::create) about the destination, if something
    /// appeared there since; [`Error::Io`]. The temporary folder is removed and what stood at the destination stays,
    /// except where the message says otherwise.
    pub fn publish(self) -> Result<PathBuf, Error> {
        self.complete()?;
        // Dropped in reverse: as in the struct, the temporary folder goes before its parents.
        let Self { lock: _lock, created: _created, staged, writer, target, folder, source: _ } = self;
        drop(writer);
        copy::flush(staged.path())?;
        target.replace_with(staged)?;
        Ok(folder)
    }
}
