//! The machine: vCPUs, devices and what ties them together.

use alloc::vec::Vec;

use caisson_proto::abi::MAX_VCPUS;
use caisson_proto::supervisor::{CrashKind, ExitKind, SetupError};
use caisson_proto::vcpu::{Action, CpuidEntry, Exit, ExitFlags, Groups, Resume, VcpuState};
use caisson_proto::vmm::VmConfig;

use crate::aside::Aside;
use crate::boot;
use crate::console::Output;
use crate::counts;
use crate::cpuid;
use crate::dev::ioapic::IoApic;
use crate::dev::pic::Pics;
use crate::dev::pit::Pit;
use crate::dev::power::Power;
use crate::dev::pvclock::Scale;
use crate::dev::rtc::Rtc;
use crate::dev::testdev::TestDevice;
use crate::dev::uart::Uart;
use crate::insn::decode::CodePages;
use crate::launch::{Launch, Policy};
use crate::platform::{Event, Platform};
use crate::ram::{CHUNK, Ram};
use crate::vcpu::Vcpu;
use crate::virtio::Virtio;

/// What the vmm must know of the machine below.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// TSC ticks a millisecond.
    pub tsc_khz: u64,
    /// The kernel keeps XCR0 and the whole XSAVE area of each vCPU, so guests may be shown XSAVE.
    pub xsave: bool,
}

/// The smallest guest memory in bytes.
pub const MIN_MEMORY: u64 = 16 * CHUNK;
/// The largest guest memory in bytes: what fits the window in the vmm's address space.
pub const MAX_MEMORY: u64 = 256 << 30;

/// How many log events of the repeatable kinds a VM may cause.
const LOG_BUDGET: u32 = 64;

/// One VM.
#[derive(Debug)]
pub struct Vmm<P> {
    /// The surroundings.
    pub platform: P,
    pub(crate) facts: Facts,
    pub(crate) epoch: u64,
    pub(crate) on_reset: caisson_proto::vmm::OnReset,
    pub(crate) ram: Ram,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Index of the vCPU whose exit is handled; `MAX_VCPUS` while none is.
    pub(crate) current: usize,
    pub(crate) cpuid: Vec<CpuidEntry>,
    pub(crate) code: CodePages,
    pub(crate) aside: Aside,
    pub(crate) ioapic: IoApic,
    pub(crate) pics: Pics,
    pub(crate) pit: Pit,
    pub(crate) rtc: Rtc,
    pub(crate) uart: Uart,
    pub(crate) uart_line: bool,
    pub(crate) output: Output,
    pub(crate) power: Power,
    pub(crate) test: Option<TestDevice>,
    pub(crate) virtio: Virtio,
    /// Until when devices wait for memory in this activation, if they have to.
    pub(crate) devices_wait: Option<u64>,
    pub(crate) scale: Scale,
    /// Machine's TSC at the VM's time 0.
    pub(crate) born: u64,
    pub(crate) wall_version: u32,
    pub(crate) ended: bool,
    log_budget: u32,
}

