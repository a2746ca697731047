//! The sweep of one panel, and the grids that what stays may be rounded to: `kernels/prune_sweep.cu`.

use crate::device::{Device, arguments, blocks};
use crate::module::{
    Entry, FLAT_THREADS, PANEL, PRUNE_SWEEP, SWEEP_ROWS, SWEEP_SHARED, SWEEP_SHARED_WIDE, SWEEP_THREADS,
};
use crate::product::RESIDENT;
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, CudaViewMut, DevicePtrMut};

const fn entry(name: &'static str, shared: u32) -> Entry {
    Entry::new(&PRUNE_SWEEP, name, SWEEP_THREADS, shared)
}

/// Without and with a grid.
const GIVEN: [Entry; 2] = [entry("prune_sweep_given", SWEEP_SHARED), entry("prune_sweep_given_grid", SWEEP_SHARED)];

/// The kernels that choose, by the slots of a group.
const GROUPS: [(usize, [Entry; 2]); 4] = [
    (4, [entry("prune_sweep_4", SWEEP_SHARED), entry("prune_sweep_4_grid", SWEEP_SHARED)]),
    (8, [entry("prune_sweep_8", SWEEP_SHARED), entry("prune_sweep_8_grid", SWEEP_SHARED)]),
    (16, [entry("prune_sweep_16", SWEEP_SHARED), entry("prune_sweep_16_grid", SWEEP_SHARED)]),
    (32, [entry("prune_sweep_32", SWEEP_SHARED_WIDE), entry("prune_sweep_32_grid", SWEEP_SHARED_WIDE)]),
];
const GRID: Entry = Entry::new(&PRUNE_SWEEP, "prune_grid_f32", FLAT_THREADS, 0);

/// The widest group that a sweep chooses from.
pub const WIDEST_GROUP: usize = 32;

/// Who decides what stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// The bits that the sweep is given.
    Given,
    /// The sweep, which writes the bits: `keep` of every `group` consecutive columns of a row, at most [`WIDEST_GROUP`].
    /// Of a shorter group of c columns, which only the last of a layer may be, `floor(c · (group − keep) / group)` go.
    Groups {
        /// How many stay.
        keep: usize,
        /// Of how many.
        group: usize,
    },
}

impl Stays {
    /// The widest panel that a sweep takes: as many whole groups as fit, each in a power of two of slots.
    ///
    /// # Errors
    /// [`Error::Shape`] if a group has none or more than [`WIDEST_GROUP`] columns, or more stay than there are.
    pub fn widest_panel(self) -> Result<usize, Error> {
        let Stays::Groups { keep, group } = self else { return Ok(PANEL as usize) };
        if group == 0 || group > WIDEST_GROUP || keep > group {
            let expected = format!("keep ≤ group ≤ {WIDEST_GROUP}, and a group of one column or more");
            return Err(Error::shape("groups", format!("{keep} of {group}"), expected));
        }
        Ok(PANEL as usize / slots(group) * group)
    }
}

/// Slots of a group in the kernel.
fn slots(group: usize) -> usize {
    group.next_power_of_two().max(GROUPS[0].0)
}

/// Per row an asymmetric grid of equidistant points that contains zero:
/// `q = scale · (clamp(round(w / scale) + zero, 0, top) − zero)`, rounding half to even.
#[derive(Debug)]
pub struct Grid {
    /// f32 `[rows]`: the distance of two points.
    pub scale: CudaSlice<f32>,
    /// f32 `[rows]`: the number of the point that is zero.
    pub zero: CudaSlice<f32>,
    /// The number of the last point, 2^bits − 1.
    pub top: f32,
}

impl Grid {
    /// The grids of 2^`bits` points that span each row of `weights` [rows, columns], and zero.
    ///
    /// # Errors
    /// [`Error::Shape`] if `bits` is not 1 to 16; [`Error::OtherDevice`]; or what the driver says.
    pub fn new(device: &Device, weights: &MatrixRef<'_, f32>, bits: u32) -> Result<Self, Error> {
        if !(1..=16).contains(&bits) {
            return Err(Error::shape("bits", bits, "1 to 16"));
        }
        let (rows, columns, stride) = (weights.rows() as u32, weights.columns() as u32, weights.stride() as u64);
        let mut grid = Self {
            scale: device.scratch(weights.rows().max(1))?,
            zero: device.scratch(weights.rows().max(1))?,
            top: ((1u32 << bits) - 1) as f32,
        };
        {
            let (w, _reading) = device.address("weights", &weights.data)?;
            let (scale, _scale) = grid.scale.device_ptr_mut(device.stream());
            let (zero, _zero) = grid.zero.device_ptr_mut(device.stream());
            let top = grid.top;
            // SAFETY: the arguments of the kernel; all memory is of this device and as large as the shapes say.
            unsafe {
                let arguments = arguments![w, scale, zero, stride, rows, columns, top];
                device.launch(&GRID, (blocks(u64::from(rows), FLAT_THREADS / 32)?, 1, 1), arguments)?;
            }
        }
        Ok(grid)
    }
}

