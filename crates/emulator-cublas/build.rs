//! Gives the shared library the name by which programs ask for it.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublas.so");
}
