//! Segments and task state of a CPU, and the I/O ports of the service that is loaded.
//!
//! APM volume 2, sections 4.8 (descriptors), 12.2.5 (task state) and 12.2.4 (I/O permission map).

use crate::prelude::*;
use x86_64::instructions::{segmentation::CS, segmentation::SS, segmentation::Segment, tables::*};
use x86_64::registers::{model_specific::LStar, model_specific::SFMask, model_specific::Star, rflags::RFlags};
use x86_64::structures::{DescriptorTablePointer, gdt::SegmentSelector, tss::TaskStateSegment};

/// Kernel code; its data segment follows.
pub(crate) const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x28;
/// SYSRET takes SS from here + 8 and CS from here + 16.
const SYSRET_BASE: u16 = KERNEL_DATA | 3;
/// Interrupt stack table, from its entry 1 on: vectors that have stacks of their own, at [`IST_TOPS`].
pub(crate) const IST: [u8; 3] = [vector::DOUBLE_FAULT, vector::NMI, vector::MACHINE_CHECK];

/// Where the permission map lies in the task state: just behind.
const PORTS_AT: u16 = size_of::<TaskStateSegment>() as u16;
/// Bytes of the map, with one of ones that must follow.
const MAP_BYTES: usize = 8192 + 1;
/// An offset past the limit: no port is allowed.
const NO_PORTS: u16 = u16::MAX;

/// A CPU's task state and its I/O permission map. The alignment keeps the former within a page.
#[repr(C, align(128))]
pub(crate) struct Task {
    state: TaskStateSegment,
    map: [u8; MAP_BYTES],
}

impl Task {
    /// With the CPU's stacks, and no port.
    pub fn new() -> Self {
        let mut state = TaskStateSegment::new();
        state.privilege_stack_table[0] = VirtAddr::new_truncate(STACK_TOP);
        let [first, second, third] = IST_TOPS;
        state.interrupt_stack_table = [first, second, third, 0, 0, 0, 0].map(VirtAddr::new_truncate);
        state.iomap_base = NO_PORTS;
        Self { state, map: [0xff; MAP_BYTES] }
    }
}

/// The descriptors of every CPU: null, kernel code and data, user data and code, task state.
pub(crate) fn gdt() -> [Cell<u64>; 7] {
    let [code, data] = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let user = 3 << 45;
    let (at, limit) = (PERCPU + offset_of!(PerCpu, task) as u64, u64::from(PORTS_AT) + MAP_BYTES as u64 - 1);
    let task = 0x89 << 40 | (at & 0xff_ffff) << 16 | (at >> 24 & 0xff) << 56 | limit;
    [0, code, data, data | user, code | user, task, at >> 32].map(Cell::new)
}

/// Loads this CPU's tables and prepares SYSCALL.
pub(crate) fn load() {
    let table = |limit, base| DescriptorTablePointer { limit, base: VirtAddr::new_truncate(base) };
    // SAFETY: both tables are mapped for good and have what the selectors name; the segments are flat, so no address
    // changes its meaning. The MSRs exist on every CPU with long mode.
    unsafe {
        lgdt(&table(8 * 7 - 1, PERCPU + offset_of!(PerCpu, gdt) as u64));
        lidt(&table(4095, IDT));
        CS::set_reg(SegmentSelector(KERNEL_CODE));
        SS::set_reg(SegmentSelector(KERNEL_DATA));
        asm!(".irp segment, ds, es, fs, gs", "mov \\segment, {0:e}", ".endr", "lldt {0:x}", in(reg) 0, options(nostack));
        load_tss(SegmentSelector(TASK));
        Star::write_raw(SYSRET_BASE, KERNEL_CODE);
    }
    LStar::write(VirtAddr::new_truncate(syscall::caisson_syscall as *const () as u64));
    SFMask::write(RFlags::from_bits_truncate(syscall::FLAGS_CLEARED));
}

/// Gives the service in `slot`, which is to run here next, its ports and no others; an empty range ends the list.
/// One store unless it has ports, and then the map is written only if another service had it before.
#[inline(always)]
pub(crate) fn load_ports(slot: u16, ranges: &[PortRange; MAX_PORT_RANGES]) {
    if ranges[0].count != 0 {
        return allow(slot, ranges);
    }
    // SAFETY: only this CPU uses its task state, and no reference into it is alive.
    unsafe { (*this().task.get()).state.iomap_base = NO_PORTS };
}

#[cold]
fn allow(slot: u16, ranges: &[PortRange]) {
    // SAFETY: as in `load_ports`.
    let task = unsafe { &mut *this().task.get() };
    if this().ports_owner.replace(slot) != slot {
        task.map.fill(0xff);
        for range in ranges.iter().take_while(|range| range.count != 0) {
            for port in (range.first..=u16::MAX).take(range.count.into()) {
                task.map[usize::from(port / 8)] &= !(1 << (port % 8));
            }
        }
    }
    task.state.iomap_base = PORTS_AT;
}
