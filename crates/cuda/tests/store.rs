//! Activations give back what was put in wherever they lie, and while they move: under all checks, on streams that run late.
#![cfg(feature = "cuda")]

mod support;

use cuda::{Element, Place, Store};
use emulator::options::Options;
use half::{bf16, f16};
use prune_cuda::{Device, MatrixMut, MatrixRef};
use support::on_device;

const COLUMNS: usize = 12;

/// Rows from the row `first` on in f32.
fn rows<D: Element>(device: &Device, store: &Store<D>, first: usize, count: usize) -> Vec<f32> {
    let mut x = device.zeros::<f32>(count * COLUMNS).expect("room");
    let mut to = MatrixMut::new(x.as_view_mut(), count, COLUMNS).expect("a matrix");
    store.widen(device, first * COLUMNS, &mut to).expect("a copy");
    device.download(&x).expect("numbers")
}

fn goes_there_and_back<D: Element>(device: &Device, places: &[Place], moved: Option<&Place>) {
    // Halves of small numbers, which all types hold.
    let values: Vec<f32> = (0..5 * COLUMNS).map(|i| i as f32 / 2.0).collect();
    let x = device.upload(&values).expect("room");
    let from = MatrixRef::new(x.as_view(), 5, COLUMNS).expect("a matrix");
    for place in places {
        let mut store = Store::<D>::new(device, place, 9 * COLUMNS).expect("room");
        assert_eq!((store.len(), store.is_on_device()), (9 * COLUMNS, *place == Place::Device));
        let flag = store.narrow(device, 2 * COLUMNS, &from).expect("a copy");
        assert_eq!(device.download(&flag).expect("a number"), [u64::MAX], "all is finite");
        if let Some(moved) = moved {
            store.move_out(device, moved).expect("room");
            assert!(!store.is_on_device());
        }
        assert_eq!(rows(device, &store, 2, 5), values, "{place:?}");
        assert_eq!(rows(device, &store, 0, 2), [0.0; 2 * COLUMNS], "{place:?}: what was never put in is zero");
        assert_eq!(rows(device, &store, 7, 2), [0.0; 2 * COLUMNS], "{place:?}");
    }
}

#[test]
fn activations_come_back_from_everywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = Place::File(folder.path().to_owned());
    for deferred in [false, true] {
        on_device(&Options { deferred, ..Options::checked(3) }, |device| {
            let places = [Place::Device, Place::Host, file.clone()];
            goes_there_and_back::<f32>(device, &places, None);
            goes_there_and_back::<f16>(device, &places, None);
            goes_there_and_back::<bf16>(device, &places, None);
            for target in [&Place::Host, &file] {
                goes_there_and_back::<f16>(device, &[Place::Device], Some(target));
            }
        });
    }
}

/// Where a map is larger than the disk, a page without a block would end the program.
#[test]
fn a_file_that_the_disk_has_no_room_for_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    on_device(&Options::default(), |device| {
        let error = Store::<f32>::new(device, &Place::File(folder.path().to_owned()), 1 << 52).err();
        let text = error.expect("no disk has 16 PiB").to_string();
        assert!(text.contains("file of 18014398509481984 bytes"), "{text}");
    });
}

#[test]
fn what_a_type_does_not_hold_is_flagged() {
    on_device(&Options::checked(3), |device| {
        let mut values = [1.0; 2 * COLUMNS];
        values[17] = 70_000.0;
        let x = device.upload(&values).expect("room");
        let from = MatrixRef::new(x.as_view(), 2, COLUMNS).expect("a matrix");
        let mut store = Store::<f16>::new(device, &Place::Host, 2 * COLUMNS).expect("room");
        let flag = store.narrow(device, 0, &from).expect("a copy");
        assert_eq!(device.download(&flag).expect("a number"), [17]);
    });
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    on_device(&Options::default(), |device| {
        let error =
            Store::<f16>::new(device, &Place::File("/nowhere/at/all".into()), 10).err().expect("no such folder");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    });
}
