//! How far a computed number may lie from the exact one: each a formula with its reason, all of them in this file.
//!
//! References to "Higham" are to N. J. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition, 2002.

/// The unit roundoff of f32: a correctly rounded operation is off by at most this share of its result.
pub const UNIT_F32: f64 = 1.0 / (1u64 << 24) as f64;

/// The unit roundoff of f64.
pub const UNIT_F64: f64 = 1.0 / (1u64 << 53) as f64;

/// γ_k = k·u / (1 − k·u): bounds the relative error that k rounded operations in a row leave (Higham, lemma 3.1).
///
/// # Panics
/// If k·u reaches one: no digit is left.
pub fn gamma(k: usize, unit: f64) -> f64 {
    let ku = k as f64 * unit;
    assert!(ku < 1.0, "{k} roundings of {unit:e}");
    ku / (1.0 - ku)
}

/// The error of one entry of an f32 product A·B with inner dimension k, in whatever order it is summed and with or
/// without fused multiply-add: γ_k · (|A|·|B|)_ij (Higham, section 3.5). `scale` is (|A|·|B|)_ij or a bound of it, such
/// as ‖a_i‖·‖b_j‖.
///
/// A bound where every addition is rounded to nearest. Tensor cores cut off sums of several products at a time (Fasi et
/// al. 2021, doi 10.7717/peerj-cs.330): of m at once, each term and the sum may lose 2u of the scale, (m + 2)·2u in all
/// and 2.5 times this for the eight of an A100. For them this is a demand, that such losses do not add up, and no bound.
pub fn gemm_tolerance(k: usize, scale: f64) -> f64 {
    gamma(k, UNIT_F32) * scale
}

/// The error of one entry of an f32 Hessian H = XᵀX over this many tokens: a product whose (|X|ᵀ|X|)_ij is at most
/// ‖x_i‖·‖x_j‖ = √(h_ii·h_jj).
pub fn hessian_tolerance(tokens: usize, diagonal_i: f64, diagonal_j: f64) -> f64 {
    gemm_tolerance(tokens, (diagonal_i * diagonal_j).sqrt())
}

/// The error of one entry of an f32 product that multiplies numbers split into two of tf32, hi·hi + hi·lo + lo·hi: what is
/// left out, lo·lo and what the split does not hold, is at most 3 · 2⁻²² of each product, which is twelve roundings of f32,
/// and each of the three parts is a sum of its own kind that ends in one more rounding. Beside that it is [`gemm_tolerance`].
pub fn split_gemm_tolerance(k: usize, scale: f64) -> f64 {
    gemm_tolerance(3 * k + 12, scale)
}

/// [`hessian_tolerance`] of f32 inputs on tensor cores: [`split_gemm_tolerance`].
pub fn hessian_split_tolerance(tokens: usize, diagonal_i: f64, diagonal_j: f64) -> f64 {
    split_gemm_tolerance(tokens, (diagonal_i * diagonal_j).sqrt())
}

/// The residual (V·Vᵀ − H)_ij of a triangular factorization of size n, as a share of √(h_ii·h_jj): γ_{n+1} / (1 −
/// γ_{n+1}), whatever the condition of H. From |H − V·Vᵀ| ≤ γ_{n+1} |V|·|Vᵀ| (Higham, theorem 10.3) and
/// (|V|·|Vᵀ|)_ij ≤ ‖v_i‖·‖v_j‖ with ‖v_i‖² ≤ h_ii / (1 − γ_{n+1}).
pub fn factor_residual(n: usize, unit: f64) -> f64 {
    let gamma = gamma(n + 1, unit);
    gamma / (1.0 - gamma)
}

/// [`factor_residual`] of an f32 factorization whose products are split into tf32, as in [`split_gemm_tolerance`]. Its
/// solves multiply by inverted diagonal blocks of 128 columns, so a bound would have these blocks' |V|·|V⁻¹| beside the
/// one; those errors have random signs and stay far below that, which this demands.
pub fn split_factor_residual(n: usize) -> f64 {
    factor_residual(3 * n + 12, UNIT_F32)
}

