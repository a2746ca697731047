//! The parser on what nvcc makes of the kernels in `kernels/`, and of their variants with planted bugs.

use emulator::ptx::ast::{Module, Statement};
use emulator::ptx::parse;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Kernels and what their headers call planted.
const PLANTED: [(&str, &str); 9] = [
    ("vector_add", "ONE_PAST_END"),
    ("reduce_shuffle", "WRONG_SHUFFLE_MASK"),
    ("reduce_shared", "DROP_SYNCTHREADS"),
    ("reduce_shared", "UNINITIALIZED_CELL"),
    ("scan", "UNINITIALIZED_CELL"),
    ("gemm_ffma", "DROP_SYNCTHREADS"),
    ("gemm_bf16", "DROP_ASYNC_WAIT"),
    ("warp_exchange", "DROP_SYNCWARP"),
    ("last_block", "DROP_FENCE"),
];

/// The front end is the same for all kernels; these stand for the rest where it is asked for something else.
const ELSEWISE: [(&str, &str, &str); 4] = [
    ("gemm_bf16", "-arch=compute_90a", "-lineinfo"),
    ("gemm_bf16", "-arch=compute_120", "-lineinfo"),
    ("last_block", "-arch=compute_100a", "-rdc=true"),
    ("last_block", "-arch=compute_80", "-G"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// Stems of the sources.
fn kernels() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("the kernels");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let sources = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.map(|path| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned()).collect()
}

/// PTX of kernels, each with its options, in the same order; on all cores, since nvcc takes a second or so for each.
fn compile(jobs: &[(String, Vec<String>)]) -> Vec<String> {
    let nvcc = nvcc::locate().unwrap_or_else(|error| panic!("{error}"));
    let (next, texts) = (Mutex::new(0..jobs.len()), Mutex::new(vec![String::new(); jobs.len()]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(index) = { next.lock().expect("no panic").next() } {
                    let (kernel, options) = &jobs[index];
                    let source = folder().join(kernel).with_extension("cu");
                    let text = nvcc.ptx(&source, options).unwrap_or_else(|error| panic!("{error}"));
                    texts.lock().expect("no panic")[index] = text;
                }
            });
        }
    });
    texts.into_inner().expect("no panic")
}

/// Instructions of the kernel.
fn count(module: &Module, kernel: &str) -> usize {
    fn walk(statements: &[Statement]) -> usize {
        let count = |statement: &Statement| match statement {
            Statement::Instruction(_) => 1,
            Statement::Scope(inner) => walk(inner),
            _ => 0,
        };
        statements.iter().map(count).sum()
    }
    let entry = module.functions.iter().find(|function| function.is_entry && function.name == kernel);
    let body = entry.and_then(|entry| entry.body.as_deref());
    walk(body.unwrap_or_else(|| panic!("there is no kernel {kernel}")))
}

#[test]
fn kernels_parse() {
    let job = |kernel: &str, options: &[&str]| {
        (kernel.to_owned(), options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    };
    let kernels = kernels();
    assert_eq!(kernels.len(), 12);
    let mut jobs: Vec<_> = kernels.iter().map(|kernel| job(kernel, &["-arch=compute_80"])).collect();
    jobs.extend(PLANTED.map(|(kernel, bug)| job(kernel, &["-arch=compute_80", &format!("-D{bug}")])));
    jobs.extend(ELSEWISE.map(|(kernel, architecture, option)| job(kernel, &[architecture, option])));

    let texts = compile(&jobs);
    for ((kernel, options), text) in jobs.iter().zip(&texts) {
        let module = parse(text).unwrap_or_else(|error| panic!("{kernel} {options:?}: {error}"));
        assert!(count(&module, kernel) > 10, "{kernel} {options:?}");
    }
    // A bug that the compiler does not see would be none.
    for ((kernel, bug), text) in PLANTED.iter().zip(&texts[kernels.len()..]) {
        let header = std::fs::read_to_string(folder().join(kernel).with_extension("cu")).expect("a source");
        assert!(header.contains(&format!("-D{bug}")), "the header of {kernel} does not tell of {bug}");
        let sound = kernels.iter().position(|name| name == kernel).expect("a kernel");
        assert_ne!(&texts[sound], text, "{kernel} {bug}");
    }
}
