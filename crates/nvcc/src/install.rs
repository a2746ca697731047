//! Fetching nvcc from PyPI: under a lock, into a temporary folder that is renamed when all is there.

use crate::search::release;
use crate::{Error, said};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program and the packages that bring it.
pub(crate) struct Program {
    /// Its name and release, for people.
    name: &'static str,
    /// What has to be fetched, for people.
    megabytes: u32,
    packages: &'static [&'static str],
    /// The folder of an installation, below `target/`.
    folder: &'static str,
    /// The program in it.
    file: &'static str,
}

/// What makes a working nvcc. All are named at exact versions, since the wheels leave open the versions of those they
/// need, and `cccl`, which `cuda_bf16.h` includes, is needed by none of them. Release 13.0 and not the newest, since a
/// driver refuses PTX that is newer than itself.
pub(crate) const NVCC: Program = Program {
    name: "nvcc 13.0",
    megabytes: 105,
    packages: &[
        "nvidia-cuda-nvcc==13.0.88",
        "nvidia-nvvm==13.0.88",
        "nvidia-cuda-crt==13.0.88",
        "nvidia-cuda-runtime==13.0.96",
        "nvidia-cuda-cccl==13.0.85",
    ],
    folder: "nvcc-13.0",
    file: "nvidia/cu13/bin/nvcc",
};

/// The disassembler, of which the oldest on PyPI is newer than the compiler above; it reads all older machine code.
pub(crate) const NVDISASM: Program = Program {
    name: "nvdisasm 13.5",
    megabytes: 5,
    packages: &["nvidia-cuda-nvdisasm==13.5.37"],
    folder: "nvdisasm-13.5",
    file: "nvidia/cu13/bin/nvdisasm",
};

/// A program below `target`, fetched if it is not there, and its release. `passed_over` goes into errors.
pub(crate) fn install(
    program: &Program,
    target: &Path,
    installers: &[Vec<OsString>],
    passed_over: &str,
) -> Result<(PathBuf, (u32, u32)), Error> {
    let folder = target.join(program.folder);
    let compiler = folder.join(program.file);
    if !compiler.is_file() {
        fs::create_dir_all(target).map_err(Error::file(target))?;
        let lock_path = target.join(format!("{}.lock", program.folder));
        let lock = File::create(&lock_path).map_err(Error::file(&lock_path))?;
        lock.lock().map_err(Error::file(&lock_path))?;
        // Whoever held the lock may have done it.
        if !compiler.is_file() {
            fetch(program, &folder, installers, passed_over)?;
        }
    }
    match release(&compiler) {
        Ok(release) => Ok((compiler, release)),
        Err(reason) => Err(Error::Broken { path: compiler, reason }),
    }
}

/// Fills `folder`. Only one process at a time does this.
fn fetch(program: &Program, folder: &Path, installers: &[Vec<OsString>], passed_over: &str) -> Result<(), Error> {
    let Some(installer) = installers.iter().find(|installer| runs(installer)) else {
        return Err(Error::NoInstaller { passed_over: passed_over.to_owned() });
    };
    eprintln!("fetching {} from PyPI into {} ({} MB, once)", program.name, folder.display(), program.megabytes);
    // What is left of an attempt that was cut off.
    let partial = folder.with_file_name(format!("{}.partial", program.folder));
    for leftover in [&partial, folder] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(Error::file(leftover))?;
        }
    }
    let mut command = Command::new(&installer[0]);
    command.args(&installer[1..]).args(["install", "--no-deps", "--only-binary", ":all:", "--target"]);
    command.arg(&partial).args(program.packages);
    // A user's pip settings may ask for --user, which contradicts --target.
    command.env("PIP_USER", "0").env("PIP_DISABLE_PIP_VERSION_CHECK", "1").stdin(Stdio::null());
    let output = command.output().map_err(Error::file(Path::new(&installer[0])))?;
    if !output.status.success() {
        let (command, passed_over) = (format!("{command:?}"), passed_over.to_owned());
        return Err(Error::Fetch { passed_over, command, said: said(&output) });
    }
    if let Err(reason) = release(&partial.join(program.file)) {
        return Err(Error::Broken { path: partial.join(program.file), reason });
    }
    fs::rename(&partial, folder).map_err(Error::file(folder))
}

fn runs(installer: &[OsString]) -> bool {
    let output = Command::new(&installer[0]).args(&installer[1..]).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}
