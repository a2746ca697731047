//! What can go wrong while a layer is pruned.

use crate::Disconnected;

/// Why a layer could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// n:m needs whole groups.
    #[error("groups of {group} do not divide the layer's {columns} columns")]
    Groups {
        /// m of n:m.
        group: usize,
        /// Columns of the layer.
        columns: usize,
    },
    /// The Hessian has no Cholesky factor, not even with the most damping.
    #[error(
        "the Hessian is not positive definite: pivot {pivot:e} in column {column} with a damping of {damping} \
         (raised {raises} times); more calibration data or a higher damping may help"
    )]
    Pivot {
        /// The column whose pivot is not positive.
        column: usize,
        /// That pivot.
        pivot: f64,
        /// The damping of the last attempt, as a fraction of the mean of the diagonal.
        damping: f64,
        /// How often the damping had been raised tenfold.
        raises: u32,
    },
    /// The Hessian holds a NaN or an infinity.
    #[error("the Hessian's diagonal is {value} in column {column}: the layer's inputs are not finite, or overflow f32")]
    NotFinite {
        /// The first such column.
        column: usize,
        /// What the diagonal holds there.
        value: f32,
    },
    /// Another shard gave up.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
}
