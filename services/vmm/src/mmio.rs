//! Nested page faults: memory that isn't backed yet, and devices in memory.

use caisson_proto::abi::Status;
use caisson_proto::supervisor::CrashKind;
use caisson_proto::vcpu::{Action, Exit, Groups, Resume, VcpuState};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::dev::{ioapic, lapic, testdev};
use crate::exits::again;
use crate::holes::register_of;
use crate::insn::integer;
use crate::insn::operand::{Alu, compute, mask, read_register, write_register};
use crate::platform::{Event, Platform};
use crate::ram::NoMemory;
use crate::vmm::Vmm;

/// A fault that comes back so often in a row can't be resolved.
const MAX_REPEATS: u32 = 64;

impl<P: Platform> Vmm<P> {
    pub(crate) fn nested_fault(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let gpa = exit.info2;
        if self.ram.contains(gpa) {
            return self.memory_fault(at, exit, state);
        }
        if let Some(resume) = self.hole(at, exit, state) {
            return resume;
        }
        self.activate();
        let Some(code) = self.fetch(exit, state) else { return again(exit) };
        let Some(instruction) = code.decode() else { return self.unemulated(at, exit, state) };
        if let Some(resume) = self.device_string(at, exit, state, &instruction, code.after(instruction.len())) {
            return resume;
        }
        if straddles(state, &instruction, gpa)
            && let Some(resume) = self.step_aside(at, exit, state, &instruction)
        {
            return resume;
        }
        if self.emulate(at, state, &instruction, gpa).is_none() {
            return match self.step_aside(at, exit, state, &instruction) {
                Some(resume) => resume,
                None => self.unemulated(at, exit, state),
            };
        }
        // A string instruction that isn't over comes back for its next element.
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !(repeats && is_string(&instruction) && self.count_down(state, &instruction)) {
            state.rip = code.after(instruction.len());
        }
        Self::loaded(Groups::CORE)
    }

    pub(crate) fn memory_fault(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let gpa = exit.info2;
        let Some(vcpu) = self.vcpus.get_mut(at) else { return self.stop() };
        let repeats = if vcpu.fault.0 == gpa { vcpu.fault.1.saturating_add(1) } else { 0 };
        vcpu.fault = (gpa, repeats);
        if repeats > MAX_REPEATS {
            return self.unemulated(at, exit, state);
        }
        let start = self.platform.now();
        // The vCPU can be parked; meanwhile others have their turn.
        self.platform.hurry(true);
        let backed = self.ram.back(&mut self.platform, gpa);
        self.platform.hurry(false);
        self.count_populate(at, start, backed.is_ok());
        match backed {
            Ok(()) => {
                self.waits_no_more(at);
                again(exit)
            }
            // memory is being started again: the guest faults until it is there.
            Err(NoMemory { refused: Some(Status::Dead | Status::Died), .. }) => {
                self.forget_fault(at);
                again(exit)
            }
            Err(NoMemory { refused: Some(status), .. }) if self.waits_for_page(at, status) => {
                self.forget_fault(at);
                Resume { action: Action::Park, ..again(exit) }
            }
            Err(refused) => {
                if let Some(status) = refused.refused {
                    self.note(Event::NoMemory(gpa, status));
                }
                if !matches!(refused.refused, Some(Status::Exhausted | Status::Busy)) {
                    return self.unemulated(at, exit, state);
                }
                self.epitaph(exit, state);
                self.crash(CrashKind::NoMemory, at, exit.rip, gpa);
                self.stop()
            }
        }
    }

    /// The next fault at the same address is the first one again.
    fn forget_fault(&mut self, at: usize) {
        if let Some(vcpu) = self.vcpus.get_mut(at) {
            vcpu.fault = (u64::MAX, 0);
        }
    }

    /// Whether a repeated string instruction goes on.
    pub(crate) fn count_down(&mut self, state: &mut VcpuState, instruction: &Instruction) -> bool {
        let width = address_width(instruction);
        let [_, rcx, ..] = &mut state.gpr;
        let left = (*rcx & mask(width)).wrapping_sub(1) & mask(width);
        *rcx = if width == 4 { left } else { *rcx & !mask(width) | left };
        left != 0
    }

