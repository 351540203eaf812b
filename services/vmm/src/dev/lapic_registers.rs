//! Numbers of the local APIC's registers, as x2APIC has them: MMIO offset divided by 16 (APM volume 2, section 16.11).

/// Id.
pub const ID: u16 = 0x02;
/// Version.
pub const VERSION: u16 = 0x03;
/// Task priority.
pub const TPR: u16 = 0x08;
/// Arbitration priority.
pub const APR: u16 = 0x09;
/// Processor priority.
pub const PPR: u16 = 0x0a;
/// End of interrupt.
pub const EOI: u16 = 0x0b;
/// Logical destination.
pub const LDR: u16 = 0x0d;
/// Destination format (xAPIC only).
pub const DFR: u16 = 0x0e;
/// Spurious-interrupt vector, with the software enable.
pub const SVR: u16 = 0x0f;
/// In service: eight registers.
pub const ISR: u16 = 0x10;
/// Trigger mode: eight registers.
pub const TMR: u16 = 0x18;
/// Requested: eight registers.
pub const IRR: u16 = 0x20;
/// Errors.
pub const ESR: u16 = 0x28;
/// Interrupt command, low half; all of it in x2APIC mode.
pub const ICR: u16 = 0x30;
/// Interrupt command, high half (xAPIC only).
pub const ICR_HIGH: u16 = 0x31;
/// First local vector table entry: the timer's. Then thermal, performance, LINT0, LINT1, error.
pub const LVT: u16 = 0x32;
/// Initial count of the timer.
pub const INITIAL: u16 = 0x38;
/// Current count of the timer.
pub const CURRENT: u16 = 0x39;
/// Divide configuration of the timer.
pub const DIVIDE: u16 = 0x3e;
/// Sends an interrupt to itself (x2APIC only).
pub const SELF_IPI: u16 = 0x3f;
