//! What a vmm has memory change under its guest: pages given back, host addresses discarded, the slot divided and put together.

use caisson_core::svm::npt::look_up;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::VmKind;
use caisson_proto::layout;
use caisson_proto::memory::{Discard, GiveBack, Populate, SlotFlags, SlotSet};
use caisson_proto::slots::{GmemAddress, HostAddress, Region, SlotId};

use super::judge::Judge;
use super::private::Private;
use crate::seen::Seen;
use crate::service::Sys;
use crate::world::{View, World};

/// Calls for one change: pages go 512 at a time, and a busy memory is asked again.
const CALLS: u32 = 200;
/// Pages of a VM's region.
pub const WHOLE: u64 = (layout::USER_END - layout::GUEST) >> 12;

/// What a VM's vmm knows of it.
pub struct Shown {
    judge: Judge,
    /// What it wants private.
    pub private: Private,
    /// Pages were given back, so that memory owes the VM less than it promised.
    pub given: bool,
    /// Its slot was divided at this page.
    divided: Option<u64>,
}

impl Shown {
    /// One slot shows all of it.
    pub fn new(vm: VmId, kind: VmKind) -> Self {
        let judge = Judge { vm, kind };
        Self { judge, private: Private::new(judge), given: false, divided: None }
    }

    /// Changes something.
    pub fn change(&mut self, sys: &Sys<'_>) {
        let world = sys.world;
        let first = world.rng.below(world.manifest.guest_pages);
        let pages = 1 + world.rng.below([8, 64][world.rng.below(2) as usize]);
        match world.rng.below(16) {
            0..4 => self.give_back(sys, first, pages),
            4..6 => self.discard(sys, first, pages),
            6 if world.config.hunt && self.judge.kind == VmKind::Plain && world.manifest.guest_pages >= 160 => {
                self.given = true;
                self.private.stripe(sys);
                self.discard(sys, 0, world.manifest.guest_pages);
            }
            6..14 => {
                self.given = true;
                self.private.change(sys);
            }
            _ if self.judge.kind != VmKind::Plain => {}
            _ if self.divided.is_some() => self.join(sys),
            _ => self.divide(sys, 1 + first),
        }
    }

    /// Nothing of a range is mapped, but for what is private if that stays.
    fn check_gone(&self, sys: &Sys<'_>, first: u64, pages: u64, private_stays: bool) {
        let world = sys.world;
        if !self.judge.quiet(sys) {
            return;
        }
        for gfn in first..(first + pages).min(world.manifest.guest_pages) {
            let there = look_up(&View(world), World::window(sys.slot), Gfn(World::in_window(gfn))).is_some();
            let stays = private_stays && world.is_private(self.judge.vm, gfn);
            let gone = !there && (stays || !world.owns(self.judge.vm, gfn));
            world.check(gone, || format!("gfn {gfn:#x} of {:?} is still there", self.judge.vm));
        }
    }

    fn give_back(&mut self, sys: &Sys<'_>, first: u64, pages: u64) {
        self.given = true;
        let request = GiveBack { vm: self.judge.vm, gfn: Gfn(first), pages };
        let right = |_: &_, gfn, was, is: Option<Seen>| {
            if (first..first + pages).contains(&gfn) { is.is_none() } else { was == is }
        };
        let ask = || sys.call(sys.world.manifest.memory, &request).map(|_| ());
        let answer = self.judge.act(sys, "giving back", ask, right);
        if self.judge.answer(sys, "giving back", answer) {
            self.check_gone(sys, first, pages, false);
        }
    }

    fn discard(&mut self, sys: &Sys<'_>, first: u64, pages: u64) {
        self.given = true;
        let request = Discard { vm: self.judge.vm, start: self.host(first), pages };
        let right = |_: &_, gfn, was: Option<Seen>, is: Option<Seen>| {
            let taken = (first..first + pages).contains(&gfn) && was.is_some_and(|was| !was.private);
            if taken { is.is_none() } else { was == is }
        };
        let ask = || finish(|| self.discard_some(sys, &request));
        let answer = self.judge.act(sys, "a discard", ask, right);
        if self.judge.answer(sys, "a discard", answer) {
            self.check_gone(sys, first, pages, true);
        }
    }

    fn host(&self, page: u64) -> HostAddress {
        HostAddress { region: Region(self.judge.vm.index() as u16), page }
    }

