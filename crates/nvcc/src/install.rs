//! Fetching nvcc from PyPI: under a lock, into a temporary folder that is renamed when all is there.

use crate::search::release;
use crate::{Error, said};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What makes a working nvcc. All are named at exact versions, since the wheels leave open the versions of those they
/// need, and `cccl`, which `cuda_bf16.h` includes, is needed by none of them. Release 13.0 and not the newest, since a
/// driver refuses PTX that is newer than itself.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The folder of an installation, below `target/`.
const FOLDER: &str = "nvcc-13.0";
/// The compiler in it.
const COMPILER: &str = "nvidia/cu13/bin/nvcc";

/// The compiler below `target`, fetched if it is not there, and its release. `passed_over` goes into errors.
pub(crate) fn install(
    target: &Path,
    installers: &[Vec<OsString>],
    passed_over: &str,
) -> Result<(PathBuf, (u32, u32)), Error> {
    let folder = target.join(FOLDER);
    let compiler = folder.join(COMPILER);
    if !compiler.is_file() {
        fs::create_dir_all(target).map_err(Error::file(target))?;
        let lock_path = target.join(format!("{FOLDER}.lock"));
        let lock = File::create(&lock_path).map_err(Error::file(&lock_path))?;
        lock.lock().map_err(Error::file(&lock_path))?;
        // Whoever held the lock may have done it.
        if !compiler.is_file() {
            fetch(&folder, installers, passed_over)?;
        }
    }
    match release(&compiler) {
        Ok(release) => Ok((compiler, release)),
        Err(reason) => Err(Error::Broken { path: compiler, reason }),
    }
}

/// Fills `folder`. Only one process at a time does this.
fn fetch(folder: &Path, installers: &[Vec<OsString>], passed_over: &str) -> Result<(), Error> {
    let Some(installer) = installers.iter().find(|installer| runs(installer)) else {
        return Err(Error::NoInstaller { passed_over: passed_over.to_owned() });
    };
    eprintln!("fetching nvcc 13.0 from PyPI into {} (105 MB, once)", folder.display());
    // What is left of an attempt that was cut off.
    let partial = folder.with_file_name(format!("{FOLDER}.partial"));
    for leftover in [&partial, folder] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(Error::file(leftover))?;
        }
    }
    let mut command = Command::new(&installer[0]);
    command.args(&installer[1..]).args(["install", "--no-deps", "--only-binary", ":all:", "--target"]);
    command.arg(&partial).args(PACKAGES);
    // A user's pip settings may ask for --user, which contradicts --target.
    command.env("PIP_USER", "0").env("PIP_DISABLE_PIP_VERSION_CHECK", "1").stdin(Stdio::null());
    let output = command.output().map_err(Error::file(Path::new(&installer[0])))?;
    if !output.status.success() {
        let (command, passed_over) = (format!("{command:?}"), passed_over.to_owned());
        return Err(Error::Fetch { passed_over, command, said: said(&output) });
    }
    if let Err(reason) = release(&partial.join(COMPILER)) {
        return Err(Error::Broken { path: partial.join(COMPILER), reason });
    }
    fs::rename(&partial, folder).map_err(Error::file(folder))
}

fn runs(installer: &[OsString]) -> bool {
    let output = Command::new(&installer[0]).args(&installer[1..]).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}
