//! Every kernel is documented, driven, tested and benchmarked: what a file of `kernels/` must come with.
#![cfg(feature = "cuda")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder of the repository with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|own| own == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text_of(folder: &str) -> String {
    files(folder, "rs").iter().map(|path| read(path)).collect()
}

/// The comment that a file begins with.
fn header(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| line.starts_with("//")).map(|line| line.trim_start_matches('/').trim()).collect()
}

#[test]
fn every_file_opens_with_its_contract() {
    let references = text_of("crates/reference/src");
    for path in files("kernels", "cu") {
        let (text, name) = (read(&path), path.display());
        let header = header(&text);
        for field in ["Dimensions:", "Launch:", "Requires:", "Oracle:", "Tolerance:"] {
            assert!(header.iter().any(|line| line.starts_with(field)), "{name} has no line `{field}` in its header");
        }
        let is_equation = |line: &&str| line.contains('←') || line.contains('=');
        assert!(header.iter().any(is_equation), "{name} has no equation in its header");
        // An oracle that does not exist tests nothing.
        let oracle = header.iter().find_map(|line| line.strip_prefix("Oracle:")).unwrap_or_default();
        let functions: Vec<&str> = oracle
            .split("reference::")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
            .collect();
        assert!(!functions.is_empty(), "the oracle of {name} is no function of `reference`");
        for function in functions {
            let is_there = ["fn", "struct"].iter().any(|kind| references.contains(&format!("{kind} {function}")));
            assert!(is_there, "{name}: there is no reference::{function}");
        }
    }
}

#[test]
fn every_kernel_is_driven_tested_and_benchmarked() {
    let (runtime, tests, benches) = (text_of("src"), text_of("tests"), text_of("benches"));
    for (stem, ptx) in prune_cuda::ptx() {
        assert!(tests.contains(&format!("kernels/{stem}.cu")), "no test says that it tests kernels/{stem}.cu");
        assert!(benches.contains(&format!("kernels/{stem}.cu")), "no benchmark says that it runs kernels/{stem}.cu");
        let entries: Vec<&str> =
            ptx.lines().filter_map(|line| line.trim().strip_prefix(".visible .entry ")?.split('(').next()).collect();
        assert!(!entries.is_empty(), "{stem}.cu has no kernel");
        for entry in entries {
            let whole = runtime.contains(&format!("\"{entry}\""));
            // Names of families are put together from a stem and what follows it.
            let stems = entry.match_indices('_').map(|(at, _)| format!("concat!(\"{}\"", &entry[..=at]));
            let put_together = stems.into_iter().any(|stem| runtime.contains(&stem));
            assert!(whole || put_together, "nothing in src/ launches {entry} of {stem}.cu");
        }
    }
}

/// `kernels/README.md` is the list that a newcomer reads first.
#[test]
fn the_list_of_kernels_is_complete() {
    let list = read(&root().join("kernels/README.md"));
    for path in files("kernels", "cu").into_iter().chain(files("kernels", "cuh")) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(list.contains(&name), "kernels/README.md does not name {name}");
    }
}

/// nvcc from 12.0 on is taken, and it passes instructions on that its own version of PTX does not have: only a driver would
/// find out. 8.3 is the oldest that the compiler of today writes without being asked to.
#[test]
fn products_of_older_compilers_are_of_older_ptx() {
    let nvcc = nvcc::locate().unwrap_or_else(|error| panic!("{error}"));
    let options = ["-arch=compute_80", "-std=c++17", "-DORDERED_METADATA=0"];
    let ptx = nvcc.ptx(&root().join("kernels/pack_two_four.cu"), &options).unwrap_or_else(|error| panic!("{error}"));
    let old: String = ptx
        .lines()
        .map(|line| if line.starts_with(".version") { ".version 8.3\n".into() } else { format!("{line}\n") })
        .collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), old).expect("written");
    nvcc.assemble(file.path(), "sm_80").unwrap_or_else(|error| panic!("{error}"));
}
