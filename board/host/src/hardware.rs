//! The machine as the kernel sees it from one CPU.

use caisson_core::context::{Context, Kind};
use caisson_core::event::Event;
use caisson_core::machine::{Machine, Mailbox, Mapping, Removed, TablePool};
use caisson_core::svm::npt::{self, Tables, Tree};
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, PAGE_SIZE, Spa, VPage};
use caisson_proto::kernel::{Access, Features, VCPU_FRAMES, VmKind};
use caisson_proto::layout;
use caisson_proto::rmp::Entry;
use caisson_proto::supervisor::ExitKind;
use caisson_proto::vcpu::{Exit, Groups, Resume};
use corosensei::Yielder;

use crate::config::Mutant;
use crate::guest::Guest;
use crate::history::What;
use crate::mutate;
use crate::place::Hand;
use crate::silicon::MAIL_FRAMES;
use crate::world::{KHZ, View, World, ipi};

/// First page that a service can lend, and one past the last. Those with an odd number are read-only.
pub const LENDABLE: std::ops::Range<u64> = layout::IMAGE / PAGE_SIZE..layout::IMAGE / PAGE_SIZE + 64;
/// Pages that sev-firmware lends to the kernel.
pub const COMPOSED: std::ops::Range<u64> = LENDABLE.end + 64..LENDABLE.end + 64 + MAIL_FRAMES as u64;
/// Where a dead VM's kernel frames have something left in them.
const REMAINS: u64 = 0xdead;

/// One CPU, in the kernel.
pub struct Hardware<'a> {
    /// The machine.
    pub world: &'a World,
    /// Which CPU.
    pub cpu: usize,
    /// Suspends this CPU.
    pub yielder: &'a Yielder<(), ()>,
}

impl Hardware<'_> {
    /// Lets other CPUs go on, now and then.
    pub(crate) fn pause(&self) {
        if self.world.rng.chance(self.world.config.preemption, 16) {
            // Now and then something takes its time, as an interrupt of the firmware's does.
            let stalls = self.world.rng.chance(self.world.config.stalls, 64);
            if stalls { self.dwell(1 + self.world.rng.below(300)) } else { self.yielder.suspend(()) }
        }
    }

    fn guest<R>(&self, vcpu: Context, what: &str, act: impl FnOnce(&mut Guest) -> R) -> Option<R> {
        let mut guests = self.world.guests.borrow_mut();
        let Some(guest) = guests.get_mut(vcpu) else {
            drop(guests);
            self.world.fail(|| format!("{what} of context {}, which has no frames", vcpu.number()));
            return None;
        };
        Some(act(guest))
    }
}

