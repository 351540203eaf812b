//! The processor behind registers in memory: what was rung is served once, and nothing else is.

mod common;

use std::cell::Cell;

use caisson_qemu_psp::mailbox::CommandBits;
use caisson_qemu_psp::station::{Registers, Served, Station};
use caisson_qemu_psp::{Command, Register, Status};
use common::*;

#[derive(Default)]
struct Shared([Cell<u32>; 3]);

impl Shared {
    fn ring(&self, command: u32, buffer: u64, interrupt: bool) {
        self.0[1].set(buffer as u32);
        self.0[2].set((buffer >> 32) as u32);
        self.0[0].set(command << 16 | u32::from(interrupt));
    }
}

impl Registers for Shared {
    fn read(&self, register: Register) -> u32 {
        self.0[register as usize].get()
    }
    fn answer(&self, value: u32) {
        assert_eq!(self.0[0].get() & CommandBits::RESPONSE.bits(), 0, "nothing is answered twice");
        self.0[0].set(value);
    }
    fn answer_nothing(&self, value: u32) -> bool {
        let nothing = self.0[0].get() == 0;
        if nothing {
            self.0[0].set(value);
        }
        nothing
    }
}

#[test]
fn what_was_rung_is_served_once() {
    let (mut rig, shared, mut station) = (Rig::new(), Shared::default(), Station::new());
    let mut serve = |shared: &Shared| station.serve(shared, &mut rig.processor, &mut rig.machine);
    assert_eq!(serve(&shared), None, "a bell without a command");
    shared.ring(u32::from(Command::PlatformStatus as u16), COMMAND, true);
    let command = Command::PlatformStatus as u16;
    assert_eq!(serve(&shared), Some(Served { command, status: Status::Success, interrupt: true }));
    assert_eq!(shared.0[0].get(), 1 << 31 | u32::from(command) << 16);
    assert_eq!(serve(&shared), None, "the bell rings again");
    shared.ring(u32::from(command), COMMAND, false);
    assert_eq!(serve(&shared).map(|served| served.interrupt), Some(false));
    assert_eq!(rig.machine.get(COMMAND, 3), [1, 57, 0], "the answer is in memory");
}

#[test]
fn a_buffer_above_four_gigabytes_keeps_its_upper_half() {
    let (mut rig, shared, mut station) = (Rig::new(), Shared::default(), Station::new());
    shared.ring(u32::from(Command::PlatformStatus as u16), 1 << 32 | COMMAND, true);
    let served = station.serve(&shared, &mut rig.processor, &mut rig.machine).expect("a command");
    assert_eq!(served.status, Status::InvalidAddress);
    assert_eq!(shared.0[0].get() as u16, Status::InvalidAddress as u16);
}

#[test]
fn a_successor_says_that_what_was_begun_failed_and_serves_what_came_since() {
    let (mut rig, shared, mut station) = (Rig::new(), Shared::default(), Station::new());
    assert!(station.succeed(&shared));
    assert_eq!(shared.0[0].get(), 1 << 31 | 0x13);
    assert_eq!(station.serve(&shared, &mut rig.processor, &mut rig.machine), None);
    let (shared, mut station) = (Shared::default(), Station::new());
    shared.ring(u32::from(Command::PlatformStatus as u16), COMMAND, true);
    assert!(!station.succeed(&shared), "it was rung since");
    let served = station.serve(&shared, &mut rig.processor, &mut rig.machine);
    assert_eq!(served.map(|served| served.status), Some(Status::Success));
}
