//! Page states, as the RMP shows them (56860 chapter 5, "Page States"; APM volume 2, section 15.36.3).

use caisson_proto::addr::{Frame, Gpa, Spa};
use caisson_proto::rmp::{self, ASSIGNED, GPA, IMMUTABLE, LARGE, VALIDATED, VMSA};

use crate::board::Asid;

/// Size of a page in the RMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Size {
    /// 4 KiB.
    #[default]
    Small,
    /// 2 MiB.
    Large,
}

impl Size {
    /// 4 KiB pages in it.
    pub const fn pages(self) -> u64 {
        match self {
            Self::Small => 1,
            Self::Large => 512,
        }
    }

    /// Its bytes.
    pub const fn bytes(self) -> u64 {
        self.pages() * 4096
    }
}

/// A page's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// Not the host's.
    pub assigned: bool,
    /// The guest accepted it.
    pub validated: bool,
    /// The host can't change the entry.
    pub immutable: bool,
    /// It holds a guest context, or a save area.
    pub vmsa: bool,
    /// Its size.
    pub size: Size,
    /// The guest that it belongs to, 0 for none.
    pub asid: Asid,
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// What VMPL 0 to 3 may do: read 1, write 2, execute as user 4, as supervisor 8.
    pub permissions: [u8; 4],
}

/// What an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host's.
    Hypervisor,
    /// The processor's, for answers and buffers.
    Firmware,
    /// Given back, and not yet taken by the host.
    Reclaim,
    /// A guest's context.
    Context,
    /// The root of swapped pages. None is made here.
    Metadata,
    /// Assigned to a guest, for the processor to fill.
    PreGuest,
    /// A guest's page on its way out. None is made here.
    PreSwap,
    /// A guest's that it hasn't accepted.
    GuestInvalid,
    /// A guest's.
    GuestValid,
}

impl Entry {
    /// Its state. No entry is without one.
    pub const fn state(&self) -> State {
        let guest = self.asid.0 != 0;
        match (self.assigned, guest, self.immutable, self.validated) {
            (false, ..) => State::Hypervisor,
            (true, false, false, _) => State::Reclaim,
            (true, false, true, _) if self.gpa.0 != 0 => State::Metadata,
            (true, false, true, _) if self.vmsa => State::Context,
            (true, false, true, _) => State::Firmware,
            (true, true, true, false) => State::PreGuest,
            (true, true, true, true) => State::PreSwap,
            (true, true, false, false) => State::GuestInvalid,
            (true, true, false, true) => State::GuestValid,
        }
    }

    /// As it lies in the table. The second word has a byte for each VMPL (unverified).
    pub fn to_table(self) -> rmp::Entry {
        let bit = |is: bool, bit| if is { bit } else { 0 };
        let low = bit(self.assigned, ASSIGNED)
            | bit(self.size == Size::Large, LARGE)
            | bit(self.immutable, IMMUTABLE)
            | bit(self.vmsa, VMSA)
            | bit(self.validated, VALIDATED);
        rmp::Entry([
            low | self.gpa.0 & GPA | (u64::from(self.asid.0) & 0x3ff) << 51,
            u32::from_le_bytes(self.permissions).into(),
        ])
    }

    /// What lies in the table.
    pub const fn from_table(entry: rmp::Entry) -> Self {
        Self {
            assigned: entry.has(ASSIGNED),
            validated: entry.has(VALIDATED),
            immutable: entry.has(IMMUTABLE),
            vmsa: entry.has(VMSA),
            size: if entry.has(LARGE) { Size::Large } else { Size::Small },
            asid: Asid(entry.asid() as u16),
            gpa: entry.gpa(),
            permissions: (entry.0[1] as u32).to_le_bytes(),
        }
    }

    /// A page of the processor's.
    pub const fn firmware(size: Size) -> Self {
        Self {
            assigned: true,
            validated: false,
            immutable: true,
            vmsa: false,
            size,
            asid: Asid(0),
            gpa: Gpa(0),
            permissions: [0; 4],
        }
    }

    /// A guest's page that the processor is to fill.
    pub const fn pre_guest(asid: Asid, gpa: Gpa, size: Size) -> Self {
        Self { asid, gpa, ..Self::firmware(size) }
    }
}

/// Bytes of an entry.
const BYTES: u64 = 16;

/// Where the table lies that has an entry for each frame.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its first frame.
    pub first: Frame,
    /// Frames that it covers: those below this number.
    pub frames: u64,
}

impl Table {
    /// Where a frame's entry lies. None if the table doesn't cover the frame.
    pub fn entry(self, frame: Frame) -> Option<Spa> {
        (frame.0 < self.frames).then(|| Spa(self.first.spa().0 + frame.0 * BYTES))
    }

    /// The byte after its last entry.
    pub const fn end(self) -> Spa {
        Spa(self.first.spa().0 + self.frames * BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_the_table() {
        for bits in 0..32 {
            let entry = Entry {
                assigned: bits & 1 != 0,
                validated: bits & 2 != 0,
                immutable: bits & 4 != 0,
                vmsa: bits & 8 != 0,
                size: if bits & 16 != 0 { Size::Large } else { Size::Small },
                asid: Asid(0x3ff - bits),
                gpa: Gpa(0x7_ffff_ffff_f000 - (u64::from(bits) << 12)),
                permissions: [1, 2, 4, 15],
            };
            assert_eq!(Entry::from_table(entry.to_table()), entry);
        }
        assert_eq!(Entry::from_table(rmp::Entry::SHARED).state(), State::Hypervisor);
        assert_eq!(Entry::from_table(rmp::Entry::FIRMWARE).state(), State::Firmware);
        let guest = |fill| Entry::from_table(rmp::Entry::guest(3, caisson_proto::addr::Gfn(0), fill)).state();
        assert_eq!((guest(true), guest(false)), (State::PreGuest, State::GuestInvalid));
    }

    #[test]
    fn the_frame_after_the_last_has_no_entry() {
        let table = Table { first: Frame(2), frames: 512 };
        assert_eq!(table.entry(Frame(0)), Some(Spa(0x2000)));
        assert_eq!(table.entry(Frame(511)), Some(Spa(0x3ff0)));
        assert_eq!((table.entry(Frame(512)), table.end()), (None, Spa(0x4000)));
    }
}
