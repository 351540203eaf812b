//! Waits for memory that nobody has now: vCPUs are parked, devices have a second.

mod common;

use caisson_proto::abi::Status;
use caisson_proto::exits::code;
use caisson_proto::vcpu::Action;
use caisson_proto::vmm::{Net, Virtio as Wanted, VmConfig};
use caisson_vmm::Event;
use caisson_vmm::virtio::memory::{Broken, DEVICE_MS};
use caisson_vmm::virtio::{PLACE, Trouble};
use caisson_vmm::waiting::{AGAIN_MS, PATIENCE_MS, WRITE_BACK_MS};
use common::{CODE, KHZ, Machine, config};

const TABLE: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;

fn wait(machine: &mut Machine, ms: u64) {
    *machine.fake().time.get_mut() += ms * KHZ;
}

/// Faults at an address until so much time has passed; all answers are to wait.
fn wait_for(machine: &mut Machine, page: u64, ms: u64) {
    for _ in 0..ms / AGAIN_MS {
        assert_eq!(machine.exit(0, code::NPF, 4, page).action, Action::Park);
        wait(machine, AGAIN_MS);
    }
}

#[test]
fn a_wait_is_over_when_the_page_comes() {
    let mut machine = Machine::new(1);
    // Each page takes almost as long as it may. The guest goes on at once, and all the same it isn't one wait.
    for page in 0..4 {
        let page = 0xa0_0000 + page * 0x20_0000;
        machine.fake().refuse_memory = true;
        wait_for(&mut machine, page, PATIENCE_MS - 1000);
        machine.fake().refuse_memory = false;
        assert_eq!(machine.exit(0, code::NPF, 4, page).action, Action::Run);
    }
    assert!(!machine.vmm.is_over());
}

#[test]
fn a_wait_for_a_write_back_is_not_one_for_others_memory() {
    let mut machine = Machine::new(1);
    machine.fake().refuse_memory = true;
    machine.fake().refuses_with = Some(Status::Busy);
    wait_for(&mut machine, 0xa0_0000, WRITE_BACK_MS - 1000);
    machine.fake().refuses_with = None;
    wait_for(&mut machine, 0xa0_0000, PATIENCE_MS - 1000);
    assert!(!machine.vmm.is_over());
    wait(&mut machine, 900);
    wait_for(&mut machine, 0xa0_0000, AGAIN_MS);
    wait(&mut machine, 200);
    machine.exit(0, code::NPF, 4, 0xa0_0000);
    assert!(machine.vmm.is_over(), "it has an end");
}

fn write(machine: &mut Machine, gpa: u64, value: u64) {
    machine.state(0).gpr[0] = value;
    machine.mmio(0, &[0x89, 0x03], gpa);
}

/// A machine with a card, whose driver puts a frame that lies in so many pieces, each in a chunk of its own, into the queue.
fn sends(pieces: u16) -> Machine {
    let virtio = Wanted { net: Some(Net { mac: [2, 0, 0, 0, 0, 9] }), ..Wanted::default() };
    let mut machine = Machine::of(&VmConfig { virtio, ..config(1) });
    machine.exit(0, code::NPF, 4, TABLE);
    for piece in 0..pieces {
        let (buffer, flags) = (0x60_0000 + u64::from(piece) * 0x20_0000, u16::from(piece + 1 < pieces));
        let words = u64::from(64_u32) | u64::from(flags) << 32 | u64::from(piece + 1) << 48;
        let place = TABLE as usize + 16 * usize::from(piece);
        machine.fake().memory[place..][..8].copy_from_slice(&buffer.to_le_bytes());
        machine.fake().memory[place + 8..][..8].copy_from_slice(&words.to_le_bytes());
    }
    machine.fake().memory[AVAILABLE as usize + 2] = 1;
    for (register, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 1), (0x38, 8)] {
        write(&mut machine, PLACE.start + register, value);
    }
    for (register, value) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1), (0x70, 15)] {
        write(&mut machine, PLACE.start + register, value);
    }
    machine
}

fn is_broken(machine: &mut Machine) -> bool {
    machine.fake().events.contains(&Event::Virtio(0, Trouble::Broken(Broken::Memory)))
}

