//! What cannot be pruned ends in an error that says why, and a Hessian that is only nearly good is damped more.

mod given;

use given::given_hessian;
use linalg::MatrixRef;
use prune::{
    Disconnected, Error, Factor, Hessian, Pattern, RAISES, Selection, Settings, Solo, Weight, magnitude, run_shards,
    sparsegpt, wanda,
};
use reference::Matrix;
use testkit::assert_close;
use testkit::tolerance::{UNIT_F32, factor_residual};

/// The identity with `coupling` between columns `i` and `j`: its smallest eigenvalue is 1 − coupling.
fn coupled(n: usize, i: usize, j: usize, coupling: f32) -> Vec<f32> {
    let mut values = vec![0.0; n * n];
    (0..n).for_each(|k| values[k * n + k] = 1.0);
    values[i * n + j] = coupling;
    values[j * n + i] = coupling;
    values
}

#[test]
fn damping_is_raised_tenfold_until_it_is_enough() {
    // Sizes on both sides of the recursion of the factorization, the bad column near the end, in the middle, in front.
    for (n, i, j) in [(2, 0, 1), (64, 3, 60), (200, 0, 199), (200, 100, 150), (300, 198, 199), (300, 1, 2)] {
        for (coupling, raises) in [(0.5, 0), (1.05, 1), (1.5, 2), (5.0, 3)] {
            let what = format!("{n} columns, {coupling} between {i} and {j}");
            let values = coupled(n, i, j, coupling);
            let factor = Factor::new(given_hessian(n, &values), 0.01, 128).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(factor.raises(), raises, "{what}");
            let damping = 0.01 * 10f64.powi(raises as i32);
            assert!((factor.damping() / damping - 1.0).abs() < 1e-12, "{what}: {}", factor.damping());
            // The failed attempts were made in the same memory: nothing of them may be left.
            let upper = Matrix::new(n, n, (0..n * n).map(|at| f64::from(factor.at(at / n, at % n))).collect());
            let want: Vec<f64> =
                (0..n * n).map(|at| f64::from(values[at]) + if at / n == at % n { damping } else { 0.0 }).collect();
            assert_close(&what, upper.times(&upper.transposed()).values(), &want, |_| {
                // Diagonals are all 1 + damping, the addition of which is one more rounding.
                (factor_residual(n, UNIT_F32) + UNIT_F32) * (1.0 + damping)
            });
        }
    }
}

#[test]
fn after_three_raises_the_column_is_named() {
    for (n, i, j) in [(2, 0, 1), (200, 0, 199), (300, 130, 140)] {
        match Factor::new(given_hessian(n, &coupled(n, i, j, 50.0)), 0.01, 128) {
            Err(Error::Pivot { column, pivot, damping, raises }) => {
                // From the last column to the first, what is left of column i when j is eliminated: 11 − 50²/11.
                assert_eq!((column, raises), (i, RAISES));
                assert!((damping - 10.0).abs() < 1e-12 && (pivot / (11.0 - 2500.0 / 11.0) - 1.0).abs() < 1e-5);
            }
            other => panic!("{n} columns: {:?}", other.map(|factor| factor.damping())),
        }
    }
    let error = Factor::new(given_hessian(3, &coupled(3, 1, 2, 50.0)), 0.01, 128).map(|_| ()).expect_err("indefinite");
    let text = error.to_string();
    assert!(text.contains("column 1") && text.contains("raised 3 times"), "{text}");
}

#[test]
fn a_hessian_that_is_not_finite_is_refused() {
    for (value, column) in [(f32::NAN, 5), (f32::INFINITY, 0), (f32::NEG_INFINITY, 69)] {
        let n = 70;
        let mut values = coupled(n, 0, 1, 0.0);
        values[column * n + column] = value;
        match Factor::new(given_hessian(n, &values), 0.01, 128) {
            Err(Error::NotFinite { column: named, value: found }) => {
                assert_eq!((named, found.to_bits()), (column, value.to_bits()));
            }
            other => panic!("{value}: {:?}", other.map(|factor| factor.damping())),
        }
    }
    for value in [f32::NAN, f32::INFINITY] {
        // Off the diagonal no token can leave one without leaving it on the diagonal too; still, no factor comes of it.
        let result = Factor::new(given_hessian(70, &coupled(70, 3, 68, value)), 0.01, 128);
        assert!(matches!(result, Err(Error::Pivot { column: 3, .. })), "{value}: {:?}", result.map(|f| f.damping()));
    }
}

#[test]
fn inputs_that_are_not_finite_or_overflow_are_refused() {
    for value in [f32::NAN, f32::INFINITY, 1e30] {
        let mut inputs = vec![1.0; 6 * 4];
        inputs[9] = value;
        let mut hessian = Hessian::new(4);
        hessian.accumulate(MatrixRef::new(&inputs, 6, 4));
        assert!(matches!(Factor::new(hessian, 0.01, 128), Err(Error::NotFinite { column: 1, .. })), "{value}");
    }
}

