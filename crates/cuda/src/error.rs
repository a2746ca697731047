//! What can go wrong on devices, with the words of the library at fault.

use prune::Disconnected;

/// Why something was not done on a GPU, or among GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another shard gave up, or this one did in an earlier call.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
    /// The kernels or the driver.
    #[error(transparent)]
    Cuda(prune_cuda::Error),
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

impl From<prune_cuda::Error> for Error {
    fn from(error: prune_cuda::Error) -> Self {
        match error {
            prune_cuda::Error::Disconnected => Self::Disconnected(Disconnected),
            error => Self::Cuda(error),
        }
    }
}

/// For [`prune_cuda::Shards`], whose callers know of no library but the driver.
impl From<Error> for prune_cuda::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Disconnected(_) => Self::Disconnected,
            Error::Cuda(error) => error,
            error => Self::Collective(error.to_string()),
        }
    }
}
