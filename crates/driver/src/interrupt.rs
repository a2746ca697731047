//! Ctrl-C and SIGTERM: what was begun on disk is removed before the program ends.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use checkpoint::Output;

/// The exit code of a program that an interrupt ended: 128 + SIGINT.
const EXIT_CODE: i32 = 130;

/// What exists only while the program runs. Whoever holds the lock is not interrupted.
static BEGUN: Mutex<Vec<Begun>> = Mutex::new(Vec::new());

/// What an output has on disk until it is published.
#[derive(Debug)]
struct Begun {
    /// The temporary folder.
    staged: PathBuf,
    /// The parents made for it, each after those it lies in.
    created: Vec<PathBuf>,
}

fn begun() -> MutexGuard<'static, Vec<Begun>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen for interrupts.
///
/// # Errors
/// If the system does not let us.
pub fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        // Held until the end: nothing is begun or published any more. The latest goes first, out of the parents that
        // an earlier one may have made.
        let begun = begun();
        for Begun { staged, created } in begun.iter().rev() {
            // There is nobody left to tell, and what cannot be removed is named by its dot and `partial`.
            let _ = fs::remove_dir_all(staged);
            for folder in created.iter().rev() {
                // Fails where something else lies in it by now, which then stays.
                let _ = fs::remove_dir(folder);
            }
        }
        std::process::exit(EXIT_CODE);
    })
    .context("cannot listen for interrupts")
}

/// Does work that must not be left half done: an interrupt waits for its end. It must be short, and neither begin an
/// output nor drop a [`Guard`].
pub fn undivided<T>(work: impl FnOnce() -> T) -> T {
    let _held = begun();
    work()
}

/// Begins an output that is removed, with the parents made for it, should an interrupt come while the guard lives. The
/// guard stands first for its binding to outlive that of the output, whose own removal may be interrupted, too.
///
/// # Errors
/// Those of `create`.
pub fn guard<E>(create: impl FnOnce() -> Result<Output, E>) -> Result<(Guard, Output), E> {
    let mut begun = begun();
    let output = create()?;
    let (staged, created) = (output.staged().to_owned(), output.created().to_owned());
    begun.push(Begun { staged: staged.clone(), created });
    Ok((Guard(staged), output))
}

/// [`guard`] for an output that another process began: should that one be killed, this one cleans up.
pub fn guard_shared(staged: PathBuf, created: Vec<PathBuf>) -> Guard {
    begun().push(Begun { staged: staged.clone(), created });
    Guard(staged)
}

/// See [`guard`].
#[derive(Debug)]
#[must_use]
pub struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        begun().retain(|entry| entry.staged != self.0);
    }
}
