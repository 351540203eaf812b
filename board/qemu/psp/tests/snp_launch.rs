//! SNP guests from their context to their end: 56860 chapter 8.

mod common;

use caisson_proto::addr::Gpa;
use caisson_qemu_psp::rmp::{Entry, Size, State};
use caisson_qemu_psp::snp::{PageType, extend};
use caisson_qemu_psp::{Asid, Command, Status};
use common::snp::*;
use common::*;

const PAGES: u64 = 4 << 20;

fn beginning(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

#[test]
fn the_digest_is_a_chain_over_all_pages() {
    let steps = [
        (PageType::Normal, 0x1000, 0xaa, "83f2b12dec4ffc7a903475c06f60c3a229e45e61ad87e4f7"),
        (PageType::Zero, 0x2000, 0, "3e7fdaa62c970d543a63b5b6ed962f5912be772e5ee66c22"),
        (PageType::Unmeasured, 0x3000, 1, "ab9e348b3f28fe044e818ad3bf96a163e0f0c16e0a4e9df6"),
        (PageType::Secrets, 0x4000, 2, "caad718f41192220f8bb3bc1ac4f2e087887b190ae4f9377"),
        (PageType::Cpuid, 0x5000, 3, "67136a7357d1fd765cef8f7931b074c0b07b446cd749ea7d"),
        (PageType::Vmsa, 0xffff_ffff_f000, 0, "fd87250917c9057240dfc39e82ae073dc624f61161188414"),
    ];
    let mut digest = [0; 48];
    for (page_type, gpa, byte, expected) in steps {
        digest = extend(&digest, page_type, Gpa(gpa), [0; 3], &[byte; 4096]);
        assert_eq!(digest[..24], beginning(expected), "{page_type:?}");
    }
}

#[test]
fn a_guest_goes_from_context_to_running_and_back_to_firmware_pages() {
    let mut rig = Rig::snp();
    let context = rig.context(CONTEXTS);
    assert_eq!(rig.machine.entry(context).state(), State::Context);
    assert_eq!(rig.snp_status(context), (0, 0, 0));
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::Success);
    assert_eq!(rig.snp_status(context), (POLICY, 0, 1));
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(context, 3)).0, Status::Success);
    for (index, page_type) in (1..=6).enumerate() {
        let at = PAGES + index as u64 * 4096;
        assert_eq!(rig.add(context, 3, page_type, at, 0x1000 * index as u64), Status::Success, "type {page_type}");
        let entry = *rig.machine.entry(at);
        assert_eq!((entry.state(), entry.vmsa, entry.permissions), (State::GuestValid, page_type == 2, [15, 0, 0, 0]));
    }
    assert_eq!(rig.machine.private.len(), 6);
    assert_eq!(rig.finish(context), Status::Success);
    assert_eq!(rig.snp_status(context), (POLICY, 3, 2));
    assert_eq!(rig.addressed(Command::SnpDecommission, context), Status::Success);
    assert_eq!(rig.machine.entry(context).state(), State::Firmware);
    assert!(rig.machine.keys.is_empty());
    assert_eq!(rig.addressed(Command::SnpPageReclaim, context), Status::Success);
    assert_eq!(rig.machine.entry(context).state(), State::Reclaim);
    // The ASID is somebody else's only after both flushes.
    let next = rig.context(CONTEXTS + 4096);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(next, POLICY)).0, Status::Success);
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(next, 3)).0, Status::WbinvdRequired);
    rig.machine.wbinvd();
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(next, 3)).0, Status::DfFlushRequired);
    rig.snp_flush();
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(next, 3)).0, Status::Success);
}

