//! The devices by which test programs work that expect QEMU's: debug exit, test device (a register, interrupt lines,
//! a page of device memory), and the little of fw_cfg that tells of the machine.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::insn::operand::mask;

/// Writing to it ends the machine with a status: QEMU's isa-debug-exit.
pub const EXIT: Range<u16> = 0xf4..0xf8;
/// A register of 32 bits; its second place takes accesses of any width too.
const REGISTER: Range<u16> = 0xe0..0xe4;
const REGISTER_BYTES: Range<u16> = 0xe8..0xec;
/// QEMU takes a page away and gives it back here, so that the next access to it faults. Nothing changes for the guest.
const FLUSH: Range<u16> = 0xe4..0xe8;
/// Interrupt lines: what is written to line n's port is its level.
const LINES: Range<u16> = 0x2000..0x2018;
/// fw_cfg's selector, 16 bits, and its data, a byte at a time.
const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
/// Device memory that is nothing but memory.
pub const MMIO: Range<u64> = 0xff00_0000..0xff01_0000;

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing more.
    Nothing,
    /// The port is none of these.
    NotMine,
    /// A level on an interrupt line.
    Line(u8, bool),
    /// The end.
    End(u32),
}

/// The devices.
#[derive(Debug)]
pub struct TestDevice {
    register: u32,
    memory: Vec<u8>,
    item: Vec<u8>,
    read: usize,
    vcpus: u8,
    bytes: u64,
}

impl TestDevice {
    /// Those of a machine with so many vCPUs and bytes of memory.
    pub fn new(vcpus: u8, bytes: u64) -> Self {
        let memory = vec![0; (MMIO.end - MMIO.start) as usize];
        Self { register: 0, memory, item: Vec::new(), read: 0, vcpus, bytes }
    }

    /// A read of a port; `None` if it is none of these.
    pub fn read(&mut self, port: u16) -> Option<u32> {
        Some(match port {
            _ if REGISTER.contains(&port) || REGISTER_BYTES.contains(&port) => self.register >> (8 * (port & 3)),
            DATA => {
                // Beyond an item's end, and in items that don't exist, there are zeros.
                let byte = self.item.get(self.read).copied().unwrap_or(0);
                self.read += 1;
                byte.into()
            }
            _ if FLUSH.contains(&port) || EXIT.contains(&port) || LINES.contains(&port) => 0,
            _ => return None,
        })
    }

    /// A write to a port.
    pub fn write(&mut self, port: u16, bytes: u8, value: u32) -> Ask {
        match port {
            _ if REGISTER.contains(&port) || REGISTER_BYTES.contains(&port) => {
                let shift = 8 * u32::from(port & 3);
                let mask = (mask(usize::from(bytes)) as u32) << shift;
                self.register = self.register & !mask | (value << shift) & mask;
                Ask::Nothing
            }
            SELECTOR => {
                self.read = 0;
                self.item = match value as u16 {
                    0 => b"QEMU".to_vec(),
                    // The interface: ports, no DMA.
                    1 => 1_u32.to_le_bytes().to_vec(),
                    3 => self.bytes.to_le_bytes().to_vec(),
                    // vCPUs now and at the most.
                    5 | 15 => u16::from(self.vcpus).to_le_bytes().to_vec(),
                    _ => Vec::new(),
                };
                Ask::Nothing
            }
            _ if LINES.contains(&port) => Ask::Line((port - LINES.start) as u8, value != 0),
            _ if EXIT.contains(&port) => Ask::End(value),
            _ if FLUSH.contains(&port) || port == DATA => Ask::Nothing,
            _ => Ask::NotMine,
        }
    }

    /// Reads device memory.
    pub fn memory_read(&self, gpa: u64, bytes: usize) -> u64 {
        let at = (gpa - MMIO.start) as usize;
        (0..bytes).fold(0, |value, n| value | u64::from(self.memory.get(at + n).copied().unwrap_or(0)) << (8 * n))
    }

    /// Writes device memory.
    pub fn memory_write(&mut self, gpa: u64, bytes: usize, value: u64) {
        let at = (gpa - MMIO.start) as usize;
        let target = self.memory.iter_mut().skip(at).take(bytes);
        target.zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
}
