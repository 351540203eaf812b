//! Registers that stay in the CPU when a guest is left, until another vCPU needs it: a table of groups. A new group
//! (a PMU's counters) is a new line.

use caisson_core::svm::state::{ABSENT, Extra, RESIDENT};
use caisson_proto::vcpu::Groups;

use super::cpu::Features;
use super::fpu;
use super::instructions as cpu;
use crate::cpu::wrmsr;

const TSC_AUX: u32 = 0xc000_0103;

/// Where the registers are kept while they aren't in the CPU.
pub(super) struct Registers<'a> {
    pub extra: &'a mut Extra,
    pub area: *mut u8,
    pub features: &'a Features,
}

struct Group {
    /// The state page's name for what `read` and `write` exchange.
    page: Groups,
    /// Takes the registers out of the CPU.
    save: fn(&mut Registers),
    /// Puts them into the CPU.
    load: fn(&mut Registers),
    /// As `save`, but only what the state page shows.
    read: fn(&mut Registers),
    /// As `load`, but only what the state page shows.
    write: fn(&mut Registers),
}

static TABLE: [Group; 3] = [
    Group { page: Groups::XCR0, save: fpu::save, load: fpu::load, read: fpu::read, write: fpu::write },
    Group { page: Groups::DEBUG, save: save_debug, load: load_debug, read: save_debug, write: load_debug },
    Group { page: Groups::TSC, save: keep, load: load_tsc_aux, read: keep, write: load_tsc_aux },
];

fn save_debug(registers: &mut Registers) {
    registers.extra.dr = [cpu::read_dr0(), cpu::read_dr1(), cpu::read_dr2(), cpu::read_dr3()];
}

fn load_debug(registers: &mut Registers) {
    let [dr0, dr1, dr2, dr3] = registers.extra.dr;
    // SAFETY: addresses without effect while DR7 enables none, as it does whenever the host runs.
    unsafe {
        cpu::write_dr0(dr0);
        cpu::write_dr1(dr1);
        cpu::write_dr2(dr2);
        cpu::write_dr3(dr3);
    }
}

/// The guest can't change it without an exit.
fn keep(_: &mut Registers) {}

fn load_tsc_aux(registers: &mut Registers) {
    if registers.features.tsc_aux {
        // SAFETY: the CPU has it; the value has 32 bits, as was checked when it was loaded.
        unsafe { wrmsr(TSC_AUX, registers.extra.tsc_aux) };
    }
}

/// Puts everything into the CPU.
pub(super) fn switch_in(registers: &mut Registers) {
    TABLE.iter().for_each(|group| (group.load)(registers));
    registers.extra.reload = 0;
}

/// Takes everything out of it.
pub(super) fn switch_out(registers: &mut Registers) {
    if registers.extra.reload != ABSENT {
        reload(registers);
        TABLE.iter().for_each(|group| (group.save)(registers));
        registers.extra.reload = ABSENT;
    }
}

/// Gives the CPU what the vmm loaded since the last entry, or everything.
#[cold]
pub(super) fn reload(registers: &mut Registers) {
    if registers.extra.reload == ABSENT {
        return switch_in(registers);
    }
    let groups = Groups::from_bits_truncate(registers.extra.reload as u32);
    for group in TABLE.iter().filter(|group| groups.contains(group.page)) {
        (group.write)(registers);
    }
    registers.extra.reload = 0;
}

/// Brings the copies up to date that the state page is filled from.
pub(super) fn sync(registers: &mut Registers, groups: Groups) {
    if registers.extra.reload != ABSENT && groups.intersects(RESIDENT) {
        reload(registers);
        for group in TABLE.iter().filter(|group| groups.contains(group.page)) {
            (group.read)(registers);
        }
    }
}
