//! Bad input: of clients, and of a processor that is silent, late, confused or a liar. Each has its own clear error,
//! and afterwards the tables add up.

use caisson_proto::abi::{Status, doorbell};
use caisson_proto::addr::{Gfn, Gpa, ServiceId, Tsc, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, MailboxRing, VmKind};
use caisson_proto::mailbox;
use caisson_proto::wire::{Request, Words};
use caisson_qemu_psp::Status as Told;
use caisson_sev_firmware::{COMMAND_MS, JOBS, KEEP_MS, Kernel, Lent, Note, PER_CLIENT, PER_PLATFORM, SLOTS};

use crate::kernel::{Fake, Fault};
use crate::world::*;

fn start(vm: VmId) -> LaunchStart {
    LaunchStart { vm, policy: 0, owner: false }
}

const CHIP_ID: PlatformRead = PlatformRead { fact: PlatformFact::ChipId };

#[test]
fn words_that_are_no_message_are_malformed() {
    let mut world = World::sev();
    let mut messages: Vec<Words> = vec![[0; 8], [4, 9, 0, 0, 0, 0, 0, 0], [99, 0, 0, 0, 0, 0, 0, 0], [u64::MAX; 8]];
    let vm = VmId::new(0, 0);
    for request in [
        start(vm).encode(),
        JobResult { job: JobId(1) }.encode(),
        SnpLaunchUpdate { vm, gfn: Gfn(0), pages: 1, page_type: SnpPageType::Zero, permissions: 0 }.encode(),
        UnregisterRegion { vm, gfn: Gfn(0), pages: 1 }.encode(),
        PlatformDo { command: PlatformCommand::Flush }.encode(),
    ] {
        // Every word that is a number of 32 bits or less, and every spare one.
        messages.extend((0..8).map(|word| {
            let mut spoiled = request;
            spoiled[word] = u64::MAX - 1;
            spoiled
        }));
    }
    messages.retain(|words| FirmwareCall::decode(words).is_err());
    assert!(messages.len() > 30);
    for words in messages {
        let (status, reply) = world.firmware.handle(vmm(0), &words, None, Tsc(1), &mut world.fake);
        assert_eq!((status, reply), (Status::Malformed, [0; 8]), "{words:x?}");
    }
    assert_eq!(world.platform().jobs, 0);
}

#[test]
fn a_command_that_isnt_in_the_kernels_table_isnt_rung() {
    let mut fake = Fake::new();
    let mut lent = Lent([0; 9 * 4096]);
    for command in [0, 0x0b, 0x24, 0x40, 0x50, 0x60, 0x95, 0xb0, 0xc2, 0xca, 0x7ff, 0xffff] {
        let ring = MailboxRing { command, vm: VmId::default() };
        assert_eq!(fake.lend(&ring, &mut lent, 1), Err(Status::NotFound));
    }
}

#[test]
fn vms_that_are_dead_foreign_or_nobodys() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    // Another's.
    assert_eq!(world.send(vmm(1), &Decommission { vm }, &[]), Err(Status::Denied));
    assert_eq!(world.send(vmm(1), &GuestStatus { vm }, &[]), Err(Status::Denied));
    let successor = ServiceId::new(10, 1);
    assert_eq!(world.send(successor, &LaunchMeasure { vm }, &[]), Err(Status::Denied));
    // Never, or not yet.
    for nobody in [VmId::new(1, 0), VmId::new(0, 1), VmId::new(47, 0), VmId::from_bits(u32::MAX)] {
        assert_eq!(world.send(vmm(0), &start(nobody), &[]), Err(Status::NotFound));
        assert_eq!(world.send(MEMORY, &Decommission { vm: nobody }, &[]), Err(Status::NotFound));
    }
    // Dying: it can be ended and asked about nothing.
    world.fake.kill(vm);
    assert_eq!(world.send(vmm(0), &LaunchFinish { vm }, &[]), Err(Status::State));
    assert_eq!(world.send(vmm(0), &RegisterRegion { vm, gfn: Gfn(0), pages: 1, known: true }, &[]), Err(Status::State));
    // Gone before anybody ended its guest: memory can still, and nobody else.
    world.fake.release(vm);
    assert_eq!(world.send(vmm(0), &Decommission { vm }, &[]), Err(Status::NotFound));
    assert_eq!(world.ok(MEMORY, &Decommission { vm }).status, Status::Ok);
    assert_eq!(world.state(5), AsidState::Dirty);
    world.check_quiet();
}

