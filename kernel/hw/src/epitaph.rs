//! The end of the machine, and what is said at it.

use caisson_core::boot::PowerOff;
use caisson_proto::kernel::verdict;

use crate::cpu::{self, port};
use crate::traps::Trap;
use crate::{boot, log, percpu};

/// Ends the machine with a status, or stops this CPU where the board has no way.
pub fn power_off(status: u8) -> ! {
    if let Some(PowerOff::ExitPort(exit)) = boot::BOARD.get().map(|board| board.power_off) {
        // SAFETY: the board says that this port ends the machine.
        unsafe { port::write(exit, status) }
    }
    cpu::halt()
}

/// The kernel itself faulted: says what happened where, and ends the machine.
pub(crate) fn epitaph(trap: &Trap) -> ! {
    log::epitaph();
    let (cpu, address) = (percpu::cpu(), trap.address());
    defmt::error!("KERNEL FAULT on CPU {}: address {=u64:#x}, {:#x}", cpu.0, address, trap);
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
    defmt::error!("KERNEL PANIC on CPU {=u16} at {=str}:{=u32}", percpu::cpu().0, file, line);
    power_off(verdict::FAULTED)
}
