//! The compiled kernels, and what a launch of each must know.

/// A file of `kernels/`, compiled.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's stem.
    pub(crate) name: &'static str,
    /// For every architecture from sm_80 on.
    pub(crate) ptx: &'static str,
    /// Machine code of the architectures that the build was asked for.
    pub(crate) cubins: &'static [(&'static str, &'static [u8])],
}

impl Source {
    /// The machine code for a device of this compute capability, if there is any that it runs: that of its own major number
    /// with the largest minor one up to its own (CUDA C++ Programming Guide, "Binary Compatibility"), and of code for it
    /// alone (`sm_90a`) before that for others.
    pub(crate) fn machine_code(&self, (major, minor): (i32, i32)) -> Option<&'static [u8]> {
        let runs = |name: &str| {
            let number = name.strip_prefix("sm_")?;
            let own = number.ends_with('a');
            let number: i32 = number.trim_end_matches(['a', 'f']).parse().ok()?;
            let (of_major, of_minor) = (number / 10, number % 10);
            let fits = of_major == major && if own { of_minor == minor } else { of_minor <= minor };
            fits.then_some((of_minor, own))
        };
        let fitting = self.cubins.iter().filter_map(|(name, bytes)| Some((runs(name)?, *bytes)));
        fitting.max_by_key(|(rank, _)| *rank).map(|(_, bytes)| bytes)
    }
}

/// The PTX of every file of `kernels/`, with the file's stem: for whoever wants to see what will run.
pub fn ptx() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|source| (source.name, source.ptx))
}

/// A kernel: where it is, and the part of its launch that never changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) source: &'static Source,
    pub(crate) name: &'static str,
    /// Threads of a thread block.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a thread block.
    pub(crate) shared: u32,
}

impl Entry {
    pub(crate) const fn new(source: &'static Source, name: &'static str, threads: u32, shared: u32) -> Self {
        Self { source, name, threads, shared }
    }
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn a_device_gets_machine_code_that_it_runs() {
        let source = Source {
            name: "none",
            ptx: "",
            cubins: &[("sm_80", b"80"), ("sm_86", b"86"), ("sm_90", b"90"), ("sm_90a", b"90a"), ("sm_120", b"120")],
        };
        for (capability, expected) in [
            ((8, 0), Some(&b"80"[..])),
            ((8, 6), Some(b"86")),
            ((8, 9), Some(b"86")),
            ((9, 0), Some(b"90a")),
            ((10, 0), None),
            ((12, 0), Some(b"120")),
            ((12, 1), Some(b"120")),
        ] {
            assert_eq!(source.machine_code(capability), expected, "{capability:?}");
        }
    }
}
