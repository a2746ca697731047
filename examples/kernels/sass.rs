//! What ptxas makes of the kernels: registers, spills, and the instructions of the main loop.

use nvcc::Nvcc;
use std::collections::BTreeMap;
use std::path::Path;

/// A kernel in the machine code of one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its name.
    pub(crate) name: String,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes that a thread spills to local memory, stores and loads together, and its stack.
    pub(crate) spills: u32,
    /// Bytes of static shared memory.
    pub(crate) shared: usize,
    /// The instructions of its main loop, by opcode with the modifiers that matter; empty where it has none.
    pub(crate) main_loop: BTreeMap<String, u32>,
}

impl Kernel {
    /// How many instructions of the main loop begin with one of these.
    pub(crate) fn count(&self, opcodes: &[&str]) -> u32 {
        let of = |name: &str| opcodes.iter().any(|opcode| name.starts_with(opcode));
        self.main_loop.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
    }

    /// Instructions of the main loop.
    pub(crate) fn loop_length(&self) -> u32 {
        self.main_loop.values().sum()
    }
}

/// The kernels of a PTX file on `architecture`.
///
/// # Errors
/// If ptxas or nvdisasm fails, or says something that is not understood.
pub(crate) fn inspect(nvcc: &Nvcc, ptx: &str, architecture: &str) -> Result<Vec<Kernel>, String> {
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    std::fs::write(file.path(), ptx).map_err(|error| error.to_string())?;
    let (cubin, said) = assemble(nvcc, file.path(), architecture)?;
    let code = nvcc.disassemble(&cubin).map_err(|error| error.to_string())?;
    let loops = main_loops(&code);
    let mut kernels = resources(&said)?;
    for kernel in &mut kernels {
        kernel.main_loop = loops.get(&kernel.name).cloned().unwrap_or_default();
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

fn assemble(nvcc: &Nvcc, ptx: &Path, architecture: &str) -> Result<(Vec<u8>, String), String> {
    nvcc.assemble(ptx, architecture).map_err(|error| error.to_string())
}

/// Reads what `ptxas -v` says.
fn resources(said: &str) -> Result<Vec<Kernel>, String> {
    let before = |line: &str, what: &str| -> u32 {
        let words = line.split(what).next().unwrap_or_default();
        words.rsplit([' ', ',']).find(|word| !word.is_empty()).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let mut kernels = Vec::<Kernel>::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Kernel { name, registers: 0, spills: 0, shared: 0, main_loop: BTreeMap::new() });
            continue;
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            let parts = [" bytes stack frame", " bytes spill stores", " bytes spill loads"];
            kernel.spills = parts.into_iter().map(|part| before(line, part)).sum();
        } else if line.contains("Used ") {
            kernel.registers = before(line, " registers");
            kernel.shared = if line.contains("bytes smem") { before(line, " bytes smem") as usize } else { 0 };
        }
    }
    match kernels.iter().find(|kernel| kernel.registers == 0) {
        Some(kernel) => Err(format!("ptxas does not say how many registers {} has:\n{said}", kernel.name)),
        None => Ok(kernels),
    }
}

/// The main loop of each kernel: of the loops with the most arithmetic of the kind that they are for, the shortest one that
/// also fills shared memory, if there is such a one.
fn main_loops(code: &str) -> BTreeMap<String, BTreeMap<String, u32>> {
    let mut loops = BTreeMap::new();
    let mut kernel = None;
    let mut lines = Vec::new();
    for line in code.lines().chain([".text.:"]) {
        let label = line.trim_end().strip_suffix(':').filter(|label| label.starts_with(".text."));
        if let Some(label) = label {
            if let Some(name) = kernel.replace(label[".text.".len()..].to_owned()) {
                loops.insert(name, main_loop(&lines));
            }
            lines.clear();
        } else {
            lines.push(line.trim());
        }
    }
    loops
}

