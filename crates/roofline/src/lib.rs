//! A model, not a measurement: how long the stages of pruning take on a device, from their operations and bytes and the
//! device's ceilings, if every kernel reaches a given share of its ceiling. `driver plan` and the report on the kernels
//! (`cargo xtask kernels`) are both made of it.
//!
//! Operations count a multiplication and an addition as two, and one triangle of what is symmetric. Matrices are named as
//! everywhere: W [rows, columns] of a linear layer, X [tokens, columns] its inputs, H [columns, columns]. What stages hold
//! beside those is in [`room`], and that is measured.

pub mod room;

/// Columns that are selected and swept together.
pub const PANEL: f64 = 128.0;

/// What a device can do at most, by its data sheet.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// What it is called.
    pub name: String,
    /// f16 and bf16 products with f32 sums by `mma`, dense, in FLOP/s.
    pub tensor: f64,
    /// f32 products made of three of tf32, in FLOP/s.
    pub split: f64,
    /// Multiply-adds in f32, in FLOP/s.
    pub single: f64,
    /// Its memory, in bytes a second.
    pub memory: f64,
}

impl Device {
    /// NVIDIA A100 SXM with 80 GB, by its data sheet: 312 TFLOP/s of f16, 156 of tf32, 19.5 of f32, 2039 GB/s.
    pub fn a100() -> Self {
        Self { name: "A100 80 GB".to_owned(), tensor: 312e12, split: 156e12 / 3.0, single: 19.5e12, memory: 2039e9 }
    }

    /// NVIDIA H100 SXM, by its data sheet: 989 TFLOP/s of f16, 494 of tf32, 67 of f32, 3350 GB/s. It reaches its tensor
    /// peaks by `wgmma` alone; `mma`, of which these kernels are made, gives about 62 % of them (Luo et al. 2024, arXiv
    /// 2402.13499).
    pub fn h100() -> Self {
        Self {
            name: "H100".to_owned(),
            tensor: 0.62 * 989e12,
            split: 0.62 * 494e12 / 3.0,
            single: 67e12,
            memory: 3350e9,
        }
    }
}

/// Operations of the products of `tokens` inputs with W: 2 · tokens · rows · columns.
pub fn forward_operations(tokens: f64, rows: f64, columns: f64) -> f64 {
    2.0 * tokens * rows * columns
}

/// Operations of causal attention over sequences of `length` tokens, `width` = heads · columns of a head: each token looks
/// back to `length` / 2 on average, and scores and their use take 2 · width for each pair.
pub fn attention_operations(tokens: f64, length: f64, width: f64) -> f64 {
    2.0 * tokens * length * width
}

/// Operations of one triangle of H = XᵀX: tokens · columns².
pub fn hessian_operations(tokens: f64, columns: f64) -> f64 {
    tokens * columns * columns
}

/// Operations of the factor V: columns³ / 3.
pub fn factor_operations(columns: f64) -> f64 {
    columns.powi(3) / 3.0
}

/// Operations of solving a layer: rows · columns².
pub fn solve_operations(rows: f64, columns: f64) -> f64 {
    rows * columns * columns
}

/// A device whose kernels reach a share of its ceilings. All methods return seconds.
#[derive(Clone, Debug)]
pub struct Roofline<'a> {
    /// The ceilings.
    pub device: &'a Device,
    /// The share of a ceiling that kernels reach, above 0 and at most 1.
    pub share: f64,
}

impl Roofline<'_> {
    /// The slower of computing at `rate` and moving bytes.
    fn roof(&self, operations: f64, rate: f64, bytes: f64) -> f64 {
        (operations / rate).max(bytes / self.device.memory) / self.share
    }

    /// The products of 16-bit inputs with W; inputs and outputs move.
    pub fn forward(&self, tokens: f64, rows: f64, columns: f64) -> f64 {
        let bytes = 2.0 * tokens * (rows + columns);
        self.roof(forward_operations(tokens, rows, columns), self.device.tensor, bytes)
    }

    /// Causal attention; q, k, v and the output move, in 16 bits, and scores stay on the chip.
    pub fn attention(&self, tokens: f64, length: f64, width: f64) -> f64 {
        let bytes = 2.0 * tokens * 4.0 * width;
        self.roof(attention_operations(tokens, length, width), self.device.tensor, bytes)
    }

    /// H ← H + XᵀX, `chunk` tokens at a time: X in 16 bits is read once (each tile of 128 by 128 reads two strips; the
    /// caches serve all but the first reading), a triangle of H in f32 is read and written for every chunk.
    pub fn hessian(&self, tokens: f64, columns: f64, chunk: f64) -> f64 {
        let chunks = (tokens / chunk).ceil();
        let bytes = 2.0 * tokens * columns + chunks * 2.0 * 4.0 * columns * columns / 2.0;
        self.roof(hessian_operations(tokens, columns), self.device.tensor, bytes)
    }

    /// The factor; a triangle in f32 is read and written once at least.
    pub fn factor(&self, columns: f64) -> f64 {
        self.roof(factor_operations(columns), self.device.split, 2.0 * 4.0 * columns * columns / 2.0)
    }

    /// The products that bring panels up to date; every panel reads Δ so far, half of all columns on average, in f32.
    pub fn update(&self, rows: f64, columns: f64) -> f64 {
        let bytes = 4.0 * rows * columns * columns / PANEL / 2.0;
        self.roof(solve_operations(rows, columns), self.device.split, bytes)
    }

    /// The columns inside panels, one by one; W is read and written and Δ written, in f32.
    pub fn sweep(&self, rows: f64, columns: f64) -> f64 {
        self.roof(rows * columns * PANEL, self.device.single, 12.0 * rows * columns)
    }

    /// The choice of what goes, where each of `passes` reads all weights in f32.
    pub fn select(&self, rows: f64, columns: f64, passes: f64) -> f64 {
        self.roof(0.0, self.device.single, 4.0 * passes * rows * columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_computing_and_moving_decides() {
        let device = Device { name: "round".to_owned(), tensor: 1e12, split: 1e11, single: 1e10, memory: 1e9 };
        let roofline = Roofline { device: &device, share: 0.5 };
        // 2 · 1000³ operations take 2 ms, 4 MB take 4 ms; at half of the ceilings both twice as long.
        assert!((roofline.forward(1000.0, 1000.0, 1000.0) - 8e-3).abs() < 1e-12);
        // 10¹² / 3 operations at 10¹¹ are 10/3 s.
        assert!((roofline.factor(1e4) - 20.0 / 3.0).abs() < 1e-9);
        // A hundred chunks read and write 4 · 10⁶ bytes each, beside 2 · 10⁷ of X, which outlast 10¹⁰ operations.
        assert!((roofline.hessian(1e4, 1e3, 100.0) - 2.0 * 0.42).abs() < 1e-12);
        assert!((roofline.sweep(1e3, 1e3) - 2.0 * 0.0128).abs() < 1e-12);
    }
}
