//! The platform's commands.

use caisson_proto::abi::Status;
use caisson_proto::addr::Frame;
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, VmKind};
use caisson_proto::mailbox;
use caisson_qemu_psp::Status as Told;
use caisson_qemu_psp::certificate::{Certificate, Usage};
use caisson_qemu_psp::config::Version;

use crate::kernel::{DONATED, Event, Fake, Fault};
use crate::world::*;

const INIT: Init = Init { frame: Frame(DONATED >> 12), pages: 256 };

fn read(world: &mut World, fact: PlatformFact) -> (JobReport, Vec<u8>) {
    world.job(vmm(0), &PlatformRead { fact }, &[]).expect("anybody may")
}

#[test]
fn init_flushes_and_is_told() {
    let mut world = World::new();
    let before = world.platform();
    assert_eq!((before.life, before.sev, before.support), (Life::Ready, PlatformState::Uninit, SevSupport::Present));
    world.fake.log.clear();
    let report = world.ok(MEMORY, &INIT);
    assert_eq!((report.status, report.cause), (Status::Ok, Cause::Nobody));
    assert_eq!(world.events(), [Event::Command(mailbox::INIT, 0), Event::Wbinvd, Event::Command(mailbox::DF_FLUSH, 0)]);
    let after = world.platform();
    assert_eq!((after.sev, after.flushes, after.jobs), (PlatformState::Init, 1, 0));
    assert_eq!(world.state(1), AsidState::Free);
    // What the processor itself says: state 1, SEV-ES, no guests.
    let (_, status) = read(&mut world, PlatformFact::Status);
    assert_eq!((status.len(), status[2], status[4], status[8]), (12, 1, 1, 0));
}

#[test]
fn init_twice_is_the_processors_to_refuse() {
    let mut world = World::sev();
    let report = world.ok(MEMORY, &INIT);
    assert_eq!((report.status, report.cause), (Status::State, Cause::Processor));
    assert_eq!((report.command, report.firmware), (mailbox::INIT, Told::InvalidPlatformState as u16));
    assert!(!world.fake.log.contains(&Event::Wbinvd), "nothing was flushed for it");
}

#[test]
fn frames_that_werent_donated_are_the_kernels_to_refuse() {
    let mut world = World::new();
    for (frame, pages) in [(0, 256), (DONATED / 4096 - 1, 256), (DONATED / 4096 + 257, 256)] {
        let report = world.ok(MEMORY, &Init { frame: Frame(frame), pages });
        assert_eq!((report.status, report.cause), (Status::Range, Cause::Kernel));
        assert_eq!(world.platform().sev, PlatformState::Uninit);
    }
    for pages in [1 << 20, u64::MAX] {
        assert_eq!(world.send(MEMORY, &Init { frame: Frame(0), pages }, &[]), Err(Status::Range));
    }
}

#[test]
fn init_ex_gives_back_what_the_platform_keeps() {
    let mut world = World::new();
    let blank = vec![0xff; 0x8000];
    let request = InitEx { frame: INIT.frame, pages: INIT.pages };
    let (report, kept) = world.job(MEMORY, &request, &[&blank]).unwrap();
    assert_eq!((report.status, kept.len()), (Status::Ok, 0x8000));
    assert_ne!(kept, blank);
    let (_, export) = read(&mut world, PlatformFact::PdhExport);
    // Another life of the machine, with what was kept: the same platform.
    let mut again = World::new();
    assert_eq!(again.job(MEMORY, &request, &[&kept]).unwrap().0.status, Status::Ok);
    let key = |export: &[u8]| Certificate(export[..0x824].try_into().unwrap()).key(Usage::Pdh).unwrap();
    let (_, same) = read(&mut again, PlatformFact::PdhExport);
    assert_eq!(key(&export), key(&same));
    // And with something else: refused, and nothing is initialised.
    let mut damaged = World::new();
    let report = damaged.job(MEMORY, &request, &[&vec![0; 0x8000]]).unwrap().0;
    assert_eq!((report.status, report.firmware), (Status::Denied, Told::SecureDataInvalid as u16));
    assert_eq!(damaged.platform().sev, PlatformState::Uninit);
    // Pages that are missing.
    assert_eq!(damaged.send(MEMORY, &request, &[]), Err(Status::BadLease));
    assert_eq!(damaged.send(MEMORY, &request, &[&[0; 4096]]), Err(Status::BadLease));
    assert_eq!(damaged.platform().jobs, 0);
}

