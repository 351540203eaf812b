//! A machine for the kernel that counts flushes and otherwise does no more than it must: translations, contents and registers
//! aren't there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64};

use caisson_core::context::Context;
use caisson_core::event::Event;
use caisson_core::machine::{Machine, Mailbox, Mapping, Outcome, Pool, Removed};
use caisson_core::rmp::Rmp;
use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{CpuId, Frame, Gfn, Spa};
use caisson_proto::kernel::{Access, Features};
use caisson_proto::rmp::Entry;
use caisson_proto::vcpu::{Exit, Groups, Resume};

use crate::trace::ASIDS;

/// Frames of the kernel's own, among them the mailbox.
pub const KERNEL_FRAMES: u64 = 16;
/// The lowest ASID of SEV guests, and the highest.
pub const SEV_ASIDS: (u32, u32) = (100, 99 + ASIDS as u32);

/// What is mapped, by gfn: first frame and pages.
type Tree = BTreeMap<u64, (Frame, u64)>;

/// The machine.
pub struct Host {
    /// By root.
    nested: RefCell<BTreeMap<u64, Tree>>,
    /// CPUs that were interrupted.
    pub interrupted: RefCell<Vec<CpuId>>,
    /// CPUs that executed WBINVD, or WBNOINVD.
    pub executed: RefCell<Vec<(CpuId, bool)>>,
    mailbox: &'static Mailbox,
}

impl Host {
    /// With a secure processor.
    pub fn with_processor() -> Self {
        let registers = [(); 3].map(|()| &*Box::leak(Box::new(AtomicU32::new(1 << 31))));
        let command = [(); 2].map(|()| &*Box::leak(Box::new([const { AtomicU64::new(0) }; 8])));
        Self {
            nested: RefCell::default(),
            interrupted: RefCell::default(),
            executed: RefCell::default(),
            mailbox: Box::leak(Box::new(Mailbox { registers, command, first: Frame(8), rmp: (Rmp(&[]), Frame(0)) })),
        }
    }

    /// The processor executes the command that was rung.
    pub fn answer(&self) {
        self.mailbox.registers[0].fetch_or(1 << 31, std::sync::atomic::Ordering::SeqCst);
        self.mailbox.registers[0].fetch_and(!0xffff, std::sync::atomic::Ordering::SeqCst);
    }
}

/// The machine as one CPU sees it.
#[derive(Clone, Copy)]
pub struct On<'a> {
    /// It.
    pub host: &'a Host,
    /// The CPU.
    pub cpu: CpuId,
}

impl Machine for On<'_> {
    fn now(&self) -> u64 {
        0
    }
    fn tsc_khz(&self) -> u64 {
        1
    }
    fn features(&self) -> Features {
        Features::WBNOINVD | Features::SEV
    }
    fn asids(&self) -> (u32, u32) {
        (SEV_ASIDS.1 + 2, SEV_ASIDS.0 << 16 | SEV_ASIDS.1)
    }
    fn interrupt_cpu(&self, cpu: CpuId) {
        self.host.interrupted.borrow_mut().push(cpu);
    }
    fn relax(&self) {}
    fn set_timer(&self, _: u64) {}
    fn log(&self, _: Event) {}
    fn power_off(&self, _: u8) {}
    fn load_space(&self, _: usize) {}
    fn lend(&self, _: usize, _: usize, lease: Lease) -> Result<Lease, Status> {
        Ok(lease)
    }
    fn take_back(&self, _: usize, _: u64) {}
    fn reset_service(&self, _: usize) -> u64 {
        0
    }
    fn adopt(&self, _: Frame) {}
    fn disown(&self, _: Frame) {}
    fn flush_translations(&self) {}
    fn zero(&self, _: Frame, _: u64) {}
    fn write_back(&self, invalidate: bool) {
        self.host.executed.borrow_mut().push((self.cpu, invalidate));
    }
    fn flush_lines(&self, _: Frame, _: u64, _: u32) {}
    fn rmp_update(&self, _: Frame, _: Entry) -> Outcome {
        Ok(())
    }
    fn rmp_smash(&self, _: Frame) -> Outcome {
        Ok(())
    }
    fn nested_resize(&self, _: Frame, _: Gfn, _: bool, _: Pool) -> Outcome {
        Err(Status::State)
    }
    fn copy(&self, _: u64, _: Spa, _: u64, _: bool) -> Outcome {
        Ok(())
    }
    fn mailbox(&self) -> Option<&'static Mailbox> {
        Some(self.host.mailbox)
    }
    fn nested_map(&self, root: Frame, gfn: Gfn, frame: Frame, pages: u64, _: Access, _: Pool) -> Outcome {
        let mut nested = self.host.nested.borrow_mut();
        let tree = nested.entry(root.0).or_default();
        let before = tree.range(..gfn.0 + pages).next_back();
        if before.is_some_and(|(at, (_, count))| at + count > gfn.0) {
            return Err(Status::State);
        }
        tree.insert(gfn.0, (frame, pages));
        Ok(())
    }
    fn nested_unmap(&self, root: Frame, from: Gfn, end: Gfn, _: Pool) -> Result<Option<Removed>, Status> {
        let mut nested = self.host.nested.borrow_mut();
        let Some(tree) = nested.get_mut(&root.0) else { return Ok(None) };
        let Some((&gfn, &(frame, pages))) = tree.range(from.0..end.0).next() else { return Ok(None) };
        tree.remove(&gfn);
        Ok(Some(Removed { gfn: Gfn(gfn), frame, pages }))
    }
    fn nested_look_up(&self, _: Frame, _: Gfn) -> Option<Mapping> {
        None
    }
    fn nested_drop(&self, root: Frame, pool: Pool) {
        self.host.nested.borrow_mut().remove(&root.0);
        pool.give_back(root);
    }
    fn window_map(&self, _: usize, _: Gfn, _: Frame, _: u64, _: Pool) -> Outcome {
        Ok(())
    }
    fn window_unmap(&self, _: usize, _: Gfn, _: u64, _: Pool) -> Outcome {
        Ok(())
    }
    fn window_drop(&self, _: usize, _: Pool) {}
    fn vcpu_create(&self, _: Context, _: usize, _: Frame, _: u32, _: Frame) {}
    fn vcpu_asid(&self, _: Context, _: u32) {}
    fn vcpu_drop(&self, _: Context, _: usize) {}
    fn vcpu_load(&self, _: Context, _: Groups) -> Outcome {
        Ok(())
    }
    fn vcpu_save(&self, _: Context, _: Groups) {}
    fn vcpu_resume(&self, _: Context, _: &Resume, _: Frame) -> Outcome {
        Ok(())
    }
    fn vcpu_moment(&self, _: Context, _: u16) -> Exit {
        Exit::default()
    }
    fn vcpu_flush(&self, _: Context) {}
}