    /// One access of an instruction to a device at `gpa`. `None` if it isn't emulated.
    fn emulate(&mut self, at: usize, state: &mut VcpuState, instruction: &Instruction, gpa: u64) -> Option<()> {
        let bytes = instruction.memory_size().size();
        if !matches!(bytes, 1 | 2 | 4 | 8) {
            return None;
        }
        let memory_first = instruction.op0_kind() == OpKind::Memory;
        let operand = |state: &VcpuState, index: u32| match instruction.op_kind(index) {
            OpKind::Register if instruction.op_register(index).is_segment_register() => {
                state.segments.get(instruction.op_register(index).number()).map(|segment| segment.selector.into())
            }
            OpKind::Register => read_register(state, instruction.op_register(index)),
            OpKind::Memory => None,
            _ => instruction.try_immediate(index).ok(),
        };
        match instruction.mnemonic() {
            Mnemonic::Mov if memory_first => {
                let value = operand(state, 1)?;
                self.device_write(at, gpa, bytes, value);
            }
            Mnemonic::Mov | Mnemonic::Movzx => {
                // Reading may change the device, so that it can be loaded must be known before.
                read_register(state, instruction.op0_register())?;
                let value = self.device_read(at, gpa, bytes);
                write_register(state, instruction.op0_register(), value)?;
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let value = self.device_read(at, gpa, bytes);
                let unused = 64 - 8 * bytes as u32;
                write_register(state, instruction.op0_register(), ((value << unused) as i64 >> unused) as u64)?;
            }
            Mnemonic::Xchg => {
                let register = if memory_first { instruction.op1_register() } else { instruction.op0_register() };
                let value = read_register(state, register)?;
                let old = self.device_read(at, gpa, bytes);
                self.device_write(at, gpa, bytes, value);
                write_register(state, register, old)?;
            }
            Mnemonic::Stosb | Mnemonic::Stosd | Mnemonic::Stosq | Mnemonic::Stosw => {
                let value = state.gpr[0] & mask(bytes);
                self.device_write(at, gpa, bytes, value);
                advance(state, instruction, bytes, 7);
            }
            mnemonic => {
                let Some((alu, stores)) = alu_of(mnemonic) else {
                    return self.emulate_integer(at, state, instruction, gpa, bytes);
                };
                let other = operand(state, u32::from(memory_first))?;
                let memory = self.device_read(at, gpa, bytes);
                let (left, right) = if memory_first { (memory, other) } else { (other, memory) };
                let (result, rflags) = compute(alu, left, right, bytes, state.rflags);
                state.rflags = rflags;
                match (stores, memory_first) {
                    (false, _) => {}
                    (true, true) => self.device_write(at, gpa, bytes, result),
                    (true, false) => write_register(state, instruction.op0_register(), result)?,
                }
            }
        }
        Some(())
    }

    /// Instructions that no driver uses on devices.
    fn emulate_integer(
        &mut self, at: usize, state: &mut VcpuState, instruction: &Instruction, gpa: u64, bytes: usize,
    ) -> Option<()> {
        // Reading a device may change it, so what isn't known must be known before.
        integer::execute(&mut state.clone(), instruction, 0, bytes)?;
        let reads = !integer::only_writes(instruction);
        let memory = if reads { self.device_read(at, gpa, bytes) } else { 0 };
        if let Some(value) = integer::execute(state, instruction, memory, bytes)? {
            self.device_write(at, gpa, bytes, value);
        }
        Some(())
    }

    /// Whether the registers of a vCPU's local APIC lie in this page.
    #[inline]
    fn is_apic(&self, at: usize, page: u64) -> bool {
        self.vcpus.get(at).is_some_and(|vcpu| vcpu.apic.is_on() && !vcpu.apic.is_x2() && vcpu.apic.page() == page)
    }

