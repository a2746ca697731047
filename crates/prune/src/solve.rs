//! SparseGPT for one layer: panel by panel, what all panels before it owe to this one, the mask, the sweep.
//!
//! With Δ = W − Q of the columns that are done and U_b = V_bb⁻¹, panel b starts from `W̃_b = W_b + (Δ_{<b}·V_{<b,b})·U_b`:
//! rows · columns² operations over all panels, no inverse of H.

use crate::factor::Factor;
use crate::quantize::Grid;
use crate::select::{drop_smallest, key};
use crate::sweep::{LANES, Sweep, Swept, Tile, TileGrid, score};
use crate::{Collective, Error, Mask, Pattern, Weight};
use linalg::{MatrixMut, MatrixRef, Region, gemm};
use rayon::prelude::*;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Who decides what goes.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// The scores, within a pattern.
    Pattern(Pattern),
    /// The caller, for this shard's rows.
    Fixed(&'a Mask),
}

impl Selection<'_> {
    /// The columns that are decided together.
    pub fn group(&self) -> usize {
        match self {
            Selection::Pattern(pattern) => pattern.group(),
            Selection::Fixed(_) => 1,
        }
    }
}

/// How a layer is pruned.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Who decides what goes.
    pub selection: Selection<'a>,
    /// Bits per weight of what stays, 2 to 8; none leaves it in f32.
    pub bits: Option<u32>,
}

/// What pruning a layer (or a shard's rows of it) did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was kept.
    pub keep: Mask,
    /// Σ e² / 2 of each row: half of what the pruning adds to ‖(W − Q)·X‖² + damp·‖W − Q‖².
    pub obs_loss: Vec<f64>,
    /// Time in the products that bring earlier panels' errors to a panel.
    pub update_time: Duration,
    /// Time in the sweep.
    pub sweep_time: Duration,
}

/// The panel width for groups of m columns when `panel_width` is asked for: the largest multiple of m not above it, or m
/// itself, so that no group lies in two panels.
pub fn effective_panel_width(panel_width: usize, group: usize) -> usize {
    (panel_width / group * group).max(group)
}

/// The panels of `columns` columns, left to right.
pub(crate) fn panels(columns: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns).step_by(width).map(move |start| start..(start + width).min(columns))
}

/// Prunes W (this shard's rows of a layer) in place with the factor of its stage.
///
/// # Errors
/// [`Error::Groups`] if n:m groups do not divide the columns or the factor's panels, [`Error::Disconnected`] if another
/// shard ended early.
///
/// # Panics
/// If W, the factor and a fixed mask do not have the same columns (and rows).
pub fn sparsegpt(
    weight: &mut Weight,
    factor: &Factor,
    settings: &Settings<'_>,
    collective: &dyn Collective,
) -> Result<Outcome, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    assert_eq!(columns, factor.columns(), "a factor of as many columns as W has");
    let group = settings.selection.group();
    if !columns.is_multiple_of(group) || !factor.panel_width().is_multiple_of(group) {
        return Err(Error::Groups { group, columns });
    }
    let mut all_rows = [rows as u64];
    collective.sum_u64(&mut all_rows)?;
    let mut solve = Solve::new(weight, factor, settings);
    for (index, panel) in panels(columns, factor.panel_width()).enumerate() {
        solve.bring_errors(weight, &panel, index);
        if let Selection::Pattern(Pattern::Unstructured { sparsity }) = settings.selection {
            let count = (all_rows[0] as f64 * panel.len() as f64 * sparsity) as u64;
            solve.choose(&panel, count, collective)?;
        }
        solve.sweep(weight, &panel, index, settings);
    }
    Ok(solve.outcome)
}

/// Panels that what earlier ones owe is computed for at once.
const GROUP: usize = 4;

/// The state of one layer's solution.
struct Solve<'a> {
    factor: &'a Factor,
    rows: usize,
    grid: Option<Grid>,
    /// Δ = W − Q of the columns done, [columns, rows].
    delta: Vec<f32>,
    /// Δ·V of a group of panels, transposed, [GROUP · width, rows].
    owed: Vec<f32>,
    /// W̃ of the panel, transposed, [width, rows].
    current: Vec<f32>,
    keys: Vec<u32>,
    /// The panel after its sweep: threads sweep rows, and what they leave is then taken over column by column.
    swept: Vec<Swept>,
    outcome: Outcome,
}

