//! SNP's platform commands and pages that go back to the host.

mod common;

use caisson_proto::addr::Spa;
use caisson_qemu_psp::rmp::{Entry, Size, State};
use caisson_qemu_psp::{Command, Status};
use common::snp::*;
use common::*;

fn platform(rig: &mut Rig) -> Vec<u8> {
    assert_eq!(rig.addressed(Command::SnpPlatformStatus, DATA), Status::Success);
    rig.machine.get(DATA, 32).to_vec()
}

fn shutdown(rig: &mut Rig) -> Status {
    rig.run(Command::SnpShutdownEx, &words(&[8, 3])).0
}

#[test]
fn init_needs_every_cpu_prepared_and_an_initialised_table() {
    let mut rig = Rig::new();
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(0)).0, Status::RmpInitRequired);
    rig.machine.cpus[3].host_save = Spa(0x1000);
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::InvalidConfig);
    rig.machine.cpus[3] = Default::default();
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::InvalidConfig);
    rig.machine.cpus[3].snp_enabled = true;
    for at in [0, 4, 16, 63] {
        let mut buffer = snp_init(1);
        buffer[at] |= 0x80;
        assert_eq!(rig.run(Command::SnpInitEx, &buffer).0, Status::InvalidParam, "byte {at}");
    }
    assert_eq!(platform(&mut rig)[2..4], [0, 0]);
    rig.machine.rmp.fill(Entry::firmware(Size::Small));
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::Success);
    assert_eq!(platform(&mut rig)[2..4], [1, 1]);
    assert!(rig.machine.rmp.iter().all(|entry| entry.state() == State::Hypervisor));
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::InvalidPlatformState);
}

#[test]
fn init_reads_the_list_of_ranges() {
    let list = |count: u32, base: u64| pack(&[&words(&[count, 0]), &base.to_le_bytes(), &words(&[1, 0])]);
    let buffer = |at: u64| pack(&[&words(&[3, 0]), &at.to_le_bytes(), &[0; 48]]);
    let mut rig = Rig::new();
    for (count, base, at, expected) in [
        (256, 0, DATA, Status::InvalidParam),
        (1, 0x10, DATA, Status::InvalidAddress),
        (1, 0, DATA + 4, Status::InvalidAddress),
        (1, 0, MEMORY, Status::InvalidAddress),
    ] {
        rig.machine.put(DATA, &list(count, base));
        assert_eq!(rig.run(Command::SnpInitEx, &buffer(at)).0, expected);
    }
    rig.machine.put(MEMORY - 8, &words(&[1, 0]));
    assert_eq!(rig.run(Command::SnpInitEx, &buffer(MEMORY - 8)).0, Status::InvalidAddress);
    rig.machine.put(DATA, &list(1, 0x1000));
    assert_eq!(rig.run(Command::SnpInitEx, &buffer(DATA)).0, Status::Success);
}

#[test]
fn without_init_there_is_no_snp() {
    use Command::*;
    let mut rig = Rig::initialised();
    for command in [
        SnpDfFlush,
        SnpShutdownEx,
        SnpDecommission,
        SnpActivate,
        SnpGuestStatus,
        SnpGctxCreate,
        SnpGuestRequest,
        SnpActivateEx,
        SnpLaunchStart,
        SnpLaunchUpdate,
        SnpLaunchFinish,
        SnpPageReclaim,
        SnpConfig,
    ] {
        assert_eq!(rig.run(command, &vec![0; command.length()]).0, Status::InvalidPlatformState, "{command:?}");
    }
    assert_eq!(rig.run(SnpInitEx, &snp_init(1)).0, Status::InvalidPlatformState, "SEV came first");
}