    /// Reads up to eight bytes of a device; all ones where there is none.
    pub(crate) fn device_read(&mut self, at: usize, gpa: u64, bytes: usize) -> u64 {
        if let Some(test) = self.test.as_ref().filter(|_| testdev::MMIO.contains(&gpa)) {
            return test.memory_read(gpa, bytes);
        }
        if let Some(value) = self.virtio_read(gpa, bytes) {
            return value;
        }
        let shift = 8 * (gpa & 3) as u32;
        let now = self.platform.now();
        let value = match gpa & !0xfff {
            page if self.is_apic(at, page) => match self.vcpus.get(at) {
                // Registers are 16 bytes apart; what lies between reads zero.
                Some(vcpu) if gpa & 0xc == 0 => vcpu.apic.read((gpa & 0xfff) as u16 >> 4, now).unwrap_or(0),
                _ => 0,
            },
            // It is there, but off or in x2APIC mode.
            lapic::MMIO => u64::MAX,
            ioapic::MMIO => u64::from(self.ioapic.read(gpa & 0xffc)),
            _ => {
                self.note(Event::NoDevice(gpa));
                u64::MAX
            }
        };
        value >> shift & mask(bytes)
    }

    pub(crate) fn device_write(&mut self, at: usize, gpa: u64, bytes: usize, value: u64) {
        let value = value & mask(bytes);
        if let Some(test) = self.test.as_mut().filter(|_| testdev::MMIO.contains(&gpa)) {
            return test.memory_write(gpa, bytes, value);
        }
        if self.virtio_write(gpa, bytes, value).is_some() {
            return;
        }
        match gpa & !0xfff {
            page if self.is_apic(at, page) => {
                let now = self.platform.now();
                let Some(vcpu) = self.vcpus.get_mut(at) else { return };
                // Only aligned accesses of at least 32 bits are defined.
                if gpa & 0xf != 0 || bytes < 4 {
                    return;
                }
                if let Ok(effect) = vcpu.apic.write((gpa & 0xfff) as u16 >> 4, value & 0xffff_ffff, now) {
                    self.apply(at, effect);
                }
            }
            lapic::MMIO => {}
            ioapic::MMIO => {
                let pins = self.ioapic.write(gpa & 0xfff, value as u32);
                self.resend(pins);
            }
            _ => self.note(Event::NoDevice(gpa)),
        }
    }
}

/// Whether an access lies in two pages. The address of the fault is in the first, or where the second begins.
fn straddles(state: &VcpuState, instruction: &Instruction, gpa: u64) -> bool {
    let bytes = instruction.memory_size().size() as u64;
    if gpa & 0xfff != 0 {
        return (gpa & 0xfff) + bytes > 0x1000;
    }
    let memory = (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory);
    let linear =
        memory.and_then(|index| instruction.virtual_address(index, 0, |register, _, _| register_of(state, register)));
    linear.is_some_and(|linear| (linear & 0xfff) + bytes > 0x1000)
}

fn alu_of(mnemonic: Mnemonic) -> Option<(Alu, bool)> {
    Some(match mnemonic {
        Mnemonic::Add => (Alu::Add, true),
        Mnemonic::Adc => (Alu::Adc, true),
        Mnemonic::Sbb => (Alu::Sbb, true),
        Mnemonic::Sub => (Alu::Sub, true),
        Mnemonic::And => (Alu::And, true),
        Mnemonic::Or => (Alu::Or, true),
        Mnemonic::Xor => (Alu::Xor, true),
        Mnemonic::Cmp => (Alu::Sub, false),
        Mnemonic::Test => (Alu::And, false),
        _ => return None,
    })
}

fn is_string(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq)
}

/// Bytes of the address registers of a string instruction.
pub(crate) fn address_width(instruction: &Instruction) -> usize {
    let is = |kind: OpKind| (0..instruction.op_count()).any(|n| instruction.op_kind(n) == kind);
    match () {
        () if is(OpKind::MemoryESDI) || is(OpKind::MemorySegSI) => 2,
        () if is(OpKind::MemoryESEDI) || is(OpKind::MemorySegESI) => 4,
        () => 8,
    }
}

/// Moves rsi (6) or rdi (7) on by one element, in the direction of RFLAGS.DF.
pub(crate) fn advance(state: &mut VcpuState, instruction: &Instruction, bytes: usize, register: usize) {
    let width = address_width(instruction);
    let down = state.rflags >> 10 & 1 == 1;
    if let Some(address) = state.gpr.get_mut(register) {
        let moved = if down { address.wrapping_sub(bytes as u64) } else { address.wrapping_add(bytes as u64) };
        *address = match width {
            2 => *address & !0xffff | moved & 0xffff,
            4 => moved & 0xffff_ffff,
            _ => moved,
        };
    }
}
