//! SparseGPT for one layer on one device: panel by panel, what all panels before it owe to this one, the choice, the sweep.

use crate::device::Device;
use crate::module::PANEL;
use crate::{
    Block, Error, Grid, MatrixMut, MatrixRef, Score, Selector, Shards, Stays, Swept, bring_errors, clear_columns,
    invert_panels, sweep,
};
use cudarc::driver::{CudaSlice, CudaView};
use std::ops::Range;

/// Columns of a block of the factor's inverses.
const WIDTH: usize = PANEL as usize;

/// Who decides what goes.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// The `floor(rows · columns · sparsity)` smallest scores of each panel go, over the rows of all shards.
    Unstructured {
        /// In [0, 1].
        sparsity: f64,
        /// Columns of a panel: 32, 64 or 128.
        panel_width: usize,
    },
    /// `keep` of every `group` consecutive columns stay, of at most [`crate::WIDEST_GROUP`]; of a shorter last group of c
    /// columns `floor(c · (group − keep) / group)` go. Panels are whatever suits the sweep: they make no difference.
    Groups {
        /// How many stay.
        keep: usize,
        /// Of how many.
        group: usize,
    },
    /// u32 [rows, words]: bit j of a row, counted from the lowest of its first word, is set if column j stays.
    Fixed(&'a MatrixRef<'a, u32>),
}

/// How a layer is pruned.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// Who decides what goes.
    pub selection: Selection<'a>,
    /// Bits per weight of what stays, 2 to 8; none leaves it in f32.
    pub bits: Option<u32>,
    /// Who has the other rows of the layer, and how many rows there are in all. Only an unstructured selection asks them.
    pub shards: Option<(&'a dyn Shards, usize)>,
}

/// What a stage's layers are pruned with.
#[derive(Debug)]
pub struct Factor<'a> {
    /// V f32 [columns, columns], of which the upper triangle is read.
    pub factor: MatrixRef<'a, f32>,
    /// f32 [columns / 128 rounded up, 128, 128]: U_kk of the diagonal blocks, with zeros below their diagonals.
    pub inverses: CudaView<'a, f32>,
    /// u8 `[columns]`: not zero for columns that no input ever touched.
    pub dead: CudaView<'a, u8>,
}

/// What pruning a layer, or a shard's rows of it, did.
#[derive(Debug)]
pub struct Outcome {
    /// u32 [rows, columns / 32 rounded up]: bit j of a row is set if column j stays.
    pub keep: CudaSlice<u32>,
    /// f64 `[rows]`: Σ e² / 2, half of what the pruning adds to ‖(W − Q)·X‖² + damp·‖W − Q‖².
    pub losses: CudaSlice<f64>,
    /// Where scores that are not a number are counted.
    selector: Selector,
}

impl Outcome {
    /// How many scores were not a number. Such weights stay, and the losses of their rows are not numbers either. Waits.
    ///
    /// # Errors
    /// What the driver says.
    pub fn not_numbers(&self, device: &Device) -> Result<u64, Error> {
        self.selector.not_numbers(device)
    }
}

/// The panels of a layer, and U_b of each.
struct Panels<'a> {
    width: usize,
    /// Where panels are not parts of the factor's blocks.
    own: Option<CudaSlice<f32>>,
    inverses: &'a CudaView<'a, f32>,
}

impl<'a> Panels<'a> {
    fn new(device: &Device, factor: &'a Factor<'a>, width: usize) -> Result<Self, Error> {
        let own = match WIDTH.is_multiple_of(width) {
            true => None,
            false => Some(invert_panels(device, &factor.factor, width)?),
        };
        Ok(Self { width, own, inverses: &factor.inverses })
    }

    fn inverse(&self, panel: &Range<usize>) -> Result<MatrixRef<'_, f32>, Error> {
        // The inverse of a triangular matrix has the inverses of its diagonal blocks on its own diagonal.
        let (block, within, view) = match &self.own {
            Some(own) => (panel.start / self.width, 0, own.as_view()),
            None => (panel.start / WIDTH, panel.start % WIDTH, self.inverses.slice(..)),
        };
        let first = block * WIDTH * WIDTH + within * (WIDTH + 1);
        let end = first + (panel.len() - 1) * WIDTH + panel.len();
        MatrixRef::with_stride(view.slice(first..end), panel.len(), panel.len(), WIDTH)
    }
}

