//! SNP guests from launch to end.

use caisson_proto::abi::Status;
use caisson_proto::addr::Gfn;
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, VmKind};
use caisson_proto::mailbox;
use caisson_qemu_psp::Status as Told;
use caisson_qemu_psp::rmp::State;
use caisson_qemu_psp::snp::{PageType, extend};
use caisson_sev_firmware::Note;

use crate::kernel::{CONTEXTS, Event, Fault};
use crate::psp::snp::Talker;
use crate::psp::{Rig, word};
use crate::world::*;

fn commands(world: &mut World) -> Vec<u16> {
    let command = |event| if let Event::Command(number, _) = event { Some(number) } else { None };
    world.events().into_iter().filter_map(command).collect()
}

fn update(vm: caisson_proto::addr::VmId, gfn: u64, pages: u64, page_type: SnpPageType) -> SnpLaunchUpdate {
    SnpLaunchUpdate { vm, gfn: Gfn(gfn), pages, page_type, permissions: 0 }
}

fn finish(vm: caisson_proto::addr::VmId) -> SnpLaunchFinish {
    SnpLaunchFinish { vm, flags: SnpFinish::empty(), host_0: u64::MAX, host_1: 0, host_2: 0, host_3: 7 }
}

/// A guest in its launch, its 16 pages private.
fn launching(world: &mut World, slot: u16) -> caisson_proto::addr::VmId {
    let (vm, report) = world.launch(slot, VmKind::SevSnp);
    assert_eq!(report.status, Status::Ok, "{report:?}");
    let region = RegisterRegion { vm, gfn: Gfn(0), pages: 16, known: false };
    assert_eq!(world.ok(vmm(slot), &region).status, Status::Ok);
    vm
}

#[test]
fn a_launched_guest_talks_to_the_processor() {
    let mut world = World::snp();
    let (vm, report) = world.launch(0, VmKind::SevSnp);
    assert_eq!(report.status, Status::Ok);
    let order = [mailbox::SNP_GCTX_CREATE, mailbox::SNP_LAUNCH_START, mailbox::SNP_ACTIVATE];
    assert_eq!(commands(&mut world), order);
    let pages = world.fake.vm_mut(vm).unwrap().pages.clone();
    world.fake.board.put(pages[&0].at, &[0xaa; 4096]);
    let region = RegisterRegion { vm, gfn: Gfn(0), pages: 16, known: false };
    assert_eq!(world.ok(vmm(0), &region).status, Status::Ok);
    for (gfn, count, page_type) in [
        (0, 1, SnpPageType::Normal),
        (1, 2, SnpPageType::Zero),
        (3, 1, SnpPageType::Secrets),
        (4, 1, SnpPageType::Cpuid),
    ] {
        let report = world.ok(vmm(0), &update(vm, gfn, count, page_type));
        assert_eq!((report.status, report.done), (Status::Ok, count << 12), "{page_type:?}");
    }
    let permitted = SnpLaunchUpdate { permissions: 0x03_0201, ..update(vm, 5, 1, SnpPageType::Unmeasured) };
    assert_eq!(world.ok(vmm(0), &permitted).status, Status::Ok);
    assert_eq!(world.fake.board.entry(pages[&5].at).permissions, [0xf, 1, 2, 3]);
    assert_eq!(world.ok(vmm(0), &finish(vm)).status, Status::Ok);

    // The guest asks for a report: it has found its keys in its secrets page.
    let rig = Rig::new();
    let mut talker = Talker::new(&rig, CONTEXTS, 0);
    let secrets = world.fake.board.get(pages[&3].at, 4096);
    talker.keys = std::array::from_fn(|index| secrets[32 + index * 32..][..32].try_into().unwrap());
    let payload = [&[0x5a; 64][..], &[0; 32]].concat();
    let message = talker.sealed(5, &payload);
    let (report, answer) = world.job(vmm(0), &SnpGuestRequest { vm }, &[&message]).unwrap();
    assert_eq!((report.status, answer.len()), (Status::Ok, 4096));
    let mut page: [u8; 4096] = answer.try_into().unwrap();
    let message = caisson_qemu_psp::snp::Message::parse(&page).unwrap();
    assert_eq!((message.kind, message.sequence), (6, 2));
    assert!(message.open(&talker.keys[0], &mut page));
    let body = &page[0x60 + 0x20..];
    assert_eq!((body[0x50], body[0xc0], body[0xd8]), (0x5a, 0xff, 7), "the guest's data, the host's data");
    let mut digest = [0; 48];
    for (gfn, page_type, content) in [
        (0, PageType::Normal, &[0xaa; 4096]),
        (1, PageType::Zero, &[0; 4096]),
        (2, PageType::Zero, &[0; 4096]),
        (3, PageType::Secrets, &[0; 4096]),
        (4, PageType::Cpuid, &[0; 4096]),
    ] {
        digest = extend(&digest, page_type, caisson_proto::addr::Gpa(gfn << 12), [0; 3], content);
    }
    digest = extend(&digest, PageType::Unmeasured, caisson_proto::addr::Gpa(5 << 12), [1, 2, 3], &[0; 4096]);
    assert_eq!(body[0x90..0xc0], digest);
    // The same message once more, and one that is none.
    let again = talker.sealed(5, &payload);
    let (report, _) = world.job(vmm(0), &SnpGuestRequest { vm }, &[&again]).unwrap();
    assert_eq!((report.status, report.firmware), (Status::Range, Told::InvalidParam as u16));
    assert_eq!(world.send(vmm(0), &SnpGuestRequest { vm }, &[]), Err(Status::BadLease));
}

