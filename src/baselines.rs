//! What SparseGPT is compared with: magnitude pruning and Wanda, which choose by the same selection and correct nothing.

use crate::device::{Device, arguments, blocks};
use crate::module::{Entry, FLAT_THREADS, PRUNE_SELECT};
use crate::solve::check_all_rows;
use crate::{Error, MatrixMut, MatrixRef, Score, Selector, Shards, apply};
use cudarc::driver::{CudaSlice, DevicePtrMut};

const NORMS: Entry = Entry::new(&PRUNE_SELECT, "prune_norms_f32", FLAT_THREADS, 0);

/// How many weights go, and where they may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This share of the weights that are compared.
    Unstructured {
        /// In [0, 1].
        sparsity: f64,
    },
    /// `keep` of every `group` consecutive columns stay; of a shorter last group of c columns `floor(c · (group − keep) /
    /// group)` go.
    Groups {
        /// How many stay.
        keep: usize,
        /// Of how many.
        group: usize,
    },
}

/// ‖x_j‖ = √H_jj f32 `[columns]` of a layer's inputs, from H = XᵀX [columns, columns] before it is damped.
///
/// # Errors
/// [`Error::Shape`] if H is not square; [`Error::OtherDevice`]; or what the driver says.
pub fn norms(device: &Device, hessian: &MatrixRef<'_, f32>) -> Result<CudaSlice<f32>, Error> {
    let columns = hessian.columns();
    if hessian.rows() != columns {
        return Err(Error::shape("hessian", hessian.shape(), "a square matrix"));
    }
    let mut norms = device.scratch::<f32>(columns.max(1))?;
    {
        let stride = hessian.stride() as u64;
        let (h, _reading) = device.address("hessian", &hessian.data)?;
        let (norms, _writing) = norms.device_ptr_mut(device.stream());
        let (grid, columns) = (blocks(columns as u64, FLAT_THREADS)?, columns as u32);
        // SAFETY: the arguments of the kernel; the memory is of this device and as large as the shapes say.
        unsafe { device.launch(&NORMS, (grid, 1, 1), arguments![h, norms, stride, columns]) }?;
    }
    Ok(norms)
}

/// Drops the smallest |w| of W [rows, columns], in place: `floor(rows · columns · sparsity)` of the whole layer, over the rows
/// of all shards (and how many those are), equal ones in order of (shard, row, column); or of every group. Returns u32 [rows,
/// columns / 32 rounded up]: bit j of a row is set if column j stays.
///
/// # Errors
/// [`Error::Shape`] if the pattern's numbers are not what it says, or all shards have fewer rows than this one;
/// [`Error::OtherDevice`]; what shards say; or what the driver says.
pub fn magnitude(
    device: &Device,
    weights: &mut MatrixMut<'_, f32>,
    pattern: Pattern,
    shards: Option<(&dyn Shards, usize)>,
) -> Result<CudaSlice<u32>, Error> {
    let (rows, columns) = (weights.rows(), weights.columns());
    prune(device, weights, |selector, weights, keep| match pattern {
        Pattern::Unstructured { sparsity } => {
            let all_rows = shards.map_or(rows, |(_, all_rows)| all_rows);
            check_all_rows(all_rows, rows, columns)?;
            let count = share(all_rows * columns, sparsity)?;
            selector.select(device, weights, Score::Magnitude, count, keep, 0, shards.map(|(shards, _)| shards))
        }
        Pattern::Groups { keep: stay, group } => {
            selector.select_groups(device, weights, Score::Magnitude, (stay, group), keep)
        }
    })
}

/// Drops the smallest |w| · ‖x_j‖ of W [rows, columns], in place: `floor(columns · sparsity)` of every row, equal ones from the
/// left; or of every group. `norms` f32 [columns, 1], of [`norms`]. Returns what [`magnitude`] does.
///
/// # Errors
/// As [`magnitude`], and [`Error::Shape`] if there is not one norm for each column.
pub fn wanda(
    device: &Device,
    weights: &mut MatrixMut<'_, f32>,
    pattern: Pattern,
    norms: &MatrixRef<'_, f32>,
) -> Result<CudaSlice<u32>, Error> {
    let columns = weights.columns();
    let score = Score::Wanda(norms);
    prune(device, weights, |selector, weights, keep| match pattern {
        Pattern::Unstructured { sparsity } => {
            selector.select_rows(device, weights, score, share(columns, sparsity)? as usize, keep)
        }
        Pattern::Groups { keep: stay, group } => selector.select_groups(device, weights, score, (stay, group), keep),
    })
}

/// Chooses, and sets to zero what does not stay.
fn prune(
    device: &Device,
    weights: &mut MatrixMut<'_, f32>,
    choose: impl FnOnce(&mut Selector, &MatrixRef<'_, f32>, &mut MatrixMut<'_, u32>) -> Result<(), Error>,
) -> Result<CudaSlice<u32>, Error> {
    let (rows, words) = (weights.rows(), weights.columns().div_ceil(32));
    let mut keep = device.zeros::<u32>((rows * words).max(1))?;
    choose(&mut Selector::new(device)?, &weights.as_ref()?, &mut MatrixMut::new(keep.slice_mut(..), rows, words)?)?;
    apply(device, weights, &MatrixRef::new(keep.as_view(), rows, words)?)?;
    Ok(keep)
}

/// `floor(count · sparsity)`.
fn share(count: usize, sparsity: f64) -> Result<u64, Error> {
    match (0.0..=1.0).contains(&sparsity) {
        true => Ok((count as f64 * sparsity) as u64),
        false => Err(Error::shape("sparsity", sparsity, "a number from 0 to 1")),
    }
}
