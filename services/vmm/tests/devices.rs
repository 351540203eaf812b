//! Each device by itself and through its ports.

mod common;

use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_vmm::dev::ioapic::IoApic;
use caisson_vmm::dev::lapic::Lapic;
use caisson_vmm::dev::pic::Pics;
use caisson_vmm::dev::pit::Pit;
use caisson_vmm::dev::pvclock::Scale;
use caisson_vmm::dev::rtc::{Civil, Rtc};
use caisson_vmm::dev::uart::Uart;
use common::{KHZ, Machine};
use proptest::prelude::*;

#[test]
fn the_serial_port_sends_lines() {
    let mut machine = Machine::new(1);
    for byte in *b"ab" {
        machine.outb(0x3f8, byte);
    }
    assert!(machine.fake().console.is_empty(), "not byte by byte");
    machine.outb(0x3f8, b'\n');
    assert_eq!(machine.fake().console, b"ab\n");
    machine.outb(0x3f8, b'#');
    machine.halt(0);
    assert_eq!(machine.fake().console, b"ab\n#", "whoever waits has said all");
}

#[test]
fn linux_finds_a_16750() {
    let mut uart = Uart::default();
    uart.write(3, 0);
    uart.write(2, 0x21);
    assert_eq!(uart.read(2) & 0xe0, 0xc0, "not without DLAB");
    uart.write(2, 1);
    uart.write(3, 0x80);
    uart.write(2, 0x21);
    assert_eq!(uart.read(2) & 0xe0, 0xe0);
    uart.write(3, 3);
    assert_eq!(uart.read(2) & 0xe0, 0xe0, "it stays");
}

#[test]
fn loopback_shows_the_modem_lines() {
    let mut uart = Uart::default();
    uart.write(4, 0x1a);
    assert_eq!(uart.read(6) & 0xf0, 0x90);
    assert_eq!(uart.write(0, b'x'), None, "nothing leaves");
    assert_eq!((uart.read(5) & 1, uart.read(0)), (1, b'x'));
}

#[test]
fn an_empty_transmitter_is_told_once() {
    let mut uart = Uart::default();
    uart.write(4, 8);
    uart.write(1, 2);
    assert!(uart.line());
    assert_eq!(uart.read(2) & 0xf, 2);
    assert!(!uart.line());
    assert_eq!(uart.write(0, b'x'), Some(b'x'));
    assert!(uart.line());
    uart.set_blocked(true);
    assert!(!uart.line(), "not while the console takes nothing");
    assert_eq!(uart.read(5) & 0x60, 0);
}

#[test]
fn a_full_console_holds_the_guest_and_loses_nothing() {
    let mut machine = Machine::new(1);
    machine.fake().console_limit = Some(10);
    let mut sent = 0;
    while machine.inb(0x3fd) & 0x20 != 0 && sent < 10_000 {
        machine.outb(0x3f8, b'\n');
        sent += 1;
    }
    assert!((4000..10_000).contains(&sent), "{sent}");
    machine.fake().console_limit = None;
    machine.vmm.console_room();
    assert_eq!(machine.fake().console.len(), sent);
    assert_ne!(machine.inb(0x3fd) & 0x20, 0);
}

#[test]
fn the_serial_port_takes_what_it_has_room_for() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.vmm.console_input(&[1; 100]), 64);
    assert_eq!((machine.vmm.console_space(), machine.vmm.console_input(b"x")), (0, 0));
    machine.inb(0x3f8);
    assert_eq!(machine.vmm.console_space(), 1);
}

#[test]
fn days_are_counted_right() {
    let civil = |seconds| {
        let Civil { year, month, day, weekday, hour, minute, second } = Civil::from_seconds(seconds);
        (year, month, day, weekday, hour, minute, second)
    };
    assert_eq!(civil(0), (1970, 1, 1, 5, 0, 0, 0));
    assert_eq!(civil(951_782_399), (2000, 2, 28, 2, 23, 59, 59));
    assert_eq!(civil(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
    assert_eq!(civil(1_767_225_600), (2026, 1, 1, 5, 0, 0, 0));
    assert_eq!(civil(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0), "2100 has no leap day");
}

#[test]
fn the_clock_runs_with_the_tsc() {
    let mut clock = Rtc::new(1_767_225_600, 100, KHZ);
    let read = |clock: &mut Rtc, index, now| {
        clock.write(0x70, index);
        clock.read(0x71, now)
    };
    let later = 100 + (3600 * 13 + 61) * KHZ * 1000;
    let shown: Vec<u8> = [0, 2, 4, 7, 8, 9, 0x32].iter().map(|&index| read(&mut clock, index, later)).collect();
    assert_eq!(shown, [0x01, 0x01, 0x13, 0x01, 0x01, 0x26, 0x20]);
    assert_eq!(read(&mut clock, 0x0a, later) & 0x80, 0, "never updating");
    clock.write(0x70, 0x0b);
    clock.write(0x71, 0x04);
    assert_eq!(read(&mut clock, 4, later), 0x81, "1 p.m., binary");
    assert_eq!(read(&mut clock, 0x0d, later), 0x80, "the battery is good");
}

#[test]
fn the_pit_counts_down() {
    let mut pit = Pit::new(KHZ);
    pit.write(0x43, 0x30, 0);
    pit.write(0x40, 0xff, 0);
    pit.write(0x40, 0xff, 0);
    pit.write(0x43, 0, KHZ * 10);
    let latched = u16::from_le_bytes([pit.read(0x40, 1 << 40), pit.read(0x40, 1 << 40)]);
    assert_eq!(latched, 0xffff - 11_931);
    // Channel 2 by its gate, as calibrations do.
    pit.write(0x61, 0, 0);
    pit.write(0x43, 0xb0, 0);
    pit.write(0x42, 0xa9, 0);
    pit.write(0x42, 0x04, 0);
    pit.write(0x61, 1, 1000);
    assert_eq!(pit.read(0x61, 1000 + KHZ / 2) & 0x20, 0);
    assert_eq!(pit.read(0x61, 1000 + KHZ + KHZ / 100) & 0x20, 0x20);
}

#[test]
fn the_8259_pair_cascades() {
    let mut pics = Pics::default();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x38), (0xa1, 2)] {
        pics.write(port, value);
    }
    for (port, value) in [(0xa1, 1), (0x21, 0), (0xa1, 0)] {
        pics.write(port, value);
    }
    pics.set_line(8, true);
    pics.set_line(4, true);
    assert_eq!(pics.acknowledge(), 0x38, "the second chip is at input 2");
    assert!(!pics.asserts(), "input 4 waits");
    pics.write(0xa0, 0x20);
    pics.write(0x20, 0x20);
    assert_eq!(pics.acknowledge(), 0x34);
    pics.write(0x20, 0x20);
    assert_eq!(pics.acknowledge(), 0x37, "spurious");
    pics.write(0x21, 0xff);
    pics.set_line(5, true);
    assert!(!pics.asserts(), "masked");
}