#[test]
fn shutdown_wants_asids_flushed_and_ends_guests() {
    let mut rig = Rig::snp();
    let context = rig.launching(0, 1);
    assert_eq!(rig.run(Command::SnpShutdownEx, &words(&[7, 0])).0, Status::InvalidLength);
    assert_eq!(rig.run(Command::SnpShutdownEx, &words(&[8, 4])).0, Status::InvalidParam);
    let gone = rig.launching(1, 2);
    assert_eq!(rig.addressed(Command::SnpDecommission, gone), Status::Success);
    assert_eq!(shutdown(&mut rig), Status::DfFlushRequired);
    rig.snp_flush();
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    assert_eq!(shutdown(&mut rig), Status::InvalidPlatformState, "SEV goes first");
    assert_eq!(rig.run(Command::Shutdown, &[]).0, Status::Success);
    assert_eq!(shutdown(&mut rig), Status::Success);
    assert!(rig.machine.keys.is_empty());
    assert_eq!(rig.machine.entry(context).state(), State::Firmware);
    // The table is initialised still.
    assert_eq!(rig.run(Command::SnpInitEx, &snp_init(0)).0, Status::Success);
    assert_eq!(
        rig.run(Command::SnpGuestStatus, &pack(&[&context.to_le_bytes(), &DATA.to_le_bytes()])).0,
        Status::InvalidGuest
    );
}

#[test]
fn sev_guests_and_snp_guests_share_asids_and_flushes() {
    let mut rig = Rig::snp();
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    let context = rig.launching(0, 1);
    let handle = rig.guest(0, 5);
    assert_eq!(rig.simple(Command::Deactivate, handle), Status::Success);
    assert_eq!(rig.addressed(Command::SnpDecommission, context), Status::Success);
    assert_eq!(rig.run(Command::SnpDfFlush, &[]).0, Status::WbinvdRequired);
    rig.snp_flush();
    assert_eq!(rig.run(Command::Activate, &words(&[handle, 5])).0, Status::Success);
    rig.launching(1, 1);
}

#[test]
fn with_snp_the_processor_writes_only_to_its_own_pages() {
    let mut rig = Rig::snp();
    let page = 2u64 << 20;
    for command in [Command::SnpPlatformStatus, Command::GetId, Command::PlatformStatus] {
        let answer = |rig: &mut Rig| match command {
            Command::SnpPlatformStatus => rig.addressed(command, page),
            Command::GetId => rig.run(command, &pack(&[&page.to_le_bytes(), &words(&[128])])).0,
            // The command buffer itself is what is written.
            _ => rig.ring(command as u16, page),
        };
        *rig.machine.entry(page) = Entry::default();
        assert_eq!(answer(&mut rig), Status::InvalidPageState, "{command:?}: the host's");
        *rig.machine.entry(page) = pre_guest(1, 0);
        assert_eq!(answer(&mut rig), Status::InvalidPageState, "{command:?}: a guest's");
        *rig.machine.entry(page) = Entry::firmware(Size::Small);
        assert_eq!(answer(&mut rig), Status::Success, "{command:?}");
    }
    // An answer over the end of its page.
    assert_eq!(rig.addressed(Command::SnpPlatformStatus, page + 4080), Status::InvalidPageState);
    // A guest of SEV has no page that is another guest's.
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    let handle = rig.guest(0, 5);
    assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, page, 4096)).0, Status::InvalidPageState);
    assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, page - 4096, 8192)).0, Status::InvalidPageState);
    assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, page - 4096, 4096)).0, Status::Success);
}

#[test]
fn a_page_in_an_assigned_one_of_2_mib_is_what_that_is() {
    let mut rig = Rig::snp();
    let (large, within) = (2u64 << 20, (2 << 20) + 0x3000);
    assert_eq!(rig.run(Command::Init, &init(0, 0, 0)).0, Status::Success);
    let handle = rig.guest(0, 5);
    let fill = |rig: &mut Rig, at| rig.run(Command::LaunchUpdateData, &update(handle, at, 4096)).0;
    *rig.machine.entry(large) = Entry { size: Size::Large, ..pre_guest(1, 0) };
    assert_eq!(fill(&mut rig, within), Status::InvalidPageState, "another guest's");
    assert_eq!(fill(&mut rig, large + (2 << 20)), Status::Success, "behind it");
    assert_eq!(rig.addressed(Command::SnpPlatformStatus, within), Status::InvalidPageState);
    *rig.machine.entry(large) = Entry::firmware(Size::Large);
    assert_eq!(fill(&mut rig, within), Status::InvalidPageState, "the processor's");
    assert_eq!(rig.addressed(Command::SnpPlatformStatus, within), Status::Success);
    assert_eq!(rig.addressed(Command::SnpGctxCreate, within), Status::InvalidPageSize, "a context has 4 KiB");
    // The size of what nobody has says nothing.
    *rig.machine.entry(large) = Entry { size: Size::Large, ..Entry::default() };
    assert_eq!(fill(&mut rig, within), Status::Success);
}

