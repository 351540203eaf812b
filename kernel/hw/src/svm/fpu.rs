//! The FPU's registers and XCR0. Nobody but guests uses them: CR0.TS is set whenever a service or the kernel runs.

use super::instructions as cpu;
use super::resident::Registers;

/// Where an XSAVE area has MXCSR (APM volume 2, section 11.5.2), and its value at reset.
pub(super) const MXCSR: (usize, u32) = (24, 0x1f80);

/// Runs with the FPU's instructions enabled.
fn with_fpu(run: impl FnOnce()) {
    let cr0 = cpu::read_cr0();
    // SAFETY: TS is as it was after this, and nothing but `run` executes meanwhile: interrupts are off.
    unsafe { cpu::clear_task_switched() };
    run();
    // SAFETY: this is what CR0 was before.
    unsafe { cpu::write_cr0(cr0) };
}

/// Takes the FPU's registers and XCR0 out of the CPU.
pub(super) fn save(registers: &mut Registers) {
    let Registers { extra, area, features } = registers;
    with_fpu(|| {
        // SAFETY: `Cpu::init` set OSXSAVE. All components that fit the area are saved, whichever of them the guest
        // enables at the moment; the area is the vCPU's own, aligned to a frame.
        unsafe {
            extra.xcr0 = cpu::read_xcr0();
            cpu::write_xcr0(features.limits.xcr0);
            cpu::xsave(*area);
        }
    });
}

/// Puts them into the CPU.
pub(super) fn load(registers: &mut Registers) {
    let Registers { extra, area, features } = registers;
    with_fpu(|| {
        // SAFETY: as in `save`; the area holds what was saved or the initial state. The guest's XCR0 was checked
        // when the vmm loaded it or was accepted by the CPU when the guest did.
        unsafe {
            cpu::write_xcr0(features.limits.xcr0);
            cpu::xrstor(*area);
            cpu::write_xcr0(extra.xcr0);
        }
    });
}

/// Brings `extra` up to date about XCR0: not every CPU leaves the guest for XSETBV.
pub(super) fn read(registers: &mut Registers) {
    // SAFETY: `Cpu::init` set OSXSAVE.
    registers.extra.xcr0 = unsafe { cpu::read_xcr0() };
}

/// Puts XCR0 alone into the CPU.
pub(super) fn write(registers: &mut Registers) {
    // SAFETY: as in `load`.
    unsafe { cpu::write_xcr0(registers.extra.xcr0) };
}
