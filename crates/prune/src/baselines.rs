//! The baselines: they choose what goes and leave the rest as it is.

use crate::select::{drop_smallest, drop_smallest_of_group, key};
use crate::{Collective, Error, Mask, Pattern, Weight};
use rayon::prelude::*;

/// Drops the smallest |w|: `floor(rows · columns · sparsity)` of the whole layer, over the rows of all shards, equal ones in
/// order of (row, column); or n:m in every group.
///
/// # Errors
/// As [`crate::sparsegpt`].
pub fn magnitude(weight: &mut Weight, pattern: Pattern, collective: &dyn Collective) -> Result<Mask, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let mut mask = Mask::from_fn(rows, columns, |_, _| true);
    match pattern {
        Pattern::Unstructured { sparsity } => {
            let mut all_rows = [rows as u64];
            collective.sum_u64(&mut all_rows)?;
            let count = (all_rows[0] as f64 * columns as f64 * sparsity) as u64;
            let keys: Vec<u32> = weight.values().par_iter().map(|&w| key(w)).collect();
            drop_smallest(&keys, rows, count, mask.columns_of_mut(0..columns), collective)?;
        }
        Pattern::NOfM { keep, group } => {
            mask = of_every_group(weight, keep, group, |w, _| w.abs())?;
        }
    }
    apply(weight, &mask);
    Ok(mask)
}

/// Drops the smallest |w| · ‖x_j‖: `floor(columns · sparsity)` of every row, equal ones in order of columns; or n:m in
/// every group. `norms` holds ‖x_j‖ of every column (Sun et al. 2023, arXiv 2306.11695, equation 1).
///
/// # Errors
/// [`Error::Groups`] if n:m groups do not divide the columns.
///
/// # Panics
/// If there are not as many norms as columns.
pub fn wanda(weight: &mut Weight, pattern: Pattern, norms: &[f32]) -> Result<Mask, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    assert_eq!(norms.len(), columns, "a norm for every column");
    let mask = match pattern {
        Pattern::Unstructured { sparsity } => {
            let count = (columns as f64 * sparsity) as usize;
            let dropped: Vec<Vec<usize>> = (0..rows)
                .into_par_iter()
                .map(|row| {
                    let score = |j: usize| key(weight.values()[j * rows + row] * norms[j]);
                    let mut order: Vec<usize> = (0..columns).collect();
                    if count > 0 && count < columns {
                        order.select_nth_unstable_by_key(count - 1, |&j| (score(j), j));
                    }
                    order.truncate(count);
                    order
                })
                .collect();
            let mut mask = Mask::from_fn(rows, columns, |_, _| true);
            let keep = mask.columns_of_mut(0..columns);
            for (row, dropped) in dropped.into_iter().enumerate() {
                for j in dropped {
                    keep[j * rows + row] = false;
                }
            }
            mask
        }
        Pattern::NOfM { keep, group } => of_every_group(weight, keep, group, |w, j| w.abs() * norms[j])?,
    };
    apply(weight, &mask);
    Ok(mask)
}

/// n:m by `score(w, column)`.
fn of_every_group(
    weight: &Weight,
    stay: usize,
    group: usize,
    score: impl Fn(f32, usize) -> f32 + Sync,
) -> Result<Mask, Error> {
    let (rows, columns) = (weight.rows(), weight.columns());
    if !columns.is_multiple_of(group) {
        return Err(Error::Groups { group, columns });
    }
    let mut mask = Mask::from_fn(rows, columns, |_, _| true);
    let groups = mask.columns_of_mut(0..columns).par_chunks_exact_mut((group * rows).max(1));
    groups.enumerate().for_each(|(number, keep)| {
        let (mut scores, mut kept) = (vec![[0f32]; group], vec![[0u32]; group]);
        for row in 0..rows {
            for (c, scores) in scores.iter_mut().enumerate() {
                let j = number * group + c;
                *scores = [score(weight.values()[j * rows + row], j)];
            }
            drop_smallest_of_group(&scores, stay, &mut kept);
            for (c, &[kept]) in kept.iter().enumerate() {
                keep[c * rows + row] = kept != 0;
            }
        }
    });
    Ok(mask)
}

/// Sets to zero what is not kept.
fn apply(weight: &mut Weight, mask: &Mask) {
    let keep = mask.columns_of(0..mask.columns());
    weight.values_mut().par_iter_mut().zip(keep).with_min_len(1 << 12).for_each(|(w, &keep)| {
        if !keep {
            *w = 0.0;
        }
    });
}
