//! Under the feature `cuda`: compiles `kernels/*.cu` with nvcc to PTX, and when asked to machine code, and hands both to
//! the crate together with the constants that kernels and launches share.
//!
//! `PRUNE_CUDA_ARCHITECTURES`, such as `sm_80,sm_90`, embeds cubins for these beside the PTX, which then need no
//! compilation by the driver at the start.

#[cfg(not(feature = "cuda"))]
fn main() {}

#[cfg(feature = "cuda")]
fn main() {
    if let Err(error) = kernels::build() {
        // Cargo shows what a build script writes only if it fails, and this line first.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

#[cfg(feature = "cuda")]
mod kernels {
    use std::error::Error;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::{env, fs, io};

    type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

    /// PTX of the oldest architecture that is supported; a driver compiles it for every later one.
    const BASELINE: &str = "compute_80";

    pub(super) fn build() -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let out = PathBuf::from(env::var("OUT_DIR")?);
        println!("cargo:rerun-if-changed=kernels");
        for name in ["CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "PRUNE_CUDA_ARCHITECTURES"] {
            println!("cargo:rerun-if-env-changed={name}");
        }
        let mut sources = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|error| named(&folder, error))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                sources.push(path);
            }
        }
        sources.sort();
        let nvcc = nvcc::find()?;
        let architectures = env::var("PRUNE_CUDA_ARCHITECTURES").unwrap_or_default();
        let architectures: Vec<&str> =
            architectures.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        // A source takes seconds, and they know nothing of each other.
        let compiled: Vec<Result<Source>> = std::thread::scope(|scope| {
            let (nvcc, architectures) = (&nvcc, &architectures);
            let running: Vec<_> =
                sources.iter().map(|path| scope.spawn(move || compile(nvcc, path, architectures))).collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a compilation panicked".into())))
                .collect()
        });
        let (mut code, mut names) = (String::new(), Vec::new());
        for source in compiled {
            let source = source?;
            source.write(&out, &mut code)?;
            names.push(format!("&{}", source.name.to_uppercase()));
        }
        writeln!(code, "pub(crate) static ALL: &[&Source] = &[{}];", names.join(", "))?;
        constants(&folder.join("launch.cuh"), &mut code)?;
        fs::write(out.join("kernels.rs"), code)?;
        Ok(())
    }

    struct Source {
        name: String,
        ptx: String,
        cubins: Vec<(String, Vec<u8>)>,
    }

    fn compile(nvcc: &nvcc::Nvcc, path: &Path, architectures: &[&str]) -> Result<Source> {
        let options = |architecture: &str| [format!("-arch={architecture}"), "-lineinfo".into(), "-std=c++17".into()];
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ptx = nvcc.ptx(path, &options(BASELINE))?;
        let cubin = |name: &&str| Ok(((*name).to_owned(), nvcc.cubin(path, &options(name))?));
        Ok(Source { name, ptx, cubins: architectures.iter().map(cubin).collect::<Result<_>>()? })
    }

    impl Source {
        /// Puts the files into `out`, and appends a constant that embeds them to `code`.
        fn write(&self, out: &Path, code: &mut String) -> Result<()> {
            let Self { name, ptx, cubins } = self;
            fs::write(out.join(format!("{name}.ptx")), ptx)?;
            let constant = name.to_uppercase();
            writeln!(code, "pub(crate) static {constant}: Source = Source {{\n    name: {name:?},")?;
            writeln!(code, "    ptx: include_str!(concat!(env!(\"OUT_DIR\"), \"/{name}.ptx\")),\n    cubins: &[")?;
            for (architecture, bytes) in cubins {
                let file = format!("{name}.{architecture}.cubin");
                fs::write(out.join(&file), bytes)?;
                writeln!(code, "        ({architecture:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))),")?;
            }
            writeln!(code, "    ],\n}};")?;
            Ok(())
        }
    }

    /// Each `constexpr unsigned NAME = number;` of a header as a constant in Rust.
    fn constants(header: &Path, code: &mut String) -> Result<()> {
        let text = fs::read_to_string(header).map_err(|error| named(header, error))?;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("constexpr unsigned ") else { continue };
            let found = rest.split_once(" = ").and_then(|(name, rest)| Some((name, rest.split_once(';')?.0)));
            let (name, value) = found.ok_or_else(|| format!("{}: not a constant: {line}", header.display()))?;
            let value: u32 = value.parse().map_err(|error| format!("{}: {line}: {error}", header.display()))?;
            writeln!(code, "#[allow(dead_code)]\npub(crate) const {name}: u32 = {value};")?;
        }
        Ok(())
    }

    fn named(path: &Path, error: io::Error) -> String {
        format!("{}: {error}", path.display())
    }
}
