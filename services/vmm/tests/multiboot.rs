//! Multiboot images: what is put into memory, and what is refused.

mod common;

use caisson_proto::supervisor::SetupError;
use caisson_vmm::boot::mbi::{self, BOOT_MAGIC};
use caisson_vmm::boot::multiboot::{Image, Reject, is_multiboot};
use caisson_vmm::boot::place;
use caisson_vmm::{Event, Vmm};
use common::{FACTS, Fake, MIB, config};
use proptest::prelude::*;

const ENTRY: u32 = 0x10_0040;
const BSS: u32 = 0x3000;
/// Where the program header is in [`elf`], the Multiboot header, and the code.
const PROGRAM: usize = 52;
const HEADER: usize = 84;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[0x1bad_b002, flags, 0_u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags)])
}

/// An ELF file with one segment: itself, at 1 MiB, linked 3 GiB higher.
fn elf(flags: u32) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 3, 0]);
    file.extend(words(&[1, 0xc000_0000 + ENTRY, PROGRAM as u32, 0, 0]));
    file.extend([52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0]);
    assert_eq!(file.len(), PROGRAM);
    file.extend(words(&[1, 0, 0xc010_0000, 0x10_0000, 0x200, BSS, 5, 4096]));
    file.extend(header(flags));
    file.resize(0x200, 0x90);
    file
}

fn word(memory: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(memory[at as usize..][..4].try_into().unwrap())
}

fn text(memory: &[u8], at: u32) -> &str {
    let bytes = &memory[at as usize..];
    std::str::from_utf8(&bytes[..bytes.iter().position(|&b| b == 0).unwrap()]).unwrap()
}

fn boot(kernel: &[u8], initrd: &[u8]) -> Result<Vmm<Fake>, SetupError> {
    Vmm::new(Fake::new(32 * MIB, 2), &config(2), kernel, initrd, FACTS)
}

#[test]
fn the_information_says_where_things_are() {
    let vmm = boot(&elf(3), b"initrd").unwrap();
    let memory = &vmm.platform.memory;
    assert_eq!(memory[0x10_0000..0x10_0200], elf(3));
    let state = &vmm.platform.states[0];
    assert_eq!((state.gpr[0], state.rip), (BOOT_MAGIC.into(), ENTRY.into()));
    assert_eq!((state.cr0, state.cr4, state.efer, state.rflags), (0x11, 0, 0, 2));
    assert!(state.segments.iter().all(|segment| segment.base == 0 && segment.limit == u32::MAX));

    let info = state.gpr[3];
    let field = |at| word(memory, info + at);
    assert_eq!((field(0), field(4), field(8)), (0x24d, 639, 31 * 1024));
    assert_eq!(text(memory, field(16)), "test console=ttyS0");
    let (count, modules) = (field(20), u64::from(field(24)));
    let (start, end) = (word(memory, modules), word(memory, modules + 4));
    assert_eq!((count, start, end - start), (1, 0x10_3000, 6));
    assert_eq!(&memory[start as usize..end as usize], b"initrd");
    let (bytes, map) = (field(44), u64::from(field(48)));
    let regions: Vec<_> = (0..u64::from(bytes) / 24)
        .map(|n| map + 24 * n)
        .map(|at| [0, 4, 12, 20].map(|f| word(memory, at + f)))
        .collect();
    assert_eq!(regions, [[20, 0, 0x9_fc00, 1], [20, 0x9_fc00, 0x6_0400, 2], [20, 0x10_0000, 31 << 20, 1]]);
    assert_eq!(text(memory, field(64)), "Caisson");
    assert_eq!(&memory[place::ACPI as usize..][..8], b"RSD PTR ");
    assert!(matches!(vmm.platform.events[0], Event::Loaded { kernel_end: 0x10_3000, initrd: 0x10_3000, .. }));
}

#[test]
fn without_an_initrd_there_is_no_module() {
    let vmm = boot(&elf(0), b"").unwrap();
    assert_eq!(word(&vmm.platform.memory, mbi::place::INFO + 20), 0);
}

