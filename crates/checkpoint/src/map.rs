//! A safetensors file in memory, its tensors found and checked.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::header::{self, Entry};
use crate::{Error, Tensor};

/// A safetensors file, mapped.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    /// In the order of their bytes, which they fill from the end of the header to the end of the file.
    entries: Vec<Entry>,
}

impl MappedFile {
    /// Maps the file and checks its header.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Error> {
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        if !file.metadata().map_err(Error::io("read", &path))?.is_file() {
            return Err(Error::NotAFile { path });
        }
        // SAFETY: the map is only read. As for every map of a file, no other process may change or truncate the file
        // while it is mapped; this crate never writes to a file that it reads.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
        let entries = header::parse(&map).map_err(|fault| Error::Malformed { path: path.clone(), fault })?;
        Ok(Self { path, map, entries })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Size of the file in bytes.
    pub(crate) fn size(&self) -> usize {
        self.map.len()
    }

    /// The length of the header and the header itself.
    pub(crate) fn header(&self) -> &[u8] {
        let end = self.entries.first().map_or(self.map.len(), |entry| entry.range.start);
        &self.map[..end]
    }

    /// The tensor that one of this file's entries describes.
    pub(crate) fn tensor<'a>(&'a self, entry: &'a Entry) -> Tensor<'a> {
        Tensor { name: &entry.name, dtype: entry.dtype, shape: &entry.shape, bytes: &self.map[entry.range.clone()] }
    }

    /// Takes the pages of these bytes out of this process's memory. They are read again where they are used again.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is shared, read-only and backed by a file that does not change, so that pages which are used
        // again come back with the same bytes: no reference into the map sees a difference.
        let result = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
        // Only advice: where the kernel declines it, memory stays as it was.
        drop(result);
    }

    /// There is no such advice here.
    #[cfg(not(unix))]
    pub(crate) fn release(&self, _: Range<usize>) {}
}
