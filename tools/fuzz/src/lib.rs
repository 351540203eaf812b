//! Fuzz targets: everything that decodes what a guest, a service or a file says, as functions of any bytes.
//!
//! A target takes bytes, makes messages, exits or files of them, and panics if a rule is broken. The same functions are
//! run by a search with coverage (`coverage.rs`), by one without, on any toolchain ([`search`]), and by property tests.
#![forbid(unsafe_code)]

pub mod devices;
pub mod edit;
pub mod guest;
mod kernel;
mod proto;
pub mod search;
mod service;
mod stats;
pub mod virtio;

/// Something that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Panics if the input breaks it.
    pub run: fn(&[u8]),
    /// Inputs that a bounded run tries: fewer where one takes longer.
    pub runs: u32,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("guest", "a vmm under a guest that does anything", guest::anything, 5000),
    target("ports", "the same, by ports only", guest::ports, 2500),
    target("strings", "the same, by string instructions on ports and devices", guest::strings, 3000),
    target("msrs", "the same, by model-specific registers", guest::msrs, 2500),
    target("instructions", "the decoder, and the walk of a guest's page tables", guest::instructions, 1500),
    target("arithmetic", "arithmetic on devices, and register operands", guest::arithmetic, 30_000),
    target("cpuid", "the CPUID table, on any machine", guest::tables, 30_000),
    target("linux", "Linux's boot protocol: image, initrd, command line", guest::linux, 2500),
    target("multiboot", "Multiboot images", guest::multiboot, 2500),
    target("uart", "the serial port", devices::uart, 30_000),
    target("pit", "the 8254", devices::pit, 30_000),
    target("pic", "the 8259 pair", devices::pics, 30_000),
    target("ioapic", "the I/O APIC", devices::ioapic, 30_000),
    target("lapic", "the local APIC with its timer", devices::lapic, 30_000),
    target("rtc", "the clock", devices::rtc, 30_000),
    target("test-device", "the test device", devices::test_device, 5000),
    target("power", "sleep control, resets, pvpanic, PM timer", devices::power, 30_000),
    target("kvmclock", "kvmclock's numbers", devices::clock, 30_000),
    target("virtio-mmio", "virtio devices under any driver", virtio::anything, 15_000),
    target("wire", "every message in eight words, and rings' counts", proto::wire, 30_000),
    target("state-page", "a vCPU's state page and a vmm's replies, in the kernel", kernel::state_page, 30_000),
    target("bundle", "the bundle, in the kernel", kernel::bundle, 30_000),
    target("memory", "memory: requests and bells", service::memory, 2500),
    target("notifier", "notifier: requests and memory's ring", service::notifier, 30_000),
    target("sev-firmware", "sev-firmware: requests, bells and any processor", service::firmware, 2500),
    target("supervisor", "the supervisor: deaths and bells", service::supervisor, 30_000),
    target("console", "the console: line, guests' output, notices", service::console, 5000),
    target("switch", "the switch: batches of any vmm, lives and deaths", service::switch, 2500),
    target("stats", "statistics: a block's bytes, and the console's lines", stats::stats, 5000),
    target("manifest", "system.toml", service::system, 2500),
    target("vm-file", "a VM's file", service::vm, 5000),
];

const fn target(name: &'static str, about: &'static str, run: fn(&[u8]), runs: u32) -> Target {
    Target { name, about, run, runs }
}

/// The target with this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
