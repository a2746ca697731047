//! The sweep: the columns of one panel, left to right, each pruned (and quantized) and its error paid for by the columns
//! to its right.
//!
//! Rows are independent of each other, so a tile of them is swept at a time, one row a lane. Inside the panel the errors
//! of a few columns at once are brought to the columns behind them, which reads and writes those once instead of once a
//! column.

use crate::quantize::Grid;
use crate::select::drop_smallest_of_group;
use linalg::vectorized;
use std::ops::Range;

/// Rows swept together: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// Columns that are swept in registers: the most common group.
const PIECE: usize = 4;

/// Columns whose errors are brought to the rest of the panel at once (or a group's, should it be wider).
const STEP: usize = 16;

/// Columns that take errors together: each error is loaded once for all of them, and their sums, which wait for each
/// other within a column, run side by side.
const TOGETHER: usize = 4;

type Lanes = [f32; LANES];

/// [`LANES`] rows of one panel, on their way through the sweep.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// Column by column: W̃ before the sweep, Q after it.
    pub(crate) values: Vec<Lanes>,
    /// Column by column: all ones for what stays, else zero; the sweep's input, or for n:m its output. Of the width of a
    /// value, so that it can be laid over one.
    pub(crate) keep: Vec<[u32; LANES]>,
    /// Σ e² of each row.
    pub(crate) squares: Lanes,
    errors: Vec<Lanes>,
    scores: Vec<Lanes>,
}

impl Tile {
    pub(crate) fn new(width: usize) -> Self {
        let lines = vec![[0.0; LANES]; width];
        let keep = vec![[!0; LANES]; width];
        Self { values: lines.clone(), keep, squares: [0.0; LANES], errors: lines.clone(), scores: lines }
    }
}

/// What is left of a tile that was swept.
#[derive(Clone, Debug)]
pub(crate) struct Swept {
    /// Column by column: Q.
    pub(crate) values: Vec<Lanes>,
    /// Column by column: what stays.
    pub(crate) keep: Vec<[bool; LANES]>,
}

impl Swept {
    pub(crate) fn new(width: usize) -> Self {
        Self { values: vec![[0.0; LANES]; width], keep: vec![[true; LANES]; width] }
    }
}

/// Some columns of a tile.
struct Columns<'a> {
    values: &'a mut [Lanes],
    keep: &'a mut [[u32; LANES]],
    errors: &'a mut [Lanes],
    scores: &'a mut [Lanes],
}

/// What a sweep does to every tile of a panel.
pub(crate) struct Sweep<'a> {
    /// U_bᵀ [width, width], row-major.
    pub(crate) inverse: &'a [f32],
    /// 1 / d_j = V[j, j] of each column.
    pub(crate) pivots: &'a [f32],
    /// n and m, where the sweep chooses.
    pub(crate) groups: Option<(usize, usize)>,
}

/// The grid of a tile's rows.
pub(crate) struct TileGrid {
    scale: Lanes,
    zero: Lanes,
    top: f32,
}

impl TileGrid {
    /// The rows from `first` on; lanes beyond the last row get a grid of no consequence.
    pub(crate) fn new(grid: &Grid, first: usize) -> Self {
        let lanes = |values: &[f32]| std::array::from_fn(|lane| values.get(first + lane).copied().unwrap_or(1.0));
        Self { scale: lanes(&grid.scale), zero: lanes(&grid.zero), top: grid.top }
    }
}

vectorized! {
    fn run(sweep: &Sweep<'_>, tile: &mut Tile, grid: Option<&TileGrid>) {
        sweep.sweep(tile, grid);
    }
}