#[test]
fn addresses_in_the_header_need_no_elf() {
    let mut file = vec![0xcc; 16];
    file.extend(header(1 << 16));
    file.extend(words(&[0x20_0000, 0x1f_fff8, 0x20_0028, 0x20_1000, 0x20_0020]));
    file.resize(0x100, 0xf4);
    let image = Image::parse(&file).unwrap();
    assert_eq!((image.entry, image.end, image.segments.len()), (0x20_0020, 0x20_1000, 1));
    assert_eq!((image.segments[0].address, image.segments[0].contents.len()), (0x1f_fff8, 0x30));
    assert_eq!(image.segments[0].contents[..8], [0xcc; 8]);

    let with = |n: usize, value: u32| {
        let mut file = file.clone();
        file[28 + 4 * n..][..4].copy_from_slice(&value.to_le_bytes());
        Image::parse(&file).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(0, 0x1f_0000), Reject::Addresses, "the header before what is loaded");
    assert_eq!(with(0, 0x21_0000), Reject::Addresses, "before the file");
    assert_eq!(with(2, 0x20_2000), Reject::Truncated);
    assert_eq!(with(2, 0x1f_0000), Reject::Addresses);
    assert_eq!(with(3, 0x20_0000), Reject::Addresses, "ends before its contents do");
    assert_eq!(with(4, 0x20_1000), Reject::Entry);
}

#[test]
fn what_cannot_be_booted_is_said() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = elf(3);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Image::parse(&file).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(HEADER + 8, &[0]), Reject::NoHeader);
    assert_eq!(Image::parse(&elf(0x0100_0008)).map(|_| ()), Err(Reject::Flags(8)));
    assert_eq!(with(4, &[2]), Reject::Elf64);
    assert_eq!(with(0, b"\x7fELG"), Reject::NotElf);
    assert_eq!(with(18, &[40]), Reject::NotElf, "ARM");
    assert_eq!(with(28, &words(&[0x1000])), Reject::Truncated, "program headers");
    assert_eq!(with(PROGRAM + 16, &words(&[0x201])), Reject::Truncated, "contents");
    assert_eq!(with(PROGRAM + 20, &words(&[0x1ff])), Reject::Addresses, "fewer bytes in memory than in the file");
    assert_eq!(with(PROGRAM, &words(&[4])), Reject::Entry, "nothing to load");
    assert_eq!(with(24, &words(&[ENTRY + BSS])), Reject::Entry);
    assert_eq!(with(PROGRAM + 12, &words(&[0x8_f000])), Reject::Place(0x8_f000), "runs into the information");
    assert_eq!(with(PROGRAM + 12, &words(&[0xf_f000])), Reject::Place(0xf_f000), "no memory");
    assert_eq!(with(PROGRAM + 12, &words(&[0xbfff_e000])), Reject::Place(0xbfff_e000), "above the last memory");
    assert!(Reject::Elf64.to_string().contains("objcopy"));
    // Here it would fit, but not into this guest's memory.
    let mut high = elf(3);
    high[PROGRAM + 12..][..4].copy_from_slice(&(32_u32 << 20).to_le_bytes());
    assert_eq!(boot(&high, b"").map(|_| ()).unwrap_err(), SetupError::TooSmall);
    assert_eq!(boot(&elf(3), &vec![0; 31 << 20]).map(|_| ()).unwrap_err(), SetupError::TooSmall);
    assert_eq!(boot(&elf(8), b"").map(|_| ()).unwrap_err(), SetupError::Kernel);
}

#[test]
fn a_header_is_looked_for_in_8_kib() {
    for (at, found) in [(0, true), (8180, true), (8, true), (6, false), (8192, false)] {
        let mut file = vec![0; 8300];
        file[at..at + 12].copy_from_slice(&header(0));
        assert_eq!(is_multiboot(&file), found, "at {at}");
    }
}

proptest! {
    /// Whatever the headers say: no panic, and what is accepted lies where it may.
    #[test]
    fn no_header_panics(
        flags in any::<u32>().prop_map(|flags| flags & 0x1_0007),
        changes in proptest::collection::vec((0..140_usize, any::<u8>()), 0..6),
        addresses in any::<[u32; 5]>(),
    ) {
        let mut file = elf(flags);
        file[HEADER + 12..HEADER + 32].copy_from_slice(&words(&addresses));
        for (at, byte) in changes {
            if !(HEADER..HEADER + 12).contains(&at) {
                file[at] = byte;
            }
        }
        if let Ok(image) = Image::parse(&file) {
            for segment in &image.segments {
                prop_assert!(segment.contents.len() as u64 <= segment.bytes && segment.bytes > 0);
                let end = segment.address + segment.bytes;
                prop_assert!(end <= mbi::place::START || segment.address >= place::HIGH && end <= 3 << 30);
                prop_assert!(end <= image.end);
            }
        }
        let _ = boot(&file, b"initrd");
    }

    #[test]
    fn no_file_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..70_usize) {
        if bytes.len() >= 4 * at + 12 {
            bytes[4 * at..4 * at + 12].copy_from_slice(&header(1 << 16));
        }
        let _ = Image::parse(&bytes);
    }
}
