//! Where nvcc may be, and which of those found is taken.

use crate::{Error, Nvcc, OLDEST, install, said};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `$CUDA_HOME/bin`.
    CudaHome,
    /// `$CUDA_PATH/bin`.
    CudaPath,
    /// `PATH`.
    Path,
    /// `/usr/local/cuda/bin`.
    UsualPlace,
    /// Fetched from PyPI into `target/`.
    Fetched,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CudaHome => "CUDA_HOME",
            Self::CudaPath => "CUDA_PATH",
            Self::Path => "PATH",
            Self::UsualPlace => "/usr/local/cuda",
            Self::Fetched => "fetched from PyPI",
        })
    }
}

/// What the search depends on; tests make their own.
pub(crate) struct Search {
    pub(crate) cuda_home: Option<OsString>,
    pub(crate) cuda_path: Option<OsString>,
    pub(crate) path: Option<OsString>,
    pub(crate) usual_place: PathBuf,
    /// Where to install.
    pub(crate) target: PathBuf,
    /// Commands that install Python packages.
    pub(crate) installers: Vec<Vec<OsString>>,
    /// The host's compiler.
    pub(crate) host_compiler: OsString,
}

impl Search {
    pub(crate) fn from_environment() -> Self {
        // An empty variable means the same as none.
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let workspace = workspace.canonicalize().unwrap_or(workspace);
        let command = |words: &[&str]| words.iter().map(OsString::from).collect();
        Self {
            cuda_home: variable("CUDA_HOME"),
            cuda_path: variable("CUDA_PATH"),
            path: variable("PATH"),
            usual_place: PathBuf::from("/usr/local/cuda"),
            // A relative CARGO_TARGET_DIR is meant from where cargo was called, most often the workspace.
            target: workspace.join(variable("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())),
            installers: vec![
                command(&["python3", "-m", "pip"]),
                command(&["python", "-m", "pip"]),
                command(&["pip3"]),
                command(&["uv", "pip"]),
            ],
            host_compiler: variable("NVCC_CCBIN").unwrap_or_else(|| "g++".into()),
        }
    }

    pub(crate) fn locate(&self) -> Result<Nvcc, Error> {
        self.check_host_compiler()?;
        let mut passed_over = Vec::new();
        for (origin, path) in self.candidates() {
            match release(&path) {
                Ok(release) if release >= OLDEST => return Ok(Nvcc { path, release, origin, passed_over }),
                Ok((major, minor)) => {
                    passed_over.push(format!("{} is of CUDA {major}.{minor}, which is too old", path.display()));
                }
                Err(reason) => passed_over.push(format!("{} does not run: {reason}", path.display())),
            }
        }
        let (path, release) =
            install::install(&install::NVCC, &self.target, &self.installers, &parenthesis(&passed_over))?;
        Ok(Nvcc { path, release, origin: Origin::Fetched, passed_over })
    }

    /// nvdisasm: beside the compiler, on `PATH`, or fetched.
    pub(crate) fn disassembler(&self, nvcc: &Path) -> Result<PathBuf, Error> {
        let beside = nvcc.with_file_name("nvdisasm");
        let on_path = self.path.iter().flat_map(env::split_paths).map(|folder| folder.join("nvdisasm"));
        match [beside].into_iter().chain(on_path).find(|file| file.is_file() && release(file).is_ok()) {
            Some(found) => Ok(found),
            None => Ok(install::install(&install::NVDISASM, &self.target, &self.installers, "")?.0),
        }
    }

    /// Files that are there, in the order of preference.
    fn candidates(&self) -> Vec<(Origin, PathBuf)> {
        let below = |folder: &Path| folder.join("bin/nvcc");
        let homes = [(Origin::CudaHome, &self.cuda_home), (Origin::CudaPath, &self.cuda_path)];
        let homes = homes.into_iter().filter_map(|(origin, home)| Some((origin, below(Path::new(home.as_ref()?)))));
        let path = self.path.iter().flat_map(env::split_paths).map(|folder| (Origin::Path, folder.join("nvcc")));
        let usual = (Origin::UsualPlace, below(&self.usual_place));
        homes.chain(path).chain([usual]).filter(|(_, file)| file.is_file()).collect()
    }

    fn check_host_compiler(&self) -> Result<(), Error> {
        // NVCC_CCBIN may also name the folder in which g++ is.
        let named = Path::new(&self.host_compiler);
        let compiler = if named.is_dir() { named.join("g++") } else { named.to_owned() };
        let runs = Command::new(compiler).arg("--version").stdin(Stdio::null()).output();
        if runs.is_ok_and(|output| output.status.success()) { Ok(()) } else { Err(Error::NoHostCompiler) }
    }
}

fn parenthesis(passed_over: &[String]) -> String {
    if passed_over.is_empty() { String::new() } else { format!(" ({})", passed_over.join("; ")) }
}

/// The release that a compiler says it is of, from a line like `Cuda compilation tools, release 13.0, V13.0.88`.
pub(crate) fn release(nvcc: &Path) -> Result<(u32, u32), String> {
    let output =
        Command::new(nvcc).arg("--version").stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = said(&output);
    if !output.status.success() {
        return Err(text);
    }
    let release = text.split_once("release ").and_then(|(_, rest)| {
        let (major, rest) = rest.split_once('.')?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    release.ok_or_else(|| format!("it names no release, only {text:?}"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;

    fn script(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        // By another process: a file that this one has open for writing, if only in a child between fork and exec that
        // another test started, cannot be run.
        let write = r#"printf %s "$2" > "$1" && chmod +x "$1""#;
        let text = format!("#!/bin/sh\n{text}\n");
        let written = Command::new("sh").args(["-c", write, "sh"]).arg(path).arg(text).status().expect("sh");
        assert!(written.success());
    }

    /// A compiler that says it is of this release.
    fn compiler(path: &Path, release: &str) {
        script(path, &format!("echo 'Cuda compilation tools, release {release}, V{release}.1'"));
    }

    /// A search that finds nothing, in a folder of its own.
    fn search(folder: &Path) -> Search {
        Search {
            cuda_home: None,
            cuda_path: None,
            path: None,
            usual_place: folder.join("usual"),
            target: folder.join("target"),
            installers: Vec::new(),
            host_compiler: "true".into(),
        }
    }

    /// An installer that puts a compiler into its `--target`, and counts how often it was called.
    fn installer(folder: &Path) -> Vec<OsString> {
        let pip = folder.join("pip");
        let text = format!(
            r#"if [ "$1" = --version ]; then exit 0; fi
echo call >> {calls}
sleep 0.2
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/nvidia/cu13/bin"
printf '#!/bin/sh\necho release 13.0, V13.0.88\n' > "$2/nvidia/cu13/bin/nvcc"
chmod +x "$2/nvidia/cu13/bin/nvcc""#,
            calls = folder.join("calls").display()
        );
        script(&pip, &text);
        vec![pip.into()]
    }

    #[test]
    fn places_are_searched_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let mut search = search(folder.path());
        let taken = |search: &Search, origin, release| {
            let nvcc = search.locate().expect("nvcc");
            assert_eq!((nvcc.origin(), nvcc.release()), (origin, release));
        };
        compiler(&at("usual/bin/nvcc"), "12.0");
        taken(&search, Origin::UsualPlace, (12, 0));
        compiler(&at("path/nvcc"), "12.9");
        search.path = Some(env::join_paths([at("nowhere"), at("path")]).expect("a path"));
        taken(&search, Origin::Path, (12, 9));
        compiler(&at("cuda-path/bin/nvcc"), "13.1");
        search.cuda_path = Some(at("cuda-path").into());
        taken(&search, Origin::CudaPath, (13, 1));
        compiler(&at("cuda-home/bin/nvcc"), "14.0");
        search.cuda_home = Some(at("cuda-home").into());
        taken(&search, Origin::CudaHome, (14, 0));
    }

    #[test]
    fn old_and_broken_compilers_are_passed_over() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let mut search = search(folder.path());
        compiler(&at("home/bin/nvcc"), "11.8");
        script(&at("path/bin/nvcc"), "echo no such luck; exit 1");
        search.cuda_home = Some(at("home").into());
        search.cuda_path = Some(at("path").into());
        let error = search.locate().expect_err("nothing to install with").to_string();
        assert!(error.contains("CUDA 11.8, which is too old") && error.contains("no such luck"), "{error}");
        assert!(error.contains("python3-pip"), "{error}");

        search.installers = vec![installer(folder.path())];
        let nvcc = search.locate().expect("an installation");
        assert_eq!((nvcc.origin(), nvcc.release()), (Origin::Fetched, (13, 0)));
        assert_eq!(nvcc.path(), at("target/nvcc-13.0/nvidia/cu13/bin/nvcc"));
        assert_eq!(nvcc.passed_over().len(), 2);
    }

    #[test]
    fn many_at_once_fetch_once() {
        let folder = tempfile::tempdir().expect("folder");
        let mut search = search(folder.path());
        // What an attempt left that was cut off.
        fs::create_dir_all(folder.path().join("target/nvcc-13.0.partial/nvidia")).expect("folder");
        search.installers = vec![vec![folder.path().join("missing").into()], installer(folder.path())];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| search.locate().expect("an installation"));
            }
        });
        assert_eq!(fs::read_to_string(folder.path().join("calls")).expect("calls"), "call\n");
        assert!(!folder.path().join("target/nvcc-13.0.partial").exists());
    }

    #[test]
    fn a_failed_fetch_says_what_to_do() {
        let folder = tempfile::tempdir().expect("folder");
        let mut search = search(folder.path());
        let pip = folder.path().join("pip");
        script(&pip, r#"if [ "$1" = --version ]; then exit 0; fi; echo could not resolve pypi.org >&2; exit 1"#);
        search.installers = vec![vec![pip.into()]];
        let error = search.locate().expect_err("no network").to_string();
        assert!(error.contains("set CUDA_HOME") && error.contains("could not resolve pypi.org"), "{error}");
        assert!(!folder.path().join("target/nvcc-13.0").exists());
    }

    #[test]
    fn a_host_compiler_is_demanded() {
        let folder = tempfile::tempdir().expect("folder");
        let search = Search { host_compiler: "false".into(), ..search(folder.path()) };
        assert!(matches!(search.locate(), Err(Error::NoHostCompiler)));
    }
}
