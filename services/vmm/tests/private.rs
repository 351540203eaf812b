//! Memory that the guest makes its own, and shares again: by KVM's hypercall, and page by page.

mod common;

use caisson_proto::abi::Status;
use caisson_proto::exits::code;
use caisson_vmm::ram::{CHUNK, NoMemory, Ram};
use common::{CODE, Fake, Machine};

const PAGE: u64 = 4096;
const INVALID: u64 = -22_i64 as u64;
const PRIVATE: u64 = 1 << 4;

fn machine(bytes: u64) -> (Ram, Fake) {
    (Ram::new(bytes), Fake::new(bytes, 1))
}

/// MAP_GPA_RANGE: what it answers.
fn map_range(machine: &mut Machine, gpa: u64, pages: u64, attributes: u64) -> u64 {
    machine.code(0, &[0x0f, 0x01, 0xd9]);
    let state = machine.state(0);
    (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2]) = (12, gpa, pages, attributes);
    let resume = machine.exit(0, code::VMMCALL, 0, 0);
    assert_eq!(resume.rip, CODE + 3);
    resume.rax
}

#[test]
fn a_guest_makes_pages_private_and_shares_them_again() {
    let mut machine = Machine::new(1);
    assert_eq!(map_range(&mut machine, 0x80_0000, 3, PRIVATE), 0);
    assert!(machine.fake().private.iter().eq(&[0x800, 0x801, 0x802]));
    assert_eq!(map_range(&mut machine, 0x80_1000, 1, 1), 0, "whatever size its pages have");
    assert!(machine.fake().private.iter().eq(&[0x800, 0x802]));
    for (gpa, pages, attributes) in [
        (0x80_0001, 1, PRIVATE),
        (0x80_0000, 0, PRIVATE),
        (0x80_0000, 1, PRIVATE | 1 << 5),
        (1 << 40, 1, PRIVATE),
        (0x80_0000, 1 << 17, PRIVATE),
    ] {
        assert_eq!(map_range(&mut machine, gpa, pages, attributes), INVALID, "{gpa:#x} {pages} {attributes:#x}");
    }
    assert_eq!(map_range(&mut machine, 0, u64::MAX, PRIVATE), -7_i64 as u64, "too much at once");
    // A program of the guest's may not.
    machine.state(0).cpl = 3;
    assert_eq!(map_range(&mut machine, 0x88_0000, 1, PRIVATE), -1_i64 as u64);
    assert!(!machine.fake().private.contains(&0x880));
    machine.state(0).cpl = 0;
    // While memory is started again the guest calls again.
    machine.fake().refuse_memory = true;
    let state = machine.state(0);
    (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2], state.rip) = (12, 0x90_0000, 1, PRIVATE, CODE);
    let resume = machine.exit(0, code::VMMCALL, 0, 0);
    assert_eq!((resume.rip, resume.rax), (CODE, 12));
}

#[test]
fn nothing_reaches_for_what_is_private() {
    let (mut ram, mut fake) = machine(2 * CHUNK);
    ram.write(&mut fake, 4 * PAGE, &[7; 3 * PAGE as usize]).unwrap();
    ram.convert(&mut fake, 5, 1, true).unwrap();
    let epoch = ram.epoch();
    for (gpa, length) in [(5 * PAGE, 1), (4 * PAGE, 2 * PAGE), (5 * PAGE - 1, 2), (6 * PAGE - 1, 2)] {
        let mut bytes = vec![0; length as usize];
        assert_eq!(ram.read(&mut fake, gpa, &mut bytes), Err(NoMemory { gpa, refused: None }));
        assert_eq!(ram.write(&mut fake, gpa, &bytes), Err(NoMemory { gpa, refused: None }));
    }
    ram.read(&mut fake, 6 * PAGE, &mut [0; 8]).unwrap();
    ram.convert(&mut fake, 600, 3, true).unwrap();
    assert_eq!(ram.private_pages(), 1, "of those that are there");
    ram.convert(&mut fake, 5, 1, false).unwrap();
    assert_ne!(ram.epoch(), epoch, "what was looked up isn't known any more");
    let mut seen = [0; 3];
    ram.read(&mut fake, 5 * PAGE, &mut seen).unwrap();
    assert_eq!(seen, [7; 3]);
}

#[test]
fn what_memory_refused_isnt_reached_for_either() {
    let (mut ram, mut fake) = machine(CHUNK);
    ram.back(&mut fake, 0).unwrap();
    fake.refuse_memory = true;
    assert_eq!(ram.convert(&mut fake, 3, 1, true), Err(Status::Dead));
    assert!(ram.is_private(3 * PAGE), "it may have turned");
    for (gfn, pages) in [(0, 0), (512, 1), (511, 2), (u64::MAX, 1), (0, u64::MAX)] {
        assert_eq!(ram.convert(&mut fake, gfn, pages, true), Err(Status::Range), "{gfn:#x} {pages:#x}");
    }
}

#[test]
fn a_chunk_of_both_kinds_comes_page_by_page() {
    let (mut ram, mut fake) = machine(2 * CHUNK);
    ram.convert(&mut fake, 7, 505, true).unwrap();
    ram.back(&mut fake, 7 * PAGE).unwrap();
    ram.back(&mut fake, 3 * PAGE).unwrap();
    assert!([3, 7].iter().all(|page| fake.backed[*page]) && !fake.backed[4] && !fake.backed[8]);
    ram.convert(&mut fake, 512, 512, true).unwrap();
    ram.back(&mut fake, CHUNK).unwrap();
    assert!(fake.backed[512..1024].iter().all(|backed| *backed), "one of one kind comes whole");
}

#[test]
fn a_memory_that_was_started_anew_is_told() {
    let (mut ram, mut fake) = machine(CHUNK);
    ram.convert(&mut fake, 3, 2, true).unwrap();
    ram.convert(&mut fake, 9, 1, true).unwrap();
    fake.private.clear();
    ram.back(&mut fake, 4 * PAGE).unwrap();
    assert!(fake.private.iter().eq(&[3, 4, 9]), "of the whole chunk");
    assert!(fake.backed[4] && !fake.backed[3]);
}