#[test]
fn a_vm_that_dies_while_its_job_waits_is_the_kernels_to_refuse() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    let other = world.send(vmm(1), &CHIP_ID, &[]).unwrap();
    let job = world.send(vmm(0), &start(vm), &[]).unwrap();
    world.fake.kill(vm);
    world.pump();
    let (report, _) = world.result(vmm(0), job).unwrap();
    assert_eq!((report.status, report.cause), (Status::State, Cause::Kernel));
    assert_eq!((world.result(vmm(1), other).unwrap().0.status, world.state(5)), (Status::Ok, AsidState::Free));
}

#[test]
fn a_kind_takes_its_own_commands_and_policy() {
    let mut world = World::snp();
    let kinds = [VmKind::Plain, VmKind::Sev, VmKind::SevEs, VmKind::SevSnp];
    let vms: Vec<_> = (0..).zip(kinds).map(|(slot, kind)| world.fake.vm(slot, vmm(slot), kind, 1)).collect();
    let [plain, sev, es, snp] = vms[..] else { panic!() };
    for (client, vm) in [(vmm(0), plain), (vmm(3), snp)] {
        assert_eq!(world.send(client, &start(vm), &[]), Err(Status::Unsupported));
        assert_eq!(world.send(client, &LaunchMeasure { vm }, &[]), Err(Status::Unsupported));
        assert_eq!(world.send(client, &LaunchVmsa { vm, gfn: Gfn(0) }, &[]), Err(Status::Unsupported));
    }
    assert_eq!(world.send(vmm(1), &LaunchVmsa { vm: sev, gfn: Gfn(0) }, &[]), Err(Status::Unsupported));
    for (client, vm) in [(vmm(0), plain), (vmm(1), sev), (vmm(2), es)] {
        assert_eq!(world.send(client, &snp_start(vm), &[]), Err(Status::Unsupported));
        assert_eq!(world.send(client, &SnpGuestRequest { vm }, &[&[0; 4096]]), Err(Status::Unsupported));
    }
    let register = RegisterRegion { vm: plain, gfn: Gfn(0), pages: 1, known: false };
    assert_eq!(world.send(vmm(0), &register, &[]), Err(Status::Unsupported));
    let unregister = UnregisterRegion { vm: plain, gfn: Gfn(0), pages: 1 };
    assert_eq!(world.ask(vmm(0), &unregister, None), Err(Status::Unsupported));
    assert_eq!(world.send(vmm(0), &Decommission { vm: plain }, &[]), Err(Status::Unsupported));
    // A policy of the other class: its ASID could never be one that the processor takes.
    let policy = |vm, policy| LaunchStart { vm, policy, owner: false };
    assert_eq!(world.send(vmm(1), &policy(sev, ES_POLICY), &[]), Err(Status::Range));
    assert_eq!(world.send(vmm(2), &policy(es, 0), &[]), Err(Status::Range));
}

#[test]
fn lengths_and_addresses_that_cant_be() {
    let mut world = World::sev();
    let (vm, _) = world.launch(0, VmKind::Sev);
    for (gpa, bytes) in [
        (0, 0),
        (0, 15),
        (8, 16),
        (1, 4096),
        (0, (512 << 12) + 16),
        ((1 << 52) - 16, 32),
        (0, u64::MAX - 15),
        (0, 1 << 63),
    ] {
        let update = LaunchUpdate { vm, gpa: Gpa(gpa), bytes };
        assert_eq!(world.send(vmm(0), &update, &[]), Err(Status::Range), "{gpa:#x} {bytes:#x}");
    }
    for (gpa, bytes) in [(0, 0), (0, 17), (4, 16), (0, SECRET + 16), (0, u32::MAX - 15), ((1 << 52) - 16, 32)] {
        let secret = LaunchSecret { vm, gpa: Gpa(gpa), bytes };
        assert_eq!(world.send(vmm(0), &secret, &[&[0; 52], &[0; 4096]]), Err(Status::Range));
    }
    let mut world = World::snp();
    let (vm, _) = world.launch(0, VmKind::SevSnp);
    for (gfn, pages, permissions) in [(0, 0, 0), (0, 513, 0), ((1 << 40) - 1, 2, 0), (0, 1, 0x10), (0, 1, 1 << 24)] {
        let page_type = SnpPageType::Normal;
        let update = SnpLaunchUpdate { vm, gfn: Gfn(gfn), pages, page_type, permissions };
        assert_eq!(world.send(vmm(0), &update, &[]), Err(Status::Range), "{gfn:#x} {pages} {permissions:#x}");
    }
    world.check_quiet();
}

