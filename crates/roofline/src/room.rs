//! Bytes that the stages of pruning take of a device beside what they are given, as they allocate them: `prune-cuda` splits its
//! products by what is here, and `tests/room.rs` there holds the rest against what a device counts.

/// Every allocation takes multiples of this.
const GRAIN: u64 = 512;

/// Columns of a block of the factor, and rows and columns of a tile of a product.
const TILE: usize = 128;

/// Rows of its operands that a product of f32 takes at a time along its depth.
const F32_DEPTH: usize = 16;

/// Tokens that the Hessian of 16-bit inputs takes at a time.
const SLAB_TOKENS: usize = 32;

/// Thread blocks that run at one time on the device that launches are laid out for: two on each of the 108
/// multiprocessors of an A100. A constant, so that splits, and with them the order of sums, are the same on all devices.
pub const RESIDENT: u32 = 216;

/// The fewest slabs along the depth for which a split pays: its sums are written, read and added once more.
const FEWEST_SLABS: u32 = 16;

/// The most splits: their sums are that many times as large as the result.
const MOST_SPLITS: u32 = 32;

/// Columns up to which the factor needs no products whose depth is split: 16 blocks.
const ONE_BY_ONE: usize = 16 * TILE;

/// The histograms of a selection, three of 2048 counts, and its state: u64.
const SELECTION: usize = 8 * (3 * 2048 + 8);

/// What an allocation of so many bytes takes: none is empty.
pub fn allocated(bytes: u64) -> u64 {
    bytes.max(1).checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX)
}

/// The same of `count` elements of `size` bytes each.
fn elements(count: usize, size: usize) -> u64 {
    allocated((count as u64).saturating_mul(size as u64))
}

/// Into how many parts of the depth a product is split, so that there is work for all multiprocessors.
pub fn splits(tiles: u64, slabs: u32) -> u32 {
    let wanted = u64::from(RESIDENT).div_ceil(tiles.max(1)).min(u64::from(MOST_SPLITS)) as u32;
    let splits = wanted.min(slabs / FEWEST_SLABS).max(1);
    // No split without work: parts are of equal size but for the last.
    slabs.div_ceil(slabs.div_ceil(splits).max(1)).max(1)
}

/// The sums of a product [rows, columns] that is split: f32 [splits, rows, columns to the next multiple of 4].
fn partial(tiles: usize, slabs: usize, rows: usize, columns: usize) -> u64 {
    match splits(tiles as u64, u32::try_from(slabs).unwrap_or(u32::MAX)) {
        1 => 0,
        splits => elements(rows.saturating_mul(columns.next_multiple_of(4)), 4 * splits as usize),
    }
}

/// Tiles of the upper triangle of a matrix [columns, columns].
fn upper(columns: usize) -> usize {
    let across = columns.div_ceil(TILE);
    across * (across + 1) / 2
}

/// Beside X [tokens, columns], of 16 bits or f32, and H: the sums of splits.
pub fn accumulate(tokens: usize, columns: usize, is_f32: bool) -> u64 {
    let slab = if is_f32 { F32_DEPTH } else { SLAB_TOKENS };
    let partial = partial(upper(columns), tokens.div_ceil(slab), columns, columns);
    // The kernel for 16 bits is given some memory in any case.
    if is_f32 { partial } else { partial.max(elements(1, 4)) }
}

/// What stays beside V: U_kk f32 [columns / 128 rounded up, 128, 128] of its diagonal blocks, and a byte a column that says
/// whether it is dead.
pub fn factored(columns: usize) -> u64 {
    elements(columns.div_ceil(TILE) * TILE * TILE, 4) + elements(columns, 1)
}

/// Beside H [columns, columns] while it becomes V: what stays, the diagonal of H in f32, four numbers of the matrix, and of
/// wide ones the sums of a split product, which are not worth counting: fewer than 2 · [`RESIDENT`] tiles of f32, of which a
/// triangle takes the square.
pub fn factor(columns: usize) -> u64 {
    let sums = if columns > ONE_BY_ONE { elements(4 * RESIDENT as usize * TILE * TILE, 4) } else { 0 };
    // A summary, whether it failed, and its pivot.
    factored(columns) + elements(columns, 4) + 3 * GRAIN + sums
}

/// How the columns of a layer are handled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panels {
    /// So many at a time, 32, 64 or 128: an unstructured selection.
    Of(usize),
    /// Whole groups of so many columns, each in a power of two of slots, at least 4, of 128.
    Groups(usize),
}

impl Panels {
    /// Columns of a panel.
    pub fn width(self) -> usize {
        match self {
            Self::Of(width) => width.max(1),
            Self::Groups(group) => TILE / group.next_power_of_two().clamp(4, TILE) * group.max(1),
        }
    }
}

/// Beside W f32 [rows, columns] and V while a layer is solved: a bit a weight in words of 32 for what stays, f64 `[rows]` of
/// losses, the selection's histograms, with `grid` two f32 `[rows]`; where there are several panels Δ f32 [rows, columns before
/// the last panel], Δ·V and W̃ f32 [rows, 128] of one panel, and the sums of Δ·V where its depth is split; and U_b of panels
/// that are no parts of blocks.
pub fn solve(rows: usize, columns: usize, panels: Panels, grid: bool) -> u64 {
    let width = panels.width();
    let before = columns.saturating_sub(1) / width * width;
    let several = if columns > width { rows } else { 0 };
    let own = if TILE.is_multiple_of(width) { 0 } else { elements(columns.div_ceil(width) * TILE * TILE, 4) };
    let depths = (width..=before).step_by(width);
    let sums = depths.map(|depth| partial(rows.div_ceil(TILE), depth.div_ceil(F32_DEPTH), rows, width)).max();
    selection(rows, columns)
        + GRAIN
        + elements(rows, 8)
        + if grid { 2 * elements(rows, 4) } else { 0 }
        + elements(rows.saturating_mul(before.next_multiple_of(4)), 4)
        + 2 * elements(several * TILE, 4)
        + own
        + sums.unwrap_or(0)
}

/// Beside W f32 [rows, columns] while a layer is pruned without correction: a bit a weight for what stays, and the selection's
/// histograms.
pub fn selection(rows: usize, columns: usize) -> u64 {
    elements(rows * columns.div_ceil(32), 4) + allocated(SELECTION as u64) + elements(RESIDENT as usize, 4) + GRAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_layer_takes_is_what_its_buffers_do() {
        // fc2 of OPT-175B on one device: Δ and a panel's sums in f32, one bit a weight, 8 bytes a row of losses.
        let (rows, columns) = (12288, 49152);
        let bits = rows * columns / 8;
        let taken = rows * ((columns - 128) * 4 + 2 * 128 * 4 + 8) + bits;
        let histograms = 49152 + 512 + 1024 + 512 + 512;
        // 96 tiles of rows: no panel is split into more than 3 parts.
        let found = solve(rows, columns, Panels::Of(128), false);
        let sums = found - (taken + histograms) as u64;
        assert_eq!(sums, 3 * (rows * 128 * 4) as u64);
        assert_eq!(factored(columns), (columns * 128 * 4 + columns) as u64);
    }

    #[test]
    fn panels_are_whole_groups() {
        for (group, width) in [(4, 128), (2, 64), (3, 96), (8, 128), (5, 80), (32, 128), (1, 32)] {
            assert_eq!(Panels::Groups(group).width(), width, "{group}");
        }
    }
}
