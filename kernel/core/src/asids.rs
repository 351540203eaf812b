//! ASIDs of encrypted VMs, and what the secure processor calls their guests.
//!
//! Invariant 2 of the design: Active → Dirty at DEACTIVATE; → Flushed when a WBINVD that began after that has completed
//! on all CPUs; → Free when the firmware then accepted DF_FLUSH. There is no other way to Free for an ASID that was
//! active or bound. One whose guest the firmware still knows stays Flushed: a failed DECOMMISSION leaks it.

use crate::prelude::*;

/// One more than the highest ASID of an encrypted VM. Current parts have 1006.
pub const MAX_ASIDS: usize = 1024;

/// An ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    /// What it is.
    pub state: AsidState,
    /// The VM that has it, or had it last, and that VM's kind.
    pub vm: VmId,
    /// See `vm`.
    pub kind: VmKind,
    /// The firmware's handle of the guest, or the address of its context page. 0 while the firmware knows none.
    pub handle: u64,
    /// Tickets that were given when it became Dirty: later ones flush it.
    since: u64,
}

impl Asid {
    const FREE: Self = Self { state: AsidState::Free, vm: VmId::new(0, 0), kind: VmKind::Plain, handle: 0, since: 0 };

    /// Whether the firmware knows its guest.
    pub const fn is_known(&self) -> bool {
        self.handle != 0 && self.handle & FORGOTTEN == 0
    }

    /// Its VM is gone, or was deactivated: → Dirty.
    pub fn deactivate(&mut self, tickets: u64) {
        (self.state, self.since) = (AsidState::Dirty, tickets);
    }
}

/// The table.
pub struct Asids([Asid; MAX_ASIDS]);

impl Asids {
    /// All are free.
    pub const fn new() -> Self {
        Self([Asid::FREE; MAX_ASIDS])
    }

    /// An ASID.
    pub fn get(&mut self, asid: u32) -> Option<&mut Asid> {
        self.0.get_mut(asid as usize)
    }

    /// The ASID of a VM, also of one that is gone.
    pub fn of(&mut self, vm: VmId) -> Option<(u32, &mut Asid)> {
        (0..).zip(&mut self.0).find(|(_, asid)| asid.kind != VmKind::Plain && asid.vm == vm)
    }

    /// Free → Bound.
    ///
    /// # Errors
    /// [`Status::TooWeak`] for one that isn't recycled yet, [`Status::Busy`] for another VM's.
    pub fn bind(&mut self, asid: u32, vm: VmId, kind: VmKind) -> Outcome {
        let place = self.get(asid).ok_or(Status::Range)?;
        ensure(!matches!(place.state, AsidState::Dirty | AsidState::Flushed), Status::TooWeak)?;
        ensure(place.state == AsidState::Free, Status::Busy)?;
        *place = Asid { state: AsidState::Bound, vm, kind, ..Asid::FREE };
        Ok(())
    }

    /// Whether one is Dirty: DF_FLUSH would be refused.
    pub fn any_dirty(&self) -> bool {
        self.0.iter().any(|asid| asid.state == AsidState::Dirty)
    }

    /// A WBINVD on all CPUs has completed that got this ticket: Dirty → Flushed for what was Dirty before it.
    pub fn flushed(&mut self, ticket: u64) {
        for asid in self.0.iter_mut().filter(|asid| asid.state == AsidState::Dirty && asid.since < ticket) {
            asid.state = AsidState::Flushed;
        }
    }

    /// The firmware accepted DF_FLUSH, which was rung when so many tickets were given: Flushed → Free for what was Flushed then,
    /// unless it still knows the guest. Nothing was Dirty then.
    pub fn recycle(&mut self, tickets: u64) {
        let done = |asid: &&mut Asid| asid.state == AsidState::Flushed && asid.since < tickets && !asid.is_known();
        self.0.iter_mut().filter(done).for_each(|asid| *asid = Asid::FREE);
    }

    /// The firmware was initialised: whatever it knew of caches is lost, so what is Free is Dirty.
    pub fn doubt(&mut self, tickets: u64) {
        self.0.iter_mut().filter(|asid| asid.state == AsidState::Free).for_each(|asid| asid.deactivate(tickets));
    }

    /// The firmware was shut down: it knows no guest of these kinds any more.
    pub fn shut_down(&mut self, snp: bool, tickets: u64) {
        for asid in self.0.iter_mut().filter(|asid| (asid.kind == VmKind::SevSnp) == snp) {
            // A context's page has still to come back.
            asid.handle = if snp && asid.handle != 0 { asid.handle | FORGOTTEN } else { 0 };
            if asid.state == AsidState::Active {
                asid.deactivate(tickets);
            }
        }
    }
}
