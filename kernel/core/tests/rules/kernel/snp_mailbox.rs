//! SEV-SNP: whose the mailbox's own pages are by the RMP.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Spa};
use caisson_proto::kernel::*;
use caisson_proto::mailbox;
use caisson_proto::rmp::Entry;

use super::asids::NOBODY;
use super::fake::{MAIL, RMP};
use super::snp::{initialised, release, rmp};
use super::system::{FIRMWARE, LENT, PROCESSOR, System};

#[test]
fn what_the_processor_writes_is_its_own_until_it_was_reclaimed() {
    let mut system = initialised();
    let mail =
        |system: &System| -> Vec<bool> { (0..10).map(|page| rmp(system, MAIL.0 + page) == Entry::FIRMWARE).collect() };
    // What it only reads stays the host's.
    system.command(mailbox::SNP_CONFIG, NOBODY);
    assert!(!mail(&system).contains(&true));
    let lent = Some(caisson_proto::abi::Lease { pages: 2, ..LENT });
    let status = MailboxRing { command: mailbox::SNP_PLATFORM_STATUS, vm: NOBODY };
    system.machine.compose(&[0x40]);
    system.as_lender(FIRMWARE, &status, lent).unwrap();
    assert_eq!(mail(&system), [false, true, true, false, false, false, false, false, false, false]);
    let mailbox = system.machine.mailbox.unwrap();
    let load = |word: &std::sync::atomic::AtomicU32| word.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(load(mailbox.registers[1]), (MAIL.0 as u32 + 1) << 12, "the command lies in the second frame");
    assert_eq!(system.machine.command_written()[0], (MAIL.0 + 2) << 12 | 0x40);
    system.machine.answer(0);
    system.machine.copied.borrow_mut().clear();
    system.as_lender(FIRMWARE, &MailboxTake {}, lent).unwrap();
    let from: Vec<Spa> = system.machine.copied.borrow().iter().map(|(_, at, ..)| *at).collect();
    assert_eq!(from, [Frame(MAIL.0 + 1).spa(), Frame(MAIL.0 + 2).spa()], "and comes back from there");
    // Nothing else is rung meanwhile.
    for command in [mailbox::SNP_PLATFORM_STATUS, mailbox::SNP_CONFIG, mailbox::SNP_COMMIT] {
        assert_eq!(system.ring_processor(command, NOBODY, &[]), Err(Status::State), "{command:#x}");
    }
    let more = MailboxRing { command: mailbox::SNP_PAGE_RECLAIM, vm: NOBODY };
    system.machine.compose(&[mailbox::RECLAIM_MAILBOX]);
    system.machine.copied.borrow_mut().clear();
    assert_eq!(system.as_lender(FIRMWARE, &more, lent).err(), Some(Status::State), "with data");
    assert!(system.machine.copied.borrow().is_empty(), "nothing is written to what is the processor's");
    for page in [2, 1] {
        let reclaim = [mailbox::RECLAIM_MAILBOX];
        system.ring_processor(mailbox::SNP_PAGE_RECLAIM, NOBODY, &reclaim).unwrap();
        assert_eq!(system.machine.command()[0], (MAIL.0 + page) << 12, "the last first");
        system.answered(0x1a, 0);
        assert_eq!(system.ring_processor(mailbox::SNP_CONFIG, NOBODY, &[]), Err(Status::State), "it was refused");
        release(&system, MAIL.0 + page);
        system.ring_processor(mailbox::SNP_PAGE_RECLAIM, NOBODY, &reclaim).unwrap();
        system.answered(0, 0);
    }
    assert!(!mail(&system).contains(&true));
    let nothing = system.ring_processor(mailbox::SNP_PAGE_RECLAIM, NOBODY, &[mailbox::RECLAIM_MAILBOX]);
    assert_eq!(nothing, Err(Status::NotFound));
    system.command(mailbox::SNP_CONFIG, NOBODY);
}

#[test]
fn without_snp_the_mailbox_stays_the_hosts() {
    let never = System::new(1);
    let mut over = initialised();
    over.command(mailbox::SNP_SHUTDOWN_EX, NOBODY);
    for mut system in [never, over] {
        let shared = |system: &System| (0..10).all(|page| rmp(system, MAIL.0 + page) == Entry::SHARED);
        system.ring_processor(mailbox::PLATFORM_STATUS, NOBODY, &[]).unwrap();
        assert!(shared(&system), "while the processor writes its answer");
        system.answered(0, 0);
        assert!(shared(&system));
        // So nothing has to come back before the next one.
        system.command(mailbox::PLATFORM_STATUS, NOBODY);
    }
}

#[test]
fn only_the_mailbox_and_the_rmp_are_the_processors_of_what_is_the_kernels() {
    let mut system = System::new(1);
    let copy = |system: &mut System, frame| {
        let request = SiliconCopy { at: Frame(frame).spa(), bytes: 16, write: true };
        system.as_lender(PROCESSOR, &request, Some(LENT)).map(|_| ())
    };
    let last = RMP.0 + 15;
    for (frame, expected) in [(MAIL.0, Ok(())), (MAIL.0 + 9, Ok(())), (RMP.0, Ok(())), (last, Ok(()))] {
        assert_eq!(copy(&mut system, frame), expected, "{frame}");
    }
    for frame in [0, MAIL.0 - 1, MAIL.0 + 10, RMP.0 - 1, last + 1] {
        assert_eq!(copy(&mut system, frame), Err(Status::State), "{frame}");
    }
}