#[test]
fn the_platforms_keys_are_exported_made_anew_and_imported() {
    let mut world = World::sev();
    let (report, export) = read(&mut world, PlatformFact::PdhExport);
    assert_eq!((report.status, export.len()), (Status::Ok, 4096 + 3 * 0x824));
    let certificate = |at: usize| Certificate(export[at..at + 0x824].try_into().unwrap());
    let (pdh, pek) = (certificate(0), certificate(4096));
    assert!(pdh.signed_by(Usage::Pek, &pek.key(Usage::Pek).unwrap()));
    for command in [PlatformCommand::PdhGen, PlatformCommand::PekGen] {
        assert_eq!(world.ok(NOTIFIER, &PlatformDo { command }).status, Status::Ok);
    }
    assert_ne!(read(&mut world, PlatformFact::PdhExport).1[..0x824], export[..0x824]);

    let (report, csr) = world.job(MEMORY, &PlatformRead { fact: PlatformFact::PekCsr }, &[]).unwrap();
    assert_eq!((report.status, csr.len()), (Status::Ok, 0x824));
    let owner = caisson_qemu_psp::crypto::secret(&[0x42; 48]).unwrap();
    let version = Version { major: 0, minor: 0, build: 0 };
    let mut oca = Certificate::new(Usage::Oca, &owner.public_key(), version);
    oca.sign(0, Usage::Oca, &owner);
    let mut signed = Certificate(csr.try_into().unwrap());
    let unsigned = signed.0;
    signed.sign(0, Usage::Oca, &owner);
    let report = world.job(MEMORY, &PekCertImport {}, &[&unsigned, &oca.0]).unwrap().0;
    assert_eq!((report.status, report.firmware), (Status::Denied, Told::BadSignature as u16));
    assert_eq!(world.job(MEMORY, &PekCertImport {}, &[&signed.0, &oca.0]).unwrap().0.status, Status::Ok);
    let report = world.job(MEMORY, &PekCertImport {}, &[&signed.0, &oca.0]).unwrap().0;
    assert_eq!((report.status, report.firmware), (Status::State, Told::AlreadyOwned as u16));
    assert_eq!(world.send(MEMORY, &PekCertImport {}, &[&signed.0]), Err(Status::BadLease));
}

#[test]
fn the_chips_id_is_as_long_as_the_processor_says() {
    let mut world = World::new();
    let (report, id) = read(&mut world, PlatformFact::ChipId);
    assert_eq!((report.status, id.len(), id[63]), (Status::Ok, 128, 1));
}

#[test]
fn shutdown_ends_every_guest_and_their_asids_are_recycled() {
    let mut world = World::sev();
    let vms = [(0, VmKind::Sev), (1, VmKind::SevEs), (2, VmKind::Sev)].map(|(slot, kind)| world.run_guest(slot, kind));
    world.fake.log.clear();
    let report = world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Shutdown });
    assert_eq!(report.status, Status::Ok);
    assert_eq!(world.events(), [Event::Wbinvd, Event::Command(mailbox::SHUTDOWN, 0)]);
    assert_eq!(
        (world.platform().sev, world.state(1), world.state(5)),
        (PlatformState::Uninit, AsidState::Dirty, AsidState::Dirty)
    );
    assert!(vms.iter().all(|vm| world.firmware.account().guests.get(*vm).is_none()));
    world.check_quiet();
    assert_eq!(world.ok(MEMORY, &INIT).status, Status::Ok);
    let (_, report) = world.launch(3, VmKind::Sev);
    assert_eq!(report.status, Status::Ok);
}

#[test]
fn shutdown_brings_lost_asids_back() {
    let mut world = World::snp();
    let (sev, snp) = (world.run_guest(0, VmKind::Sev), world.run_guest(1, VmKind::SevSnp));
    for (vm, command) in [(sev, mailbox::DECOMMISSION), (snp, mailbox::SNP_DECOMMISSION)] {
        world.fake.fault(command, Fault::Fails(Told::HardwareErrorPlatform as u16));
        world.bury(vm);
    }
    assert_eq!(world.platform().leaked_asids, 2);
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Shutdown }).status, Status::Ok);
    assert_eq!(world.platform().leaked_asids, 1, "SEV's");
    assert_eq!(world.ok(MEMORY, &SnpShutdownEx { flags: SnpShutdown::empty() }).status, Status::Ok);
    assert_eq!(world.platform().leaked_asids, 0);
    assert_eq!(world.ok(MEMORY, &INIT).status, Status::Ok);
    let (vm, report) = world.launch(2, VmKind::Sev);
    assert_eq!((report.status, world.fake.asid_of(vm)), (Status::Ok, Some(5)));
}

#[test]
fn reset_is_for_a_platform_that_is_down() {
    let mut world = World::sev();
    let reset = PlatformDo { command: PlatformCommand::Reset };
    assert_eq!(world.ok(MEMORY, &reset).firmware, Told::InvalidPlatformState as u16);
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Shutdown }).status, Status::Ok);
    assert_eq!(world.ok(MEMORY, &reset).status, Status::Ok);
}

