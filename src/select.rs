//! Which weights go, exactly: of a panel or layer over the rows of all devices, of every row, or of every group:
//! `kernels/prune_select.cu`.

use crate::device::{Device, arguments, blocks};
use crate::module::{Entry, FLAT_THREADS, PRUNE_SELECT, SELECT_BINS, SELECT_PASSES, SELECT_THREADS};
use crate::product::RESIDENT;
use crate::{Error, MatrixMut, MatrixRef};
use cudarc::driver::{CudaSlice, CudaViewMut, DevicePtrMut};

const HISTOGRAM: Entry = Entry::new(&PRUNE_SELECT, "prune_select_histogram", SELECT_THREADS, 0);
const TIES: Entry = Entry::new(&PRUNE_SELECT, "prune_select_ties", SELECT_THREADS, 0);
const DROP: Entry = Entry::new(&PRUNE_SELECT, "prune_select_drop", SELECT_THREADS, 0);
const ROWS: Entry = Entry::new(&PRUNE_SELECT, "prune_select_rows", SELECT_THREADS, 0);
const GROUPS: Entry = Entry::new(&PRUNE_SELECT, "prune_select_groups", FLAT_THREADS, 0);
const APPLY: Entry = Entry::new(&PRUNE_SELECT, "prune_apply_bits", FLAT_THREADS, 0);

/// The most thread blocks of a selection. Each begins by reading a histogram of 16 KiB: as many as run at one time, and no more.
const BLOCKS: u32 = RESIDENT;

/// Segments of 128 columns that a warp should have at least, 2 KiB: a thread block then reads as much as its histogram.
const FEWEST_SEGMENTS: u32 = 4;

/// Words of the state, and which of them hold the ties of this device and of those before it.
const STATE: usize = 8;
const OWN_TIES: usize = 6;
const TIES_BEFORE: usize = 7;

/// How many digits a threshold is found in: [`Selector::histogram`] is called once for each.
pub const PASSES: usize = SELECT_PASSES as usize;

const BINS: usize = SELECT_BINS as usize;

/// By what weights are compared.
#[derive(Clone, Copy, Debug)]
pub enum Score<'a> {
    /// (w̃ · V_jj)², with V_jj f32 [columns, 1]: what a weight's going costs.
    Obs(&'a MatrixRef<'a, f32>),
    /// |w|.
    Magnitude,
    /// |w| · ‖x_j‖, with the norms f32 [columns, 1] of the inputs.
    Wanda(&'a MatrixRef<'a, f32>),
}

/// What the shards of one job do together, each on a device of its own. Both are called in the same order on all shards, and
/// work on the stream of the device, or wait for it.
pub trait Shards {
    /// Replaces counts u64 by their sums over all shards.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if another shard ended early, or why the shards could not speak.
    fn sum(&self, device: &Device, counts: &mut CudaViewMut<'_, u64>) -> Result<(), Error>;

    /// Replaces a count u64 `[1]` by the sum of those of the shards before this one.
    ///
    /// # Errors
    /// As [`Shards::sum`].
    fn before(&self, device: &Device, count: &mut CudaViewMut<'_, u64>) -> Result<(), Error>;
}

/// The memory of selections, which one follows the other in.
#[derive(Debug)]
pub struct Selector {
    /// u64 [PASSES, BINS], then the state.
    counts: CudaSlice<u64>,
    ties: CudaSlice<u32>,
    not_numbers: CudaSlice<u64>,
}

/// As in the kernel's file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Parameters {
    weights: u64,
    stride: u64,
    factors: u64,
    factor_stride: u64,
    keep: u64,
    keep_stride: u64,
    histograms: u64,
    state: u64,
    ties: u64,
    not_numbers: u64,
    count: u64,
    rows: u32,
    columns: u32,
    squared: u32,
    pass: u32,
}

/// Which kernel, and what it is told beside the parameters of all.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Histogram(usize),
    Ties,
    Drop,
    Rows,
    Groups { keep: u32, group: u32 },
}