#[test]
fn a_context_is_a_firmware_page() {
    let mut rig = Rig::snp();
    let at = CONTEXTS;
    assert_eq!(rig.addressed(Command::SnpGctxCreate, at), Status::InvalidPageState, "the host's");
    for (entry, expected) in [
        (pre_guest(1, 0x1000), Status::InvalidPageState),
        (Entry { immutable: false, ..Entry::firmware(Size::Small) }, Status::InvalidPageState),
        (Entry { vmsa: true, ..Entry::firmware(Size::Small) }, Status::InvalidPageState),
        (Entry::firmware(Size::Large), Status::InvalidPageSize),
    ] {
        *rig.machine.entry(at) = entry;
        assert_eq!(rig.addressed(Command::SnpGctxCreate, at), expected);
        assert_eq!(*rig.machine.entry(at), entry);
    }
    *rig.machine.entry(at) = Entry::firmware(Size::Small);
    for wrong in [at + 16, MEMORY, !0xfff] {
        assert_eq!(rig.addressed(Command::SnpGctxCreate, wrong), Status::InvalidAddress);
    }
    // Beyond what the RMP covers there are no contexts.
    assert_eq!(rig.addressed(Command::SnpGctxCreate, DATA), Status::InvalidPageState);
    assert_eq!(rig.addressed(Command::SnpGctxCreate, at), Status::Success);
    assert_eq!(rig.addressed(Command::SnpGctxCreate, at), Status::InvalidPageState, "a second time");
}

#[test]
fn commands_about_no_context_are_refused() {
    use Command::*;
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    let dead = rig.launching(1, 2);
    assert_eq!(rig.addressed(SnpDecommission, dead), Status::Success);
    *rig.machine.entry(CONTEXTS + 8192) = Entry::firmware(Size::Small);
    // Made to look like one behind the processor's back.
    *rig.machine.entry(CONTEXTS + 0x3000) = Entry { vmsa: true, ..Entry::firmware(Size::Small) };
    let places = [
        (context + 8, Status::InvalidAddress),
        (MEMORY, Status::InvalidAddress),
        (u64::MAX - 0xfff, Status::InvalidAddress),
        (dead, Status::InvalidGuest),
        (CONTEXTS + 8192, Status::InvalidGuest),
        (CONTEXTS + 0x3000, Status::InvalidGuest),
        (0, Status::InvalidGuest),
    ];
    for (at, expected) in places {
        let commands = [
            SnpDecommission,
            SnpActivate,
            SnpGuestStatus,
            SnpLaunchStart,
            SnpLaunchUpdate,
            SnpLaunchFinish,
            SnpGuestRequest,
        ];
        for command in commands {
            let mut buffer = vec![0; command.length()];
            buffer[..8].copy_from_slice(&at.to_le_bytes());
            if command == SnpLaunchUpdate {
                buffer[8] = 2;
            }
            assert_eq!(rig.run(command, &buffer).0, expected, "{command:?} at {at:#x}");
        }
    }
    assert_eq!(rig.snp_status(context), (POLICY, 1, 1));
}

#[test]
fn launch_start_checks_policy_and_flags() {
    let mut rig = Rig::snp();
    let context = rig.context(CONTEXTS);
    for policy in [0, 1 << 16, POLICY | 1 << 26, POLICY | 1 << 63, POLICY | 58 | 1 << 8, POLICY | 2 << 8] {
        let status = rig.run(Command::SnpLaunchStart, &snp_start(context, policy)).0;
        assert_eq!(status, Status::PolicyFailure, "{policy:#x}");
    }
    for (flags, expected) in [(1, Status::Unsupported), (2, Status::Unsupported), (4, Status::InvalidParam)] {
        let mut buffer = snp_start(context, POLICY);
        buffer[24] = flags;
        assert_eq!(rig.run(Command::SnpLaunchStart, &buffer).0, expected);
    }
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(context, 1)).0, Status::InvalidGuestState);
    assert_eq!(rig.finish(context), Status::InvalidGuestState);
    assert_eq!(rig.snp_status(context), (0, 0, 0));
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, POLICY | 57 | 1 << 8)).0, Status::Success);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::InvalidGuestState);

    let mut threads = caisson_qemu_psp::Config::emulated(4, 1);
    threads.smt = true;
    let mut rig = Rig::with(threads);
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::Success);
    let context = rig.context(CONTEXTS);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, 1 << 17)).0, Status::PolicyFailure);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::Success);
}