/// The residual (U·V − I)_ij of an inverse U ≈ V⁻¹ made by halves, U₁₂ = −U₁₁·(V₁₂·U₂₂), in split products, as a share
/// of (|U|·|V|·|U|·|V|)_ij: each of the two products of a level leaves [`split_gemm_tolerance`] of |U₁₁|·|V₁₂|·|U₂₂|,
/// which V₂₂ then multiplies; |U|·|V| ≥ I stands for what a level inherits from its halves (compare Higham, section
/// 14.2).
pub fn split_inverse_residual(n: usize) -> f64 {
    2.0 * gamma(3 * n + 12, UNIT_F32)
}

/// What agreement with the golden float64 answers means: |a − b| ≤ 1e-9 · max(1, |b|). They went through an explicit
/// inverse, so they carry κ(H)·n·u, and damping bounds κ: no eigenvalue exceeds the trace, n times the mean of the
/// diagonal, and none is below the 0.01 times that mean which was added. 256 / 0.01 · 256 · u = 7e-10.
pub fn golden(want: f64) -> f64 {
    1e-9 * want.abs().max(1.0)
}

/// The error of one value w̃ of an f32 sweep over n columns, on the way from W to the moment its column is reached, as a
/// multiple of `(|W| + |Δ_{<b}|·|V_{<b,b}|·|U_b| + |E_b|·|U_b|)_j`: 2·γ_{n+4}.
///
/// The products that bring the errors of the m columns before a panel of width w take at most m + 1 roundings for Δ·V (one
/// is W − Q), one for U_b, w + 1 for the product with it; the sweep inside the panel at most w + 3 (one of U_b, two of e).
/// With m + w ≤ n no term sees more than twice n + 4.
pub fn sweep_tolerance(columns: usize) -> f64 {
    2.0 * gamma(columns + 4, UNIT_F32)
}

/// [`sweep_tolerance`] where the products that bring the errors of earlier panels are made of numbers split into two of tf32
/// ([`split_gemm_tolerance`]): Δ·V takes 3m + 13 roundings, the product with U_b 3w + 13, the sweep at most w + 3.
pub fn sweep_split_tolerance(columns: usize) -> f64 {
    2.0 * gamma(3 * columns + 32, UNIT_F32)
}

/// How far an f32 solution may lie from the exact one. A weight q_j of row r may be off by this times
/// `‖e_r‖ · √[H⁻¹]_jj`, and a loss by twice this share of itself:
///
/// ```text
/// 4 · u/√3 · (√tokens + √columns) · mean_j(h_jj · [H⁻¹]_jj)
/// ```
///
/// A model of how rounding errors behave, not a bound; bounds of this kind are larger by factors of columns and say
/// nothing. Roundings are independent with a mean of zero (Higham & Mary 2019, doi 10.1137/18M1226312) and a standard
/// deviation of at most u/√3, so the products behind H and V leave `ε = u/√3 · (√tokens + √columns)` of √(h_ii·h_jj) in
/// H_ij. V then moves by V·up(U·δH·Uᵀ), with up(A) the upper triangle and half the diagonal of A (the differential of
/// a Cholesky factor). The Frobenius norm of U·δH·Uᵀ is about `ε · Σ_j h_jj·[H⁻¹]_jj`, the sum of the columns' variance
/// inflation factors. A row's errors e are `columns` numbers that know nothing of it, nor does what becomes of them know
/// of the column of U, of norm `√[H⁻¹]_jj`, by which it reaches q_j: each takes a √columns off, and the sum turns into the
/// mean. The 4 is for four standard deviations, since it is the largest of thousands of weights that is compared.
pub fn solve_tolerance(tokens: usize, columns: usize, mean_inflation: f64) -> f64 {
    let unit = UNIT_F32 / 3f64.sqrt();
    4.0 * unit * ((tokens as f64).sqrt() + (columns as f64).sqrt()) * mean_inflation
}

/// What rounding to a stored type adds to the error of a number: a share `unit` of it, or `smallest` where the type has no
/// normal numbers any more, half the distance of the subnormal ones. Such as [`F16`], [`BF16`], [`F32`].
pub fn stored_tolerance(tolerance: f64, want: f64, (unit, smallest): (f64, f64)) -> f64 {
    tolerance + unit * (want.abs() + tolerance) + smallest
}

/// Unit roundoff of f16, and half the distance of its subnormal numbers.
pub const F16: (f64, f64) = (1.0 / (1u64 << 11) as f64, 1.0 / (1u64 << 25) as f64);