impl Selector {
    /// Memory for selections on a device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the driver says.
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self {
            counts: device.zeros(PASSES * BINS + STATE)?,
            ties: device.scratch(BLOCKS as usize)?,
            not_numbers: device.zeros(1)?,
        })
    }

    /// Clears the bits of the `count` weights [rows, columns] with the smallest scores and sets those of the others: over the
    /// rows of all `shards`, equal scores in order of (shard, row, column). What is not a number is larger than all numbers.
    ///
    /// `keep` u32 [rows, words]: bit `first` + j of a row, counted from the lowest of the first word, is that of column j;
    /// `first` is a multiple of 32, and bits behind the last column in its word are cleared. With shards `count` is at most the
    /// number of weights of all of them, which only the caller knows. Nothing waits for the host.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit each other, or alone more are to go than there are; [`Error::OtherDevice`]; or
    /// what the driver says.
    #[allow(clippy::too_many_arguments)]
    pub fn select(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: u64,
        keep: &mut MatrixMut<'_, u32>,
        first: usize,
        shards: Option<&dyn Shards>,
    ) -> Result<(), Error> {
        let all = weights.rows() as u64 * weights.columns() as u64;
        if shards.is_none() && count > all {
            return Err(Error::shape("count", count, format!("at most {all} for weights {}", weights.shape())));
        }
        self.begin(device)?;
        for pass in 0..PASSES {
            self.histogram(device, weights, score, count, pass)?;
            if let Some(shards) = shards {
                shards.sum(device, &mut self.histogram_mut(pass))?;
            }
        }
        self.ties(device, weights, score, count)?;
        if let Some(shards) = shards {
            shards.before(device, &mut self.ties_mut(device)?)?;
        }
        self.drop(device, weights, score, count, keep, first)
    }

    /// Begins a selection. Then, for every pass, come [`Selector::histogram`] and a sum over all shards, then
    /// [`Selector::ties`] and a sum over the shards before this one, then [`Selector::drop`]: what [`Selector::select`] does.
    ///
    /// # Errors
    /// What the driver says.
    pub fn begin(&mut self, device: &Device) -> Result<(), Error> {
        device.check_device("the selector", &self.counts)?;
        Ok(device.stream().memset_zeros(&mut self.counts)?)
    }

    /// Counts a digit of the scores that agree with the digits found so far.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn histogram(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: u64,
        pass: usize,
    ) -> Result<(), Error> {
        if pass >= PASSES {
            return Err(Error::shape("pass", pass, format!("fewer than {PASSES}")));
        }
        self.launch(device, weights, score, count, None, Stage::Histogram(pass))
    }

    /// The counts u64 of a pass, for shards to add theirs.
    pub fn histogram_mut(&mut self, pass: usize) -> CudaViewMut<'_, u64> {
        let pass = pass.min(PASSES - 1);
        self.counts.slice_mut(pass * BINS..(pass + 1) * BINS)
    }

    /// Counts the scores that equal the threshold.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn ties(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: u64,
    ) -> Result<(), Error> {
        self.launch(device, weights, score, count, None, Stage::Ties)
    }

    /// The number u64 `[1]` of scores that equal the threshold, to be replaced by that of the shards before this one.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ties_mut(&mut self, device: &Device) -> Result<CudaViewMut<'_, u64>, Error> {
        let (mut own, before) = (PASSES * BINS + OWN_TIES, PASSES * BINS + TIES_BEFORE);
        let (left, mut right) = self.counts.split_at_mut(before);
        own = own.min(left.len());
        device.stream().memcpy_dtod(&left.slice(own..), &mut right.slice_mut(..1))?;
        Ok(self.counts.slice_mut(before..))
    }

    /// Writes the bits.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn drop(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: u64,
        keep: &mut MatrixMut<'_, u32>,
        first: usize,
    ) -> Result<(), Error> {
        self.launch(device, weights, score, count, Some((keep, first)), Stage::Drop)
    }

    /// Clears the bits of the `count` smallest scores of every row, equal ones from the left; the rest as
    /// [`Selector::select`].
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn select_rows(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: usize,
        keep: &mut MatrixMut<'_, u32>,
    ) -> Result<(), Error> {
        if count > weights.columns() {
            let expected = format!("at most {} for weights {}", weights.columns(), weights.shape());
            return Err(Error::shape("count", count, expected));
        }
        self.launch(device, weights, score, count as u64, Some((keep, 0)), Stage::Rows)
    }

    /// Sets the bits of the `stay` largest scores of every `group` consecutive columns of a row, equal ones going from the
    /// left, and clears the others; of a shorter last group of c columns `floor(c · (group − stay) / group)` go.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn select_groups(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        (stay, group): (usize, usize),
        keep: &mut MatrixMut<'_, u32>,
    ) -> Result<(), Error> {
        if group == 0 || group > 1 << 30 || stay > group {
            return Err(Error::shape(
                "groups",
                format!("{stay} of {group}"),
                "as many columns or more, and one at least",
            ));
        }
        let stage = Stage::Groups { keep: stay as u32, group: group as u32 };
        self.launch(device, weights, score, 0, Some((keep, 0)), stage)
    }

    /// How many scores were not a number, of all selections so far. Waits.
    ///
    /// # Errors
    /// What the driver says.
    pub fn not_numbers(&self, device: &Device) -> Result<u64, Error> {
        Ok(device.download(&self.not_numbers)?.first().copied().unwrap_or(0))
    }

    fn launch(
        &mut self,
        device: &Device,
        weights: &MatrixRef<'_, f32>,
        score: Score<'_>,
        count: u64,
        keep: Option<(&mut MatrixMut<'_, u32>, usize)>,
        stage: Stage,
    ) -> Result<(), Error> {
        let (rows, columns) = (weights.rows(), weights.columns());
        let (factors, squared) = match score {
            Score::Obs(pivots) => (Some(pivots), true),
            Score::Magnitude => (None, false),
            Score::Wanda(norms) => (Some(norms), false),
        };
        if let Some(factors) = factors
            && (factors.rows(), factors.columns()) != (columns, 1)
        {
            return Err(Error::shape("the scores' factors", factors.shape(), format!("[{columns}, 1]")));
        }
        if let Some((keep, first)) = &keep {
            // A sum that wraps is short enough for any mask.
            let bits = first.saturating_add(columns);
            if keep.rows() != rows || keep.columns() * 32 < bits || !first.is_multiple_of(32) {
                let found = format!("{}, from bit {first} on", keep.shape());
                let expected = format!("[{rows}, {}]: words for {bits} bits, from the first of one", bits.div_ceil(32));
                return Err(Error::shape("keep", found, expected));
            }
        }
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let (w, _reading) = device.address("weights", &weights.data)?;
        let factor_stride = factors.map_or(0, |factors| factors.stride() as u64);
        let factors = factors.map(|factors| device.address("the scores' factors", &factors.data)).transpose()?;
        let keep = keep.map(|(keep, first)| {
            let stride = keep.stride() as u64;
            let (address, guard) = device.address_mut("keep", &mut keep.data)?;
            Ok::<_, Error>((address + first as u64 / 8, stride, guard))
        });
        let keep = keep.transpose()?;
        device.check_device("the selector", &self.counts)?;
        let (counts, _counts) = self.counts.device_ptr_mut(device.stream());
        let (ties, _ties) = self.ties.device_ptr_mut(device.stream());
        let (not_numbers, _not_numbers) = self.not_numbers.device_ptr_mut(device.stream());
        let parameters = Parameters {
            weights: w,
            stride: weights.stride() as u64,
            factors: factors.as_ref().map_or(0, |(address, _)| *address),
            factor_stride,
            keep: keep.as_ref().map_or(0, |(address, ..)| *address),
            keep_stride: keep.as_ref().map_or(0, |(_, stride, _)| *stride),
            histograms: counts,
            state: counts + (PASSES * BINS * size_of::<u64>()) as u64,
            ties,
            not_numbers,
            count,
            rows: rows as u32,
            columns: columns as u32,
            squared: squared.into(),
            pass: if let Stage::Histogram(pass) = stage { pass as u32 } else { 0 },
        };
        let segments = blocks(rows as u64 * columns.div_ceil(128) as u64, 1)?;
        let some = segments.div_ceil(SELECT_THREADS / 32 * FEWEST_SEGMENTS).min(BLOCKS);
        let words = blocks(rows as u64 * columns.div_ceil(32) as u64, FLAT_THREADS / 32)?;
        let (entry, grid) = match stage {
            Stage::Histogram(_) => (&HISTOGRAM, some),
            Stage::Ties => (&TIES, some),
            Stage::Drop => (&DROP, some),
            Stage::Rows => (&ROWS, rows as u32),
            Stage::Groups { .. } => (&GROUPS, words),
        };
        // SAFETY: the arguments of the kernels; all memory is of this device, borrowed until the work is enqueued, and as
        // large as was checked; `ties` has a place for each of the most thread blocks.
        unsafe {
            match stage {
                Stage::Groups { keep, group } => {
                    device.launch(entry, (grid, 1, 1), arguments![parameters, keep, group])
                }
                _ => device.launch(entry, (grid, 1, 1), arguments![parameters]),
            }
        }
    }
}

