//! How the errors of columns that are done reach those that are not: `kernels/prune_trailing.cu`.

use crate::device::{Device, arguments, blocks};
use crate::module::{Entry, FLAT_THREADS, INVERT_SHARED, PANEL, PRUNE_TRAILING};
use crate::product::{Entries, Operand, Product, Region};
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, CudaView, DevicePtrMut};

const PRODUCT: Entries = Entries::new(
    &PRUNE_TRAILING,
    Region::Full,
    "prune_trailing_f32",
    "prune_trailing_f32_any",
    "prune_trailing_sum_f32",
);
const TAKE: Entry = Entry::new(&PRUNE_TRAILING, "prune_take_f32", FLAT_THREADS, 0);
const CLEAR: Entry = Entry::new(&PRUNE_TRAILING, "prune_clear_columns", FLAT_THREADS, 0);
const INVERT: Entry = Entry::new(&PRUNE_TRAILING, "prune_invert_panels_f32", PANEL, INVERT_SHARED);

/// Left-looking, before a panel is swept: `current` ← W_b + (Δ_{<b} · V_{<b,b}) · U_b.
///
/// `weights` W_b [rows, width]; `delta` Δ [rows, columns before the panel]; `above` V [columns before the panel, width], the
/// rows of V above the panel; `inverse` U_b [width, width], with zeros below its diagonal; `owed` [rows, width], which is
/// overwritten, and `current` [rows, width]. The same arguments give the same bits.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other; [`Error::OtherDevice`]; or what the driver says.
pub fn bring_errors(
    device: &Device,
    weights: &MatrixRef<'_, f32>,
    (delta, above): (&MatrixRef<'_, f32>, &MatrixRef<'_, f32>),
    inverse: &MatrixRef<'_, f32>,
    owed: &mut MatrixMut<'_, f32>,
    current: &mut MatrixMut<'_, f32>,
) -> Result<(), Error> {
    multiply(device, 1.0, ("delta", delta), ("the factor above the panel", above), 0.0, ("owed", owed))?;
    take(device, weights, current)?;
    multiply(device, 1.0, ("owed", &owed.as_ref()?), ("the inverse", inverse), 1.0, ("current", current))
}

/// Right-looking, after a panel is swept: `weights` ← W_{>b} − E_b · U_{b,>b}.
///
/// `errors` E_b [rows, width]; `right` U [width, columns behind the panel], the columns of U right of the panel; `weights`
/// [rows, columns behind the panel]. The same arguments give the same bits.
///
/// # Errors
/// As [`bring_errors`].
pub fn push_errors(
    device: &Device,
    errors: &MatrixRef<'_, f32>,
    right: &MatrixRef<'_, f32>,
    weights: &mut MatrixMut<'_, f32>,
) -> Result<(), Error> {
    multiply(device, -1.0, ("errors", errors), ("the inverse right of the panel", right), 1.0, ("weights", weights))
}

/// C ← β · C + α · A · B.
fn multiply(
    device: &Device,
    alpha: f32,
    (a_name, a): (&'static str, &MatrixRef<'_, f32>),
    (b_name, b): (&'static str, &MatrixRef<'_, f32>),
    beta: f32,
    (c_name, c): (&'static str, &mut MatrixMut<'_, f32>),
) -> Result<(), Error> {
    let (rows, columns, depth) = (c.rows(), c.columns(), a.columns());
    if a.rows() != rows {
        return Err(Error::shape(a_name, a.shape(), format!("{rows} rows, as {c_name} {}", c.shape())));
    }
    if (b.rows(), b.columns()) != (depth, columns) {
        return Err(Error::shape(b_name, b.shape(), format!("[{depth}, {columns}] for {a_name} {}", a.shape())));
    }
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let strides = [a.stride(), b.stride(), c.stride()];
    let (a, _a) = device.address(a_name, &a.data)?;
    let (b, _b) = device.address(b_name, &b.data)?;
    let (c, _c) = device.address_mut(c_name, &mut c.data)?;
    let operand = |address, stride| Operand { address, stride: stride as u64, batch_stride: 0 };
    let product = Product {
        a: operand(a, strides[0]),
        b: operand(b, strides[1]),
        c: operand(c, strides[2]),
        rows,
        columns,
        depth,
        batch: 1,
        failed: 0,
        alpha,
        beta,
    };
    // SAFETY: all operands are of this device, borrowed until the work is enqueued, and C is neither A nor B, as it is
    // borrowed for writing.
    unsafe { product.launch(device, &PRODUCT) }
}

