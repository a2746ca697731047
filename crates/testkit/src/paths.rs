//! Where the repository keeps what tests read, and copies of it that a test may write to.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The folder `golden/` of the repository.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

/// The demonstration model, `assets/demo/`.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")
}

/// A copy of a checkpoint in a folder of its own, which goes when the value is dropped. `name` is `demo` or a folder of
/// `golden/models/`, whose `expected.safetensors` stays behind: it is no part of the checkpoint.
///
/// # Panics
/// If the checkpoint cannot be copied.
pub fn copy_checkpoint(name: &str) -> TempDir {
    let from = if name == "demo" { demo() } else { golden().join("models").join(name) };
    let copy = || -> std::io::Result<TempDir> {
        let to = TempDir::new()?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != "expected.safetensors" {
                // Not `fs::copy`, which would hand on a read-only permission.
                fs::write(to.path().join(entry.file_name()), fs::read(entry.path())?)?;
            }
        }
        Ok(to)
    };
    copy().unwrap_or_else(|error| panic!("copying {}: {error}", from.display()))
}