#[test]
fn groups_must_divide_the_columns_and_the_panels() {
    let n = 12;
    let pattern = Pattern::NOfM { keep: 2, group: 5 };
    let settings = Settings { selection: Selection::Pattern(pattern), bits: None };
    let values = vec![1.0; 3 * n];
    let mut weight = Weight::from_row_major(&values, 3, n);
    let refused = |error: Error| matches!(error, Error::Groups { group: 5, columns: 12 });
    for panel_width in [5, 12] {
        let factor = Factor::new(given_hessian(n, &coupled(n, 0, 1, 0.5)), 0.01, panel_width).expect("definite");
        assert!(refused(sparsegpt(&mut weight, &factor, &settings, &Solo).map(|_| ()).expect_err("12 columns")));
    }
    assert!(refused(magnitude(&mut weight, pattern, &Solo).map(|_| ()).expect_err("12 columns")));
    assert!(refused(wanda(&mut weight, pattern, &vec![1.0; n]).map(|_| ()).expect_err("12 columns")));
    assert_eq!(weight.to_row_major(), values, "nothing was touched");

    let settings = Settings { selection: Selection::Pattern(Pattern::NOfM { keep: 2, group: 4 }), bits: None };
    let factor = Factor::new(given_hessian(n, &coupled(n, 0, 1, 0.5)), 0.01, 6).expect("definite");
    let result = sparsegpt(&mut weight, &factor, &settings, &Solo);
    assert!(matches!(result, Err(Error::Groups { group: 4, .. })), "groups of 4 straddle panels of 6");
}

#[test]
fn one_shards_error_is_everybodys_and_nobody_waits() {
    for rank in [0, 2] {
        let result = run_shards(3, |collective| {
            let coupling = if collective.rank() == rank { f32::NAN } else { 0.0 };
            if collective.rank() == rank && rank > 0 {
                return Err(Error::NotFinite { column: rank, value: coupling });
            }
            let factor = Factor::shared(given_hessian(8, &coupled(8, 0, 0, coupling)), 0.01, 4, collective)?;
            Ok(factor.columns())
        });
        match result {
            Err(Error::NotFinite { column, .. }) => assert_eq!(column, rank),
            other => panic!("shard {rank} fails, and what is heard is {other:?}"),
        }
    }
    let result = run_shards(2, |collective| if collective.rank() == 1 { Ok(()) } else { Err(Disconnected) });
    assert_eq!(result, Err(Disconnected));
}

#[test]
fn a_shard_without_rows_takes_part() {
    let n = 8;
    let settings = Settings { selection: Selection::Pattern(Pattern::Unstructured { sparsity: 0.5 }), bits: Some(3) };
    let masks = run_shards(5, |collective| {
        let factor = Factor::shared(given_hessian(n, &coupled(n, 0, 1, 0.5)), 0.01, 4, collective)?;
        let rows = usize::from(collective.rank() == 3);
        let mut weight = Weight::from_row_major(&vec![1.0f32; rows * n], rows, n);
        Ok::<_, Error>(sparsegpt(&mut weight, &factor, &settings, collective)?.keep.dropped())
    });
    assert_eq!(masks.expect("definite"), [0, 0, 0, 4, 0]);
}

#[test]
fn rows_too_small_for_a_grid_of_their_own_get_the_smallest() {
    // Spans from the least subnormal to what bits = 2 divides into subnormal steps; the inputs are orthogonal, so nothing
    // is corrected and every weight goes to the nearest point.
    let smallest = f32::MIN_POSITIVE;
    let least = f32::from_bits(1);
    let rows = [
        [least, 0.0, 0.0, 0.0],
        [least, -least, 3.0 * least, 0.0],
        [1e-40, -1e-41, -3e-39, 2e-38],
        [0.6 * smallest, -0.6 * smallest, 1.4 * smallest, -smallest],
        [0.0, 0.0, 0.0, 0.0],
    ];
    let values = rows.concat();
    let mut inputs = vec![0.0; 16];
    (0..4).for_each(|j| inputs[j * 4 + j] = 1.0);
    let mut hessian = Hessian::new(4);
    hessian.accumulate(MatrixRef::new(&inputs, 4, 4));
    let factor = Factor::new(hessian, 0.01, 128).expect("a multiple of the identity");
    for bits in 2..=8 {
        let mut weight = Weight::from_row_major(&values, rows.len(), 4);
        let settings =
            Settings { selection: Selection::Pattern(Pattern::Unstructured { sparsity: 0.0 }), bits: Some(bits) };
        sparsegpt(&mut weight, &factor, &settings, &Solo).expect("a solution");
        let solved: Vec<f64> = weight.to_row_major().into_iter().map(f64::from).collect();
        let settings = reference::Settings {
            selection: reference::Selection::Unstructured { sparsity: 0.0 },
            panel_width: 128,
            damping: 0.01,
            bits: Some(bits),
        };
        let original = Matrix::from_f32(rows.len(), 4, &values);
        let hessian = reference::hessian(&Matrix::from_f32(4, 4, &inputs));
        let want = reference::prune(&original, &hessian, &settings).expect("a solution");
        // Steps are powers of two, so nothing is rounded but to the grid.
        assert_eq!(solved, want.weight.values(), "{bits} bits");
        for (solved, value) in solved.iter().zip(&values) {
            let step = f64::from(smallest);
            assert!(
                solved % step == 0.0 && (solved - f64::from(*value)).abs() <= step / 2.0,
                "{bits} bits: {solved:e}"
            );
        }
    }
}
