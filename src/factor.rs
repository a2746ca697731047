//! The factor V of a batch of Hessians and its inverse U: `kernels/factor_cholesky.cu`, `kernels/factor_invert.cu`.
//!
//! Both are recursions over blocks of 128 columns, which `blocks` drives: nearly all operations are products of halves
//! by halves. Here is what surrounds them: checks, failed pivots, and the damping that is raised for them.

mod blocks;

use self::blocks::{Batch, WIDTH, operands};
use crate::device::{Device, arguments};
use crate::hessian::Prepared;
use crate::module::{Entry, FACTOR_CHOLESKY, FACTOR_INVERT, FACTOR_SHARED, FACTOR_THREADS, FLAT_THREADS, SQUARE};
use crate::{Error, MatrixMut};
use cudarc::driver::{CudaSlice, DevicePtrMut};

const SAVE: Entry = Entry::new(&FACTOR_CHOLESKY, "factor_save_f32", FLAT_THREADS, 0);
const RESTORE: Entry = Entry::new(&FACTOR_CHOLESKY, "factor_restore_f32", FLAT_THREADS, 0);
const BLOCK_INVERT: Entry = Entry::new(&FACTOR_INVERT, "factor_block_invert_f32", FACTOR_THREADS, FACTOR_SHARED);
const BLOCK_PLACE: Entry = Entry::new(&FACTOR_INVERT, "factor_block_place_f32", FACTOR_THREADS, 0);

/// How often [`factor_damped`] raises the damping tenfold before a Hessian is given up.
pub const RAISES: u32 = 3;

/// What [`factor`] leaves beside V.
#[derive(Debug)]
pub struct Factored {
    /// f32 [batch, n / 128 rounded up, 128, 128]: U_kk = V_kk⁻¹ of every block on the diagonal, row-major, with zeros
    /// below the diagonal and beyond n. Not written for matrices that failed.
    pub inverses: CudaSlice<f32>,
    /// f32 `[batch]`: for matrices that failed, the pivot. [`failures`] reads it.
    pub pivots: CudaSlice<f32>,
}

/// A matrix of a batch that has no factor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("matrix {matrix} of the batch is not positive definite: the pivot of column {column} is {pivot:e}")]
pub struct Failure {
    /// Its number in the batch.
    pub matrix: usize,
    /// The first column, from the right, whose pivot is not a positive finite number.
    pub column: usize,
    /// What is left of that column's diagonal entry once the columns after it are eliminated. NaN where the diagonal
    /// was not finite from the start.
    pub pivot: f32,
}

/// Which matrices of a batch failed, in order. Waits for the work before it.
///
/// # Errors
/// What the driver says.
pub fn failures(device: &Device, failed: &CudaSlice<i32>, factored: &Factored) -> Result<Vec<Failure>, Error> {
    let (failed, pivots) = (device.download(failed)?, device.download(&factored.pivots)?);
    let all = failed.into_iter().zip(pivots).enumerate();
    Ok(all
        .filter_map(|(matrix, (failed, pivot))| {
            let column = usize::try_from(failed).ok()?.checked_sub(1)?;
            Some(Failure { matrix, column, pivot })
        })
        .collect())
}

/// n of the matrices [n, n] that follow each other in `[batch · n, n]`.
fn size(what: &'static str, matrices: &MatrixMut<'_, f32>, batch: usize) -> Result<usize, Error> {
    /// gridDim.z has 16 bits.
    const MOST: usize = 65_535;
    let n = matrices.columns();
    if batch.checked_mul(n) != Some(matrices.rows()) {
        return Err(Error::shape(what, matrices.shape(), format!("[{batch} · {n}, {n}]")));
    }
    if batch > MOST {
        return Err(Error::shape("batch", batch, format!("at most {MOST}")));
    }
    Ok(n)
}

/// Checks that a buffer has one element, or some, for each matrix.
fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found < expected { Err(Error::shape(what, found, format!("at least {expected}"))) } else { Ok(()) }
}

/// Elements of U_kk of all blocks of a batch.
fn inverses_length(n: usize, batch: usize) -> usize {
    batch * n.div_ceil(WIDTH) * WIDTH * WIDTH
}

/// H → V, H = V·Vᵀ with V upper triangular, for a batch of matrices that follow each other in one buffer, in place.
///
/// `hessians` [batch · n, n]: only the upper triangles are read and written. `failed` i32 `[batch]`, as
/// [`crate::prepare`] leaves it: matrices with an entry that is not zero are left alone; where a pivot is not a
/// positive finite number, the entry becomes 1 + its column (the first from the right), and the upper triangle of that
/// matrix is of no use any more. Other matrices do not notice. The same matrices give the same bits.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or `failed` is too short; [`Error::OtherDevice`]; or what the
/// driver says. A matrix without a factor is no error here: see [`failures`].
pub fn factor(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    failed: &mut CudaSlice<i32>,
) -> Result<Factored, Error> {
    let n = size("hessians", hessians, batch)?;
    let mut factored = Factored {
        inverses: device.scratch(inverses_length(n, batch).max(1))?,
        pivots: device.upload(&vec![f32::NAN; batch.max(1)])?,
    };
    factor_into(device, hessians, batch, failed, &mut factored)?;
    Ok(factored)
}

