//! The files of weights of a checkpoint in the making, or those of them that fall to one of several writers.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Checkpoint, Error};

/// Bytes copied at once, and held in memory by that.
const CHUNK: usize = 16 << 20;

/// Copies of a checkpoint's files of weights, with the same headers and the same layout, of which some tensors are
/// replaced.
///
/// Several processes may share the work: file `i`, in the order of names, is made and written by writer `i mod writers`
/// alone, since file systems that machines share promise little about one file with two writers. Each is given all
/// tensors, and leaves those of the others' files to them.
#[derive(Debug)]
pub struct Writer {
    /// In the order of the source's files; absent where another writer makes it.
    files: Vec<Option<Mutex<WeightFile>>>,
    source: Checkpoint,
}

/// A file of weights in the making. One thread at a time: its position is part of its state.
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

impl Writer {
    /// Begins the files of weights of `source` in `folder` that fall to writer `rank` of `writers`, and reserves their
    /// space.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be created or is there already; [`Error::Write`] on a full disk.
    pub fn create(source: &Checkpoint, folder: &Path, rank: usize, writers: usize) -> Result<Self, Error> {
        let mut output = Self { files: Vec::new(), source: source.clone() };
        for (number, from) in source.files().iter().enumerate() {
            if number % writers != rank {
                output.files.push(None);
                continue;
            }
            // A mapped file has a name: it was opened by joining one to the folder.
            let path = folder.join(from.path().file_name().unwrap_or_default());
            let bytes = from.size() as u64;
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            reserve(&file, bytes).map_err(|source| Error::Write { path: path.clone(), bytes, source })?;
            let mut file = WeightFile { path, file, written: vec![false; from.entries().len()] };
            file.write_at(0, from.header())?;
            output.files.push(Some(Mutex::new(file)));
        }
        Ok(output)
    }

    /// Writes a tensor, unless it lies in another writer's file: its elements in its own dtype, row-major, little
    /// endian, as [`narrow`](crate::narrow) makes them. Written again, the last one stays. May be called from several
    /// threads.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::TensorLength`]; [`Error::Write`], after which the tensor counts as not written.
    pub fn write_tensor(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (file, entry) = self.source.locate(name).ok_or_else(|| self.source.no_tensor(name))?;
        let range = &self.source.files()[file].entries()[entry].range;
        if bytes.len() != range.len() {
            return Err(Error::TensorLength { tensor: name.to_owned(), expected: range.len(), found: bytes.len() });
        }
        let Some(file) = &self.files[file] else { return Ok(()) };
        let mut file = lock(file);
        file.written[entry] = false;
        file.write_at(range.start, bytes)?;
        file.written[entry] = true;
        Ok(())
    }

    /// Copies every tensor of this writer's files that was not written from the source. Tensors may still be written.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn complete(&self) -> Result<(), Error> {
        for (from, file) in self.source.files().iter().zip(&self.files) {
            let Some(file) = file else { continue };
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

    /// Waits until what was written so far is on the disk, where other machines find it that share the folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&self) -> Result<(), Error> {
        for file in self.files.iter().flatten() {
            let file = lock(file);
            file.file.sync_all().map_err(Error::io("flush", &file.path))?;
        }
        Ok(())
    }
}

/// Locks a file. A thread that panicked left its tensor marked as not written, so that the state is sound.
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
