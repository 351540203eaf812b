//! What the models of whole kernels share: a payment beside the kernel's own, and what they don't ask of the machine.

use caisson_core::kernel::Tables;
use caisson_proto::addr::CpuId;

/// A CPU counts as having flushed, without a look at who asked meanwhile. Returns how many batches that closed.
pub fn pay(tables: &mut Tables, cpu: usize, invalidated: bool) -> usize {
    let mut closed = 0;
    while let Some(open) = tables.batches.pay(CpuId(cpu as u16), invalidated) {
        tables.frames.paid(open.frames);
        let tickets = tables
            .open_tickets
            .iter()
            .filter(|(_, of)| open.payable == caisson_core::batches::Payable::Invalidate && *of == open.id);
        tables.asids.flushed(tickets.map(|(ticket, _)| *ticket).max().unwrap_or(0));
        tables.open_tickets.retain(|(_, of)| *of != open.id);
        closed += 1;
    }
    closed
}

/// Methods of `Machine` for one without time, services' memory, windows and registers of vCPUs. What they name is
/// imported where they are used.
macro_rules! without_the_rest {
    () => {
        fn now(&self) -> u64 {
            0
        }
        fn tsc_khz(&self) -> u64 {
            1
        }
        fn features(&self) -> Features {
            Features::SEV
        }
        fn set_timer(&self, _: u64) {}
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
        fn rmp_update(&self, _: Frame, _: Entry) -> Result<(), Status> {
            Ok(())
        }
        fn rmp_smash(&self, _: Frame) -> Result<(), Status> {
            Ok(())
        }
        fn nested_resize(&self, _: Frame, _: Gfn, _: bool, _: &mut dyn TablePool) -> Result<(), Status> {
            Err(Status::State)
        }
        fn copy(&self, _: u64, _: Spa, _: u64, _: bool) -> Result<(), Status> {
            Ok(())
        }
        fn window_map(&self, _: usize, _: Gfn, _: Frame, _: u64, _: &mut dyn TablePool) -> Result<(), Status> {
            Ok(())
        }
        fn window_unmap(&self, _: usize, _: Gfn, _: u64, _: &mut dyn TablePool) -> Result<(), Status> {
            Ok(())
        }
        fn window_drop(&self, _: usize, _: &mut dyn TablePool) {}
        fn vcpu_create(&self, _: Context, _: usize, _: Frame, _: u32, _: Frame) {}
        fn vcpu_asid(&self, _: Context, _: u32) {}
        fn vcpu_drop(&self, _: Context, _: usize) {}
        fn vcpu_load(&self, _: Context, _: Groups) -> Result<(), Status> {
            Ok(())
        }
        fn vcpu_save(&self, _: Context, _: Groups) {}
        fn vcpu_resume(&self, _: Context, _: &Resume, _: Frame) -> Result<(), Status> {
            Ok(())
        }
        fn vcpu_moment(&self, _: Context, _: u16) -> Exit {
            unreachable!("nobody kicks a vCPU")
        }
    };
}
pub(crate) use without_the_rest;
