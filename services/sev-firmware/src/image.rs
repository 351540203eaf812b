//! sev-firmware on the kernel.

use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, doorbell};
use caisson_proto::addr::{ServiceId, VPage};
use caisson_proto::firmware::Life;
use caisson_proto::kernel::MachineInfo;
use caisson_proto::wire::{Reply, Request, Words};
use caisson_rt::window::LeaseWindow;
use caisson_rt::{Server, call_raw, info, name_of, ring_doorbell, slot_of, time};
use caisson_sev_firmware::{Firmware, Kernel, Lent, Note, Pages};
use static_cell::ConstStaticCell;

/// The bell that sev-firmware rings for itself: it looks what happened, and goes on.
const AGAIN: u64 = doorbell::TICKET;
/// Those who speak for the platform and for every VM.
const PLATFORM: [&str; 2] = ["memory", "notifier"];

struct OnKernel {
    own: u16,
}

impl Kernel for OnKernel {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        caisson_rt::kernel(request)
    }

    fn lend<R: Request>(&mut self, request: &R, pages: &mut Lent, count: usize) -> Result<R::Reply, Status> {
        let page = VPage(pages.0.as_mut_ptr() as u64 >> 12);
        let lease = Lease { page, pages: count as u64, write: true };
        match call_raw(KERNEL_SLOT, &request.encode(), Some(lease)) {
            (Status::Ok, words) => R::Reply::decode(&words).map_err(|_| Status::Malformed),
            (refused, _) => Err(refused),
        }
    }

    fn bell(&mut self, client: ServiceId) {
        if let Err(status) = ring_doorbell(client.index() as u16, doorbell::TICKET) {
            defmt::warn!("sev-firmware: can't ring {=str}: status {=u8}", name_of(client.index()), status as u8);
        }
    }

    fn again(&mut self) -> bool {
        ring_doorbell(self.own, AGAIN).is_ok()
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::WroteBack => defmt::info!("sev-firmware: WBINVD on all CPUs"),
            Note::Late(cpu) => defmt::error!("sev-firmware: CPU {=u16} completes no WBINVD", cpu.0),
            Note::Answered { command, vm, status: 0 } => {
                defmt::info!("sev-firmware: command {=u16:#x} for VM {=u32:#x}", command, vm.bits());
            }
            Note::Answered { command, vm, status } => {
                let vm = vm.bits();
                defmt::warn!("sev-firmware: command {=u16:#x} for VM {=u32:#x}: status {=u16:#x}", command, vm, status);
            }
            Note::Platform { major, minor, build, state } => {
                defmt::info!("sev-firmware: API {=u8}.{=u8}, build {=u8}, state {=u8}", major, minor, build, state);
            }
            Note::LeakedAsid(asid) => defmt::error!("sev-firmware: ASID {=u32} is lost", asid),
            Note::LeakedPage => defmt::error!("sev-firmware: a page is lost"),
            Note::Dead { command } => {
                defmt::error!("sev-firmware: the secure processor is dead: command {=u16:#x}", command);
            }
        }
    }
}

/// Pages in the lease window.
struct Leased {
    lease: Lease,
    window: LeaseWindow,
}

impl Pages for Leased {
    fn count(&self) -> u64 {
        self.lease.pages
    }

    fn writable(&self) -> bool {
        self.lease.write
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.window.read(offset as u64, into).is_ok()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.lease.write && self.window.write(offset as u64, bytes).is_ok()
    }
}

struct Image {
    firmware: &'static mut Firmware,
    kernel: OnKernel,
}

impl Server for Image {
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let mut leased = lease.map(|lease| Leased { lease, window: LeaseWindow::new(&lease) });
        let pages = leased.as_mut().map(|leased| leased as &mut dyn Pages);
        self.firmware.handle(sender, words, pages, time::now(), &mut self.kernel)
    }

    fn doorbell(&mut self, bits: u64) {
        self.firmware.doorbell(bits, time::now(), &mut self.kernel);
    }
}

static FIRMWARE: ConstStaticCell<Firmware> = ConstStaticCell::new(Firmware::new());

fn start() -> ! {
    let kernel = OnKernel { own: ServiceId::from_bits(info().head.id).index() as u16 };
    let mut image = Image { firmware: FIRMWARE.take(), kernel };
    let mut platform = [u16::MAX; PLATFORM.len()];
    for (slot, name) in platform.iter_mut().zip(PLATFORM) {
        *slot = slot_of(name).unwrap_or(u16::MAX);
    }
    match caisson_rt::kernel(&MachineInfo {}) {
        Ok(machine) => image.firmware.start(&machine, &platform, time::now(), &mut image.kernel),
        Err(status) => defmt::error!("sev-firmware: what machine is this? status {=u8}", status as u8),
    }
    let (support, life) = image.firmware.standing();
    defmt::info!("sev-firmware: SEV {=u8}, processor {=bool}", support as u8, life != Life::Dead);
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