/// Copies a matrix.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::OtherDevice`]; or what the driver says.
pub(crate) fn take(device: &Device, from: &MatrixRef<'_, f32>, to: &mut MatrixMut<'_, f32>) -> Result<(), Error> {
    let (rows, columns) = (from.rows(), from.columns());
    if (to.rows(), to.columns()) != (rows, columns) {
        return Err(Error::shape("current", to.shape(), from.shape()));
    }
    let (from_stride, to_stride) = (from.stride() as u64, to.stride() as u64);
    let (from, _from) = device.address("weights", &from.data)?;
    let (to, _to) = device.address_mut("current", &mut to.data)?;
    let grid = (warps(rows, columns)?, 1, 1);
    let (rows, columns) = (rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; the memory is of this device and as large as the shapes say.
    unsafe { device.launch(&TAKE, grid, arguments![from, to, from_stride, to_stride, rows, columns]) }
}

/// Sets the columns of `weights` [rows, columns] to zero for which `dead` u8 `[columns]` is not.
///
/// # Errors
/// [`Error::Shape`] if there is not one entry for each column; [`Error::OtherDevice`]; or what the driver says.
pub fn clear_columns(device: &Device, weights: &mut MatrixMut<'_, f32>, dead: &CudaView<'_, u8>) -> Result<(), Error> {
    let (rows, columns, stride) = (weights.rows(), weights.columns(), weights.stride() as u64);
    if dead.len() != columns {
        return Err(Error::shape("dead", dead.len(), format!("[{columns}] for weights {}", weights.shape())));
    }
    let (w, _writing) = device.address_mut("weights", &mut weights.data)?;
    let (dead, _reading) = device.address("dead", dead)?;
    let grid = (warps(rows, columns)?, 1, 1);
    let (rows, columns) = (rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; the memory is of this device and as large as the shapes say.
    unsafe { device.launch(&CLEAR, grid, arguments![w, dead, stride, rows, columns]) }
}

/// Thread blocks with a warp for 32 columns of a row.
fn warps(rows: usize, columns: usize) -> Result<u32, Error> {
    // The kernels count these warps in 32 bits.
    let warps = blocks(rows as u64 * columns.div_ceil(32) as u64, 1)?;
    blocks(u64::from(warps), FLAT_THREADS / 32)
}

/// U_b = V_bb⁻¹ of panels of `width` ≤ 128 columns of V [columns, columns], of which the upper triangle is read: f32 [panels, 128,
/// 128] with zeros below the diagonals and behind the width. For widths that do not divide 128; the factor gives the others.
///
/// # Errors
/// [`Error::Shape`] if V is not square or the width is not 1 to 128; [`Error::OtherDevice`]; or what the driver says.
pub fn invert_panels(device: &Device, factor: &MatrixRef<'_, f32>, width: usize) -> Result<CudaSlice<f32>, Error> {
    let (columns, panel) = (factor.columns(), PANEL as usize);
    if factor.rows() != columns {
        return Err(Error::shape("the factor", factor.shape(), "a square matrix"));
    }
    if width == 0 || width > panel {
        return Err(Error::shape("the panel width", width, format!("1 to {panel}")));
    }
    let panels = columns.div_ceil(width);
    let mut inverses = device.scratch::<f32>((panels * panel * panel).max(1))?;
    {
        let stride = factor.stride() as u64;
        let (v, _reading) = device.address("the factor", &factor.data)?;
        let (inverses, _writing) = inverses.device_ptr_mut(device.stream());
        let (columns, width) = (columns as u32, width as u32);
        // SAFETY: the arguments of the kernel; the memory is of this device and as large as the shapes say.
        unsafe {
            device.launch(&INVERT, (panels as u32, 1, 1), arguments![v, inverses, stride, columns, width])?;
        }
    }
    Ok(inverses)
}
