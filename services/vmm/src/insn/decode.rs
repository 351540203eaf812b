//! Decoding one instruction of the guest, with a memory of where its code lies.

use caisson_proto::vcpu::{Segment, VcpuState};
use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::walk::{Access, EFER_LMA, PageFault, Paging};
use crate::platform::Platform;
use crate::ram::Ram;

/// The longest instruction in bytes.
pub const MAX_BYTES: usize = 15;
/// Attribute bit of a code segment: 64-bit.
pub(crate) const LONG: u16 = 1 << 9;
/// Attribute bit of a code segment: 32-bit default.
const DEFAULT_32: u16 = 1 << 10;
/// Pages of code that are remembered.
const REMEMBERED: usize = 64;

/// Where pages of the guest's code lie, as they were found last: pairs of linear and guest-physical page numbers.
///
/// It is a hint. It is used only to recognise an instruction whose exit is known already, by its unprefixed bytes:
/// a page that moved meanwhile doesn't have them there, and then the page tables are walked.
#[derive(Debug)]
pub struct CodePages {
    pages: [(u64, u64); REMEMBERED],
    /// All of them were backed in this epoch of the memory.
    epoch: u64,
}

impl Default for CodePages {
    fn default() -> Self {
        Self { pages: [(u64::MAX, 0); REMEMBERED], epoch: 0 }
    }
}

impl CodePages {
    #[inline]
    fn find(&self, linear: u64) -> Option<u64> {
        let page = linear >> 12;
        let (known, physical) = *self.pages.get(page as usize % REMEMBERED)?;
        (known == page).then_some(physical << 12 | linear & 0xfff)
    }

    fn remember(&mut self, linear: u64, physical: u64, epoch: u64) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
        let page = linear >> 12;
        if let Some(slot) = self.pages.get_mut(page as usize % REMEMBERED) {
            *slot = (page, physical >> 12);
        }
    }

    /// Whether the bytes at `rip` are `expected`, by what is remembered.
    #[inline]
    pub fn matches<const N: usize>(&self, platform: &impl Platform, ram: &Ram, rip: u64, expected: [u8; N]) -> bool {
        let Some(physical) = self.find(rip).filter(|_| self.epoch == ram.epoch()) else { return false };
        let at = physical & 7;
        // Nearly always the bytes are in one aligned word, which is one access.
        if at + N as u64 <= 8 {
            let mut word = [0; 8];
            let mut wanted = [0; 8];
            wanted.iter_mut().zip(expected).for_each(|(to, from)| *to = from);
            return platform.read(caisson_proto::addr::Gpa(physical & !7), &mut word)
                && u64::from_le_bytes(word) >> (8 * at) & (u64::MAX >> (64 - 8 * N)) == u64::from_le_bytes(wanted);
        }
        let mut bytes = [0; N];
        rip & 0xfff <= 0x1000 - N as u64
            && platform.read(caisson_proto::addr::Gpa(physical), &mut bytes)
            && bytes == expected
    }

    /// Reads the bytes of the instruction at the state's rip: as many as there are, up to 15. CORE, SEGMENTS and
    /// CONTROL must be current.
    ///
    /// # Errors
    /// [`PageFault`] if not even the first byte can be fetched.
    pub fn fetch(&mut self, platform: &mut impl Platform, ram: &mut Ram, state: &VcpuState) -> Result<Code, PageFault> {
        let paging = Paging::of(state);
        let [_, code_segment, ..] = state.segments;
        let bits = code_bits(state);
        let base = if bits == 64 { 0 } else { code_segment.base };
        let start = base.wrapping_add(state.rip) & if bits == 64 { u64::MAX } else { 0xffff_ffff };
        let mut code = Code { bytes: [0; MAX_BYTES], len: 0, bits, rip: state.rip };
        let mut linear = start;
        while code.len < MAX_BYTES {
            let physical = match paging.translate(platform, ram, linear, Access::Fetch) {
                Ok(physical) => physical,
                Err(fault) if code.len == 0 => return Err(fault),
                Err(_) => break,
            };
            let in_page = (0x1000 - (linear & 0xfff)) as usize;
            let Some(rest) = code.bytes.get_mut(code.len..) else { break };
            let count = in_page.min(rest.len());
            let Some(target) = rest.get_mut(..count) else { break };
            if ram.read(platform, physical, target).is_err() {
                break;
            }
            if linear == state.rip {
                self.remember(linear, physical, ram.epoch());
            }
            code.len += count;
            linear = linear.wrapping_add(count as u64);
        }
        Ok(code)
    }
}

/// Whether the code segment is 16, 32 or 64 bits wide.
pub fn code_bits(state: &VcpuState) -> u32 {
    let [_, Segment { attributes, .. }, ..] = state.segments;
    match attributes {
        attributes if state.efer & EFER_LMA != 0 && attributes & LONG != 0 => 64,
        attributes if attributes & DEFAULT_32 != 0 => 32,
        _ => 16,
    }
}

/// Bytes of an instruction and the mode in which they mean something.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    bytes: [u8; MAX_BYTES],
    len: usize,
    bits: u32,
    rip: u64,
}

impl Code {
    /// The instruction, if the bytes are one.
    pub fn decode(&self) -> Option<Instruction> {
        let bytes = self.bytes.get(..self.len)?;
        let mut decoder = Decoder::try_with_ip(self.bits, bytes, self.rip, DecoderOptions::AMD).ok()?;
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// How long the instruction is, where the CPU accepted it: QEMU does with prefixes that others refuse, as LOCK.
    pub fn accepted_len(&self) -> Option<usize> {
        let bytes = self.bytes.get(..self.len)?;
        let options = DecoderOptions::AMD | DecoderOptions::NO_INVALID_CHECK;
        let instruction = Decoder::try_with_ip(self.bits, bytes, self.rip, options).ok()?.decode();
        (!instruction.is_invalid()).then(|| instruction.len())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// The first eight bytes, for a log.
    pub fn head(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// The address after an instruction of `len` bytes here.
    pub fn after(&self, len: usize) -> u64 {
        let next = self.rip.wrapping_add(len as u64);
        match self.bits {
            64 => next,
            32 => next & 0xffff_ffff,
            _ => next & 0xffff,
        }
    }
}
