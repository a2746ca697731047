//! What can go wrong, with the evidence.

use cudarc::driver::{DriverError, sys::CUresult};

/// Why something was not done on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The machine has no driver.
    #[error(
        "there is no CUDA driver: the library libcuda.so is not found. Install NVIDIA's driver; in a container, start it with \
         access to the GPUs (docker run --gpus all)"
    )]
    NoDriver,
    /// The driver has no such device.
    #[error("there is no CUDA device {ordinal}: the driver offers {count} (CUDA_VISIBLE_DEVICES limits which)")]
    NoDevice {
        /// The device that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks instructions that the kernels are made of.
    #[error(
        "device {ordinal}, {name}, has compute capability {}.{}; the kernels need 8.0 (Ampere) or later",
        .capability.0, .capability.1
    )]
    TooOldDevice {
        /// Which.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability, major and minor.
        capability: (i32, i32),
    },
    /// The driver does not read this PTX.
    #[error(
        "the driver of this machine is for CUDA {}.{} and does not read the PTX of {kernel} ({needed}): update it, or build with \
         the nvcc of that release or an older one (CUDA_HOME), or embed this device's machine code \
         (PRUNE_CUDA_ARCHITECTURES=sm_{}{}), which drivers before that of the nvcc's major release may refuse too",
        .driver / 1000, .driver % 1000 / 10, .capability.0, .capability.1
    )]
    TooOldDriver {
        /// The release that the driver is for, as `cuDriverGetVersion` gives it: 1000 · major + 10 · minor.
        driver: i32,
        /// The device's compute capability, major and minor.
        capability: (i32, i32),
        /// The `.version` line of the PTX.
        needed: String,
        /// The file of kernels.
        kernel: &'static str,
    },
    /// An argument has the wrong shape.
    #[error("{what}: found {found}, expected {expected}")]
    Shape {
        /// The argument, as the documentation of the function names it.
        what: &'static str,
        /// What was given.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// An argument lies on another device than the one that is to work on it.
    #[error("{what} lies on device {found}, the work is for device {expected}: copy it there first")]
    OtherDevice {
        /// The argument.
        what: &'static str,
        /// Where it is.
        found: usize,
        /// Where it should be.
        expected: usize,
    },
    /// A weight is not 2:4.
    #[error("row {row} keeps more than two of columns {} to {}: not a 2:4 weight", 4 * .group, 4 * .group + 3)]
    NotTwoFour {
        /// The row: the first with such a group.
        row: usize,
        /// The first of its groups of four columns that keeps more than two.
        group: usize,
    },
    /// The device has not enough memory.
    #[error("device {ordinal} has no room for {bytes} bytes more: {free} of its {total} are free")]
    OutOfMemory {
        /// Which.
        ordinal: usize,
        /// What was asked for.
        bytes: usize,
        /// What is left.
        free: usize,
        /// What it has.
        total: usize,
    },
    /// Another shard of the same layer gave up.
    #[error("another shard ended early")]
    Disconnected,
    /// The shards of a layer could not hear each other.
    #[error("{0}")]
    Collective(String),
    /// The driver refused something, or a kernel failed before.
    #[error("the CUDA driver reports {name}: {text}")]
    Driver {
        /// As in the driver's headers, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// What it means.
        text: String,
        /// Its number.
        code: CUresult,
    },
}

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        let text = |result: Result<&std::ffi::CStr, _>| {
            result.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
        };
        Self::Driver { name: text(error.error_name()), text: text(error.error_string()), code: error.0 }
    }
}

impl Error {
    pub(crate) fn shape(what: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Self::Shape { what, found: found.to_string(), expected: expected.to_string() }
    }
}
