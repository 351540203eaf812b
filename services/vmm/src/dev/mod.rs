//! The devices of a VM, one in each file. None knows of another; [`crate::vmm`] wires them.

pub mod ioapic;
pub mod lapic;
pub mod lapic_registers;
pub mod lapic_timer;
pub mod pic;
pub mod pit;
pub mod power;
pub mod pvclock;
pub mod rtc;
pub mod testdev;
pub mod uart;
pub mod vectors;
