//! An output is a byte-identical copy but for what was written, and appears complete or not at all.

mod common;

use std::fs;
use std::path::Path;

use checkpoint::{Checkpoint, Dtype, Error, Output, Writer, narrow};
use tempfile::TempDir;

/// The checkpoint of [`common::indexed`], and a folder to write to.
fn indexed() -> (TempDir, Checkpoint, TempDir) {
    let folder = common::indexed();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint, tempfile::tempdir().unwrap())
}

#[test]
fn nothing_written_is_a_copy() {
    let (source, checkpoint, place) = indexed();
    let folder = place.path().join("new/copy");
    let published = Output::create(&checkpoint, &folder, false).unwrap().publish().unwrap();
    assert_eq!(published, folder);
    assert_eq!(common::contents(&folder), common::contents(source.path()));
    assert_eq!(common::names(&place.path().join("new")), ["copy"]);
}

#[test]
fn the_demonstration_model_is_copied() {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"));
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("copy");
    Output::create(&Checkpoint::open(demo).unwrap(), &folder, false).unwrap().publish().unwrap();
    assert!(common::contents(&folder) == common::contents(demo));
}

#[test]
fn a_written_tensor_changes_its_own_bytes_only() {
    let (source, checkpoint, place) = indexed();
    let folder = place.path().join("pruned");
    let output = Output::create(&checkpoint, &folder, false).unwrap();
    output.write_tensor("z", &narrow(&[9.0; 3], &Dtype::F32).unwrap()).unwrap();
    let last = narrow(&[0.5, -0.0, 8.0], &Dtype::F32).unwrap();
    output.write_tensor("z", &last).unwrap();
    output.publish().unwrap();

    let mut expected = common::contents(source.path());
    let file = expected.get_mut(Path::new("model-00002-of-00002.safetensors")).unwrap();
    let data = file.len() - 4 * 4;
    // `unlisted` comes first.
    file[data + 4..].copy_from_slice(&last);
    assert!(common::contents(&folder) == expected);
    assert_eq!(Checkpoint::open(&folder).unwrap().tensor("z").unwrap().to_f32().unwrap(), [0.5, 0.0, 8.0]);
}

#[test]
fn threads_write_together() {
    let names: Vec<_> = (0..32).map(|at| format!("t{at}")).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), &[0.0_f32; 1000][..])).collect();
    let source = common::single(&common::vectors(&tensors));
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let output = Output::create(&checkpoint, &place.path().join("out"), false).unwrap();
    std::thread::scope(|scope| {
        for (at, name) in names.iter().enumerate() {
            let output = &output;
            scope.spawn(move || {
                output.write_tensor(name, &narrow(&[at as f32; 1000], &Dtype::F32).unwrap()).unwrap();
            });
        }
    });
    let written = Checkpoint::open(&output.publish().unwrap()).unwrap();
    for (at, name) in names.iter().enumerate() {
        assert_eq!(written.tensor(name).unwrap().to_f32().unwrap(), [at as f32; 1000]);
    }
}

#[test]
fn what_is_staged_is_a_checkpoint_once_complete() {
    let (source, checkpoint, place) = indexed();
    let folder = place.path().join("out");
    let output = Output::create(&checkpoint, &folder, false).unwrap();
    assert_eq!(output.staged().parent().unwrap(), place.path().canonicalize().unwrap());
    output.write_tensor("y", &5.0_f32.to_le_bytes()).unwrap();
    output.complete().unwrap();
    let staged = Checkpoint::open(output.staged()).unwrap();
    assert_eq!(staged.tensor("y").unwrap().to_f32().unwrap(), [5.0]);
    assert_eq!(staged.tensor("z").unwrap().bytes, checkpoint.tensor("z").unwrap().bytes);
    assert!(!folder.exists());
    drop(staged);

    output.write_tensor("x", &[0; 8]).unwrap();
    output.write_file("report.json", b"{}").unwrap();
    output.publish().unwrap();
    let published = Checkpoint::open(&folder).unwrap();
    assert_eq!(published.tensor("x").unwrap().to_f32().unwrap(), [0.0, 0.0]);
    assert_eq!(published.tensor("y").unwrap().to_f32().unwrap(), [5.0]);
    assert_eq!(fs::read(folder.join("report.json")).unwrap(), b"{}");
    assert_eq!(common::contents(&folder).len(), common::contents(source.path()).len() + 1);
}

