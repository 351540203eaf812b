//! memory.

use std::rc::Rc;

use caisson_memory::{Kernel, Memory};
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{Frame, Gfn, ServiceId, Tsc, VmId};
use caisson_proto::kernel::{GuestConvert, GuestMap, GuestUnmap, TimerSet, VmDestroy, VmState};
use caisson_proto::memory::{Attribute, Punch, Reclaimed};
use caisson_proto::notifier::{Settle, Want};
use caisson_proto::wire::{Reply, Request, Words};
use caisson_rt::ring::Producer;
use zerocopy::IntoBytes;

use super::bent::{About, bend};
use super::notifier::CHANGE;
use super::platform;
use super::ring::Page;
use super::{Server, serve};
use crate::config::Mutant;
use crate::service::Sys;
use crate::world::KHZ;

struct OnKernel<'a, 'b> {
    sys: &'a Sys<'b>,
    reclaimed: Producer<Page>,
    donated: (Frame, u64),
    about: About,
}

impl Kernel for OnKernel<'_, '_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        let (sys, world) = (self.sys, self.sys.world);
        let mut words = request.encode();
        if R::OP != GuestMap::OP {
            return self.raw::<R>(&words);
        }
        // Sometimes something changes between the snapshot and the commit.
        if world.rng.chance(1, 16) {
            let _ = sys.ring(world.manifest.notifier, CHANGE);
        }
        let (vm, gfn, pages, decided_at) = (words[1] as u32, words[3], words[5], words[7]);
        // A change in which all of this happens.
        let within: Vec<u64> = {
            let open = world.open.borrow();
            let touches = open.iter().filter(|(_, of, start, end)| *of == vm && *start < gfn + pages && gfn < *end);
            touches.map(|(number, ..)| *number).collect()
        };
        if world.breaks(Mutant::NewestSequence) {
            words[7] = world.kernel.vms[VmId::from_bits(vm).index()].invalidation.sequence().0;
        }
        let complete = world.changes.borrow().get(&(words[1] as u32)).copied().unwrap_or(0);
        let answer = self.raw::<R>(&words);
        world.check(answer.is_err() || decided_at >= complete, || {
            format!("a commit with sequence {decided_at} went through after {complete} changes")
        });
        let amid = world.open.borrow().iter().any(|(number, ..)| within.contains(number));
        world.check(answer.is_err() || !amid, || format!("gfn {gfn:#x} of VM {vm:#x} is mapped amid a change of it"));
        answer
    }

    fn post(&mut self, reclaimed: &Reclaimed) -> bool {
        if self.sys.stopped() || self.reclaimed.push(reclaimed.as_bytes()).is_err() {
            return false;
        }
        if self.reclaimed.must_wake() {
            let _ = self.sys.ring(self.sys.world.manifest.notifier, caisson_proto::ring::doorbell::ring(0));
        }
        true
    }

    fn lend<R: Request>(&mut self, request: &R, lease: Lease) -> Result<R::Reply, Status> {
        let lease = Some(lease).filter(|_| !self.sys.world.breaks(Mutant::EmptyFill));
        self.raw_lending::<R>(&request.encode(), lease)
    }

    fn firmware<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        if !self.sys.world.config.encrypted {
            return Err(Status::Unsupported);
        }
        self.sys.call(self.sys.world.manifest.firmware, request)
    }

    fn donated(&self) -> (Frame, u64) {
        self.donated
    }

    fn settle(&mut self) {
        let notifier = self.sys.world.manifest.notifier;
        if self.sys.call(notifier, &Settle {}).is_err() {
            let _ = self.sys.call(notifier, &Settle {});
        }
    }

    fn want(&mut self, frames: u64) {
        let _ = self.sys.call(self.sys.world.manifest.notifier, &Want { frames });
    }

    fn settled(&mut self) {
        let _ = self.sys.ring(self.sys.world.manifest.supervisor, doorbell::SETTLED);
    }

    fn again(&mut self) -> bool {
        self.sys.ring(self.sys.slot, doorbell::TICKET).is_ok()
    }

    fn later(&mut self) {
        let _ = self.sys.ask(&TimerSet { at: Tsc(self.sys.world.now.get() + KHZ) });
    }
}

struct Image<'a, 'b> {
    memory: Box<Memory>,
    kernel: OnKernel<'a, 'b>,
}

