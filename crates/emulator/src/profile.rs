//! To be written.

use serde::{Deserialize, Serialize};

/// What a launch did, counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The kernel.
    pub kernel: String,
}