/// Sets the weights [rows, columns] to zero whose bits are clear in `keep` u32 [rows, words]: pruning without correction.
///
/// # Errors
/// [`Error::Shape`] if there are not enough bits; [`Error::OtherDevice`]; or what the driver says.
pub fn apply(device: &Device, weights: &mut MatrixMut<'_, f32>, keep: &MatrixRef<'_, u32>) -> Result<(), Error> {
    let (rows, columns) = (weights.rows(), weights.columns());
    if keep.rows() != rows || keep.columns() * 32 < columns {
        return Err(Error::shape("keep", keep.shape(), format!("[{rows}, {}]", columns.div_ceil(32))));
    }
    let (stride, keep_stride) = (weights.stride() as u64, keep.stride() as u64);
    let (w, _writing) = device.address_mut("weights", &mut weights.data)?;
    let (keep, _reading) = device.address("keep", &keep.data)?;
    let words = blocks(rows as u64 * columns.div_ceil(32) as u64, FLAT_THREADS / 32)?;
    let (rows, columns) = (rows as u32, columns as u32);
    // SAFETY: the arguments of the kernel; the memory is of this device and as large as the shapes say.
    unsafe { device.launch(&APPLY, (words, 1, 1), arguments![w, keep, stride, keep_stride, rows, columns]) }
}