/// Unit roundoff of bf16; its subnormal numbers are those of f32, too small to matter.
pub const BF16: (f64, f64) = (1.0 / (1u64 << 8) as f64, f64::MIN_POSITIVE);

/// A sum in f32 stored as one: nothing more is rounded.
pub const F32: (f64, f64) = (0.0, 0.0);

/// Half an ulp of the 16-bit types as a share, and what an f32 attention with a head of d columns over `keys` keys may be off
/// before its result is stored, where the scores of a query, in absolute terms summed, are at most `score` = max_j (Σ|q·k_j| /
/// √d + slope · distance), and `spread` = Σ p_j·|v_j − o|, `size` = Σ p_j·|v_j| of a column with the exact weights p:
///
/// ```text
/// (unit + e) / (1 − unit − e) · spread + γ(keys + 16) · size,   e = exp((γ(d + 8) + 8u) · score + 4 · 2⁻²² + …) − 1
/// ```
///
/// A score is a sum of d exact products, scaled, leant and shifted by a few roundings, each relative to no more than `score`;
/// an error of a score is a relative error of its weight. `ex2.approx` is off by 2⁻²² (PTX ISA), once for a weight and once
/// for each time that a larger score was met, of which no more than `rescalings`. The weight is rounded to 16 bits once, and
/// weights are divided by the sum of what they are: weights moved by a share δ_j each give Σ p_j·δ_j·(v_j − o) / (1 + Σ
/// p_j·δ_j), which is at most max|δ| / (1 − max|δ|) of the spread. Weights below the smallest 16-bit numbers are gone, at most
/// `smallest` each beside a largest one of 1, as far away as their values: `keys · smallest · reach`.
pub fn attention_tolerance(bound: &AttentionBound, (unit, smallest): (f64, f64)) -> f64 {
    let &AttentionBound { columns, keys, rescalings, score, spread, size, reach } = bound;
    let exponent = (gamma(columns + 8, UNIT_F32) + 8.0 * UNIT_F32) * score;
    let weight = (exponent + (rescalings + 1) as f64 / f64::from(1u32 << 22)).exp() * (1.0 + unit) - 1.0;
    weight / (1.0 - weight) * spread
        + gamma(keys + 16, UNIT_F32) * size
        + keys as f64 * smallest.max(2f64.powi(-126)) * reach
}

/// What [`attention_tolerance`] depends on, for one query and one column of values.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBound {
    /// Of a head.
    pub columns: usize,
    /// That the query sees.
    pub keys: usize,
    /// How often a larger score may be met: tiles of keys.
    pub rescalings: usize,
    /// The largest Σ|q·k| / √d + slope · distance.
    pub score: f64,
    /// Σ p·|v − o|.
    pub spread: f64,
    /// Σ p·|v|.
    pub size: f64,
    /// max |v − o|.
    pub reach: f64,
}

/// The error of one number of an f32 norm over n columns before it is stored. `gain` = |x − c| · factor · |scale|, `size` = (Σ|x|
/// / n) · factor · |scale| bounds what an error of the mean does, `shift` is the norm's. The mean takes n additions and a
/// division of a number that may be much smaller than |x|; the mean square n + 3 operations and its root half of that and
/// three more; the rest is five. Σ (x − c)² is least at the exact mean, so an error of the mean enters the factor squared,
/// which the 2 covers.
pub fn norm_tolerance(columns: usize, gain: f64, size: f64, shift: f64) -> f64 {
    2.0 * gamma(columns + 16, UNIT_F32) * (gain + size) + 2.0 * UNIT_F32 * (gain + shift.abs())
}

/// The error of one number of an f32 rotation before it is stored, of a head of d columns with a norm first: two products and a
/// sum of numbers that carry [`norm_tolerance`]. `size` = |x_j·cos| + |x_{j+d/2}·sin|, after the norm.
pub fn rotation_tolerance(columns: usize, size: f64) -> f64 {
    (2.0 * gamma(columns + 16, UNIT_F32) + 4.0 * UNIT_F32) * size
}

