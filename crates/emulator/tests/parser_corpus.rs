//! The parser (and for what is refused the decoder) on the texts of `corpus/`, and on what is left of them after all kinds of damage. `fuzz/` goes on from
//! the same files, by coverage; what it finds is kept here.

use emulator::program::{Addresses, decode};
use emulator::ptx::ast::{Module, Statement};
use emulator::ptx::{ParseError, parse};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Texts that parse, with their names, in the order of the names.
static ACCEPTED: LazyLock<Vec<(String, String)>> = LazyLock::new(|| texts("accepted"));

fn texts(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("the corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| (path.display().to_string(), std::fs::read_to_string(path).expect("a text"))).collect()
}

/// Parses a text that may be anything; what is refused must be refused for a line that exists.
fn try_parse(text: &str) {
    if let Err(error) = parse(text) {
        check_error(&error, text);
    }
}

fn check_error(error: &ParseError, text: &str) {
    let lines = text.split('\n').count();
    assert!((1..=lines).contains(&(error.line() as usize)), "line {} of {lines}: {error}", error.line());
    if let ParseError::Unexpected { text: quoted, .. }
    | ParseError::Unsupported { text: quoted, .. }
    | ParseError::Excessive { text: quoted, .. }
    | ParseError::Duplicate { text: quoted, .. } = error
    {
        assert!(text.contains(quoted.as_str()) && quoted.len() < 200, "{error}");
    }
}

/// Every instruction stands on the line that it says, as it says.
fn check_lines(module: &Module, text: &str) -> usize {
    fn walk(statements: &[Statement], lines: &[&str]) -> usize {
        let check = |statement: &Statement| match statement {
            Statement::Instruction(instruction) => {
                let line = lines[instruction.line as usize - 1];
                assert!(line.contains(&instruction.mnemonic()), "{} in {line}", instruction.mnemonic());
                1
            }
            Statement::Scope(inner) => walk(inner, lines),
            _ => 0,
        };
        statements.iter().map(check).sum()
    }
    let lines: Vec<&str> = text.lines().collect();
    module.functions.iter().filter_map(|function| function.body.as_ref()).map(|body| walk(body, &lines)).sum()
}

#[test]
fn accepted_texts_parse() {
    for (name, text) in ACCEPTED.iter() {
        let module = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(check_lines(&module, text) > 0, "{name} has no instruction");
        assert!(module.functions.iter().any(|function| function.is_entry), "{name} has no kernel");
    }
}

#[test]
fn refused_texts_are_refused() {
    for (name, text) in texts("refused") {
        match parse(&text) {
            Ok(module) => {
                let kernels = module.functions.iter().filter(|function| function.is_entry);
                let refused = kernels.map(|kernel| decode(&module, kernel, &Addresses::new())).find_map(Result::err);
                let error = refused.unwrap_or_else(|| panic!("{name} was accepted"));
                assert!((1..=text.lines().count()).contains(&(error.line as usize)), "{name}: {error}");
            }
            Err(error) => check_error(&error, &text),
        }
    }
}

/// Each line is left out, each line is doubled, and the text ends early in each line, so far as time allows.
#[test]
fn texts_with_lines_lost_or_doubled_or_cut() {
    for (_, text) in ACCEPTED.iter() {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let step = lines.len().div_ceil(200);
        for at in (0..lines.len()).step_by(step) {
            let (before, after) = (lines[..at].concat(), lines[at + 1..].concat());
            try_parse(&format!("{before}{after}"));
            try_parse(&format!("{before}{}{}{after}", lines[at], lines[at]));
            let half = (0..=lines[at].len() / 2).rev().find(|&end| lines[at].is_char_boundary(end)).unwrap_or(0);
            try_parse(&format!("{before}{}", &lines[at][..half]));
            try_parse(&format!("{before}{}{after}", &lines[at][half..]));
        }
    }
}

/// What a fuzzer likes to find in the place of something else.
const INSERTED: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "<",
    ">",
    ";",
    ",",
    ":",
    "|",
    "!",
    "@",
    "%",
    ".",
    "-",
    "+",
    "~",
    "?",
    "\"",
    "/*",
    "*/",
    "//",
    "\n",
    "0x",
    "0f",
    "0d7ff0000000000000",
    "18446744073709551615",
    "-9223372036854775808",
    "1e999",
    "08",
    "::",
    ".reg .b32 %r<",
    ".align 0",
    ".global .u8 x[",
    "= {",
    "_",
    "é",
    "\0",
];

/// One change: at a place of the text (a share of its length) so many bytes become something else.
#[derive(Clone, Debug)]
struct Change {
    place: f64,
    removed: usize,
    inserted: String,
}

fn change() -> impl Strategy<Value = Change> {
    let inserted = prop_oneof![
        Just(String::new()),
        proptest::sample::select(INSERTED.as_slice()).prop_map(str::to_owned),
        (proptest::sample::select(INSERTED.as_slice()), 2_usize..300).prop_map(|(text, times)| text.repeat(times)),
        "\\PC{0,8}",
    ];
    (0.0..1.0, 0_usize..12, inserted).prop_map(|(place, removed, inserted)| Change { place, removed, inserted })
}

fn apply(text: &str, changes: &[Change]) -> String {
    let mut text = text.to_owned();
    for change in changes {
        let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let start = boundary((change.place * text.len() as f64) as usize);
        let end = boundary(start + change.removed).max(start);
        text.replace_range(start..end, &change.inserted);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_texts_never_panic(index: proptest::sample::Index, changes in prop::collection::vec(change(), 1..6)) {
        let (_, text) = &ACCEPTED[index.index(ACCEPTED.len())];
        try_parse(&apply(text, &changes));
    }

    #[test]
    fn text_that_is_nothing_never_panics(text in "\\PC{0,200}") {
        try_parse(&text);
        try_parse(&format!(".version 9.0\n.target sm_80\n{text}"));
        try_parse(&format!(".version 9.0\n.target sm_80\n.entry k() {{ {text} }}"));
    }
}
