//! A machine that only remembers what was asked of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use caisson_core::context::Context;
use caisson_core::event::Event;
use caisson_core::machine::{Machine, Mailbox, Mapping, Removed, TablePool};
use caisson_core::rmp::Rmp;
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, Spa, VPage};
use caisson_proto::kernel::{Access, Features};
use caisson_proto::layout;
use caisson_proto::rmp::Entry;
use caisson_proto::vcpu::{Exit, ExitFlags, Groups, Resume};

/// Ticks a millisecond.
pub const KHZ: u64 = 1000;
/// A service refuses to lend this page.
pub const NOT_THERE: VPage = VPage(0x666);

/// The machine.
#[derive(Default)]
pub struct Fake {
    pub now: Cell<u64>,
    pub timer: Cell<u64>,
    pub events: RefCell<Vec<Event>>,
    pub interrupted: RefCell<Vec<CpuId>>,
    pub space: Cell<Option<usize>>,
    pub lent: RefCell<BTreeMap<usize, (usize, Lease)>>,
    pub reset: RefCell<Vec<usize>>,
    pub adopted: RefCell<BTreeSet<u64>>,
    pub zeroed: RefCell<Vec<(Frame, u64)>>,
    /// Write-backs, and those by WBINVD.
    pub write_backs: Cell<u32>,
    pub invalidations: Cell<u32>,
    /// Lines that were flushed: first frame, how many, ASID.
    pub lines: RefCell<Vec<(Frame, u64, u32)>>,
    /// What was done to whom may reach a page, in this order.
    pub did: RefCell<Vec<&'static str>>,
    /// What another CPU does during a write-back.
    pub at_write_back: RefCell<Option<Box<dyn FnOnce()>>>,
    /// The secure processor's mailbox.
    pub mailbox: Option<&'static Mailbox>,
    /// What was copied, by address and direction.
    pub copied: RefCell<Vec<(u64, Spa, u64, bool)>>,
    /// ASIDs of vCPUs.
    pub asids: RefCell<BTreeMap<u16, u32>>,
    pub nested: RefCell<BTreeMap<(u64, u64), (Frame, u64)>>,
    pub window: RefCell<BTreeMap<(usize, u64), (Frame, u64)>>,
    pub vcpus: RefCell<BTreeMap<u16, Frame>>,
    pub resumed: RefCell<Vec<(Context, Resume)>>,
    pub flushed: RefCell<Vec<Context>>,
    pub off: Cell<Option<u8>>,
    /// There are no tables to split a large page of a window.
    pub poor: Cell<bool>,
    /// The processor refuses what the vmm loads.
    pub refuse: Cell<bool>,
    /// Called in every wait; counts.
    pub waits: Cell<u32>,
    /// What another CPU does during a wait.
    pub meanwhile: RefCell<Option<Box<dyn FnOnce()>>>,
    /// What another CPU does while a lease is taken back.
    pub at_take_back: RefCell<Option<Box<dyn FnOnce()>>>,
}

/// The first frame of the mailbox.
pub const MAIL: Frame = Frame(8);
/// The first frame of the RMP.
pub const RMP: Frame = Frame(20);
/// Frames that it covers.
pub const RMP_FRAMES: u64 = 4096;

/// The lowest ASID of SEV VMs and the highest.
pub const SEV_ASIDS: (u32, u32) = (3, 5);

impl Fake {
    /// Has a secure processor.
    pub fn with_processor() -> Self {
        let registers = [(); 3].map(|()| &*Box::leak(Box::new(AtomicU32::new(1 << 31))));
        let command = [(); 2].map(|()| &*Box::leak(Box::new([const { AtomicU64::new(0) }; 8])));
        let entries = (0..RMP_FRAMES).map(|_| [const { AtomicU64::new(0) }; 2]).collect::<Vec<_>>().leak();
        let mailbox = Box::leak(Box::new(Mailbox { registers, command, first: MAIL, rmp: (Rmp(entries), RMP) }));
        Self { mailbox: Some(mailbox), ..Self::default() }
    }

