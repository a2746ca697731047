//! Choices, grids and baselines on examples small enough to work out by hand.

use reference::{
    Grid, Matrix, Selection, Settings, dropped, effective_panel_width, magnitude, n_of_m, prune, smallest, wanda,
};

fn gone(keep: &[bool]) -> Vec<usize> {
    (0..keep.len()).filter(|&position| !keep[position]).collect()
}

#[test]
fn equal_scores_go_in_order() {
    assert_eq!(smallest(&[1.0, 0.0, 1.0, 0.0, 0.0], 4), [1, 3, 4, 0]);
    assert_eq!(dropped(7, 0.5), 3);
    assert_eq!(dropped(5, 0.0), 0);
    let scores = Matrix::new(2, 6, vec![1.0, 1.0, 1.0, 3.0, 2.0, 1.0, 5.0, 4.0, 5.0, 0.0, 0.0, 0.0]);
    assert_eq!(gone(&n_of_m(&scores, 1, 3)), [0, 1, 4, 5, 6, 7, 9, 10]);
    assert_eq!(gone(&n_of_m(&scores, 2, 4)), [0, 1, 5, 7, 9, 10], "of a last group of two, one goes");
}

#[test]
fn groups_do_not_straddle_panels() {
    let width = |group, panel_width| effective_panel_width(&Selection::NOfM { keep: 1, group }, panel_width);
    assert_eq!([width(4, 128), width(7, 128), width(3, 128), width(16, 7), width(7, 7)], [128, 126, 126, 16, 7]);
    assert_eq!(effective_panel_width(&Selection::Unstructured { sparsity: 0.5 }, 7), 7);
}

#[test]
fn grids_round_half_to_even_and_clamp() {
    let grid = Grid::new(&Matrix::new(3, 2, vec![-1.0, 2.0, 0.0, 0.0, 1.0, 3.0]), 2);
    assert_eq!(grid.step(0), 1.0);
    let nearest: Vec<f64> = [-7.0, -0.6, -0.5, 0.5, 1.5, 1.6, 9.0].map(|value| grid.nearest(0, value)).to_vec();
    assert_eq!(nearest, [-1.0, -1.0, 0.0, 0.0, 2.0, 2.0, 2.0]);
    assert_eq!(grid.step(1), 2.0 / 3.0, "a row of zeros spans [-1, 1]");
    assert_eq!(grid.nearest(1, 0.0), 0.0);
    assert_eq!((grid.step(2), grid.nearest(2, 2.2)), (1.0, 2.0), "zero is always on the grid");
}

#[test]
fn baselines_compare_what_they_should() {
    let weight = Matrix::new(2, 4, vec![1.0, -2.0, 3.0, -4.0, 0.5, 0.5, -9.0, 8.0]);
    let half = Selection::Unstructured { sparsity: 0.5 };
    assert_eq!(gone(&magnitude(&weight, &half)), [0, 1, 4, 5], "the smallest of the layer");
    assert_eq!(gone(&wanda(&weight, &[10.0, 1.0, 1.0, 1.0], &half)), [1, 2, 4, 5], "the smallest of each row");
    assert_eq!(gone(&wanda(&weight, &[1.0; 4], &Selection::Unstructured { sparsity: 0.3 })), [0, 4]);
    assert_eq!(gone(&magnitude(&weight, &Selection::NOfM { keep: 1, group: 2 })), [0, 2, 4, 7]);
    assert_eq!(gone(&wanda(&weight, &[1.0, 1.0, 2.0, 1.0], &Selection::NOfM { keep: 1, group: 2 })), [0, 3, 4, 7]);
    let fixed = vec![true, false, true, true, false, true, true, true];
    assert_eq!(magnitude(&weight, &Selection::Fixed(fixed.clone())), fixed);
}

#[test]
fn dead_columns_become_zero_and_leave_the_others_alone() {
    let weight = Matrix::new(1, 3, vec![0.3, 5.0, -0.7]);
    let hessian = Matrix::new(3, 3, vec![2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
    let settings =
        Settings { selection: Selection::Unstructured { sparsity: 0.0 }, panel_width: 2, damping: 0.01, bits: None };
    let answer = prune(&weight, &hessian, &settings).expect("damped");
    assert_eq!(answer.weight.values(), [0.3, 0.0, -0.7]);
    assert_eq!(answer.loss_per_row, [0.0]);
    let one_goes = Settings { selection: Selection::Unstructured { sparsity: 0.5 }, ..settings };
    let answer = prune(&weight, &hessian, &one_goes).expect("damped");
    assert_eq!(gone(&answer.keep), [1], "the dead column's zero is the smallest score of the first panel");
}
