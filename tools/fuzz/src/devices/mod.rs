//! Devices by themselves: any sequence of accesses, and what must hold after each.

mod interrupts;
mod lapic;
mod legacy;
mod timers;

pub use interrupts::{ioapic, pics};
pub use lapic::lapic;
pub use legacy::{power, rtc, test_device, uart};
pub use timers::{clock, pit};

use arbitrary::{Arbitrary, Unstructured};

/// Accesses that an input may ask for.
const MAX: usize = 500;

/// Calls `each` with what the input says.
fn each<'a, A: Arbitrary<'a>>(data: &'a [u8], mut each: impl FnMut(A)) {
    let mut input = Unstructured::new(data);
    for _ in 0..MAX {
        if input.is_empty() {
            return;
        }
        let Ok(next) = input.arbitrary() else { return };
        each(next);
    }
}
