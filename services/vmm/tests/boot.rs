//! What is put into guest memory, and what is refused.

mod common;

use caisson_proto::supervisor::SetupError;
use caisson_proto::vmm::VmConfig;
use caisson_vmm::boot::bzimage::{Image, Reject};
use caisson_vmm::boot::place;
use caisson_vmm::{Event, Vmm};
use common::{FACTS, Fake, MIB, Machine, bzimage, config};
use proptest::prelude::*;

fn word(memory: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(memory[at as usize..][..4].try_into().unwrap())
}

fn long(memory: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(memory[at as usize..][..8].try_into().unwrap())
}

#[test]
fn the_boot_parameters_say_where_things_are() {
    let mut machine = Machine::new(2);
    let memory = machine.fake().memory.clone();
    let page = place::ZERO_PAGE;
    assert_eq!(memory[page as usize + 0x210], 0xff, "loader");
    assert_eq!(&memory[page as usize + 0x202..][..4], b"HdrS");
    let (initrd, size) = (word(&memory, page + 0x218), word(&memory, page + 0x21c));
    assert_eq!(&memory[initrd as usize..][..size as usize], b"initrd");
    assert_eq!(u64::from(initrd) % 4096, 0);
    let cmdline = word(&memory, page + 0x228) as usize;
    assert_eq!(&memory[cmdline..][..14], b"console=ttyS0\0");
    let seed = long(&memory, page + 0x250);
    assert_eq!((long(&memory, seed), word(&memory, seed + 8), word(&memory, seed + 12)), (0, 9, 32));
    assert_eq!(&memory[seed as usize + 16..][..32], [7; 32]);

    let map: Vec<_> = (0..u64::from(memory[page as usize + 0x1e8]))
        .map(|n| page + 0x2d0 + n * 20)
        .map(|at| (long(&memory, at), long(&memory, at + 8), word(&memory, at + 16)))
        .collect();
    assert_eq!(map, [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 31 * MIB, 1)]);

    let state = machine.state(0);
    assert_eq!((state.rip, state.gpr[6], state.cr3), (0x20_0200, page, place::TABLES));
    assert_eq!((state.cr0, state.cr4, state.efer, state.rflags), (0x8000_0011, 0x20, 0x500, 2));
    assert_eq!((state.segments[1].selector, state.segments[0].selector), (0x10, 0x18));
    assert_eq!(memory[0x20_0200], 0x90);
    machine.vmm.start();
    assert_eq!(machine.fake().runs, [0]);
    assert!(matches!(machine.fake().events[0], Event::Loaded { entry: 0x20_0200, kernel_end: 0x60_0000, .. }));
}

#[test]
fn acpi_tables_hang_together() {
    let memory = Machine::new(3).fake().memory.clone();
    let sum =
        |at: u64, len: u32| memory[at as usize..][..len as usize].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
    let rsdp = long(&memory, place::ZERO_PAGE + 0x70);
    assert_eq!(&memory[rsdp as usize..][..8], b"RSD PTR ");
    assert_eq!((sum(rsdp, 20), sum(rsdp, 36)), (0, 0));
    let xsdt = long(&memory, rsdp + 24);
    let length = word(&memory, xsdt + 4);
    assert_eq!((sum(xsdt, length), length), (0, 36 + 2 * 8));
    let (fadt, madt) = (long(&memory, xsdt + 36), long(&memory, xsdt + 44));
    for (table, signature) in [(fadt, b"FACP"), (madt, b"APIC"), (long(&memory, fadt + 140), b"DSDT")] {
        assert_eq!(&memory[table as usize..][..4], signature);
        assert_eq!(sum(table, word(&memory, table + 4)), 0);
        assert!(table + u64::from(word(&memory, table + 4)) < place::HIGH);
    }
    let flags = word(&memory, fadt + 112);
    assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "reset register");
    // Three processors, then the I/O APIC.
    assert_eq!(word(&memory, madt + 4), 44 + 3 * 8 + 12);
    assert_eq!((0..3).map(|n| memory[madt as usize + 44 + n * 8 + 3]).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(word(&memory, madt + 44 + 3 * 8 + 4), 0xfec0_0000);
}