/// What a panel is swept with.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// U_b f32 [width, width], upper triangular with zeros below, a row every 128.
    pub inverse: &'a MatrixRef<'a, f32>,
    /// V_jj f32 [width, 1]: the diagonal of V, a row every stride of V and one.
    pub pivots: &'a MatrixRef<'a, f32>,
    /// Who decides.
    pub stays: Stays,
    /// What stays is rounded to it.
    pub grid: Option<&'a Grid>,
}

/// What a sweep leaves beside Q.
#[derive(Debug)]
pub struct Swept<'a> {
    /// u32 [rows, words], in, or out where groups are chosen from: bit `first` + j of a row, counted from the lowest of the
    /// first word, is set if column j stays.
    pub keep: MatrixMut<'a, u32>,
    /// The bit of the panel's first column. Bits before it are left alone; those behind the panel may be zeroed.
    pub first: usize,
    /// f64 `[rows]`, in/out: Σ e² / 2 is added.
    pub losses: CudaViewMut<'a, f64>,
    /// f32 [rows, width], out: Δ = W − Q.
    pub delta: Option<MatrixMut<'a, f32>>,
    /// f32 [rows, width], out: E.
    pub errors: Option<MatrixMut<'a, f32>>,
}

/// As in the kernel's file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Parameters {
    current: u64,
    current_stride: u64,
    inverse: u64,
    pivots: u64,
    pivot_stride: u64,
    weights: u64,
    weight_stride: u64,
    delta: u64,
    delta_stride: u64,
    errors: u64,
    error_stride: u64,
    keep: u64,
    keep_stride: u64,
    losses: u64,
    scales: u64,
    zeros: u64,
    top: f32,
    rows: u32,
    width: u32,
    first: u32,
    stay: u32,
    group: u32,
    parts: u32,
    aligned: u32,
}

/// Sweeps one panel: q, e, and what e does to the columns behind, from the first column to the last.
///
/// `weights` [rows, width] holds W, and Q afterwards. `current` [rows, width] holds W̃, W with the errors of earlier panels
/// brought to it; without it, `weights` does. The same arguments give the same bits.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other or the panel is wider than [`Stays::widest_panel`];
/// [`Error::OtherDevice`]; or what the driver says. What is not a finite number is no error: it shows in the losses.
pub fn sweep(
    device: &Device,
    current: Option<&MatrixRef<'_, f32>>,
    weights: &mut MatrixMut<'_, f32>,
    block: &Block<'_>,
    swept: Swept<'_>,
) -> Result<(), Error> {
    let Swept { mut keep, first, mut losses, mut delta, mut errors } = swept;
    let (rows, width) = (weights.rows(), weights.columns());
    check(current, weights, block, &keep, first, losses.len())?;
    for (what, output) in [("delta", &delta), ("errors", &errors)] {
        if let Some(output) = output
            && (output.rows(), output.columns()) != (rows, width)
        {
            return Err(Error::shape(what, output.shape(), format!("[{rows}, {width}], as the weights")));
        }
    }
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let weight_stride = weights.stride() as u64;
    let (w, _writing) = device.address_mut("weights", &mut weights.data)?;
    let current = current.map(|current| Ok::<_, Error>((device.address("current", &current.data)?, current.stride())));
    let current = current.transpose()?;
    let (current, current_stride) = current.as_ref().map_or((w, weight_stride), |((at, _), s)| (*at, *s as u64));
    let strides = [delta.as_ref(), errors.as_ref()].map(|output| output.map_or(0, |output| output.stride() as u64));
    let delta = delta.as_mut().map(|delta| device.address_mut("delta", &mut delta.data)).transpose()?;
    let errors = errors.as_mut().map(|errors| device.address_mut("errors", &mut errors.data)).transpose()?;
    let [delta, errors] = [&delta, &errors].map(|output| output.as_ref().map_or(0, |(address, _)| *address));
    let (inverse, _inverse) = device.address("the inverse", &block.inverse.data)?;
    let (pivots, _pivots) = device.address("the pivots", &block.pivots.data)?;
    let keep_stride = keep.stride() as u64;
    let (keep, _keep) = device.address_mut("keep", &mut keep.data)?;
    let (losses, _losses) = device.address_mut("losses", &mut losses)?;
    let grid = block.grid.map(|grid| {
        let (scale, zero) = (device.address("scale", &grid.scale)?, device.address("zero", &grid.zero)?);
        Ok::<_, Error>((scale, zero, grid.top))
    });
    let grid = grid.transpose()?;
    let (scales, zeros, top) = grid.as_ref().map_or((0, 0, 0.0), |(scale, zero, top)| (scale.0, zero.0, *top));

    let (entries, stay, group) = match block.stays {
        Stays::Given => (&GIVEN, 0, 0),
        Stays::Groups { keep, group } => {
            let found = GROUPS.iter().find(|(size, _)| *size == slots(group));
            (found.map_or(&GIVEN, |(_, entries)| entries), keep as u32, group as u32)
        }
    };
    let aligned = [current, w, delta, errors, inverse].into_iter().all(|address| address.is_multiple_of(16))
        && [current_stride, weight_stride, strides[0], strides[1]].into_iter().all(|stride| stride.is_multiple_of(4))
        && first.is_multiple_of(4);
    let parts = parts(rows);
    let parameters = Parameters {
        current,
        current_stride,
        inverse,
        pivots,
        pivot_stride: block.pivots.stride() as u64,
        weights: w,
        weight_stride,
        delta,
        delta_stride: strides[0],
        errors,
        error_stride: strides[1],
        keep,
        keep_stride,
        losses,
        scales,
        zeros,
        top,
        rows: rows as u32,
        width: width as u32,
        first: first as u32,
        stay,
        group,
        parts,
        aligned: aligned.into(),
    };
    let grid_blocks = blocks(rows as u64, SWEEP_ROWS / parts)?;
    // SAFETY: the kernel's only argument. All it points to is of this device, borrowed until the work is enqueued, and as
    // large as was checked; W̃ may be the weights, which a thread block reads before it writes them.
    unsafe { device.launch(&entries[usize::from(block.grid.is_some())], (grid_blocks, 1, 1), arguments![parameters]) }
}

