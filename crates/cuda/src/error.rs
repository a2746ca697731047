//! What can go wrong on a device, with the evidence.

/// Why a model was not run on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver, a kernel or its arguments.
    #[error(transparent)]
    Device(#[from] prune_cuda::Error),
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
}

impl Error {
    /// Whether a device had not enough memory.
    pub fn lacks_room(&self) -> bool {
        matches!(self, Self::Device(prune_cuda::Error::OutOfMemory { .. }))
            || matches!(self, Self::Cublas { status, .. } if status == "CUBLAS_STATUS_ALLOC_FAILED")
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
