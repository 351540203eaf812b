//! The board's own manifest is sound, and each mistake in one is explained.

use std::path::Path;

use caisson_manifest::plan::{MAX_GUESTS, Plan, plan};
use caisson_manifest::system::System;
use caisson_proto::info::RingUse;
use caisson_proto::kernel::Caps;
use proptest::prelude::*;

const QEMU: &str = include_str!("../../../board/qemu/system.toml");

fn parse(text: &str) -> Result<System, String> {
    System::parse(Path::new("system.toml"), text).map_err(|error| error.to_string())
}

/// The error of the board's manifest after `from` was replaced by `to`.
#[track_caller]
fn broken(from: &str, to: &str) -> String {
    assert!(QEMU.contains(from), "the board's manifest lacks {from:?}");
    parse(&QEMU.replacen(from, to, 1)).map(|_| ()).unwrap_err()
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

fn qemu(vms: &[&str]) -> Plan {
    plan(&parse(QEMU).unwrap(), vms).unwrap()
}

#[test]
fn unknown_key() {
    let error = broken("rank = 10", "rnk = 10");
    says(&error, &["system.toml:", "unknown key \"rnk\"", "did you mean \"rank\"?"]);
}

#[test]
fn downhill() {
    let error = broken("rank = 40", "rank = 25");
    says(&error, &["\"notifier\" (rank 30) calls \"sev-firmware\" (rank 25)", "higher rank only"]);
    let error = broken("rank = 40", "rank = 30");
    says(&error, &["(rank 30) calls", "(rank 30)"]);
}

#[test]
fn circle() {
    let error = broken("rank = 40", "rank = 40\ncall = [\"memory\"]");
    says(&error, &["circle: memory → notifier → sev-firmware → memory"]);
}

#[test]
fn unknown_service() {
    let error = broken("\"switch\", \"memory\", ", "\"switch\", \"memry\", ");
    says(&error, &["service \"vmm\" names service \"memry\"", "did you mean \"memory\"?"]);
    says(&broken("from = [\"supervisor\"]", "from = [\"nobody\"]"), &["Notices", "\"nobody\""]);
    says(&broken("to = \"notifier\"", "to = \"nobody\""), &["Reclaimed", "\"nobody\""]);
}

#[test]
fn names() {
    says(&broken("name = \"console\"", "name = \"memory\""), &["two services are named \"memory\""]);
    says(&broken("name = \"supervisor\"", "name = \"Super visor\""), &["\"Super visor\" can't be used"]);
    says(&broken("name = \"supervisor\"", "name = \"kernel\""), &["\"kernel\" can't be used"]);
    says(&broken("name = \"vmm\"", "name = \"vmmm\""), &["1 to 3 lower-case"]);
}

#[test]
fn two_owners() {
    let error = broken("kernel = [\"frames\"", "interrupt = 4\nkernel = [\"frames\"");
    says(&error, &["interrupt 4 has two owners, \"console\" and \"memory\""]);
    let ports = "ports = [{ first = 0x3ff, count = 1 }]\nkernel = [\"frames\"";
    says(&broken("kernel = [\"frames\"", ports), &["ports 0x3ff to 0x3ff of \"memory\" overlap 0x3f8 to 0x3ff"]);
}

#[test]
fn silicon_needs_an_emulating_board() {
    let error = broken("emulating = true", "emulating = false");
    says(&error, &["\"psp\" asks for \"silicon\"", "board \"qemu\" doesn't emulate"]);
}

#[test]
fn capabilities() {
    says(&broken("[\"writeback\"]", "[\"writebak\"]"), &["\"writebak\"", "did you mean \"writeback\"?"]);
    says(&broken("[\"writeback\"]", "[\"Writeback\"]"), &["doesn't exist"]);
    says(&broken("[\"writeback\"]", "[\"frames\"]"), &["\"memory\" and \"notifier\" both have \"frames\""]);
    says(&broken("[\"writeback\"]", "[\"silicon\"]"), &["\"notifier\" and \"psp\" both have \"silicon\""]);
    says(&broken("[\"writeback\"]", "[\"firmware\"]"), &["\"notifier\" and \"sev-firmware\" both have \"firmware\""]);
    assert!(parse(&QEMU.replacen("[\"silicon\"]", "[]", 1)).is_ok(), "a board without a mailbox");
    says(&broken("\"supervise\", ", ""), &["no service has the kernel capability \"supervise\""]);
    says(&broken("[\"vcpus\"]", "[]"), &["per-vm", "belong together"]);
}

#[test]
fn resources() {
    says(&broken("stack = \"128K\"", "stack = \"1000\""), &["stack of \"vmm\"", "multiple of 4K"]);
    says(&broken("stack = \"128K\"", "stack = \"64M\""), &["stack of \"vmm\"", "up to"]);
    says(&broken("heap = \"4M\"", "heap = \"1G\""), &["heap of \"vmm\"", "up to 256M"]);
    says(&broken("kernel = [\"frames\"", "heap = \"1M\"\nkernel = [\"frames\""), &["\"memory\" has a heap"]);
    says(&broken("budget-ms = 5000", "budget-ms = 0"), &["`budget-ms` of \"supervisor\""]);
    says(&broken("interrupt = 4", "interrupt = 2"), &["no ISA line"]);
    says(&broken("count = 8", "count = 0"), &["no range"]);
    says(&broken("first = 0x3f8", "first = 0xffff"), &["no range"]);
    says(&broken("per-vm = true", "per-vm = true\ninterrupt = 5"), &["once for each VM"]);
}

#[test]
fn rings() {
    says(&broken("from = [\"memory\"]", "from = []"), &["no writer"]);
    says(&broken("from = [\"memory\"]", "from = [\"memory\", \"memory\"]"), &["twice"]);
    says(&broken("from = [\"memory\"]", "from = [\"kernel\"]"), &["can't come from the kernel"]);
    let error = broken("from = [\"supervisor\", \"vmm\",", "from = [\"kernel\", \"vmm\",");
    says(&error, &["carries Log can't come from the kernel", "Remove \"kernel\""]);
    says(&broken("from = [\"memory\"]", "from = [\"notifier\"]"), &["to itself"]);
    says(&broken("from = [\"vmm\"]", "from = [\"memory\"]"), &["\"memory\" isn't `per-vm`"]);
    says(&broken("carries = \"notices\"", "carries = \"notice\""), &["did you mean \"notices\"?"]);
}

#[test]
fn shares() {
    let last = "holder = \"vmm\"\nreader = \"console\"";
    says(
        &broken(last, "holder = \"vm\"\nreader = \"console\""),
        &["share of Stats", "\"vm\"", "did you mean \"vmm\"?"],
    );
    says(&broken(last, "holder = \"memory\"\nreader = \"console\""), &["holder \"memory\" isn't `per-vm`"]);
    says(&broken(last, "holder = \"vmm\"\nreader = \"vmm\""), &["at both ends"]);
    says(&broken(last, &format!("{last}\n[[share]]\ncarries = \"stats\"\n{last}")), &["there twice"]);
    says(&broken("carries = \"stats\"", "carries = \"stat\""), &["did you mean \"stats\"?"]);
    says(&broken("reader = \"console\"", "to = \"console\""), &["unknown key \"to\""]);
    assert!(parse(QEMU.split("[[share]]").next().unwrap()).is_ok(), "a board without statistics");
    let plan = qemu(&["a", "b"]);
    assert_eq!(plan.services[1].record.may_ring & 0b1100, 0b1100, "who reads may ring the holders");
}

#[test]
fn too_many() {
    let mut many = QEMU.to_owned();
    for at in 0..60 {
        many += &format!("[[service]]\nname = \"s{at}\"\npackage = \"p\"\nrank = 1\nstack = \"4K\"\nbudget-ms = 1\n");
    }
    says(&parse(&many).map(|_| ()).unwrap_err(), &["68 services; at most 64"]);
    let names: Vec<String> = (0..=MAX_GUESTS).map(|at| format!("g{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let error = |vms: &[&str]| plan(&parse(QEMU).unwrap(), vms).map(|_| ()).unwrap_err().to_string();
    says(&error(&names), &["10 VMs; at most 9"]);
    says(&error(&["a", "b", "a"]), &["two VMs are named \"a\""]);
    says(&error(&["A"]), &["\"A\" can't be used"]);
}

#[test]
fn the_boards_machine_with_two_vms() {
    let plan = qemu(&["a", "b"]);
    let names: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(
        names,
        ["supervisor", "console", "vmm-a", "vmm-b", "switch", "memory", "notifier", "sev-firmware", "psp"]
    );
    let record = |slot: usize| plan.services[slot].record;
    assert_eq!(record(2).may_call, 1 << 4 | 1 << 5 | 1 << 7, "a vmm calls the switch, memory and sev-firmware");
    assert_eq!(record(5).may_call, 1 << 6 | 1 << 7, "memory calls notifier and sev-firmware");
    assert_eq!(record(6).may_call, 1 << 7, "notifier calls sev-firmware");
    assert_eq!([0, 1, 4, 7, 8].map(|slot| record(slot).may_call), [0; 5]);
    assert_eq!((record(4).caps, record(4).may_ring), (0, 0b1110), "the switch rings vmms, and console of its log");
    assert_eq!((record(7).caps, record(8).caps), ((Caps::FIRMWARE | Caps::TIMER).bits(), Caps::SILICON.bits()));
    assert_eq!(record(8).may_ring & 1 << 7, 1 << 7, "the processor interrupts its driver");
    assert_eq!(record(7).may_ring & 0b110_1100, 0b110_1100, "sev-firmware rings its clients");
    assert_eq!(record(0).may_ring & (1 << 5 | 1 << 1), 1 << 5 | 1 << 1);
    assert_eq!(record(2).is_vmm, 1);
    assert_eq!(record(5).caps & Caps::FRAMES.bits(), Caps::FRAMES.bits());
    assert_eq!(record(1).interrupt, 4);
    assert_eq!(record(5).interrupt, 0xffff);
    let consoles: Vec<(u16, u16, u16)> = plan
        .rings
        .iter()
        .filter(|ring| ring.purpose == RingUse::ConsoleOut || ring.purpose == RingUse::ConsoleIn)
        .map(|ring| (ring.ends.producer, ring.ends.consumer, ring.channel))
        .collect();
    assert_eq!(consoles, [(2, 1, 1), (3, 1, 2), (1, 2, 1), (1, 3, 2)]);
}

proptest! {
    /// What the kernel will check again: calls climb, numbers at each end are 0, 1, 2, …
    #[test]
    fn records_are_consistent(count in 1..=MAX_GUESTS) {
        let names: Vec<String> = (0..count).map(|at| format!("g{at}")).collect();
        let plan = qemu(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (slot, service) in plan.services.iter().enumerate() {
            for other in 0..64 {
                if service.record.may_call >> other & 1 == 1 {
                    prop_assert!(plan.services[other].record.rank > service.record.rank);
                }
            }
            prop_assert!(slot == 0 || plan.services[slot - 1].record.rank <= service.record.rank);
            let mut numbers: Vec<u16> = Vec::new();
            for ring in plan.rings.iter().map(|ring| ring.ends) {
                if usize::from(ring.producer) == slot {
                    numbers.push(ring.producer_number);
                    prop_assert!(service.record.may_ring >> ring.consumer & 1 == 1);
                }
                if usize::from(ring.consumer) == slot {
                    numbers.push(ring.consumer_number);
                }
            }
            numbers.sort_unstable();
            prop_assert_eq!(&numbers, &(0..numbers.len() as u16).collect::<Vec<_>>());
        }
    }
}
