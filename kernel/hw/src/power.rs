//! The end of the machine.

use core::sync::atomic::{AtomicU32, Ordering};

use caisson_core::boot::PowerOff;

use crate::cpu::{self, port};
use crate::traps::Trap;

/// Port of the device that ends the machine, with bit 16; 0 for none.
static EXIT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn init(how: PowerOff) {
    if let PowerOff::ExitPort(number) = how {
        EXIT.store(1 << 16 | u32::from(number), Ordering::Relaxed);
    }
}

/// Ends the machine with a status, or stops this CPU where the board has no way.
pub fn power_off(status: u8) -> ! {
    let exit = EXIT.load(Ordering::Relaxed);
    if exit != 0 {
        // SAFETY: the board says that this port ends the machine.
        unsafe { port::write(exit as u16, status) }
    }
    cpu::halt()
}

/// An exception before the kernel installed its handlers.
pub(crate) fn early_epitaph(trap: &Trap) -> ! {
    crate::log::epitaph();
    defmt::error!(
        "exception {} at boot: rip {:#x}, error {:#x}, address {:#x}",
        trap.vector,
        trap.rip,
        trap.error,
        trap.address()
    );
    power_off(caisson_proto::kernel::verdict::FAULTED)
}
