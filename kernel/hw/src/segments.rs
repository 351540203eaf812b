//! Segments and task state of a CPU, and the I/O ports of the service that is loaded.
//!
//! APM volume 2, sections 4.8 (descriptors), 12.2.5 (task state) and 12.2.4 (I/O permission map).

use crate::prelude::*;

/// Kernel code; its data segment follows.
pub(crate) const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x28;
/// SYSRET takes SS from here + 8 and CS from here + 16.
const SYSRET_BASE: u16 = KERNEL_DATA | 3;
/// Interrupt stack table: entry of the double fault, the NMI and the machine check.
pub(crate) const IST_DOUBLE_FAULT: u8 = 1;
pub(crate) const IST_NMI: u8 = 2;
pub(crate) const IST_MACHINE_CHECK: u8 = 3;

/// Offsets in the task state: stack of ring 0, the first of the interrupt stacks, where the permission map begins, and
/// the map, just behind.
const STACK_AT: usize = 4;
const INTERRUPT_STACKS_AT: usize = 36;
const MAP_OFFSET_AT: usize = 102;
const PORTS_AT: u16 = 104;
/// Bytes of the map, and one of ones that must follow.
const MAP_BYTES: usize = 8192;
/// The task state's limit, with the map.
const LIMIT: u64 = PORTS_AT as u64 + MAP_BYTES as u64;
/// An offset past the limit: no port is allowed.
const NO_PORTS: u16 = u16::MAX;

/// The descriptors of every CPU: null, kernel code and data, user data and code, task state.
pub(crate) fn gdt() -> [Cell<u64>; 7] {
    let [code, data] = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let user = 3 << 45;
    let task = 0x89 << 40 | (TSS & 0xff_ffff) << 16 | (TSS >> 24 & 0xff) << 56 | LIMIT;
    [0, code, data, data | user, code | user, task, TSS >> 32].map(Cell::new)
}

/// Writes a CPU's task state.
///
/// # Safety
/// `at` is where the zeroed pages of a task state are mapped now, and nobody else uses them.
pub(crate) unsafe fn write_task_state(at: *mut u8) {
    let stacks = [DOUBLE_FAULT_TOP, NMI_TOP, MACHINE_CHECK_TOP];
    // SAFETY: as the caller says; the three pages have room for structure, map and last byte.
    unsafe {
        at.add(STACK_AT).cast::<u64>().write_unaligned(STACK_TOP);
        at.add(INTERRUPT_STACKS_AT).cast::<[u64; 3]>().write_unaligned(stacks);
        at.add(MAP_OFFSET_AT).cast::<u16>().write(NO_PORTS);
        at.add(usize::from(PORTS_AT)).write_bytes(0xff, MAP_BYTES + 1);
    }
}

#[repr(C, packed)]
struct TablePointer(u16, u64);

/// Loads this CPU's tables and prepares SYSCALL.
pub(crate) fn load() {
    let gdt = TablePointer(8 * 7 - 1, PERCPU + core::mem::offset_of!(PerCpu, gdt) as u64);
    let idt = TablePointer(4095, IDT);
    // SAFETY: both tables are mapped for good and have what the selectors name; the segments are flat, so no address
    // changes its meaning. The MSRs exist on every CPU with long mode.
    unsafe {
        core::arch::asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            ".irp segment, ds, es, fs, gs",
            "mov \\segment, {zero:e}",
            ".endr",
            "lldt {zero:x}",
            "ltr {task:x}",
            gdt = in(reg) &gdt,
            idt = in(reg) &idt,
            code = const KERNEL_CODE,
            data = in(reg) u32::from(KERNEL_DATA),
            zero = in(reg) 0,
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
        cpu::wrmsr(msr::STAR, u64::from(SYSRET_BASE) << 48 | u64::from(KERNEL_CODE) << 32);
        cpu::wrmsr(msr::LSTAR, syscall::entry());
        cpu::wrmsr(msr::SFMASK, syscall::FLAGS_CLEARED);
    }
}

/// Gives the service in `slot`, which is to run here next, its ports and no others; an empty range ends the list.
/// One store unless it has ports, and then the map is written only if another service had it before.
#[inline(always)]
pub(crate) fn load_ports(slot: u16, ranges: &[PortRange; MAX_PORT_RANGES]) {
    if ranges[0].count != 0 { allow(slot, ranges) } else { set_map_offset(NO_PORTS) }
}

fn set_map_offset(offset: u16) {
    // SAFETY: the task state of this CPU is mapped here; only the CPU itself reads it, at the next I/O instruction.
    unsafe { ((TSS + MAP_OFFSET_AT as u64) as *mut u16).write_volatile(offset) }
}

#[cold]
fn allow(slot: u16, ranges: &[PortRange; MAX_PORT_RANGES]) {
    if this().ports_owner.replace(slot) != slot {
        write_map(ranges);
    }
    set_map_offset(PORTS_AT);
}

fn write_map(ranges: &[PortRange]) {
    let map = (TSS + u64::from(PORTS_AT)) as *mut u8;
    // SAFETY: the map lies there, for this CPU alone; a port's byte is within its 8192.
    unsafe {
        map.write_bytes(0xff, MAP_BYTES);
        for range in ranges.iter().take_while(|range| range.count != 0) {
            for port in (u32::from(range.first)..0x1_0000).take(range.count.into()) {
                let byte = map.add(port as usize / 8);
                byte.write(byte.read() & !(1 << (port % 8)));
            }
        }
    }
}
