//! Texts and token sequences: every form a text may come in, every way it may be broken, and the token counts that
//! the demonstration model's makers state.

use std::io::Write;
use std::path::{Path, PathBuf};

use model::calibration::{CalibrationError, Sampling, TextTokenizer, draw, windows};
use model::text::{Documents, TextError, documents};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo");
const DEMO_VOCABULARY: usize = 2048;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

fn read(path: &Path) -> Result<Vec<String>, TextError> {
    documents(&[path.to_path_buf()]).collect()
}

fn demo_tokenizer() -> TextTokenizer {
    TextTokenizer::load(Path::new(DEMO), DEMO_VOCABULARY).unwrap()
}

fn demo(name: &str) -> PathBuf {
    Path::new(DEMO).join(name)
}

#[test]
fn a_plain_file_is_one_document_as_it_stands() {
    let folder = Folder::new();
    let text = " Fellow citizens,\r\nné à Orléans\n\n";
    assert_eq!(read(&folder.file("a.txt", text)).unwrap(), [text]);
    assert_eq!(read(&folder.file("named-as-nothing", text)).unwrap(), [text]);
    assert_eq!(read(&folder.file("marked.txt", format!("\u{feff}{text}"))).unwrap(), [text]);
}

#[test]
fn json_lines_are_told_by_name_or_by_the_first_line() {
    let folder = Folder::new();
    let lines = "{\"url\": [1, {}], \"text\": \"one\\nline\"}\n\n{\"text\":\"\"}\n  {\"text\": \"two\"}";
    for name in ["a.jsonl", "a.json", "a.NDJSON", "a.data", "a", "a.jsonl.gz"] {
        assert_eq!(read(&folder.file(name, lines)).unwrap(), ["one\nline", "two"], "{name}");
    }
    assert_eq!(read(&folder.file("a.txt", lines)).unwrap(), [lines]);
    // A first line longer than what is looked at still tells an object.
    let long = format!("{{\"text\": \"{}\"}}", "word ".repeat(100_000));
    assert_eq!(read(&folder.file("long", &long)).unwrap()[0].len(), 500_000);
    // Braces do not make JSON.
    let program = "{ not json }\n";
    assert_eq!(read(&folder.file("program", program)).unwrap(), [program]);
}

#[test]
fn compression_is_told_by_the_bytes_and_may_come_in_pieces() {
    let folder = Folder::new();
    let (first, second) = ("{\"text\": \"one\"}\n", "{\"text\": \"two\"}\n");
    for compress in [gzip, zstandard] {
        let pieces = [compress(first.as_bytes()), compress(second.as_bytes())].concat();
        for name in ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl", "a.gz"] {
            assert_eq!(read(&folder.file(name, &pieces)).unwrap(), ["one", "two"], "{name}");
        }
    }
}

#[test]
fn corrupted_compression_is_an_error_and_not_a_shorter_text() {
    let folder = Folder::new();
    let text: String = (0..5000).map(|i| format!("sentence {} of many. ", i * i)).collect();
    for compress in [gzip, zstandard] {
        let whole = compress(text.as_bytes());
        let truncated = folder.file("truncated.txt", &whole[..whole.len() / 2]);
        assert!(matches!(read(&truncated), Err(TextError::Corrupted { .. })), "{:?}", read(&truncated));
    }
    // gzip carries a checksum, so a flipped bit cannot pass either.
    let mut flipped = gzip(text.as_bytes());
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert!(matches!(read(&folder.file("bit.txt", &flipped)), Err(TextError::Corrupted { .. })));
}

#[test]
fn errors_say_where() {
    let folder = Folder::new();
    let missing = folder.0.path().join("missing.txt");
    assert!(matches!(read(&missing), Err(TextError::NotFound { .. })));
    assert!(matches!(read(folder.0.path()), Err(TextError::Unreadable { .. })));
    for (name, text) in [("a.txt", ""), ("b.txt", " \n\t\n"), ("c.jsonl", "\n\n"), ("d.jsonl", "{\"text\":\"\"}\n")] {
        assert!(matches!(read(&folder.file(name, text)), Err(TextError::Empty { .. })), "{name}");
    }
    let byte = |name: &str, bytes: &[u8]| match read(&folder.file(name, bytes)) {
        Err(TextError::NotUtf8 { byte, .. }) => byte,
        other => panic!("{other:?}"),
    };
    assert_eq!(byte("a.txt", b"caf\xe9 noir"), 3);
    assert_eq!(byte("a.txt", b"\xef\xbb\xbfcaf\xe9 noir"), 6);
    assert_eq!(byte("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"caf\xe9\"}\n"), 16 + 13);
    let second_line =
        |line: &str| read(&folder.file("a.jsonl", format!("{{\"text\": \"one\"}}\n{line}\n"))).unwrap_err();
    for line in ["nonsense", "{\"text\": \"cut", "[\"text\"]", "\"text\"", "{\"text\":\"a\",\"text\":\"b\"}"] {
        assert!(matches!(second_line(line), TextError::NotJson { line: 2, .. }), "{line}");
    }
    for line in ["{}", "{\"Text\": \"a\"}", "{\"text\": 3}", "{\"text\": null}"] {
        assert!(matches!(second_line(line), TextError::NoTextField { line: 2, .. }), "{line}");
    }
}

