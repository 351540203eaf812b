//! Images and bundles: what is written is what a reader finds, and what can't be an image is refused.

use std::path::Path;
use std::sync::Arc;

use caisson_manifest::bundle::{Contents, write};
use caisson_manifest::image::{Image, Segment, image};
use caisson_manifest::plan::{RingEnds, plan};
use caisson_manifest::system::System;
use caisson_proto::bundle::{Header, MAGIC, MapRecord, ServiceRecord};
use caisson_proto::info::{ServiceInfo, name};
use caisson_proto::kernel::Access;
use caisson_proto::layout::{FILE_STRIDE, FILES, IMAGE, INFO, MAILBOX, RINGS, STACK_TOP};
use caisson_proto::stats::{PAGES, SHARES};
use proptest::prelude::*;
use zerocopy::FromBytes;

const PAGE: usize = 4096;

/// A program header: flags (4 read, 2 write, 1 execute), address, bytes in the file, bytes in memory.
type Load = (u32, u64, Vec<u8>, u64);

/// A little ELF program (System V ABI, ELF-64: header of 64 bytes, program headers of 56).
fn elf(kind: u16, entry: u64, loads: &[Load]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend(kind.to_le_bytes());
    out.extend(62u16.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    [entry, 64, 0].iter().for_each(|word| out.extend(word.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    [64u16, 56, loads.len() as u16, 64, 0, 0].iter().for_each(|half| out.extend(half.to_le_bytes()));
    let mut at = 64 + 56 * loads.len() as u64;
    for (flags, address, bytes, memory) in loads {
        out.extend(1u32.to_le_bytes());
        out.extend(flags.to_le_bytes());
        [at, *address, *address, bytes.len() as u64, *memory, 4096].iter().for_each(|w| out.extend(w.to_le_bytes()));
        at += bytes.len() as u64;
    }
    loads.iter().for_each(|(_, _, bytes, _)| out.extend(bytes));
    out
}

fn code() -> Load {
    (5, IMAGE, vec![0x90; 100], 100)
}

#[test]
fn segments_become_whole_pages() {
    let data = (6, IMAGE + 0x1010, vec![7; 10], 0x2000);
    let image = image("p", &elf(2, IMAGE + 4, &[data, code()])).unwrap();
    assert_eq!(image.entry, IMAGE + 4);
    let [text, data] = image.segments.as_slice() else { panic!("two segments") };
    assert_eq!((text.page, text.pages, text.contents.len()), (IMAGE >> 12, 1, PAGE));
    assert_eq!(text.access, Access::READ | Access::EXECUTE);
    assert_eq!((data.page, data.pages, data.contents.len()), ((IMAGE >> 12) + 1, 3, PAGE));
    assert_eq!(&data.contents[0xf..0x1b], &[0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
}

#[test]
fn what_cannot_be_an_image_is_explained() {
    let says = |bytes: &[u8], part: &str| {
        let error = image("p", bytes).unwrap_err().to_string();
        assert!(error.starts_with("p: ") && error.contains(part), "{error:?} lacks {part:?}");
    };
    let whole = elf(2, IMAGE, &[code()]);
    says(b"no program", "not a readable ELF");
    says(&elf(3, IMAGE, &[code()]), "relocation-model=static");
    says(&elf(2, IMAGE, &[(7, IMAGE, vec![1], 1)]), "both writable and executable");
    says(&elf(2, IMAGE, &[(5, IMAGE - 4096, vec![1], 1)]), "outside 0x400000");
    says(&elf(2, IMAGE, &[(5, u64::MAX, vec![1], 2)]), "outside");
    says(&elf(2, IMAGE, &[code(), (6, IMAGE + 200, vec![1], 1)]), "share the page at 0x400000");
    says(&elf(2, IMAGE + 4096, &[code()]), "entry point");
    says(&elf(2, IMAGE, &[]), "0 segments");
    let many: Vec<Load> = (0..5).map(|at| (5, IMAGE + at * 4096, vec![1], 1)).collect();
    says(&elf(2, IMAGE, &many), "5 segments; 1 to 4");
    says(&whole[..whole.len() - 1], "outside the file");
}

proptest! {
    /// A file of the user's own building can't make the reader panic.
    #[test]
    fn no_bytes_are_fatal(at in 0usize..160, value: u8) {
        let mut bytes = elf(2, IMAGE, &[code()]);
        bytes[at % 120] = value;
        let _ = image("p", &bytes);
    }
}

#[test]
fn a_reader_finds_what_was_written() {
    let text = include_str!("../../../board/qemu/system.toml");
    let system = System::parse(Path::new("system.toml"), text).unwrap();
    let plan = plan(&system, &["a", "b"]).unwrap();
    let segment = Segment { page: 0x400, pages: 3, contents: vec![5; PAGE], access: Access::READ | Access::WRITE };
    let program = Arc::new(Image { entry: 0x40_0010, segments: vec![segment] });
    let kernel: Arc<[u8]> = vec![9; PAGE + 1].into();
    let contents: Vec<Contents> = plan
        .services
        .iter()
        .map(|service| Contents {
            image: program.clone(),
            files: service.vm.map_or(vec![], |vm| vec![vec![vm as u8 + 1; 3].into(), kernel.clone(), Arc::from([])]),
        })
        .collect();
    let bundle = write(&plan, &contents).unwrap();
    assert_eq!(bundle.len() % PAGE, 0);
    let (header, rest) = Header::read_from_prefix(&bundle).unwrap();
    assert_eq!((header.magic, header.services, header.pages), (MAGIC, 9, (bundle.len() / PAGE) as u64));
    let (records, rest) = <[ServiceRecord]>::ref_from_prefix_with_elems(rest, 9).unwrap();
    let (maps, _) = <[MapRecord]>::ref_from_prefix_with_elems(rest, header.maps as usize).unwrap();
    assert_eq!(header.shared, plan.rings.len() as u64 + 2 * PAGES as u64);
    let at = |page: u64, bytes: usize| &bundle[page as usize * PAGE..][..bytes];
    let map = |slot: usize, address: u64| {
        *maps.iter().find(|map| usize::from(map.service) == slot && map.page == address >> 12).expect("a mapping")
    };
    let info = |slot: usize| {
        let map = map(slot, INFO);
        assert_eq!((map.pages, map.file_pages, map.access, map.kind), (1, 1, 1, MapRecord::OWN));
        ServiceInfo::read_from_prefix(at(map.first, PAGE)).unwrap().0
    };
    let all = info(0);
    assert_eq!((name(&all.names[0]), name(&all.names[2]), name(&all.names[3])), ("supervisor", "vmm-a", "vmm-b"));
    assert_eq!((all.services, all.is_vmm[0], all.is_vmm[2]), (9, 0, 1));
    let segment = map(0, 0x400 << 12);
    assert_eq!((segment.file_pages, segment.pages, segment.access, segment.kind), (1, 3, 3, MapRecord::OWN));
    assert_eq!(at(segment.first, PAGE), &[5; PAGE]);
    assert_eq!(records[0].entry, 0x40_0010);
    assert_eq!(map(8, 0x400 << 12).first, segment.first, "the same image is there once");
    let stack = maps.iter().find(|map| map.page + u64::from(map.pages) == STACK_TOP >> 12).unwrap();
    assert_eq!((stack.service, stack.file_pages, stack.access, stack.kind), (0, 0, 3, MapRecord::OWN));
    // The processor's registers, a command and its data, and nobody else has them.
    let mailbox = map(8, MAILBOX);
    assert_eq!((mailbox.pages, mailbox.file_pages, mailbox.access, mailbox.kind), (11, 0, 3, MapRecord::OWN));
    assert!(maps.iter().filter(|map| map.service != 8).all(|map| map.page != MAILBOX >> 12));
    let file = |slot, number: u64| map(slot, FILES + number * FILE_STRIDE);
    assert_eq!((at(file(2, 0).first, 3), at(file(3, 0).first, 3)), (&[1; 3][..], &[2; 3][..]));
    assert_eq!(file(2, 1).first, file(3, 1).first, "the same kernel is there once");
    assert_eq!(at(file(2, 1).first, PAGE + 1), &[9; PAGE + 1][..]);
    assert_eq!((file(2, 1).pages, file(2, 1).access, file(2, 1).kind), (2, 1, MapRecord::BUNDLE));
    assert_eq!(info(2).files, [3, PAGE as u64 + 1, 0, 0]);
    // What each service is told of its rings is what was planned, and what it sees: both ends the same page.
    for (first, ring) in (0..).zip(&plan.rings) {
        let RingEnds { producer, consumer, producer_number, consumer_number } = ring.ends;
        for (slot, number) in [(producer, producer_number), (consumer, consumer_number)] {
            if usize::from(slot) < records.len() {
                let map = map(slot.into(), RINGS + u64::from(number) * PAGE as u64);
                assert_eq!((map.first, map.pages, map.access, map.kind), (first, 1, 3, MapRecord::SHARED));
            }
        }
    }
    // Each vmm writes pages that nobody else has but the console, which only reads them.
    let mut next = plan.rings.len() as u64;
    for (at, holder) in (0..).zip([2, 3]) {
        let (held, read) = (map(holder, SHARES), map(1, SHARES + at * (PAGES * PAGE) as u64));
        assert_eq!((held.first, held.pages, held.access), (next, PAGES as u32, 3));
        assert_eq!((read.first, read.pages, read.access), (next, PAGES as u32, 1));
        let (told, reads) = (info(holder).share, info(1).share[at as usize]);
        assert_eq!((told[0].role, told[0].channel, told[0].peer, told[0].first), (1, at as u16 + 1, 1, 0));
        assert_eq!((reads.role, reads.channel, reads.peer), (2, at as u16 + 1, holder as u16));
        assert_eq!((told[1].role, reads.first, reads.pages), (0, at as u32 * PAGES as u32, PAGES as u16));
        next += PAGES as u64;
    }
    let shared = maps.iter().filter(|map| map.kind == MapRecord::SHARED).count();
    assert_eq!(shared, 2 * (plan.rings.len() + plan.shares.len()));
    for slot in 0..9 {
        for (number, ring) in info(slot).ring.iter().enumerate().take(info(slot).rings as usize) {
            let ends = |record: &RingEnds| match ring.role {
                1 => (record.producer, record.producer_number, record.consumer, record.consumer_number),
                _ => (record.consumer, record.consumer_number, record.producer, record.producer_number),
            };
            let told = (slot as u16, number as u16, ring.peer, ring.peer_number);
            assert!(plan.rings.iter().any(|ring| ends(&ring.ends) == told), "{slot} {number}");
        }
    }
}