#[test]
fn results_are_their_clients_and_need_room() {
    let mut world = World::new();
    let job = world.send(vmm(0), &CHIP_ID, &[]).unwrap();
    world.pump();
    for client in [vmm(1), MEMORY, ServiceId::new(10, 1)] {
        assert_eq!(world.result(client, job), Err(Status::NotFound));
    }
    for nothing in [JobId(0), JobId(job.0 + 1), JobId(u32::MAX)] {
        assert_eq!(world.result(vmm(0), nothing), Err(Status::NotFound));
    }
    // Without pages, with pages to read, with too few; it stays.
    assert_eq!(world.ask(vmm(0), &JobResult { job }, None), Err(Status::BadLease));
    let mut lent = LentPages { bytes: vec![0; 4096], writable: false };
    assert_eq!(world.ask(vmm(0), &JobResult { job }, Some(&mut lent)), Err(Status::BadLease));
    let mut lent = LentPages { bytes: vec![], writable: true };
    assert_eq!(world.ask(vmm(0), &JobResult { job }, Some(&mut lent)), Err(Status::Range));
    assert_eq!(world.result(vmm(0), job).unwrap().1.len(), 128);
}

#[test]
fn nobody_sees_anothers_data() {
    let mut world = World::sev();
    let (_, export) = world.job(vmm(0), &PlatformRead { fact: PlatformFact::PdhExport }, &[]).unwrap();
    assert!(export.iter().any(|byte| *byte != 0));
    // The processor writes nothing: what vmm 1 gets is nothing.
    world.fake.fault(mailbox::PDH_CERT_EXPORT, Fault::Fails(Told::HardwareErrorPlatform as u16));
    let (report, data) = world.job(vmm(1), &PlatformRead { fact: PlatformFact::PdhExport }, &[]).unwrap();
    assert_eq!((report.status, data.len()), (Status::State, export.len()));
    assert!(data.iter().all(|byte| *byte == 0));
}

#[test]
fn output_is_kept_on_error() {
    let mut world = World::sev();
    world.fake.fault(mailbox::GET_ID, Fault::Lies(Told::HardwareErrorPlatform as u16));
    let (report, id) = world.job(vmm(0), &CHIP_ID, &[]).unwrap();
    assert_eq!((report.status, report.cause, report.firmware), (Status::State, Cause::Processor, 0x13));
    assert_eq!((id.len(), id[63]), (128, 1));
}

#[test]
fn a_client_has_its_share_and_others_have_theirs() {
    let mut world = World::new();
    // One that gives data is all.
    let first = world.send(vmm(0), &CHIP_ID, &[]).unwrap();
    assert_eq!(world.send(vmm(0), &CHIP_ID, &[]), Err(Status::Exhausted));
    let vms: Vec<_> = (0..12).map(|slot| world.fake.vm(slot, vmm(slot), VmKind::Sev, 1)).collect();
    for _ in 1..PER_CLIENT {
        world.send(vmm(0), &start(vms[0]), &[]).unwrap();
    }
    assert_eq!(world.send(vmm(0), &start(vms[0]), &[]), Err(Status::Exhausted));
    // Others'.
    for index in 1..SLOTS as u16 {
        world.send(vmm(index), &CHIP_ID, &[]).unwrap();
    }
    assert_eq!(world.send(vmm(30), &CHIP_ID, &[]), Err(Status::Exhausted), "no data is left");
    for index in 1..12u16 {
        while world.send(vmm(index), &start(vms[usize::from(index)]), &[]).is_ok() {}
    }
    // However many they are: memory has its share.
    assert_eq!(world.platform().jobs as usize, JOBS - PER_PLATFORM);
    for _ in 0..PER_PLATFORM {
        world.send(MEMORY, &Decommission { vm: vms[0] }, &[]).unwrap();
    }
    assert_eq!(world.send(MEMORY, &Decommission { vm: vms[0] }, &[]), Err(Status::Exhausted));
    assert_eq!(world.send(NOTIFIER, &Decommission { vm: vms[0] }, &[]), Err(Status::Exhausted));
    world.pump();
    world.check_quiet();
    // What has ended makes room for more of the same client's, and for others' in time.
    world.send(MEMORY, &Decommission { vm: vms[0] }, &[]).unwrap();
    assert_eq!(world.send(vmm(30), &CHIP_ID, &[]), Err(Status::Exhausted));
    world.fake.now += KEEP_MS;
    assert!(world.send(vmm(30), &CHIP_ID, &[]).is_ok());
    assert_eq!(world.result(vmm(0), first), Err(Status::NotFound), "the oldest went");
    world.pump();
    // A client's successor isn't kept out by what its predecessor left.
    assert_eq!(world.send(vmm(1), &CHIP_ID, &[]), Err(Status::Exhausted));
    assert!(world.send(ServiceId::new(11, 1), &CHIP_ID, &[]).is_ok());
}

