mod cpuid;
mod events;
// Walks through whole tables take Miri hours.
#[cfg(not(miri))]
mod npt;
mod state;
mod vmcb;

/// So many cases; a few under Miri, which takes long and has no files to keep failures in.
fn cases(cases: u32) -> proptest::test_runner::Config {
    let cases = if cfg!(miri) { 2 } else { cases };
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}
