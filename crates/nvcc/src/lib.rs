//! NVIDIA's CUDA compiler, on machines that may have no CUDA: it is sought where installations put it, and else fetched
//! from PyPI into the workspace's `target/`, once and at pinned versions.
//!
//! ```no_run
//! let nvcc = nvcc::locate()?;
//! let ptx = nvcc.ptx("kernels/example.cu".as_ref(), &["-arch=compute_80", "-lineinfo"])?;
//! # Ok::<(), nvcc::Error>(())
//! ```

mod install;
mod search;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

pub use search::Origin;

/// The oldest release that is used where it is found: its PTX is the first that the emulated driver reads.
pub const OLDEST: (u32, u32) = (12, 0);

/// Why there is no compiler, or no PTX.
#[derive(Debug, Error)]
pub enum Error {
    /// nvcc leaves the host's half of a source to g++, even where only PTX is asked for.
    #[error(
        "nvcc needs a C++ compiler of the host, and g++ does not run: install it (Debian and Ubuntu: apt-get install \
         g++), or name another in NVCC_CCBIN"
    )]
    NoHostCompiler,
    /// Neither nvcc nor anything to fetch it with.
    #[error(
        "there is no nvcc of CUDA {}.{} or newer in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda{passed_over}, and no pip \
         to fetch it with: install CUDA and set CUDA_HOME to it, or install Python with pip (Debian and Ubuntu: apt-get \
         install python3-pip), or uv",
        OLDEST.0,
        OLDEST.1
    )]
    NoInstaller {
        /// What was found and is too old or broken, as a parenthesis; empty if nothing was.
        passed_over: String,
    },
    /// There is none, and it was not to be fetched.
    #[error(
        "there is no nvcc of CUDA {}.{} or newer in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda{passed_over}: run `cargo \
         xtask nvcc`, which fetches it into target/, or install CUDA and set CUDA_HOME to it",
        OLDEST.0,
        OLDEST.1
    )]
    NotFound {
        /// As in [`Error::NoInstaller`].
        passed_over: String,
    },
    /// Fetching failed.
    #[error(
        "there is no nvcc of CUDA {}.{} or newer in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda{passed_over}, and \
         fetching it from PyPI failed. Without a network, install CUDA and set CUDA_HOME to it. `{command}` said:\n{said}",
        OLDEST.0,
        OLDEST.1
    )]
    Fetch {
        /// As in [`Error::NoInstaller`].
        passed_over: String,
        /// The command that failed.
        command: String,
        /// What it wrote.
        said: String,
    },
    /// The fetched nvcc does not run.
    #[error("{path} was fetched from PyPI and does not run here ({reason}): install CUDA and set CUDA_HOME to it")]
    Broken {
        /// The compiler.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A file or folder could not be made, read or locked.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The source does not compile.
    #[error("nvcc refuses {path}:\n{said}")]
    Compile {
        /// The source.
        path: PathBuf,
        /// What nvcc wrote.
        said: String,
    },
}

impl Error {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

/// A compiler that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvcc {
    path: PathBuf,
    release: (u32, u32),
    origin: Origin,
    passed_over: Vec<String>,
}

/// Finds nvcc: in `CUDA_HOME`, in `CUDA_PATH`, on `PATH`, in `/usr/local/cuda`, in that order, and else fetches release
/// 13.0 from PyPI into `nvcc-13.0` of the folder `CARGO_TARGET_DIR`, or the workspace's `target/`.
///
/// What is found but older than [`OLDEST`] or does not run is passed over, even in `CUDA_HOME`: its PTX would be refused
/// later, with a message that leads nowhere. Anything newer than 13.0 is taken. Processes that come at the same time
/// wait for the one that fetches.
///
/// # Errors
/// [`Error::NoHostCompiler`], or that nothing was found and why it could not be fetched.
pub fn locate() -> Result<Nvcc, Error> {
    search::Search::from_environment().locate()
}

/// As [`locate`], without fetching: for builds, which should not surprise anybody with a download.
///
/// # Errors
/// [`Error::NoHostCompiler`] or [`Error::NotFound`].
pub fn find() -> Result<Nvcc, Error> {
    let search = search::Search { installers: Vec::new(), ..search::Search::from_environment() };
    search.locate().map_err(|error| match error {
        Error::NoInstaller { passed_over } => Error::NotFound { passed_over },
        other => other,
    })
}