#[test]
fn activation_keeps_to_its_asids() {
    let mut rig = Rig::snp();
    let one = rig.launching(0, 1);
    let two = rig.context(CONTEXTS + 4096);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(two, POLICY)).0, Status::Success);
    for (asid, expected) in [
        (0, Status::InvalidAsid),
        (5, Status::InvalidAsid),
        (8, Status::InvalidAsid),
        (0x1_0002, Status::InvalidAsid),
        (1, Status::AsidOwned),
    ] {
        assert_eq!(rig.run(Command::SnpActivate, &snp_activate(two, asid)).0, expected);
    }
    assert_eq!(rig.run(Command::SnpActivate, &snp_activate(one, 2)).0, Status::Active);

    let ex = |length: u32, asid: u32, count: u32, at: u64| {
        pack(&[&words(&[length, 0]), &two.to_le_bytes(), &words(&[asid, count]), &at.to_le_bytes()])
    };
    rig.machine.put(DATA, &words(&[0, 3, 4]));
    for (buffer, expected) in [
        (ex(31, 2, 2, DATA), Status::InvalidLength),
        (ex(32, 2, 0, DATA), Status::InvalidParam),
        (ex(32, 2, 5, DATA), Status::InvalidParam),
        (ex(32, 2, 3, DATA), Status::InvalidParam),
        (ex(32, 2, 2, MEMORY - 4), Status::InvalidAddress),
        (ex(32, 1, 2, DATA), Status::AsidOwned),
        (ex(32, 2, 2, DATA), Status::Success),
    ] {
        assert_eq!(rig.run(Command::SnpActivateEx, &buffer).0, expected);
    }
    assert_eq!(rig.snp_status(two), (POLICY, 2, 1));
}

#[test]
fn a_page_must_have_been_given_to_this_guest() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    let at = PAGES;
    let flags = 1 << 1;
    for (entry, expected) in [
        (Entry::default(), Status::InvalidPageState),
        (Entry::firmware(Size::Small), Status::InvalidPageState),
        (Entry { immutable: false, ..pre_guest(1, 0) }, Status::InvalidPageState),
        (Entry { validated: true, ..pre_guest(1, 0) }, Status::InvalidPageState),
        (pre_guest(2, 0), Status::InvalidPageOwner),
        (Entry::pre_guest(Asid(1), Gpa(0), Size::Large), Status::InvalidPageSize),
    ] {
        *rig.machine.entry(at) = entry;
        assert_eq!(rig.run(Command::SnpLaunchUpdate, &snp_update(context, flags, at)).0, expected);
        assert_eq!(*rig.machine.entry(at), entry);
    }
    *rig.machine.entry(at) = pre_guest(1, 0);
    for (flags, wrong, expected) in [
        (0, at, Status::InvalidParam),
        (7 << 1, at, Status::InvalidParam),
        (1 << 1 | 1 << 4, at, Status::InvalidParam),
        (1 << 1 | 1 << 5, at, Status::InvalidParam),
        (2 << 1 | 1, at, Status::InvalidParam),
        (5 << 1 | 1, at, Status::InvalidParam),
        (1 << 1 | 1, at + 4096, Status::InvalidAddress),
        (1 << 1, at + 1, Status::InvalidAddress),
        (1 << 1, MEMORY, Status::InvalidAddress),
        (1 << 1, DATA, Status::InvalidPageState),
        (1 << 1 | 1, at, Status::InvalidPageSize),
    ] {
        assert_eq!(rig.run(Command::SnpLaunchUpdate, &snp_update(context, flags, wrong)).0, expected, "{flags:#x}");
    }
    for reserved in [12, 24, 25, 28, 31] {
        let mut buffer = snp_update(context, flags, at);
        buffer[reserved] = 0x10;
        assert_eq!(rig.run(Command::SnpLaunchUpdate, &buffer).0, Status::InvalidParam, "byte {reserved}");
    }
    assert!(rig.machine.private.is_empty());
    assert_eq!(rig.finish(context), Status::Success);
    assert_eq!(rig.run(Command::SnpLaunchUpdate, &snp_update(context, flags, at)).0, Status::InvalidGuestState);
}

