//! Which bytes of devices an instruction means, and their way to and from the copies.

use caisson_proto::addr::Gpa;
use caisson_proto::vcpu::VcpuState;
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess};

use alloc::vec::Vec;

use crate::holes::register_of;
use crate::insn::decode::code_bits;
use crate::insn::walk::{Access, PageFault, Paging};
use crate::platform::Platform;
use crate::vmm::Vmm;

/// The most bytes of an operand: FXSAVE's.
const MAX_BYTES: u64 = 512;

/// A far pointer with an offset of 64 bits.
const FAR_POINTER: u64 = 10;

/// Bytes of a device in one page.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where the guest has them.
    pub linear: u64,
    /// Where they are.
    pub gpa: u64,
    /// Where the copy is.
    pub copy: u64,
    /// How many.
    pub bytes: u64,
    /// The instruction reads them, or may leave them as they are.
    pub reads: bool,
    /// The instruction writes them.
    pub writes: bool,
}

/// Why there are no operands.
pub enum Refused {
    /// They fault.
    Fault(PageFault),
    /// It isn't known where they are.
    Unknown,
}

impl<P: Platform> Vmm<P> {
    /// The operands of an instruction in devices' memory: at least one.
    pub(super) fn operands(&mut self, state: &VcpuState, instruction: &Instruction) -> Result<Vec<Place>, Refused> {
        let paging = Paging::of(state);
        let width = if code_bits(state) == 64 { u64::MAX } else { 0xffff_ffff };
        let mut factory = InstructionInfoFactory::new();
        let mut places = Vec::new();
        for operand in factory.info(instruction).used_memory() {
            let (reads, writes) = match operand.access() {
                OpAccess::None | OpAccess::NoMemAccess => continue,
                OpAccess::Write => (false, true),
                OpAccess::Read | OpAccess::CondRead => (true, false),
                _ => (true, true),
            };
            let bytes = match operand.memory_size().size() as u64 {
                // Whether REX.W makes the offset longer is the CPU's to know: AMD's and QEMU's differ.
                _ if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() => FAR_POINTER,
                bytes => bytes,
            };
            if bytes == 0 || bytes > MAX_BYTES {
                return Err(Refused::Unknown);
            }
            let register = |register, _, _| register_of(state, register);
            let start = operand.virtual_address(0, register).ok_or(Refused::Unknown)?;
            let mut done = 0;
            while done < bytes {
                let linear = start.wrapping_add(done) & width;
                let here = (0x1000 - (linear & 0xfff)).min(bytes - done);
                let access = if writes { Access::Write } else { Access::Read };
                let translated = paging.translate(&mut self.platform, &mut self.ram, linear, access);
                let gpa = translated.map_err(Refused::Fault)?;
                if !self.ram.contains(gpa) {
                    places.push(Place { linear, gpa, copy: 0, bytes: here, reads, writes });
                }
                done += here;
            }
        }
        if places.is_empty() { Err(Refused::Unknown) } else { Ok(places) }
    }

    /// From the device to the copy.
    pub(super) fn read_place(&mut self, at: usize, place: &Place) {
        if !place.reads {
            return;
        }
        for (offset, bytes) in accesses(place) {
            let value = self.device_read(at, place.gpa + offset, bytes).to_le_bytes();
            let _ = self.platform.write(Gpa(place.copy + offset), value.get(..bytes).unwrap_or_default());
        }
    }

    /// From the copy to the device.
    pub(super) fn write_place(&mut self, at: usize, place: &Place) {
        if !place.writes {
            return;
        }
        for (offset, bytes) in accesses(place) {
            let mut value = [0; 8];
            let _ = self.platform.read(Gpa(place.copy + offset), value.get_mut(..bytes).unwrap_or_default());
            self.device_write(at, place.gpa + offset, bytes, u64::from_le_bytes(value));
        }
    }
}

/// The aligned accesses that make up a place: offset and length.
fn accesses(place: &Place) -> impl Iterator<Item = (u64, usize)> {
    let Place { gpa, bytes, .. } = *place;
    let mut offset = 0;
    core::iter::from_fn(move || {
        let left = bytes - offset;
        let length = [8, 4, 2, 1].into_iter().find(|length| *length <= left && (gpa + offset) % length == 0)?;
        let at = offset;
        offset += length;
        Some((at, length as usize))
    })
}