    /// One call of it. While it goes on slots stay as they are.
    fn discard_some(&self, sys: &Sys<'_>, request: &Discard) -> Result<bool, Status> {
        let more = sys.call(sys.world.manifest.memory, request)?.more;
        if more {
            let swap = sys.call(sys.world.manifest.memory, &self.slot(0, 0, 0)).map(|_| ());
            let refused = swap == Err(Status::Busy) || !self.judge.quiet(sys);
            sys.world.check(refused, || format!("a slot is deleted amid an event: {swap:?}"));
        }
        Ok(more)
    }

    /// Makes or, without pages, deletes a slot that shows the VM's region as it lies.
    fn set(&self, sys: &Sys<'_>, slot: u16, first: u64, pages: u64) -> Result<(), Status> {
        let request = self.slot(slot, first, pages);
        finish(|| sys.call(sys.world.manifest.memory, &request).map(|progress| progress.more))
    }

    fn slot(&self, slot: u16, first: u64, pages: u64) -> SlotSet {
        let shows = pages > 0;
        SlotSet {
            vm: self.judge.vm,
            slot: SlotId(slot),
            flags: if shows { SlotFlags::GMEM } else { SlotFlags::empty() },
            gfn: Gfn(first),
            pages,
            host: self.host(first),
            gmem: if shows { GmemAddress { gmem: self.private.gmem, page: first } } else { GmemAddress::default() },
        }
    }

    /// Two slots in the place of one. What was there is given back.
    fn divide(&mut self, sys: &Sys<'_>, at: u64) {
        self.given = true;
        let memory = sys.world.manifest.memory;
        self.private.look_up(sys);
        let gone = self.set(sys, 0, 0, 0);
        if !self.judge.answer(sys, "deleting a slot", gone) {
            return;
        }
        self.check_gone(sys, 0, WHOLE, false);
        let nowhere =
            sys.call(memory, &Populate { vm: self.judge.vm, gfn: Gfn(at), pages: 1, private: false }).map(|_| ());
        let refused = nowhere == Err(Status::NotFound) || !self.judge.quiet(sys);
        sys.world.check(refused, || format!("a page that no slot shows is populated: {nowhere:?}"));
        let low = self.set(sys, 0, 0, at);
        let mut twice = self.slot(1, at, WHOLE - at);
        twice.gmem.page -= 1;
        let shown = sys.call(memory, &twice).map(|_| ());
        let refused = shown == Err(Status::Invalid) || !self.judge.quiet(sys);
        sys.world.check(refused, || format!("a page of a gmem is shown twice: {shown:?}"));
        let high = self.set(sys, 1, at, WHOLE - at);
        self.judge.answer(sys, "the lower slot", low);
        if self.judge.answer(sys, "the upper slot", high) {
            self.divided = Some(at);
            let over = self.set(sys, 2, at - 1, 2);
            let refused = over == Err(Status::Exists) || !self.judge.quiet(sys);
            sys.world.check(refused, || format!("a slot over two others is answered with {over:?}"));
        }
    }

    /// One again.
    fn join(&mut self, sys: &Sys<'_>) {
        for slot in [1, 0] {
            let gone = self.set(sys, slot, 0, 0);
            if !self.judge.answer(sys, "deleting a slot", gone) {
                return;
            }
        }
        let whole = self.set(sys, 0, 0, WHOLE);
        if self.judge.answer(sys, "the whole slot", whole) {
            self.divided = None;
        }
    }

    /// memory doesn't know where the guest's memory is: it was started again while a slot was missing.
    pub fn restore(&mut self, sys: &Sys<'_>) {
        self.divided = None;
        for slot in [1, 0] {
            let _ = self.set(sys, slot, 0, 0);
        }
        if self.set(sys, 0, 0, WHOLE) == Err(Status::NotFound) {
            self.private.renew(sys);
            let _ = self.set(sys, 0, 0, WHOLE);
        }
    }
}

/// Asks until it is done.
pub fn finish(mut ask: impl FnMut() -> Result<bool, Status>) -> Result<(), Status> {
    let mut answer = Err(Status::Busy);
    for _ in 0..CALLS {
        answer = match ask() {
            Ok(false) => return Ok(()),
            Ok(true) | Err(Status::Busy | Status::Dead | Status::Died) => Err(Status::Busy),
            Err(status) => return Err(status),
        };
    }
    answer
}
