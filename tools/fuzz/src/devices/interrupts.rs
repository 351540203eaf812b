//! The 8259 pair and the I/O APIC.

use arbitrary::{Arbitrary, Unstructured};
use caisson_vmm::dev::ioapic::{IoApic, PINS, Pins};
use caisson_vmm::dev::pic::Pics;

use super::each;

#[derive(Debug, Arbitrary)]
enum PicAccess {
    Line(#[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=17))] u8, bool),
    Acknowledge,
    Read(#[arbitrary(with = port)] u16),
    Write(#[arbitrary(with = port)] u16, u8),
    /// The four initialization words of a chip.
    Initialize {
        second: bool,
        base: u8,
        mode: u8,
    },
    End {
        second: bool,
    },
}

fn port(u: &mut Unstructured) -> arbitrary::Result<u16> {
    u.choose(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]).copied()
}

/// The 8259 pair: what it acknowledges it no longer asks for, unless the line says so.
pub fn pics(data: &[u8]) {
    let mut pics = Pics::default();
    // Vector bases, once a chip was initialized.
    let mut bases = [0_u8; 2];
    each(data, |access| match access {
        PicAccess::Line(line, high) => pics.set_line(line, high),
        PicAccess::Acknowledge => {
            let asked = pics.asserts();
            let vector = pics.acknowledge();
            let spurious = bases[0] | 7;
            assert!(asked || vector == spurious, "nobody asked, and the vector is {vector:#x}");
            assert!(bases.contains(&(vector & 0xf8)), "vector {vector:#x} of neither chip");
        }
        PicAccess::Read(port) => _ = pics.read(port),
        // Command words that begin an initialization have an access of their own, so that the bases are known.
        PicAccess::Write(port, value) => {
            let command = port & 1 == 0 && port < 0x100;
            pics.write(port, if command { value & !0x10 } else { value });
        }
        PicAccess::Initialize { second, base, mode } => {
            let port = if second { 0xa0 } else { 0x20 };
            pics.write(port, 0x11);
            for word in [base, 4, mode] {
                pics.write(port + 1, word);
            }
            bases[usize::from(second)] = base & 0xf8;
        }
        PicAccess::End { second } => pics.write(if second { 0xa0 } else { 0x20 }, 0x20),
    });
}

#[derive(Debug, Arbitrary)]
enum IoApicAccess {
    Line(#[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=PINS))] u8, bool),
    End(u8),
    Select(#[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=0x41))] u8),
    Write(#[arbitrary(with = |u: &mut Unstructured| u.choose(&[0x10, 0x40, 0, 0x20]).copied())] u16, u32),
    Entry { pin: u8, value: u32 },
    Read(u16),
}

/// The I/O APIC: a level-triggered pin sends once until it is ended.
pub fn ioapic(data: &[u8]) {
    let mut ioapic = IoApic::default();
    // Pins whose message was sent and not ended, as far as it can be told from outside.
    let mut sent = 0_u32;
    let resend = |ioapic: &mut IoApic, pins: Pins, sent: &mut u32| {
        for pin in 0..PINS {
            if pins.0 >> pin & 1 == 1 {
                let message = ioapic.resend(pin);
                assert!(message.is_some_and(|message| message.level), "pin {pin} wants to send, and doesn't");
                *sent |= 1 << pin;
            }
        }
        assert_eq!(pins.0 >> PINS, 0);
    };
    each(data, |access| match access {
        IoApicAccess::Line(pin, high) => {
            if let Some(message) = ioapic.set_line(pin, high) {
                assert!(high && pin < PINS && ioapic.is_unmasked(pin));
                assert!(!message.level || sent >> pin & 1 == 0, "pin {pin} sends twice");
                if message.level {
                    sent |= 1 << pin;
                }
            }
        }
        IoApicAccess::End(vector) => {
            sent = 0;
            let pins = ioapic.end(vector);
            resend(&mut ioapic, pins, &mut sent);
        }
        IoApicAccess::Select(register) => _ = ioapic.write(0, register.into()),
        IoApicAccess::Write(offset, value) => {
            if offset != 0 {
                sent = 0;
            }
            let pins = ioapic.write(offset.into(), value);
            resend(&mut ioapic, pins, &mut sent);
        }
        IoApicAccess::Entry { pin, value } => {
            let pin = pin % PINS;
            sent = 0;
            ioapic.write(0, (0x10 + 2 * pin).into());
            let pins = ioapic.write(0x10, value);
            resend(&mut ioapic, pins, &mut sent);
            // Delivery status and remote IRR aren't the guest's.
            assert_eq!(ioapic.read(0x10) & !0x4000, value & 0x1_afff);
        }
        IoApicAccess::Read(offset) => _ = ioapic.read(u64::from(offset) & 0xfff),
    });
}