#[test]
fn its_states_are_asked_for() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    assert_eq!(world.ok(vmm(0), &update(vm, 0, 1, SnpPageType::Normal)).status, Status::Ok);
    let (_, status) = world.job(vmm(0), &GuestStatus { vm }, &[]).unwrap();
    assert_eq!((status.len(), word(&status, 8), status[12]), (32, 1, 1));
    world.fake.log.clear();
    let request = world.job(vmm(0), &SnpGuestRequest { vm }, &[&[0; 4096]]).unwrap().0;
    assert_eq!((request.status, request.cause), (Status::State, Cause::Service));
    assert_eq!(world.ok(vmm(0), &snp_start(vm)).cause, Cause::Service);
    assert_eq!(world.events(), []);
    assert_eq!(world.ok(vmm(0), &finish(vm)).status, Status::Ok);
    for report in [world.ok(vmm(0), &finish(vm)), world.ok(vmm(0), &update(vm, 1, 1, SnpPageType::Zero))] {
        assert_eq!((report.status, report.cause), (Status::State, Cause::Service));
    }
    assert_eq!(world.job(vmm(0), &GuestStatus { vm }, &[]).unwrap().1[12], 2);
}

#[test]
fn an_id_block_for_another_launch_is_refused() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    let request = SnpLaunchFinish { flags: SnpFinish::ID_BLOCK, ..finish(vm) };
    let mut block = [0; 96];
    block[80] = 1;
    let mut auth = [0; 4096];
    auth[0] = 1;
    block[0] = 1;
    let (report, _) = world.job(vmm(0), &request, &[&block, &auth]).unwrap();
    assert_eq!((report.status, report.firmware), (Status::Denied, Told::BadMeasurement as u16));
    assert_eq!(world.send(vmm(0), &request, &[&block]), Err(Status::BadLease));
    // The guest is still being launched. Without a block, nothing of that one is there any more.
    assert_eq!(world.ok(vmm(0), &finish(vm)).status, Status::Ok);
}

#[test]
fn an_end_gives_the_context_back_and_the_asid_is_recycled() {
    let mut world = World::snp();
    let vms: Vec<_> = (0..4).map(|slot| launching(&mut world, slot)).collect();
    world.fake.log.clear();
    let context = world.fake.row(1).handle;
    world.bury(vms[0]);
    assert_eq!(commands(&mut world), [mailbox::SNP_DECOMMISSION, mailbox::SNP_PAGE_RECLAIM]);
    assert_eq!((world.state(1), world.fake.row(1).handle), (AsidState::Dirty, 0));
    assert_eq!(world.fake.board.entry(context).state(), State::Hypervisor);
    let (vm, report) = world.launch(4, VmKind::SevSnp);
    assert_eq!((report.status, world.fake.asid_of(vm)), (Status::Ok, Some(1)));
    assert_eq!(world.events()[..2], [Event::Wbinvd, Event::Command(mailbox::SNP_DF_FLUSH, 0)]);
    world.check_quiet();
}

#[test]
fn a_context_that_isnt_forgotten_takes_its_asid_along() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    world.fake.fault(mailbox::SNP_DECOMMISSION, Fault::Fails(Told::InvalidGuest as u16));
    world.fake.log.clear();
    let report = world.bury(vm);
    assert_eq!((report.status, report.cause), (Status::NotFound, Cause::Processor));
    assert_eq!(commands(&mut world), [mailbox::SNP_DECOMMISSION], "a context isn't reclaimed");
    assert_eq!((world.state(1), world.platform().leaked_asids), (AsidState::Active, 1));
    let (next, _) = world.launch(1, VmKind::SevSnp);
    assert_eq!(world.fake.asid_of(next), Some(2));
    world.check_quiet();
}

