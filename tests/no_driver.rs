//! A program with CUDA in it starts on a machine without a driver. Nothing here loads the emulated one.
#![cfg(feature = "cuda")]

use prune_cuda::{Device, Error};

#[test]
fn a_missing_driver_is_an_error_that_says_what_to_do() {
    match Device::open(0) {
        Err(error @ Error::NoDriver) => assert!(error.to_string().contains("Install NVIDIA's driver"), "{error}"),
        // On a machine with a driver there may be a device, or none.
        Ok(_) | Err(Error::NoDevice { .. } | Error::TooOldDevice { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}