/// The error of f(x) · up in f32 before it is stored, where x and up are each the sum of two numbers: 16u · |x| · |up|, with up = 1
/// where there is none. x and up take a rounding each, and no f has a slope above 1.2. SiLU is four roundings (`expf` two), GELU
/// two of `erff` and four more, each of numbers no larger than |x|; GELU by tanh rounds the argument t of its exponential five
/// times, which σ′(t)·|t| ≤ 0.23 makes harmless. Everything is relative to x and not to f(x): f cancels where x is negative.
pub fn activation_tolerance(x: f64, up: f64) -> f64 {
    16.0 * UNIT_F32 * x.abs() * up.abs()
}

/// The error of a loss over logits whose powers are summed by threads in f32, each four at a time in `steps` steps, and by thread
/// blocks in f64. All terms are positive, so relative errors of powers are one of the sum, and an absolute one of its logarithm: a
/// power is off by two units of `expf` and by the rounding of its argument, which is at most `spread`, the distance of the
/// largest and the smallest logit; each step rescales by such a power and adds.
pub fn loss_tolerance(steps: usize, spread: f64) -> f64 {
    gamma(8 * (steps + 1), UNIT_F32) + 2.0 * (steps + 1) as f64 * UNIT_F32 * spread
}

/// How far two f32 forward passes of `products` matrix products in a row, of up to `columns` terms each, may be apart, as a share
/// of the spread of what they compute: each product adds errors like a random walk of √columns steps of one unit roundoff, on
/// both sides; the worst of thousands of entries lies five standard deviations out.
pub fn forward_tolerance(products: usize, columns: usize) -> f64 {
    2.0 * 5.0 * products as f64 * (columns as f64).sqrt() * UNIT_F32
}

/// What comes to [`forward_tolerance`] where one of the two rounds what it computes to a narrower type, `roundings` times in a row:
/// each moves every number by at most one unit of itself, at random; the worst entry lies five standard deviations out, and what
/// a block changes for one layer, softmax and activations may double for the next.
pub fn rounded_forward_tolerance(roundings: usize, unit: f64) -> f64 {
    2.0 * 5.0 * (roundings as f64).sqrt() * unit
}

/// How the sweep of a row answers when its inputs X are off at random, as variances of numbers that are added to the errors e of its
/// columns and to the logarithms of their pivots: inputs by δX, whose numbers are independent and of the same size in all tokens of a
/// column, and entries of H by `hessian` · √(h_ii · h_jj) beside that, one standard deviation.
///
/// U = V⁻¹ moves by −up(M)·U with M = U·δH·Uᵀ and up as in [`solve_tolerance`]: where e_i is brought from column to column, it is as if
/// f = e·up(M) were added to e. Of δH = XᵀδX + δXᵀX, M_ik is two products of a column of X·Uᵀ, which has norm 1, with one of δX·Uᵀ, whose
/// numbers have a variance of κ / tokens with κ_k = Σ_j U_kj² ‖δx_j‖²; a δH that is off by itself leaves `hessian`² · ι_i · ι_k with
/// ι_k = Σ_j U_kj² h_jj:
///
/// ```text
/// variance of f_k = (Σ e_i² · κ_k + Σ e_i² κ_i) / tokens + hessian² · ι_k · Σ e_i² ι_i,   over i up to k
/// ```
///
/// A pivot U_kk moves by M_kk / 2 of itself. What a weight w̃_j has been given is off by a variance of Σ_k f_k² U_kj². That columns which
/// go swallow a part of it, since they end at zero whatever reaches them, is left out.
#[derive(Clone, Copy, Debug)]
pub struct Turned {
    /// Rows of X.
    pub tokens: usize,
    /// One standard deviation of an entry of H, as a share.
    pub hessian: f64,
}

impl Turned {
    /// The variance of f_k, for κ_k and ι_k of its column and Σ e_i², Σ e_i² κ_i, Σ e_i² ι_i.
    pub fn error(&self, (moved, inflation): (f64, f64), [squares, by_moved, by_inflation]: [f64; 3]) -> f64 {
        (squares * moved + by_moved) / self.tokens as f64 + self.hessian.powi(2) * inflation * by_inflation
    }

    /// The variance of the share by which U_kk moves, for κ_k and ι_k.
    pub fn pivot(&self, (moved, inflation): (f64, f64)) -> f64 {
        moved / self.tokens as f64 + (self.hessian * inflation).powi(2) / 4.0
    }
}
