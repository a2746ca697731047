//! A checkpoint being written: complete or not there at all.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::target::{CreatedFolders, Target};
use crate::{Checkpoint, Error, copy, index};

/// Bytes copied at once, and held in memory by that.
const CHUNK: usize = 16 << 20;

/// A copy of a checkpoint in the making: the same files with the same headers and the same layout, of which some tensors
/// are replaced. It lies in a temporary folder beside its destination until [`publish`](Self::publish) renames it;
/// dropped before that, it is removed.
#[derive(Debug)]
pub struct Output {
    files: Vec<Mutex<WeightFile>>,
    target: Target,
    /// The destination, as given.
    folder: PathBuf,
    source: Checkpoint,
    // Fields are dropped in this order: the temporary folder leaves its parents before they are removed.
    staged: TempDir,
    created: CreatedFolders,
}

/// A file of weights in the making. One writer at a time: its position is part of its state.
#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    file: File,
    /// Of each entry of the source's file, whether its bytes are final.
    written: Vec<bool>,
}

impl WeightFile {
    fn write_at(&mut self, position: usize, bytes: &[u8]) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.file
            .seek(SeekFrom::Start(position as u64))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|source| Error::Write { path: self.path.clone(), bytes: length, source })
    }
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
    pub fn create(source: &Checkpoint, folder: &Path, overwrite: bool) -> Result<Self, Error> {
        let target = Target::new(source, folder, overwrite)?;
        let created = target.create_parents()?;
        let staged = target.beside("partial")?;
        let mut output =
            Self { files: Vec::new(), target, folder: folder.to_owned(), source: source.clone(), staged, created };
        for from in source.files() {
            // A mapped file has a name: it was opened by joining one to the folder.
            let path = output.staged.path().join(from.path().file_name().unwrap_or_default());
            let bytes = from.size() as u64;
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            reserve(&file, bytes).map_err(|source| Error::Write { path: path.clone(), bytes, source })?;
            let mut file = WeightFile { path, file, written: vec![false; from.entries().len()] };
            file.write_at(0, from.header())?;
            output.files.push(Mutex::new(file));
        }
        let skip: Vec<_> = source.files().iter().filter_map(|file| file.path().file_name()).collect();
        copy::surroundings(source.folder(), output.staged.path(), &skip)?;
        Ok(output)
    }

    /// Writes a tensor: its elements in its own dtype, row-major, little endian, as [`narrow`](crate::narrow) makes
    /// them. Written again, the last one stays. May be called from several threads.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::TensorLength`]; [`Error::Write`], after which the tensor counts as not written.
    pub fn write_tensor(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (file, entry) = self.source.locate(name).ok_or_else(|| self.source.no_tensor(name))?;
        let range = &self.source.files()[file].entries()[entry].range;
        if bytes.len() != range.len() {
            return Err(Error::TensorLength { tensor: name.to_owned(), expected: range.len(), found: bytes.len() });
        }
        let mut file = lock(&self.files[file]);
        file.written[entry] = false;
        file.write_at(range.start, bytes)?;
        file.written[entry] = true;
        Ok(())
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
        for (from, file) in self.source.files().iter().zip(&self.files) {
            let mut file = lock(file);
            for (at, entry) in from.entries().iter().enumerate() {
                if file.written[at] {
                    continue;
                }
                let bytes = from.tensor(entry).bytes;
                for (chunk, position) in bytes.chunks(CHUNK).zip((entry.range.start..).step_by(CHUNK)) {
                    file.write_at(position, chunk)?;
                    from.release(position..position + chunk.len());
                }
                file.written[at] = true;
            }
        }
        Ok(())
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
        let Self { created: _created, staged, files, target, folder, source: _ } = self;
        drop(files);
        copy::flush(staged.path())?;
        target.replace_with(staged)?;
        Ok(folder)
    }
}

/// Locks a file. A writer that panicked left its tensor marked as not written, so that the state is sound.
fn lock(file: &Mutex<WeightFile>) -> MutexGuard<'_, WeightFile> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the file its size and, where the file system can, its space on the disk.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;

        let length = libc::off64_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY: the descriptor is that of an open file, and the call touches no memory of this process.
        if unsafe { libc::fallocate64(file.as_raw_fd(), 0, 0, length) } != 0 {
            let error = io::Error::last_os_error();
            // Not every file system can reserve: there, a full disk shows when the bytes are written.
            if !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINTR)) {
                return Err(error);
            }
        }
    }
    Ok(())
}
