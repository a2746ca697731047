//! Devices that cannot be worked with, and memory of another one: what is said about them.
#![cfg(feature = "cuda")]

mod support;

use emulator::options::Options;
use prune_cuda::{Device, Error, MatrixMut, MatrixRef, accumulate};
use support::{emulator, with_options};

/// Machines with fewer devices than are asked for, and inputs that lie on another one.
#[test]
fn devices_that_will_not_do_are_named() {
    // One test, since the machine that is set up is that of the whole process; a real one is as it is.
    let Some(emulator) = emulator() else { return };
    for (count, ordinal) in [(1, 1), (2, 7)] {
        emulator.configure(&Options { devices: count, ..Options::default() }).expect("the options are valid");
        assert_eq!(Device::open(ordinal).expect_err("no such device"), Error::NoDevice { ordinal, count });
    }
    with_options(&[Options { devices: 2, ..Options::default() }], |device| {
        let other = Device::open(1).expect("another device");
        let inputs = other.upload(&[1.0f32; 16]).expect("memory");
        let mut hessian = device.zeros::<f32>(16).expect("memory");
        let inputs = MatrixRef::new(inputs.as_view(), 4, 4).expect("a matrix");
        let mut hessian = MatrixMut::new(hessian.as_view_mut(), 4, 4).expect("a matrix");
        let error = accumulate(device, &inputs, &mut hessian, 1.0, 0.0).expect_err("memory of another device");
        assert_eq!(error, Error::OtherDevice { what: "inputs", found: 1, expected: 0 });
    });
}
