//! From an act to exits, and what every reply must keep to.

use caisson_core::svm::events;
use caisson_proto::exits::code;
use caisson_proto::vcpu::{Action, ExitFlags, Groups, Resume, Segment};
use caisson_vmm::boot::entry;

use super::act::{Act, Msr, Port, Strings};
use super::machine::{CODE, Machine};

const X2APIC_ICR: u32 = 0x830;
/// IOIO's EXITINFO1: an input, a string instruction, a repeated one.
const INPUT: u64 = 1;
const STRING: u64 = 1 << 2;
const REPEATED: u64 = 1 << 3;
const DIRECTION: u64 = 1 << 10;

impl Machine {
    /// Does it on a vCPU.
    pub fn perform(&mut self, vcpu: u8, act: Act) {
        let index = usize::from(vcpu);
        match act {
            Act::Port(port) => self.port(vcpu, port),
            Act::Strings(strings) => self.strings(vcpu, strings),
            Act::Msr(Msr { msr, write, after }) => {
                self.wait(after.into());
                match write {
                    None => _ = self.rdmsr(vcpu, msr),
                    Some(value) => {
                        let resume = self.wrmsr(vcpu, msr, value);
                        self.check(vcpu, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED, &resume);
                    }
                }
            }
            Act::Device { gpa, code, gpr } => {
                self.state(index).gpr = [gpr; 16];
                self.code(index, &code);
                self.leave(vcpu, code::NPF, 4, gpa, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED);
            }
            Act::Exit { code, bytes, value, flags } => {
                self.code(index, &bytes);
                self.state(index).gpr = [value; 16];
                self.leave(vcpu, code, value, value.rotate_left(32), ExitFlags::from_bits_truncate(flags.into()));
            }
            Act::Command { low, destination } => {
                self.wrmsr(vcpu, X2APIC_ICR, u64::from(destination) << 32 | u64::from(low));
            }
            Act::Control { cr0, cr3, cr4, efer } => {
                let state = self.state(index);
                (state.cr0, state.cr3, state.cr4, state.efer) = (cr0, cr3, cr4, efer);
            }
            Act::Segment { index: segment, attributes, base, cpl } => {
                let state = self.state(index);
                state.segments[usize::from(segment)] = Segment { selector: 8, attributes, limit: u32::MAX, base };
                state.cpl = cpl;
            }
            Act::Poke { word, value } => {
                self.fake().memory[word as usize * 8..][..8].copy_from_slice(&value.to_le_bytes());
            }
            Act::Calm => {
                let offset = self.state(index).tsc_offset;
                *self.state(index) = entry::boot_64(CODE, offset);
                self.fake().console_limit = None;
                self.fake().refuse_memory = false;
            }
            Act::Wait(ticks) => self.wait(ticks),
            Act::Keys(bytes) => assert!(self.vmm.console_input(&bytes) <= bytes.len()),
            Act::Room(bytes) => {
                let fake = self.fake();
                fake.console.clear();
                fake.console_limit = Some(bytes.into());
                self.vmm.console_room();
            }
            Act::Refuse(refuse) => self.fake().refuse_memory = refuse,
        }
    }

    fn wait(&mut self, ticks: u64) {
        let time = &self.fake().time;
        time.set(time.get() + ticks);
    }

    fn port(&mut self, vcpu: u8, Port { port, size, input, value, after }: Port) {
        self.wait(after.into());
        self.code(vcpu.into(), &[0xee]);
        self.state(vcpu.into()).gpr[0] = value.into();
        let info = u64::from(port) << 16 | 1 << (4 + size) | if input { INPUT } else { 0 };
        self.leave(vcpu, code::IOIO, info, CODE + 1, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED);
        // Its timer comes due for the PIT's sake, too.
        self.leave(vcpu, code::TIMER, 0, 0, ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED);
    }

    fn strings(&mut self, vcpu: u8, strings: Strings) {
        let Strings { opcode, prefixes, port, count, source, target, rax, down } = strings;
        let chosen = [0x66, 0x67, 0xf3, 0xf2, 0x64, 0x48].into_iter().enumerate();
        let mut code: Vec<u8> = chosen.filter(|(n, _)| prefixes >> n & 1 == 1).map(|(_, byte)| byte).collect();
        code.push(opcode);
        self.code(vcpu.into(), &code);
        let state = self.state(vcpu.into());
        (state.gpr[0], state.gpr[1], state.gpr[6], state.gpr[7]) = (rax, count, source, target);
        state.rflags = if down { state.rflags | DIRECTION } else { state.rflags & !DIRECTION };
        let flags = ExitFlags::INTERRUPTS_ON | ExitFlags::INJECTED;
        if opcode < 0x70 {
            state.gpr[2] = port.into();
            let repeated = if prefixes & 0b1100 != 0 { REPEATED } else { 0 };
            let input = if opcode < 0x6e { INPUT } else { 0 };
            let size = 1 << (4 + if opcode & 1 == 0 { 0 } else { 2 - (prefixes & 1) });
            let next = CODE + code.len() as u64;
            let info = u64::from(port) << 16 | STRING | repeated | input | size;
            self.leave(vcpu, code::IOIO, info, next, flags);
            return;
        }
        // The operand in memory that isn't memory is what faults.
        let reads_only = matches!(opcode, 0xac | 0xad);
        let gpa = if reads_only || target < 32 << 20 { source } else { target };
        self.leave(vcpu, code::NPF, 4, gpa, flags);
    }

    fn leave(&mut self, vcpu: u8, code: u16, info1: u64, info2: u64, flags: ExitFlags) {
        let resume = self.exit_with(vcpu, code, info1, info2, flags);
        self.check(vcpu, flags, &resume);
    }

    /// What the kernel would refuse ends the vmm, not the guest.
    fn check(&mut self, vcpu: u8, flags: ExitFlags, resume: &Resume) {
        if resume.action == Action::Stop {
            return;
        }
        assert_eq!(events::check(resume.inject, false), Ok(()), "{resume:?}");
        if flags.contains(ExitFlags::EVENT_PENDING | ExitFlags::INJECTED) && !resume.replace {
            assert_eq!(resume.inject, 0, "another event is under way");
        }
        assert!(!resume.replace || resume.inject != 0, "nothing in an event's place");
        if resume.groups.contains(Groups::XCR0) {
            let xcr0 = self.state(vcpu.into()).xcr0;
            assert!(xcr0 & 1 == 1 && xcr0 & 6 != 4 && xcr0 & !0x207 == 0, "XCR0 {xcr0:#x}");
        }
        assert_eq!(Resume::from_words(&resume.to_words()), Ok(*resume), "the reply has another form on the wire");
    }
}
