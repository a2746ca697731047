//! What stages take of a device beside what they are given, as `roofline::room` has it, against what the device counts.
#![cfg(feature = "cuda")]

mod support;

use emulator::options::Options;
use half::f16;
use prune_cuda::{
    Device, Factor, MatrixMut, MatrixRef, Pattern, Selection, Settings, accumulate, factor_damped, magnitude, prepare,
    solve,
};
use roofline::room::{self, Panels};
use support::with_options;

/// Runs `test` on a device whose numbers nobody looks at: on any other, allocations may take more than they ask for.
fn on_counting_device(test: impl Fn(&Device)) {
    if support::emulator().is_some() {
        with_options(&[Options::default()], test);
    }
}

/// The most that `work` takes beside what there is.
fn taken<T>(device: &Device, work: impl FnOnce() -> T) -> (u64, T) {
    device.reset_peak().expect("a pool");
    let before = device.used().expect("a count").expect("a pool");
    let done = work();
    (device.peak().expect("a count").expect("a pool") - before, done)
}

#[test]
fn a_hessian_takes_the_sums_of_its_splits() {
    on_counting_device(|device| {
        for (tokens, columns) in [(1, 8), (64, 128), (512, 40), (2048, 130), (1100, 384)] {
            let mut hessian = device.zeros::<f32>(columns * columns).expect("memory");
            let narrow = device.zeros::<f16>(tokens * columns).expect("memory");
            let wide = device.zeros::<f32>(tokens * columns).expect("memory");
            let mut h = MatrixMut::new(hessian.slice_mut(..), columns, columns).expect("a matrix");
            let x = MatrixRef::new(narrow.slice(..), tokens, columns).expect("a matrix");
            let (found, done) = taken(device, || accumulate(device, &x, &mut h, 1.0, 1.0));
            done.expect("a sum");
            assert_eq!(found, room::accumulate(tokens, columns, false), "f16 [{tokens}, {columns}]");
            let x = MatrixRef::new(wide.slice(..), tokens, columns).expect("a matrix");
            let (found, done) = taken(device, || accumulate(device, &x, &mut h, 1.0, 1.0));
            done.expect("a sum");
            assert_eq!(found, room::accumulate(tokens, columns, true), "f32 [{tokens}, {columns}]");
        }
    });
}

#[test]
fn a_factor_and_its_layers_take_what_is_said() {
    on_counting_device(|device| {
        for columns in [30, 128, 700] {
            let mut hessian = vec![0.0_f32; columns * columns];
            hessian.iter_mut().step_by(columns + 1).for_each(|value| *value = 1.0);
            let mut hessian = device.upload(&hessian).expect("memory");
            let mut h = MatrixMut::new(hessian.slice_mut(..), columns, columns).expect("a matrix");
            let (found, made) = taken(device, || {
                let mut prepared = prepare(device, &mut h, 1, 0.01)?;
                factor_damped(device, &mut h, 1, &mut prepared).map(|(factored, _)| (prepared, factored))
            });
            let (prepared, factored) = made.expect("a factor");
            assert_eq!(found, room::factor(columns), "the factor of {columns} columns");
            let factor = Factor {
                factor: MatrixRef::new(hessian.as_view(), columns, columns).expect("a matrix"),
                inverses: factored.inverses.as_view(),
                dead: prepared.dead.as_view(),
            };
            let groups = |keep, group| (Selection::Groups { keep, group }, Panels::Groups(group), None);
            let unstructured = |panel_width, bits| {
                (Selection::Unstructured { sparsity: 0.5, panel_width }, Panels::Of(panel_width), bits)
            };
            for (selection, panels, bits) in
                [unstructured(128, None), unstructured(32, Some(4)), groups(2, 4), groups(1, 3)]
            {
                for rows in [1, 130] {
                    let mut weights = device.zeros::<f32>(rows * columns).expect("memory");
                    let mut w = MatrixMut::new(weights.slice_mut(..), rows, columns).expect("a matrix");
                    let settings = Settings { selection, bits, shards: None };
                    let (found, done) = taken(device, || solve(device, &mut w, &factor, &settings));
                    drop(done.expect("a solution"));
                    let said = room::solve(rows, columns, panels, bits.is_some());
                    assert_eq!(found, said, "[{rows}, {columns}], {panels:?}, {bits:?}");
                    let pattern = Pattern::Unstructured { sparsity: 0.5 };
                    let (found, done) = taken(device, || magnitude(device, &mut w, pattern, None));
                    done.expect("a choice");
                    assert_eq!(found, room::selection(rows, columns), "[{rows}, {columns}] by magnitude");
                }
            }
        }
    });
}
