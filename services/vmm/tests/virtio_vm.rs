//! Virtio devices as parts of a VM: where its guest finds them, their interrupts, and the memory that they give back.

mod common;

use caisson_fuzz::virtio::contents;
use caisson_proto::stats::{VM, VM_PAGE, VmStat, data_word};
use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::{Balloon, Disk, Net, Virtio as Wanted, VmConfig};
use caisson_vmm::Event;
use caisson_vmm::virtio::memory::Broken;
use caisson_vmm::virtio::{FIRST_PIN, PLACE, Trouble, Virtio};
use common::{MIB, Machine, config, interrupt};

/// Where the driver of these tests has its queue and its buffers.
const TABLE: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
const BUFFER: u64 = 0x60_0000;
const VECTOR: u8 = 0x51;

fn asked() -> VmConfig {
    let virtio = Wanted {
        disk: Some(Disk { overlay: 0x2000 }),
        balloon: Some(Balloon { target: MIB }),
        plug: None,
        console: true,
        net: Some(Net { mac: [2, 0, 0, 0, 0, 9] }),
    };
    VmConfig { virtio, ..config(1) }
}

fn machine() -> Machine {
    let config = asked();
    let mut machine = Machine::of(&config);
    machine.x2apic(0);
    // Their pins of the I/O APIC: level-triggered, to this vCPU.
    for device in 0..4 {
        let entry = 0x10 + 2 * u64::from(FIRST_PIN + device);
        for (register, value) in [(entry, u64::from(VECTOR + device) | 1 << 15), (entry + 1, 0)] {
            write(&mut machine, 0xfec0_0000, register);
            write(&mut machine, 0xfec0_0010, value);
        }
    }
    machine
}

fn write(machine: &mut Machine, gpa: u64, value: u64) -> u64 {
    machine.state(0).gpr[0] = value;
    machine.mmio(0, &[0x89, 0x03], gpa).inject
}

fn read(machine: &mut Machine, gpa: u64) -> u32 {
    machine.mmio(0, &[0x8b, 0x03], gpa);
    machine.state(0).gpr[0] as u32
}

fn registers(device: u64) -> u64 {
    PLACE.start + device * 0x1000
}

/// Puts bytes into guest memory, which is backed first.
fn put(machine: &mut Machine, gpa: u64, bytes: &[u8]) {
    if !machine.fake().backed[gpa as usize / 4096] {
        machine.exit(0, caisson_proto::exits::code::NPF, 4, gpa);
    }
    machine.fake().memory[gpa as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn start(machine: &mut Machine, device: u64, queue: u64) {
    for (register, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, queue), (0x38, 8)] {
        write(machine, registers(device) + register, value);
    }
    for (register, value) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1), (0x70, 15)] {
        write(machine, registers(device) + register, value);
    }
}

/// Offers one buffer as request `number`, counted from 0, and notifies; what is injected then.
fn offer(machine: &mut Machine, device: u64, queue: u64, number: u16, span: (u64, u32), flags: u16) -> u64 {
    let mut descriptor = span.0.to_le_bytes().to_vec();
    descriptor.extend([span.1.to_le_bytes(), u32::from(flags).to_le_bytes()].concat());
    put(machine, TABLE, &descriptor);
    put(machine, AVAILABLE + 2, &(number + 1).to_le_bytes());
    write(machine, registers(device) + 0x50, queue)
}

#[test]
fn they_are_where_the_tables_say() {
    let mut machine = machine();
    let memory = machine.fake().memory[0xe_0000..0x10_0000].to_vec();
    assert_eq!(memory.windows(8).filter(|bytes| *bytes == b"LNRO0005").count(), 4);
    for (device, id) in [(0, 2), (1, 5), (2, 3), (3, 1)] {
        assert_eq!(
            (read(&mut machine, registers(device)), read(&mut machine, registers(device) + 8)),
            (0x7472_6976, id)
        );
    }
    assert_eq!(read(&mut machine, registers(4)), u32::MAX, "no fifth one");
    assert_eq!(machine.fake().events.last(), Some(&Event::NoDevice(registers(4))));
    let mut without = Machine::new(1);
    assert_eq!(read(&mut without, registers(0)), u32::MAX);
    let memory = without.fake().memory[0xe_0000..0x10_0000].to_vec();
    assert!(!memory.windows(8).any(|bytes| bytes == b"LNRO0005"));
}

#[test]
fn reported_memory_leaves_the_vm_and_comes_back_when_it_is_touched() {
    let mut machine = machine();
    start(&mut machine, 1, 2);
    put(&mut machine, 0x80_0000, b"old");
    let injected = offer(&mut machine, 1, 2, 0, (0x80_0000, 0x20_0000), 2);
    assert_eq!(injected, interrupt(VECTOR + 1));
    assert_eq!(machine.fake().given_back, [(0x800, 512)]);
    assert_eq!(machine.fake().events.last(), Some(&Event::Virtio(1, Trouble::GaveBack(512))));
    assert_eq!(read(&mut machine, registers(1) + 0x60), 1);
    machine.exit(0, caisson_proto::exits::code::NPF, 4, 0x80_0000);
    assert!(machine.fake().backed[0x800], "the guest touched it");
    assert_eq!(machine.fake().memory[0x80_0000..][..3], [0; 3]);
}