    /// The word at the beginning of the command's buffer, and so on.
    pub fn command(&self) -> [u64; 8] {
        self.mailbox.unwrap().command[0].each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// The other buffer, of commands that the processor writes.
    pub fn command_written(&self) -> [u64; 8] {
        self.mailbox.unwrap().command[1].each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// Writes the commands' buffers, in the place of what a service lends.
    pub fn compose(&self, words: &[u64]) {
        for (at, word) in self.mailbox.unwrap().command.iter().flat_map(|buffer| buffer.iter().enumerate()) {
            word.store(words.get(at).copied().unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// The processor answers.
    pub fn answer(&self, status: u16) {
        let register = self.mailbox.unwrap().registers[0];
        register.store(register.load(Ordering::Relaxed) & 0x7ff_0000 | 1 << 31 | u32::from(status), Ordering::Relaxed);
    }

    fn refusal(&self) -> Result<(), Status> {
        if self.refuse.get() { Err(Status::Range) } else { Ok(()) }
    }
}

impl Machine for &Fake {
    fn now(&self) -> u64 {
        self.now.get()
    }
    fn tsc_khz(&self) -> u64 {
        KHZ
    }
    fn features(&self) -> Features {
        if self.mailbox.is_some() { Features::SEV | Features::SNP } else { Features::empty() }
    }
    fn asids(&self) -> (u32, u32) {
        (9, SEV_ASIDS.0 << 16 | SEV_ASIDS.1)
    }
    fn interrupt_cpu(&self, cpu: CpuId) {
        self.interrupted.borrow_mut().push(cpu);
    }
    fn relax(&self) {
        self.did.borrow_mut().push("waited");
        self.waits.set(self.waits.get() + 1);
        assert!(self.waits.get() < 1000, "waits for ever");
        let meanwhile = self.meanwhile.borrow_mut().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }
    fn set_timer(&self, at: u64) {
        self.timer.set(at);
    }
    fn log(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }
    fn power_off(&self, status: u8) {
        self.off.set(Some(status));
    }
    fn load_space(&self, slot: usize) {
        self.space.set(Some(slot));
    }
    fn lend(&self, from: usize, to: usize, lease: Lease) -> Result<Lease, Status> {
        if lease.page == NOT_THERE {
            return Err(Status::BadLease);
        }
        assert!(self.lent.borrow_mut().insert(to, (from, lease)).is_none(), "lent twice");
        Ok(Lease { page: VPage(layout::LEASE >> 12), ..lease })
    }
    fn take_back(&self, slot: usize, pages: u64) {
        let lent = self.lent.borrow_mut().remove(&slot).map(|(_, lease)| lease.pages);
        assert_eq!(lent, Some(pages), "not what was lent");
        let meanwhile = self.at_take_back.borrow_mut().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }
    fn reset_service(&self, slot: usize) -> u64 {
        self.reset.borrow_mut().push(slot);
        layout::IMAGE
    }
    fn adopt(&self, frame: Frame) {
        assert!(self.adopted.borrow_mut().insert(frame.0), "adopted twice");
    }
    fn disown(&self, frame: Frame) {
        assert!(self.adopted.borrow_mut().remove(&frame.0), "not the kernel's");
    }
    fn flush_translations(&self) {
        self.did.borrow_mut().push("host's translations");
    }
    fn zero(&self, first: Frame, pages: u64) {
        let mapped = |(frame, count): &(Frame, u64)| frame.0 < first.0 + pages && first.0 < frame.0 + count;
        assert!(!self.nested.borrow().values().any(mapped), "zeroed where somebody can see it");
        self.zeroed.borrow_mut().push((first, pages));
    }
    fn write_back(&self, invalidate: bool) {
        self.write_backs.set(self.write_backs.get() + 1);
        self.invalidations.set(self.invalidations.get() + u32::from(invalidate));
        let meanwhile = self.at_write_back.borrow_mut().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }
    fn flush_lines(&self, first: Frame, pages: u64, asid: u32) {
        self.did.borrow_mut().push("lines");
        self.lines.borrow_mut().push((first, pages, asid));
    }
    fn rmp_update(&self, frame: Frame, to: Entry) -> Result<(), Status> {
        self.did.borrow_mut().push("RMP");
        self.mailbox.map_or(Ok(()), |mailbox| mailbox.rmp.0.update(frame, to).map_err(|_| Status::State))
    }
    fn rmp_smash(&self, frame: Frame) -> Result<(), Status> {
        self.did.borrow_mut().push("PSMASH");
        self.mailbox.map_or(Ok(()), |mailbox| mailbox.rmp.0.smash(frame).map_err(|_| Status::State))
    }
    fn nested_resize(&self, root: Frame, gfn: Gfn, large: bool, pool: &mut dyn TablePool) -> Result<(), Status> {
        let head = gfn.0 & !511;
        let mut nested = self.nested.borrow_mut();
        let found = nested.get(&(root.0, head)).copied().filter(|it| (it.1 == 512) != large).ok_or(Status::State)?;
        let next = |n: u64| nested.get(&(root.0, head + n)) == Some(&(Frame(found.0.0 + n), 1));
        if large && !(found.0.0.is_multiple_of(512) && (0..512).all(next)) {
            return Err(Status::State);
        }
        (0..512).for_each(|n| _ = nested.remove(&(root.0, head + n)));
        if large {
            nested.insert((root.0, head), (found.0, 512));
        } else {
            pool.take().ok_or(Status::Exhausted)?;
            nested.extend((0..512).map(|n| ((root.0, head + n), (Frame(found.0.0 + n), 1))));
        }
        Ok(())
    }
    fn copy(&self, user: u64, at: Spa, bytes: u64, out: bool) -> Result<(), Status> {
        if user >> 12 == NOT_THERE.0 {
            return Err(Status::BadLease);
        }
        self.copied.borrow_mut().push((user, at, bytes, out));
        Ok(())
    }
    fn mailbox(&self) -> Option<&'static Mailbox> {
        self.mailbox
    }
    fn nested_map(
        &self, root: Frame, gfn: Gfn, frame: Frame, pages: u64, _: Access, pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let mut nested = self.nested.borrow_mut();
        let large = pages == 512 && gfn.0.is_multiple_of(512) && frame.0.is_multiple_of(512);
        let overlaps =
            |(&(of, at), &(_, n)): (&(u64, u64), &(Frame, u64))| of == root.0 && at < gfn.0 + pages && gfn.0 < at + n;
        if nested.iter().any(overlaps) {
            return Err(Status::State);
        }
        // Its tables are one frame, taken with the first mapping.
        if nested.keys().all(|(of, _)| *of != root.0) {
            let table = pool.take().ok_or(Status::Exhausted)?;
            nested.insert((root.0, u64::MAX), (table, 0));
        }
        if large {
            nested.insert((root.0, gfn.0), (frame, pages));
        } else {
            nested.extend((0..pages).map(|n| ((root.0, gfn.0 + n), (Frame(frame.0 + n), 1))));
        }
        Ok(())
    }
    fn nested_unmap(&self, root: Frame, from: Gfn, end: Gfn, _: &mut dyn TablePool) -> Result<Option<Removed>, Status> {
        let mut nested = self.nested.borrow_mut();
        let found = nested.range((root.0, from.0)..(root.0, end.0)).next().map(|(key, value)| (*key, *value));
        let Some(((_, gfn), (frame, pages))) = found else { return Ok(None) };
        if gfn + pages > end.0 {
            return Err(Status::Exhausted);
        }
        nested.remove(&(root.0, gfn));
        Ok(Some(Removed { gfn: Gfn(gfn), frame, pages }))
    }
    fn nested_look_up(&self, root: Frame, gfn: Gfn) -> Option<Mapping> {
        let nested = self.nested.borrow();
        let ((_, at), (frame, pages)) = nested.range(..=(root.0, gfn.0)).next_back()?;
        let here = nested.contains_key(&(root.0, *at)) && gfn.0 - at < *pages;
        here.then_some(Mapping { frame: Frame(frame.0 + gfn.0 - at), pages: *pages, access: Access::all() })
    }
    fn nested_drop(&self, root: Frame, pool: &mut dyn TablePool) {
        if let Some((table, _)) = self.nested.borrow_mut().remove(&(root.0, u64::MAX)) {
            pool.give_back(table);
        }
        assert!(self.nested.borrow().keys().all(|(of, _)| *of != root.0), "still mapped");
        pool.give_back(root);
    }
    fn window_map(&self, slot: usize, gfn: Gfn, frame: Frame, pages: u64, _: &mut dyn TablePool) -> Result<(), Status> {
        self.did.borrow_mut().push("shown");
        for n in 0..pages {
            let old = self.window.borrow_mut().insert((slot, gfn.0 + n), (Frame(frame.0 + n), 1));
            assert!(old.is_none(), "something is mapped there");
        }
        Ok(())
    }
    fn window_unmap(&self, slot: usize, gfn: Gfn, pages: u64, _: &mut dyn TablePool) -> Result<(), Status> {
        self.did.borrow_mut().push("hidden");
        if self.poor.get() {
            return Err(Status::Exhausted);
        }
        for n in 0..pages {
            // What is private isn't there.
            self.window.borrow_mut().remove(&(slot, gfn.0 + n));
        }
        Ok(())
    }
    fn window_drop(&self, slot: usize, _: &mut dyn TablePool) {
        assert!(self.window.borrow().keys().all(|(of, _)| *of != slot), "still mapped");
    }
    fn vcpu_create(&self, vcpu: Context, _: usize, first: Frame, asid: u32, _: Frame) {
        self.asids.borrow_mut().insert(vcpu.number(), asid);
        assert!(self.vcpus.borrow_mut().insert(vcpu.number(), first).is_none());
    }
    fn vcpu_asid(&self, vcpu: Context, asid: u32) {
        assert_eq!(self.asids.borrow_mut().insert(vcpu.number(), asid), Some(0), "it has an ASID");
    }
    fn vcpu_drop(&self, vcpu: Context, _: usize) {
        assert!(self.vcpus.borrow_mut().remove(&vcpu.number()).is_some());
    }
    fn vcpu_load(&self, _: Context, _: Groups) -> Result<(), Status> {
        self.refusal()
    }
    fn vcpu_save(&self, vcpu: Context, _: Groups) {
        assert!(self.vcpus.borrow().contains_key(&vcpu.number()));
    }
    fn vcpu_resume(&self, vcpu: Context, resume: &Resume, _: Frame) -> Result<(), Status> {
        self.refusal()?;
        self.resumed.borrow_mut().push((vcpu, *resume));
        Ok(())
    }
    fn vcpu_moment(&self, vcpu: Context, code: u16) -> Exit {
        let caisson_core::context::Kind::Vcpu(_, index) = vcpu.kind() else { panic!("no vCPU") };
        exit(index as u8, code)
    }
    fn vcpu_flush(&self, vcpu: Context) {
        self.flushed.borrow_mut().push(vcpu);
    }
}

/// A plain exit of vCPU `index`.
pub fn exit(index: u8, code: u16) -> Exit {
    Exit {
        vcpu: index,
        context: 0,
        code,
        flags: ExitFlags::empty(),
        info1: 0,
        info2: 0,
        rip: 0x1000,
        rax: 0,
        rcx: 0,
        rdx: 0,
        next_rip: 0,
    }
}