impl Sweep<'_> {
    /// Sweeps the first `pivots.len()` columns of a tile.
    pub(crate) fn run(&self, tile: &mut Tile, grid: Option<&TileGrid>) {
        run(self, tile, grid);
    }

    #[inline(always)]
    fn sweep(&self, tile: &mut Tile, grid: Option<&TileGrid>) {
        let width = self.pivots.len();
        let piece = self.groups.map_or(PIECE, |(_, group)| group);
        let step = piece * (STEP / piece).max(1);
        tile.squares = [0.0; LANES];
        for start in (0..width).step_by(step) {
            let end = (start + step).min(width);
            for first in (start..end).step_by(piece) {
                let last = (first + piece).min(end);
                self.piece(tile, grid, first..last);
                self.subtract_errors(tile, first..last, last..end);
            }
            self.subtract_errors(tile, start..end, end..width);
        }
    }

    /// Sweeps the few columns `range` by themselves.
    #[inline(always)]
    fn piece(&self, tile: &mut Tile, grid: Option<&TileGrid>, range: Range<usize>) {
        let (values, keep) = (&mut tile.values[range.clone()], &mut tile.keep[range.clone()]);
        let (errors, scores) = (&mut tile.errors[range.clone()], &mut tile.scores[range.clone()]);
        let mut squares = tile.squares;
        if let (Some(values), Some(keep), Some(errors)) = (
            values.first_chunk_mut::<PIECE>().filter(|_| range.len() == PIECE),
            keep.first_chunk_mut::<PIECE>(),
            errors.first_chunk_mut::<PIECE>(),
        ) {
            // Copies of a known size, which stay in registers from the first column to the last.
            let mut columns = (*values, *keep, [[0.0; LANES]; PIECE], [[0.0; LANES]; PIECE]);
            let lines = Columns {
                values: &mut columns.0,
                keep: &mut columns.1,
                errors: &mut columns.2,
                scores: &mut columns.3,
            };
            self.columns(lines, grid, range.start, &mut squares);
            (*values, *keep, *errors) = (columns.0, columns.1, columns.2);
        } else {
            self.columns(Columns { values, keep, errors, scores }, grid, range.start, &mut squares);
        }
        tile.squares = squares;
    }

    /// What the errors of the columns `done` do to the columns `behind`.
    #[inline(always)]
    fn subtract_errors(&self, tile: &mut Tile, done: Range<usize>, behind: Range<usize>) {
        let width = self.pivots.len();
        let errors = &tile.errors[done.clone()];
        let inverse = &self.inverse[behind.start * width..];
        let (together, rest) = tile.values[behind].as_chunks_mut::<TOGETHER>();
        let (inverse_together, inverse_rest) = inverse.split_at(together.len() * TOGETHER * width);
        for (values, inverse) in together.iter_mut().zip(inverse_together.chunks_exact(width * TOGETHER)) {
            self.subtract_all(values, errors, inverse, done.start);
        }
        for (value, inverse) in rest.iter_mut().zip(inverse_rest.chunks_exact(width)) {
            self.subtract_all(std::array::from_mut(value), errors, inverse, done.start);
        }
    }

    /// What the errors of the columns from `start` on do to a few columns behind them, `inverse` being these columns' rows
    /// of U_bᵀ.
    #[inline(always)]
    fn subtract_all<const COLUMNS: usize>(
        &self,
        values: &mut [Lanes; COLUMNS],
        errors: &[Lanes],
        inverse: &[f32],
        start: usize,
    ) {
        let width = self.pivots.len();
        let inverse: [&[f32]; COLUMNS] = std::array::from_fn(|c| &inverse[c * width + start..][..errors.len()]);
        let mut sums = *values;
        for (i, error) in errors.iter().enumerate() {
            for c in 0..COLUMNS {
                subtract(&mut sums[c], error, inverse[c][i]);
            }
        }
        *values = sums;
    }

    /// Column by column: q, e, and what e does to the columns behind it among these, whose first is `start`.
    #[inline(always)]
    fn columns(&self, columns: Columns<'_>, grid: Option<&TileGrid>, start: usize, squares: &mut Lanes) {
        let Columns { values, keep, errors, scores } = columns;
        let width = self.pivots.len();
        let pivots = &self.pivots[start..][..values.len()];
        if let Some((stay, _)) = self.groups {
            // n:m: the smallest w̃² / d² of the group go.
            for ((scores, values), &pivot) in scores.iter_mut().zip(&*values).zip(pivots) {
                for (score_of, &value) in scores.iter_mut().zip(values) {
                    *score_of = score(value, pivot);
                }
            }
            drop_smallest_of_group(scores, stay, keep);
        }
        for j in 0..pivots.len() {
            let (value, keep) = (values[j], keep[j]);
            let mut rounded = [0.0; LANES];
            for lane in 0..LANES {
                rounded[lane] = f32::from_bits(value[lane].to_bits() & keep[lane]);
            }
            if let Some(TileGrid { scale, zero, top }) = grid {
                for lane in 0..LANES {
                    let point = ((rounded[lane] / scale[lane]).round_ties_even() + zero[lane]).max(0.0).min(*top);
                    rounded[lane] = scale[lane] * (point - zero[lane]);
                }
            }
            let mut error = [0.0; LANES];
            for lane in 0..LANES {
                error[lane] = (value[lane] - rounded[lane]) * pivots[j];
            }
            for lane in 0..LANES {
                squares[lane] += error[lane] * error[lane];
            }
            values[j] = rounded;
            errors[j] = error;
            for (c, value) in values.iter_mut().enumerate().skip(j + 1) {
                subtract(value, &error, self.inverse[(start + c) * width + start + j]);
            }
        }
    }
}

/// `value ← value − error · u`.
#[inline(always)]
fn subtract(value: &mut Lanes, error: &Lanes, u: f32) {
    for (value, e) in value.iter_mut().zip(error) {
        *value -= e * u;
    }
}

/// w̃² / d², with `pivot` = 1 / d.
#[inline(always)]
pub(crate) fn score(value: f32, pivot: f32) -> f32 {
    let scaled = value * pivot;
    scaled * scaled
}
