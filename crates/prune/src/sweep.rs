//! The sweep: the columns of one panel, left to right, each pruned (and quantized) and its error paid for by the columns
//! to its right.
//!
//! Rows are independent of each other, so a tile of them is swept at a time, one row a lane. Inside the panel the errors
//! of a few columns at once are brought to the columns behind them, which reads and writes those once instead of once a
//! column.

use crate::quantize::Grid;
use crate::select::drop_smallest_of_group;
use linalg::vectorized;

/// Rows swept together: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

type Lanes = [f32; LANES];

/// [`LANES`] rows of one panel.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// Column by column: W̃ before the sweep, Q after it.
    pub(crate) values: Vec<Lanes>,
    /// Column by column: what stays; the sweep's input, or for n:m its output.
    pub(crate) keep: Vec<[bool; LANES]>,
    /// Σ e² of each row.
    pub(crate) squares: Lanes,
    errors: Vec<Lanes>,
    scores: Vec<Lanes>,
}

impl Tile {
    pub(crate) fn new(width: usize) -> Self {
        let lines = vec![[0.0; LANES]; width];
        let keep = vec![[true; LANES]; width];
        Self { values: lines.clone(), keep, squares: [0.0; LANES], errors: lines.clone(), scores: lines }
    }
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
        let step = self.groups.map_or(LANES, |(_, group)| group * (LANES / group).max(1));
        tile.squares = [0.0; LANES];
        for start in (0..width).step_by(step) {
            let end = (start + step).min(width);
            for j in start..end {
                if let Some((stay, group)) = self.groups
                    && j % group == 0
                {
                    self.choose(tile, j..(j + group).min(end), stay);
                }
                self.column(tile, grid, j, end);
            }
            for c in end..width {
                let inverse = &self.inverse[c * width..][start..end];
                let mut value = tile.values[c];
                for (error, &u) in tile.errors[start..end].iter().zip(inverse) {
                    subtract(&mut value, error, u);
                }
                tile.values[c] = value;
            }
        }
    }

    /// n:m: the smallest w̃² / d² of a group go.
    #[inline(always)]
    fn choose(&self, tile: &mut Tile, group: std::ops::Range<usize>, stay: usize) {
        for j in group.clone() {
            for lane in 0..LANES {
                tile.scores[j][lane] = score(tile.values[j][lane], self.pivots[j]);
            }
        }
        drop_smallest_of_group(&tile.scores[group.clone()], stay, &mut tile.keep[group]);
    }

    /// One column: q, e, and what e does to the columns before `end`.
    #[inline(always)]
    fn column(&self, tile: &mut Tile, grid: Option<&TileGrid>, j: usize, end: usize) {
        let width = self.pivots.len();
        let value = tile.values[j];
        let mut rounded: Lanes = std::array::from_fn(|lane| if tile.keep[j][lane] { value[lane] } else { 0.0 });
        if let Some(TileGrid { scale, zero, top }) = grid {
            for lane in 0..LANES {
                let point = ((rounded[lane] / scale[lane]).round_ties_even() + zero[lane]).max(0.0).min(*top);
                rounded[lane] = scale[lane] * (point - zero[lane]);
            }
        }
        let error: Lanes = std::array::from_fn(|lane| (value[lane] - rounded[lane]) * self.pivots[j]);
        for (square, e) in tile.squares.iter_mut().zip(error) {
            *square += e * e;
        }
        tile.values[j] = rounded;
        tile.errors[j] = error;
        for c in j + 1..end {
            let u = self.inverse[c * width + j];
            subtract(&mut tile.values[c], &error, u);
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