/// Prunes W [rows, columns] in place with the factor of its stage.
///
/// Left-looking: with Δ = W − Q of the columns that are done, panel b starts from `W̃_b = W_b + (Δ_{<b}·V_{<b,b})·U_b`, so
/// that V is never inverted beyond its diagonal blocks. Nothing waits for the host, unless `shards` do. The same arguments
/// give the same bits.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit each other, or the selection's numbers are not what it says; [`Error::OtherDevice`];
/// what shards say; or what the driver says. What is not a finite number is no error: it shows in the losses.
pub fn solve(
    device: &Device,
    weights: &mut MatrixMut<'_, f32>,
    factor: &Factor<'_>,
    settings: &Settings<'_>,
) -> Result<Outcome, Error> {
    let (rows, columns) = (weights.rows(), weights.columns());
    let stays = check(weights, factor, settings)?;
    let mut keep = match settings.selection {
        Selection::Fixed(given) => copied(device, given)?,
        _ => device.zeros::<u32>((rows * columns.div_ceil(32)).max(1))?,
    };
    let words = columns.div_ceil(32);
    let mut outcome =
        Outcome { keep: device.zeros(1)?, losses: device.zeros(rows.max(1))?, selector: Selector::new(device)? };
    // A shard without rows still takes part in the selections of the others.
    if columns > 0 {
        clear_columns(device, weights, &factor.dead)?;
        let grid = settings.bits.map(|bits| Grid::new(device, &weights.as_ref()?, bits)).transpose()?;
        let width = match settings.selection {
            Selection::Unstructured { panel_width, .. } => panel_width,
            _ => stays.widest_panel()?,
        };
        let panels = Panels::new(device, factor, width)?;
        let mut keep = MatrixMut::new(keep.slice_mut(..), rows, words)?;
        let mut layer = Layer::new(device, weights, factor, width)?;
        for start in (0..columns).step_by(width) {
            let panel = start..(start + width).min(columns);
            let inverse = panels.inverse(&panel)?;
            let pivots = diagonal(&factor.factor, &panel)?;
            layer.bring_errors(&panel, &inverse)?;
            if let Selection::Unstructured { sparsity, .. } = settings.selection {
                let all_rows = settings.shards.map_or(rows, |(_, all_rows)| all_rows);
                let count = ((all_rows * panel.len()) as f64 * sparsity) as u64;
                let shards = settings.shards.map(|(shards, _)| shards);
                let score = Score::Obs(&pivots);
                let current = layer.current(&panel)?;
                outcome.selector.select(device, &current, score, count, &mut keep, start, shards)?;
            }
            let block = Block { inverse: &inverse, pivots: &pivots, stays, grid: grid.as_ref() };
            layer.sweep(&panel, &block, &mut keep, &mut outcome.losses)?;
        }
    }
    outcome.keep = keep;
    Ok(outcome)
}

/// What is worked on from panel to panel.
struct Layer<'a, 'w> {
    device: &'a Device,
    weights: &'a mut MatrixMut<'w, f32>,
    factor: &'a MatrixRef<'a, f32>,
    /// Δ of the panels before the last [rows, stride].
    delta: CudaSlice<f32>,
    stride: usize,
    /// Δ·V, and W̃, of one panel [rows, 128].
    owed: CudaSlice<f32>,
    current: CudaSlice<f32>,
}

impl<'a, 'w> Layer<'a, 'w> {
    fn new(
        device: &'a Device,
        weights: &'a mut MatrixMut<'w, f32>,
        factor: &'a Factor<'a>,
        width: usize,
    ) -> Result<Self, Error> {
        let (rows, columns) = (weights.rows(), weights.columns());
        // Nobody asks for Δ of the last panel.
        let stride = ((columns - 1) / width * width).next_multiple_of(4);
        let several = if columns > width { rows } else { 0 };
        Ok(Self {
            device,
            delta: device.scratch((rows * stride).max(1))?,
            stride,
            owed: device.scratch((several * WIDTH).max(1))?,
            current: device.scratch((several * WIDTH).max(1))?,
            weights,
            factor: &factor.factor,
        })
    }

    /// W̃_b, from what is done.
    fn bring_errors(&mut self, panel: &Range<usize>, inverse: &MatrixRef<'_, f32>) -> Result<(), Error> {
        if panel.start == 0 {
            return Ok(());
        }
        let (rows, width) = (self.weights.rows(), panel.len());
        let weights = self.weights.as_ref()?;
        let delta = MatrixRef::with_stride(self.delta.as_view(), rows, panel.start, self.stride)?;
        let above = self.factor.part(0..panel.start, panel.clone())?;
        let mut owed = MatrixMut::with_stride(self.owed.as_view_mut(), rows, width, WIDTH)?;
        let mut current = MatrixMut::with_stride(self.current.as_view_mut(), rows, width, WIDTH)?;
        let weights = weights.columns_at(panel.clone())?;
        bring_errors(self.device, &weights, (&delta, &above), inverse, &mut owed, &mut current)
    }

