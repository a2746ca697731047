//! What a program is told where there is no GPU, a wrong one, or too little of it.
#![cfg(feature = "cuda")]

mod support;

use emulator::options::Options;
use prune_cuda::{Device, Error, MatrixMut, MatrixRef, accumulate};
use support::{configured, with_options};

#[test]
fn a_device_that_is_not_there_is_named() {
    with_options(&[Options { devices: 2, log: false, ..Options::default() }], |_| {
        let count = Device::count().expect("a driver");
        let error = Device::open(count).map(|_| ()).unwrap_err();
        assert_eq!(error, Error::NoDevice { ordinal: count, count });
        assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES"));
    });
}

#[test]
fn memory_of_another_device_is_refused() {
    let Some(_turn) = configured(&Options { devices: 2, log: false, ..Options::default() }) else { return };
    let (first, second) = (Device::open(0).expect("a device"), Device::open(1).expect("a device"));
    let inputs = first.zeros::<f32>(64).expect("memory");
    let mut hessian = second.zeros::<f32>(64).expect("memory");
    let x = MatrixRef::new(inputs.slice(..), 8, 8).expect("a matrix");
    let mut h = MatrixMut::new(hessian.slice_mut(..), 8, 8).expect("a matrix");
    let error = accumulate(&second, &x, &mut h, 1.0, 0.0).unwrap_err();
    assert_eq!(error, Error::OtherDevice { what: "inputs", found: 0, expected: 1 });
    let error = accumulate(&first, &x, &mut h, 1.0, 0.0).unwrap_err();
    assert_eq!(error, Error::OtherDevice { what: "hessian", found: 1, expected: 0 });
}

#[test]
fn memory_that_is_not_there_is_counted() {
    let Some(_turn) = configured(&Options { memory: 1 << 20, log: false, ..Options::default() }) else { return };
    let device = Device::open(0).expect("a device");
    let _half = device.zeros::<u8>(1 << 19).expect("half of it");
    let error = device.zeros::<f32>(1 << 18).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { ordinal: 0, bytes: 0x10_0000, total: 0x10_0000, .. }), "{error}");
    device.zeros::<u8>(1 << 18).expect("an allocation that fits still works");
}

#[test]
fn what_is_held_is_counted_and_what_is_freed_is_kept() {
    let mega = 1 << 20;
    with_options(&[Options::default(), Options { deferred: true, ..Options::default() }], |device| {
        let used = |device: &Device| device.used().expect("a count").expect("a pool");
        let peak = |device: &Device| device.peak().expect("a count").expect("a pool");
        let before = used(device);
        let large = device.zeros::<f32>(2 * mega).expect("memory");
        let small = device.zeros::<u8>(1).expect("memory");
        // An allocation takes multiples of 512 bytes.
        let held = before + (8 << 20) + 512;
        assert_eq!((used(device), peak(device)), (held, held));
        drop(large);
        assert_eq!((used(device), peak(device)), (before + 512, held));
        device.reset_peak().expect("a pool");
        assert_eq!(peak(device), before + 512);
        // Another stream allocates from the same pool.
        let beside = device.fork().expect("a stream");
        let other = beside.zeros::<u8>(mega).expect("memory");
        assert_eq!((used(device), peak(&beside)), (before + 512 + (1 << 20), before + 512 + (1 << 20)));
        let (free, _) = device.memory().expect("a count");
        drop((small, other));
        beside.synchronize().expect("no failure");
        device.synchronize().expect("no failure");
        // The pool keeps it, across waits.
        assert_eq!((used(device), device.memory().expect("a count").0), (before, free));
        assert!(device.available().expect("a count") >= free + (8 << 20), "for whoever asks next");
    });
}

#[test]
fn a_device_without_pools_works_and_counts_nothing() {
    let Some(_turn) = configured(&Options { memory_pools: false, ..Options::default() }) else { return };
    let device = Device::open(0).expect("a device");
    let _some = device.zeros::<f32>(1000).expect("memory");
    device.reset_peak().expect("nothing to do");
    assert_eq!((device.used(), device.peak()), (Ok(None), Ok(None)));
}