#[test]
fn a_buffer_that_was_given_back_can_be_a_buffer_again() {
    let mut machine = machine();
    start(&mut machine, 1, 0);
    put(&mut machine, BUFFER, &[0x00, 0x06, 0, 0]);
    // The page with the numbers gives itself back; then it is read again, as zeros: page 0.
    for number in 0..2 {
        offer(&mut machine, 1, 0, number, (BUFFER, 4), 0);
    }
    assert_eq!(machine.fake().given_back, [(0x600, 1), (0, 1)]);
    assert_eq!(machine.fake().memory[USED as usize + 2], 2);
}

#[test]
fn buffers_end_where_memory_ends() {
    for (start_at, is_memory) in [(32 * MIB - 16, true), (32 * MIB - 15, false), (u64::MAX - 7, false)] {
        let mut machine = machine();
        start(&mut machine, 1, 1);
        offer(&mut machine, 1, 1, 0, (start_at, 16), 0);
        assert_eq!(read(&mut machine, registers(1) + 0x70) & 64 == 0, is_memory, "{start_at:x}");
    }
}

#[test]
fn what_a_guest_breaks_is_logged_once() {
    let mut machine = machine();
    start(&mut machine, 0, 0);
    let before = machine.fake().events.len();
    assert_eq!(offer(&mut machine, 0, 0, 0, (0xd000_0000, 16), 0), interrupt(VECTOR), "it is told of it");
    offer(&mut machine, 0, 0, 0, (0xd000_0000, 16), 0);
    assert_eq!(machine.fake().events[before..], [Event::Virtio(0, Trouble::Broken(Broken::Buffer))]);
    assert_eq!(read(&mut machine, registers(0) + 0x70) & 64, 64);
    assert!(!machine.vmm.is_over());
}

#[test]
fn a_disk_that_is_none_or_has_no_room_is_refused() {
    let with = |overlay| VmConfig { virtio: Wanted { disk: Some(Disk { overlay }), ..Wanted::default() }, ..config(1) };
    assert_eq!(Virtio::new(&with(0), &[]).err(), Some(SetupError::Config));
    assert_eq!(Virtio::new(&with(0), &contents()[..513]).err(), Some(SetupError::Config));
    assert!(Virtio::new(&with(u64::MAX), contents()).is_ok(), "no more is taken than the disk has");
}

#[test]
fn the_console_is_the_virtio_one_while_that_is_in_use() {
    let mut machine = machine();
    assert_eq!(machine.vmm.console_input(b"a"), 1);
    assert_eq!(machine.inb(0x3f8), b'a', "the serial port has it before");
    start(&mut machine, 2, 1);
    put(&mut machine, BUFFER, b"out\n");
    assert_eq!(offer(&mut machine, 2, 1, 0, (BUFFER, 4), 0), interrupt(VECTOR + 2));
    assert_eq!(machine.fake().console, b"out\n");
    machine.vmm.console_input(b"b");
    assert_eq!((machine.inb(0x3fd) & 1, machine.vmm.console_space()), (0, 4095), "it waits for a buffer");
    write(&mut machine, registers(2) + 0x70, 0);
    machine.vmm.console_input(b"c");
    assert_eq!(machine.inb(0x3f8), b'c', "and after");
}

#[test]
fn input_finds_a_buffer_that_waits() {
    let mut machine = machine();
    start(&mut machine, 2, 0);
    put(&mut machine, BUFFER, b"....");
    assert_eq!(offer(&mut machine, 2, 0, 0, (BUFFER, 4), 2), 0, "nothing to say yet");
    assert_eq!(machine.vmm.console_input(b"abc"), 3);
    assert_eq!(machine.fake().memory[BUFFER as usize..][..4], *b"abc.");
    assert_eq!(read(&mut machine, registers(2) + 0x60), 1);
}

/// All that is written arrives, however little the console takes at a time.
#[test]
fn a_slow_console_loses_nothing() {
    let mut machine = machine();
    start(&mut machine, 2, 1);
    machine.fake().console_limit = Some(100);
    let text: Vec<u8> = (0..16_384).map(|n| b'a' + (n % 26) as u8).collect();
    for page in 0..4 {
        put(&mut machine, BUFFER + page * 4096, &text[page as usize * 4096..][..4096]);
    }
    let sent = 6;
    for number in 0..sent {
        offer(&mut machine, 2, 1, number, (BUFFER, 16_384), 0);
    }
    assert_eq!(machine.fake().console.len(), 100);
    let used = |machine: &mut Machine| machine.fake().memory[USED as usize + 2];
    assert!(u16::from(used(&mut machine)) < sent, "the guest waits");
    for _ in 0..2000 {
        *machine.fake().console_limit.as_mut().unwrap() += 100;
        machine.vmm.console_room();
    }
    assert_eq!(u16::from(used(&mut machine)), sent);
    let expected: Vec<u8> = text.iter().copied().cycle().take(16_384 * usize::from(sent)).collect();
    assert!(machine.fake().console == expected);
}

