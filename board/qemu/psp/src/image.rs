//! The processor as a service: behind the registers that the kernel shares with it.

mod board;

use core::sync::atomic::{AtomicU32, Ordering};

use board::OnKernel;
use caisson_proto::abi::{Lease, Status as CallStatus, doorbell};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{Machine, MachineInfo};
use caisson_proto::wire::Words;
use caisson_qemu_psp::station::{Registers, Served, Station};
use caisson_qemu_psp::{Config, Processor, Register};
use caisson_rt::{LeasePage, Server, info, kernel, mailbox, ring_doorbell, slot_of};
use static_cell::{ConstStaticCell, StaticCell};

/// Whom the processor interrupts.
const DRIVER: &str = "sev-firmware";

struct Shared([&'static AtomicU32; 3]);

impl Registers for Shared {
    fn read(&self, register: Register) -> u32 {
        let [command, low, high] = self.0;
        match register {
            Register::CommandResponse => command.load(Ordering::Acquire),
            Register::AddressLow => low.load(Ordering::Relaxed),
            Register::AddressHigh => high.load(Ordering::Relaxed),
        }
    }

    fn answer(&self, value: u32) {
        self.0[0].store(value, Ordering::Release);
    }

    fn answer_nothing(&self, value: u32) -> bool {
        self.0[0].compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

struct Image {
    registers: Shared,
    station: Station,
    processor: &'static mut Processor,
    board: OnKernel,
    driver: Option<u16>,
}

impl Image {
    fn serve(&mut self) {
        let served = self.station.serve(&self.registers, self.processor, &mut self.board);
        let Some(Served { command, status, interrupt }) = served else { return };
        defmt::debug!("secure processor: command {=u16:#x}: status {=u16:#x}", command, status as u16);
        if interrupt {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        // A refusal means that the driver is dead; its successor looks at the mailbox when it starts.
        let _ = self.driver.map(|driver| ring_doorbell(driver, doorbell::INTERRUPT));
    }
}

impl Server for Image {
    /// Nobody calls a processor.
    fn call(&mut self, _: ServiceId, _: &Words, _: Option<Lease>) -> (CallStatus, Words) {
        (CallStatus::Malformed, [0; 8])
    }

    fn doorbell(&mut self, bits: u64) {
        if bits & doorbell::MAILBOX != 0 {
            self.serve();
        }
    }
}

fn config(machine: &Machine) -> Config {
    let (first_sev_asid, last_asid) = ((machine.sev_asids >> 16) as u16, machine.sev_asids as u16);
    Config { first_sev_asid, last_asid, ..Config::emulated(machine.cpus, 0) }
}

fn start() -> ! {
    static PROCESSOR: StaticCell<Processor> = StaticCell::new();
    static PAGE: ConstStaticCell<LeasePage> = ConstStaticCell::new(LeasePage::zeroed());
    let machine = match kernel(&MachineInfo {}) {
        Ok(machine) => machine,
        Err(status) => panic!("what machine is this? {status:?}"),
    };
    let config = config(&machine);
    let version = config.version;
    let board = OnKernel::new(PAGE.take(), machine.frames);
    let random = board.random_is_the_cpus();
    let processor = PROCESSOR.init_with(|| Processor::new(config));
    let registers = Shared(mailbox::registers());
    let mut image = Image { registers, station: Station::new(), processor, board, driver: slot_of(DRIVER) };
    defmt::info!(
        "secure processor (emulated): version {=u8}.{=u8}.{=u8}, ASIDs 1 to {=u32}, RDRAND: {=bool}",
        version.major,
        version.minor,
        version.build,
        machine.sev_asids & 0xffff,
        random
    );
    let generation = ServiceId::from_bits(info().head.id).generation();
    if generation > 0 {
        defmt::error!("secure processor: what its predecessor knew is lost, and every guest of it with that");
        if image.station.succeed(&image.registers) {
            image.interrupt();
        }
    }
    // What was rung before the bell could ring.
    image.serve();
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
