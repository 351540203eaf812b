//! SEV and SEV-ES guests from launch to end.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, VmKind};
use caisson_proto::mailbox;
use caisson_qemu_psp::{Status as Told, crypto};
use sha2::{Digest, Sha256};

use crate::kernel::{Event, Fault};
use crate::psp::owner::Owner;
use crate::world::*;

fn register(world: &mut World, vm: VmId, pages: u64) {
    let region = RegisterRegion { vm, gfn: Gfn(0), pages, known: false };
    assert_eq!(world.ok(vmm(vm.index() as u16), &region).status, Status::Ok);
}

fn commands(world: &mut World) -> Vec<u16> {
    let command = |event| if let Event::Command(number, _) = event { Some(number) } else { None };
    world.events().into_iter().filter_map(command).collect()
}

#[test]
fn an_owner_judges_a_launch_and_sends_a_secret() {
    let mut world = World::sev();
    let owner = Owner::new();
    let (_, export) = world.job(vmm(0), &PlatformRead { fact: PlatformFact::PdhExport }, &[]).unwrap();
    let vm = world.fake.vm(0, vmm(0), VmKind::SevEs, 16);
    let policy = ES_POLICY | 1;
    let sent = owner.session(&export[..0x824], policy);
    world.fake.log.clear();
    let request = LaunchStart { vm, policy, owner: true };
    let (report, _) = world.job(vmm(0), &request, &[&sent.certificate, &sent.session]).unwrap();
    assert_eq!(report.status, Status::Ok);
    assert_eq!(commands(&mut world), [mailbox::LAUNCH_START, mailbox::ACTIVATE]);
    let content: Vec<u8> = (0..0x5000u32).map(|byte| (byte >> 3) as u8).collect();
    for (gfn, page) in (0..).zip(content.chunks(4096)) {
        let at = world.fake.vm_mut(vm).unwrap().pages[&gfn].at;
        world.fake.board.put(at, page);
    }
    register(&mut world, vm, 16);
    let update = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(0), bytes: 0x4000 });
    assert_eq!((update.status, update.done), (Status::Ok, 0x4000));
    assert_eq!(world.ok(vmm(0), &LaunchVmsa { vm, gfn: Gfn(4) }).status, Status::Ok);

    let (report, told) = world.job(vmm(0), &LaunchMeasure { vm }, &[]).unwrap();
    assert_eq!((report.status, told.len()), (Status::Ok, 48));
    let digest: [u8; 32] = Sha256::digest(&content).into();
    let version = world.fake.processor.config().version;
    let head = [4, version.major, version.minor, version.build];
    assert_eq!(told[..32], crypto::hmac(&owner.tik, &[&head, &policy.to_le_bytes(), &digest, &told[32..]]));

    let (header, packet) = owner.secret(&[0x77; 64], &told[..32]);
    let secret = LaunchSecret { vm, gpa: Gpa(0x8000), bytes: 64 };
    let (report, _) = world.job(vmm(0), &secret, &[&header, &packet]).unwrap();
    assert_eq!((report.status, report.done), (Status::Ok, 64));
    let at = world.fake.vm_mut(vm).unwrap().pages[&8].at;
    assert_eq!(world.fake.board.get(at, 64), [0x77; 64]);
    // One bit less right, and nothing arrives.
    let (report, _) = world.job(vmm(0), &secret, &[&header, &[1; 64]]).unwrap();
    assert_eq!((report.status, report.firmware), (Status::Denied, Told::BadMeasurement as u16));
    assert_eq!(world.ok(vmm(0), &LaunchFinish { vm }).status, Status::Ok);

    let nonce = Attestation { vm, nonce_low: 0x0102_0304_0506_0708, nonce_high: 9 };
    let (report, attestation) = world.job(vmm(0), &nonce, &[]).unwrap();
    assert_eq!((report.status, attestation.len()), (Status::Ok, 0xd0));
    assert_eq!((attestation[0], attestation[7], attestation[8]), (8, 1, 9));
    assert_eq!(attestation[16..48], digest);
    let (report, status) = world.job(vmm(0), &GuestStatus { vm }, &[]).unwrap();
    assert_eq!((report.status, status), (Status::Ok, vec![policy as u8, 0, 0, 0, 1, 0, 0, 0, 3]));
}