impl<'a> Solve<'a> {
    fn new(weight: &mut Weight, factor: &'a Factor, settings: &Settings<'_>) -> Self {
        let (rows, columns) = (weight.rows(), weight.columns());
        for (column, _) in weight.columns_mut().zip(factor.dead()).filter(|&(_, &dead)| dead).collect::<Vec<_>>() {
            column.fill(0.0);
        }
        let width = factor.panel_width().min(columns);
        let keep = match settings.selection {
            Selection::Fixed(mask) => {
                assert_eq!((mask.rows(), mask.columns()), (rows, columns), "a mask of W's shape");
                mask.clone()
            }
            Selection::Pattern(_) => Mask::from_fn(rows, columns, |_, _| true),
        };
        Self {
            factor,
            rows,
            grid: settings.bits.map(|bits| Grid::new(weight, bits)),
            delta: vec![0.0; rows * columns],
            owed: vec![0.0; rows * (GROUP * width).min(columns)],
            current: vec![0.0; rows * width],
            keys: vec![0; rows * width],
            swept: vec![Swept::new(width); rows.div_ceil(LANES)],
            outcome: Outcome {
                keep,
                obs_loss: vec![0.0; rows],
                update_time: Duration::ZERO,
                sweep_time: Duration::ZERO,
            },
        }
    }

    /// `W̃_b = W_b + (Δ_{<b}·V_{<b,b})·U_b`, transposed.
    ///
    /// What the panels before a group of panels owe to it is one product, so that Δ is read once for all of them; what
    /// they owe to each other is added panel by panel.
    fn bring_errors(&mut self, weight: &Weight, panel: &Range<usize>, index: usize) {
        let started = Instant::now();
        let (rows, width) = (self.rows, panel.len());
        let current = &mut self.current[..rows * width];
        current.copy_from_slice(&weight.values()[panel.start * rows..panel.end * rows]);
        if panel.start == 0 {
            self.outcome.update_time += started.elapsed();
            return;
        }
        let first = index / GROUP * GROUP * self.factor.panel_width();
        let group = first..(first + GROUP * self.factor.panel_width()).min(self.factor.columns());
        if panel.start == first {
            let owed = &mut self.owed[..rows * group.len()];
            let done = MatrixRef::new(&self.delta[..first * rows], first, rows);
            let above = self.factor.part(0..first, group.clone()).transposed();
            gemm(1.0, above, done, 0.0, MatrixMut::new(owed, group.len(), rows), Region::Full);
        } else {
            let owed = &mut self.owed[(panel.start - first) * rows..(panel.end - first) * rows];
            let done = MatrixRef::new(&self.delta[first * rows..panel.start * rows], panel.start - first, rows);
            let above = self.factor.part(first..panel.start, panel.clone()).transposed();
            // The first group owes nothing to columns before it.
            let kept = if first == 0 { 0.0 } else { 1.0 };
            gemm(1.0, above, done, kept, MatrixMut::new(owed, width, rows), Region::Full);
        }
        // U_bᵀ is lower triangular: its upper half has nothing to the right of the middle.
        let half = width / 2;
        let owed = &self.owed[(panel.start - first) * rows..(panel.end - first) * rows];
        let inverse = self.factor.inverse(index);
        for (lines, depth) in [(0..half, half), (half..width, width)] {
            let inverse = MatrixRef::with_stride(&inverse[lines.start * width..], lines.len(), depth, width);
            let owed = MatrixRef::new(&owed[..depth * rows], depth, rows);
            let current = &mut current[lines.start * rows..lines.end * rows];
            gemm(1.0, inverse, owed, 1.0, MatrixMut::new(current, lines.len(), rows), Region::Full);
        }
        self.outcome.update_time += started.elapsed();
    }

