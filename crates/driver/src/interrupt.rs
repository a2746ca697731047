//! Ctrl-C and SIGTERM: what was begun on disk is removed before the program ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;

/// The exit code of a program that an interrupt ended: 128 + SIGINT.
const EXIT_CODE: i32 = 130;

/// Folders that exist only while the program runs.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn temporary() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen for interrupts.
///
/// # Errors
/// If the system does not let us.
pub fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        for folder in temporary().iter() {
            // There is nobody left to tell, and what cannot be removed is named by its dot and `partial`.
            let _ = fs::remove_dir_all(folder);
        }
        std::process::exit(EXIT_CODE);
    })
    .context("cannot listen for interrupts")
}

/// Has a folder removed should an interrupt come while the returned guard lives.
#[must_use]
pub fn guard(folder: &Path) -> Guard {
    temporary().push(folder.to_owned());
    Guard(folder.to_owned())
}

/// See [`guard`].
#[derive(Debug)]
pub struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        temporary().retain(|folder| *folder != self.0);
    }
}
