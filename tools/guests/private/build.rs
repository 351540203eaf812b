//! Links the guest with the guests' linker script.
fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-Tguest.x");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
