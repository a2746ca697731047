//! ptxas is the judge of which forms there are, and for which `.target` and `.version`: every line of
//! `requirements/forms.txt` is put to it and to the decoder, which must agree.

use emulator::program::{Addresses, decode};
use emulator::ptx::parse;
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;

/// Targets, each in the version of the nvcc that the tests fetch, and where they differ the versions before.
const MODULES: &[(&str, &str)] = &[
    ("sm_80", "9.0"),
    ("sm_86", "9.0"),
    ("sm_89", "9.0"),
    ("sm_90", "9.0"),
    ("sm_90a", "9.0"),
    ("sm_100", "9.0"),
    ("sm_100a", "9.0"),
    ("sm_100f", "9.0"),
    ("sm_120", "9.0"),
    ("sm_120a", "9.0"),
    ("sm_90a", "8.0"),
    ("sm_90a", "8.1"),
    ("sm_90a", "8.2"),
    ("sm_90a", "8.3"),
    ("sm_90a", "8.4"),
    ("sm_90a", "8.5"),
    ("sm_100a", "8.6"),
    ("sm_100a", "8.7"),
    ("sm_100a", "8.8"),
];

/// Lines before the first form.
const HEAD: usize = 6;

/// The forms, with alternatives in braces written out.
fn forms() -> Vec<String> {
    fn expand(opcode: &str, rest: &str, forms: &mut Vec<String>) {
        match opcode.split_once('{') {
            None => forms.push(format!("{opcode} {rest}")),
            Some((before, after)) => {
                let (choices, after) = after.split_once('}').expect("a closing brace");
                for choice in choices.split(',') {
                    expand(&format!("{before}{choice}{after}"), rest, forms);
                }
            }
        }
    }
    let mut forms = Vec::new();
    for line in include_str!("requirements/forms.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (opcode, rest) = line.split_once(' ').expect("an opcode and operands");
        expand(opcode, rest, &mut forms);
    }
    forms
}

fn module(target: &str, version: &str, forms: &[String]) -> String {
    let scopes: String = forms.iter().map(|form| format!("{{ {form} }}\n")).collect();
    format!(
        ".version {version}\n.target {target}\n.address_size 64\n.global .b64 variable;\n.entry kernel()\n\
         {{ .reg .pred p<4>; .reg .b16 h<4>; .reg .b32 r<8>; .reg .f32 f<8>; .reg .u32 u<4>; .reg .b64 d<8>; .reg .f64 g<4>;\n\
         {scopes}LABEL: ret;\n}}\n"
    )
}

/// The forms that ptxas refuses, by their numbers. It stops at what it cannot read, and is then asked again without it.
fn refused_by_ptxas(ptxas: &PathBuf, target: &str, version: &str, forms: &[String]) -> HashSet<usize> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("requirements_{target}_{version}.ptx"));
    let (mut left, mut refused) = (forms.to_vec(), HashSet::new());
    loop {
        std::fs::write(&path, module(target, version, &left)).expect("a file for ptxas");
        let output = Command::new(ptxas)
            .arg(format!("-arch={target}"))
            .arg(&path)
            .args(["-o", "/dev/null"])
            .output()
            .expect("ptxas beside nvcc");
        let said = String::from_utf8_lossy(&output.stderr);
        let mut fatal = false;
        for line in said.lines() {
            // `ptxas file, line 7; error   : …`
            let Some((place, message)) = line.split_once(';') else { continue };
            let number = place.rsplit_once("line ").and_then(|(_, number)| number.parse::<usize>().ok());
            let Some(form) = number.and_then(|number| number.checked_sub(HEAD + 1)) else { continue };
            let message = message.trim_start();
            if (message.starts_with("error") || message.starts_with("fatal")) && form < forms.len() {
                refused.insert(form);
                fatal |= message.starts_with("fatal") || message.contains("syntax error");
                left[form].clear();
            }
        }
        assert!(output.status.success() || !refused.is_empty(), "{target} {version}: {said}");
        if !fatal {
            return refused;
        }
    }
}

fn refusal(target: &str, version: &str, form: &str) -> Option<String> {
    let text = module(target, version, &[form.to_owned()]);
    match parse(&text) {
        Err(error) => Some(error.to_string()),
        Ok(module) => {
            let addresses = Addresses::from([("variable".to_owned(), (emulator::ptx::ast::Space::Global, 0x1000))]);
            decode(&module, &module.functions[0], &addresses).err().map(|error| error.to_string())
        }
    }
}

#[test]
fn ptxas_and_the_decoder_accept_the_same_forms() {
    let nvcc = nvcc::locate().unwrap_or_else(|error| panic!("{error}"));
    if nvcc.release() < (13, 0) {
        println!("skipped: {:?} of {} does not read PTX 9.0", nvcc.release(), nvcc.path().display());
        return;
    }
    let ptxas = nvcc.path().with_file_name("ptxas");
    let forms = forms();
    let mut differences = Vec::new();
    for &(target, version) in MODULES {
        let theirs = refused_by_ptxas(&ptxas, target, version, &forms);
        assert!(theirs.len() < forms.len(), "{target} {version}");
        for (number, form) in forms.iter().enumerate() {
            match (theirs.contains(&number), refusal(target, version, form)) {
                (true, None) => differences.push(format!("only ptxas refuses, {target} {version}: {form}")),
                (false, Some(reason)) => {
                    differences.push(format!("only we refuse, {target} {version}: {form}: {reason}"))
                }
                _ => {}
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
