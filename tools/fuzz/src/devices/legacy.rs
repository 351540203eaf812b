//! Serial port, clock, test device, and the ports that end a VM.

use arbitrary::Arbitrary;
use caisson_vmm::dev::power::{self, Power, Request};
use caisson_vmm::dev::rtc::{Civil, Rtc};
use caisson_vmm::dev::testdev::{Ask, MMIO, TestDevice};
use caisson_vmm::dev::uart::Uart;

use super::each;
use crate::guest::act::number;

#[derive(Debug, Arbitrary)]
enum Serial {
    Read(u8),
    Write(u8, u8),
    Receive(Vec<u8>),
    Blocked(bool),
}

/// The serial port: it says that nothing is pending when nothing is, and gives no byte twice.
pub fn uart(data: &[u8]) {
    const FIFO: usize = 64;
    let mut uart = Uart::default();
    // Bytes taken in, at the most, and given out.
    let (mut taken, mut given) = (0, 0);
    each(data, |access| match access {
        Serial::Read(2) => {
            let cause = uart.read(2);
            assert!(cause & 1 == 0 || !uart.line(), "nothing is pending, it says, and interrupts");
            assert!(cause & 0x3f & !0x27 == 0, "cause {cause:#x}");
        }
        Serial::Read(0) => {
            let before = uart.room();
            uart.read(0);
            given += uart.room() - before;
            assert!(given <= taken);
        }
        Serial::Read(register) => {
            let room = uart.room();
            let value = uart.read(register.into());
            assert!(register & 7 != 5 || (value & 1 == 0) == (room == FIFO), "data ready, and there is none");
        }
        Serial::Write(register, value) => {
            let before = uart.room();
            let sent = uart.write(register.into(), value);
            assert!(sent.is_none() || (sent == Some(value) && register & 7 == 0));
            // What is looped back is received.
            taken += before.saturating_sub(uart.room());
        }
        Serial::Receive(bytes) => {
            let room = uart.room();
            let count = uart.receive(&bytes);
            assert_eq!(count, bytes.len().min(room));
            assert_eq!(uart.room(), room - count);
            taken += count;
        }
        Serial::Blocked(blocked) => {
            uart.set_blocked(blocked);
            assert_eq!(uart.read(5) & 0x60, if blocked { 0 } else { 0x60 });
        }
    });
    assert!(uart.room() <= FIFO);
}

#[derive(Debug, Arbitrary)]
struct ClockAccess {
    register: u8,
    write: Option<u8>,
    #[arbitrary(with = number)]
    ticks: u64,
}

/// The clock: whatever is read as time is one, and the time goes on.
pub fn rtc(data: &[u8]) {
    let epoch = data.iter().take(4).fold(0, |all, byte| all << 8 | u64::from(*byte));
    let mut rtc = Rtc::new(epoch, 0, 1_000_000);
    let mut now = 0_u64;
    let mut touched = false;
    each(data, |access: ClockAccess| {
        now = now.saturating_add(access.ticks & 0xff_ffff_ffff);
        rtc.write(0x70, access.register);
        let register = access.register & 0x7f;
        if let Some(value) = access.write {
            rtc.write(0x71, value);
            touched |= register == 0x0b;
            return;
        }
        let value = rtc.read(0x71, now);
        if !touched && matches!(register, 0 | 2 | 4 | 7 | 8 | 9) {
            assert!(value & 15 < 10 && value >> 4 < 10, "register {register} reads {value:#x}");
            let limit = [0x59, 0, 0x59, 0, 0x23, 0, 0, 0x31, 0x12, 0x99][usize::from(register)];
            assert!(value <= limit);
        }
        rtc.read(0x70, now);
    });
    let (early, late) = (Civil::from_seconds(epoch), Civil::from_seconds(epoch + 86_400));
    assert!((early.year, early.month, early.day) < (late.year, late.month, late.day));
    assert_eq!((early.hour, early.minute, early.second), (late.hour, late.minute, late.second));
}

#[derive(Debug, Arbitrary)]
enum Test {
    Read(u16),
    Write { port: u16, size: u8, value: u32 },
    Load { at: u16, size: u8 },
    Store { at: u16, size: u8, value: u64 },
}

/// The test device: its memory keeps what is written, and only its own ports do anything.
pub fn test_device(data: &[u8]) {
    let mut device = TestDevice::new(2, 32 << 20);
    let width = |size: u8| 1_usize << (size & 3);
    // Half of the accesses go to its ports.
    let near = |port: u16| {
        if port & 1 == 0 { port } else { [0xe0, 0x2000, 0x50c, 0xf4][usize::from(port >> 1 & 3)] + (port >> 3) % 24 }
    };
    each(data, |access| match access {
        Test::Read(port) => _ = device.read(near(port)),
        Test::Write { port, size, value } => {
            let port = near(port);
            match device.write(port, 1 << (size % 3), value) {
                Ask::Line(line, high) => assert!(line < 24 && high == (value != 0)),
                Ask::End(status) => assert_eq!(status, value),
                Ask::NotMine => assert!(device.read(port).is_none() || port == 0x511),
                Ask::Nothing => {}
            }
        }
        Test::Load { at, size } => _ = device.memory_read(MMIO.start + u64::from(at), width(size)),
        Test::Store { at, size, value } => {
            let (gpa, width) = (MMIO.start + u64::from(at), width(size));
            device.memory_write(gpa, width, value);
            let inside = width.min((MMIO.end - gpa) as usize);
            let mask = u64::MAX >> (64 - 8 * inside);
            assert_eq!(device.memory_read(gpa, width), value & mask);
        }
    });
}

#[derive(Debug, Arbitrary)]
struct PowerAccess {
    port: u16,
    near: bool,
    value: u32,
    size: u8,
    #[arbitrary(with = number)]
    tsc: u64,
    #[arbitrary(with = number)]
    khz: u64,
}

/// Sleep control, resets, pvpanic: only they end a VM. The PM timer has 24 bits.
pub fn power(data: &[u8]) {
    const PORTS: [u16; 5] = [power::SLEEP_CONTROL, power::RESET, power::KEYBOARD, power::PANIC, power::SLEEP_STATUS];
    let mut device = Power::default();
    each(data, |access: PowerAccess| {
        let port = if access.near { PORTS[usize::from(access.port) % PORTS.len()] } else { access.port };
        let request = device.write(port, access.value, 1 << (access.size % 3));
        match request {
            Request::None => {}
            Request::Off => assert_eq!(port, power::SLEEP_CONTROL),
            Request::Reset => assert!(matches!(port, power::RESET | power::KEYBOARD)),
            Request::Panicked => assert_eq!(port, power::PANIC),
        }
        if request != Request::None {
            assert!(PORTS.contains(&port));
        }
        device.read(port);
        assert!(power::pm_timer(access.tsc, access.khz) < 1 << 24);
    });
}