    /// Unstructured: the `count` smallest w̃² / d² of the panel go, over the rows of all shards.
    fn choose(&mut self, panel: &Range<usize>, count: u64, collective: &dyn Collective) -> Result<(), Error> {
        let rows = self.rows;
        let keys = &mut self.keys[..rows * panel.len()];
        let columns = keys.par_chunks_exact_mut(rows.max(1)).zip(self.current.par_chunks_exact(rows.max(1)));
        columns.zip(panel.clone()).for_each(|((keys, values), j)| {
            let pivot = self.factor.at(j, j);
            for (key_of, &value) in keys.iter_mut().zip(values) {
                *key_of = key(score(value, pivot));
            }
        });
        drop_smallest(keys, rows, count, self.outcome.keep.columns_of_mut(panel.clone()), collective)?;
        Ok(())
    }

    fn sweep(&mut self, weight: &mut Weight, panel: &Range<usize>, index: usize, settings: &Settings<'_>) {
        let started = Instant::now();
        let rows = self.rows;
        let pivots: Vec<f32> = panel.clone().map(|j| self.factor.at(j, j)).collect();
        let groups = match settings.selection {
            Selection::Pattern(Pattern::NOfM { keep, group }) => Some((keep, group)),
            _ => None,
        };
        let sweep = Sweep { inverse: self.factor.inverse(index), pivots: &pivots, groups };
        let keep = self.outcome.keep.columns_of_mut(panel.clone());
        let (current, decided) = (&self.current, &*keep);
        let losses = self.outcome.obs_loss.par_chunks_mut(LANES);
        let tile = || Tile::new(panel.len());
        self.swept.par_iter_mut().zip(losses).enumerate().for_each_init(tile, |tile, (number, (swept, losses))| {
            let first = number * LANES;
            let lanes = losses.len();
            for (j, values) in tile.values.iter_mut().enumerate() {
                let start = j * rows + first;
                copy_lanes(&current[start..start + lanes], values, |value| value);
                if groups.is_none() {
                    copy_lanes(&decided[start..start + lanes], &mut tile.keep[j], |keep| {
                        0u32.wrapping_sub(keep.into())
                    });
                }
            }
            let grid = self.grid.as_ref().map(|grid| TileGrid::new(grid, first));
            sweep.run(tile, grid.as_ref());
            swept.values[..panel.len()].copy_from_slice(&tile.values);
            if groups.is_some() {
                for (swept, keep) in swept.keep.iter_mut().zip(&tile.keep) {
                    copy_lanes(keep, swept, |keep| keep != 0);
                }
            }
            for (loss, &squares) in losses.iter_mut().zip(&tile.squares) {
                *loss += 0.5 * f64::from(squares);
            }
        });
        let swept = &self.swept;
        let delta = self.delta[panel.start * rows..panel.end * rows].par_chunks_exact_mut(rows.max(1));
        let columns = weight.columns_mut().skip(panel.start).take(panel.len());
        columns.zip(delta).enumerate().for_each(|(j, (column, delta))| {
            let (columns, last_column) = column.as_chunks_mut::<LANES>();
            let (deltas, last_delta) = delta.as_chunks_mut::<LANES>();
            for ((column, delta), swept) in columns.iter_mut().zip(deltas).zip(swept) {
                take_lanes(&swept.values[j], column, delta);
            }
            if let Some(swept) = swept.last() {
                take_lanes(&swept.values[j], last_column, last_delta);
            }
        });
        if groups.is_some() {
            keep.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(j, keep)| {
                for (keep, swept) in keep.chunks_mut(LANES).zip(swept) {
                    keep.copy_from_slice(&swept.keep[j][..keep.len()]);
                }
            });
        }
        self.outcome.sweep_time += started.elapsed();
    }
}

/// Copies a column of a tile, which is whole for all tiles but the last.
#[inline(always)]
fn copy_lanes<T: Copy, U>(from: &[T], to: &mut [U; LANES], convert: impl Fn(T) -> U) {
    match from.first_chunk::<LANES>() {
        Some(from) => {
            for lane in 0..LANES {
                to[lane] = convert(from[lane]);
            }
        }
        None => {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = convert(from);
            }
        }
    }
}

/// Takes some rows of a swept column over: W ← Q, Δ ← W − Q.
#[inline(always)]
fn take_lanes(swept: &[f32; LANES], column: &mut [f32], delta: &mut [f32]) {
    for ((weight, delta), &value) in column.iter_mut().zip(delta).zip(swept) {
        *delta = *weight - value;
        *weight = value;
    }
}
