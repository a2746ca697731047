//! What functions and streams answer.

/// Values of ncclResult_t.
pub(crate) const SUCCESS: u32 = 0;
pub(crate) const CUDA_ERROR: u32 = 1;
pub(crate) const SYSTEM_ERROR: u32 = 2;
pub(crate) const INTERNAL_ERROR: u32 = 3;
pub(crate) const INVALID_ARGUMENT: u32 = 4;
pub(crate) const INVALID_USAGE: u32 = 5;
pub(crate) const REMOTE_ERROR: u32 = 6;

/// CUDA_ERROR_LAUNCH_FAILED: what a stream ends with when ranks disagree, or one is gone.
pub(crate) const LAUNCH_FAILED: u32 = 719;

/// An ncclResult_t, and why.
pub(crate) type Failure = (u32, String);
