//! The end of the machine, and what is said at it.

use crate::prelude::*;

/// Ends the machine with a status, or stops this CPU where the board has no way.
pub fn power_off(status: u8) -> ! {
    if let Some(exit) = boot::BOARD.get().and_then(|board| board.power_off) {
        // SAFETY: the board says that this port ends the machine.
        unsafe { u8::write_to_port(exit, status) }
    }
    cpu::halt()
}

/// The kernel itself faulted: says what happened where, and ends the machine.
pub(crate) fn epitaph(trap: &Trap) -> ! {
    log::epitaph();
    let &Trap { registers, rax, vector, error, rip, rsp, .. } = trap;
    let names = ["r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx"];
    names.into_iter().zip(registers).for_each(|(name, value)| defmt::info!("{=str} {=u64:#x}", name, value));
    defmt::info!("rax {:#x}, error code {:#x}, rsp {:#x}", rax, error, rsp);
    let (cpu, address) = (this().local.cpu.0, trap.address());
    defmt::error!("KERNEL FAULT on CPU {}: exception {}, rip {:#x}, address {:#x}", cpu, vector, rip, address);
    power_off(verdict::FAULTED)
}

/// The machine can't be booted: says why, and ends it.
pub fn cannot_boot(why: &str, detail: impl defmt::Format) -> ! {
    log::epitaph();
    defmt::error!("can't boot: {=str} ({})", why, detail);
    power_off(verdict::BAD_SETUP)
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    log::epitaph();
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    defmt::error!("KERNEL PANIC on CPU {=u16} at {=str}:{=u32}", this().local.cpu.0, file, line);
    power_off(verdict::FAULTED)
}
