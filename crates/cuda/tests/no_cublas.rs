//! A machine with a driver and without cuBLAS: nothing here loads the emulated one.
#![cfg(feature = "cuda")]

use cuda::{Error, Gpu};
use emulator::options::Options;
use prune_cuda::Device;

#[test]
fn a_missing_cublas_is_an_error_that_says_what_to_do() {
    emulator::loader::load(&Options::default()).expect("the emulated driver loads");
    let device = Device::open(0).expect("an emulated device");
    match Gpu::<f32>::new(device) {
        Err(error @ Error::NoCublas) => {
            let text = error.to_string();
            assert!(text.contains("libcublas.so") && text.contains("install cuBLAS"), "{text}");
        }
        // Where NVIDIA's own is installed, it knows nothing of the emulated driver.
        Ok(_) | Err(Error::Cublas { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}
