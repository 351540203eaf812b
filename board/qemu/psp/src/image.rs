//! The processor as a service: behind the registers that the kernel shares with it.

mod board;

use core::sync::atomic::{AtomicU32, Ordering};

use board::OnKernel;
use caisson_proto::abi::{Lease, Status as CallStatus, doorbell};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{Machine, MachineInfo};
use caisson_proto::wire::Words;
use caisson_qemu_psp::mailbox::CommandBits;
use caisson_qemu_psp::{Config, Mailbox, Processor, Register, Status};
use caisson_rt::{LeasePage, Server, info, kernel, mailbox, ring_doorbell, slot_of};
use static_cell::{ConstStaticCell, StaticCell};

/// Whom the processor interrupts.
const DRIVER: &str = "sev-firmware";

struct Image {
    registers: [&'static AtomicU32; 3],
    mailbox: Mailbox,
    processor: &'static mut Processor,
    board: OnKernel,
    driver: Option<u16>,
}

impl Image {
    /// Executes what was rung, if something was.
    fn serve(&mut self) {
        let [register, low, high] = self.registers;
        let command = register.load(Ordering::Acquire);
        // Whoever may ring the bell may do so without a command; and before the first there was none.
        if command == 0 || CommandBits::from_bits_retain(command).contains(CommandBits::RESPONSE) {
            return;
        }
        self.mailbox.write(Register::AddressLow, low.load(Ordering::Relaxed));
        self.mailbox.write(Register::AddressHigh, high.load(Ordering::Relaxed));
        let Some(ring) = self.mailbox.write(Register::CommandResponse, command) else { return };
        let status = self.processor.ring(&mut self.board, ring);
        defmt::debug!("secure processor: command {=u16:#x}: status {=u16:#x}", ring.command, status as u16);
        let interrupt = self.mailbox.complete(status);
        register.store(self.mailbox.read(Register::CommandResponse), Ordering::Release);
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
    let registers = mailbox::registers();
    let mut image = Image { registers, mailbox: Mailbox::new(), processor, board, driver: slot_of(DRIVER) };
    defmt::info!(
        "secure processor (emulated): version {=u8}.{=u8}.{=u8}, ASIDs 1 to {=u32}, RDRAND: {=bool}",
        version.major,
        version.minor,
        version.build,
        machine.sev_asids & 0xffff,
        random
    );
    let generation = ServiceId::from_bits(info().head.id).generation();
    if generation == 0 {
        image.serve();
    } else {
        defmt::error!("secure processor: what its predecessor knew is lost, and every guest of it with that");
        image.succeed();
    }
    caisson_rt::serve(&mut image)
}

impl Image {
    /// A command that a predecessor had begun ended with it. One that was rung since is served.
    fn succeed(&mut self) {
        let ended = CommandBits::RESPONSE.bits() | u32::from(Status::HardwareErrorPlatform as u16);
        match self.registers[0].compare_exchange(0, ended, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => self.interrupt(),
            Err(_) => self.serve(),
        }
    }
}

caisson_rt::entry!(start);
