//! Where an output goes: what may stand there, and how it is replaced.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use crate::{Checkpoint, Error, copy};

/// What names of temporary folders say of them.
const PARTIAL: &str = "partial";

/// The folder that an output becomes.
#[derive(Debug)]
pub(crate) struct Target {
    /// Without symbolic links and `..`, as far as it exists.
    folder: PathBuf,
    parent: PathBuf,
    name: OsString,
    overwrite: bool,
}

/// What stands at the target, of the things that may stand there.
enum Standing {
    Nothing,
    EmptyFolder,
    Checkpoint,
}

impl Target {
    /// Decides whether `source` may be written to `folder`, and touches nothing.
    pub(crate) fn new(source: &Checkpoint, folder: &Path, overwrite: bool) -> Result<Self, Error> {
        let resolved = resolve(folder)?;
        let (Some(parent), Some(name)) = (resolved.parent(), resolved.file_name()) else {
            return Err(Error::OutputUnnamed { path: folder.to_owned() });
        };
        let (parent, name) = (parent.to_owned(), name.to_owned());
        let target = Self { folder: resolved, parent, name, overwrite };
        target.check_source(source)?;
        target.standing()?;
        Ok(target)
    }

    /// The target is not the source, does not lie inside it, and holds no part of it, linked files included.
    fn check_source(&self, source: &Checkpoint) -> Result<(), Error> {
        let meets = |relation| Error::OutputMeetsSource {
            output: self.folder.clone(),
            relation,
            source_folder: source.folder().to_owned(),
        };
        let real = source.folder().canonicalize().map_err(Error::io("read", source.folder()))?;
        if self.folder == real {
            return Err(meets("is"));
        }
        if self.folder.starts_with(&real) {
            return Err(meets("lies inside"));
        }
        let files =
            source.files().iter().map(|file| file.path().canonicalize().map_err(Error::io("read", file.path())));
        for part in std::iter::once(Ok(real)).chain(files) {
            if part?.starts_with(&self.folder) {
                return Err(meets("contains"));
            }
        }
        Ok(())
    }

    fn standing(&self) -> Result<Standing, Error> {
        let path = || self.folder.clone();
        // Of the link itself: a link that leads nowhere also stands in the way.
        match fs::symlink_metadata(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Nothing),
            Err(error) => return Err(Error::io("read", path())(error)),
            Ok(metadata) if !metadata.is_dir() => return Err(Error::OutputNotAFolder { path: path() }),
            Ok(_) => {}
        }
        if fs::read_dir(&self.folder).map_err(Error::io("list", path()))?.next().is_none() {
            Ok(Standing::EmptyFolder)
        } else if !self.overwrite {
            Err(Error::OutputExists { path: path() })
        } else if !self.folder.join("config.json").is_file() {
            Err(Error::OutputNotACheckpoint { path: path() })
        } else {
            Ok(Standing::Checkpoint)
        }
    }

    /// Creates the folder that the target will stand in, as far as it is missing.
    pub(crate) fn create_parents(&self) -> Result<CreatedFolders, Error> {
        let mut created = CreatedFolders(Vec::new());
        let missing: Vec<_> = self.parent.ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            match fs::create_dir(folder) {
                Ok(()) => created.0.push(folder.to_owned()),
                // Someone else was faster.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", folder)(error)),
            }
        }
        Ok(created)
    }

    /// A temporary folder beside the target, `.NAME.KIND-` and six random letters.
    pub(crate) fn beside(&self, kind: &str) -> Result<TempDir, Error> {
        let mut prefix = OsString::from(".");
        prefix.push(&self.name);
        prefix.push(format!(".{kind}-"));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).tempdir_in(&self.parent).map_err(Error::io("create a folder in", &self.parent))
    }

    /// A temporary folder for the target to come into being, and the lock that says that somebody is at work on it.
    pub(crate) fn stage(&self) -> Result<(TempDir, Lock), Error> {
        self.sweep();
        loop {
            let staged = self.beside(PARTIAL)?;
            match Lock::take(staged.path()) {
                // A run that sweeps between the two calls takes the folder for one that was left behind.
                Some(lock) => return Ok((staged, lock)),
                None => continue,
            }
        }
    }

    /// Removes the temporary folders that runs left behind which were killed: those that nobody has locked.
    fn sweep(&self) {
        let prefix = [OsStr::new("."), &self.name, OsStr::new("."), OsStr::new(PARTIAL), OsStr::new("-")];
        let prefix = OsString::from_iter(prefix);
        // What cannot be listed, locked or removed stays, as it would without sweeping.
        for entry in fs::read_dir(&self.parent).into_iter().flatten().flatten() {
            let left_behind = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
            if left_behind && let Some(_lock) = Lock::of_nobody(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Renames `staged` to the target. What stood there is moved aside first, and comes back if that fails.
    pub(crate) fn replace_with(&self, staged: TempDir) -> Result<(), Error> {
        match self.standing()? {
            Standing::Nothing => self.appear(staged)?,
            Standing::EmptyFolder => {
                fs::remove_dir(&self.folder).map_err(Error::io("remove the empty folder", &self.folder))?;
                self.appear(staged)?;
            }
            Standing::Checkpoint => {
                let aside = self.beside("replaced")?;
                let old = aside.path().join(&self.name);
                fs::rename(&self.folder, &old).map_err(Error::io("move aside", &self.folder))?;
                if let Err(error) = self.appear(staged) {
                    if fs::rename(&old, &self.folder).is_err() {
                        let old = aside.keep().join(&self.name);
                        return Err(Error::ReplacedLeft { old, folder: self.folder.clone() });
                    }
                    return Err(error);
                }
                let old = aside.path().to_owned();
                aside.close().map_err(Error::io("remove the checkpoint that was replaced, now at", old))?;
            }
        }
        copy::flush_entries(&self.parent)
    }

    fn appear(&self, staged: TempDir) -> Result<(), Error> {
        fs::rename(staged.path(), &self.folder).map_err(Error::io("move the finished checkpoint to", &self.folder))?;
        // Nothing is left at the temporary path to be removed.
        let _ = staged.keep();
        Ok(())
    }
}

/// The lock of a temporary folder, which ends with the process that holds it, however that ends.
///
/// Not every shared file system locks folders. There nothing is held, and nothing is ever taken for left behind.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held until it is dropped")] Option<File>);

impl Lock {
    /// Locks a folder that this process made, if it is still there.
    fn take(folder: &Path) -> Option<Self> {
        let file = File::open(folder).ok();
        let locked = file.filter(|file| file.lock().is_ok());
        folder.is_dir().then_some(Self(locked))
    }

    /// Locks a folder, if it can be locked and nobody else has.
    fn of_nobody(folder: &Path) -> Option<Self> {
        let file = File::open(folder).ok()?;
        file.try_lock().is_ok().then_some(Self(Some(file)))
    }
}

/// Folders made on the way to an output; those that are empty at the end are removed again, the deepest first.
#[derive(Debug)]
pub(crate) struct CreatedFolders(Vec<PathBuf>);

impl CreatedFolders {
    /// The folders, each after those it lies in.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Fails where something lies in it, which is what it was made for.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The path without `.`, `..` and symbolic links; the end of it need not exist.
///
/// # Errors
/// [`Error::Io`] if the path is empty or the current folder is gone.
pub fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let mut resolved = PathBuf::new();
    for component in std::path::absolute(path).map_err(Error::io("find", path))?.components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            other => resolved.push(other),
        }
        if let Ok(real) = resolved.canonicalize() {
            resolved = real;
        }
    }
    Ok(resolved)
}