#[test]
fn snp_comes_and_goes_in_the_order_of_the_specification() {
    let mut world = World::new();
    world.fake.log.clear();
    assert_eq!(world.ok(MEMORY, &SnpInit { rmp: false }).firmware, Told::RmpInitRequired as u16);
    world.fake.log.clear();
    assert_eq!(world.ok(MEMORY, &SnpInit { rmp: true }).status, Status::Ok);
    let flush = [Event::Wbinvd, Event::Command(mailbox::SNP_DF_FLUSH, 0)];
    let [wbinvd, df_flush] = flush;
    assert_eq!(world.events(), [wbinvd, Event::Command(mailbox::SNP_INIT_EX, 0), wbinvd, df_flush]);
    assert!(world.platform().snp);
    let (_, status) = read(&mut world, PlatformFact::SnpStatus);
    assert_eq!((status.len(), status[2]), (32, 1));

    let config = SnpConfig { tcb: 0x0101_0000_0000_0001, mask_chip_id: true };
    assert_eq!(world.ok(MEMORY, &config).status, Status::Ok);
    assert_eq!(read(&mut world, PlatformFact::SnpStatus).1[8], 1);
    let config = SnpConfig { tcb: 0xff01_0000_0000_0001, mask_chip_id: true };
    assert_eq!(world.ok(MEMORY, &config).firmware, Told::InvalidParam as u16);
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::SnpCommit }).status, Status::Ok);

    let (vm, report) = world.launch(0, VmKind::SevSnp);
    assert_eq!(report.status, Status::Ok);
    world.fake.log.clear();
    assert_eq!(world.ok(MEMORY, &SnpShutdownEx { flags: SnpShutdown::all() }).status, Status::Ok);
    assert_eq!(world.events(), [wbinvd, df_flush, Event::Command(mailbox::SNP_SHUTDOWN_EX, 0)]);
    assert!(!world.platform().snp && world.firmware.account().guests.get(vm).is_none());
    assert_eq!(world.ok(MEMORY, &SnpShutdownEx { flags: SnpShutdown::empty() }).cause, Cause::Processor);
    world.check_quiet();
}

#[test]
fn only_those_who_speak_for_the_platform_change_it() {
    let mut world = World::sev();
    world.fake.log.clear();
    for client in [vmm(0), caisson_proto::addr::ServiceId::new(0, 0)] {
        for command in PlatformCommand::ALL {
            assert_eq!(world.send(client, &PlatformDo { command: *command }, &[]), Err(Status::Denied));
        }
        assert_eq!(world.send(client, &INIT, &[]), Err(Status::Denied));
        assert_eq!(world.send(client, &SnpInit { rmp: true }, &[]), Err(Status::Denied));
        assert_eq!(world.send(client, &SnpConfig { tcb: 0, mask_chip_id: false }, &[]), Err(Status::Denied));
        assert_eq!(world.send(client, &SnpShutdownEx { flags: SnpShutdown::X86 }, &[]), Err(Status::Denied));
        assert_eq!(world.send(client, &PlatformRead { fact: PlatformFact::PekCsr }, &[]), Err(Status::Denied));
        assert_eq!(world.send(client, &PekCertImport {}, &[&[0; 8192]]), Err(Status::Denied));
    }
    assert_eq!(world.events(), []);
}

#[test]
fn a_flush_that_nobody_owes_isnt_done() {
    let mut world = World::sev();
    let report = world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush });
    assert_eq!((report.status, report.cause), (Status::Busy, Cause::Service));
    assert_eq!(world.events(), []);
    let vm = world.run_guest(0, VmKind::Sev);
    world.bury(vm);
    world.fake.log.clear();
    assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
    assert_eq!(world.events(), [Event::Wbinvd, Event::Command(mailbox::DF_FLUSH, 0)]);
}

#[test]
fn an_init_whose_flush_fails_is_made_up_for_by_the_first_launch() {
    let mut world = World::new();
    world.fake.fault(mailbox::DF_FLUSH, Fault::Fails(Told::HardwareErrorPlatform as u16));
    let report = world.ok(MEMORY, &INIT);
    assert_eq!((report.status, report.command), (Status::Busy, mailbox::DF_FLUSH));
    assert_eq!(world.platform().sev, PlatformState::Init);
    // Even if the kernel thought that nothing is owed: the processor says so, and is heard once.
    world.fake.rows.iter_mut().for_each(|row| row.state = AsidState::Free);
    world.fake.log.clear();
    assert_eq!(world.launch(0, VmKind::Sev).1.status, Status::Ok);
    let activate = |status: Told| Event::Command(mailbox::ACTIVATE, status as u16);
    assert_eq!(
        world.events()[1..],
        [activate(Told::DfFlushRequired), Event::Wbinvd, Event::Command(mailbox::DF_FLUSH, 0), activate(Told::Success)]
    );
}

#[test]
fn without_sev_everything_is_refused() {
    let mut fake = Fake::new();
    let mut firmware = Box::<caisson_sev_firmware::Firmware>::default();
    let machine = Fake::machine(caisson_proto::kernel::Features::WBNOINVD);
    firmware.start(&machine, &[3, 4], caisson_proto::addr::Tsc(1), &mut fake);
    let mut world = World { fake, firmware, honest: true };
    assert_eq!(world.platform().support, SevSupport::None);
    let vm = world.fake.vm(0, vmm(0), VmKind::Sev, 1);
    assert_eq!(world.send(vmm(0), &LaunchStart { vm, policy: 0, owner: false }, &[]), Err(Status::Unsupported));
    assert_eq!(world.send(MEMORY, &INIT, &[]), Err(Status::Unsupported));
    assert_eq!(world.send(vmm(0), &PlatformRead { fact: PlatformFact::ChipId }, &[]), Err(Status::Unsupported));
}
