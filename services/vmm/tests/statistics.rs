//! What a vmm publishes of its VM and vCPUs.

mod common;

use caisson_proto::exits::code;
use caisson_proto::stats::VmStat;
use caisson_proto::vcpu::ExitFlags;
use caisson_stats::{Block, judge, read};
use common::{MIB, Machine, config};
use zerocopy::IntoBytes;

fn block(machine: &mut Machine, page: usize) -> Block {
    let words = machine.fake().published[&page].clone();
    judge(words.as_bytes()).unwrap();
    read(words.as_bytes()).unwrap()
}

/// A value of a vCPU.
fn of(machine: &mut Machine, vcpu: usize, name: &str) -> u64 {
    block(machine, 1 + vcpu).value(name).unwrap()
}

/// How often a vCPU was halted and ran again.
fn waits(machine: &mut Machine, vcpu: usize) -> u64 {
    block(machine, 1 + vcpu).stats.last().unwrap().values.iter().sum()
}

#[test]
fn blocks_are_there_before_the_guest_runs() {
    let mut machine = Machine::new(2);
    let ids: Vec<String> = (0..3).map(|page| block(&mut machine, page).id).collect();
    assert_eq!(ids, ["kvm-test", "kvm-test/vcpu-0", "kvm-test/vcpu-1"]);
    let vm = block(&mut machine, 0);
    assert_eq!((vm.value("vcpus"), vm.value("memory")), (Some(2), Some(32 * MIB)));
    assert!(block(&mut machine, 2).stats.iter().all(|stat| stat.values.iter().all(|value| *value == 0)));
    let name = "n".repeat(200);
    let mut long = Machine::of(&caisson_proto::vmm::VmConfig { name, ..config(1) });
    assert_eq!(block(&mut long, 1).id.len(), 47);
}

#[test]
fn an_exit_is_counted_once_by_its_reason() {
    let mut machine = Machine::new(2);
    machine.outb(0x80, 1);
    machine.inb(0x61);
    machine.rdmsr(0, 0x10).unwrap();
    machine.halt(1);
    machine.exit(0, code::NPF, 4, 24 * MIB);
    machine.mmio(0, &[0x8b, 0x00], 0xfee0_0020);
    machine.exit(0, code::INTR, 0, 0);
    assert_eq!(of(&mut machine, 0, "exits"), 0, "nobody has asked");
    machine.fake().wbinvds = 3;
    machine.vmm.refresh([]);
    machine.vmm.refresh([]);
    let want = [("exits", 6), ("io_exits", 2), ("msr_exits", 1), ("pf_taken", 1), ("pf_fixed", 1), ("mmio_exits", 1)];
    for (name, count) in want.into_iter().chain([("other_exits", 1), ("halt_exits", 0)]) {
        assert_eq!(of(&mut machine, 0, name), count, "{name}");
    }
    assert_eq!((of(&mut machine, 1, "exits"), of(&mut machine, 1, "halt_exits")), (1, 1));
    assert_eq!(block(&mut machine, 0).stats.last().unwrap().values.iter().sum::<u64>(), 1, "one question to memory");
}

#[test]
fn a_halt_is_timed_until_the_vcpu_runs() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    machine.wrmsr(0, 0x832, 0x4_00ec);
    machine.state(0).rflags |= 1 << 9;
    machine.halt(0);
    machine.exit(0, code::KICK, 0, 0);
    assert_eq!(waits(&mut machine, 0), 0, "nothing woke it");
    let now = machine.fake().time.get();
    machine.wrmsr(0, 0x6e0, now + 1000);
    machine.halt(0);
    machine.fake().time.set(now + (1 << 20));
    machine.exit(0, code::TIMER, 0, 0);
    let histogram = block(&mut machine, 1).stats.last().unwrap().values.clone();
    assert_eq!((histogram.iter().sum::<u64>(), histogram[20]), (1, 1), "of nearly 2^20 ticks");
}

#[test]
fn memory_that_is_refused_is_a_fault_that_is_not_fixed() {
    let mut machine = Machine::new(1);
    machine.fake().refuse_memory = true;
    machine.exit(0, code::NPF, 4, 24 * MIB);
    machine.vmm.refresh([]);
    assert_eq!((of(&mut machine, 0, "pf_taken"), of(&mut machine, 0, "pf_fixed")), (1, 0));
}

#[test]
fn injections_are_counted_by_their_kind() {
    let mut machine = Machine::new(1);
    machine.x2apic(0);
    // A timer's interrupt, at once.
    machine.wrmsr(0, 0x832, 0x4_00ec);
    machine.wrmsr(0, 0x6e0, 1);
    assert_eq!((of(&mut machine, 0, "irq_injections"), of(&mut machine, 0, "exception_injections")), (1, 0));
    // The exit came before the guest was entered: it is injected again, and the same one.
    machine.exit_with(0, code::INTR, 0, 0, ExitFlags::empty());
    assert_eq!(of(&mut machine, 0, "irq_injections"), 1);
    machine.rdmsr(0, 0xdead).unwrap_err();
    assert_eq!(of(&mut machine, 0, "exception_injections"), 1);
}

#[test]
fn kicks_are_told_from_those_that_were_not_needed() {
    let mut machine = Machine::new(2);
    machine.halt(0);
    machine.exit(0, code::KICK, 0, 0);
    machine.vmm.refresh([]);
    assert_eq!((of(&mut machine, 0, "kick_exits"), of(&mut machine, 0, "kick_exits_spurious")), (1, 1));
}

#[test]
fn what_others_know_is_taken_over_when_somebody_reads() {
    let mut machine = Machine::new(2);
    machine.fake().wbinvds = 5;
    machine.vmm.refresh([(VmStat::Mapped, 77), (VmStat::Quarantined, 3)]);
    machine.vmm.refresh([(VmStat::Quarantined, 1)]);
    let vm = block(&mut machine, 0);
    assert_eq!((vm.value("frames_mapped"), vm.value("frames_quarantined")), (Some(77), Some(1)));
    assert_eq!(of(&mut machine, 1, "wbinvd_exits"), 5, "what was counted already isn't counted again");
    machine.fake().wbinvds = 9;
    machine.vmm.refresh([]);
    assert_eq!((of(&mut machine, 1, "wbinvd_exits"), of(&mut machine, 1, "exits")), (9, 0));
}
