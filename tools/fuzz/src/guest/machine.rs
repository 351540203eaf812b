//! A VM on the fake platform, and the exits that its vCPUs take.

use caisson_proto::exits::code;
use caisson_proto::vcpu::{Exit, ExitFlags, Groups, Resume, Save, VcpuState};
use caisson_proto::vmm::{Encryption, OnReset, Virtio, VmConfig};
use caisson_vmm::{Facts, Vmm};

use super::fake::Fake;

/// A mebibyte.
pub const MIB: u64 = 1 << 20;
/// Ticks of the TSC a millisecond.
pub const KHZ: u64 = 1_000_000;
/// Where code is put: inside the kernel's memory, mapped to itself by the boot page tables.
pub const CODE: u64 = 0x30_0000;

/// A bzImage whose protected part is `protected`.
pub fn bzimage(protected: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    image[0x234] = 1;
    image[0x236..0x238].copy_from_slice(&0x7f_u16.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x40_0000_u32.to_le_bytes());
    image.extend_from_slice(protected);
    image
}

/// A VM with so many vCPUs.
pub fn config(vcpus: u8) -> VmConfig {
    VmConfig {
        name: "test".into(),
        vcpus,
        memory: 32 * MIB,
        promised: 32 * MIB,
        cmdline: "console=ttyS0".into(),
        on_reset: OnReset::Restart,
        test_devices: false,
        encryption: Encryption::None,
        virtio: Virtio::default(),
        first_cpu: 0,
        lowest_cpu: 0,
        epoch: 1_767_225_600,
        seed: [7; 32],
    }
}

/// The machine below.
pub const FACTS: Facts = Facts { tsc_khz: KHZ, xsave: true };

/// A machine whose kernel image is nothing but bytes.
#[derive(Debug)]
pub struct Machine {
    /// The VM.
    pub vmm: Vmm<Fake>,
    scratch: VcpuState,
}

impl Machine {
    /// A VM with so many vCPUs and no test devices.
    pub fn new(vcpus: u8) -> Self {
        Self::of(&config(vcpus))
    }

    /// A VM with this configuration.
    pub fn of(config: &VmConfig) -> Self {
        let kernel = bzimage(&[0x90; 4096]);
        let vmm = Vmm::new(Fake::new(config.memory, config.vcpus), config, &kernel, b"initrd", FACTS);
        let mut vmm = vmm.expect("its own kernel can be booted");
        if config.virtio != Virtio::default() {
            vmm.attach(caisson_vmm::virtio::Virtio::new(config, crate::virtio::contents()).expect("its disk is one"));
        }
        // What scratch space holds means nothing.
        Self {
            vmm,
            scratch: VcpuState { save: Save { rip: 0xbad, cr3: 0xbad, ..Save::default() }, ..VcpuState::default() },
        }
    }

    /// Its surroundings.
    pub fn fake(&mut self) -> &mut Fake {
        &mut self.vmm.platform
    }

    /// A vCPU's state page.
    pub fn state(&mut self, vcpu: usize) -> &mut VcpuState {
        &mut self.vmm.platform.states[vcpu]
    }

    /// An exit with interrupts on and the last event delivered.
    pub fn exit(&mut self, vcpu: u8, code: u16, info1: u64, info2: u64) -> Resume {
        self.exit_with(vcpu, code, info1, info2, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED)
    }

    /// An exit with these flags; its reply is carried out as far as the state page goes.
    pub fn exit_with(&mut self, vcpu: u8, code: u16, info1: u64, info2: u64, flags: ExitFlags) -> Resume {
        let state = self.state(vcpu.into());
        let exit = Exit {
            vcpu,
            context: 0,
            code,
            flags,
            info1,
            info2,
            rip: state.rip,
            rax: state.gpr[0],
            rcx: state.gpr[1],
            rdx: state.gpr[2],
            next_rip: 0,
        };
        let resume = self.vmm.handle_exit(&exit, &mut self.scratch);
        if !resume.groups.contains(Groups::CORE) && resume.rip != 0 {
            let state = self.state(vcpu.into());
            state.rip = resume.rip;
            state.gpr[0] = resume.rax;
        }
        resume
    }

    /// Puts code at [`CODE`] and vCPU `vcpu` there.
    pub fn code(&mut self, vcpu: usize, bytes: &[u8]) {
        let fake = self.fake();
        fake.memory[CODE as usize..][..bytes.len()].copy_from_slice(bytes);
        fake.states[vcpu].rip = CODE;
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, vcpu: u8, msr: u32, value: u64) -> Resume {
        self.code(vcpu.into(), &[0x0f, 0x30]);
        let state = self.state(vcpu.into());
        state.gpr[1] = msr.into();
        state.gpr[0] = value & 0xffff_ffff;
        state.gpr[2] = value >> 32;
        self.exit(vcpu, code::MSR, 1, 0)
    }

    /// The value, or the event injected instead.
    pub fn rdmsr(&mut self, vcpu: u8, msr: u32) -> Result<u64, u64> {
        self.code(vcpu.into(), &[0x0f, 0x32]);
        self.state(vcpu.into()).gpr[1] = msr.into();
        let resume = self.exit(vcpu, code::MSR, 0, 0);
        let state = self.state(vcpu.into());
        if state.rip == CODE { Err(resume.inject) } else { Ok(state.gpr[0] & 0xffff_ffff | state.gpr[2] << 32) }
    }

    /// OUT of a byte.
    pub fn outb(&mut self, port: u16, value: u8) -> Resume {
        self.state(0).gpr[0] = value.into();
        let next = self.state(0).rip + 1;
        self.exit(0, code::IOIO, u64::from(port) << 16 | 1 << 4, next)
    }

    /// IN of a byte.
    pub fn inb(&mut self, port: u16) -> u8 {
        let next = self.state(0).rip + 1;
        self.exit(0, code::IOIO, u64::from(port) << 16 | 1 << 4 | 1, next);
        self.state(0).gpr[0] as u8
    }

    /// HLT.
    pub fn halt(&mut self, vcpu: u8) -> Resume {
        self.code(vcpu.into(), &[0xf4]);
        self.exit(vcpu, code::HLT, 0, 0)
    }

    /// Runs the instruction at [`CODE`] against the device at `gpa`.
    pub fn mmio(&mut self, vcpu: u8, bytes: &[u8], gpa: u64) -> Resume {
        self.code(vcpu.into(), bytes);
        self.exit(vcpu, code::NPF, 4, gpa)
    }

    /// Turns on x2APIC mode and the APIC itself.
    pub fn x2apic(&mut self, vcpu: u8) {
        let base = self.rdmsr(vcpu, 0x1b).unwrap();
        self.wrmsr(vcpu, 0x1b, base | 1 << 10);
        self.wrmsr(vcpu, 0x80f, 0x1ff);
    }
}

/// EVENTINJ of an interrupt.
pub fn interrupt(vector: u8) -> u64 {
    1 << 31 | u64::from(vector)
}

/// EVENTINJ of #GP(0).
pub const PROTECTION: u64 = 1 << 31 | 1 << 11 | 3 << 8 | 13;
