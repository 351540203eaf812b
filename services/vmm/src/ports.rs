//! I/O ports (APM volume 2, section 15.10.2).

use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_proto::vcpu::{Exit, Resume, VcpuState};
use caisson_proto::vmm::OnReset;

use crate::dev::power::{self, Request};
use crate::dev::testdev::Ask;
use crate::dev::{rtc, uart};
use crate::exits::done;
use crate::insn::operand::mask;
use crate::platform::{Event, Platform};
use crate::vmm::Vmm;

/// Where PCI's configuration address would be.
const PCI_ADDRESS: u16 = 0xcf8;
/// No device has a port above this, but for the test devices.
const LAST: u16 = power::RESET;
/// EXITINFO1: it is IN.
const IN: u64 = 1 << 0;
/// EXITINFO1: it is INS or OUTS.
const STRING: u64 = 1 << 2;

impl<P: Platform> Vmm<P> {
    #[inline]
    pub(crate) fn port_exit(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        if exit.info1 & STRING != 0 {
            return self.string_io(at, exit, state);
        }
        let port = (exit.info1 >> 16) as u16;
        let bytes = match exit.info1 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4_u8,
        };
        let mask = mask(usize::from(bytes));
        let next = exit.info2;
        if exit.info1 & IN == 0 {
            self.port_write(at, port, bytes, (exit.rax & mask) as u32);
            return done(next, exit.rax);
        }
        let value = u64::from(self.port_read(port, bytes)) & mask;
        // A 32-bit result clears the upper half, narrower ones leave the rest.
        done(next, if bytes == 4 { value } else { exit.rax & !mask | value })
    }

    /// Reads a port; the bits above `bytes` mean nothing.
    #[inline]
    pub(crate) fn port_read(&mut self, port: u16, bytes: u8) -> u32 {
        if port > LAST && self.test.is_none() { u32::MAX } else { self.port_read_device(port, bytes) }
    }

    fn port_read_device(&mut self, port: u16, bytes: u8) -> u32 {
        if port & !7 == uart::BASE && bytes == 1 {
            let value = self.uart.read(port & 7);
            self.update_uart();
            return u32::from(value);
        }
        if let Some(value) = self.test.as_mut().and_then(|test| test.read(port)) {
            return value;
        }
        if port == power::PM_TIMER {
            return power::pm_timer(self.platform.now().wrapping_sub(self.born), self.facts.tsc_khz);
        }
        if bytes == 4 && port == PCI_ADDRESS {
            // The reset register is at a byte of it, and there is no PCI.
            return u32::MAX;
        }
        (0..u16::from(bytes))
            .fold(0, |value, n| value | u32::from(self.port_read_byte(port.wrapping_add(n))) << (8 * n))
    }

    fn port_read_byte(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pics.read(port),
            0x40..=0x43 | 0x61 => self.pit.read(port, self.platform.now()),
            _ if rtc::PORTS.contains(&port) => self.rtc.read(port, self.platform.now()),
            _ if port & !7 == uart::BASE => self.uart.read(port & 7),
            _ => self.power.read(port).unwrap_or(0xff),
        }
    }

    /// Writes a port.
    pub(crate) fn port_write(&mut self, at: usize, port: u16, bytes: u8, value: u32) {
        if port & !7 == uart::BASE {
            if let Some(byte) = self.uart.write(port & 7, value as u8) {
                self.output.push(&mut self.platform, byte);
            }
            self.update_uart();
            return;
        }
        match self.test.as_mut().map_or(Ask::NotMine, |test| test.write(port, bytes, value)) {
            Ask::NotMine => {}
            Ask::Nothing => return,
            Ask::Line(irq, high) => return self.set_line(irq, high),
            Ask::End(value) => {
                self.note(Event::TestEnded(value));
                return self.end(ExitKind::TestEnded, [value.into(), 0, 0, 0]);
            }
        }
        match self.power.write(port, value, bytes) {
            Request::None => {}
            request => return self.act(at, request),
        }
        for n in 0..u16::from(bytes) {
            self.port_write_byte(port.wrapping_add(n), (value >> (8 * n)) as u8);
        }
    }

    fn port_write_byte(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                self.pics.write(port, value);
                self.update_pic();
            }
            0x40..=0x43 | 0x61 => {
                let before = self.pit.due();
                self.pit.write(port, value, self.platform.now());
                if self.pit.due() != before {
                    // vCPU 0 keeps the PIT's deadline.
                    self.wake(0);
                }
            }
            _ if rtc::PORTS.contains(&port) => self.rtc.write(port, value),
            _ => {}
        }
    }

    fn act(&mut self, at: usize, request: Request) {
        match request {
            Request::None => {}
            Request::Off => {
                self.note(Event::PoweredOff);
                self.end(ExitKind::PoweredOff, [0; 4]);
            }
            Request::Reset => {
                self.note(Event::Reset);
                let kind = match self.on_reset {
                    OnReset::Restart => ExitKind::Reset,
                    OnReset::Stop => ExitKind::PoweredOff,
                };
                self.end(kind, [0; 4]);
            }
            Request::Panicked => {
                self.note(Event::Panicked);
                self.crash(CrashKind::Panic, at, 0, 0);
            }
        }
    }
}