#[test]
fn extra_files_replace_copies_but_not_weights() {
    let (source, checkpoint, place) = indexed();
    let tokenizer = source.path().join("tokenizer.json");
    let mut permissions = fs::metadata(&tokenizer).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&tokenizer, permissions).unwrap();
    let output = Output::create(&checkpoint, &place.path().join("out"), false).unwrap();
    output.write_file("tokenizer.json", b"new").unwrap();
    for name in
        ["../up", "a/b", "", ".", "..", "/tmp/x", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    {
        assert!(
            matches!(output.write_file(name, b""), Err(Error::FileName { name: found, .. }) if found == name),
            "{name}"
        );
    }
    let folder = output.publish().unwrap();
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"new");
    assert_eq!(fs::read(tokenizer).unwrap(), b"{ }\n");
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let (_source, checkpoint, place) = indexed();
    let output = Output::create(&checkpoint, &place.path().join("out"), false).unwrap();
    for length in [0, 7, 9] {
        let error = output.write_tensor("x", &vec![0; length]).unwrap_err();
        assert!(matches!(error, Error::TensorLength { expected: 8, found, .. } if found == length), "{error}");
    }
    for name in ["w", "unlisted"] {
        assert!(matches!(output.write_tensor(name, &[]), Err(Error::NoTensor { .. })), "{name}");
    }
}

#[test]
fn a_dropped_output_leaves_nothing() {
    let (_source, checkpoint, place) = indexed();
    let output = Output::create(&checkpoint, &place.path().join("a/b/out"), false).unwrap();
    output.write_tensor("x", &[0; 8]).unwrap();
    let staged = output.staged().to_owned();
    let parent = checkpoint::resolve(&place.path().join("gone/../a/./b")).unwrap();
    assert_eq!(staged.parent(), Some(parent.as_path()));
    assert_eq!(output.created(), [parent.parent().unwrap(), &parent]);
    assert_eq!(
        Output::create(&checkpoint, &place.path().join("a/b/out"), false).unwrap().created(),
        [""; 0].map(Path::new)
    );
    drop(output);
    assert_eq!(common::names(place.path()), [""; 0], "neither the output nor the parents made for it");

    // A parent that has something else in it by then stays.
    let output = Output::create(&checkpoint, &place.path().join("a/b/out"), false).unwrap();
    fs::write(place.path().join("a/note"), b"").unwrap();
    drop(output);
    assert_eq!(common::names(&place.path().join("a")), ["note"]);
}

#[test]
fn an_existing_folder_needs_overwrite() {
    let (source, checkpoint, place) = indexed();
    let folder = place.path().join("out");
    common_checkpoint(&folder);
    let before = common::contents(&folder);
    let error = Output::create(&checkpoint, &folder, false).unwrap_err();
    assert!(matches!(&error, Error::OutputExists { path } if path.ends_with("out")), "{error}");
    assert_eq!(common::contents(&folder), before);
    assert_eq!(common::names(place.path()), ["out"]);

    let output = Output::create(&checkpoint, &folder, true).unwrap();
    output.complete().unwrap();
    output.flush().unwrap();
    assert_eq!(common::contents(&folder), before, "what stands there stays until the end");
    drop(output);
    assert_eq!(common::contents(&folder), before);

    Output::create(&checkpoint, &folder, true).unwrap().publish().unwrap();
    assert_eq!(common::contents(&folder), common::contents(source.path()));
    assert_eq!(common::names(place.path()), ["out"], "what was replaced is gone");
}

/// Another checkpoint, with a file that the one of [`common::indexed`] does not have.
fn common_checkpoint(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("config.json"), b"{\"old\":true}").unwrap();
    fs::write(folder.join("old.safetensors"), common::valid_file()).unwrap();
}

