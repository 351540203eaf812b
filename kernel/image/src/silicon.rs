//! The machine that the tables act on: hardware, or QEMU's idea of it.

use caisson_core::context::Context;
use caisson_core::event::Event;
use caisson_core::machine::{Machine, Removed, TablePool};
use caisson_hw::{apic, clock, cpu, kmap, window};
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, LARGE_PAGES, PAGE_SIZE, VPage};
use caisson_proto::kernel::{Access, Features, Machine as Facts, VCPU_FRAMES};
use caisson_proto::layout;
use caisson_proto::vcpu::{CpuidEntry, Exit, Groups, Resume};
use zerocopy::FromBytes;

use crate::guests;
use crate::spaces::home;
use crate::statics::{IOPM, KERNEL, svm_cpu};
use crate::{report, spaces, translations};

/// This machine.
#[derive(Clone, Copy, Debug)]
pub struct Silicon;

/// Page of a guest frame in its handler's window.
fn in_window(gfn: Gfn) -> VPage {
    VPage(layout::GUEST / PAGE_SIZE + gfn.0)
}

/// Page of a vCPU's state page in its handler.
fn state_page(vcpu: Context) -> VPage {
    VPage(layout::VCPU_STATE / PAGE_SIZE + u64::from(guests::index(vcpu)))
}

impl Machine for Silicon {
    #[inline]
    fn now(&self) -> u64 {
        cpu::tsc()
    }

    fn tsc_khz(&self) -> u64 {
        clock::tsc_khz()
    }

    fn facts(&self) -> Facts {
        let svm = svm_cpu(CpuId(0));
        let mut features = Features::NESTED_PAGING;
        features.set(Features::WBNOINVD, cpu::has_wbnoinvd());
        features.set(Features::NEXT_RIP, svm.is_some_and(|svm| svm.features.next_rip));
        features.set(Features::INJECT_ERROR_CODES, svm.is_some_and(|svm| !svm.features.limits.few_error_codes));
        let encryption = cpu::cpuid(0x8000_001f, 0);
        features.set(Features::SEV, encryption.eax & 2 != 0);
        Facts {
            cpus: KERNEL.cpu_count() as u16,
            tsc_khz: clock::tsc_khz(),
            features,
            frames: 0,
            phys_bits: cpu::phys_bits(),
            asids: svm.map_or(0, |svm| svm.features.asids),
            services: 0,
        }
    }

    fn interrupt_cpu(&self, cpu: CpuId) {
        apic::send(cpu, caisson_hw::vector::RESCHEDULE);
    }

    fn relax(&self) {
        translations::answer();
        cpu::pause();
    }

    fn set_timer(&self, at: u64) {
        if at == u64::MAX { apic::timer_stop() } else { apic::timer_set(at) }
    }

    fn log(&self, event: Event) {
        report::event(event);
    }

    fn power_off(&self, status: u8) {
        caisson_hw::power_off(status);
    }

    #[inline]
    fn load_space(&self, slot: usize) {
        if let Some(home) = home(slot) {
            caisson_hw::load_ports(slot as u16, &home.ports);
            home.space.load();
        }
    }

    fn lend(&self, from: usize, to: usize, lease: Lease) -> Result<Lease, Status> {
        let (Some(from), Some(to)) = (home(from), home(to)) else { return Err(Status::BadLease) };
        to.space.lend(&from.space, lease)
    }

    fn take_back(&self, slot: usize) {
        if let Some(home) = home(slot) {
            home.space.take_back();
        }
    }

    fn reset_service(&self, slot: usize) -> u64 {
        spaces::reset(slot, KERNEL.service(slot).id.get().bits())
    }

    fn adopt(&self, frame: Frame) {
        kmap::map(frame);
        kmap::zero(frame);
    }

    fn disown(&self, frame: Frame) {
        kmap::unmap(frame);
    }

    fn flush_translations(&self) {
        translations::flush_everywhere();
    }

    fn zero(&self, first: Frame, pages: u64) {
        window::zero(first, pages);
    }

    fn write_back(&self) {
        cpu::write_back();
    }

    fn nested_map(
        &self,
        root: Frame,
        gfn: Gfn,
        frame: Frame,
        pages: u64,
        access: Access,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        caisson_hw::svm::npt::map(root, gfn, frame, pages, access, pool)
    }

    fn nested_unmap(
        &self,
        root: Frame,
        from: Gfn,
        end: Gfn,
        pool: &mut dyn TablePool,
    ) -> Result<Option<Removed>, Status> {
        caisson_hw::svm::npt::unmap(root, from, end, pool)
    }

    fn nested_drop(&self, root: Frame, pool: &mut dyn TablePool) {
        caisson_hw::svm::npt::drop_all(root, pool);
    }