#[test]
fn a_guest_without_an_asid_gets_no_pages() {
    let mut rig = Rig::snp();
    let context = rig.context(CONTEXTS);
    assert_eq!(rig.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::Success);
    assert_eq!(rig.add(context, 1, 1, PAGES, 0), Status::Inactive);
}

#[test]
fn permissions_of_other_vmpls_are_set_as_asked() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    *rig.machine.entry(PAGES) = pre_guest(1, 0);
    let mut buffer = snp_update(context, 1 << 1, PAGES);
    buffer[25..28].copy_from_slice(&[7, 3, 1]);
    assert_eq!(rig.run(Command::SnpLaunchUpdate, &buffer).0, Status::Success);
    assert_eq!(rig.machine.entry(PAGES).permissions, [15, 7, 3, 1]);
}

#[test]
fn a_large_page_is_measured_as_its_small_ones() {
    let mut rig = Rig::snp();
    let (large, small) = (rig.launching(0, 1), rig.launching(1, 2));
    let content: Vec<u8> = (0..2 << 20).map(|byte: u32| (byte >> 12) as u8).collect();
    rig.machine.put(PAGES, &content);
    *rig.machine.entry(PAGES) = Entry::pre_guest(Asid(1), Gpa(0x20_0000), Size::Large);
    assert_eq!(rig.run(Command::SnpLaunchUpdate, &snp_update(large, 1 << 1 | 1, PAGES)).0, Status::Success);
    assert_eq!(rig.machine.entry(PAGES).state(), State::GuestValid);
    for index in 0..512 {
        let at = PAGES + (2 << 20) + index * 4096;
        rig.machine.put(at, &content[index as usize * 4096..][..4096]);
        assert_eq!(rig.add(small, 2, 1, at, 0x20_0000 + index * 4096), Status::Success);
    }
    let digests: Vec<_> = [large, small].into_iter().map(|context| rig.digest(context)).collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_secrets_page_is_the_processors_and_zero_pages_are_zero() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    rig.machine.put(PAGES, &[0xee; 8192]);
    assert_eq!(rig.add(context, 1, 5, PAGES, 0x1000), Status::Success);
    assert_eq!(rig.add(context, 1, 3, PAGES + 4096, 0x2000), Status::Success);
    let page = rig.machine.get(PAGES, 4096);
    assert_eq!((word(page, 0), word(page, 4), word(page, 8)), (3, 0, 0x00a1_0f11));
    let keys: Vec<_> = page[32..160].chunks(32).collect();
    assert!(keys.iter().all(|key| **key != [0; 32] && **key != [0xee; 32]) && keys[0] != keys[1]);
    assert_eq!(page[160..], [0; 4096 - 160]);
    assert_eq!(rig.machine.get(PAGES + 4096, 4096), [0; 4096]);
}

#[test]
fn a_cpuid_page_is_checked_for_its_form() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    for (at, byte) in [(0, 65), (1, 1), (4, 1), (15, 1), (16 + 40, 1), (16 + 48 + 47, 1)] {
        let mut page = [0; 4096];
        page[0] = 2;
        page[at] = byte;
        rig.machine.put(PAGES, &page);
        assert_eq!(rig.add(context, 1, 6, PAGES, 0x1000), Status::InvalidParam, "byte {at}");
        assert_eq!(rig.machine.entry(PAGES).state(), State::PreGuest);
    }
    rig.machine.put(PAGES, &[&[64][..], &[0; 4095]].concat());
    assert_eq!(rig.add(context, 1, 6, PAGES, 0x1000), Status::Success);
}