#[test]
fn only_checkpoints_and_empty_folders_are_replaced() {
    let (source, checkpoint, place) = indexed();
    let file = place.path().join("file");
    fs::write(&file, b"mine").unwrap();
    let documents = place.path().join("documents");
    fs::create_dir(&documents).unwrap();
    fs::write(documents.join("letter"), b"mine").unwrap();
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for overwrite in [false, true] {
        assert!(matches!(Output::create(&checkpoint, &file, overwrite), Err(Error::OutputNotAFolder { .. })));
        Output::create(&checkpoint, &empty, overwrite).unwrap().publish().unwrap();
        assert_eq!(common::contents(&empty), common::contents(source.path()));
        fs::remove_dir_all(&empty).unwrap();
        fs::create_dir(&empty).unwrap();
    }
    assert!(matches!(Output::create(&checkpoint, &documents, true), Err(Error::OutputNotACheckpoint { .. })));
    assert!(matches!(Output::create(&checkpoint, Path::new("/"), true), Err(Error::OutputUnnamed { .. })));
    assert!(matches!(Output::create(&checkpoint, &file.join("below"), true), Err(Error::Io { .. })));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(common::names(place.path()), ["documents", "empty", "file"]);
}

#[test]
fn what_appears_meanwhile_is_kept() {
    let (_source, checkpoint, place) = indexed();
    let folder = place.path().join("out");
    let output = Output::create(&checkpoint, &folder, false).unwrap();
    common_checkpoint(&folder);
    let before = common::contents(&folder);
    assert!(matches!(output.publish(), Err(Error::OutputExists { .. })));
    assert_eq!(common::contents(&folder), before);
    assert_eq!(common::names(place.path()), ["out"]);
}

#[test]
fn the_source_is_never_the_output() {
    let (source, checkpoint, place) = indexed();
    let before = common::contents(source.path());
    let name = source.path().file_name().unwrap();
    let relation = |output: &Path| match Output::create(&checkpoint, output, true) {
        Err(Error::OutputMeetsSource { relation, .. }) => relation,
        other => panic!("{}: {other:?}", output.display()),
    };
    assert_eq!(relation(source.path()), "is");
    assert_eq!(relation(&source.path().join("original/..")), "is");
    assert_eq!(relation(&source.path().join("..").join(name)), "is");
    assert_eq!(relation(&source.path().join("new/out")), "lies inside");
    assert_eq!(relation(&place.path().join("no-such/../..").join(name).join("out")), "lies inside");
    assert_eq!(relation(source.path().parent().unwrap()), "contains");
    assert_eq!(common::contents(source.path()), before);
    assert_eq!(common::names(source.path()).len(), 6, "nothing was created on the way");
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The Hub's cache: a snapshot of links to files elsewhere.
    #[test]
    fn links_become_what_they_lead_to() {
        let blobs = common::indexed();
        fs::create_dir(blobs.path().join(".git")).unwrap();
        fs::write(blobs.path().join(".git/config"), b"").unwrap();
        fs::write(blobs.path().join(".gitattributes"), b"*").unwrap();
        let snapshot = tempfile::tempdir().unwrap();
        for name in common::names(blobs.path()) {
            symlink(blobs.path().join(&name), snapshot.path().join(&name)).unwrap();
        }
        let place = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(snapshot.path()).unwrap();
        let folder = Output::create(&checkpoint, &place.path().join("out"), false).unwrap().publish().unwrap();
        let mut expected = common::contents(blobs.path());
        assert!(expected.remove(Path::new(".git/config")).is_some(), "folders of version control are left out");
        assert_eq!(common::contents(&folder), expected);
        assert!(fs::read_dir(&folder).unwrap().all(|item| !item.unwrap().file_type().unwrap().is_symlink()));

        // The folder that the links lead to holds the source.
        let error = Output::create(&checkpoint, blobs.path(), true).unwrap_err();
        assert!(matches!(error, Error::OutputMeetsSource { relation: "contains", .. }), "{error}");
    }

    #[test]
    fn a_link_to_the_source_is_the_source() {
        let (source, checkpoint, place) = indexed();
        let link = place.path().join("link");
        symlink(source.path(), &link).unwrap();
        for output in [link.clone(), link.join("out")] {
            assert!(matches!(Output::create(&checkpoint, &output, true), Err(Error::OutputMeetsSource { .. })));
        }
        let dangling = place.path().join("dangling");
        symlink("nowhere", &dangling).unwrap();
        assert!(matches!(Output::create(&checkpoint, &dangling, true), Err(Error::OutputNotAFolder { .. })));
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let (source, checkpoint, place) = indexed();
        let round = source.path().join("original/round");
        symlink(source.path(), &round).unwrap();
        let error = Output::create(&checkpoint, &place.path().join("a/out"), false).unwrap_err();
        assert!(matches!(&error, Error::LinkLoop { path } if *path == round), "{error}");
        fs::remove_file(&round).unwrap();
        symlink("nowhere", &round).unwrap();
        let error = Output::create(&checkpoint, &place.path().join("a/out"), false).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == round), "{error}");
        fs::remove_file(&round).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&round).unwrap();
        let error = Output::create(&checkpoint, &place.path().join("a/out"), false).unwrap_err();
        assert!(matches!(&error, Error::NotAFile { path } if *path == round), "{error}");
        assert_eq!(common::names(place.path()), [""; 0]);
    }

    /// A link that leads nowhere cannot be flushed.
    #[test]
    fn a_failed_publish_leaves_nothing() {
        let (_source, checkpoint, place) = indexed();
        let output = Output::create(&checkpoint, &place.path().join("a/b/out"), false).unwrap();
        let link = output.staged().join("link");
        symlink("nowhere", &link).unwrap();
        let error = output.publish().unwrap_err();
        assert!(matches!(&error, Error::Io { action: "flush", path, .. } if *path == link), "{error}");
        assert_eq!(common::names(place.path()), [""; 0]);
    }

    #[test]
    fn the_output_is_as_readable_as_any_folder() {
        let (_source, checkpoint, place) = indexed();
        let plain = place.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let folder = Output::create(&checkpoint, &place.path().join("out"), false).unwrap().publish().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), mode(&plain));
    }
}

