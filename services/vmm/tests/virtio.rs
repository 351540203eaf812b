//! Virtio devices under a driver that keeps to the rules, or breaks one.

mod common;

use caisson_fuzz::virtio::driver::{Driver, EVENT_IDX, NEXT, SIZE, USUAL, WRITE, areas};
use caisson_fuzz::virtio::{balloon, contents, disk};
use caisson_proto::abi::Status;
use caisson_vmm::virtio::Trouble;
use caisson_vmm::virtio::blk::Blk;
use caisson_vmm::virtio::memory::Broken;
use caisson_vmm::virtio::mmio::Transport;
use caisson_vmm::virtio::overlay::Overlay;

/// Where a request's head, its data and its status lie.
const HEAD: u64 = 0x2_0000;
const DATA: u64 = 0x2_1000;
const STATUS: u64 = 0x2_0800;
const MEMORY: usize = 0x4_0000;

fn head(driver: &mut Driver, kind: u32, sector: u64) {
    let words = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()];
    driver.memory.put(HEAD, &words.concat());
    driver.memory.put(STATUS, &[0xff]);
}

fn started(overlay: u64) -> Driver {
    let mut driver = Driver::new(disk(overlay), MEMORY);
    assert!(driver.start(USUAL));
    driver
}

/// A request with data in these pieces; its status, and what was said to be written.
fn request(driver: &mut Driver, kind: u32, sector: u64, pieces: &[(u64, u32)]) -> (u8, u32) {
    head(driver, kind, sector);
    let (head, status) = ((HEAD, 16), (STATUS, 1));
    match kind {
        1 => driver.chain(0, 0, &[&[head], pieces].concat(), &[status]),
        _ => driver.chain(0, 0, &[head], &[pieces, &[status]].concat()),
    }
    driver.offer(0, 0);
    driver.notify(0);
    let (number, written) = driver.used(0).expect("it comes back");
    assert_eq!(number, 0);
    (driver.memory.get::<1>(STATUS)[0], written)
}

#[test]
fn the_disk_reads_as_its_file() {
    let mut driver = started(0x2000);
    assert_eq!((driver.read(0), driver.read(4), driver.read(8)), (u32::from_le_bytes(*b"virt"), 2, 2));
    assert_eq!(driver.device.read(0x100, 8), contents().len() as u64 / 512);
    // Across pieces of the overlay and of the request alike.
    let (status, written) = request(&mut driver, 0, 5, &[(DATA, 100), (DATA + 100, 5000), (DATA + 5100, 20)]);
    assert_eq!((status, written), (0, 5121));
    assert_eq!(driver.memory.get::<5120>(DATA), contents()[5 * 512..][..5120]);
    assert!(driver.device.line() && driver.read(0x60) == 1);
    driver.write(0x64, 1);
    assert!(!driver.device.line());
}

#[test]
fn what_is_written_is_read_again_and_the_rest_stays() {
    let mut driver = started(0x4000);
    let new: Vec<u8> = (0..1024_u32).map(|n| n as u8 ^ 0x5a).collect();
    driver.memory.put(DATA, &new);
    // Its end is in the next piece.
    assert_eq!(request(&mut driver, 1, 7, &[(DATA, 300), (DATA + 300, 724)]), (0, 1));
    assert_eq!(request(&mut driver, 0, 0, &[(DATA + 0x1000, 0x2400)]).0, 0);
    let mut expected = contents()[..0x2400].to_vec();
    expected[7 * 512..][..1024].copy_from_slice(&new);
    assert_eq!(driver.memory.get::<0x2400>(DATA + 0x1000)[..], expected);
    assert_eq!(request(&mut driver, 4, 0, &[]), (0, 1), "a flush");
    // The last piece is shorter than a piece.
    let last = contents().len() as u64 / 512 - 1;
    assert_eq!(request(&mut driver, 1, last, &[(DATA, 512)]).0, 0);
    assert_eq!(request(&mut driver, 0, last, &[(DATA + 0x1000, 512)]).0, 0);
    assert_eq!(driver.memory.get::<512>(DATA + 0x1000)[..], new[..512]);
}