impl<P: Platform> Vmm<P> {
    /// Makes the VM ready to run: memory, CPUID tables, the state of vCPU 0. The kernel knows the VM already.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        mut platform: P, config: &VmConfig, kernel: &[u8], initrd: &[u8], facts: Facts,
    ) -> Result<Self, SetupError> {
        let count = usize::from(config.vcpus);
        if !(1..=MAX_VCPUS).contains(&count) || !config.memory.is_multiple_of(CHUNK) || config.memory > MAX_MEMORY {
            return Err(SetupError::Config);
        }
        if config.memory < MIN_MEMORY {
            return Err(SetupError::TooSmall);
        }
        let region = config.virtio.plug.map_or(0, |plug| plug.most);
        if config.memory.saturating_add(region) > MAX_MEMORY {
            return Err(SetupError::Config);
        }
        let mut ram = Ram::with_region(config.memory, region);
        let loaded = boot::load(&mut platform, &mut ram, config, kernel, initrd)?;
        let boot::Loaded { entry, kernel_end, initrd, .. } = loaded;
        platform.log(Event::Loaded { entry, kernel_end, initrd });

        let host = |leaf, subleaf| platform.host_cpuid(leaf, subleaf);
        let table = cpuid::table(host, config.vcpus, facts);
        for index in 0..config.vcpus {
            let own = cpuid::for_vcpu(&table, index);
            platform.load_cpuid(index, &own).map_err(|_| SetupError::Vcpu)?;
        }
        let born = platform.now();
        let tsc_offset = born.wrapping_neg();
        platform.store(0, Groups::all(), &loaded.state(tsc_offset));
        counts::begin(&mut platform, config);
        Ok(Self {
            facts,
            epoch: config.epoch,
            on_reset: config.on_reset,
            ram,
            vcpus: (0..config.vcpus).map(|index| Vcpu::new(index, tsc_offset)).collect(),
            current: MAX_VCPUS,
            cpuid: table,
            code: CodePages::default(),
            aside: Aside::default(),
            ioapic: IoApic::default(),
            pics: loaded.pics(),
            pit: Pit::new(facts.tsc_khz),
            rtc: Rtc::new(config.epoch, born, facts.tsc_khz),
            uart: Uart::default(),
            uart_line: false,
            output: Output::default(),
            power: Power::default(),
            test: config.test_devices.then(|| TestDevice::new(config.vcpus, config.memory)),
            virtio: Virtio::default(),
            devices_wait: None,
            scale: Scale::new(facts.tsc_khz),
            born,
            wall_version: 0,
            ended: false,
            log_budget: LOG_BUDGET,
            platform,
        })
    }

    /// Lets vCPU 0 run.
    pub fn start(&mut self) {
        self.platform.run(0);
    }

    /// Makes memory the guest's alone, as far as the vmm is concerned. What a launch has to do: see [`Launch`].
    ///
    /// # Errors
    /// [`SetupError::Memory`] if memory can't back it all.
    pub fn seal(&mut self, policy: Policy) -> Result<Launch, SetupError> {
        let loaded = self.ram.loaded();
        self.ram.seal(&mut self.platform).map_err(|_| SetupError::Memory)?;
        Ok(Launch::new(self.ram.ranges().collect(), loaded, policy))
    }

    /// Handles an exit. `state` is scratch space: what it holds before and after means nothing.
    pub fn handle_exit(&mut self, exit: &Exit, state: &mut VcpuState) -> Resume {
        let at = usize::from(exit.vcpu);
        if self.ended || at >= self.vcpus.len() {
            return self.stop();
        }
        self.current = at;
        let lost = self.begin(at, exit);
        let mut resume = self.dispatch(at, exit, state);
        if resume.inject != 0 {
            resume = self.raise(at, exit, state, resume);
        }
        // What ends the shadow ended its instruction.
        if exit.flags.contains(ExitFlags::TRAP) && resume.clear_shadow && resume.inject == 0 {
            resume = self.owe_trap(at, exit, state, resume);
        }
        if resume.inject == 0 {
            resume.inject = lost;
        }
        let mut resume = self.finish(at, exit, state, resume, lost);
        self.current = MAX_VCPUS;
        if resume.action != Action::Run {
            self.parks(at, &mut resume);
        }
        if self.ended || resume.action == Action::Stop {
            return self.stop();
        }
        if !resume.groups.is_empty() {
            self.platform.store(exit.vcpu, resume.groups, state);
        }
        resume
    }

    /// Bytes for the guest's console: the virtio one if it is in use, else the serial port; how many it took.
    pub fn console_input(&mut self, bytes: &[u8]) -> usize {
        if let Some(taken) = self.virtio_input(bytes) {
            return taken;
        }
        let taken = self.uart.receive(bytes);
        self.update_uart();
        taken
    }

    /// How many bytes [`console_input`](Self::console_input) would take.
    pub fn console_space(&mut self) -> usize {
        self.virtio_space().unwrap_or_else(|| self.uart.room())
    }

    /// The console has room again.
    pub fn console_room(&mut self) {
        self.flush_console();
    }

    pub(crate) fn flush_console(&mut self) {
        self.output.flush(&mut self.platform);
        self.update_uart();
        self.activate();
        self.update_virtio_console();
    }

    /// The reply that runs a vCPU no more.
    pub(crate) fn stop(&self) -> Resume {
        Resume { action: Action::Stop, ..Resume::at(0, 0) }
    }

    /// The reply that resumes with what the state page has.
    pub(crate) fn loaded(groups: Groups) -> Resume {
        Resume { groups, clear_shadow: true, ..Resume::at(0, 0) }
    }

    /// Logs something that a guest can cause as often as it likes.
    pub(crate) fn note(&mut self, event: Event) {
        if let Some(left) = self.log_budget.checked_sub(1) {
            self.log_budget = left;
            self.platform.log(event);
        }
    }

    /// The VM is over.
    pub(crate) fn end(&mut self, kind: ExitKind, words: [u64; 4]) {
        if !self.ended {
            self.output.flush(&mut self.platform);
            self.ended = true;
            self.platform.end(kind, words);
        }
    }

    /// The VM crashed.
    pub(crate) fn crash(&mut self, kind: CrashKind, vcpu: usize, rip: u64, detail: u64) {
        self.end(ExitKind::Crashed, [kind as u64, vcpu as u64, rip, detail]);
    }

    /// Whether the VM has ended.
    pub fn is_over(&self) -> bool {
        self.ended
    }
}