#[test]
fn results_that_nobody_fetches_make_room_for_the_next_but_data_is_kept() {
    let mut world = World::sev();
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    let data = world.send(vmm(0), &CHIP_ID, &[]).unwrap();
    for _ in 0..20 {
        world.send(vmm(0), &Decommission { vm }, &[]).unwrap();
        world.pump();
    }
    assert_eq!(world.send(vmm(0), &CHIP_ID, &[]), Err(Status::Exhausted));
    assert_eq!(world.result(vmm(0), data).unwrap().1.len(), 128);
    // What is refused costs nobody a result: neither for lack of pages nor of room for data.
    let mut jobs = vec![world.send(vmm(0), &CHIP_ID, &[]).unwrap()];
    world.pump();
    for _ in 1..PER_CLIENT {
        jobs.push(world.send(vmm(0), &Decommission { vm }, &[]).unwrap());
        world.pump();
    }
    let owner = LaunchStart { vm, policy: 0, owner: true };
    assert_eq!(world.send(vmm(0), &owner, &[&[0; 0x824]]), Err(Status::BadLease));
    assert_eq!(world.send(vmm(0), &CHIP_ID, &[]), Err(Status::Exhausted));
    assert!(jobs.into_iter().all(|job| world.result(vmm(0), job).is_ok()));
}

#[test]
fn a_silent_processor_is_dead_and_everybody_is_told() {
    let mut world = World::sev();
    let (guest, _) = world.launch(3, VmKind::Sev);
    world.fake.fault(mailbox::GET_ID, Fault::Silent);
    let first = world.send(vmm(0), &CHIP_ID, &[]).unwrap();
    let vm = world.fake.vm(1, vmm(1), VmKind::Sev, 1);
    let second = world.send(vmm(1), &start(vm), &[]).unwrap();
    world.pump();
    // The timer rings too early, and isn't set any more after that.
    world.fake.timer = 0;
    world.firmware.doorbell(doorbell::TIMER, Tsc(world.fake.now), &mut world.fake);
    world.elapse(COMMAND_MS - 1);
    assert_eq!(world.platform().life, Life::Ready);
    world.fake.bells.clear();
    world.elapse(1);
    assert_eq!(world.platform().life, Life::Dead);
    assert_eq!(world.fake.bells, [vmm(0), vmm(1)]);
    assert!(world.fake.notes.contains(&Note::Dead { command: mailbox::GET_ID }));
    let (report, _) = world.result(vmm(0), first).unwrap();
    assert_eq!((report.status, report.cause, report.command), (Status::Unsupported, Cause::Dead, mailbox::GET_ID));
    let (report, _) = world.result(vmm(1), second).unwrap();
    assert_eq!((report.status, report.cause, report.command), (Status::Unsupported, Cause::Dead, 0));
    // From now on at once.
    assert_eq!(world.send(vmm(1), &start(vm), &[]), Err(Status::Unsupported));
    assert_eq!(world.send(MEMORY, &Decommission { vm: guest }, &[]), Err(Status::Unsupported));
    assert_eq!(world.platform().jobs, 0);
    // A late answer is taken, so that the kernel knows; it brings nobody back.
    world.fake.command.as_mut().unwrap().answer = Some(crate::mailbox::Answer::Status(0));
    world.firmware.doorbell(doorbell::INTERRUPT, Tsc(1), &mut world.fake);
    assert!(world.fake.command.is_none());
    assert_eq!((world.platform().life, world.state(5)), (Life::Dead, AsidState::Active));
    world.check_quiet();
}

#[test]
fn an_answer_that_comes_just_in_time_counts() {
    let mut world = World::sev();
    let job = world.send(vmm(0), &CHIP_ID, &[]).unwrap();
    assert!(world.fake.work());
    // The timer rings before the interrupt is looked at.
    world.elapse(COMMAND_MS);
    assert_eq!(world.result(vmm(0), job).unwrap().0.status, Status::Ok);
    assert_eq!((world.platform().life, world.fake.timer), (Life::Ready, 0));
}