#[test]
fn a_full_overlay_fails_writes_and_is_told_once() {
    let mut driver = started(0x1000);
    assert_eq!(request(&mut driver, 1, 0, &[(DATA, 512)]).0, 0);
    for _ in 0..2 {
        assert_eq!(request(&mut driver, 1, 8, &[(DATA, 512)]).0, 1);
    }
    assert_eq!(driver.told, [Trouble::DiskFull]);
    assert_eq!(request(&mut driver, 1, 1, &[(DATA, 512)]).0, 0, "what was changed can be changed again");
}

#[test]
fn requests_beyond_the_disk_fail() {
    let mut driver = started(0);
    let sectors = contents().len() as u64 / 512;
    assert_ne!(driver.offered() & 1 << 5, 0, "it can only be read");
    assert_eq!(request(&mut driver, 1, 0, &[(DATA, 512)]).0, 1, "so it isn't written");
    assert_eq!(driver.told, [], "and it isn't full");
    for (sector, bytes) in [(sectors, 512), (sectors - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)] {
        assert_eq!(request(&mut driver, 0, sector, &[(DATA, bytes)]).0, 1, "{sector} {bytes}");
    }
    assert_eq!(request(&mut driver, 99, 0, &[(DATA, 512)]).0, 2, "no such request");
    assert_eq!(request(&mut driver, 8, 0, &[(DATA, 20)]), (0, 21));
    assert_eq!(driver.memory.get::<13>(DATA), *b"caisson-disk\0");
    assert!(!driver.device.is_broken());
}

#[test]
fn a_request_has_a_largest_length() {
    let disk = Overlay::new(vec![7; 8 << 20].leak(), 0).unwrap();
    let mut driver = Driver::new(Transport::new(Box::new(Blk::new(disk))), 16 << 20);
    assert!(driver.start(USUAL));
    let most = 126 * (32 << 10);
    assert_eq!(request(&mut driver, 0, 0, &[(0x10_0000, most)]).0, 0);
    assert_eq!(request(&mut driver, 0, 0, &[(0x10_0000, most + 512)]).0, 1);
}

#[test]
fn features_are_agreed_before_anything_else() {
    let mut driver = Driver::new(disk(0), MEMORY);
    assert_eq!(driver.offered() >> 32, 3);
    for refused in [0, 1 << 33, USUAL | 1 << 40, USUAL | 1 << 28] {
        assert!(!driver.start(refused), "{refused:x}");
        driver.write(0x70, 15);
        assert_eq!(driver.read(0x70) & 12, 0, "and it isn't ready");
    }
    assert!(driver.start(1 << 32));
    driver.write(0x24, 0);
    driver.write(0x20, EVENT_IDX as u32);
    driver.write(0x30, 0);
    driver.write(0x44, 0);
    driver.queue(SIZE.into(), areas(0));
    request(&mut driver, 0, 0, &[(DATA, 512)]);
    assert_eq!(driver.memory.get(areas(0)[2] + 4 + 128), [0, 0], "what was agreed stays");
}

/// Each thing that a driver may get wrong in a chain; the device says what, once, and does nothing until a reset.
#[test]
fn broken_chains_leave_the_device_broken() {
    type Breaks = fn(&mut Driver);
    let broken: [(Broken, Breaks); 9] = [
        (Broken::Descriptor, |driver| driver.offer(0, SIZE)),
        (Broken::Descriptor, |driver| {
            driver.descriptor(0, 0, (HEAD, 16), NEXT, SIZE);
            driver.offer(0, 0);
        }),
        (Broken::Circle, |driver| {
            driver.descriptor(0, 0, (HEAD, 16), NEXT, 0);
            driver.offer(0, 0);
        }),
        (Broken::Order, |driver| {
            driver.descriptor(0, 0, (HEAD, 16), NEXT | WRITE, 1);
            driver.descriptor(0, 1, (HEAD, 16), 0, 0);
            driver.offer(0, 0);
        }),
        (Broken::Indirect, |driver| {
            driver.descriptor(0, 0, (HEAD, 16), 4, 0);
            driver.offer(0, 0);
        }),
        (Broken::Buffer, |driver| {
            driver.chain(0, 0, &[(HEAD, 16)], &[(MEMORY as u64 - 1, 2)]);
            driver.offer(0, 0);
        }),
        (Broken::Buffer, |driver| {
            driver.chain(0, 0, &[(HEAD, 16)], &[(u64::MAX - 1, 1)]);
            driver.offer(0, 0);
        }),
        (Broken::Request, |driver| {
            driver.chain(0, 0, &[(HEAD, 15)], &[(STATUS, 1)]);
            driver.offer(0, 0);
        }),
        (Broken::Request, |driver| {
            driver.chain(0, 0, &[(HEAD, 16)], &[]);
            driver.offer(0, 0);
        }),
    ];
    for (what, breaks) in broken {
        let mut driver = started(0);
        breaks(&mut driver);
        driver.notify(0);
        driver.notify(0);
        assert_eq!(driver.told, [Trouble::Broken(what)]);
        assert_eq!((driver.read(0x70), driver.read(0x60)), (79, 2), "it needs a reset, and says so");
        assert_eq!(driver.used(0), None);
        head(&mut driver, 0, 0);
        driver.chain(0, 0, &[(HEAD, 16)], &[(STATUS, 1)]);
        driver.offer(0, 0);
        driver.notify(0);
        assert_eq!((driver.used(0), driver.told.len()), (None, 1), "a good one comes too late");
        driver.write(0x70, 15);
        assert!(driver.device.is_broken(), "only a reset helps");
        assert!(driver.start(USUAL));
        assert_eq!(request(&mut driver, 0, 0, &[(DATA, 512)]), (0, 513), "{what}");
    }
}

