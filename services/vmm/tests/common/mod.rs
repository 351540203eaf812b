//! A platform made of plain memory, and a small kernel image to boot on it.
#![allow(dead_code)] // each test file uses its part

use std::cell::Cell;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa};
use caisson_proto::exits::code;
use caisson_proto::supervisor::ExitKind;
use caisson_proto::vcpu::{CpuidEntry, Exit, ExitFlags, Groups, Resume, VcpuState};
use caisson_proto::vmm::{OnReset, VmConfig};
use caisson_vmm::{Event, Facts, Platform, Vmm};

pub const MIB: u64 = 1 << 20;
pub const KHZ: u64 = 1_000_000;
/// Where tests put code: inside the kernel's memory, mapped to itself by the boot page tables.
pub const CODE: u64 = 0x30_0000;

/// The platform.
#[derive(Debug, Default)]
pub struct Fake {
    pub memory: Vec<u8>,
    pub backed: Vec<u64>,
    pub refuse_memory: bool,
    pub states: Vec<VcpuState>,
    pub filled: Vec<(u8, Groups)>,
    pub time: Cell<u64>,
    pub kicks: Vec<u8>,
    pub runs: Vec<u8>,
    pub cpuid: Vec<Vec<CpuidEntry>>,
    pub console: Vec<u8>,
    pub console_limit: Option<usize>,
    pub ended: Option<(ExitKind, [u64; 4])>,
    pub events: Vec<Event>,
}

impl Fake {
    pub fn new(bytes: u64, vcpus: u8) -> Self {
        Self {
            memory: vec![0; bytes as usize],
            states: vec![VcpuState::default(); vcpus.into()],
            time: Cell::new(5000),
            ..Self::default()
        }
    }
}

impl Platform for Fake {
    fn populate(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        assert!(pages <= 512 && (gfn.0 + pages) << 12 <= self.memory.len() as u64);
        if self.refuse_memory {
            return Err(Status::Exhausted);
        }
        self.backed.push(gfn.0 / 512);
        Ok(())
    }
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        for chunk in gpa.0 >> 21..=(gpa.0 + into.len() as u64 - 1) >> 21 {
            assert!(self.backed.contains(&chunk), "read of memory that isn't backed");
        }
        into.copy_from_slice(&self.memory[gpa.0 as usize..][..into.len()]);
        true
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> bool {
        for chunk in gpa.0 >> 21..=(gpa.0 + from.len() as u64 - 1) >> 21 {
            assert!(self.backed.contains(&chunk), "write to memory that isn't backed");
        }
        self.memory[gpa.0 as usize..][..from.len()].copy_from_slice(from);
        true
    }
    fn now(&self) -> u64 {
        self.time.set(self.time.get() + 1);
        self.time.get()
    }
    fn kick(&mut self, vcpu: u8) {
        self.kicks.push(vcpu);
    }
    fn run(&mut self, vcpu: u8) {
        self.runs.push(vcpu);
    }
    fn fill(&mut self, vcpu: u8, groups: Groups, _: Groups, state: &mut VcpuState) {
        self.filled.push((vcpu, groups));
        copy(&self.states[usize::from(vcpu)], state, groups);
    }
    fn store(&mut self, vcpu: u8, groups: Groups, state: &VcpuState) {
        copy(state, &mut self.states[usize::from(vcpu)], groups);
    }
    fn gpr(&self, vcpu: u8, number: usize) -> u64 {
        self.states[usize::from(vcpu)].gpr[number]
    }
    fn set_gpr(&mut self, vcpu: u8, number: usize, value: u64) {
        self.states[usize::from(vcpu)].gpr[number] = value;
    }
    fn load_cpuid(&mut self, vcpu: u8, entries: &[CpuidEntry]) -> Result<(), Status> {
        assert!(entries.len() <= CpuidEntry::MAX);
        match self.cpuid.get_mut(usize::from(vcpu)) {
            Some(table) => *table = entries.to_vec(),
            None => {
                assert_eq!(usize::from(vcpu), self.cpuid.len());
                self.cpuid.push(entries.to_vec());
            }
        }
        Ok(())
    }
    fn host_cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0xd, 1, 2, 3],
            0x8000_0000 => [0x8000_001f, 0, 0, 0],
            0xd if subleaf == 2 => [256, 576, 0, 0],
            0xd => [7, 0, 0, 0],
            _ => [u32::MAX; 4],
        }
    }
    fn console_out(&mut self, bytes: &[u8]) -> usize {
        let room = self.console_limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.console.len()));
        let taken = bytes.len().min(room);
        self.console.extend_from_slice(&bytes[..taken]);
        taken
    }
    fn end(&mut self, kind: ExitKind, words: [u64; 4]) {
        assert!(self.ended.is_none());
        self.ended = Some((kind, words));
    }
    fn log(&mut self, event: Event) {
        self.events.push(event);
    }
}

