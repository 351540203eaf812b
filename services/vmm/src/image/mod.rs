//! A vmm on the kernel: makes its VM, then answers its vCPUs.

mod events;
mod firmware;
mod kernel;
mod known;

use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{CpuId, ServiceId};
use caisson_proto::console::{Knob, Resize};
use caisson_proto::info::RingUse;
use caisson_proto::kernel::VmKind;
use caisson_proto::memory::{NEED, Needed, VmMake};
use caisson_proto::stats::READ;
use caisson_proto::supervisor::{ExitKind, SetupError};
use caisson_proto::switch::{self, FRAMES};
use caisson_proto::vcpu::{Exit, Resume, VcpuState};
use caisson_proto::vmm::{Encryption, VmConfig, file};
use caisson_proto::wire::{Field, Words};
use caisson_rt::ring::Received;
use caisson_rt::rings::{Inward, Outward};
use caisson_rt::{Server, info, time};
use caisson_vmm::launch::{Failed, Launch, Policy, Progress};
use caisson_vmm::need::Told;
use caisson_vmm::virtio::Virtio;
use caisson_vmm::{Facts, Vmm};
use firmware::OnFirmware;
use kernel::{OnKernel, call_memory};
use known::Known;
use zerocopy::IntoBytes;

/// The bit of a guest's policy that asks for SEV-ES (55766 chapter 3).
const POLICY_ES: u32 = 1 << 2;
/// SMT is allowed, and a bit that must be one (56860 section 4.3).
const POLICY_SNP: u64 = 1 << 16 | 1 << 17;

/// How often memory is asked what is needed at the most: once in so many milliseconds.
const FOLLOW_MS: u64 = 50;

/// The service.
struct Image {
    vmm: Vmm<OnKernel>,
    input: Option<Inward>,
    /// How much memory the guest is to have, as people say it.
    resizes: Option<Inward>,
    /// When memory was last asked what is needed.
    followed: u64,
    /// The launch that is under way, of an encrypted VM.
    launch: Option<(Launch, OnFirmware)>,
    /// A slot of input that the guest's port didn't take yet.
    waiting: ([u8; 64], usize, usize),
    scratch: VcpuState,
    known: Known,
}

impl Image {
    /// Goes on with the launch, if there is one, and starts the VM after it.
    fn go_on(&mut self) {
        let Some((launch, firmware)) = &mut self.launch else { return };
        match launch.go_on(firmware.vm, firmware) {
            Ok(Progress::Waits) => return,
            Ok(Progress::Done(Some(measurement))) => defmt::info!("launched, measurement {=[u8]:02x}", measurement),
            Ok(Progress::Done(None)) => defmt::info!("launched; its digest is for the guest to ask for"),
            Err(Failed { step, status, firmware: (command, answer) }) => {
                defmt::error!("the launch failed at {}: command {=u16:#x}, answer {=u16:#x}", step, command, answer);
                give_up(SetupError::Launch, status)
            }
        }
        self.launch = None;
        self.vmm.start();
        self.feed();
    }

    /// Feeds the guest's serial port as far as it takes bytes.
    fn feed(&mut self) {
        let Some(input) = &mut self.input else { return };
        loop {
            let (bytes, from, to) = &mut self.waiting;
            if from < to {
                *from += self.vmm.console_input(bytes.get(*from..*to).unwrap_or_default());
                if from < to {
                    return;
                }
            }
            match input.receive(bytes) {
                Received::Message(length) => (*from, *to) = (0, length),
                Received::Nothing => {
                    if input.sleep() {
                        return;
                    }
                }
                Received::Broken => {}
            }
        }
    }
}

impl Image {
    /// Asks memory what is needed, unless that was done just now.
    fn follow(&mut self) {
        let now = time::now().0;
        if now.wrapping_sub(self.followed) < time::ticks(FOLLOW_MS) {
            return;
        }
        self.followed = now;
        if let Some(Needed { lacking, spare, vms }) = self.known.needed() {
            self.vmm.follow(&Told { lacking, spare, vms });
        }
    }

    /// Does what people ordered.
    fn resize(&mut self) {
        let Some(resizes) = &mut self.resizes else { return };
        loop {
            let mut order = Resize::default();
            match resizes.receive(order.as_mut_bytes()) {
                Received::Message(length) if length == size_of::<Resize>() => {
                    let knob = Knob::from_word(order.knob);
                    if !knob.is_some_and(|knob| self.vmm.resize(knob, order.bytes)) {
                        defmt::warn!("its memory can't be so: knob {=u64}, {=u64} bytes", order.knob, order.bytes);
                    }
                }
                Received::Message(length) => defmt::warn!("an order of {=usize} bytes is none", length),
                Received::Nothing => {
                    if resizes.sleep() {
                        return;
                    }
                }
                Received::Broken => {}
            }
        }
    }
}