/// How many warps share a row: as many as keep the multiprocessors of an A100 busy. A constant of the shape, so that bits do
/// not depend on the device (they do not depend on this number either).
fn parts(rows: usize) -> u32 {
    let at_one_time = |parts: u32| (RESIDENT * SWEEP_ROWS / parts) as usize;
    match rows {
        _ if rows <= at_one_time(4) => 4,
        _ if rows <= at_one_time(2) => 2,
        _ => 1,
    }
}

fn check(
    current: Option<&MatrixRef<'_, f32>>,
    weights: &MatrixMut<'_, f32>,
    block: &Block<'_>,
    keep: &MatrixMut<'_, u32>,
    first: usize,
    losses: usize,
) -> Result<(), Error> {
    let (rows, width) = (weights.rows(), weights.columns());
    let widest = block.stays.widest_panel()?;
    if width > widest {
        return Err(Error::shape(
            "weights",
            weights.shape(),
            format!("at most {widest} columns for {:?}", block.stays),
        ));
    }
    if let Some(current) = current
        && (current.rows(), current.columns()) != (rows, width)
    {
        return Err(Error::shape("current", current.shape(), format!("[{rows}, {width}], as the weights")));
    }
    let Block { inverse, pivots, grid, .. } = block;
    if (inverse.rows(), inverse.columns(), inverse.stride()) != (width, width, PANEL as usize) {
        let found = format!("{} with a row every {}", inverse.shape(), inverse.stride());
        return Err(Error::shape("the inverse", found, format!("[{width}, {width}] with a row every {PANEL}")));
    }
    if (pivots.rows(), pivots.columns()) != (width, 1) {
        return Err(Error::shape("the pivots", pivots.shape(), format!("[{width}, 1]")));
    }
    // A sum that wraps is short enough for any mask.
    let bits = first.saturating_add(width);
    if keep.rows() != rows || keep.columns() * 32 < bits {
        let expected = format!("[{rows}, {}]: words for {bits} bits", bits.div_ceil(32));
        return Err(Error::shape("keep", keep.shape(), expected));
    }
    if losses < rows {
        return Err(Error::shape("losses", losses, format!("[{rows}]")));
    }
    if let Some(Grid { scale, zero, .. }) = grid
        && (scale.len() < rows || zero.len() < rows)
    {
        return Err(Error::shape("the grid", format!("{} rows", scale.len().min(zero.len())), rows));
    }
    Ok(())
}