#[test]
fn pages_go_back_from_the_states_that_allow_it() {
    let mut rig = Rig::snp();
    let at = 2u64 << 20;
    let guest = Entry { immutable: false, ..pre_guest(1, 0x1000) };
    for (entry, after) in [
        (Entry::firmware(Size::Small), Ok(State::Reclaim)),
        (pre_guest(1, 0x1000), Ok(State::GuestInvalid)),
        (Entry { validated: true, ..pre_guest(1, 0x1000) }, Ok(State::GuestValid)),
        (Entry::default(), Err(Status::InvalidPageState)),
        (Entry { immutable: false, ..Entry::firmware(Size::Small) }, Err(Status::InvalidPageState)),
        (Entry { vmsa: true, ..Entry::firmware(Size::Small) }, Err(Status::InvalidPageState)),
        (guest, Err(Status::InvalidPageState)),
        (Entry { validated: true, ..guest }, Err(Status::InvalidPageState)),
        (Entry::firmware(Size::Large), Err(Status::InvalidPageSize)),
    ] {
        *rig.machine.entry(at) = entry;
        let status = rig.addressed(Command::SnpPageReclaim, at);
        match after {
            Ok(state) => assert_eq!((status, rig.machine.entry(at).state()), (Status::Success, state)),
            Err(refused) => assert_eq!((status, *rig.machine.entry(at)), (refused, entry)),
        }
    }
    assert_eq!(rig.addressed(Command::SnpPageReclaim, at | 1), Status::Success);
    for wrong in [at + 2, at + 4097, MEMORY, MEMORY | 1, !1] {
        assert_eq!(rig.addressed(Command::SnpPageReclaim, wrong), Status::InvalidAddress, "{wrong:#x}");
    }
    assert_eq!(rig.addressed(Command::SnpPageReclaim, DATA), Status::InvalidPageState, "beyond the table");
}

#[test]
fn config_and_commit() {
    let mut rig = Rig::snp();
    let config = |tcb: [u8; 8], flags: u32| pack(&[&tcb, &words(&[flags]), &[0; 52]]);
    for (tcb, flags) in [
        ([2, 0, 0, 0, 0, 0, 1, 1], 0),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0),
        ([0, 0, 1, 0, 0, 0, 0, 0], 0),
        ([0, 0, 0, 0, 0, 0, 2, 0], 0),
        ([0, 0, 0, 0, 0, 0, 0, 2], 0),
        ([0; 8], 2),
    ] {
        assert_eq!(rig.run(Command::SnpConfig, &config(tcb, flags)).0, Status::InvalidParam);
    }
    let mut reserved = config([0; 8], 0);
    reserved[63] = 1;
    assert_eq!(rig.run(Command::SnpConfig, &reserved).0, Status::InvalidParam);
    let before = platform(&mut rig);
    assert_eq!((&before[16..24], &before[24..32]), (&[1, 0, 0, 0, 0, 0, 1, 1][..], &[1, 0, 0, 0, 0, 0, 1, 1][..]));
    assert_eq!(rig.run(Command::SnpConfig, &config([1, 0, 0, 0, 0, 0, 0, 1], 1)).0, Status::Success);
    let after = platform(&mut rig);
    assert_eq!((&after[24..32], word(&after, 8), word(&after, 12)), (&[1, 0, 0, 0, 0, 0, 0, 1][..], 1, 0));
    assert_eq!(rig.run(Command::SnpCommit, &words(&[3])).0, Status::InvalidLength);
    assert_eq!(rig.run(Command::SnpCommit, &words(&[4])).0, Status::Success);
}
