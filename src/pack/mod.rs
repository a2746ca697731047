//! Packed forms of a pruned weight, and the products that use them: `kernels/pack_bitmask.cu`, `kernels/pack_two_four.cu`.

mod bitmask;
mod two_four;

pub use bitmask::{Bitmask, multiply_bitmask, pack_bitmask, unpack_bitmask};
pub use two_four::{TwoFour, TwoFourInput, TwoFourOutput, multiply_two_four, pack_two_four, unpack_two_four};

use crate::{Error, MatrixRef};
use cudarc::driver::DeviceRepr;
use half::{bf16, f16};

/// What a packed weight may be made of: f16, bf16, f32.
pub trait Element: DeviceRepr + sealed::Sealed {}

impl Element for f16 {}
impl Element for bf16 {}
impl Element for f32 {}

mod sealed {
    use super::*;

    /// Kernels of a bitmask for a type.
    pub trait Sealed {
        /// Finding what is not zero, collecting, unpacking: by the width of a number.
        const PACK: [&'static str; 3];
        /// Products with up to 1, 2, 4, 8 vectors, and with one of any stride.
        const MULTIPLY: [&'static str; 5];
    }

    macro_rules! names {
        ($type:ty, $bits:literal, $name:literal) => {
            impl Sealed for $type {
                const PACK: [&'static str; 3] = [
                    concat!("pack_bitmask_find_", $bits),
                    concat!("pack_bitmask_values_", $bits),
                    concat!("pack_bitmask_unpack_", $bits),
                ];
                const MULTIPLY: [&'static str; 5] = [
                    concat!("pack_bitmask_multiply_", $name, "_x1"),
                    concat!("pack_bitmask_multiply_", $name, "_x2"),
                    concat!("pack_bitmask_multiply_", $name, "_x4"),
                    concat!("pack_bitmask_multiply_", $name, "_x8"),
                    concat!("pack_bitmask_multiply_", $name, "_any"),
                ];
            }
        };
    }

    names!(f16, "16", "f16");
    names!(bf16, "16", "bf16");
    names!(f32, "32", "f32");
}

/// Checks that a mask is [rows, ⌈columns / 32⌉].
fn check_keep(keep: Option<&MatrixRef<'_, u32>>, rows: usize, columns: usize) -> Result<(), Error> {
    let words = columns.div_ceil(32);
    match keep {
        Some(keep) if (keep.rows(), keep.columns()) != (rows, words) => Err(Error::shape(
            "keep",
            keep.shape(),
            format!("[{rows}, {words}]: 32 columns a word of a weight [{rows}, {columns}]"),
        )),
        _ => Ok(()),
    }
}
