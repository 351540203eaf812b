//! The virtio console under a driver that keeps to the rules, and one that sends too much.

mod common;

use caisson_fuzz::virtio::driver::{Driver, USUAL};
use caisson_vmm::virtio::console::Console;
use caisson_vmm::virtio::mmio::Transport;

const DATA: u64 = 0x2_1000;
const MEMORY: usize = 0x4_0000;

fn console() -> Driver {
    let mut driver = Driver::new(Transport::new(Box::new(Console::default())), MEMORY);
    assert!(driver.start(USUAL));
    driver
}

#[test]
fn a_console_carries_bytes_both_ways() {
    let mut driver = console();
    driver.memory.put(DATA, b"hello, world");
    driver.chain(1, 0, &[(DATA, 7), (DATA + 7, 5)], &[]);
    driver.offer(1, 0);
    driver.notify(1);
    assert_eq!((driver.used(1), driver.device.console().unwrap().fetch()), (Some((0, 0)), b"hello, world".to_vec()));
    // Input waits for buffers, and buffers wait for input.
    driver.chain(0, 0, &[], &[(DATA, 4)]);
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.used(0), None);
    assert_eq!(driver.device.console().unwrap().receive(b"abcdef"), 6);
    driver.device.poke(0, &mut driver.memory);
    assert_eq!((driver.used(0), driver.memory.get(DATA)), (Some((0, 4)), *b"abcd"));
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!((driver.used(0), driver.memory.get(DATA)), (Some((0, 2)), *b"efcd"));
    let console = driver.device.console().unwrap();
    assert_eq!((console.receive(&[7; 5000]), console.room()), (4096, 0), "more doesn't wait");
}

#[test]
fn a_console_that_is_full_lets_the_guest_wait() {
    let mut driver = console();
    driver.device.console().unwrap().block(true);
    driver.chain(1, 0, &[(DATA, 16 << 10)], &[]);
    driver.offer(1, 0);
    driver.notify(1);
    assert_eq!(driver.used(1), None);
    driver.device.console().unwrap().block(false);
    for _ in 1..5 {
        driver.offer(1, 0);
    }
    driver.device.poke(1, &mut driver.memory);
    assert_eq!(driver.device.console().unwrap().fetch().len(), 32 << 10, "as much as waits at the most");
    driver.device.poke(1, &mut driver.memory);
    driver.device.poke(1, &mut driver.memory);
    assert_eq!(std::iter::from_fn(|| driver.used(1)).count(), 4);
    // More at once than any driver sends.
    driver.chain(1, 0, &[(DATA, (16 << 10) + 1)], &[]);
    driver.device.console().unwrap().fetch();
    driver.device.poke(1, &mut driver.memory);
    assert_eq!(driver.told, []);
    assert!(driver.device.is_broken());
}
