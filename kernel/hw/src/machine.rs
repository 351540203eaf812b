//! The machine that the kernel's tables act on: hardware, or QEMU's idea of it. With it, the kernel's one instance.

use caisson_proto::kernel::Features;
use caisson_proto::layout::GUEST;

use crate::prelude::*;

/// This machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silicon;

/// Tables and rules.
pub static KERNEL: Kernel = Kernel::new();

/// The kernel here.
pub(crate) fn here() -> Here<'static, Silicon> {
    Here { kernel: &KERNEL, local: &this().local, machine: Silicon }
}

/// Page of a guest frame in its handler's window.
fn in_window(gfn: Gfn) -> VPage {
    VPage(GUEST / PAGE_SIZE + gfn.0)
}

/// Lets a vCPU's handler see its state page, or no more.
fn show_state(vcpu: Context, handler: usize, page: Option<Frame>) {
    if let Some(home) = home(handler) {
        home.space.show_state(vcpu::index(vcpu), page);
    }
}

/// A page of the service in user mode, if its frame is one of the kernel's, as those are that services have to themselves.
fn own_page(page: u64, access: Access) -> Result<Frame, Status> {
    let home = home(this().local.service.get().into()).ok_or(Status::BadLease)?;
    home.space.frame(page, access).and_then(|frame| ensure(kmap::is_mapped(frame), Status::BadLease).map(|()| frame))
}

/// Methods that are one expression.
macro_rules! short {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $result:ty = $body:expr;)+) => {
        $(fn $name(&self $(, $arg: $type)*) -> $result { $body })+
    };
}

impl Machine for Silicon {
    short! {
        fn now(&self) -> u64 = cpu::tsc();
        fn tsc_khz(&self) -> u64 = clock::tsc_khz();
        fn interrupt_cpu(&self, cpu: CpuId) -> () = apic::send(cpu, traps::vector::RESCHEDULE);
        fn relax(&self) -> () = { translations::answer(); core::hint::spin_loop() };
        fn set_timer(&self, at: u64) -> () = apic::set_timer(at);
        fn power_off(&self, status: u8) -> () = epitaph::power_off(status);
        fn reset_service(&self, slot: usize) -> u64 = run::BUNDLE.get().and_then(|bundle| home::reset(bundle, slot)).unwrap_or(0);
        fn adopt(&self, frame: Frame) -> () = { kmap::map(frame); kmap::zero(frame) };
        fn disown(&self, frame: Frame) -> () = kmap::unmap(frame);
        fn flush_translations(&self) -> () = translations::flush_everywhere();
        fn zero(&self, first: Frame, pages: u64) -> () = window::zero(first, pages);
        fn write_back(&self, invalidate: bool) -> () = cpu::write_back(invalidate);
        fn flush_lines(&self, first: Frame, pages: u64, asid: u32) -> () = window::flush_lines(first, pages, asid);
        fn mailbox(&self) -> Option<&'static Mailbox> = mailbox::MAILBOX.get();
        fn rmp_update(&self, frame: Frame, to: Entry) -> Outcome =
            mailbox::rmp().map_or(Ok(()), |rmp| rmp.update(frame, to).map_err(|_| Status::State));
        fn rmp_smash(&self, frame: Frame) -> Outcome =
            mailbox::rmp().map_or(Ok(()), |rmp| rmp.smash(frame).map_err(|_| Status::State));
        fn nested_map(&self, root: Frame, gfn: Gfn, frame: Frame, pages: u64, access: Access, pool: Pool) -> Outcome =
            npt::map(&mut Mapped, Tree::nested(root), gfn, frame, pages, access, pool);
        fn nested_unmap(&self, root: Frame, from: Gfn, end: Gfn, pool: Pool) -> Result<Option<Removed>, Status> =
            npt::unmap(&mut Mapped, Tree::nested(root), from, end, pool);
        fn nested_look_up(&self, root: Frame, gfn: Gfn) -> Option<Mapping> = npt::look_up(&Mapped, Tree::nested(root), gfn);
        fn nested_resize(&self, root: Frame, gfn: Gfn, large: bool, pool: Pool) -> Outcome =
            npt::resize(&mut Mapped, Tree::nested(root), gfn, large, pool);
        fn nested_drop(&self, root: Frame, pool: Pool) -> () = npt::drop_all(&mut Mapped, Tree::nested(root), pool);
        fn window_map(&self, slot: usize, gfn: Gfn, frame: Frame, pages: u64, pool: Pool) -> Outcome =
            home(slot).ok_or(Status::NotFound)?.space.map(in_window(gfn), frame, pages, READ_WRITE, pool);
        fn window_unmap(&self, slot: usize, gfn: Gfn, pages: u64, pool: Pool) -> Outcome =
            home(slot).ok_or(Status::NotFound)?.space.unmap(in_window(gfn), pages, pool);
        fn take_back(&self, slot: usize, pages: u64) -> () = if let Some(home) = home(slot) { home.space.take_back(pages) };
        fn window_drop(&self, slot: usize, pool: Pool) -> () = if let Some(home) = home(slot) { home.space.drop_guest(pool) };
        fn vcpu_flush(&self, context: Context) -> () = if let Some(vcpu) = vcpu(context) { vcpu.flush() };
        fn vcpu_save(&self, context: Context, groups: Groups) -> () =
            if let Some(vcpu) = vcpu(context) { vcpu::save(context, vcpu, groups) };
        fn vcpu_create(&self, vcpu: Context, handler: usize, first: Frame, asid: u32, root: Frame) -> () =
            { vcpu::create(vcpu, first, asid, root); show_state(vcpu, handler, Some(first)) };
        fn vcpu_drop(&self, vcpu: Context, handler: usize) -> () = { vcpu::forget(vcpu); show_state(vcpu, handler, None) };
        // A vCPU that is scheduled has frames.
        fn vcpu_moment(&self, context: Context, code: u16) -> Exit =
            vcpu(context).map_or_else(Exit::default, |vcpu| vcpu::exit(context, vcpu, code));
    }

