//! Runs the program in a folder of its own, and breaks checkpoints for it.

// Each test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod opt;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A program run to its end.
pub(crate) struct Run {
    /// Exit code.
    pub(crate) code: i32,
    /// Results.
    pub(crate) stdout: String,
    /// Progress, warnings, errors.
    pub(crate) stderr: String,
}

/// A folder that the program runs in, with whatever the test puts there.
pub(crate) struct Place(TempDir);

impl Place {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with the demonstration model in `model`.
    pub(crate) fn with_demo() -> Self {
        Self::with_model("demo")
    }

    /// A folder with a model of `assets/` or `golden/models/` in `model`.
    pub(crate) fn with_model(name: &str) -> Self {
        let (place, copy) = (Self::new(), testkit::paths::copy_checkpoint(name));
        fs::rename(copy.path(), place.path("model")).unwrap();
        place
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file in it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Reads a file in it.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// What lies in it, sorted; temporary folders included.
    pub(crate) fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs the program here.
    pub(crate) fn run(&self, flags: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driver"));
        finish(command.current_dir(self.0.path()).args(flags))
    }

    /// Runs the program here from a shell that has run `preparation`.
    pub(crate) fn run_in_shell(&self, preparation: &str, flags: &[&str]) -> Run {
        let mut command = Command::new("sh");
        let script = format!("{preparation}; exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_driver")]);
        finish(command.current_dir(self.0.path()).args(flags))
    }

    /// Runs the program, which must end in one clear error that says all of `parts` and leave nothing behind.
    pub(crate) fn refuses(&self, code: i32, parts: &[&str], flags: &[&str]) -> String {
        let before = self.list();
        let run = self.run(flags);
        run.assert_error(code, parts);
        assert_eq!(self.list(), before, "{flags:?} left something behind");
        run.stderr
    }

    /// Changes the header and the data of a safetensors file of the model.
    pub(crate) fn edit_weights(&self, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let bytes = self.read("model/model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        edit(&mut header, &mut data);
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        self.write("model/model.safetensors", file);
    }

    /// Changes the model's `config.json`.
    pub(crate) fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let mut config = serde_json::from_slice(&self.read("model/config.json")).unwrap();
        edit(&mut config);
        self.write("model/config.json", config.to_string());
    }
}

fn finish(command: &mut Command) -> Run {
    let output = command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "1").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    // Ended by a signal, the program has no exit code.
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Run {
    /// It went well.
    pub(crate) fn assert_success(&self) -> &Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// It ended in one clear error that says all of `parts`.
    pub(crate) fn assert_error(&self, code: i32, parts: &[&str]) {
        let Self { stderr, .. } = self;
        assert_eq!(self.code, code, "{stderr}\n{}", self.stdout);
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        for hint in ["panicked", "backtrace", "RUST_"] {
            assert!(!stderr.contains(hint), "{stderr}");
        }
        for part in parts {
            assert!(stderr.contains(part), "no `{part}` in: {stderr}");
        }
    }
}

/// Where the bytes of a tensor lie in the data of its file.
pub(crate) fn extent(header: &Value, tensor: &str) -> std::ops::Range<usize> {
    let offsets = &header[tensor]["data_offsets"];
    let at = |index: usize| offsets[index].as_u64().unwrap() as usize;
    at(0)..at(1)
}

/// The repository's demonstration texts.
pub(crate) fn demo_text(name: &str) -> String {
    let path: &Path = &testkit::paths::demo().join(name);
    path.to_str().unwrap().to_owned()
}