impl Server for Image<'_, '_> {
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let world = self.kernel.sys.world;
        if world.breaks(Mutant::ClaimedPunch) && words[0] == Punch::OP.into() {
            return (Status::Ok, [words[3], 0, 0, 0, 0, 0, 0, 0]);
        }
        self.kernel.about.begin(words[0] as u16);
        let mut asked = *words;
        let less = words[0] == Punch::OP.into() && words[3] > 1 && world.breaks(Mutant::PunchLess);
        asked[3] -= u64::from(less);
        let mut answer = self.memory.handle(sender, &asked, lease, &mut self.kernel);
        answer.1[0] += u64::from(less);
        if world.breaks(Mutant::ForgottenAttribute) && words[0] == Attribute::OP.into() && words[4] != 0 {
            self.kernel.about.idle = true;
            let shared = [words[0], words[1], words[2], words[3], 0, 0, 0, 0];
            self.memory.handle(sender, &shared, None, &mut self.kernel);
        }
        if !self.kernel.sys.stopped() {
            self.kernel.about.end(world, words);
        }
        bend(world, words, answer)
    }

    fn doorbell(&mut self, bits: u64) {
        if bits & RECLAIM != 0 {
            let takings = &self.kernel.sys.world.takings;
            takings.set(takings.get() + 1);
            self.kernel.take_back();
            takings.set(takings.get() + 1);
        }
        self.kernel.about.begin(0);
        self.memory.doorbell(bits & !RECLAIM, &mut self.kernel);
    }
}

impl OnKernel<'_, '_> {
    fn raw<R: Request>(&mut self, words: &Words) -> Result<R::Reply, Status> {
        self.raw_lending::<R>(words, None)
    }

    fn raw_lending<R: Request>(&mut self, words: &Words, lease: Option<Lease>) -> Result<R::Reply, Status> {
        let mut asked = *words;
        if let Some(words) = self.about.before(self.sys, &mut asked) {
            return R::Reply::decode(&words).map_err(|_| Status::Malformed);
        }
        let mut answer = self.sys.ask_raw(&asked, lease);
        self.about.after(self.sys, &asked, &mut answer);
        answer.and_then(|words| R::Reply::decode(&words).map_err(|_| Status::Malformed))
    }

    /// Takes pages from a living VM.
    fn take_back(&mut self) {
        let (sys, world) = (self.sys, self.sys.world);
        let alive: Vec<_> = world.kernel.vms.iter().filter(|vm| vm.state() == Some(VmState::Alive)).collect();
        let Some((vm, handler)) = world.rng.pick(&alive).map(|vm| (vm.id.get(), vm.handler.get())) else { return };
        if world.rng.chance(1, 32) {
            // All of it: its vmm has to find out. If this service dies before it can say so, its next life does, and may say it
            // needlessly.
            world.doomed.set(Some(handler.index()));
            let destroyed = sys.ask(&VmDestroy { vm }).is_ok();
            if world.doomed.take().is_some() && destroyed {
                world.knock(handler.index());
            }
            return;
        }
        if world.rng.chance(1, 8) {
            return self.share(vm);
        }
        // Where memory is short, all have to give some.
        for _ in 0..1 + world.rng.below(6) {
            let some = world.rng.pick(&alive).filter(|vm| vm.state() == Some(VmState::Alive));
            some.into_iter().for_each(|vm| self.take_some(vm.id.get()));
        }
    }

    /// Turns some private pages of a VM shared.
    fn share(&mut self, vm: VmId) {
        let (sys, world) = (self.sys, self.sys.world);
        let first = world.rng.below(world.manifest.guest_pages);
        let private = |gfn: &u64| world.is_private(vm, *gfn);
        let Some(gfn) = (first..world.manifest.guest_pages).find(private) else { return };
        let pages = (gfn..gfn + 1 + world.rng.below(4)).take_while(private).count() as u64;
        let _ = sys.ask(&GuestConvert { vm, gfn: Gfn(gfn), pages, private: false, large: false });
    }

    /// Takes a range of pages from a VM.
    fn take_some(&mut self, vm: VmId) {
        let (sys, world) = (self.sys, self.sys.world);
        let gfn = Gfn(world.rng.below(world.manifest.guest_pages));
        let pages = 1 + world.rng.below([64, world.manifest.guest_pages][world.rng.below(2) as usize]);
        if let Ok(unmapped) = sys.ask(&GuestUnmap { vm, view: 0, gfn, pages, more: false, broken: false })
            && unmapped.pages > 0
        {
            let (batch, pages) = (unmapped.batch.0, unmapped.pages);
            // Notifier may be asked at once, so that the next range is taken while CPUs flush for this one.
            if !self.post(&Reclaimed { vm: vm.bits(), batch, gfn: gfn.0, pages }) || world.rng.chance(1, 2) {
                self.settle();
            }
        }
    }
}

/// The bell at which pages are taken from a living VM.
pub const RECLAIM: u64 = 1 << 21;

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let reclaimed = Producer::new(Page(Rc::clone(sys.world)));
    let about = About::starting();
    let kernel = OnKernel { sys, reclaimed, donated: platform::donate(sys), about };
    let mut image = Image { memory: Box::new(Memory::new()), kernel };
    image.memory.start(sys.world.config.cpus as u16, &mut image.kernel);
    image.kernel.about.begin(0);
    if !sys.stopped() {
        image.kernel.about.end(sys.world, &[0; 8]);
    }
    serve(sys, &mut image);
}