/// Tells the card of the frame while memory refuses, but for one page whenever the card has waited so long for it; how long that
/// took, in milliseconds.
fn notify(machine: &mut Machine, answer: Status, ms: u64) -> u64 {
    machine.fake().refuse_memory = true;
    machine.fake().refuses_with = Some(answer);
    machine.fake().relents = Some(ms / 10);
    let before = machine.fake().time.get();
    write(machine, PLACE.start + 0x50, 1);
    (machine.fake().time.get() - before) / KHZ
}

#[test]
fn a_device_waits_for_memory_and_goes_on() {
    for answer in [Status::Exhausted, Status::Busy, Status::Dead, Status::Died] {
        let mut machine = sends(3);
        let took = notify(&mut machine, answer, DEVICE_MS / 4);
        assert!(!is_broken(&mut machine) && took >= DEVICE_MS * 3 / 4, "{answer:?}");
        assert_eq!(machine.fake().sent.len(), 1);
    }
}

#[test]
fn a_device_waits_no_longer_than_a_second_for_all_its_pages() {
    let mut machine = sends(3);
    let took = notify(&mut machine, Status::Exhausted, DEVICE_MS * 3 / 4);
    assert!(is_broken(&mut machine) && took < DEVICE_MS + 50, "{took}");
    // One page alone would have come, and so it does the next time.
    let mut machine = sends(1);
    for number in 1..3_u8 {
        machine.fake().memory[AVAILABLE as usize + 2] = number;
        let buffer = 0x60_0000 + u64::from(number) * 0x20_0000;
        machine.fake().memory[TABLE as usize..][..8].copy_from_slice(&buffer.to_le_bytes());
        let took = notify(&mut machine, Status::Exhausted, DEVICE_MS * 3 / 4);
        assert!(!is_broken(&mut machine) && took >= DEVICE_MS * 3 / 4, "{number}: {took}");
    }
}

#[test]
fn what_will_not_come_is_not_waited_for() {
    let mut machine = sends(1);
    assert_eq!(notify(&mut machine, Status::Denied, 10), 0);
    assert!(is_broken(&mut machine));
}

#[test]
fn string_instructions_wait_for_their_pages() {
    let mut machine = Machine::new(1);
    // The first two bytes are there, the others in a chunk that memory hasn't.
    machine.exit(0, code::NPF, 4, 0x80_0000);
    machine.fake().memory[0x9f_fffe..0xa0_0000].copy_from_slice(b"he");
    machine.fake().refuse_memory = true;
    machine.code(0, &[0xf3, 0x6e]);
    let state = machine.state(0);
    (state.gpr[6], state.gpr[1], state.gpr[2]) = (0x9f_fffe, 4, 0x3f8);
    let outs = |machine: &mut Machine| machine.exit(0, code::IOIO, 0x3f8 << 16 | 1 << 4 | 0xc, CODE + 2);
    assert_eq!(outs(&mut machine).action, Action::Run);
    for action in [Action::Park, Action::Run] {
        let state = machine.state(0);
        assert_eq!((state.gpr[6], state.gpr[1], state.rip), (0xa0_0000, 2, CODE), "the rest is still to come");
        assert_eq!(outs(&mut machine).action, action);
        machine.fake().refuse_memory = false;
    }
    machine.fake().memory[0xa0_0000..0xa0_0002].copy_from_slice(b"y\n");
    outs(&mut machine);
    assert_eq!((machine.fake().console.clone(), machine.state(0).rip), (b"hey\n".to_vec(), CODE + 2));
    // From a device to memory.
    machine.fake().refuse_memory = true;
    for (action, moved) in [(Action::Park, false), (Action::Run, false), (Action::Run, true)] {
        let state = machine.state(0);
        (state.gpr[6], state.gpr[7]) = (0xfee0_0030, 0xc0_0000);
        assert_eq!(machine.mmio(0, &[0xa5], 0xfee0_0030).action, action);
        assert_eq!(machine.state(0).gpr[7] == 0xc0_0004, moved);
        machine.fake().refuse_memory = false;
    }
    assert_eq!(machine.fake().memory[0xc0_0000..0xc0_0004], 0x0005_0014_u32.to_le_bytes());
}