impl Machine for &Hardware<'_> {
    fn now(&self) -> u64 {
        self.world.now.get()
    }

    fn tsc_khz(&self) -> u64 {
        KHZ
    }

    fn features(&self) -> Features {
        let mut features = Features::WBNOINVD;
        features.set(Features::SEV, self.world.config.encrypted);
        features.set(Features::SNP, self.world.config.encrypted && self.world.config.snp);
        features
    }

    fn asids(&self) -> (u32, u32) {
        let (low, high) = self.world.config.sev_asids;
        (high + 18, if self.world.config.encrypted { low << 16 | high } else { 0 })
    }

    fn interrupt_cpu(&self, cpu: CpuId) {
        if !(self.world.breaks(Mutant::LostInterrupt) && self.world.rng.chance(1, 8)) {
            self.world.send(usize::from(cpu.0), ipi::RESCHEDULE);
        }
        self.pause();
    }

    fn relax(&self) {
        self.world.answer_wishes(self.cpu);
        self.yielder.suspend(());
    }

    fn set_timer(&self, at: u64) {
        let lost = self.world.breaks(Mutant::LostTimer) && self.world.rng.chance(1, 8);
        if let Some(cpu) = self.world.cpus.get(self.cpu)
            && !lost
        {
            cpu.set_timer(at);
        }
    }

    fn log(&self, event: Event) {
        self.world.note(self.cpu, What::Kernel(event));
        let mut ends = self.world.ends.get();
        match event {
            Event::Exited(_, kind) if kind == ExitKind::PoweredOff as u64 => ends.powered_off += 1,
            Event::Exited(_, kind) if kind == ExitKind::Reset as u64 => ends.reset += 1,
            Event::Exited(_, kind) if kind == ExitKind::Crashed as u64 => ends.crashed += 1,
            Event::Exited(..) => ends.bad_setup += 1,
            Event::Faulted { .. } => ends.faulted += 1,
            Event::Killed(_) => ends.killed += 1,
            _ => {}
        }
        self.world.ends.set(ends);
        self.pause();
    }

    fn power_off(&self, status: u8) {
        self.world.over.set(Some(status));
    }

    fn load_space(&self, slot: usize) {
        if let Some(cpu) = self.world.cpus.get(self.cpu)
            && cpu.space.replace(slot) != slot
        {
            cpu.tlb.borrow_mut().clear();
        }
        self.pause();
    }

    fn lend(&self, from: usize, to: usize, lease: Lease) -> Result<Lease, Status> {
        let pages = lease.page.0..lease.page.0 + lease.pages;
        let there = pages.clone().all(|page| LENDABLE.contains(&page) && !(lease.write && page % 2 == 1));
        if !there {
            return Err(Status::BadLease);
        }
        let before = self.world.lent.borrow_mut().insert(to, (from, lease));
        self.world.check(before.is_none(), || format!("slot {to} is lent pages twice: {before:?}"));
        self.pause();
        Ok(Lease { page: VPage(layout::LEASE / PAGE_SIZE), ..lease })
    }

    fn take_back(&self, slot: usize, pages: u64) {
        if !self.world.breaks(Mutant::KeptLease) {
            let lent = self.world.lent.borrow_mut().remove(&slot);
            let all = lent.is_some_and(|(_, lease)| lease.pages == pages);
            self.world.check(all, || format!("slot {slot} is taken {pages} pages that it was not lent: {lent:?}"));
        }
        self.pause();
    }

    fn reset_service(&self, slot: usize) -> u64 {
        let lent = self.world.lent.borrow().contains_key(&slot);
        self.world.check(!lent, || format!("slot {slot} begins its life with pages that others lent"));
        self.world.pages.borrow_mut().retain(|(of, _), _| *of != slot);
        self.world.calls.borrow_mut().remove(&slot);
        if slot == self.world.manifest.memory
            && let Some(vmm) = self.world.doomed.take()
        {
            self.world.knock(vmm);
        }
        self.world.lives.begin(slot);
        self.pause();
        layout::IMAGE
    }

    fn adopt(&self, frame: Frame) {
        let world = self.world;
        world.check(world.adopted.borrow_mut().insert(frame.0), || format!("frame {:#x} is adopted twice", frame.0));
        let owner = world.owner.borrow().get(frame.0);
        world.check(owner.is_none(), || format!("frame {:#x} is a guest's and becomes the kernel's", frame.0));
        world.check_host(frame.0, "becomes the kernel's");
        let mut caches = world.caches.borrow_mut();
        caches.give(frame.0, Hand::Kernel);
        caches.write(self.cpu, frame.0, 0, 0, 0);
        drop(caches);
        world.tables.borrow_mut().insert(frame.0);
    }

    fn disown(&self, frame: Frame) {
        let world = self.world;
        world.check(world.adopted.borrow_mut().remove(&frame.0), || format!("frame {:#x} isn't adopted", frame.0));
        world.tables.borrow_mut().remove(frame.0);
        world.caches.borrow_mut().write(self.cpu, frame.0, 0, 0, REMAINS);
        world.caches.borrow_mut().give(frame.0, Hand::Nobody);
        self.pause();
    }

    fn flush_translations(&self) {
        let world = self.world;
        if world.breaks(Mutant::NoHostFlush) {
            return;
        }
        let mut wishes = Vec::new();
        for (number, cpu) in world.cpus.iter().enumerate() {
            if number == self.cpu {
                cpu.tlb.borrow_mut().clear();
                continue;
            }
            let (wished, done) = cpu.wishes.get();
            cpu.wishes.set((wished + 1, done));
            wishes.push((number, wished + 1));
            world.send(number, ipi::FLUSH);
        }
        self.pause();
        for (number, wish) in wishes {
            while world.cpus.get(number).is_some_and(|cpu| cpu.wishes.get().1 < wish)
                && world.failure.borrow().is_none()
            {
                self.relax();
            }
        }
    }

    fn zero(&self, first: Frame, pages: u64) {
        let world = self.world;
        for frame in first.0..first.0 + pages {
            let owner = world.owner.borrow().get(frame);
            world.check(owner.is_none(), || format!("frame {frame:#x} is zeroed under a guest"));
            world.check_host(frame, "is zeroed");
            world.filled.borrow_mut().remove(&frame);
            if !world.breaks(Mutant::NoZero) {
                world.caches.borrow_mut().write(self.cpu, frame, 0, 0, 0);
            }
        }
        self.pause();
    }

    fn write_back(&self, invalidate: bool) {
        self.write_lines_back(invalidate);
    }

    fn flush_lines(&self, first: Frame, pages: u64, asid: u32) {
        self.flush_lines_of(first, pages, asid);
    }

    fn rmp_update(&self, frame: Frame, to: Entry) -> Result<(), Status> {
        self.update_rmp(frame, to)
    }

    fn rmp_smash(&self, frame: Frame) -> Result<(), Status> {
        if self.world.breaks(Mutant::NoSmash) {
            return Ok(());
        }
        self.world.silicon.registers.rmp.0.smash(frame).map_err(|_| Status::State)
    }

    fn copy(&self, user: u64, at: Spa, bytes: u64, out: bool) -> Result<(), Status> {
        if self.world.guests.borrow().iter().any(|guest| guest.table.spa() == at) && bytes == PAGE_SIZE && !out {
            return if LENDABLE.contains(&(user / PAGE_SIZE)) { Ok(()) } else { Err(Status::BadLease) };
        }
        match self.leased(user / PAGE_SIZE).filter(|_| !out) {
            Some(value) => self.fill_page(at.0 >> 12, value),
            None => return self.copy_mail(user, at, bytes, out),
        }
        Ok(())
    }

    fn mailbox(&self) -> Option<&'static Mailbox> {
        self.world.config.encrypted.then_some(self.world.silicon.registers)
    }

    fn nested_map(
        &self, root: Frame, gfn: Gfn, frame: Frame, pages: u64, access: Access, pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        npt::map(&mut View(self.world), Tree::nested(root), gfn, frame, pages, access, pool)?;
        (0..pages).for_each(|page| self.take_page(root, gfn.0 + page, frame.0 + page));
        self.pause();
        Ok(())
    }

    fn nested_unmap(
        &self, root: Frame, from: Gfn, end: Gfn, pool: &mut dyn TablePool,
    ) -> Result<Option<Removed>, Status> {
        let removed = npt::unmap(&mut View(self.world), Tree::nested(root), from, end, pool)?;
        if let Some(removed) = removed {
            self.lose_pages(root, &removed);
        }
        self.pause();
        Ok(removed)
    }

    fn nested_look_up(&self, root: Frame, gfn: Gfn) -> Option<Mapping> {
        let found = self.world.nested(root, gfn.0);
        let off = self.world.breaks(Mutant::WrongPage) && self.world.rng.chance(1, 8);
        found.map(|it| if off { Mapping { frame: Frame(it.frame.0 ^ 1), ..it } } else { it })
    }

    fn nested_resize(&self, root: Frame, gfn: Gfn, large: bool, pool: &mut dyn TablePool) -> Result<(), Status> {
        npt::resize(&mut View(self.world), Tree::nested(root), gfn, large, pool)
    }

    fn nested_drop(&self, root: Frame, pool: &mut dyn TablePool) {
        let left = self.world.owner.borrow().has_root(root.0);
        self.world.check(!left, || format!("the tables of root {:#x} are dropped with pages in them", root.0));
        npt::drop_all(&mut View(self.world), Tree::nested(root), pool);
        self.pause();
    }

    fn window_map(
        &self, slot: usize, gfn: Gfn, frame: Frame, pages: u64, pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let at = Gfn(World::in_window(gfn.0));
        let access = Access::READ | Access::WRITE;
        let mapped = npt::map(&mut View(self.world), World::window(slot), at, frame, pages, access, pool);
        self.world.check(mapped.is_ok(), || format!("the window of slot {slot} has no room at {gfn:?}: {mapped:?}"));
        self.pause();
        mapped
    }

    fn window_unmap(&self, slot: usize, gfn: Gfn, pages: u64, pool: &mut dyn TablePool) -> Result<(), Status> {
        let (mut from, end) = (Gfn(World::in_window(gfn.0)), Gfn(World::in_window(gfn.0 + pages)));
        let private = self.world.nested(self.root_of(slot), gfn.0).is_some();
        let plain = self.world.manifest.services.get(slot).is_some_and(|service| service.kind == VmKind::Plain);
        if private && (self.world.breaks(Mutant::KeptWindow) || plain && self.world.breaks(Mutant::KeptPlainWindow)) {
            return Ok(());
        }
        while let Some(removed) = npt::unmap(&mut View(self.world), World::window(slot), from, end, pool)? {
            from = Gfn(removed.gfn.0 + removed.pages);
        }
        self.pause();
        Ok(())
    }

    fn window_drop(&self, slot: usize, pool: &mut dyn TablePool) {
        let root = World::window(slot).root;
        for at in 0..npt::ENTRIES {
            let entry = View(self.world).read(root, at);
            if entry != 0 {
                View(self.world).write(root, at, 0);
                let below = Tree { root: Frame((entry & 0x000f_ffff_ffff_f000) >> 12), levels: 2 };
                npt::drop_all(&mut View(self.world), below, pool);
            }
        }
        self.pause();
    }

    fn vcpu_create(&self, vcpu: Context, handler: usize, first: Frame, asid: u32, root: Frame) {
        let world = self.world;
        let (Kind::Vcpu(vm, index), Some(id)) = (vcpu.kind(), world.vm_of(vcpu)) else {
            world.fail(|| format!("context {} is made a vCPU of no VM", vcpu.number()));
            return;
        };
        let kind = world.manifest.services.get(handler).map_or(VmKind::Plain, |service| service.kind);
        let guest = Guest::new(id, index as u8, kind, asid, root, Frame(first.0 + VCPU_FRAMES - 1), world);
        let before = world.guests.borrow_mut().insert(vcpu, guest);
        world.check(before.is_none(), || format!("vCPU {index} of VM slot {vm} is made twice"));
    }

    fn vcpu_asid(&self, vcpu: Context, asid: u32) {
        let asid = asid + u32::from(self.world.breaks(Mutant::WrongAsid));
        let before = self.guest(vcpu, "ASID", |guest| guest.bind(asid));
        self.world.check(before == Some(0), || format!("context {} had ASID {before:?}", vcpu.number()));
        self.pause();
    }

    fn vcpu_drop(&self, vcpu: Context, _: usize) {
        let guest = self.world.guests.borrow_mut().remove(vcpu);
        self.world.check(guest.is_some_and(|guest| !guest.inside), || {
            format!("context {} is dropped in its guest, or never was a vCPU", vcpu.number())
        });
        self.pause();
    }

    fn vcpu_load(&self, vcpu: Context, _: Groups) -> Result<(), Status> {
        self.pause();
        let inside = self.guest(vcpu, "registers", |guest| guest.inside);
        self.world.check(inside != Some(true), || "registers of a running vCPU are loaded".into());
        Ok(())
    }

    fn vcpu_save(&self, vcpu: Context, _: Groups) {
        self.pause();
        let inside = self.guest(vcpu, "registers", |guest| guest.inside);
        self.world.check(inside != Some(true), || "registers of a running vCPU are saved".into());
    }

    fn vcpu_resume(&self, vcpu: Context, resume: &Resume, root: Frame) -> Result<(), Status> {
        self.pause();
        if resume.rip == u64::MAX {
            return Err(Status::Range);
        }
        self.guest(vcpu, "resume", |guest| guest.resume(resume, root));
        Ok(())
    }

    fn vcpu_moment(&self, vcpu: Context, code: u16) -> Exit {
        self.pause();
        self.guest(vcpu, "moment", |guest| guest.exit(code, 0, 0)).unwrap_or_default()
    }

    fn vcpu_flush(&self, vcpu: Context) {
        if !self.world.breaks(Mutant::NoFlush) && !mutate::unflushed(self.world, vcpu) {
            self.guest(vcpu, "flush", |guest| guest.stale = true);
        }
    }
}