#[test]
fn the_answer_to_another_question_is_no_answer() {
    for fault in [Fault::Other(mailbox::DECOMMISSION), Fault::Lost] {
        let mut world = World::sev();
        let vm = world.run_guest(0, VmKind::Sev);
        world.fake.fault(mailbox::DEACTIVATE, fault);
        let job = world.send(MEMORY, &Decommission { vm }, &[]).unwrap();
        world.pump();
        let (report, _) = world.result(MEMORY, job).unwrap();
        assert_eq!(
            (report.status, report.cause, report.command),
            (Status::Unsupported, Cause::Dead, mailbox::DEACTIVATE)
        );
        assert_eq!((world.platform().life, world.state(5)), (Life::Dead, AsidState::Active));
        world.check_quiet();
    }
}

#[test]
fn a_handle_that_cant_be_true_ends_the_launch_and_nobody_else() {
    for handle in [0, 1] {
        let mut world = World::sev();
        let (first, _) = world.launch(0, VmKind::Sev);
        assert_eq!(world.fake.row(5).handle, 1);
        world.honest = false;
        world.fake.fault(mailbox::LAUNCH_START, Fault::Handle(handle));
        let (vm, report) = world.launch(1, VmKind::Sev);
        assert_eq!(
            (report.status, report.cause, report.command),
            (Status::State, Cause::Processor, mailbox::LAUNCH_START)
        );
        assert_eq!(world.platform().leaked_asids, 1);
        assert_eq!(world.ok(MEMORY, &Decommission { vm }).status, Status::Ok, "nothing is rung for it");
        assert_eq!(
            (world.state(5), world.fake.processor.asids().holder(caisson_qemu_psp::Asid(5)).is_some()),
            (AsidState::Active, true)
        );
        assert_eq!(world.job(vmm(0), &GuestStatus { vm: first }, &[]).unwrap().0.status, Status::Ok);
        let (next, report) = world.launch(2, VmKind::Sev);
        assert_eq!((report.status, world.fake.asid_of(next)), (Status::Ok, Some(7)));
    }
}

#[test]
fn statuses_that_nobody_knows_are_told_as_they_are() {
    let mut world = World::sev();
    for status in [0x30, 0x1e, 0x7fff, 0xffff] {
        world.fake.fault(mailbox::GET_ID, Fault::Fails(status));
        let (report, _) = world.job(vmm(0), &CHIP_ID, &[]).unwrap();
        assert_eq!((report.status, report.cause, report.firmware), (Status::State, Cause::Processor, status));
    }
    // And every one that is known isn't `Ok`.
    for status in Told::ALL.iter().filter(|status| **status != Told::Success) {
        world.fake.fault(mailbox::GET_ID, Fault::Fails(*status as u16));
        assert_ne!(world.job(vmm(0), &CHIP_ID, &[]).unwrap().0.status, Status::Ok);
    }
    assert_eq!(world.platform().life, Life::Ready);
}

#[test]
fn an_end_that_happened_in_words_only_is_found_out_by_the_next_guest() {
    let mut world = World::sev();
    let vm = world.run_guest(0, VmKind::Sev);
    world.honest = false;
    world.fake.fault(mailbox::DEACTIVATE, Fault::Fails(0));
    // The processor knows that it still has it.
    let report = world.bury(vm);
    assert_eq!((report.command, report.firmware), (mailbox::DECOMMISSION, Told::Active as u16));
    assert_eq!(world.platform().leaked_asids, 1);
    // If it lies twice, the next guest in that ASID is told, and the one after it isn't bothered.
    let vm = world.run_guest(1, VmKind::Sev);
    assert_eq!(world.fake.asid_of(vm), Some(6));
    world.fake.fault(mailbox::DEACTIVATE, Fault::Fails(0));
    world.fake.fault(mailbox::DECOMMISSION, Fault::Fails(0));
    assert_eq!(world.bury(vm).status, Status::Ok);
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
    let (_, report) = world.launch(2, VmKind::Sev);
    assert_eq!((report.status, report.firmware), (Status::Busy, Told::AsidOwned as u16));
    let (next, report) = world.launch(3, VmKind::Sev);
    assert_eq!((report.status, world.fake.asid_of(next)), (Status::Ok, Some(7)));
    assert_eq!(world.platform().leaked_asids, 2);
}