#[test]
fn a_page_that_isnt_given_back_is_lost_and_counted_and_its_asid_isnt() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    world.fake.fault(mailbox::SNP_PAGE_RECLAIM, Fault::Fails(Told::InvalidPageState as u16));
    let report = world.bury(vm);
    assert_eq!((report.status, report.command), (Status::State, mailbox::SNP_PAGE_RECLAIM));
    let platform = world.platform();
    assert_eq!((platform.leaked_asids, platform.leaked_pages), (0, 1));
    assert!(world.fake.notes.contains(&Note::LeakedPage));
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
    assert_eq!(world.fake.leaked_pages, 1);
    let (next, _) = world.launch(1, VmKind::SevSnp);
    assert_eq!(world.fake.asid_of(next), Some(1));
}

#[test]
fn a_launch_that_fails_half_way_gives_its_context_back() {
    for command in [mailbox::SNP_GCTX_CREATE, mailbox::SNP_LAUNCH_START, mailbox::SNP_ACTIVATE] {
        let mut world = World::snp();
        let vm = world.fake.vm(0, vmm(0), VmKind::SevSnp, 1);
        world.fake.fault(command, Fault::Fails(Told::ResourceLimit as u16));
        let report = world.start(vm, VmKind::SevSnp);
        assert_eq!((report.status, report.command), (Status::Exhausted, command));
        assert_eq!((world.state(1), world.fake.row(1).handle), (AsidState::Bound, 0));
        assert!(
            world.fake.board.rmp[CONTEXTS as usize / 4096..].iter().all(|entry| entry.state() == State::Hypervisor)
        );
        world.check_quiet();
        assert_eq!(world.start(vm, VmKind::SevSnp).status, Status::Ok);
        assert_eq!(world.fake.asid_of(vm), Some(1));
    }
}

#[test]
fn a_context_that_isnt_forgotten_at_a_failed_launch_isnt_reclaimed() {
    let mut world = World::snp();
    world.fake.fault(mailbox::SNP_ACTIVATE, Fault::Fails(Told::ResourceLimit as u16));
    world.fake.fault(mailbox::SNP_DECOMMISSION, Fault::Fails(Told::HardwareErrorPlatform as u16));
    let (_, report) = world.launch(0, VmKind::SevSnp);
    // The first failure is what is told.
    assert_eq!((report.status, report.command), (Status::Exhausted, mailbox::SNP_ACTIVATE));
    assert_eq!(commands(&mut world).last(), Some(&mailbox::SNP_DECOMMISSION));
    let platform = world.platform();
    assert_eq!((platform.leaked_asids, platform.leaked_pages), (1, 0));
}

#[test]
fn a_bad_policy_is_the_processors_to_refuse() {
    let mut world = World::snp();
    let vm = world.fake.vm(0, vmm(0), VmKind::SevSnp, 1);
    for policy in [0, 0xffff_0000, SNP_POLICY | 0xff00] {
        let report = world.ok(vmm(0), &SnpLaunchStart { policy, ..snp_start(vm) });
        assert_eq!((report.status, report.firmware), (Status::Denied, Told::PolicyFailure as u16));
    }
    world.check_quiet();
    assert_eq!(world.start(vm, VmKind::SevSnp).status, Status::Ok);
}

#[test]
fn a_page_that_isnt_measured_says_how_far_it_came() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    // Page 2 has a CPUID table with too many functions.
    let at = world.fake.vm_mut(vm).unwrap().pages[&2].at;
    world.fake.board.put(at, &[0xff; 8]);
    let report = world.ok(vmm(0), &update(vm, 0, 4, SnpPageType::Cpuid));
    assert_eq!((report.status, report.done), (Status::Range, 2 << 12));
    let told = commands(&mut world);
    assert_eq!(told[told.len() - 2..], [mailbox::SNP_LAUNCH_UPDATE, mailbox::SNP_PAGE_RECLAIM]);
    assert_eq!(world.fake.board.entry(at).state(), State::GuestInvalid, "the processor has let go of it");
    world.fake.board.put(at, &[0; 8]);
    assert_eq!(world.ok(vmm(0), &update(vm, 2, 1, SnpPageType::Cpuid)).status, Status::Ok);
}

#[test]
fn a_guests_page_that_isnt_given_back_is_counted() {
    let mut world = World::snp();
    let vm = launching(&mut world, 0);
    world.fake.fault(mailbox::SNP_LAUNCH_UPDATE, Fault::Fails(Told::HardwareErrorPlatform as u16));
    world.fake.fault(mailbox::SNP_PAGE_RECLAIM, Fault::Fails(Told::HardwareErrorPlatform as u16));
    let report = world.ok(vmm(0), &update(vm, 0, 1, SnpPageType::Normal));
    assert_eq!(report.command, mailbox::SNP_LAUNCH_UPDATE, "the first failure is told");
    assert_eq!((world.platform().leaked_pages, world.fake.lent), (1, 0));
    // The next page is another matter.
    assert_eq!(world.ok(vmm(0), &update(vm, 1, 1, SnpPageType::Normal)).status, Status::Ok);
}

