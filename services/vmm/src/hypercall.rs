//! KVM's hypercalls, by VMMCALL (Linux's Documentation/virt/kvm/x86/hypercalls.rst).

use caisson_proto::abi::Status;
use caisson_proto::addr::PAGE_SIZE;
use caisson_proto::vcpu::{CpuidEntry, Exit, Groups, Resume, VcpuState};

use crate::dev::ioapic::Message;
use crate::exits::{RBX, RSI, again, done};
use crate::interrupts::{FIXED, NMI};
use crate::platform::Platform;
use crate::vcpu::Life;
use crate::vmm::Vmm;

const VAPIC_POLL_IRQ: u64 = 1;
const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;
const MAP_GPA_RANGE: u64 = 12;
/// −KVM_EFAULT, −KVM_E2BIG, −KVM_EINVAL.
const FAULT: u64 = -14_i64 as u64;
const TOO_BIG: u64 = -7_i64 as u64;
const INVALID: u64 = -22_i64 as u64;
/// Of the attributes of a range: its pages are to be private. Below is the size of the guest's pages, which doesn't matter.
const ENCRYPTED: u64 = 1 << 4;
const PAGE_SIZES: u64 = 0xf;
/// Pages that one call turns at the most: 1 GiB.
const MOST_PAGES: u64 = 1 << 18;
/// −KVM_EPERM: a program of the guest's may not call.
const NOT_PERMITTED: u64 = -1_i64 as u64;
/// −KVM_ENOSYS.
const NO_SUCH_CALL: u64 = -1000_i64 as u64;

/// The calls that always answer the same, for the kernel's table: polling the interrupts, which arrive by themselves, and
/// what isn't offered of KVM's numbers.
pub(crate) fn constant() -> impl Iterator<Item = CpuidEntry> {
    (1..16).filter(|number| !matches!(*number, KICK_CPU | SEND_IPI | SCHED_YIELD | MAP_GPA_RANGE)).map(|number| {
        let rax = if number == VAPIC_POLL_IRQ { 0 } else { NO_SUCH_CALL };
        let (leaf, answer) = (CpuidEntry::HYPERCALLS + number as u32, [rax as u32, (rax >> 32) as u32, 0, 0]);
        CpuidEntry { leaf, subleaf: 0, flags: CpuidEntry::HYPERCALL, answer, used: 1 }
    })
}

impl<P: Platform> Vmm<P> {
    pub(crate) fn hypercall(&mut self, _at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let next = self.next(exit, state, [0x0f, 0x01, 0xd9]);
        self.fill(exit, Groups::CORE, state);
        if state.cpl != 0 {
            return done(next, NOT_PERMITTED);
        }
        // rbx, rcx, rdx and rsi are the arguments.
        let (rcx, rdx) = (exit.rcx, exit.rdx);
        let result = match exit.rax {
            KICK_CPU => {
                let target = self.vcpus.iter().position(|vcpu| u64::from(vcpu.apic.id()) == rcx);
                target.map_or(0, |target| {
                    self.unhalt(target);
                    0
                })
            }
            SEND_IPI => {
                let (rbx, rsi) = (self.platform.gpr(exit.vcpu, RBX), self.platform.gpr(exit.vcpu, RSI));
                self.send_ipi(u128::from(rbx) | u128::from(rcx) << 64, rdx as u32, rsi)
            }
            // The other vCPU has a CPU of its own or its turn comes by itself.
            SCHED_YIELD => 0,
            MAP_GPA_RANGE => {
                let gpa = self.platform.gpr(exit.vcpu, RBX);
                match self.map_range(gpa, rcx, rdx) {
                    Some(answer) => answer,
                    // memory is being started again, or has no time: the guest calls once more.
                    None => return again(exit),
                }
            }
            VAPIC_POLL_IRQ => 0,
            _ => NO_SUCH_CALL,
        };
        done(next, result)
    }

    /// An IPI to the APICs whose bits are set, counted from `first`. How many there are.
    fn send_ipi(&mut self, bitmap: u128, first: u32, icr: u64) -> u64 {
        let mut targets = 0;
        for (at, vcpu) in self.vcpus.iter().enumerate() {
            let bit = vcpu.apic.id().checked_sub(first).filter(|bit| *bit < 128);
            if bit.is_some_and(|bit| bitmap >> bit & 1 == 1) && vcpu.apic.is_on() {
                targets |= 1_u32 << at;
            }
        }
        let mode = (icr >> 8 & 7) as u8;
        if mode != FIXED && mode != NMI {
            return NO_SUCH_CALL;
        }
        let message = Message { vector: icr as u8, mode, logical: false, destination: 0, level: false };
        self.send_to(message, targets);
        u64::from(targets.count_ones())
    }

    /// The guest wants pages private or shared.
    #[inline(never)]
    fn map_range(&mut self, gpa: u64, pages: u64, attributes: u64) -> Option<u64> {
        if !gpa.is_multiple_of(PAGE_SIZE) || pages == 0 || attributes & !(ENCRYPTED | PAGE_SIZES) != 0 {
            return Some(INVALID);
        }
        if pages > MOST_PAGES {
            return Some(TOO_BIG);
        }
        let private = attributes & ENCRYPTED != 0;
        match self.ram.convert(&mut self.platform, gpa / PAGE_SIZE, pages, private) {
            Ok(()) => Some(0),
            Err(Status::Dead | Status::Died | Status::Busy) => None,
            Err(Status::Range) => Some(INVALID),
            Err(_) => Some(FAULT),
        }
    }

    /// Ends a vCPU's HLT.
    fn unhalt(&mut self, at: usize) {
        if let Some(vcpu) = self.vcpus.get_mut(at)
            && matches!(vcpu.life, Life::Halted { .. })
        {
            vcpu.life = Life::Running;
            self.count_wake(at);
            self.wake(at);
        }
    }
}
