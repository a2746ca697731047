//! The factors are what they are called, for chosen condition numbers, and say which column stops them.

use reference::{Matrix, cholesky, factor, inverse, inverse_factor, invert_upper};
use testkit::generate::positive_definite;
use testkit::{assert_close, tolerance};

const SIZES: [usize; 5] = [1, 2, 7, 33, 65];

#[test]
fn the_factors_multiply_to_the_matrix() {
    for n in SIZES {
        for condition in [1.0, 1e3, 1e6] {
            let matrix = Matrix::new(n, n, positive_definite(n as u64, n, condition));
            let share = tolerance::factor_residual(n, tolerance::UNIT_F64);
            // The residual is multiplied out in f64 too, which may cost as much again.
            let allowed = |i: usize| 2.0 * share * (matrix[(i / n, i / n)] * matrix[(i % n, i % n)]).sqrt();
            let lower = cholesky(&matrix).expect("positive definite");
            assert_close("L·Lᵀ", lower.times(&lower.transposed()).values(), matrix.values(), allowed);
            let upper = factor(&matrix).expect("positive definite");
            assert_close("V·Vᵀ", upper.times(&upper.transposed()).values(), matrix.values(), allowed);
            for (i, j) in (0..n).flat_map(|i| (0..i).map(move |j| (i, j))) {
                assert_eq!((upper[(i, j)], lower[(j, i)]), (0.0, 0.0), "triangles");
            }
        }
    }
}

#[test]
fn the_inverse_factor_is_the_inverse_of_the_factor() {
    for n in SIZES {
        for condition in [1.0, 1e3, 1e6] {
            let matrix = Matrix::new(n, n, positive_definite(n as u64, n, condition));
            let inverted = invert_upper(&factor(&matrix).expect("positive definite"));
            let got = inverse_factor(&matrix).expect("positive definite");
            // ‖H⁻¹‖ = condition. Inverting and factoring each disturb H⁻¹ by a share n·γ_n·condition of its norm, and the
            // factor of a matrix disturbed by a share ε moves by up to condition·ε (Higham, theorem 10.8).
            let norm = condition.sqrt();
            let allowed = 2.0 * n as f64 * tolerance::gamma(n, tolerance::UNIT_F64) * condition * norm;
            assert_close("U = V⁻¹", got.values(), inverted.values(), |_| allowed);
            let identity = matrix.times(&inverse(&matrix).expect("positive definite"));
            for i in 0..n {
                for j in 0..n {
                    let want = f64::from(u8::from(i == j));
                    assert!((identity[(i, j)] - want).abs() <= allowed * norm, "H·H⁻¹ at ({i}, {j})");
                }
            }
        }
    }
}

#[test]
fn a_pivot_that_is_not_positive_is_named() {
    let mut matrix = Matrix::new(6, 6, positive_definite(1, 6, 10.0));
    for i in 0..6 {
        for j in (0..6).filter(|&j| i == 2 || j == 2 || i == j) {
            matrix[(i, j)] = f64::from(u8::from(i == j));
        }
    }
    matrix[(2, 2)] = -3.0;
    for error in [factor(&matrix).expect_err("indefinite"), cholesky(&matrix).expect_err("indefinite")] {
        assert_eq!((error.column, error.pivot), (2, -3.0));
    }
    matrix[(2, 2)] = f64::NAN;
    assert_eq!(factor(&matrix).expect_err("not a number").column, 2);
    assert_eq!(inverse_factor(&matrix).expect_err("not a number").column, 2);
}