/// A frame of so many bytes that are a number.
fn frame(number: u8) -> Vec<u8> {
    vec![number; 60]
}

#[test]
fn what_a_guest_sends_goes_to_the_switch() {
    let mut machine = machine();
    start(&mut machine, 3, 1);
    put(&mut machine, BUFFER, &[vec![0; 12], frame(5)].concat());
    assert_eq!(offer(&mut machine, 3, 1, 0, (BUFFER, 72), 0), interrupt(VECTOR + 3));
    write(&mut machine, registers(3) + 0x64, 1);
    for number in 1..3 {
        offer(&mut machine, 3, 1, number, (BUFFER, 72), 0);
        write(&mut machine, registers(3) + 0x64, 1);
    }
    assert_eq!(machine.fake().sent, vec![frame(5); 3]);
    machine.vmm.refresh([]);
    let published = |stat: VmStat| machine.vmm.platform.published[&VM_PAGE][data_word(VM) + stat.word()];
    assert_eq!((published(VmStat::NetSent), published(VmStat::NetSentBytes), published(VmStat::NetLost)), (3, 180, 0));
    // Without its driver nothing is sent.
    write(&mut machine, registers(3) + 0x70, 0);
    offer(&mut machine, 3, 1, 3, (BUFFER, 72), 0);
    assert_eq!(machine.fake().sent.len(), 3);
}

#[test]
fn what_waits_at_the_switch_comes_when_there_are_buffers() {
    let mut machine = machine();
    machine.fake().waiting.extend([frame(1), frame(2)]);
    machine.vmm.frames_wait();
    assert_eq!(machine.fake().waiting.len(), 2, "its driver isn't there");
    start(&mut machine, 3, 0);
    put(&mut machine, BUFFER, &[0xee; 200]);
    assert_eq!(offer(&mut machine, 3, 0, 0, (BUFFER, 1526), 2), interrupt(VECTOR + 3));
    assert_eq!(machine.fake().memory[BUFFER as usize + 12..][..60], frame(1));
    write(&mut machine, registers(3) + 0x64, 1);
    // Rung by a successor of the switch: a card with a frame in hand doesn't fetch, and calls all the same.
    assert_eq!(machine.fake().switch_calls, 0);
    machine.vmm.frames_wait();
    assert_eq!(machine.fake().switch_calls, 1);
    offer(&mut machine, 3, 0, 1, (BUFFER, 1526), 2);
    assert_eq!(machine.fake().memory[BUFFER as usize + 12..][..60], frame(2));
    write(&mut machine, registers(3) + 0x64, 1);
    offer(&mut machine, 3, 0, 2, (BUFFER, 1526), 2);
    assert_eq!(read(&mut machine, registers(3) + 0x60), 0, "nothing came");
    // Rung, it looks again, and the buffer that waits takes it.
    machine.fake().waiting.extend([frame(3)]);
    assert_eq!(machine.fake().memory[USED as usize + 2], 2);
    machine.vmm.frames_wait();
    assert_eq!((machine.fake().memory[USED as usize + 2], read(&mut machine, registers(3) + 0x60)), (3, 1));
    assert_eq!(machine.fake().memory[BUFFER as usize + 12..][..60], frame(3));
    assert_eq!(machine.fake().switch_calls, 1, "who fetches calls by that");
}

/// What is more than a turn's worth is sent when the driver acknowledges the interrupt.
#[test]
fn a_guest_that_sends_without_end_lets_others_have_their_turn() {
    let mut machine = machine();
    put(&mut machine, BUFFER, &[0; 2048]);
    let descriptor = [BUFFER.to_le_bytes(), 1526_u64.to_le_bytes()].concat();
    put(&mut machine, TABLE, &descriptor);
    // A queue of 16 that is full, of the same frame, and is so again whenever some were sent.
    start(&mut machine, 3, 1);
    for (register, value) in [(0x44, 0), (0x38, 16), (0x44, 1)] {
        write(&mut machine, registers(3) + register, value);
    }
    // It wants no interrupts, and gets one all the same: else nothing would bring it back.
    put(&mut machine, AVAILABLE, &[1, 0, 16, 0]);
    machine.fake().refill = Some((AVAILABLE + 2, 400));
    write(&mut machine, registers(3) + 0x50, 1);
    let before = machine.fake().sent.len();
    assert!((100..400).contains(&before), "{before}");
    assert_eq!(read(&mut machine, registers(3) + 0x60), 1);
    for _ in 0..4 {
        write(&mut machine, registers(3) + 0x64, 1);
    }
    assert!(machine.fake().sent.len() > 400);
}
