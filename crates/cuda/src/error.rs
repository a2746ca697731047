//! What can go wrong on devices, with the evidence, and in the words of the library at fault.

use prune::Disconnected;

/// Why something was not done on a GPU, or among GPUs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver, a kernel or its arguments.
    #[error(transparent)]
    Device(prune_cuda::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The machine has a driver but no cuBLAS.
    #[error(
        "the library libcublas.so is not found, which multiplies the matrices of a model: install cuBLAS, which is part of the \
         CUDA Toolkit (of Python's packages, nvidia-cublas-cu12 has it too), and name its folder in LD_LIBRARY_PATH"
    )]
    NoCublas,
    /// There is no room for activations in a file.
    #[error("cannot make a file of {bytes} bytes for activations in {}", .folder.display())]
    File {
        /// Where it was to be.
        folder: std::path::PathBuf,
        /// How large.
        bytes: u64,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// cuBLAS refused something.
    #[error("cuBLAS reports {status} for {what}")]
    Cublas {
        /// As in its header, such as `CUBLAS_STATUS_ALLOC_FAILED`.
        status: String,
        /// What it was asked for.
        what: String,
    },
    /// Another shard gave up, or this one did in an earlier call.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
    /// The machine has several GPUs at work, and nothing by which they could speak.
    #[error(
        "several GPUs need NCCL, and there is no library libnccl.so: install libnccl2 and libnccl-dev, whose symbolic link \
         from libnccl.so to libnccl.so.2 is what is looked for, or make that link in a folder of LD_LIBRARY_PATH"
    )]
    NoNccl,
    /// NCCL refused a call.
    #[error("NCCL reports at {call}: {text}")]
    Nccl {
        /// Its function.
        call: &'static str,
        /// What its error code means, and what it adds to that.
        text: String,
    },
}

impl Error {
    /// Whether a device had not enough memory.
    pub fn lacks_room(&self) -> bool {
        matches!(self, Self::Device(prune_cuda::Error::OutOfMemory { .. }))
            || matches!(self, Self::Cublas { status, .. } if status == "CUBLAS_STATUS_ALLOC_FAILED")
    }
}

impl From<prune_cuda::Error> for Error {
    fn from(error: prune_cuda::Error) -> Self {
        match error {
            prune_cuda::Error::Disconnected => Self::Disconnected(Disconnected),
            error => Self::Device(error),
        }
    }
}

/// For [`prune_cuda::Shards`], whose callers know of no library but the driver.
impl From<Error> for prune_cuda::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Disconnected(_) => Self::Disconnected,
            Error::Device(error) => error,
            error => Self::Collective(error.to_string()),
        }
    }
}

/// That an argument has the wrong shape, as the kernels say it.
pub(crate) fn shape(what: &'static str, found: impl ToString, expected: impl ToString) -> Error {
    prune_cuda::Error::Shape { what, found: found.to_string(), expected: expected.to_string() }.into()
}

/// What the driver says of a copy.
pub(crate) fn driver(error: cudarc::driver::DriverError) -> Error {
    prune_cuda::Error::from(error).into()
}
