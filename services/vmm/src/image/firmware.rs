//! sev-firmware, as a launch sees it.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::VmId;
use caisson_proto::firmware::{JobId, JobReport, JobResult, Queued};
use caisson_proto::wire::{Reply, Request};
use caisson_rt::{LeasePage, call, call_raw};
use caisson_vmm::launch::{Firmware, MEASUREMENT};

/// The service, and the page that it writes answers to.
pub struct OnFirmware {
    /// The VM that is launched.
    pub vm: VmId,
    slot: u16,
    page: LeasePage,
}

impl OnFirmware {
    /// The service in this slot.
    pub fn new(vm: VmId, slot: u16) -> Self {
        Self { vm, slot, page: LeasePage::zeroed() }
    }
}

impl Firmware for OnFirmware {
    fn ask<R: Request<Reply = Queued>>(&mut self, request: &R) -> Result<JobId, Status> {
        call(self.slot, request).map(|queued| queued.job)
    }

    fn result(&mut self, job: JobId, data: &mut [u8; MEASUREMENT]) -> Result<JobReport, Status> {
        let page = &mut self.page;
        let lease = Lease { write: true, ..page.lease() };
        let (status, words) = call_raw(self.slot, &JobResult { job }.encode(), Some(lease));
        if status != Status::Ok {
            return Err(status);
        }
        let report = JobReport::decode(&words).map_err(|_| Status::Malformed)?;
        if let Some(given) = page.0.get(..data.len()).filter(|_| report.bytes as usize == data.len()) {
            data.copy_from_slice(given);
        }
        Ok(report)
    }
}
