//! Where a guest has neither memory nor devices: its code, its page tables, and its handlers' stacks.

mod common;

use caisson_proto::exits::code;
use caisson_proto::supervisor::CrashKind;
use caisson_proto::supervisor::ExitKind;
use caisson_proto::vcpu::ExitFlags;
use common::{CODE, Machine};

const HOLE: u64 = 0xd000_0000;
const TABLE_WALK: u64 = 1 << 33;
const FETCH: u64 = 1 << 4;
/// Where the tables of the root's second entry lie in a hole.
const BEHIND: u64 = 0x80_0000_1238;

/// EVENTINJ of an exception, without its error code's value.
fn exception(vector: u64, error: Option<u64>) -> u64 {
    1 << 31 | 3 << 8 | vector | error.map_or(0, |error| error << 32 | 1 << 11)
}

/// The second entry of the root leads to a hole; rbx and rdi to what it would map.
fn machine() -> Machine {
    let mut machine = Machine::new(1);
    let root = machine.state(0).cr3 as usize;
    machine.fake().memory[root + 8..][..8].copy_from_slice(&(HOLE | 7).to_le_bytes());
    let state = machine.state(0);
    (state.gpr[3], state.gpr[7]) = (BEHIND, BEHIND);
    machine
}

#[test]
fn code_where_nothing_is_is_undefined() {
    let mut machine = Machine::new(1);
    machine.state(0).rip = HOLE;
    let resume = machine.exit(0, code::NPF, 4 | FETCH, HOLE);
    assert_eq!((resume.inject, resume.rip), (exception(6, None), HOLE));
    assert!(!machine.vmm.is_over());
}

#[test]
fn page_tables_where_nothing_is_have_reserved_bits() {
    let accesses: [(&[u8], u64); 6] = [
        (&[0x8b, 0x03], 9),
        (&[0x48, 0x89, 0x03], 0xb),
        (&[0x83, 0x03, 0x01], 0xb),
        (&[0xaa], 0xb),
        // Not emulated on devices; here it doesn't come to that.
        (&[0x0f, 0x10, 0x03], 9),
        (&[0xff, 0x33], 9),
    ];
    for (bytes, error) in accesses {
        let mut machine = machine();
        machine.code(0, bytes);
        let resume = machine.exit(0, code::NPF, 4 | TABLE_WALK, HOLE);
        assert_eq!((resume.inject, resume.rip), (exception(14, Some(error)), CODE), "{bytes:02x?}");
        assert_eq!(machine.state(0).cr2, BEHIND);
    }
    // From there nothing can be fetched either.
    let mut machine = machine();
    machine.state(0).rip = BEHIND;
    let resume = machine.exit(0, code::NPF, 4 | TABLE_WALK, HOLE);
    assert_eq!(resume.inject & 0xff, 14);
    assert_eq!((resume.inject >> 32 & !FETCH, machine.state(0).cr2), (9, BEHIND));
}

#[test]
fn an_access_of_an_event_is_not_taken_for_the_instructions() {
    // A store to a device stands at rip; but an interrupt was being delivered.
    let mut machine = Machine::new(1);
    machine.code(0, &[0xc7, 0x00, 1, 0, 0, 0]);
    machine.exit_with(0, code::NPF, 6, HOLE, ExitFlags::EVENT_PENDING);
    let (kind, words) = machine.fake().ended.unwrap();
    assert_eq!((kind, words[0]), (ExitKind::Crashed, CrashKind::Unemulated as u64));
}

#[test]
fn a_walk_that_cannot_be_explained_ends_the_vm() {
    let mut machine = machine();
    machine.code(0, &[0x90]);
    machine.exit(0, code::NPF, 4 | TABLE_WALK, HOLE);
    assert!(machine.vmm.is_over());
}

#[test]
fn a_prefix_that_others_refuse_counts_where_the_cpu_took_it() {
    for (bytes, length) in [(&[0xf0, 0x0f, 0x09][..], 3), (&[0x66, 0xf2, 0x0f, 0x08], 4)] {
        let mut machine = Machine::new(1);
        machine.code(0, bytes);
        let exit = if bytes.ends_with(&[0x09]) { code::WBINVD } else { code::INVD };
        assert_eq!(machine.exit(0, exit, 0, 0).rip, CODE + length, "{bytes:02x?}");
    }
}