    fn features(&self) -> Features {
        let mailbox = mailbox::MAILBOX.get();
        let snp = mailbox::rmp().is_some();
        let has = [(Features::WBNOINVD, this().svm.wbnoinvd), (Features::SEV, mailbox.is_some()), (Features::SNP, snp)];
        has.into_iter().filter(|(_, has)| *has).map(|(feature, _)| feature).collect()
    }

    fn asids(&self) -> (u32, u32) {
        let sev = boot::BOARD.get().filter(|_| mailbox::MAILBOX.is_completed()).map_or(0, |board| board.sev_asids);
        (this().svm.asids, sev)
    }

    fn log(&self, event: Event) {
        match event {
            Event::Faulted { .. } => defmt::error!("{:#x}", event),
            Event::Killed(_) | Event::Refused(..) => defmt::warn!("{}", event),
            _ => defmt::debug!("{}", event),
        }
    }

    #[inline(always)]
    fn load_space(&self, slot: usize) {
        if let Some(home) = home(slot)
            && home.space.load()
        {
            segments::load_ports(slot as u16, &home.ports);
        }
    }

    fn lend(&self, from: usize, to: usize, lease: Lease) -> Result<Lease, Status> {
        let (Some(from), Some(to)) = (home(from), home(to)) else { return Err(Status::BadLease) };
        to.space.lend(&from.space, lease)
    }

    fn copy(&self, user: u64, at: Spa, bytes: u64, out: bool) -> Outcome {
        let bytes = bytes.min(PAGE_SIZE - at.0 % PAGE_SIZE);
        let own = kmap::ptr(own_page(user / PAGE_SIZE, if out { READ_WRITE } else { Access::READ })?);
        window::with(at.frame(), |page| {
            let memory = page.wrapping_add((at.0 % PAGE_SIZE) as usize);
            let (to, from) = if out { (own, memory) } else { (memory, own) };
            // SAFETY: so many bytes lie in each of the two frames, and Rust knows nothing there but atomics.
            unsafe { kmap::copy(to, from, bytes as usize) }
        });
        Ok(())
    }

    fn vcpu_asid(&self, context: Context, asid: u32) {
        if let Some(vcpu) = vcpu(context) {
            vcpu.vmcb.control.asid = asid;
            vcpu.flush();
        }
    }

    fn vcpu_load(&self, context: Context, groups: Groups) -> Outcome {
        let vcpu = vcpu(context).ok_or(Status::NotFound)?;
        vcpu.flush();
        state::load(&vcpu.page, groups, &mut vcpu.vmcb, &mut vcpu.extra, &this().svm.limits)
    }

    fn vcpu_resume(&self, context: Context, resume: &Resume, root: Frame) -> Outcome {
        let vcpu = vcpu(context).ok_or(Status::NotFound)?;
        ensure(resume.context == 0, Status::Unsupported)?;
        state::resume(&vcpu.page, resume, &mut vcpu.vmcb, &mut vcpu.extra, &this().svm.limits)?;
        // What the guest translated with other control registers isn't its translation any more.
        if vcpu.vmcb.control.n_cr3 != root.spa().0 || resume.groups.contains(Groups::CONTROL) {
            vcpu.vmcb.control.n_cr3 = root.spa().0;
            vcpu.flush();
        }
        Ok(())
    }
}