impl Nvcc {
    /// The compiler's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its CUDA release, major and minor.
    pub fn release(&self) -> (u32, u32) {
        self.release
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Compilers that were found before this one and not taken, each with the reason.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Compiles `source` to PTX; `options` are nvcc's, such as `-arch=compute_80`, `-lineinfo` and `-DNAME`.
    ///
    /// # Errors
    /// [`Error::Compile`] with what nvcc wrote, or [`Error::File`] if it cannot be run or its answer not read.
    pub fn ptx<S: AsRef<OsStr>>(&self, source: &Path, options: &[S]) -> Result<String, Error> {
        let text = self.compile("-ptx", source, options)?;
        String::from_utf8(text).map_err(|error| Error::Compile { path: source.to_owned(), said: error.to_string() })
    }

    /// Compiles `source` to the machine code of one architecture, such as with `-arch=sm_80`.
    ///
    /// # Errors
    /// As [`Nvcc::ptx`].
    pub fn cubin<S: AsRef<OsStr>>(&self, source: &Path, options: &[S]) -> Result<Vec<u8>, Error> {
        self.compile("-cubin", source, options)
    }

    /// Translates PTX into the machine code of `architecture`, such as `sm_80`, and returns it with what ptxas says about
    /// registers, shared memory and spills (`-v`).
    ///
    /// # Errors
    /// [`Error::Compile`] with what ptxas wrote, or [`Error::File`] if it cannot be run.
    pub fn assemble(&self, ptx: &Path, architecture: &str) -> Result<(Vec<u8>, String), Error> {
        let folder = tempfile::tempdir().map_err(Error::file(&std::env::temp_dir()))?;
        let (ptxas, target) = (self.path.with_file_name("ptxas"), folder.path().join("module"));
        let mut command = Command::new(&ptxas);
        command.arg("-v").arg(format!("-arch={architecture}")).arg("-o").arg(&target).arg(ptx).stdin(Stdio::null());
        let output = command.output().map_err(Error::file(&ptxas))?;
        if !output.status.success() {
            return Err(Error::Compile { path: ptx.to_owned(), said: said(&output) });
        }
        Ok((std::fs::read(&target).map_err(Error::file(&target))?, said(&output)))
    }

    /// The machine code of a cubin as text. nvdisasm is sought beside nvcc and on `PATH`, and else fetched like nvcc.
    ///
    /// # Errors
    /// As [`locate`] where it has to be fetched; [`Error::Compile`] with what nvdisasm wrote.
    pub fn disassemble(&self, cubin: &[u8]) -> Result<String, Error> {
        let nvdisasm = search::Search::from_environment().disassembler(&self.path)?;
        let folder = tempfile::tempdir().map_err(Error::file(&std::env::temp_dir()))?;
        let source = folder.path().join("module.cubin");
        std::fs::write(&source, cubin).map_err(Error::file(&source))?;
        let mut command = Command::new(&nvdisasm);
        let output = command.arg("-c").arg(&source).stdin(Stdio::null()).output().map_err(Error::file(&nvdisasm))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::Compile { path: source, said: said(&output) }),
        }
    }

    fn compile<S: AsRef<OsStr>>(&self, kind: &str, source: &Path, options: &[S]) -> Result<Vec<u8>, Error> {
        let folder = tempfile::tempdir().map_err(Error::file(&std::env::temp_dir()))?;
        let target = folder.path().join("module");
        let mut command = Command::new(&self.path);
        command.arg(kind).args(options).arg("-o").arg(&target).arg(source).stdin(Stdio::null());
        let output = command.output().map_err(Error::file(&self.path))?;
        if !output.status.success() {
            return Err(Error::Compile { path: source.to_owned(), said: said(&output) });
        }
        std::fs::read(&target).map_err(Error::file(&target))
    }
}

/// What a command wrote to both of its outputs.
fn said(output: &std::process::Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    text.join("\n").trim().to_owned()
}
