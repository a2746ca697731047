//! Copying what surrounds the weights, and getting a folder onto the disk.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Error;

/// Copies the files and sub-folders of `from` into the existing folder `to`, byte for byte, except those in `skip` and
/// folders whose name begins with a dot: what version control and download caches keep there is not part of a
/// checkpoint. Symbolic links are replaced by what they lead to, since a folder in the Hub's cache consists of links.
pub(crate) fn surroundings(from: &Path, to: &Path, skip: &[&OsStr]) -> Result<(), Error> {
    copy_folder(from, to, skip, &mut Vec::new())
}

/// `above` holds the real paths of the folders that are being copied, so that a link back to one of them is noticed.
fn copy_folder(from: &Path, to: &Path, skip: &[&OsStr], above: &mut Vec<PathBuf>) -> Result<(), Error> {
    let real = from.canonicalize().map_err(Error::io("read", from))?;
    if above.contains(&real) {
        return Err(Error::LinkLoop { path: from.to_owned() });
    }
    above.push(real);
    for item in fs::read_dir(from).map_err(Error::io("list", from))? {
        let name = item.map_err(Error::io("list", from))?.file_name();
        let (source, target) = (from.join(&name), to.join(&name));
        if skip.contains(&name.as_os_str()) {
            continue;
        }
        let metadata = fs::metadata(&source).map_err(Error::io("read", &source))?;
        if metadata.is_file() {
            fs::copy(&source, &target).map_err(|error| Error::Write {
                path: target,
                bytes: metadata.len(),
                source: error,
            })?;
        } else if !metadata.is_dir() {
            return Err(Error::NotAFile { path: source });
        } else if !name.as_encoded_bytes().starts_with(b".") {
            fs::create_dir(&target).map_err(Error::io("create", &target))?;
            copy_folder(&source, &target, &[], above)?;
        }
    }
    above.pop();
    Ok(())
}

/// Waits until the folder and everything in it is on the disk.
pub(crate) fn flush(folder: &Path) -> Result<(), Error> {
    for item in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = item.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            flush(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("flush", &path))?;
        }
    }
    flush_entries(folder)
}

/// Waits until the names in a folder are on the disk.
#[cfg(unix)]
pub(crate) fn flush_entries(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", folder))
}

/// Folders cannot be opened here, and their names are written with them.
#[cfg(not(unix))]
pub(crate) fn flush_entries(_: &Path) -> Result<(), Error> {
    Ok(())
}
