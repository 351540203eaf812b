//! ASIDs of encrypted VMs: the kernel's table says what each is; here is only which won't be used again.
//!
//! An ASID that was given up is *reclaimable*: it isn't free until a flush, and the flush comes when a launch finds none free.

use caisson_proto::kernel::{AsidInfo, AsidReport, AsidState, FORGOTTEN, Machine, VmKind};

use crate::Kernel;

/// ASIDs below this can be told apart; EPYC has at most 1006.
const MOST: u32 = 1024;

/// Which ASIDs are whose (CPUID 8000_001F ECX and EDX).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// The lowest of SEV VMs; those below are of SEV-ES and SEV-SNP VMs.
    first_sev: u32,
    /// The highest of all.
    last: u32,
}

impl Classes {
    /// This machine's.
    pub const fn of(machine: &Machine) -> Self {
        let last = machine.sev_asids & 0xffff;
        Self { first_sev: machine.sev_asids >> 16, last: if last < MOST { last } else { MOST - 1 } }
    }

    /// First and last of a kind of VM; empty if the first is above.
    const fn range(self, kind: VmKind) -> (u32, u32) {
        match kind {
            VmKind::Plain => (1, 0),
            VmKind::Sev => (if self.first_sev == 0 { 1 } else { self.first_sev }, self.last),
            VmKind::SevEs | VmKind::SevSnp => {
                let last = self.first_sev.saturating_sub(1);
                (1, if last < self.last { last } else { self.last })
            }
        }
    }

    /// The row after the last.
    pub(crate) const fn end(self) -> u32 {
        self.last + 1
    }
}

/// What a class has to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The lowest that is free.
    Free(u32),
    /// None is free, and a flush would free one.
    Reclaimable,
    /// Nor that.
    Nothing,
}

/// ASIDs that won't be used again, by who the guest was that has them: a SHUTDOWN frees SEV's, an SNP_SHUTDOWN_EX SNP's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaked {
    sev: [u64; MOST as usize / 64],
    snp: [u64; MOST as usize / 64],
}

impl Leaked {
    pub(crate) const fn new() -> Self {
        Self { sev: [0; MOST as usize / 64], snp: [0; MOST as usize / 64] }
    }

    pub(crate) fn leak(&mut self, asid: u32, kind: VmKind) {
        let bits = if kind == VmKind::SevSnp { &mut self.snp } else { &mut self.sev };
        if let Some(word) = bits.get_mut(asid as usize / 64) {
            *word |= 1 << (asid % 64);
        }
    }

    pub(crate) fn forgive(&mut self, snp: bool) {
        if snp { self.snp.fill(0) } else { self.sev.fill(0) }
    }

    /// Whether it won't be used again.
    pub fn contains(&self, asid: u32) -> bool {
        let bit = |bits: &[u64]| bits.get(asid as usize / 64).is_some_and(|word| word >> (asid % 64) & 1 == 1);
        bit(&self.sev) || bit(&self.snp)
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.sev.iter().zip(&self.snp).map(|(sev, snp)| (sev | snp).count_ones()).sum()
    }

    /// Looks for an ASID for a VM of this kind.
    pub(crate) fn look(&self, classes: Classes, kind: VmKind, kernel: &mut impl Kernel) -> Found {
        let (first, last) = classes.range(kind);
        let mut found = Found::Nothing;
        for asid in first..=last {
            let Ok(row) = kernel.ask(&AsidInfo { asid }) else { break };
            if self.contains(asid) || unforgotten(&row) && row.handle & FORGOTTEN == 0 {
                continue;
            }
            match row.state {
                AsidState::Free => return Found::Free(asid),
                AsidState::Dirty | AsidState::Flushed => found = Found::Reclaimable,
                AsidState::Bound | AsidState::Active => {}
            }
        }
        found
    }

    /// Whether a flush would do anything, for either class.
    pub(crate) fn any_reclaimable(&self, classes: Classes, kernel: &mut impl Kernel) -> bool {
        (1..classes.end()).any(|asid| {
            kernel.ask(&AsidInfo { asid }).is_ok_and(|row| matches!(row.state, AsidState::Dirty | AsidState::Flushed))
        })
    }
}

/// Whether the processor still has the guest that had this ASID, or its context's page, though it took the ASID away.
pub(crate) fn unforgotten(row: &AsidReport) -> bool {
    row.handle != 0 && !matches!(row.state, AsidState::Bound | AsidState::Active)
}

/// Whether the processor's handle of the guest in this row is one that it gave to nobody else.
pub(crate) fn handle_is_new(asid: u32, classes: Classes, kernel: &mut impl Kernel) -> bool {
    let Ok(own) = kernel.ask(&AsidInfo { asid }) else { return false };
    let same =
        |row: AsidReport| row.handle == own.handle && (row.kind == VmKind::SevSnp) == (own.kind == VmKind::SevSnp);
    let mut others = (1..classes.end()).filter(|other| *other != asid);
    own.handle != 0 && !others.any(|asid| kernel.ask(&AsidInfo { asid }).is_ok_and(same))
}
