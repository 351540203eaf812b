//! The machine as QEMU describes it, in the kernel's terms.

use caisson_core::boot::{BootInfo, Quirks, Range};
use caisson_proto::{abi::MAX_CPUS, addr::PAGE_SIZE, addr::Spa};
use heapless::Vec;

use crate::pvh::{MapEntry, RAM};

/// Port of isa-debugcon.
const LOG_PORT: u16 = 0xe8;
/// The timers of QEMU's local APICs count nanoseconds (hw/intc/apic.c).
const TIMER_KHZ: u64 = 1_000_000;
/// Few, so that they are recycled in ordinary use and leave 9 of QEMU's 15 for plain VMs: SEV-ES and SEV-SNP have 1 and
/// 2, SEV 3 to 6.
const SEV_ASIDS: u32 = 3 << 16 | 6;
/// Port of isa-debug-exit.
const EXIT_PORT: u16 = 0xf4;

/// Ranges of RAM that are looked at; QEMU has four at the most.
pub const MAX_RANGES: usize = 32;

/// Usable RAM in whole pages. What is more than [`MAX_RANGES`] is left alone.
pub fn usable(entries: impl Iterator<Item = MapEntry>) -> Vec<Range, MAX_RANGES> {
    let mut memory = Vec::new();
    for entry in entries.filter(|entry| entry.kind == RAM) {
        let end = entry.start.saturating_add(entry.bytes) & !(PAGE_SIZE - 1);
        let Some(start) = entry.start.checked_next_multiple_of(PAGE_SIZE) else { continue };
        let _ = memory.push(Range { start: Spa(start), bytes: end.saturating_sub(start) });
    }
    memory
}

/// What was found, with what is the same on every machine of QEMU's.
pub fn machine(
    memory: Vec<Range, MAX_RANGES>, kernel: Range, bundle: Range, cpus: usize, assume_wbnoinvd: bool,
) -> BootInfo {
    BootInfo {
        memory,
        kernel,
        bundle,
        cpus: (0..cpus.clamp(1, MAX_CPUS) as u32).collect(),
        local_apic: Spa(0xfee0_0000),
        timer_khz: TIMER_KHZ,
        io_apic: Spa(0xfec0_0000),
        log_port: LOG_PORT,
        power_off: Some(EXIT_PORT),
        sev_asids: SEV_ASIDS,
        quirks: Quirks { assume_wbnoinvd, interrupts_by_virq: true, few_error_codes: true },
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn ranges(entries: &[(u64, u64, u32)]) -> std::vec::Vec<(u64, u64)> {
        let entries = entries.iter().map(|&(start, bytes, kind)| MapEntry { start, bytes, kind, reserved: 0 });
        let usable = usable(entries);
        usable.iter().filter(|range| range.bytes != 0).map(|range| (range.start.0, range.bytes)).collect()
    }

    #[test]
    fn only_whole_pages_of_ram_are_usable() {
        let map = [(0x10_0000, 0x1000, 1), (0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x20_0001, 0x1fff, 1)];
        assert_eq!(ranges(&map), [(0x10_0000, 0x1000), (0, 0x9_f000), (0x20_1000, 0x1000)]);
        assert_eq!(ranges(&[(0x1001, 0x1ffe, 1), (u64::MAX, 1, 1), (u64::MAX - 1, u64::MAX, 1)]), []);
    }

    #[test]
    fn cpus_are_bounded() {
        let none = Range { start: Spa(0), bytes: 0 };
        let cpus = |count| machine(Vec::new(), none, none, count, false).cpus;
        assert_eq!(cpus(0), [0]);
        assert_eq!(cpus(3), [0, 1, 2]);
        assert_eq!(cpus(70_000).len(), MAX_CPUS);
    }
}