/// What the processor writes is its own meanwhile.
#[test]
fn the_mailboxes_pages_come_back_after_each_command() {
    let mut world = World::snp();
    let status = PlatformRead { fact: PlatformFact::SnpStatus };
    for (reclaims, faults) in [(2, &[][..]), (3, &[0x22][..]), (4, &[0x22, 0x22][..]), (3, &[0][..])] {
        let faults = faults.iter().map(|status| Fault::Fails(*status));
        world.fake.faults.entry(mailbox::SNP_PAGE_RECLAIM).or_default().extend(faults);
        world.fake.log.clear();
        let (report, bytes) = world.job(vmm(0), &status, &[]).unwrap();
        assert_eq!((report.status, bytes.len(), world.fake.lent), (Status::Ok, 32, 0));
        let mut expected = vec![mailbox::SNP_PAGE_RECLAIM; 1 + reclaims];
        expected[0] = mailbox::SNP_PLATFORM_STATUS;
        assert_eq!(commands(&mut world), expected);
    }
    // One that was denied, and done.
    world.fake.fault(mailbox::SNP_PAGE_RECLAIM, Fault::Lies(0x22));
    assert_eq!(world.job(vmm(0), &status, &[]).unwrap().0.status, Status::Ok);
    assert_eq!(world.fake.lent, 0);
}

#[test]
fn a_processor_that_keeps_the_mailbox_is_asked_again_at_the_next_job() {
    let mut world = World::snp();
    let faults = vec![Fault::Fails(0); 18];
    world.fake.faults.insert(mailbox::SNP_PAGE_RECLAIM, faults.into());
    let status = PlatformRead { fact: PlatformFact::SnpStatus };
    assert_eq!(world.job(vmm(0), &status, &[]).unwrap().0.status, Status::Ok, "it was answered");
    assert_eq!(world.fake.lent, 2);
    world.fake.faults.entry(mailbox::SNP_PAGE_RECLAIM).or_default().extend(vec![Fault::Fails(0); 18]);
    let report = world.job(vmm(0), &status, &[]).unwrap().0;
    assert_eq!((report.status, report.cause), (Status::State, Cause::Kernel));
    assert_eq!(world.job(vmm(0), &status, &[]).unwrap().0.status, Status::Ok);
    assert_eq!(world.fake.lent, 0);
    // A successor asks, too.
    world.fake.faults.insert(mailbox::SNP_PAGE_RECLAIM, vec![Fault::Fails(0); 18].into());
    assert_eq!(world.job(vmm(0), &status, &[]).unwrap().0.status, Status::Ok);
    assert_eq!(world.fake.lent, 2);
    world.restart();
    world.pump();
    assert_eq!((world.fake.lent, world.platform().life, world.platform().snp), (0, Life::Ready, true));
}

#[test]
fn sev_and_snp_share_a_flush() {
    let mut world = World::snp();
    let sev: Vec<_> = (0..4).map(|slot| world.run_guest(slot, VmKind::Sev)).collect();
    let snp = world.run_guest(4, VmKind::SevSnp);
    world.bury(snp);
    world.bury(sev[1]);
    world.fake.log.clear();
    let (vm, report) = world.launch(5, VmKind::Sev);
    assert_eq!((report.status, world.fake.asid_of(vm), world.state(1)), (Status::Ok, Some(6), AsidState::Free));
    assert_eq!(world.events()[..2], [Event::Wbinvd, Event::Command(mailbox::SNP_DF_FLUSH, 0)]);
    world.check_quiet();
}

#[test]
fn a_mailbox_of_which_some_pages_were_lent_comes_back() {
    let mut world = World::snp();
    let read = PlatformRead { fact: PlatformFact::ChipId };
    // RMPUPDATE refused the third page: two are the processor's, and nothing was rung.
    world.fake.lend_mailbox(2);
    let (report, _) = world.job(vmm(0), &read, &[]).unwrap();
    assert_eq!(
        (report.status, report.cause, world.fake.lent),
        (Status::State, Cause::Kernel, 0),
        "who fails fetches them"
    );
    let (report, _) = world.job(vmm(0), &read, &[]).unwrap();
    assert_eq!(report.status, Status::Ok);
    world.check_quiet();
}

#[test]
fn a_launch_is_undone_with_the_mailbox_back() {
    let mut world = World::snp();
    world.fake.lends_some = Some(mailbox::LAUNCH_START);
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    let report = world.start(vm, VmKind::Sev);
    assert_eq!((report.status, report.cause, world.fake.lent), (Status::State, Cause::Kernel, 0));
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
    world.check_quiet();
}