    /// W̃_b [rows, width]: of the first panel W_b itself.
    fn current(&mut self, panel: &Range<usize>) -> Result<MatrixRef<'_, f32>, Error> {
        let rows = self.weights.rows();
        if panel.start > 0 {
            return MatrixRef::with_stride(self.current.as_view(), rows, panel.len(), WIDTH);
        }
        self.weights.leading(panel.len())
    }

    fn sweep(
        &mut self,
        panel: &Range<usize>,
        block: &Block<'_>,
        keep: &mut MatrixMut<'_, u32>,
        losses: &mut CudaSlice<f64>,
    ) -> Result<(), Error> {
        let (rows, last) = (self.weights.rows(), panel.end == self.weights.columns());
        let current = match panel.start {
            0 => None,
            _ => Some(MatrixRef::with_stride(self.current.as_view(), rows, panel.len(), WIDTH)?),
        };
        let mut all = MatrixMut::with_stride(self.delta.as_view_mut(), rows, self.stride, self.stride)?;
        let delta = if last { None } else { Some(all.columns_at(panel.clone())?) };
        let mut weights = self.weights.columns_at(panel.clone())?;
        let words = keep.columns();
        let keep = keep.columns_at(0..words)?;
        let swept = Swept { keep, first: panel.start, losses: losses.as_view_mut(), delta, errors: None };
        sweep(self.device, current.as_ref(), &mut weights, block, swept)
    }
}

/// V_jj of a panel's columns.
fn diagonal<'b>(factor: &'b MatrixRef<'_, f32>, panel: &Range<usize>) -> Result<MatrixRef<'b, f32>, Error> {
    let step = factor.stride() + 1;
    let elements = panel.start * step..(panel.end - 1) * step + 1;
    MatrixRef::with_stride(factor.data.slice(elements), panel.len(), 1, step)
}

/// A copy of given bits, without what lies beside them.
fn copied(device: &Device, given: &MatrixRef<'_, u32>) -> Result<CudaSlice<u32>, Error> {
    let words = given.columns();
    let mut copy = device.zeros::<u32>((given.rows() * words).max(1))?;
    device.check_device("the mask", &given.data)?;
    let (rows, stride) = if given.stride() == words { (1, 0) } else { (given.rows(), given.stride()) };
    let each = given.rows() * words / rows.max(1);
    for row in (0..rows).filter(|_| each > 0) {
        let from = given.data.slice(row * stride..row * stride + each);
        device.stream().memcpy_dtod(&from, &mut copy.slice_mut(row * each..(row + 1) * each))?;
    }
    Ok(copy)
}

/// Checks how many rows all shards have together: no fewer than one of them, and no more than can be counted in scores.
pub(crate) fn check_all_rows(all_rows: usize, rows: usize, columns: usize) -> Result<(), Error> {
    let most = usize::MAX / columns.max(1);
    match all_rows < rows || all_rows > most {
        true => Err(Error::shape("the rows of all shards", all_rows, format!("{rows} to {most}"))),
        false => Ok(()),
    }
}

/// Checks what no other function does, and says who decides.
fn check(weights: &MatrixMut<'_, f32>, factor: &Factor<'_>, settings: &Settings<'_>) -> Result<Stays, Error> {
    let (rows, columns) = (weights.rows(), weights.columns());
    let v = &factor.factor;
    if (v.rows(), v.columns()) != (columns, columns) {
        let expected = format!("[{columns}, {columns}] for weights {}", weights.shape());
        return Err(Error::shape("the factor", v.shape(), expected));
    }
    let entries = columns.div_ceil(WIDTH) * WIDTH * WIDTH;
    if factor.inverses.len() < entries {
        let expected = format!("{entries}: a block of 128 × 128 for every 128 of {columns} columns");
        return Err(Error::shape("the inverses", factor.inverses.len(), expected));
    }
    match settings.selection {
        Selection::Unstructured { sparsity, panel_width } => {
            if !(0.0..=1.0).contains(&sparsity) {
                return Err(Error::shape("sparsity", sparsity, "a number from 0 to 1"));
            }
            if ![32, 64, 128].contains(&panel_width) {
                return Err(Error::shape("the panel width", panel_width, "32, 64 or 128"));
            }
            if let Some((_, all_rows)) = settings.shards {
                check_all_rows(all_rows, rows, panel_width)?;
            }
            Ok(Stays::Given)
        }
        Selection::Groups { keep, group } => {
            let stays = Stays::Groups { keep, group };
            stays.widest_panel().map(|_| stays)
        }
        Selection::Fixed(given) => {
            if (given.rows(), given.columns()) != (rows, columns.div_ceil(32)) {
                let expected = format!("[{rows}, {}] for weights {}", columns.div_ceil(32), weights.shape());
                return Err(Error::shape("the mask", given.shape(), expected));
            }
            Ok(Stays::Given)
        }
    }
}