#[test]
fn documents_end_after_an_error() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl", "nonsense\n{\"text\": \"one\"}\n");
    let mut documents = Documents::open(&path).unwrap();
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[test]
fn a_small_file_cannot_unfold_without_limit() {
    let folder = Folder::new();
    // 33 MiB of one letter in a few kilobytes of Zstandard.
    let unfolding = zstandard(&vec![b'a'; 33 << 20]);
    assert!(unfolding.len() < 1 << 16);
    assert!(matches!(read(&folder.file("a.txt", &unfolding)), Err(TextError::TooLong { what: "a document", .. })));
    assert!(matches!(read(&folder.file("a.jsonl", &unfolding)), Err(TextError::TooLong { what: "a document", .. })));
}

#[test]
fn the_demonstration_texts_have_the_tokens_their_readme_states() {
    let tokenizer = demo_tokenizer();
    let calibration = tokenizer.stream(&[demo("calibration.txt")], None).unwrap();
    assert_eq!(calibration.len(), 175_866);
    let evaluation = tokenizer.stream(&[demo("evaluation.txt")], None).unwrap();
    assert_eq!(evaluation.len(), 129_975);
    // `</s>`, token 2, stands in front of a text and nowhere else.
    assert_eq!(evaluation.iter().filter(|&&token| token == 2).count(), 1);
    assert_eq!(evaluation[0], 2);
    assert_eq!(windows(evaluation, 256).unwrap().count(), 507);

    let sampled = tokenizer.calibrate(&[demo("calibration.txt")], 128, 256, Sampling::Contiguous, 0).unwrap();
    assert_eq!(sampled.tokens, calibration[..128 * 256]);
}

#[test]
fn every_document_gets_its_own_special_tokens() {
    let folder = Folder::new();
    let tokenizer = demo_tokenizer();
    let stream = |path: PathBuf| tokenizer.stream(&[path], None).unwrap();
    let one = stream(folder.file("one.txt", "The Union is strong."));
    let two = stream(folder.file("two.txt", "The Congress is not."));
    let both =
        stream(folder.file("both.jsonl", "{\"text\": \"The Union is strong.\"}\n{\"text\": \"The Congress is not.\"}"));
    assert_eq!(both, [one, two].concat());
    let paths = [folder.0.path().join("one.txt"), folder.0.path().join("two.txt")];
    assert_eq!(tokenizer.stream(&paths, None).unwrap(), both);
}

#[test]
fn reading_stops_once_there_is_enough() {
    let folder = Folder::new();
    let tokenizer = demo_tokenizer();
    let missing = folder.0.path().join("missing.txt");
    let paths = [demo("calibration.txt"), demo("evaluation.txt"), demo("calibration.txt"), missing];
    assert!(tokenizer.calibrate(&paths, 4, 256, Sampling::Contiguous, 0).is_ok());
    assert!(matches!(
        tokenizer.calibrate(&paths, 4, 256, Sampling::Random, 0),
        Err(CalibrationError::Text(TextError::NotFound { .. }))
    ));
}

#[test]
fn too_short_a_text_is_counted() {
    let folder = Folder::new();
    let path = folder.file("short.txt", "The Union is strong.");
    let tokenizer = demo_tokenizer();
    let found_here = tokenizer.stream(std::slice::from_ref(&path), None).unwrap().len();
    match tokenizer.calibrate(&[path], 128, 256, Sampling::Contiguous, 0) {
        Err(CalibrationError::TooShort { found, needed: 32_768, .. }) => assert_eq!(found, found_here),
        other => panic!("{other:?}"),
    }
    assert!(matches!(windows(vec![1; 9], 10), Err(CalibrationError::TooShort { found: 9, needed: 10, .. })));
    assert!(matches!(draw(&[1; 9], 3, 10, 0), Err(CalibrationError::TooShort { found: 9, needed: 10, .. })));
}

#[test]
fn windows_do_not_overlap_and_drop_the_tail() {
    let cut = windows((0..11).collect(), 3).unwrap();
    assert_eq!(cut.tokens, (0..9).collect::<Vec<_>>());
    assert_eq!((cut.count(), cut.length), (3, 3));
}

#[test]
fn random_windows_repeat_by_seed_and_reach_every_place() {
    let tokens: Vec<u32> = (0..20).collect();
    let sampled = draw(&tokens, 2000, 4, 7).unwrap();
    assert_eq!(sampled, draw(&tokens, 2000, 4, 7).unwrap());
    assert_ne!(sampled, draw(&tokens, 2000, 4, 8).unwrap());
    assert_eq!(sampled.count(), 2000);
    let mut drawn = [0; 17];
    for window in sampled.tokens.chunks_exact(4) {
        assert!(window.windows(2).all(|pair| pair[1] == pair[0] + 1));
        drawn[window[0] as usize] += 1;
    }
    // 2000 draws over 17 places: mean 118, standard deviation 10.5; six of them either way.
    assert!(drawn.iter().all(|&times| (55..=181).contains(&times)), "{drawn:?}");
}

#[test]
fn a_folder_without_a_tokenizer_says_how_to_get_one() {
    let folder = Folder::new();
    let error = TextTokenizer::load(folder.0.path(), 2048).err().unwrap();
    assert!(matches!(error, CalibrationError::NoTokenizer { .. }));
    assert!(error.to_string().contains("save_pretrained"));
    folder.file("tokenizer.json", "{\"version\": \"1.0\"}");
    assert!(matches!(TextTokenizer::load(folder.0.path(), 2048), Err(CalibrationError::BadTokenizer { .. })));
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let tokenizer = TextTokenizer::load(Path::new(DEMO), 1000).unwrap();
    match tokenizer.stream(&[demo("evaluation.txt")], None) {
        Err(CalibrationError::OutsideVocabulary { token, vocabulary: 1000, .. }) => assert!(token >= 1000),
        other => panic!("{other:?}"),
    }
}
