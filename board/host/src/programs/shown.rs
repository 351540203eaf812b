//! What a vmm has memory change under its guest: pages given back, host addresses discarded, the slot divided and put together.

use caisson_core::svm::npt::look_up;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::{VmKind, VmState};
use caisson_proto::layout;
use caisson_proto::memory::{Discard, GiveBack, Populate, SlotFlags, SlotSet};
use caisson_proto::slots::{GmemAddress, HostAddress, Region, SlotId};

use crate::service::Sys;
use crate::world::{View, World};

/// Calls for one change: pages go 512 at a time, and a busy memory is asked again.
const CALLS: u32 = 200;
/// Pages of a VM's region.
const WHOLE: u64 = (layout::USER_END - layout::GUEST) >> 12;

/// What a VM's vmm knows of it.
pub struct Shown {
    vm: VmId,
    kind: VmKind,
    /// Pages were given back, so that memory owes the VM less than it promised.
    pub given: bool,
    /// Its slot was divided at this page.
    divided: Option<u64>,
}

impl Shown {
    /// One slot shows all of it.
    pub fn new(vm: VmId, kind: VmKind) -> Self {
        Self { vm, kind, given: false, divided: None }
    }

    /// Changes something.
    pub fn change(&mut self, sys: &Sys<'_>) {
        let world = sys.world;
        let first = world.rng.below(world.manifest.guest_pages);
        let pages = 1 + world.rng.below([8, 64][world.rng.below(2) as usize]);
        match world.rng.below(8) {
            0..4 => self.give_back(sys, first, pages),
            4..6 => self.discard(sys, first, pages),
            _ if self.kind != VmKind::Plain => {}
            _ if self.divided.is_some() => self.join(sys),
            _ => self.divide(sys, 1 + first),
        }
    }

    /// Whether everybody whom a change needs lived through it, and nobody took the VM away.
    fn quiet(&self, sys: &Sys<'_>) -> bool {
        let world = sys.world;
        let first_life = |slot| world.kernel.service(slot).id.get().generation() == 0;
        let fine = first_life(world.manifest.memory) && first_life(world.manifest.notifier);
        let mut vms = world.kernel.vms.iter();
        fine && vms.any(|vm| vm.id.get() == self.vm && vm.state() == Some(VmState::Alive)) && !sys.stopped()
    }

    /// What memory may answer to a request that is right.
    fn judge(&self, sys: &Sys<'_>, what: &str, result: Result<(), Status>) -> bool {
        // The processor may work for the VM, or no frame is left to split a large page with.
        let excused = self.kind != VmKind::Plain || matches!(result, Err(Status::Busy | Status::Exhausted));
        let expected = result.is_ok() || excused || !self.quiet(sys);
        sys.world.check(expected, || format!("{what} of {:?} is answered with {result:?}", self.vm));
        result.is_ok()
    }

    /// Nothing of a range is mapped, but for what is private if that stays.
    fn check_gone(&self, sys: &Sys<'_>, first: u64, pages: u64, private_stays: bool) {
        let world = sys.world;
        if !self.quiet(sys) {
            return;
        }
        for gfn in first..(first + pages).min(world.manifest.guest_pages) {
            let there = look_up(&View(world), World::window(sys.slot), Gfn(World::in_window(gfn))).is_some();
            let stays = private_stays && world.is_private(self.vm, gfn);
            let gone = !there && (stays || !world.owns(self.vm, gfn));
            world.check(gone, || format!("gfn {gfn:#x} of {:?} is still there", self.vm));
        }
    }

    fn give_back(&mut self, sys: &Sys<'_>, first: u64, pages: u64) {
        self.given = true;
        let request = GiveBack { vm: self.vm, gfn: Gfn(first), pages };
        let answer = sys.call(sys.world.manifest.memory, &request).map(|_| ());
        if self.judge(sys, "giving back", answer) {
            self.check_gone(sys, first, pages, false);
        }
    }

    fn discard(&mut self, sys: &Sys<'_>, first: u64, pages: u64) {
        self.given = true;
        let request = Discard { vm: self.vm, start: self.host(first), pages };
        let answer = finish(|| sys.call(sys.world.manifest.memory, &request).map(|progress| progress.more));
        if self.judge(sys, "a discard", answer) {
            self.check_gone(sys, first, pages, true);
        }
    }

    fn host(&self, page: u64) -> HostAddress {
        HostAddress { region: Region(self.vm.index() as u16), page }
    }

    /// Makes or, without pages, deletes a slot that shows the VM's region as it lies.
    fn set(&self, sys: &Sys<'_>, slot: u16, first: u64, pages: u64) -> Result<(), Status> {
        let request = SlotSet {
            vm: self.vm,
            slot: SlotId(slot),
            flags: SlotFlags::empty(),
            gfn: Gfn(first),
            pages,
            host: self.host(first),
            gmem: GmemAddress::default(),
        };
        finish(|| sys.call(sys.world.manifest.memory, &request).map(|progress| progress.more))
    }

    /// Two slots in the place of one. What was there is given back.
    fn divide(&mut self, sys: &Sys<'_>, at: u64) {
        self.given = true;
        let memory = sys.world.manifest.memory;
        let gone = self.set(sys, 0, 0, 0);
        if !self.judge(sys, "deleting a slot", gone) {
            return;
        }
        self.check_gone(sys, 0, WHOLE, false);
        let nowhere = sys.call(memory, &Populate { vm: self.vm, gfn: Gfn(at), pages: 1, private: false }).map(|_| ());
        let refused = nowhere == Err(Status::NotFound) || !self.quiet(sys);
        sys.world.check(refused, || format!("a page that no slot shows is populated: {nowhere:?}"));
        let low = self.set(sys, 0, 0, at);
        let high = self.set(sys, 1, at, WHOLE - at);
        self.judge(sys, "the lower slot", low);
        if self.judge(sys, "the upper slot", high) {
            self.divided = Some(at);
            let over = self.set(sys, 2, at - 1, 2);
            let refused = over == Err(Status::Exists) || !self.quiet(sys);
            sys.world.check(refused, || format!("a slot over two others is answered with {over:?}"));
        }
    }

    /// One again.
    fn join(&mut self, sys: &Sys<'_>) {
        for slot in [1, 0] {
            let gone = self.set(sys, slot, 0, 0);
            if !self.judge(sys, "deleting a slot", gone) {
                return;
            }
        }
        let whole = self.set(sys, 0, 0, WHOLE);
        if self.judge(sys, "the whole slot", whole) {
            self.divided = None;
        }
    }

    /// memory doesn't know where the guest's memory is: it was started again while a slot was missing.
    pub fn restore(&mut self, sys: &Sys<'_>) {
        self.divided = None;
        for slot in [1, 0] {
            let _ = self.set(sys, slot, 0, 0);
        }
        let _ = self.set(sys, 0, 0, WHOLE);
    }
}

/// Asks until it is done.
fn finish(mut ask: impl FnMut() -> Result<bool, Status>) -> Result<(), Status> {
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