fn main_loop(lines: &[&str]) -> BTreeMap<String, u32> {
    let at: BTreeMap<&str, usize> = lines
        .iter()
        .enumerate()
        .filter_map(|(number, line)| Some((line.strip_suffix(':').filter(|label| label.starts_with(".L_"))?, number)))
        .collect();
    // A loop ends with a jump back.
    let target = |line: &str| -> Option<usize> {
        let label = line.split_once("BRA")?.1.split_once("`(")?.1.split(')').next()?;
        at.get(label).copied()
    };
    let back =
        lines.iter().enumerate().filter_map(|(end, line)| Some((target(line).filter(|&start| start < end)?, end)));
    // What warps do that are not together, shuffle by shuffle, lies behind the end of a kernel and jumps back into its middle:
    // no loop, and nothing that runs.
    let ends = |line: &&str| line.split_once("*/").is_some_and(|(_, rest)| rest.trim_start().starts_with("EXIT"));
    let loops: Vec<BTreeMap<String, u32>> =
        back.map(|(start, end)| &lines[start..=end]).filter(|lines| !lines.iter().any(ends)).map(mix).collect();
    let count = |mix: &BTreeMap<String, u32>, opcodes: &[&str]| -> u32 {
        mix.iter().filter(|(name, _)| opcodes.iter().any(|opcode| name.starts_with(opcode))).map(|(_, n)| n).sum()
    };
    for arithmetic in
        [&["HMMA", "IMMA", "DMMA"][..], &["FFMA", "DFMA"][..], &["FADD", "FMUL", "ATOM", "LDG", "POPC"][..]]
    {
        let busy: Vec<_> = loops.iter().filter(|mix| count(mix, arithmetic) > 0).collect();
        let filling = busy.iter().filter(|mix| count(mix, &["LDGSTS"]) > 0).min_by_key(|mix| mix.values().sum::<u32>());
        if let Some(found) = filling.or(busy.iter().max_by_key(|mix| count(mix, arithmetic))) {
            return (*found).clone();
        }
    }
    BTreeMap::new()
}

/// Counts instructions by opcode, with the modifiers that say how wide a memory access is.
fn mix(lines: &[&str]) -> BTreeMap<String, u32> {
    let mut mix = BTreeMap::new();
    for line in lines {
        let Some((_, rest)) = line.split_once("*/") else { continue };
        let mut words = rest.split_whitespace();
        let Some(mut word) = words.next() else { continue };
        if word.starts_with('@') {
            word = words.next().unwrap_or_default();
        }
        let opcode = word.trim_end_matches(';');
        if opcode.is_empty() || !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            continue;
        }
        let mut parts = opcode.split('.');
        let mut name = parts.next().unwrap_or_default().to_owned();
        let matters = |part: &&str| {
            matches!(*part, "64" | "128" | "16816" | "1688" | "16832" | "SP" | "F32" | "TF32" | "BF16" | "BYPASS")
        };
        for part in parts.filter(matters) {
            name.push('.');
            name.push_str(part);
        }
        *mix.entry(name).or_insert(0) += 1;
    }
    mix
}

#[cfg(test)]
mod tests {
    use super::main_loop;

    #[test]
    fn what_lies_behind_the_end_of_a_kernel_is_no_loop() {
        let lines = [
            ".L_x_1:",
            "/*0010*/                   FFMA R1, R2, R3, R1 ;",
            "/*0020*/               @P0 EXIT ;",
            "/*0030*/               @P1 BRA `(.L_x_1) ;",
            ".L_x_2:",
            "/*0040*/                   FFMA R1, R2, R3, R1 ;",
            "/*0050*/                   EXIT ;",
            ".L_x_3:",
            "/*0060*/                   FFMA R4, R2, R3, R4 ;",
            "/*0070*/                   FFMA R4, R2, R3, R4 ;",
            "/*0080*/                   BRA `(.L_x_2) ;",
        ];
        let found = main_loop(&lines);
        assert_eq!(found.get("FFMA"), Some(&1), "{found:?}");
        assert_eq!(found.get("EXIT"), Some(&1), "{found:?}");
    }
}
