//! Inputs for tests, the same for the same seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random numbers that depend on nothing but the seed.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Standard normal (Box & Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t with four degrees of freedom: tails as heavy as those of a transformer's activations. A χ² of four
    /// degrees is −2 ln(u₁·u₂).
    pub fn student_t4(&mut self) -> f64 {
        let chi_squared = -2.0 * ((1.0 - self.uniform()) * (1.0 - self.uniform())).ln();
        self.normal() / (chi_squared / 4.0).sqrt()
    }

    /// A whole number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// `count` different whole numbers below `end`, or all of them where that is fewer.
    pub fn choose(&mut self, count: usize, end: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..end).collect();
        for position in 0..count.min(end) {
            let other = position + self.below(end - position);
            all.swap(position, other);
        }
        all.truncate(count);
        all
    }
}

/// A linear layer and what it reads. Matrices are row-major.
#[derive(Debug, Clone)]
pub struct Layer {
    /// W [rows, columns].
    pub weight: Vec<f32>,
    /// X [tokens, columns].
    pub inputs: Vec<f32>,
}

/// Correlated, heavy-tailed inputs with two outlier features and `dead` all-zero ones, as in `golden/make_prune.py`
/// (the same distribution, not the same numbers), and weights whose rows differ in scale.
pub fn layer(seed: u64, rows: usize, columns: usize, tokens: usize, dead: usize) -> Layer {
    let mut random = Random::new(seed);
    let rank = (columns / 2).max(1);
    let basis: Vec<f64> = (0..rank * columns).map(|_| random.normal() / (rank as f64).sqrt()).collect();
    let mut inputs = vec![0.0; tokens * columns];
    for token in inputs.chunks_mut(columns) {
        for direction in basis.chunks(columns) {
            let strength = random.student_t4();
            token.iter_mut().zip(direction).for_each(|(x, d)| *x += strength * d);
        }
        token.iter_mut().for_each(|x| *x += 0.3 * random.normal());
    }
    let mut scale: Vec<f64> = (0..columns).map(|_| (0.7 * random.normal()).exp()).collect();
    random.choose(2, columns).into_iter().for_each(|column| scale[column] *= 12.0);
    random.choose(dead, columns).into_iter().for_each(|column| scale[column] = 0.0);
    let inputs = inputs.iter().enumerate().map(|(i, x)| (x * scale[i % columns]) as f32).collect();
    let mut weight = Vec::with_capacity(rows * columns);
    for _ in 0..rows {
        let scale = 0.05 * (0.4 * random.normal()).exp();
        weight.extend((0..columns).map(|_| (random.normal() * scale) as f32));
    }
    Layer { weight, inputs }
}

/// A symmetric positive definite matrix [n, n] with eigenvalues from 1 down to 1/`condition` in equal ratios, turned by
/// Householder reflections in random directions. Exactly symmetric.
pub fn positive_definite(seed: u64, n: usize, condition: f64) -> Vec<f64> {
    let mut random = Random::new(seed);
    let mut matrix = vec![0.0; n * n];
    for j in 0..n {
        let share = if n > 1 { j as f64 / (n - 1) as f64 } else { 0.0 };
        matrix[j * n + j] = condition.powf(-share);
    }
    // A few reflections already spread every eigenvector over all coordinates; n of them would take n times as long.
    for _ in 0..8 {
        let direction: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let squared: f64 = direction.iter().map(|d| d * d).sum();
        // A − 2/‖d‖² · (d·pᵀ + p·dᵀ) + 4·(dᵀp)/‖d‖⁴ · d·dᵀ, with p = A·d: the reflection from both sides.
        let image: Vec<f64> =
            matrix.chunks(n).map(|row| row.iter().zip(&direction).map(|(a, d)| a * d).sum()).collect();
        let overlap: f64 = direction.iter().zip(&image).map(|(d, p)| d * p).sum();
        for i in 0..n {
            for j in 0..=i {
                let cross = direction[i] * image[j] + image[i] * direction[j];
                let change = 4.0 * overlap / (squared * squared) * direction[i] * direction[j] - 2.0 / squared * cross;
                matrix[i * n + j] += change;
                matrix[j * n + i] = matrix[i * n + j];
            }
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflections_keep_trace_and_frobenius_norm() {
        let (n, condition) = (40, 1e6);
        let matrix = positive_definite(7, n, condition);
        let eigenvalues = || (0..n).map(|j| f64::powf(condition, -(j as f64) / (n - 1) as f64));
        let trace: f64 = (0..n).map(|j| matrix[j * n + j]).sum();
        let squared: f64 = matrix.iter().map(|a| a * a).sum();
        // Eight two-sided reflections of n² entries each, a handful of roundings per entry.
        let tolerance = 8.0 * 8.0 * n as f64 * crate::tolerance::UNIT_F64;
        assert!((trace - eigenvalues().sum::<f64>()).abs() < tolerance * trace);
        assert!((squared - eigenvalues().map(|e| e * e).sum::<f64>()).abs() < tolerance * squared);
        let off_diagonal = (1..n).filter(|j| matrix[*j].abs() > 1e-4).count();
        assert!(off_diagonal > n / 2, "the eigenvectors are spread");
    }

    #[test]
    fn a_layer_is_the_same_every_time_and_has_its_dead_columns() {
        let (columns, tokens) = (24, 30);
        let layers = [layer(3, 5, columns, tokens, 4), layer(3, 5, columns, tokens, 4)];
        assert_eq!(layers[0].inputs, layers[1].inputs);
        let dead = (0..columns).filter(|&j| (0..tokens).all(|t| layers[0].inputs[t * columns + j] == 0.0)).count();
        assert_eq!(dead, 4);
        assert_ne!(layers[0].weight, layer(4, 5, columns, tokens, 4).weight);
    }
}