fn copy(from: &VcpuState, to: &mut VcpuState, groups: Groups) {
    if groups.contains(Groups::CORE) {
        (to.gpr, to.rip, to.rflags, to.cpl) = (from.gpr, from.rip, from.rflags, from.cpl);
    }
    if groups.contains(Groups::SEGMENTS) {
        (to.segments, to.ldtr, to.tr) = (from.segments, from.ldtr, from.tr);
    }
    if groups.contains(Groups::TABLES) {
        (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
    }
    if groups.contains(Groups::CONTROL) {
        (to.cr0, to.cr2, to.cr3, to.cr4, to.efer) = (from.cr0, from.cr2, from.cr3, from.cr4, from.efer);
    }
    if groups.contains(Groups::DEBUG) {
        (to.dr, to.dr6, to.dr7) = (from.dr, from.dr6, from.dr7);
    }
    if groups.contains(Groups::PAT) {
        to.pat = from.pat;
    }
    if groups.contains(Groups::TSC) {
        (to.tsc_offset, to.tsc_aux) = (from.tsc_offset, from.tsc_aux);
    }
    if groups.contains(Groups::XCR0) {
        to.xcr0 = from.xcr0;
    }
}

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

pub fn config(vcpus: u8) -> VmConfig {
    VmConfig {
        name: "test".into(),
        vcpus,
        memory: 32 * MIB,
        cmdline: "console=ttyS0".into(),
        on_reset: OnReset::Restart,
        test_devices: false,
        first_cpu: 0,
        lowest_cpu: 0,
        epoch: 1_767_225_600,
        seed: [7; 32],
    }
}

pub const FACTS: Facts = Facts { tsc_khz: KHZ, xsave: true };

/// A machine whose kernel image is nothing but bytes.
pub struct Machine {
    pub vmm: Vmm<Fake>,
    scratch: VcpuState,
}

impl Machine {
    pub fn new(vcpus: u8) -> Self {
        let kernel = bzimage(&[0x90; 4096]);
        let vmm = Vmm::new(Fake::new(32 * MIB, vcpus), &config(vcpus), &kernel, b"initrd", FACTS).unwrap();
        // What scratch space holds means nothing.
        Self { vmm, scratch: VcpuState { rip: 0xbad, cr3: 0xbad, ..VcpuState::default() } }
    }

    pub fn fake(&mut self) -> &mut Fake {
        &mut self.vmm.platform
    }

    pub fn state(&mut self, vcpu: usize) -> &mut VcpuState {
        &mut self.vmm.platform.states[vcpu]
    }

    /// An exit with interrupts on and the last event delivered.
    pub fn exit(&mut self, vcpu: u8, code: u16, info1: u64, info2: u64) -> Resume {
        self.exit_with(vcpu, code, info1, info2, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED)
    }

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

    pub fn outb(&mut self, port: u16, value: u8) -> Resume {
        self.state(0).gpr[0] = value.into();
        let next = self.state(0).rip + 1;
        self.exit(0, code::IOIO, u64::from(port) << 16 | 1 << 4, next)
    }

    pub fn inb(&mut self, port: u16) -> u8 {
        let next = self.state(0).rip + 1;
        self.exit(0, code::IOIO, u64::from(port) << 16 | 1 << 4 | 1, next);
        self.state(0).gpr[0] as u8
    }

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