    fn window_map(
        &self,
        slot: usize,
        gfn: Gfn,
        frame: Frame,
        pages: u64,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let home = home(slot).ok_or(Status::NotFound)?;
        home.space.map(in_window(gfn), frame, pages, Access::READ | Access::WRITE, pool)
    }

    fn window_unmap(&self, slot: usize, gfn: Gfn, pages: u64, pool: &mut dyn TablePool) -> Result<(), Status> {
        let home = home(slot).ok_or(Status::NotFound)?;
        let (mut from, end) = (in_window(gfn), in_window(Gfn(gfn.0 + pages)));
        while let Some(removed) = home.space.unmap(from, end, pool)? {
            from = VPage(removed.gfn.0 + removed.pages);
        }
        Ok(())
    }

    fn window_drop(&self, slot: usize, pool: &mut dyn TablePool) {
        if let Some(home) = home(slot) {
            home.space.drop_guest(pool);
        }
    }

    fn vcpu_create(
        &self,
        vcpu: Context,
        handler: usize,
        first: Frame,
        asid: u32,
        root: Frame,
        pool: &mut dyn TablePool,
    ) -> Result<(), Status> {
        let home = home(handler).ok_or(Status::NotFound)?;
        home.space.map(state_page(vcpu), first, 1, Access::READ | Access::WRITE, pool)?;
        guests::set(vcpu, Some(first));
        if let (Some(mut vcpu), Some(iopm)) = (guests::vcpu(vcpu), IOPM.get()) {
            vcpu.init(*iopm, asid, root);
        }
        Ok(())
    }

    fn vcpu_drop(&self, vcpu: Context, handler: usize) {
        guests::set(vcpu, None);
        if let Some(home) = home(handler) {
            let page = state_page(vcpu);
            // One small page: there is nothing to split.
            let _ = home.space.unmap(page, VPage(page.0 + 1), &mut NoPool);
        }
    }

    fn vcpu_load(&self, vcpu: Context, groups: Groups) -> Result<(), Status> {
        let svm = svm_cpu(caisson_hw::this_cpu()).ok_or(Status::Unsupported)?;
        guests::vcpu(vcpu).ok_or(Status::NotFound)?.load_groups(groups, &svm.features)
    }

    fn vcpu_save(&self, vcpu: Context, groups: Groups) {
        if let (Some(mut vcpu), Some(svm)) = (guests::vcpu(vcpu), svm_cpu(caisson_hw::this_cpu())) {
            vcpu.save_groups(groups, svm);
        }
    }

    #[inline]
    fn vcpu_resume(&self, vcpu: Context, resume: &Resume, root: Frame) -> Result<(), Status> {
        let svm = svm_cpu(caisson_hw::this_cpu()).ok_or(Status::Unsupported)?;
        guests::vcpu(vcpu).ok_or(Status::NotFound)?.resume(resume, root, &svm.features)
    }

    fn vcpu_moment(&self, vcpu: Context, code: u16) -> Exit {
        match (guests::vcpu(vcpu), svm_cpu(caisson_hw::this_cpu())) {
            (Some(mut frames), Some(svm)) => frames.exit(guests::index(vcpu), code, svm),
            // A vCPU that is scheduled has frames, and this CPU runs guests.
            _ => Exit::default(),
        }
    }

    fn vcpu_flush(&self, vcpu: Context) {
        if let (Some(mut vcpu), Some(svm)) = (guests::vcpu(vcpu), svm_cpu(caisson_hw::this_cpu())) {
            vcpu.flush(&svm.features);
        }
    }

    fn vcpu_cpuid(&self, vcpu: Context, lease: Lease, count: u16) -> Result<(), Status> {
        let mut page = [0; PAGE_SIZE as usize];
        caisson_hw::user::read(lease.page.0 * PAGE_SIZE, &mut page).map_err(|_| Status::BadLease)?;
        let mut entries = [CpuidEntry::default(); CpuidEntry::MAX];
        for (entry, bytes) in entries.iter_mut().zip(page.chunks_exact(size_of::<CpuidEntry>())) {
            *entry = CpuidEntry::read_from_bytes(bytes).map_err(|_| Status::Malformed)?;
        }
        let used = entries.get(..usize::from(count)).ok_or(Status::Range)?;
        guests::vcpu(vcpu).ok_or(Status::NotFound)?.load_cpuid(used)
    }
}

/// Nothing to take from.
struct NoPool;

impl TablePool for NoPool {
    fn take(&mut self) -> Option<Frame> {
        None
    }
    fn give_back(&mut self, _: Frame) {}
}

const _: () = assert!(VCPU_FRAMES == 7 && LARGE_PAGES == 512);
