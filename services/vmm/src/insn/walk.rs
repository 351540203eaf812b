//! The guest's page tables: linear to guest-physical (APM volume 2, chapter 5).

use caisson_proto::vcpu::{Save, VcpuState};

use crate::platform::Platform;
use crate::ram::Ram;

/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR0: write protection for supervisors.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: protected mode.
pub const CR0_PE: u64 = 1;
/// CR4: physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: large pages without PAE.
pub const CR4_PSE: u64 = 1 << 4;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no-execute.
pub const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// Why an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// The guest would get #PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The address, for CR2.
    pub linear: u64,
    /// The error code.
    pub code: u32,
}

/// Error code: present, and a reserved bit is set.
const RESERVED: u32 = 1 << 3;

impl PageFault {
    /// Whether a table's entry has reserved bits, as one has that lies where there is no memory.
    pub fn is_reserved(&self) -> bool {
        self.code & RESERVED != 0
    }
}

/// Registers that translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
}

impl Paging {
    /// As a state page has it; CORE and CONTROL must be current.
    pub fn of(state: &VcpuState) -> Self {
        let Save { cr0, cr3, cr4, efer, cpl, .. } = state.save;
        Self { cr0, cr3, cr4, efer, user: cpl == 3 }
    }

    fn fault(&self, linear: u64, access: Access, present: bool) -> PageFault {
        let write = u32::from(access == Access::Write) << 1;
        let fetch = access == Access::Fetch && self.efer & EFER_NXE != 0;
        PageFault { linear, code: u32::from(present) | write | u32::from(self.user) << 2 | u32::from(fetch) << 4 }
    }

    /// The guest-physical address of a linear one. A write sets the dirty bit, any access the accessed bits.
    ///
    /// # Errors
    /// [`PageFault`] where the CPU would raise one. Reserved bits of tables in memory and SMAP aren't checked.
    pub fn translate(
        &self, platform: &mut impl Platform, ram: &mut Ram, linear: u64, access: Access,
    ) -> Result<u64, PageFault> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(linear & 0xffff_ffff);
        }
        let long = self.efer & EFER_LMA != 0;
        let wide = long || self.cr4 & CR4_PAE != 0;
        let linear = if long { linear } else { linear & 0xffff_ffff };
        if long && (linear as i64) << 16 >> 16 != linear as i64 {
            return Err(self.fault(linear, access, false));
        }
        let (mut table, mut shift) = match (long, wide) {
            (true, _) => (self.cr3 & ADDRESS, 39),
            (_, true) => (self.cr3 & 0xffff_ffe0, 30),
            _ => (self.cr3 & 0xffff_f000, 22),
        };
        let (index_bits, entry_bytes) = if wide { (9, 8) } else { (10, 4) };
        let mut rights = WRITABLE | USER;
        loop {
            let index = linear >> shift & ((1 << index_bits) - 1);
            let at = table + index * entry_bytes;
            let mut bytes = [0; 8];
            let target = if wide { &mut bytes[..] } else { &mut bytes[..4] };
            if !ram.contains(at) {
                // It reads as ones.
                let PageFault { linear, code } = self.fault(linear, access, true);
                return Err(PageFault { linear, code: code | RESERVED });
            }
            ram.read(platform, at, target).map_err(|_| self.fault(linear, access, false))?;
            let entry = u64::from_le_bytes(bytes);
            if entry & PRESENT == 0 {
                return Err(self.fault(linear, access, false));
            }
            // The four entries of a PAE root have no rights.
            let root_of_pae = wide && !long && shift == 30;
            if !root_of_pae {
                rights &= entry;
                if wide && self.efer & EFER_NXE != 0 && entry & NO_EXECUTE != 0 && access == Access::Fetch {
                    return Err(self.fault(linear, access, true));
                }
            }
            let large_allowed = match (wide, shift) {
                (true, 21) => true,
                (true, 30) => long,
                (false, 22) => self.cr4 & CR4_PSE != 0,
                _ => false,
            };
            let last = shift == 12 || (large_allowed && entry & LARGE != 0);
            if !last {
                table = if wide { entry & ADDRESS } else { entry & 0xffff_f000 };
                shift -= index_bits;
                continue;
            }
            let forbidden = if self.user { rights & USER == 0 } else { false };
            let protected = access == Access::Write && rights & WRITABLE == 0 && (self.user || self.cr0 & CR0_WP != 0);
            if forbidden || protected {
                return Err(self.fault(linear, access, true));
            }
            let marks = ACCESSED | if access == Access::Write { DIRTY } else { 0 };
            if entry & marks != marks {
                // Both bits lie in the entry's lowest byte.
                let _ = ram.write(platform, at, &[(entry | marks) as u8]);
            }
            let within = (1_u64 << shift) - 1;
            let base = match (wide, shift) {
                // PSE-36: address bits 39:32 in bits 20:13.
                (false, 22) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
                _ => entry & ADDRESS & !within,
            };
            return Ok(base | linear & within);
        }
    }
}
