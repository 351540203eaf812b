//! Lets the linker of the kernel find the linker script.
fn main() {
    if let Ok(directory) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-search={directory}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernel.ld");
}
