//! Every way in which a folder can fail to be a checkpoint ends in its own error, which shows the evidence.

mod common;

use std::fs;
use std::path::Path;

use checkpoint::{Checkpoint, Error, Fault};

/// The error that opening a folder ends in, and its text.
fn refused(folder: &Path) -> (Error, String) {
    let error = Checkpoint::open(folder).unwrap_err();
    let text = error.to_string();
    (error, text)
}

/// The fault of a checkpoint whose weights are this one file; the message names the file.
fn fault(weights: &[u8]) -> Fault {
    let folder = common::single(weights);
    match refused(folder.path()) {
        (Error::Malformed { path, fault }, text) => {
            assert_eq!(path, folder.path().join("model.safetensors"));
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            fault
        }
        (other, _) => panic!("{other:?}"),
    }
}

/// The fault of a file with this header, padded to a multiple of 8, and so many bytes of data.
fn header_fault(header: &str, data: usize) -> Fault {
    let width = header.len().next_multiple_of(8);
    fault(&common::safetensors(&format!("{header:<width$}"), &vec![0; data]))
}

#[test]
fn no_folder() {
    let here = common::folder(&[("file", b"")]);
    assert!(matches!(refused(&here.path().join("gone")), (Error::NoFolder { path }, _) if path.ends_with("gone")));
    assert!(matches!(refused(&here.path().join("file")), (Error::NotAFolder { .. }, _)));
    for id in ["no-such-owner/no-such-model-1.3b", "no-such-model"] {
        let (error, text) = refused(Path::new(id));
        assert!(matches!(error, Error::HubId { .. }), "{error:?}");
        assert!(text.contains(&format!("hf download {id}")), "{text}");
    }
    for path in ["a/b/c-no-such-folder", "./no-such-folder", "../no-such-folder", "no such folder", ""] {
        assert!(matches!(refused(Path::new(path)), (Error::NoFolder { .. }, _)), "{path}");
    }
}

#[test]
fn bad_configs() {
    let weights = common::valid_file();
    let without = common::folder(&[("model.safetensors", &weights)]);
    assert!(matches!(refused(without.path()), (Error::NoConfig { folder }, _) if folder == without.path()));
    for (config, found) in
        [("[]", "an array"), ("null", "null"), ("3", "a number"), ("\"x\"", "a string"), ("true", "a boolean")]
    {
        let folder = common::folder(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]);
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::ConfigNotAnObject { found: kind, .. } if kind == found), "{text}");
    }
    let deep = "[".repeat(100_000);
    for config in ["", "{", "{}}", "\u{feff}{}", &deep] {
        let folder = common::folder(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]);
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Json { .. }) && text.contains("config.json is not valid"), "{text}");
    }
    let folder = common::folder(&[("config.json/file", b"")]);
    assert!(matches!(refused(folder.path()), (Error::Io { .. }, _)));
}

#[test]
fn no_weights() {
    let empty = common::folder(&[("config.json", b"{}")]);
    assert!(matches!(refused(empty.path()), (Error::NoWeights { .. }, _)));
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let pickled = common::folder(&[("config.json", b"{}"), (name, b"")]);
        let (error, text) = refused(pickled.path());
        assert!(matches!(error, Error::OnlyPickle { path } if path.ends_with(name)));
        assert!(text.contains("save_pretrained"), "{text}");
    }
    let folder = common::folder(&[("config.json", b"{}"), ("model.safetensors/file", b"")]);
    assert!(matches!(refused(folder.path()), (Error::NotAFile { .. }, _)));
}

