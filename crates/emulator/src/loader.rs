//! For whoever runs a program on the emulated driver: loads the built `libcuda.so` before the program asks for one,
//! sets it up, and asks it afterwards what it found.
//!
//! ```no_run
//! let driver = emulator::loader::load(&emulator::options::Options::checked(7))?;
//! // … run code that uses CUDA through cudarc, unchanged …
//! assert!(driver.findings().is_empty());
//! # Ok::<(), emulator::loader::LoadError>(())
//! ```

use crate::options::Options;
use crate::profile::Profile;
use crate::report::Finding;
use serde::de::DeserializeOwned;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Why the driver was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such library beside the program. Cargo builds it wherever the crate is a dependency.
    #[error("{name} is in none of {}: build it, or depend on its crate", folders(.looked))]
    NotFound {
        /// The file.
        name: String,
        /// The folders in which it was sought.
        looked: Vec<PathBuf>,
    },
    /// The dynamic linker refused it.
    #[error("{}: {reason}", .path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// What the linker says.
        reason: String,
    },
    /// The library lacks a function, so that it is not of this version.
    #[error("{} has no {symbol}: it was built from another version", .path.display())]
    Symbol {
        /// The library.
        path: PathBuf,
        /// The function.
        symbol: String,
    },
    /// The driver did not take the options.
    #[error("the emulated driver refuses its options: {0}")]
    Refused(String),
}

fn folders(looked: &[PathBuf]) -> String {
    looked.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

type Ask = unsafe extern "C" fn() -> *mut c_char;

/// The loaded driver. It stays loaded when this is dropped.
#[derive(Clone, Debug)]
pub struct Loaded {
    path: PathBuf,
    configure: unsafe extern "C" fn(*const c_char) -> *mut c_char,
    findings: Ask,
    profiles: Ask,
    leaks: Ask,
    free: unsafe extern "C" fn(*mut c_char),
}

/// Loads the driver and sets it up. What asks for `libcuda.so` in this process from then on, gets this one.
///
/// # Errors
/// If it is not beside the program (in its folder, the folder above, or `deps` in one of them), cannot be loaded, or
/// refuses the options.
pub fn load(options: &Options) -> Result<Loaded, LoadError> {
    let (path, library) = open("libemulator.so")?;
    let find = |symbol: &CStr| {
        // SAFETY: the library is loaded and never closed.
        let address = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        match address.is_null() {
            false => Ok(address),
            true => Err(LoadError::Symbol { path: path.clone(), symbol: symbol.to_string_lossy().into_owned() }),
        }
    };
    let ask = |symbol: &CStr| {
        // SAFETY: these functions of `api::inspect` have no arguments and return a string.
        find(symbol).map(|address| unsafe { std::mem::transmute::<*mut c_void, Ask>(address) })
    };
    // SAFETY: `api::inspect` declares the two functions with these types.
    let (configure, free) = unsafe {
        (
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> *mut c_char>(find(
                c"emulator_configure",
            )?),
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_char)>(find(c"emulator_free")?),
        )
    };
    let loaded = Loaded {
        configure,
        free,
        findings: ask(c"emulator_findings")?,
        profiles: ask(c"emulator_profiles")?,
        leaks: ask(c"emulator_leaks")?,
        path,
    };
    loaded.configure(options)?;
    Ok(loaded)
}

/// Loads the stand-in for cuBLAS, which must come after [`load`].
///
/// # Errors
/// If it is not beside the program or cannot be loaded.
pub fn load_cublas() -> Result<PathBuf, LoadError> {
    open("libemulator_cublas.so").map(|(path, _)| path)
}

/// Loads the stand-in for NCCL, which must come after [`load`].
///
/// # Errors
/// If it is not beside the program or cannot be loaded.
pub fn load_nccl() -> Result<PathBuf, LoadError> {
    open("libemulator_nccl.so").map(|(path, _)| path)
}

/// Loads a library that lies beside the program.
fn open(name: &str) -> Result<(PathBuf, *mut c_void), LoadError> {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new(".")).to_owned();
    // An example lies in a folder beside `deps`, a test in `deps`, a program above it.
    let above = folder.parent().map(Path::to_owned);
    let looked: Vec<PathBuf> =
        [Some(folder), above].into_iter().flatten().flat_map(|folder| [folder.join("deps"), folder]).collect();
    let path = looked.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    let path = path.ok_or(LoadError::NotFound { name: name.to_owned(), looked })?;
    let file = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| LoadError::Open { path: path.clone(), reason: "its name has a zero in it".to_owned() })?;
    // SAFETY: loading runs no code of the library but Rust's own start-up.
    let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        // SAFETY: after a failure this is null or a string, good until the next call.
        let reason = unsafe { libc::dlerror() };
        let reason = match reason.is_null() {
            true => "unknown".to_owned(),
            // SAFETY: likewise.
            false => unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned(),
        };
        return Err(LoadError::Open { path, reason });
    }
    Ok((path, library))
}

impl Loaded {
    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets another machine up. What belonged to the one before is gone.
    ///
    /// # Errors
    /// If the options are refused.
    pub fn configure(&self, options: &Options) -> Result<(), LoadError> {
        let refused = |reason: String| LoadError::Refused(reason);
        let text = serde_json::to_string(options).map_err(|error| refused(error.to_string()))?;
        let text = CString::new(text).map_err(|error| refused(error.to_string()))?;
        // SAFETY: the function of the library, with a string.
        match self.take(unsafe { (self.configure)(text.as_ptr()) }) {
            None => Ok(()),
            Some(reason) => Err(refused(reason)),
        }
    }

    /// Takes what was found since the last call.
    pub fn findings(&self) -> Vec<Finding> {
        self.ask(self.findings)
    }

    /// Takes the profiles of the launches since the last call; with [`Options::profile`] there is one for each.
    pub fn profiles(&self) -> Vec<Profile> {
        self.ask(self.profiles)
    }

    /// What contexts that still exist have not given back.
    pub fn leaks(&self) -> Vec<Finding> {
        self.ask(self.leaks)
    }

    fn ask<T: DeserializeOwned>(&self, function: Ask) -> Vec<T> {
        // SAFETY: a function of the library without arguments.
        let text = self.take(unsafe { function() }).unwrap_or_default();
        // Both sides are compiled from the same types.
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Copies a string of the library and gives it back.
    fn take(&self, text: *mut c_char) -> Option<String> {
        if text.is_null() {
            return None;
        }
        // SAFETY: the library gave a string, released once, here.
        unsafe {
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            (self.free)(text);
            Some(copy)
        }
    }
}
