//! Entries of the reverse map table, which says of each frame whose it is: APM volume 2, section 15.36.3. A processor
//! that has no RMPREAD leaves their layout open; this is the one that current parts have.

use crate::addr::{Gfn, Gpa};

/// An entry: the host's, the processor's, or a guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(target_os = "none", derive(defmt::Format))]
pub struct Entry(pub [u64; 2]);

/// Not the host's.
pub const ASSIGNED: u64 = 1 << 0;
/// Of 2 MiB.
pub const LARGE: u64 = 1 << 1;
/// The host can't change it.
pub const IMMUTABLE: u64 = 1 << 2;
/// A save area, or a guest's context.
pub const VMSA: u64 = 1 << 61;
/// The guest has accepted it.
pub const VALIDATED: u64 = 1 << 62;
/// Somebody is changing it.
pub const LOCKED: u64 = 1 << 63;
/// Where the guest-physical address stands, at its own bits.
pub const GPA: u64 = 0x7_ffff_ffff_f000;

/// In the second word: VMPL 0 may read, write and execute.
pub const VMPL0: u64 = 0xf;

impl Entry {
    /// The host's.
    pub const SHARED: Self = Self([0; 2]);
    /// The processor's.
    pub const FIRMWARE: Self = Self([ASSIGNED | IMMUTABLE, 0]);

    /// A guest's page of 4 KiB, not accepted yet, with the rights that RMPUPDATE gives it whatever it is told; `fill` if
    /// the processor is to fill it, and nobody else may use it until then.
    pub const fn guest(asid: u32, gfn: Gfn, fill: bool) -> Self {
        let fill = if fill { IMMUTABLE } else { 0 };
        Self([ASSIGNED | fill | gfn.0 << 12 & GPA | (asid as u64 & 0x3ff) << 51, VMPL0])
    }

    /// The same of so many pages: 1 or 512.
    pub const fn sized(self, pages: u64) -> Self {
        Self([if pages > 1 { self.0[0] | LARGE } else { self.0[0] }, self.0[1]])
    }

    /// Whether one of these bits is set.
    pub const fn has(self, bits: u64) -> bool {
        self.0[0] & bits != 0
    }

    /// The guest's ASID; 0 for none.
    pub const fn asid(self) -> u32 {
        (self.0[0] >> 51 & 0x3ff) as u32
    }

    /// Where the guest has it.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0[0] & GPA)
    }
}