fn factor_into(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    failed: &mut CudaSlice<i32>,
    factored: &mut Factored,
) -> Result<(), Error> {
    let n = size("hessians", hessians, batch)?;
    check_length("failed", failed.len(), batch)?;
    if n == 0 || batch == 0 {
        return Ok(());
    }
    let stride = hessians.stride();
    let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
    let (failed, _failed) = device.address_mut("failed", failed)?;
    let (inverses, _inverses) = factored.inverses.device_ptr_mut(device.stream());
    let (pivots, _pivots) = factored.pivots.device_ptr_mut(device.stream());
    let (matrix, inverses) = operands(h, inverses, stride, n);
    let batch = Batch { device, matrix, inverses, failed, n, batch };
    // SAFETY: all of it is memory of this device, of the sizes that were checked or made above, and borrowed until
    // everything is enqueued.
    unsafe { batch.factor(0..n.div_ceil(WIDTH), pivots) }
}

/// V → U = V⁻¹, H⁻¹ = Uᵀ·U, for a batch of factors, in place.
///
/// `factors` [batch · n, n]: only the upper triangles are read and written. `inverses` from [`factor`] or
/// [`factor_diagonals`], `failed` i32 `[batch]`: matrices with an entry that is not zero are left alone. The same
/// factors give the same bits.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or another buffer is too short; [`Error::OtherDevice`]; or what
/// the driver says.
pub fn invert(
    device: &Device,
    factors: &mut MatrixMut<'_, f32>,
    inverses: &CudaSlice<f32>,
    batch: usize,
    failed: &CudaSlice<i32>,
) -> Result<(), Error> {
    let n = size("factors", factors, batch)?;
    check_length("inverses", inverses.len(), inverses_length(n, batch))?;
    check_length("failed", failed.len(), batch)?;
    if n == 0 || batch == 0 {
        return Ok(());
    }
    let stride = factors.stride();
    let (v, _writing) = device.address_mut("factors", &mut factors.data)?;
    let (inverses, _inverses) = device.address("inverses", inverses)?;
    let (failed, _failed) = device.address("failed", failed)?;
    let (matrix, inverses) = operands(v, inverses, stride, n);
    let blocks = n.div_ceil(WIDTH);
    let grid = (blocks as u32, 1, batch as u32);
    let batch = Batch { device, matrix, inverses, failed, n, batch };
    // SAFETY: all of it is memory of this device, of the sizes that were checked, and borrowed until everything is
    // enqueued.
    unsafe { batch.invert(0..blocks) }?;
    let n = n as u32;
    // SAFETY: the arguments of the kernel, and likewise.
    unsafe {
        let arguments = arguments![matrix.address, inverses.address, failed, matrix.stride, matrix.batch_stride, n];
        device.launch(&BLOCK_PLACE, grid, arguments)
    }
}

/// U_kk = V_kk⁻¹ of every block on the diagonal of a batch of factors, as in [`Factored::inverses`], in one launch.
///
/// `factors` [batch · n, n], which is not changed; `failed` i32 `[batch]`: matrices with an entry that is not zero are
/// left out.
///
/// # Errors
/// As [`invert`].
pub fn factor_diagonals(
    device: &Device,
    factors: &MatrixMut<'_, f32>,
    batch: usize,
    failed: &CudaSlice<i32>,
) -> Result<CudaSlice<f32>, Error> {
    let n = size("factors", factors, batch)?;
    check_length("failed", failed.len(), batch)?;
    let mut inverses = device.scratch::<f32>(inverses_length(n, batch).max(1))?;
    {
        let (v, _reading) = device.address("factors", &factors.data)?;
        let (u, _writing) = inverses.device_ptr_mut(device.stream());
        let (failed, _failed) = device.address("failed", failed)?;
        let (matrix, _) = operands(v, u, factors.stride(), n);
        let grid = (n.div_ceil(WIDTH) as u32, 1, batch as u32);
        let n = n as u32;
        // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked or
        // made above.
        unsafe {
            device.launch(&BLOCK_INVERT, grid, arguments![v, u, failed, matrix.stride, matrix.batch_stride, n])?;
        }
    }
    Ok(inverses)
}

/// Squares of an upper triangle, for the kernels that mirror it.
fn squares(n: usize) -> Result<u32, Error> {
    let across = n.div_ceil(SQUARE as usize) as u64;
    crate::device::blocks(across * (across + 1) / 2, 1)
}