#[test]
fn kvmclock_scales() {
    for khz in [1, 1000, 999_999, KHZ, 2_450_000, 5_000_001] {
        let scale = Scale::new(khz);
        let second = scale.nanoseconds(khz * 1000);
        assert!(second.abs_diff(1_000_000_000) < 1000 * 1000 / khz + 2, "{khz}: {second}");
        assert!(scale.multiplier >= 1 << 31);
    }
}

#[test]
fn power_and_reset() {
    let cases: [(u16, u8, ExitKind, u64); 4] = [
        (0x604, 0x34, ExitKind::PoweredOff, 0),
        (0x64, 0xfe, ExitKind::Reset, 0),
        (0xcf9, 6, ExitKind::Reset, 0),
        (0x505, 1, ExitKind::Crashed, CrashKind::Panic as u64),
    ];
    for (port, value, kind, word) in cases {
        let mut machine = Machine::new(1);
        machine.outb(port, value);
        let (ended, words) = machine.fake().ended.unwrap();
        assert_eq!((ended, words[0]), (kind, word), "{port:#x}");
    }
    let mut machine = Machine::new(1);
    for (port, value) in [(0x604, 0x14), (0x604, 0x20), (0x64, 0xae), (0xcf9, 2), (0x505, 2), (0x80, 1)] {
        machine.outb(port, value);
        assert_eq!(machine.fake().ended, None, "{port:#x}");
    }
    assert_eq!((machine.inb(0x64), machine.inb(0xcfc), machine.inb(0x2fd)), (0, 0xff, 0xff));
}

proptest! {
    #[test]
    fn no_access_to_a_device_panics(
        accesses in proptest::collection::vec((any::<u16>(), any::<u64>(), any::<bool>(), 0..1_u64 << 50), 1..200),
    ) {
        let (mut apic, mut ioapic, mut pics) = (Lapic::new(1), IoApic::default(), Pics::default());
        let (mut pit, mut rtc, mut uart) = (Pit::new(KHZ), Rtc::new(u64::MAX, 0, 1), Uart::default());
        for (at, value, write, now) in accesses {
            let byte = value as u8;
            if write {
                let _ = apic.write(at & 0x7f, value, now);
                let _ = apic.set_base(value, 48);
                ioapic.write(at.into(), value as u32);
                ioapic.set_line(byte, value & 256 != 0);
                pics.write([0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(at % 6)], byte);
                pics.set_line(byte, value & 256 != 0);
                pit.write(0x40 + at % 4, byte, now);
                pit.write(0x61, byte, now);
                rtc.write(at, byte);
                uart.write(at, byte);
            } else {
                let _ = apic.read(at & 0x7f, now);
                apic.request(byte, value & 256 != 0);
                apic.tick(now);
                if let Some(vector) = apic.deliverable() {
                    apic.take(vector);
                }
                ioapic.read(at.into());
                ioapic.end(byte);
                pics.acknowledge();
                pics.read([0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(at % 6)]);
                pit.read(0x40 + at % 4, now);
                pit.read(0x61, now);
                pit.expire(now);
                rtc.read(at, now);
                uart.read(at);
            }
        }
    }

    #[test]
    fn the_processor_takes_interrupts_by_priority(vectors in proptest::collection::btree_set(16_u8.., 1..20)) {
        let mut apic = Lapic::new(0);
        for &vector in &vectors {
            apic.request(vector, false);
        }
        let mut taken = Vec::new();
        while let Some(vector) = apic.deliverable() {
            apic.take(vector);
            prop_assert!(apic.deliverable().is_none_or(|next| next >> 4 > vector >> 4));
            apic.end();
            taken.push(vector);
        }
        prop_assert_eq!(taken, vectors.into_iter().rev().collect::<Vec<_>>());
    }
}