/// A full disk, played by a limit on the size of files, under which the test runs itself once more.
#[test]
#[cfg(unix)]
fn a_full_disk_leaves_nothing() {
    const PLACE: &str = "CHECKPOINT_TEST_FULL_DISK";
    let Some(place) = std::env::var_os(PLACE) else {
        let values = vec![1.0; 1 << 20];
        let source = common::single(&common::vectors(&[("wide", &values)]));
        let place = tempfile::tempdir().unwrap();
        fs::rename(source.path(), place.path().join("source")).unwrap();
        // 1024 blocks are at least 512 KiB and at most 1 MiB, by shell; the file takes 4 MiB.
        let run = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_full_disk_leaves_nothing", "--nocapture"])
            .env(PLACE, place.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"), "the test ran");
        assert_eq!(common::names(place.path()), ["source"]);
        return;
    };
    let place = Path::new(&place);
    let checkpoint = Checkpoint::open(&place.join("source")).unwrap();
    let error = Output::create(&checkpoint, &place.join("new/out"), false).unwrap_err();
    let size = fs::metadata(place.join("source/model.safetensors")).unwrap().len();
    assert!(
        matches!(&error, Error::Write { path, bytes, .. } if path.ends_with("model.safetensors") && *bytes == size),
        "{error}"
    );
    assert!(error.to_string().starts_with(&format!("cannot write {size} bytes to ")), "{error}");
}

#[cfg(unix)]
#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let (_source, checkpoint, place) = indexed();
    let left = [".out.partial-abcdef", ".other.partial-abcdef", ".out.replaced-abcdef", "out.partial-abcdef"];
    for name in left {
        std::fs::create_dir(place.path().join(name)).unwrap();
        std::fs::write(place.path().join(name).join("model.safetensors"), "half").unwrap();
    }
    let first = Output::create(&checkpoint, &place.path().join("out"), false).unwrap();
    for name in left {
        assert_eq!(place.path().join(name).exists(), name != left[0], "{name}");
    }
    // One at work is not taken for one that was killed.
    let second = Output::create(&checkpoint, &place.path().join("out"), false).unwrap();
    assert!(first.staged().exists() && second.staged().exists());
    first.publish().unwrap();
}

#[test]
fn several_writers_share_the_files() {
    let (_source, checkpoint, place) = indexed();
    let whole = Output::create(&checkpoint, &place.path().join("whole"), false).unwrap();
    let parted = Output::create_shared(&checkpoint, &place.path().join("parted"), false, 2).unwrap();
    let second = Writer::create(&checkpoint, parted.staged(), 1, 2).unwrap();
    for tensor in checkpoint.tensors().step_by(2) {
        let bytes = vec![0; tensor.bytes.len()];
        for writer in [whole.writer(), parted.writer(), &second] {
            writer.write_tensor(tensor.name, &bytes).unwrap();
        }
    }
    second.complete().unwrap();
    second.flush().unwrap();
    drop(second);
    let [whole, parted] = [whole, parted].map(|output| common::contents(&output.publish().unwrap()));
    assert!(whole == parted);
}