fn setup(kernel: &[u8], initrd: &[u8], change: impl FnOnce(&mut VmConfig, &mut Fake)) -> Result<(), SetupError> {
    let mut config = config(1);
    let mut fake = Fake::new(32 * MIB, 1);
    change(&mut config, &mut fake);
    Vmm::new(fake, &config, kernel, initrd, FACTS).map(|_| ())
}

#[test]
fn what_cannot_be_booted_is_refused() {
    let good = bzimage(&[0x90; 4096]);
    assert_eq!(setup(&good, b"", |_, _| ()), Ok(()));
    assert_eq!(setup(b"ELF", b"", |_, _| ()), Err(SetupError::Kernel));
    assert_eq!(setup(&good, b"", |config, _| config.vcpus = 0), Err(SetupError::Config));
    assert_eq!(setup(&good, b"", |config, _| config.vcpus = 9), Err(SetupError::Config));
    assert_eq!(setup(&good, b"", |config, _| config.memory += 4096), Err(SetupError::Config));
    assert_eq!(setup(&good, b"", |config, _| config.memory = u64::MAX << 21), Err(SetupError::Config));
    assert_eq!(setup(&good, b"", |config, _| config.memory = 4 * MIB), Err(SetupError::TooSmall));
    assert_eq!(setup(&good, b"", |config, _| config.cmdline = "x".repeat(2048)), Err(SetupError::Config));
    assert_eq!(setup(&good, &vec![0; 27 << 20], |_, _| ()), Err(SetupError::TooSmall));
    assert_eq!(setup(&good, b"", |_, fake| fake.refuse_memory = true), Err(SetupError::Memory));
    let mut large = good.clone();
    large[0x260..0x264].copy_from_slice(&(40_u32 << 20).to_le_bytes());
    assert_eq!(setup(&large, b"", |_, _| ()), Err(SetupError::TooSmall));
}

#[test]
fn a_kernel_that_prefers_what_is_not_there_is_moved() {
    let mut high = bzimage(&[0x90; 4096]);
    high[0x258..0x260].copy_from_slice(&0x4000_0000_u64.to_le_bytes());
    let image = Image::parse(&high).unwrap();
    assert_eq!(image.place(32 * MIB), Some(2 * MIB));
    high[0x234] = 0;
    assert_eq!(Image::parse(&high).unwrap().place(32 * MIB), None, "not relocatable");
}

#[test]
fn headers_are_checked() {
    let good = bzimage(&[0x90; 4096]);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        Image::parse(&image).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(0x1fe, &[0, 0]), Reject::NotLinux);
    assert_eq!(with(0x202, b"hdrs"), Reject::NotLinux);
    assert_eq!(with(0x206, &[0x0b, 2]), Reject::TooOld);
    assert_eq!(with(0x211, &[0]), Reject::No64Bit);
    assert_eq!(with(0x236, &[0, 0]), Reject::No64Bit);
    assert_eq!(with(0x1f1, &[200]), Reject::Truncated);
    assert_eq!(with(0x230, &[1, 0, 0, 0]), Reject::Header);
    assert_eq!(with(0x260, &[0, 1, 0, 0]), Reject::Header, "smaller than itself");
    assert_eq!(with(0x258, &[0; 8]), Reject::Header);
    assert_eq!(Image::parse(&good[..0x250]).map(|_| ()), Err(Reject::Truncated));
    assert_eq!(Image::parse(&good[..1200]).map(|_| ()), Err(Reject::Truncated));
}

#[test]
fn memory_above_the_hole_is_told() {
    let ram = caisson_vmm::ram::Ram::new(6 << 30);
    assert!(ram.contains(0xbfff_ffff) && !ram.contains(0xc000_0000) && !ram.contains(0xffff_ffff));
    assert!(ram.contains(1 << 32) && ram.contains((7 << 30) - 1) && !ram.contains(7 << 30));
    let map = caisson_vmm::boot::params::e820(&ram);
    assert_eq!((map[3].start, map[3].bytes), (1 << 32, 3 << 30));
}

proptest! {
    #[test]
    fn no_header_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..1400), magic in any::<bool>()) {
        if magic && bytes.len() > 0x210 {
            bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            bytes[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        }
        if let Ok(image) = Image::parse(&bytes) {
            image.place(1 << 30);
        }
    }
}
