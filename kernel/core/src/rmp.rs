//! The reverse map table where the machine has none of its own: in memory, with RMPUPDATE's rules.
//!
//! What reads and writes memory here isn't checked against it; what the table would refuse is refused when it is changed.

// Under loom too: the table is behind the lock of the kernel's tables.
use core::sync::atomic::AtomicU64;

use crate::prelude::*;
use caisson_proto::rmp::{ASSIGNED, IMMUTABLE, LARGE, LOCKED, VALIDATED, VMPL0, VMSA};

/// Why an instruction on an entry was refused: what it leaves in EAX (APM volume 3, RMPUPDATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmpError {
    /// FAIL_INPUT: an entry that isn't there, isn't aligned, or can't be made so.
    Input = 1,
    /// FAIL_PERMISSION: the processor has it.
    Permission = 2,
    /// FAIL_INUSE: somebody else is changing it.
    InUse = 3,
    /// FAIL_OVERLAP: an entry of the other size is in the way, also at its own head (for 4 KiB there, unverified).
    Overlap = 4,
}

/// What RMPUPDATE can't set.
const KEPT: u64 = !(LOCKED | VALIDATED | VMSA);

/// The table: an entry for each frame.
#[derive(Clone, Copy, Debug)]
pub struct Rmp(pub &'static [[AtomicU64; 2]]);

impl Rmp {
    /// A frame's entry. `None` where there is none.
    pub fn get(self, frame: Frame) -> Option<Entry> {
        let entry = self.0.get(usize::try_from(frame.0).ok()?)?;
        Some(Entry(entry.each_ref().map(|word| word.load(Ordering::Acquire))))
    }

    /// Writes a frame's entry, if there is one.
    pub fn set(self, frame: Frame, entry: Entry) {
        let place = self.0.get(frame.0 as usize).into_iter().flatten();
        place.zip(entry.0).for_each(|(place, word)| place.store(word, Ordering::Release));
    }

    /// Everything is the host's.
    pub fn clear(self) {
        self.0.iter().flatten().for_each(|word| word.store(0, Ordering::Release));
    }

    /// RMPUPDATE. A guest's page is then not validated, and for VMPL 0 alone (APM volume 2, section 15.36.7).
    ///
    /// # Errors
    /// All of them; nothing is changed then. Of 2 MiB only the head has to be covered (unverified).
    pub fn update(self, frame: Frame, new: Entry) -> Result<(), RmpError> {
        let large = new.has(LARGE);
        let old = self.get(frame).filter(|_| !large || frame.0.is_multiple_of(512)).ok_or(RmpError::Input)?;
        let head = frame.0 & !511;
        let is = |frame, bits| self.get(Frame(frame)).is_some_and(|entry| entry.0[0] & bits == bits);
        let overlaps = match large {
            true => (head + 1..head + 512).any(|frame| is(frame, ASSIGNED)) || old.has(ASSIGNED) && !old.has(LARGE),
            false => is(head, ASSIGNED | LARGE),
        };
        match new.has(ASSIGNED) {
            false if new.has(IMMUTABLE) || new.asid() != 0 => Err(RmpError::Input),
            _ if old.has(LOCKED) => Err(RmpError::InUse),
            _ if old.has(IMMUTABLE) => Err(RmpError::Permission),
            _ if overlaps => Err(RmpError::Overlap),
            assigned => {
                let rights = if new.asid() == 0 { 0 } else { VMPL0 };
                self.set(frame, if assigned { Entry([new.0[0] & KEPT, rights]) } else { Entry::SHARED });
                Ok(())
            }
        }
    }

    /// PSMASH: the entry of 2 MiB around a frame becomes 512 of 4 KiB, alike but for their addresses (APM volume 3).
    ///
    /// # Errors
    /// [`RmpError::Input`] if there is none; [`RmpError::InUse`].
    pub fn smash(self, frame: Frame) -> Result<(), RmpError> {
        let head = frame.0 & !511;
        let old = self.get(Frame(head)).filter(|it| it.has(ASSIGNED) && it.has(LARGE)).ok_or(RmpError::Input)?;
        if old.has(LOCKED) {
            return Err(RmpError::InUse);
        }
        for page in 0..512 {
            self.set(Frame(head + page), Entry([(old.0[0] & !LARGE) + (page << 12), old.0[1]]));
        }
        Ok(())
    }
}
