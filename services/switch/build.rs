//! Links the image with the services' linker script.
fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-Tservice.x");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
