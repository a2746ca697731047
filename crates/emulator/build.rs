//! Gives the shared library the name by which programs ask for a CUDA driver: a library that is already loaded under its
//! SONAME is what the dynamic linker hands out.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
