//! The supervisor on the kernel.

use caisson_proto::abi::{Lease, MAX_SERVICES, Status, doorbell};
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::info::RingUse;
use caisson_proto::kernel::{
    FaultKind, PowerOff, ServiceKill, ServiceReport, ServiceRestart, ServiceState, ServiceStatus, TimerSet, VmInfo,
    VmReport,
};
use caisson_proto::supervisor::Notice;
use caisson_proto::wire::Words;
use caisson_rt::rings::Outward;
use caisson_rt::{Server, info, kernel, name_of, slot_of, time};
use caisson_supervisor::burial::exit_kind;
use caisson_supervisor::{Event, Machine, Setup, Supervisor};
use static_cell::ConstStaticCell;
use zerocopy::IntoBytes;

struct OnKernel {
    notices: Option<Outward>,
    memory: Option<u16>,
}

impl Machine for OnKernel {
    fn status(&mut self, slot: u16) -> Result<ServiceReport, Status> {
        kernel(&ServiceStatus { slot })
    }

    fn restart(&mut self, service: ServiceId) -> Result<ServiceId, Status> {
        kernel(&ServiceRestart { service }).map(|restarted| restarted.id)
    }

    fn kill(&mut self, service: ServiceId) -> Result<(), Status> {
        kernel(&ServiceKill { service }).map(|_| ())
    }

    fn end_itself(&mut self) {
        panic!("told to end");
    }

    fn power_off(&mut self, status: u8) {
        if let Err(status) = kernel(&PowerOff { status }) {
            defmt::error!("supervisor: the machine can't be ended: status {=u8}", status as u8);
        }
    }

    fn now_ms(&mut self) -> u64 {
        time::micros() / 1000
    }

    fn timer_in(&mut self, ms: u64) {
        let at = Tsc(time::now().0 + time::ticks(ms));
        if let Err(status) = kernel(&TimerSet { at }) {
            defmt::error!("supervisor: no timer: status {=u8}", status as u8);
        }
    }

    fn vm(&mut self, slot: u16) -> Option<VmReport> {
        kernel(&VmInfo { slot }).ok()
    }

    fn vm_gone(&mut self) {
        // A refusal means that memory is dead; its successor looks at every VM when it starts.
        if let Some(memory) = self.memory {
            let _ = caisson_rt::ring_doorbell(memory, doorbell::VM_GONE);
        }
    }

    fn post(&mut self, notice: &Notice) -> bool {
        self.notices.as_mut().is_none_or(|ring| ring.send(notice.as_bytes()).is_ok())
    }

    fn all_read(&mut self) -> bool {
        self.notices.as_mut().is_none_or(Outward::all_read)
    }

    fn log(&mut self, event: Event<'_>) {
        match event {
            Event::Started(id) => {
                defmt::info!("{=str} started, generation {=u16}", name_of(id.index()), id.generation());
            }
            Event::NotStarted(slot, status) => {
                defmt::error!("{=str} can't be started: status {=u8}", name_of(usize::from(slot)), status as u8)
            }
            Event::Died(report, _) => epitaph(report),
            Event::Asked(slot, by) => {
                defmt::warn!("{=str} asks for the end of {=str}", name_of(by.index()), name_of(usize::from(slot)));
            }
            Event::Succeeds => defmt::error!("the supervisor died and was started again"),
            Event::Unprotected(id) => {
                defmt::error!("{=str} ends, for the secure processor is gone", name_of(id.index()));
            }
            Event::GivenUp(slot) => {
                defmt::error!("{=str} died too often and is given up", name_of(usize::from(slot)));
            }
            Event::Settled => defmt::info!("every VM is over and its memory free"),
            Event::NotSettled => defmt::error!("memory didn't settle in time"),
            Event::Ending(verdict) => defmt::info!("ending with verdict {=u8}", verdict),
        }
    }
}

/// What is known about a death.
fn epitaph(report: &ServiceReport) {
    let name = name_of(report.id.index());
    match (report.state, report.fault, exit_kind(report)) {
        (ServiceState::Exited, _, Some(kind)) => defmt::info!(
            "{=str} ended itself: kind {=u8}, {=u64:#x} {=u64:#x} {=u64:#x} {=u64:#x}",
            name,
            kind as u8,
            report.rip,
            report.address,
            report.rsp,
            report.client
        ),
        (ServiceState::Killed, ..) => defmt::warn!("{=str} was killed", name),
        (_, FaultKind::Exception, _) => defmt::error!(
            "{=str} faulted: exception {=u64} error {=u32:#x} rip {=u64:#x} address {=u64:#x} rsp {=u64:#x} for {=u64:#x}",
            name,
            report.code >> 32,
            report.code as u32,
            report.rip,
            report.address,
            report.rsp,
            report.client
        ),
        (_, fault, _) => defmt::error!(
            "{=str} faulted: kind {=u8} code {=u64:#x} rip {=u64:#x} for {=u64:#x}",
            name,
            fault as u8,
            report.code,
            report.rip,
            report.client
        ),
    }
}

struct Image {
    supervisor: &'static mut Supervisor,
    machine: OnKernel,
}

impl Server for Image {
    fn call(&mut self, sender: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
        self.supervisor.handle(sender, words, &mut self.machine)
    }

    fn doorbell(&mut self, bits: u64) {
        self.supervisor.doorbell(bits, &mut self.machine);
    }
}

static SUPERVISOR: ConstStaticCell<Supervisor> = ConstStaticCell::new(Supervisor::new());

fn start() -> ! {
    let info = info();
    let mut is_vmm = [false; MAX_SERVICES];
    for (is, told) in is_vmm.iter_mut().zip(info.is_vmm) {
        *is = told == 1;
    }
    let processor = slot_of("psp").zip(slot_of("sev-firmware")).map(<[u16; 2]>::from);
    let setup = Setup { own: ServiceId::from_bits(info.head.id), services: info.services as u16, is_vmm, processor };
    let machine = OnKernel { notices: Outward::find(RingUse::Notices), memory: slot_of("memory") };
    let mut image = Image { supervisor: SUPERVISOR.take(), machine };
    defmt::info!("supervisor: {=u32} services on {=u32} CPUs", info.services, info.head.cpus);
    image.supervisor.start(&setup, &mut image.machine);
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
