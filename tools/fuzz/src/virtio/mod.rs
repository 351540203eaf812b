//! Virtio devices under a driver that does anything.

pub mod driver;
pub mod memory;

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::abi::Status;
use caisson_proto::console::Knob;
use caisson_proto::switch::{MAX_FRAME, begin, count};
use caisson_vmm::need::Told;
use caisson_vmm::plugged::BLOCK;
use caisson_vmm::virtio::balloon::Balloon;
use caisson_vmm::virtio::blk::Blk;
use caisson_vmm::virtio::console::Console;
use caisson_vmm::virtio::mem::Mem;
use caisson_vmm::virtio::mmio::Transport;
use caisson_vmm::virtio::net::Net;
use caisson_vmm::virtio::overlay::Overlay;
use caisson_vmm::virtio::{Device, Trouble};

use driver::{Driver, areas};

/// Acts of an input.
const MAX: usize = 300;
/// Bytes of memory.
const MEMORY: usize = 0x4_0000;
/// Bytes of the disk: not a whole number of the overlay's pieces.
const DISK: usize = 0x8e00;

#[derive(Debug, Arbitrary)]
enum Act {
    Read(#[arbitrary(with = register)] u64, #[arbitrary(with = width)] usize),
    Write(#[arbitrary(with = register)] u64, #[arbitrary(with = width)] usize, u64),
    /// The driver begins anew, with all that is offered or some of it.
    Start(u64),
    /// Bytes anywhere in memory.
    Poke(#[arbitrary(with = place)] u64, [u8; 8]),
    Descriptor {
        queue: bool,
        number: u8,
        span: (u16, u16),
        flags: u8,
        next: u8,
    },
    /// A request of a disk: kind, sector, and how its data is cut.
    Request {
        kind: u8,
        sector: u8,
        pieces: [u8; 3],
        first: u8,
    },
    Offer(bool, u8),
    Notify(u8),
    Acknowledge,
    /// A request to plug or unplug: kind, the first block and how many, and whether memory refuses.
    Plug {
        kind: u8,
        first: u8,
        blocks: u8,
        refuses: bool,
    },
    /// People want the guest to have so many blocks, or pages in its balloon.
    Resize(bool, u8),
    /// memory tells how much is lacking, or too much.
    Follow(i8),
    /// Of a console: somebody types, and what was written is fetched.
    Type(u8),
    /// Of a card: what was sent is fetched, and frames come, or what is none.
    Exchange {
        lengths: [u16; 3],
        bytes: u16,
        more: bool,
    },
    /// A frame that is sent, with this header and in two pieces.
    Frame {
        header: [u8; 2],
        length: u16,
        cut: u8,
    },
}

fn register(u: &mut Unstructured) -> arbitrary::Result<u64> {
    u.int_in_range(0..=0x120)
}

fn width(u: &mut Unstructured) -> arbitrary::Result<usize> {
    u.choose(&[4, 4, 4, 1, 2, 8]).copied()
}

/// In the first queue's rings, or anywhere.
fn place(u: &mut Unstructured) -> arbitrary::Result<u64> {
    let [table, driver, device] = areas(0);
    let start = *u.choose(&[table, driver, device, 0])?;
    Ok(start + u.int_in_range(0..=if start == 0 { MEMORY as u64 } else { 0x90 })?)
}

/// What a disk has at first.
pub fn contents() -> &'static [u8] {
    static DISK_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    DISK_BYTES.get_or_init(|| (0..DISK).map(|n| (n / 512 * 7 + n) as u8).collect())
}

/// A disk of which so many bytes can be changed.
pub fn disk(overlay: u64) -> Transport {
    Transport::new(Box::new(Blk::new(Overlay::new(contents(), overlay).expect("so little memory"))))
}

/// A balloon of so many pages.
pub fn balloon(target: u32) -> Transport {
    Transport::new(Box::new(Balloon::new(target, target.saturating_mul(2))) as Box<dyn Device>)
}

/// Memory that can be plugged, of which so many bytes are wanted.
pub fn mem(wanted: u64) -> Transport {
    Transport::new(Box::new(Mem::new(memory::REGION, wanted)))
}

fn perform(driver: &mut Driver, act: Act) {
    match act {
        Act::Read(offset, bytes) => {
            let value = driver.device.read(offset, bytes);
            assert!(bytes == 8 || value >> (8 * bytes) == 0, "more than was asked for");
        }
        Act::Write(offset, bytes, value) => {
            let told = driver.device.write(offset, bytes, value, &mut driver.memory);
            driver.told.extend(told);
        }
        Act::Start(features) => {
            let offered = driver.offered();
            // Without version 1 a device isn't used, and with what isn't offered neither.
            assert!(driver.start(offered & (features | 1 << 32)));
            assert!(!driver.device.is_broken());
        }
        Act::Poke(place, bytes) => driver.memory.put(place, &bytes),
        Act::Descriptor { queue, number, span, flags, next } => {
            let (gpa, bytes) = span;
            driver.descriptor(
                queue.into(),
                (number % 20).into(),
                (u64::from(gpa) << 3, bytes.into()),
                flags.into(),
                (next % 20).into(),
            );
        }
        Act::Request { kind, sector, pieces, first } => {
            let mut head = u32::from(kind % 10).to_le_bytes().to_vec();
            head.extend([0; 4]);
            head.extend(u64::from(sector).to_le_bytes());
            driver.memory.put(0x2_0000, &head);
            let pieces = pieces.map(|piece| (0x2_1000 + u64::from(piece) * 64, u32::from(piece) * 64));
            let (head, status) = ((0x2_0000, 16), (0x3_0000, 1));
            let first = u16::from(first % 10);
            match kind % 10 {
                1 => driver.chain(0, first, &[&[head], &pieces[..]].concat(), &[status]),
                _ => driver.chain(0, first, &[head], &[&pieces[..], &[status]].concat()),
            }
            driver.offer(0, first);
        }
        Act::Plug { kind, first, blocks, refuses } => {
            let mut words = u64::from(kind % 5).to_le_bytes().to_vec();
            // Now and then it isn't a block's address, or outside.
            let gpa = (memory::REGION.start - BLOCK) + u64::from(first) * (BLOCK / 2);
            words.extend(gpa.to_le_bytes());
            words.extend(u64::from(blocks % 70).to_le_bytes());
            driver.memory.put(0x2_0000, &words);
            driver.chain(0, 0, &[(0x2_0000, 24)], &[(0x3_0000, 10)]);
            driver.offer(0, 0);
            driver.memory.refuses = refuses.then_some(Status::Exhausted);
            driver.notify(0);
            driver.memory.refuses = None;
        }
        Act::Resize(plugged, count) => {
            let (knob, each) = if plugged { (Knob::Plugged, BLOCK) } else { (Knob::Balloon, 4096) };
            driver.device.resize(knob, u64::from(count) * each);
        }
        Act::Follow(pages) => {
            let (lacking, spare) = if pages > 0 { (pages as u64, 0) } else { (0, u64::from(pages.unsigned_abs())) };
            driver.device.follow(&Told { lacking, spare, vms: 2 });
        }
        Act::Offer(queue, head) => driver.offer(queue.into(), (head % 18).into()),
        Act::Notify(queue) => driver.notify((queue % 6).into()),
        Act::Type(bytes) => {
            let Some(console) = driver.device.console() else { return };
            console.fetch();
            console.block(bytes % 8 == 0);
            console.receive(&[b'x'; 256][..bytes.into()]);
            for queue in 0..2 {
                let told = driver.device.poke(queue, &mut driver.memory);
                driver.told.extend(told);
            }
        }
        Act::Exchange { lengths, bytes, more } => {
            let Some(card) = driver.device.net() else { return };
            card.send(|batch, bytes| {
                assert!(count(&batch.0[..bytes]).is_some(), "what isn't frames is sent");
                Some(u64::from(more))
            });
            if card.is_hungry() {
                card.fetch(|batch| {
                    let mut at = 0;
                    for length in lengths {
                        let length = usize::from(length) % (MAX_FRAME + 20);
                        at = begin(&mut batch.0, at, length).map_or(at, |(_, next)| next);
                    }
                    Some((if bytes % 2 == 0 { at } else { bytes.into() }, more))
                });
            } else {
                card.expect();
            }
            for queue in 0..2 {
                let told = driver.device.poke(queue, &mut driver.memory);
                driver.told.extend(told);
            }
        }
        Act::Frame { header: [flags, segmentation], length, cut } => {
            driver.memory.put(0x2_0000, &[flags & 1, segmentation & 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let (length, cut) = (u32::from(length % 1600), u32::from(cut));
            driver.chain(1, 0, &[(0x2_0000, cut), (0x2_0000 + u64::from(cut), length)], &[]);
            driver.offer(1, 0);
            driver.notify(1);
        }
        Act::Acknowledge => {
            let reasons = driver.read(0x60);
            driver.write(0x64, reasons);
        }
    }
}

/// Lets a driver do what the input says. Whatever it is, the device stays inside memory and its own rules.
pub fn anything(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let device = match input.arbitrary::<u8>() {
        Ok(kind) if kind % 4 == 0 => balloon(kind.into()),
        Ok(kind) if kind % 8 == 2 => mem(u64::from(kind) * BLOCK / 4),
        Ok(kind) if kind % 8 == 1 => Transport::new(Box::new(Console::default())),
        Ok(kind) if kind % 8 == 5 => Transport::new(Box::new(Net::new([2; 6]))),
        Ok(kind) => disk(u64::from(kind / 64) * 4096),
        Err(_) => return,
    };
    let mut driver = Driver::new(device, MEMORY);
    for _ in 0..MAX {
        let Some(act) = (!input.is_empty()).then(|| input.arbitrary().ok()).flatten() else { return };
        let (was_broken, told, released) = (driver.device.is_broken(), driver.told.len(), driver.memory.released.len());
        driver.memory.written.clear();
        let starts = matches!(act, Act::Start(_));
        perform(&mut driver, act);
        let broke = driver.told[told..].iter().filter(|what| matches!(what, Trouble::Broken(_))).count();
        let status = driver.read(0x70);
        if was_broken && !starts && status != 0 {
            assert!(driver.device.is_broken() && broke == 0, "it is broken until it is reset, and says so once");
            assert!(driver.memory.written.is_empty() && driver.memory.released.len() == released, "it does nothing");
        }
        assert!(!driver.device.is_broken() || was_broken || broke == 1, "it says that it is broken");
        assert!(!driver.device.line() || status & 4 != 0, "an interrupt before the driver is ready");
        assert!(status & 4 == 0 || status & 8 != 0, "in use without features");
        assert_eq!(driver.device.line(), driver.read(0x60) != 0);
        if driver.read(8) == 24 {
            let plugged = driver.device.read(0x128, 8);
            assert_eq!(plugged, driver.memory.plugged.len() as u64 * BLOCK, "the driver is told something else");
        }
    }
}