/// Copies each matrix's upper triangle to below its diagonal, where [`factor`] and [`invert`] leave it alone, and its
/// diagonal to a vector f32 [batch, n], which is returned: [`restore`] needs no other copy of H.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices; [`Error::OtherDevice`]; or what the driver says.
pub fn save(device: &Device, hessians: &mut MatrixMut<'_, f32>, batch: usize) -> Result<CudaSlice<f32>, Error> {
    let n = size("hessians", hessians, batch)?;
    let mut diagonals = device.scratch::<f32>((batch * n).max(1))?;
    {
        let stride = hessians.stride() as u64;
        let batch_stride = stride * n as u64;
        let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
        let (diagonals, _diagonals) = diagonals.device_ptr_mut(device.stream());
        let (grid, n) = ((squares(n)?, 1, batch as u32), n as u32);
        // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked or
        // made above.
        unsafe { device.launch(&SAVE, grid, arguments![h, diagonals, stride, batch_stride, n])? };
    }
    Ok(diagonals)
}

/// Puts back what [`save`] kept, with `added` on the diagonal (f32 `[batch]`), for every matrix whose entry in `failed`
/// is positive.
///
/// # Errors
/// [`Error::Shape`] if these are not square matrices or another buffer is too short; [`Error::OtherDevice`]; or what
/// the driver says.
pub fn restore(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    diagonals: &CudaSlice<f32>,
    added: &CudaSlice<f32>,
    failed: &CudaSlice<i32>,
) -> Result<(), Error> {
    let n = size("hessians", hessians, batch)?;
    check_length("diagonals", diagonals.len(), batch * n)?;
    check_length("added", added.len(), batch)?;
    check_length("failed", failed.len(), batch)?;
    let stride = hessians.stride() as u64;
    let batch_stride = stride * n as u64;
    let (h, _writing) = device.address_mut("hessians", &mut hessians.data)?;
    let (diagonals, _diagonals) = device.address("diagonals", diagonals)?;
    let (added, _added) = device.address("added", added)?;
    let (failed, _failed) = device.address("failed", failed)?;
    let (grid, n) = ((squares(n)?, 1, batch as u32), n as u32);
    // SAFETY: the arguments of the kernel; all of it is memory of this device, of the sizes that were checked.
    unsafe { device.launch(&RESTORE, grid, arguments![h, diagonals, added, failed, stride, batch_stride, n]) }
}

/// [`factor`] for Hessians that [`crate::prepare`] damped: where a pivot is not positive, the damping is multiplied by
/// ten, at most [`RAISES`] times, each time from the original H, which is kept below the diagonal. Returns beside the
/// rest how often that was done for each matrix. `prepared.failed` tells which have no factor even so. Waits for the
/// work.
///
/// # Errors
/// As [`factor`].
pub fn factor_damped(
    device: &Device,
    hessians: &mut MatrixMut<'_, f32>,
    batch: usize,
    prepared: &mut Prepared,
) -> Result<(Factored, Vec<u32>), Error> {
    if hessians.columns() == 0 || batch == 0 {
        return Ok((factor(device, hessians, batch, &mut prepared.failed)?, vec![0; batch]));
    }
    let diagonals = save(device, hessians, batch)?;
    let mut factored = factor(device, hessians, batch, &mut prepared.failed)?;
    let summaries = device.download(&prepared.summaries)?;
    let mut raises = vec![0; batch];
    for _ in 0..RAISES {
        let mut failed = device.download(&prepared.failed)?;
        // No damping helps a diagonal that is not finite: those keep their entry, and are skipped as those are that are
        // done.
        let again: Vec<bool> =
            failed.iter().zip(&summaries).map(|(&failed, summary)| failed > 0 && summary.not_finite < 0).collect();
        if !again.contains(&true) {
            break;
        }
        let mut added = vec![0.0; batch];
        for (matrix, _) in again.iter().enumerate().filter(|&(_, &again)| again) {
            raises[matrix] += 1;
            // damp is in the diagonal already.
            added[matrix] = summaries[matrix].damp * (10f32.powi(raises[matrix] as i32) - 1.0);
        }
        let marks: Vec<i32> = again.iter().map(|&again| i32::from(again)).collect();
        restore(device, hessians, batch, &diagonals, &device.upload(&added)?, &device.upload(&marks)?)?;
        let skipped: Vec<i32> = marks.iter().map(|mark| mark - 1).collect();
        let mut attempt = device.upload(&skipped)?;
        factor_into(device, hessians, batch, &mut attempt, &mut factored)?;
        let attempt = device.download(&attempt)?;
        failed.iter_mut().zip(attempt).zip(again).filter(|(_, again)| *again).for_each(|((old, new), _)| *old = new);
        prepared.failed = device.upload(&failed)?;
    }
    Ok((factored, raises))
}
