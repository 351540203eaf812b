//! The machine as QEMU describes it.

use caisson_core::boot::{BootInfo, PowerOff, Quirks, Range};
use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::{PAGE_SIZE, Spa};
use heapless::Vec;

use crate::pvh::{MAGIC, MapEntry, Module, RAM, StartInfo};

/// Port of isa-debugcon.
const LOG_PORT: u16 = 0xe9;
/// Port of isa-debug-exit.
const EXIT_PORT: u16 = 0xf4;
/// fw_cfg: selector port, data port, and the key of the number of CPUs (QEMU's docs/specs/fw_cfg).
const FW_CFG_SELECTOR: u16 = 0x510;
const FW_CFG_DATA: u16 = 0x511;
const FW_CFG_CPUS: u16 = 5;
/// Longest command line that is looked at.
const COMMAND_LINE: u64 = 4096;

/// Virtual minus physical address of the image, as in kernel.ld.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_end: u8;
}

/// A copy of what lies at a physical address.
///
/// # Safety
/// The first 512 GiB are mapped at their own addresses, and a `T` lies at `address`.
unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: as the caller says.
    unsafe { (address as *const T).read_unaligned() }
}

fn cpu_count() -> usize {
    let (low, high): (u8, u8);
    // SAFETY: these ports are fw_cfg's on every machine that QEMU starts by PVH; reading it changes no memory.
    unsafe {
        core::arch::asm!("out dx, ax", in("dx") FW_CFG_SELECTOR, in("ax") FW_CFG_CPUS, options(nomem, nostack));
        core::arch::asm!("in al, dx", in("dx") FW_CFG_DATA, out("al") low, options(nomem, nostack));
        core::arch::asm!("in al, dx", in("dx") FW_CFG_DATA, out("al") high, options(nomem, nostack));
    }
    usize::from(u16::from_le_bytes([low, high])).clamp(1, MAX_CPUS)
}

/// Whether `word` is one of the command line's.
///
/// # Safety
/// As [`read`]; a text that ends with a zero lies at `address`, or `address` is 0.
unsafe fn has_word(address: u64, word: &[u8]) -> bool {
    let mut matched = Some(0);
    for at in address..address.saturating_add(COMMAND_LINE) {
        // SAFETY: as the caller says; the loop ends at the zero.
        let byte = if address == 0 { 0 } else { unsafe { read::<u8>(at) } };
        if byte == 0 || byte == b' ' {
            if matched == Some(word.len()) {
                return true;
            }
            matched = Some(0);
        } else {
            matched = matched.filter(|&count| word.get(count) == Some(&byte)).map(|count| count + 1);
        }
        if byte == 0 {
            break;
        }
    }
    false
}

/// The machine, or `None` if `start_info` isn't PVH's. RAM beyond 32 ranges is left alone.
///
/// # Safety
/// The first 512 GiB are mapped at their own addresses; `start_info` is what PVH passed in ebx, and nothing that it
/// points to has been overwritten.
pub unsafe fn boot_info(start_info: u64) -> Option<BootInfo> {
    // SAFETY: PVH passes the address of its start info.
    let start: StartInfo = unsafe { read(start_info) };
    if start.magic != MAGIC || start.version == 0 {
        return None;
    }
    let mut memory = Vec::new();
    for index in 0..u64::from(start.memory_map_entries) {
        // SAFETY: the start info says that so many entries lie there.
        let entry: MapEntry = unsafe { read(start.memory_map + index * size_of::<MapEntry>() as u64) };
        let first = entry.start.next_multiple_of(PAGE_SIZE);
        let end = entry.start.saturating_add(entry.bytes) & !(PAGE_SIZE - 1);
        if entry.kind == RAM && first < end {
            let _ = memory.push(Range { start: Spa(first), bytes: end - first });
        }
    }
    memory.sort_unstable_by_key(|range: &Range| range.start);
    let bundle = match start.modules {
        0 => Range { start: Spa(0), bytes: 0 },
        _ => {
            // SAFETY: the start info says that a module entry lies there.
            let module: Module = unsafe { read(start.module_list) };
            Range { start: Spa(module.start), bytes: module.bytes }
        }
    };
    let kernel_start = &raw const __kernel_start as u64 - KERNEL_BASE;
    let kernel_end = &raw const __kernel_end as u64 - KERNEL_BASE;
    // SAFETY: the start info says that the command line lies there.
    let assume_wbnoinvd = unsafe { has_word(start.command_line, b"wbnoinvd") };
    Some(BootInfo {
        memory,
        kernel: Range { start: Spa(kernel_start), bytes: kernel_end - kernel_start },
        bundle,
        cpus: (0..cpu_count() as u32).collect(),
        local_apic: Spa(0xfee0_0000),
        io_apic: Spa(0xfec0_0000),
        log_port: LOG_PORT,
        power_off: PowerOff::ExitPort(EXIT_PORT),
        quirks: Quirks {
            assume_wbnoinvd,
            ram_is_zero: true,
            virq_reported_as_exception: true,
            few_error_codes: true,
            invalid_is_32_bits: true,
        },
    })
}
