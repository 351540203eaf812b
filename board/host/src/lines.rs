//! What a CPU does to caches, and to the mailbox's frames.

use std::sync::atomic::Ordering;

use caisson_core::rmp::RmpError;
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn, LARGE_PAGES, PAGE_SIZE, Spa};
use caisson_proto::rmp::{ASSIGNED, Entry, IMMUTABLE, LARGE};

use crate::config::Mutant;
use crate::hardware::{COMPOSED, Hardware};
use crate::place::Hand;
use crate::silicon::{MAIL_FRAMES, MAILBOX};

impl Hardware<'_> {
    /// WBNOINVD here, or WBINVD.
    pub(crate) fn write_lines_back(&self, invalidate: bool) {
        let world = self.world;
        self.meddle_with_rows();
        // It takes a millisecond, in which others do a lot; lines go at any time of it.
        let long = [1, 30, 300, 3000][world.rng.below(4) as usize];
        self.dwell(world.rng.below(long));
        let some = world.breaks(Mutant::SomeCpusOnly) && invalidate && world.rng.chance(1, 4);
        if !world.breaks(Mutant::NoWriteBack) && !some {
            let weak = world.breaks(Mutant::WeakRecycling);
            world.caches.borrow_mut().write_back(self.cpu, invalidate && !weak);
            if let Some(cpu) = world.cpus.get(self.cpu).filter(|_| invalidate && !weak) {
                cpu.wbinvds.set(cpu.wbinvds.get() + 1);
            }
        }
        world.acknowledged.set(true);
        self.dwell(world.rng.below(long));
    }

    /// Time passes for the others while this CPU doesn't come on.
    pub(crate) fn dwell(&self, time: u64) {
        let world = self.world;
        if time > 0 && world.config.preemption > 0 {
            let until = world.now.get() + time;
            let Some(cpu) = world.cpus.get(self.cpu) else { return };
            cpu.deafen(cpu.deaf_until().max(until));
            self.yielder.suspend(());
        }
    }

    /// Flushes frames' lines of one alias: the plain one of pages that turn private or go to the processor; a guest's, of
    /// pages that turn shared, or that nobody has any more.
    pub(crate) fn flush_lines_of(&self, first: Frame, pages: u64, asid: u32) {
        let world = self.world;
        let owners = world.owner.borrow();
        let given = owners.get(first.0).is_none();
        let forgets = if given { Mutant::ForgetDonated } else { Mutant::ForgetPlainAlias };
        let forgets = match asid {
            0 => forgets,
            _ if given => Mutant::ForgetFreed,
            _ => Mutant::ForgetTurned,
        };
        if !world.breaks(forgets) {
            world.caches.borrow_mut().flush(first.0, pages, asid);
        }
        for frame in first.0..first.0 + pages {
            // What was shared turns private, or the other way round; what was nobody's will be the processor's, or was.
            let of = owners.get(frame).and_then(|(root, gfn)| Some((world.vm_of_root(Frame(root))?.1, gfn)));
            if let Some((vm, gfn)) = of {
                if !world.is_encrypted(vm) {
                    // What it has stays, and stays plain.
                    if world.breaks(Mutant::ContentsLost) {
                        world.caches.borrow_mut().write(self.cpu, frame, 0, vm.bits(), 0);
                    }
                    continue;
                }
                let hand = if asid == 0 { Hand::Private(vm.bits()) } else { Hand::Shared(vm.bits()) };
                world.caches.borrow_mut().give(frame, hand);
                world.memory.borrow_mut().insert((vm.bits(), gfn), None);
            }
        }
        drop(owners);
        self.pause();
    }

    /// RMPUPDATE.
    pub(crate) fn update_rmp(&self, frame: Frame, to: Entry) -> Result<(), Status> {
        self.pause();
        let (world, rmp) = (self.world, self.world.silicon.registers.rmp.0);
        let mailbox = (MAILBOX..MAILBOX + MAIL_FRAMES as u64).contains(&frame.0);
        let guest = to.has(ASSIGNED) && to.asid() != 0;
        let (other, next) = (to.asid() % world.config.sev_asids.1 + 1, Gfn((to.gpa().0 >> 12) + 1));
        let wrong = if world.breaks(Mutant::WrongEntry) {
            Entry::guest(other, Gfn(to.gpa().0 >> 12), to.has(IMMUTABLE))
        } else if world.breaks(Mutant::WrongAddress) {
            Entry::guest(to.asid(), next, to.has(IMMUTABLE))
        } else {
            to
        };
        let to = if guest && world.rng.chance(1, 4) { wrong } else { to };
        let skips = !to.has(ASSIGNED) && world.breaks(Mutant::KeptEntry) && world.rng.chance(1, 4)
            || mailbox && to == Entry::FIRMWARE && world.breaks(Mutant::KeptMailbox);
        let updated = if skips { Ok(()) } else { rmp.update(frame, to) };
        match updated {
            Err(RmpError::Permission) if world.breaks(Mutant::IgnoreImmutable) => {}
            Err(_) => return Err(Status::State),
            Ok(()) => {}
        }
        let mut caches = world.caches.borrow_mut();
        let pages = if to.has(LARGE) { LARGE_PAGES } else { 1 };
        match to {
            _ if mailbox => {}
            Entry::FIRMWARE => caches.give(frame.0, Hand::Firmware),
            _ if !to.has(ASSIGNED) => (frame.0..frame.0 + pages).for_each(|frame| caches.give(frame, Hand::Nobody)),
            _ => {}
        }
        Ok(())
    }

    /// Copies between the mailbox's frames and a page of the service in user mode.
    pub(crate) fn copy_mail(&self, user: u64, at: Spa, bytes: u64, out: bool) -> Result<(), Status> {
        let world = self.world;
        let slot = world.cpus.get(self.cpu).map_or(usize::MAX, |cpu| cpu.space.get());
        let (page, mail) = (user / PAGE_SIZE, (at.0 >> 12).wrapping_sub(MAILBOX) as usize);
        if !COMPOSED.contains(&page) {
            return Err(Status::BadLease);
        }
        world.check(mail < MAIL_FRAMES && bytes == PAGE_SIZE, || format!("{bytes} bytes are copied at {:#x}", at.0));
        let mut pages = world.bytes.borrow_mut();
        let own = pages.entry((slot, page)).or_insert_with(|| Box::new([0; PAGE_SIZE as usize]));
        if let Some(mail) = world.silicon.mail.borrow_mut().get_mut(mail) {
            if out { **own = *mail } else { *mail = **own }
        }
        drop(pages);
        if mail < 2 && !out {
            world.silicon.put_out();
        }
        self.pause();
        Ok(())
    }

    /// Mutants: rows are cleared where or when they may not be.
    fn meddle_with_rows(&self) {
        let world = self.world;
        if world.breaks(Mutant::ClearEarly) {
            world.kernel.cpus[self.cpu].ran.store(0, Ordering::SeqCst);
        }
        if world.breaks(Mutant::ClearForeignRow) {
            let other = world.rng.below(world.config.cpus as u64) as usize;
            world.kernel.cpus[other].ran.store(0, Ordering::SeqCst);
        }
    }
}
