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