#[test]
fn bad_indices() {
    let index = |text: &str| {
        let folder = common::indexed();
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        let (error, text) = refused(folder.path());
        assert!(text.contains("model.safetensors.index.json"), "{text}");
        error
    };
    for text in ["", "[]", "{}", r#"{"weight_map":["x"]}"#, r#"{"weight_map":{"x":1}}"#] {
        assert!(matches!(index(text), Error::Json { .. }), "{text}");
    }
    for name in ["../model.safetensors", "/etc/passwd", "original/params.json", "..", ".", "", "x/", "./x"] {
        let error = index(&format!(r#"{{"weight_map":{{"x":"{name}"}}}}"#));
        assert!(
            matches!(&error, Error::IndexFileName { tensor, found, .. } if tensor == "x" && found == name),
            "{name}"
        );
    }
    let error = index(r#"{"weight_map":{"x":"model-00003-of-00003.safetensors"}}"#);
    assert!(
        matches!(&error, Error::IndexFileMissing { file, tensor, .. } if file.ends_with("model-00003-of-00003.safetensors") && tensor == "x")
    );
    let error =
        index(r#"{"weight_map":{"x":"model-00001-of-00002.safetensors","z":"model-00001-of-00002.safetensors"}}"#);
    assert!(
        matches!(&error, Error::IndexTensorMissing { file, tensor, .. } if file.ends_with("model-00001-of-00002.safetensors") && tensor == "z")
    );
}

#[test]
fn bad_file_lengths() {
    for length in 0..8 {
        assert!(matches!(fault(&vec![0; length]), Fault::TooShort { found } if found == length));
    }
    let valid = common::valid_file();
    let header = usize::from_le_bytes(valid[..8].try_into().unwrap());
    for cut in 8..8 + header {
        assert!(matches!(fault(&valid[..cut]), Fault::HeaderBeyondFile { file, .. } if file == cut), "{cut}");
    }
    for cut in 8 + header..valid.len() {
        let expected = valid.len();
        assert!(
            matches!(fault(&valid[..cut]), Fault::FileSize { found, expected: whole } if found == cut && whole == expected)
        );
    }
    let longer = [valid.as_slice(), &[0]].concat();
    assert!(matches!(fault(&longer), Fault::FileSize { found, expected } if found == expected + 1));
    for length in [9, 1 << 40, u64::MAX - 8, u64::MAX] {
        let file = [&length.to_le_bytes()[..], b"{}      "].concat();
        assert!(matches!(fault(&file), Fault::HeaderBeyondFile { header, file: 16 } if header == length), "{length}");
    }
}

#[test]
fn a_header_beyond_the_format() {
    // A sparse file: its 100 MB header is never read.
    let folder = common::single(&100_000_001_u64.to_le_bytes());
    let file = fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    file.set_len(100_000_100).unwrap();
    let (error, _) = refused(folder.path());
    assert!(
        matches!(
            error,
            Error::Malformed { fault: Fault::HeaderTooLarge { found: 100_000_001, limit: 100_000_000 }, .. }
        ),
        "{error:?}"
    );
}

#[test]
fn bad_headers() {
    for header in [
        "",
        "        ",
        "[]",
        "{",
        "{}{}",
        r#"{"a":1}"#,
        r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1]}}"#,
        r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#,
    ] {
        assert!(matches!(header_fault(header, 4), Fault::Header(_)), "{header}");
    }
    assert!(matches!(fault(&[&4_u64.to_le_bytes()[..], b"{\"\xff\""].concat()), Fault::Header(_)));
}

#[test]
fn bad_offsets() {
    let tensor = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |left: String, right: String, data| header_fault(&format!("{{{left},{right}}}"), data);
    let one = |only: String, data| header_fault(&format!("{{{only}}}"), data);
    let half = tensor("a", "F32", "[2]", 0, 8);

    let overlap = two(half.clone(), tensor("b", "F32", "[2]", 4, 12), 12);
    assert!(
        matches!(&overlap, Fault::Overlap { tensor, begin: 4, previous, end: 8 } if tensor == "b" && previous == "a")
    );
    let same = two(half.clone(), tensor("b", "F32", "[2]", 0, 8), 8);
    assert!(matches!(&same, Fault::Overlap { begin: 0, end: 8, .. }), "{same}");
    let hole = two(half.clone(), tensor("b", "F32", "[2]", 12, 20), 20);
    assert!(matches!(&hole, Fault::Hole { tensor, begin: 8, end: 12 } if tensor == "b"), "{hole}");
    let late = one(tensor("a", "F32", "[2]", 4, 12), 12);
    assert!(matches!(&late, Fault::Hole { begin: 0, end: 4, .. }), "{late}");
    let twice = two(half.clone(), tensor("a", "F32", "[2]", 8, 16), 16);
    assert!(matches!(&twice, Fault::Duplicate { tensor } if tensor == "a"), "{twice}");

    for (begin, end) in [(0, 4), (0, 12), (8, 0), (0, u64::MAX), (u64::MAX, 7)] {
        let span = one(tensor("a", "F32", "[2]", begin, end), 8);
        assert!(matches!(&span, Fault::Span { expected: 8, .. }), "{span}");
    }
    for shape in ["[4294967296,4294967296]", "[4611686018427387904]", "[18446744073709551615,2,0]"] {
        let uncountable = one(tensor("a", "F32", shape, 0, 8), 8);
        assert!(matches!(&uncountable, Fault::Uncountable { tensor, .. } if tensor == "a"), "{uncountable}");
    }
    let nibble = one(tensor("a", "F4", "[3]", 0, 1), 1);
    assert!(matches!(&nibble, Fault::Uncountable { .. }), "{nibble}");

    let misaligned = two(tensor("a", "U8", "[2]", 0, 2), tensor("b", "F32", "[1]", 2, 6), 6);
    assert!(matches!(&misaligned, Fault::Misaligned { tensor, expected: 4, .. } if tensor == "b"), "{misaligned}");
    let unpadded = r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#;
    let unpadded = format!("{unpadded:<width$}", width = unpadded.len() | 1);
    let misaligned = fault(&common::safetensors(&unpadded, &[0; 2]));
    assert!(matches!(&misaligned, Fault::Misaligned { expected: 2, .. }), "{misaligned}");
}

/// Nine tensors without a gap, of countable sizes, that fill the address space: with the header, they overflow it.
#[test]
fn offsets_that_overflow() {
    let piece = u64::MAX / 8;
    let bounds = (0..=8).map(|at| at * piece).chain([u64::MAX]).collect::<Vec<_>>();
    let tensors = bounds.windows(2).enumerate().map(|(at, bounds)| {
        let (begin, end) = (bounds[0], bounds[1]);
        let size = end - begin;
        format!(r#""t{at}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    let fault = fault(&common::safetensors(&header, &[]));
    assert!(matches!(&fault, Fault::FileSize { expected: usize::MAX, .. }), "{fault}");
}