#[test]
fn an_index_that_runs_ahead_breaks_it() {
    let mut driver = started(0);
    driver.memory.put(areas(0)[1] + 2, &(SIZE + 1).to_le_bytes());
    driver.notify(0);
    assert_eq!(driver.told, [Trouble::Broken(Broken::Index)]);
}

#[test]
fn queues_that_are_none_are_refused() {
    let [table, driver_area, device_area] = areas(0);
    let wrong = [
        (Broken::Size, 0, [table, driver_area, device_area]),
        (Broken::Size, 3, [table, driver_area, device_area]),
        (Broken::Size, 256, [table, driver_area, device_area]),
        (Broken::Size, 1 << 16 | 16, [table, driver_area, device_area]),
        (Broken::Place, 16, [table + 8, driver_area, device_area]),
        (Broken::Place, 16, [table, driver_area + 1, device_area]),
        (Broken::Place, 16, [table, driver_area, device_area + 2]),
        (Broken::Place, 16, [MEMORY as u64 - 240, driver_area, device_area]),
        (Broken::Place, 16, [table, MEMORY as u64 - 36, device_area]),
        (Broken::Place, 16, [table, driver_area, MEMORY as u64 - 132]),
        (Broken::Place, 16, [u64::MAX - 15, driver_area, device_area]),
    ];
    for (what, size, areas) in wrong {
        let mut driver = Driver::new(disk(0), MEMORY);
        driver.write(0x70, 3);
        driver.write(0x24, 1);
        driver.write(0x20, 1);
        driver.write(0x70, 11);
        driver.queue(size, areas);
        assert_eq!((driver.told.as_slice(), driver.read(0x44)), (&[Trouble::Broken(what)][..], 0), "{size} {areas:x?}");
    }
}

#[test]
fn event_indices_save_interrupts_and_lose_none() {
    let mut driver = Driver::new(disk(0), MEMORY);
    assert!(driver.start(USUAL | EVENT_IDX));
    let [_, available, used] = areas(0);
    let wanted = |driver: &mut Driver, index: u16| driver.memory.put(available + 4 + 32, &index.to_le_bytes());
    wanted(&mut driver, 1);
    request(&mut driver, 0, 0, &[(DATA, 512)]);
    assert!(!driver.device.line(), "the driver wants to hear of the second");
    assert_eq!(driver.memory.get(used + 4 + 128), 1_u16.to_le_bytes(), "the device wants to hear of the next");
    request(&mut driver, 0, 0, &[(DATA, 512)]);
    assert!(driver.device.line());
    driver.write(0x64, 1);
    request(&mut driver, 0, 0, &[(DATA, 512)]);
    assert!(!driver.device.line(), "it was told of that");
}

#[test]
fn a_flag_saves_interrupts_without_event_indices() {
    let mut driver = started(0);
    driver.memory.put(areas(0)[1], &[1, 0]);
    request(&mut driver, 0, 0, &[(DATA, 512)]);
    assert!(!driver.device.line());
}

