//! Pages that a service writes and another reads, for good: who has which, where each sees them, what it is told of them.
//!
//! In the bundle they follow the rings' pages. The reader's mapping has no write permission: that, and not its word, is
//! why it changes nothing there.

use caisson_proto::bundle::MapRecord;
use caisson_proto::info::{MAX_SHARES, ShareInfo, ShareUse};
use caisson_proto::kernel::Access;
use caisson_proto::stats::{MAX_SHARED_PAGES, SHARES};

use crate::plan::{Planned, Slots, slots_of};
use crate::system::System;
use crate::{Error, wrong};

const PAGE: u64 = 4096;

/// Pages that two services share.
#[derive(Clone, Copy, Debug)]
pub struct PlannedShare {
    /// Slot of the one that writes, and the first page's place among its own.
    pub holder: (u16, u32),
    /// The same of the one that reads.
    pub reader: (u16, u32),
    /// How many pages.
    pub pages: u16,
    /// What is in them.
    pub purpose: ShareUse,
    /// The VM's channel on the console; 0 where no VM is concerned.
    pub channel: u16,
}

/// The shares of a machine with these services.
pub(crate) fn plan(system: &System, slots: &Slots<'_>) -> Result<Vec<PlannedShare>, Error> {
    let mut planned: Vec<PlannedShare> = Vec::new();
    // Shares and pages that each service has so far.
    let mut used = vec![(0, 0); slots.len()];
    for share in &system.shares {
        let pages = share.carries.pages();
        let both = |holder| slots_of(slots, &share.reader).map(move |reader| (holder, reader));
        for (holder, reader) in slots_of(slots, &share.holder).flat_map(both) {
            let channel = slots[holder].1.map_or(0, |vm| vm as u16 + 1);
            let mut take = |slot: usize| {
                let (count, first) = used[slot];
                used[slot] = (count + 1, first + u32::from(pages));
                (slot as u16, first)
            };
            let (holder, reader) = (take(holder), take(reader));
            planned.push(PlannedShare { holder, reader, pages, purpose: share.carries.share_use(), channel });
        }
    }
    let over = |&(count, pages): &(usize, u32)| count > MAX_SHARES || u64::from(pages) > MAX_SHARED_PAGES;
    match used.iter().position(over) {
        Some(slot) => Err(wrong!(
            "\"{}\" has {} shares with {} pages; at most {MAX_SHARES} with {MAX_SHARED_PAGES} fit. Run fewer VMs",
            slots[slot].0.name,
            used[slot].0,
            used[slot].1
        )),
        None => Ok(planned),
    }
}

/// Whom a service may ring because it reads what they hold.
pub(crate) fn may_ring(shares: &[PlannedShare], slot: usize) -> u64 {
    let reads = shares.iter().filter(|share| usize::from(share.reader.0) == slot);
    reads.fold(0, |mask, share| mask | 1 << share.holder.0)
}

/// What the services are told of their shares.
pub(crate) fn fill_info(services: &mut [Planned], shares: &[PlannedShare]) {
    for share in shares {
        let ends = [(ShareInfo::HOLDER, share.holder, share.reader), (ShareInfo::READER, share.reader, share.holder)];
        for (role, (slot, first), (peer, _)) in ends {
            let places = services.get_mut(usize::from(slot)).map(|service| &mut service.info.share);
            if let Some(place) = places.and_then(|places| places.iter_mut().find(|place| place.role == 0)) {
                let PlannedShare { pages, purpose, channel, .. } = *share;
                *place = ShareInfo { role, purpose: purpose as u8, channel, peer, pages, first };
            }
        }
    }
}

/// Pages of all of them.
pub(crate) fn pages(shares: &[PlannedShare]) -> u64 {
    shares.iter().map(|share| u64::from(share.pages)).sum()
}

/// Both ends' mappings, of pages that follow the first `before` of those that are shared.
pub(crate) fn maps(shares: &[PlannedShare], before: u64) -> Vec<MapRecord> {
    let mut next = before;
    let both = |share: &PlannedShare| {
        let first = next;
        next += u64::from(share.pages);
        let record = |(service, place): (u16, u32), access: Access| MapRecord {
            page: SHARES / PAGE + u64::from(place),
            first,
            pages: share.pages.into(),
            access: u32::from(access.bits()),
            service,
            kind: MapRecord::SHARED,
            ..MapRecord::default()
        };
        [record(share.holder, Access::READ | Access::WRITE), record(share.reader, Access::READ)]
    };
    shares.iter().flat_map(both).collect()
}