#[test]
fn a_session_for_somebody_else_ends_the_launch_and_leaves_nothing() {
    let mut world = World::sev();
    let (_, export) = world.job(vmm(0), &PlatformRead { fact: PlatformFact::PdhExport }, &[]).unwrap();
    let sent = Owner::new().session(&export[..0x824], 0);
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 16);
    let request = LaunchStart { vm, policy: 1, owner: true };
    let (report, _) = world.job(vmm(0), &request, &[&sent.certificate, &sent.session]).unwrap();
    assert_eq!((report.status, report.firmware), (Status::Denied, Told::BadMeasurement as u16));
    assert_eq!(world.state(5), AsidState::Bound);
    world.check_quiet();
    // The same VM may try again, and keeps its ASID.
    let request = LaunchStart { vm, policy: 0, owner: true };
    let (report, _) = world.job(vmm(0), &request, &[&sent.certificate, &sent.session]).unwrap();
    assert_eq!((report.status, world.state(5)), (Status::Ok, AsidState::Active));
    assert_eq!(world.send(vmm(0), &request, &[&sent.certificate]), Err(Status::BadLease));
    assert_eq!(world.send(vmm(0), &request, &[]), Err(Status::BadLease));
}

#[test]
fn a_launch_that_fails_half_way_is_undone() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    world.fake.fault(mailbox::ACTIVATE, Fault::Fails(Told::ResourceLimit as u16));
    let report = world.start(vm, VmKind::Sev);
    assert_eq!((report.status, report.command), (Status::Exhausted, mailbox::ACTIVATE));
    assert_eq!(commands(&mut world), [mailbox::LAUNCH_START, mailbox::ACTIVATE, mailbox::DECOMMISSION]);
    assert_eq!((world.state(5), world.fake.row(5).handle), (AsidState::Bound, 0));
    assert_eq!(world.platform().sev, PlatformState::Init);
    world.check_quiet();
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
}

#[test]
fn a_wrong_order_is_refused_and_nothing_is_rung() {
    let mut world = World::sev();
    let (vm, _) = world.launch(0, VmKind::SevEs);
    register(&mut world, vm, 16);
    world.fake.log.clear();
    let secret: &[&[u8]] = &[&[0; 52], &[0; 16]];
    let by_service = |report: JobReport| {
        assert_eq!((report.status, report.cause, report.command), (Status::State, Cause::Service, 0));
    };
    by_service(world.ok(vmm(0), &LaunchFinish { vm }));
    by_service(world.job(vmm(0), &LaunchSecret { vm, gpa: Gpa(0), bytes: 16 }, secret).unwrap().0);
    by_service(world.ok(vmm(0), &Attestation { vm, nonce_low: 0, nonce_high: 0 }));
    by_service(world.start(vm, VmKind::SevEs));
    assert_eq!(world.events(), []);
    assert_eq!(world.ok_with_data(&LaunchMeasure { vm }).status, Status::Ok);
    world.fake.log.clear();
    by_service(world.ok(vmm(0), &LaunchMeasure { vm }));
    by_service(world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(0), bytes: 16 }));
    by_service(world.ok(vmm(0), &LaunchVmsa { vm, gfn: Gfn(0) }));
    assert_eq!(world.events(), []);
    assert_eq!(world.ok(vmm(0), &LaunchFinish { vm }).status, Status::Ok);
    by_service(world.ok(vmm(0), &LaunchFinish { vm }));
    let unlaunched = world.fake.vm(1, vmm(1), VmKind::Sev, 1);
    by_service(world.ok(vmm(1), &LaunchMeasure { vm: unlaunched }));
    by_service(world.ok(vmm(1), &GuestStatus { vm: unlaunched }));
}

impl World {
    /// A job of vmm 0 that gives data, which nobody looks at.
    pub fn ok_with_data<R: caisson_proto::wire::Request<Reply = Queued>>(&mut self, request: &R) -> JobReport {
        self.job(vmm(0), request, &[]).expect("it is queued").0
    }
}