#[test]
fn memory_that_cannot_be_had_breaks_it() {
    let mut driver = started(0);
    head(&mut driver, 0, 0);
    driver.chain(0, 0, &[(HEAD, 16)], &[(DATA, 512), (STATUS, 1)]);
    driver.offer(0, 0);
    driver.memory.is_gone = true;
    driver.notify(0);
    assert_eq!(driver.told, [Trouble::Broken(Broken::Memory)]);
}

#[test]
fn a_balloon_gives_back_what_it_is_given() {
    let mut driver = Driver::new(balloon(40), MEMORY);
    assert!(driver.start(USUAL));
    assert_eq!(driver.device.read(0x100, 4), 40, "what the host wants");
    driver.device.write(0x104, 4, 7, &mut driver.memory);
    assert_eq!(driver.device.read(0x104, 4), 7, "what the guest gave");
    // In any order, and one of them twice.
    let numbers = [34_u32, 33, 35, 40, 33].map(u32::to_le_bytes).concat();
    driver.memory.put(HEAD, &numbers);
    driver.chain(0, 0, &[(HEAD, 8), (HEAD + 8, 12)], &[]);
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.used(0), Some((0, 0)));
    assert_eq!(driver.memory.released, [(33, 3), (40, 1)]);
    assert_eq!(driver.told, [Trouble::GaveBack(4)]);
    // Deflating needs nothing.
    driver.chain(1, 0, &[(HEAD, 8)], &[]);
    driver.offer(1, 0);
    driver.notify(1);
    assert_eq!((driver.used(1), driver.memory.released.len()), (Some((0, 0)), 2));
}

#[test]
fn free_memory_that_is_reported_is_given_back_by_whole_pages() {
    for queue in [2, 4] {
        let mut driver = Driver::new(balloon(0), MEMORY);
        assert!(driver.start(USUAL));
        driver.chain(queue, 0, &[], &[(0x3_0000, 0x2000), (0x3_4800, 0x1000), (0x3_6800, 0x2000)]);
        driver.offer(queue, 0);
        driver.notify(queue as u32);
        assert_eq!(driver.memory.released, [(0x30, 2), (0x37, 1)]);
    }
}

#[test]
fn a_balloon_takes_no_pages_that_are_none() {
    for (bytes, numbers) in [(4, [MEMORY as u32 / 4096, 0]), (8, [35, u32::MAX]), (8196, [0, 0])] {
        let mut driver = Driver::new(balloon(0), MEMORY);
        assert!(driver.start(USUAL));
        driver.memory.put(HEAD, &numbers.map(u32::to_le_bytes).concat());
        driver.chain(0, 0, &[(HEAD, bytes)], &[]);
        driver.offer(0, 0);
        driver.notify(0);
        assert!(matches!(driver.told.last(), Some(Trouble::Broken(Broken::Buffer | Broken::Request))), "{bytes}");
    }
}

#[test]
fn memory_may_refuse_pages_and_the_guest_lives_on() {
    let mut driver = Driver::new(balloon(0), MEMORY);
    assert!(driver.start(USUAL));
    driver.memory.refuses = Some(Status::Exhausted);
    for _ in 0..2 {
        driver.chain(2, 0, &[], &[(0x3_0000, 0x2000)]);
        driver.offer(2, 0);
        driver.notify(2);
        assert!(driver.used(2).is_some());
    }
    assert_eq!(driver.told, [Trouble::NotReleased(Status::Exhausted)]);
}

/// More than can be done at once waits for the acknowledgement, and none of it is lost.
#[test]
fn much_at_once_is_done_in_pieces() {
    let mut driver = Driver::new(balloon(0), 64 << 20);
    assert!(driver.start(USUAL));
    // No interrupts are wanted; it comes all the same while something is left.
    driver.memory.put(areas(2)[1], &[1, 0]);
    for number in 0..SIZE {
        driver.chain(2, number, &[], &[(1 << 20, 60 << 20)]);
        driver.offer(2, number);
    }
    driver.notify(2);
    let mut done = 0;
    let mut rounds = 0;
    loop {
        while driver.used(2).is_some() {
            done += 1;
        }
        if !driver.device.line() {
            break;
        }
        rounds += 1;
        driver.write(0x64, 1);
    }
    assert_eq!(done, SIZE);
    assert!(rounds > 1, "{rounds}");
}
