//! notifier; and, as nobody else changes mappings yet, someone who begins and ends invalidations in its place.

use std::rc::Rc;

use caisson_notifier::{Kernel, Notifier};
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{Gfn, ServiceId};
use caisson_proto::kernel::{InvalidateBegin, InvalidateEnd};
use caisson_proto::ring::{SLOT_BYTES, SLOTS};
use caisson_proto::wire::{Request, Words};
use caisson_rt::ring::{Consumer, Received};

use super::ring::Page;
use super::{Server, serve};
use crate::config::Mutant;
use crate::service::Sys;

/// Notices looked at in one activation, and as many again that may be skipped.
const LIMIT: u32 = SLOTS * 2;

struct OnKernel<'a, 'b>(&'a Sys<'b>);

impl Kernel for OnKernel<'_, '_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.0.ask(request)
    }
}

struct Image<'a, 'b> {
    sys: &'a Sys<'b>,
    notifier: Notifier,
    reclaimed: Consumer<Page>,
}

impl Image<'_, '_> {
    /// As the image of notifier does.
    fn read(&mut self) {
        let mut message = [0; SLOT_BYTES];
        for left in (0..LIMIT * 2).rev() {
            if self.sys.stopped() {
                return;
            }
            match self.reclaimed.pop(&mut message) {
                Received::Message(bytes) if left >= LIMIT => {
                    let message = message.get(..bytes).unwrap_or(&[]);
                    let sound = self.notifier.reclaimed(message, &mut OnKernel(self.sys));
                    self.sys.world.check(sound, || "a notice that is none".into());
                }
                Received::Message(_) => {}
                Received::Broken => self.sys.world.fail(|| "a broken notice".into()),
                Received::Nothing if !self.reclaimed.sleep() => {}
                Received::Nothing if left >= LIMIT && !self.sys.world.config.thirsty => return,
                Received::Nothing => break,
            }
        }
        self.notifier.settle(&mut OnKernel(self.sys));
    }

    /// Something in a VM changes.
    fn change(&self) {
        let (world, sys) = (self.sys.world, self.sys);
        let alive: Vec<_> = world.kernel.vms.iter().filter(|vm| vm.state().is_some()).map(|vm| vm.id.get()).collect();
        let Some(vm) = world.rng.pick(&alive) else { return };
        let start = world.rng.below(world.manifest.guest_pages);
        let end = start + 1 + world.rng.below(64);
        // Now and then another one begins and ends meanwhile, which must not end this one.
        let nested = world.rng.chance(1, 2);
        for _ in 0..1 + u32::from(nested) {
            let begin = InvalidateBegin { vm, start: Gfn(start), end: Gfn(end) };
            if !world.breaks(Mutant::NoBegin) && sys.ask(&begin).is_err() {
                return;
            }
        }
        let invalidation = &world.kernel.vms[vm.index()].invalidation;
        if nested && sys.ask(&InvalidateEnd { vm }).is_ok() {
            *world.changes.borrow_mut().entry(vm.bits()).or_default() += 1;
            if world.breaks(Mutant::HullGone) {
                invalidation.forget();
            }
        }
        let number = world.step.get();
        world.open.borrow_mut().push((number, vm.bits(), start, end));
        if world.breaks(Mutant::CountFirst) {
            invalidation.forget();
        }
        (0..1 + world.rng.below(4)).for_each(|_| sys.null());
        world.open.borrow_mut().retain(|(open, ..)| *open != number);
        // Should this life end here, the change stays open until the VM is gone: so it must not end.
        if sys.ask(&InvalidateEnd { vm }).is_ok() {
            *world.changes.borrow_mut().entry(vm.bits()).or_default() += 1;
        }
    }
}

impl Server for Image<'_, '_> {
    fn call(&mut self, _: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
        self.notifier.handle(words, &mut OnKernel(self.sys))
    }

    fn doorbell(&mut self, bits: u64) {
        if bits & CHANGE != 0 {
            self.change();
        }
        if bits & doorbell::TICKET != 0 {
            self.notifier.ticket(&mut OnKernel(self.sys));
        }
        self.read();
    }
}

/// The bell at which something changes.
pub const CHANGE: u64 = 1 << 20;

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let page = Page(Rc::clone(sys.world));
    let mut image = Image { sys, notifier: Notifier::new(), reclaimed: Consumer::new(page) };
    image.notifier.settle(&mut OnKernel(sys));
    image.read();
    serve(sys, &mut image);
}