impl Server for Image {
    fn call(&mut self, _: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
        (Status::Denied, [0; 8])
    }

    fn doorbell(&mut self, bits: u64) {
        self.vmm.activate();
        if bits & doorbell::TICKET != 0 {
            self.go_on();
        }
        if bits & READ != 0 {
            self.known.refresh(&mut self.vmm);
        }
        if bits & NEED != 0 {
            self.follow();
        }
        if self.resizes.as_ref().is_some_and(|resizes| bits & resizes.data_bit() != 0) {
            self.resize();
        }
        if bits & self.vmm.platform.room_bit() != 0 {
            self.vmm.console_room();
        }
        if bits & FRAMES != 0 {
            self.vmm.frames_wait();
        }
        if self.input.as_ref().is_some_and(|input| bits & input.data_bit() != 0) {
            self.feed();
        }
    }

    fn exit(&mut self, exit: &Exit) -> Resume {
        let resume = self.vmm.handle_exit(exit, &mut self.scratch);
        if self.waiting.1 < self.waiting.2 && self.vmm.console_space() > 0 {
            self.feed();
        }
        resume
    }
}

/// The VM can't be set up.
fn give_up(why: SetupError, status: Status) -> ! {
    defmt::error!("the VM can't be set up: {=u8}, status {=u8}", why as u8, status as u8);
    caisson_rt::exit(ExitKind::BadSetup, [why as u64, status as u64, 0, 0, 0, 0])
}

fn start() -> ! {
    let Ok(config) = postcard::from_bytes::<VmConfig>(caisson_rt::file(file::CONFIG)) else {
        give_up(SetupError::Config, Status::Malformed)
    };
    let Some(memory) = caisson_rt::slot_of("memory") else { give_up(SetupError::Memory, Status::NotFound) };
    let (kind, policy) = match config.encryption {
        Encryption::None => (VmKind::Plain, Policy::Sev(0)),
        Encryption::Sev => (VmKind::Sev, Policy::Sev(0)),
        Encryption::SevEs => (VmKind::SevEs, Policy::Sev(POLICY_ES)),
        Encryption::SevSnp => (VmKind::SevSnp, Policy::Snp(POLICY_SNP)),
    };
    let most = config.memory.saturating_add(config.virtio.plug.map_or(0, |plug| plug.most));
    let pages = (most >> 12) + caisson_vmm::ASIDE_PAGES;
    let request = VmMake {
        kind,
        vcpus: config.vcpus,
        pages,
        promised: (config.promised >> 12) + caisson_vmm::ASIDE_PAGES,
        first_cpu: CpuId(config.first_cpu),
        lowest_cpu: CpuId(config.lowest_cpu),
    };
    let vm = match call_memory(memory, &request) {
        Ok(made) => made.vm,
        Err(status) => give_up(SetupError::Memory, status),
    };
    let output = Outward::find(RingUse::ConsoleOut);
    let platform = OnKernel::new(vm, memory, output);
    let facts = Facts { tsc_khz: info().head.tsc_khz, xsave: true };
    let vmm = Vmm::new(platform, &config, caisson_rt::file(file::KERNEL), caisson_rt::file(file::INITRD), facts);
    let mut vmm = vmm.unwrap_or_else(|why| give_up(why, Status::Ok));
    let switch = caisson_rt::slot_of(switch::NAME).filter(|_| config.virtio.net.is_some());
    if config.virtio.net.is_some() && switch.is_none() {
        give_up(SetupError::Config, Status::NotFound);
    }
    match Virtio::new(&config, caisson_rt::file(file::DISK)) {
        Ok(devices) => vmm.attach(devices),
        Err(why) => give_up(why, Status::Ok),
    }
    let (waiting, scratch) = (([0; 64], 0, 0), VcpuState::default());
    let mut image = Image {
        vmm,
        input: Inward::find(RingUse::ConsoleIn),
        resizes: Inward::find(RingUse::Resize),
        followed: 0,
        launch: None,
        waiting,
        scratch,
        known: Known::new(vm, memory, switch),
    };
    if kind == VmKind::Plain {
        image.vmm.start();
        image.feed();
        image.resize();
    } else {
        let Some(slot) = caisson_rt::slot_of("sev-firmware") else { give_up(SetupError::Launch, Status::NotFound) };
        let launch = image.vmm.seal(policy).unwrap_or_else(|why| give_up(why, Status::Exhausted));
        image.launch = Some((launch, OnFirmware::new(vm, slot)));
        image.go_on();
    }
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
