//! The search with coverage: libFuzzer on the target that `CAISSON_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use caisson_fuzz::{Target, find};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("CAISSON_FUZZ_TARGET").unwrap_or_default();
    find(&name).unwrap_or_else(|| {
        eprintln!("CAISSON_FUZZ_TARGET names no target: \"{name}\"");
        std::process::exit(5)
    })
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