#[test]
fn memory_is_measured_in_the_pieces_in_which_it_is_mapped() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1100);
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
    world.fake.scatter(vm, 600, 700);
    let region = RegisterRegion { vm, gfn: Gfn(0), pages: 1100, known: false };
    assert_eq!(world.ok(vmm(0), &region).status, Status::Ok);
    world.fake.log.clear();
    // Three large pages' worth in three jobs; the one in the middle isn't one piece.
    for (gpa, bytes, rung) in [(0, 512 << 12, 1), (512 << 12, 512 << 12, 512), (1024 << 12, 76 << 12, 1)] {
        let report = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(gpa), bytes });
        assert_eq!((report.status, report.done), (Status::Ok, bytes));
        assert_eq!(commands(&mut world), vec![mailbox::LAUNCH_UPDATE_DATA; rung]);
    }
    // Two pieces that aren't whole pages.
    let report = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa((512 << 12) - 16), bytes: 32 });
    assert_eq!((report.status, report.done, commands(&mut world).len()), (Status::Ok, 32, 2));
}

#[test]
fn memory_that_isnt_private_isnt_measured() {
    let mut world = World::sev();
    let (vm, _) = world.launch(0, VmKind::Sev);
    register(&mut world, vm, 4);
    world.fake.log.clear();
    let report = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(0x3000), bytes: 0x2000 });
    assert_eq!((report.status, report.cause), (Status::Range, Cause::Kernel));
    // The page before was, and the client is told how much.
    assert_eq!((report.done, commands(&mut world).len()), (0x1000, 1));
    let report = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(0x10_0000), bytes: 16 });
    assert_eq!((report.status, report.cause), (Status::Range, Cause::Kernel));
}

#[test]
fn a_command_that_fails_says_how_far_it_came() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 600);
    assert_eq!(world.start(vm, VmKind::Sev).status, Status::Ok);
    register(&mut world, vm, 600);
    world.fake.faults.entry(mailbox::LAUNCH_UPDATE_DATA).or_default().extend([Fault::Lies(0), Fault::Fails(9)]);
    let report = world.ok(vmm(0), &LaunchUpdate { vm, gpa: Gpa(88 << 12), bytes: 512 << 12 });
    assert_eq!((report.status, report.firmware, report.done), (Status::Range, 9, 424 << 12));
}

#[test]
fn an_end_deactivates_and_then_forgets() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    world.fake.log.clear();
    // The vmm itself may end its guest.
    assert_eq!(world.ok(vmm(0), &Decommission { vm }).status, Status::Ok);
    assert_eq!(commands(&mut world), [mailbox::DEACTIVATE, mailbox::DECOMMISSION]);
    assert_eq!((world.state(5), world.platform().sev), (AsidState::Dirty, PlatformState::Init));
    assert_eq!(world.firmware.account().regions.all(), []);
    // Again, and of one that never was: nothing to do.
    assert_eq!(world.ok(MEMORY, &Decommission { vm }).status, Status::Ok);
    let never = world.fake.vm(1, vmm(1), VmKind::Sev, 1);
    assert_eq!(world.ok(MEMORY, &Decommission { vm: never }).status, Status::Ok);
    assert_eq!(commands(&mut world), []);
    // Its ASID isn't its any more, and a VM gets no other.
    let report = world.start(vm, VmKind::Sev);
    assert_eq!((report.status, report.cause), (Status::State, Cause::Kernel));
}

#[test]
fn a_guest_that_still_runs_isnt_deactivated() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    world.fake.vm_mut(vm).unwrap().running = true;
    let report = world.ok(MEMORY, &Decommission { vm });
    assert_eq!((report.status, report.cause), (Status::Busy, Cause::Kernel));
    assert_eq!((world.state(5), world.platform().leaked_asids), (AsidState::Active, 0));
    assert_eq!(world.firmware.account().regions.all().len(), 1);
    world.fake.vm_mut(vm).unwrap().running = false;
    assert_eq!(world.ok(MEMORY, &Decommission { vm }).status, Status::Ok);
}

#[test]
fn the_first_sev_guest_starts_a_platform_that_nobody_started() {
    let mut world = World::new();
    world.fake.log.clear();
    assert_eq!(world.launch(0, VmKind::Sev).1.status, Status::Ok);
    let order = [mailbox::INIT, mailbox::DF_FLUSH, mailbox::LAUNCH_START, mailbox::ACTIVATE];
    assert_eq!(commands(&mut world), order);
    // For SEV-ES it takes donated frames, so somebody has to.
    let mut world = World::new();
    let (_, report) = world.launch(0, VmKind::SevEs);
    assert_eq!((report.status, report.firmware), (Status::State, Told::InvalidPlatformState as u16));
}
