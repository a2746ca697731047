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
