//! Guest memory page by page: what is backed, what was given back, and what comes back for it.

use caisson_fuzz::guest::fake::Fake;
use caisson_proto::abi::Status;
use caisson_vmm::ram::{CHUNK, HIGH_START, LOW_END, NoMemory, Ram};
use proptest::prelude::*;

const PAGE: u64 = 4096;

fn machine(bytes: u64) -> (Ram, Fake) {
    (Ram::new(bytes), Fake::new(bytes, 1))
}

#[test]
fn a_page_given_back_alone_comes_back_alone() {
    let (mut ram, mut fake) = machine(2 * CHUNK);
    ram.write(&mut fake, 5 * PAGE, b"here").unwrap();
    ram.release(&mut fake, 4, 2).unwrap();
    assert_eq!(fake.given_back, [(4, 2)]);
    assert!(ram.is_backed(3 * PAGE) && !ram.is_backed(4 * PAGE) && !ram.is_backed(5 * PAGE) && ram.is_backed(6 * PAGE));
    let mut seen = [1; 4];
    ram.read(&mut fake, 5 * PAGE, &mut seen).unwrap();
    assert_eq!(seen, [0; 4], "what was in it is lost");
    assert!(!ram.is_backed(4 * PAGE), "the balloon has that one still");
}

#[test]
fn a_chunk_given_back_whole_comes_back_whole() {
    let (mut ram, mut fake) = machine(4 * CHUNK);
    ram.back(&mut fake, 0).unwrap();
    ram.back(&mut fake, CHUNK).unwrap();
    // What was never there costs nobody a call.
    ram.release(&mut fake, 1, 1023 + 512).unwrap();
    assert_eq!(fake.given_back, [(1, 511), (512, 512)]);
    ram.back(&mut fake, CHUNK + 7 * PAGE).unwrap();
    assert!((512..1024).all(|page| ram.is_backed(page * PAGE)));
    ram.back(&mut fake, 7 * PAGE).unwrap();
    assert!(!ram.is_backed(8 * PAGE));
}

#[test]
fn what_cannot_be_given_back() {
    let (mut ram, mut fake) = machine(CHUNK);
    for (gfn, pages) in [(512, 1), (511, 2), (u64::MAX, 1), (u64::MAX, 2), (0, u64::MAX)] {
        assert_eq!(ram.release(&mut fake, gfn, pages), Err(Status::Range), "{gfn:#x} {pages:#x}");
    }
    ram.release(&mut fake, 3, 0).unwrap();
    ram.seal(&mut fake).unwrap();
    assert_eq!(ram.release(&mut fake, 0, 1), Err(Status::State), "it is the guest's alone");
    assert!(fake.given_back.is_empty());
}

#[test]
fn nothing_reaches_across_the_hole() {
    let mut ram = Ram::new(LOW_END + CHUNK);
    let mut fake = Fake::new(CHUNK, 1);
    let across = (HIGH_START - LOW_END) / PAGE + 1;
    assert_eq!(ram.release(&mut fake, LOW_END / PAGE - 1, across), Err(Status::Range));
    ram.release(&mut fake, LOW_END / PAGE - 1, 1).unwrap();
    ram.release(&mut fake, HIGH_START / PAGE, CHUNK / PAGE).unwrap();
}

#[test]
fn a_memory_that_dies_meanwhile_is_not_touched() {
    let (mut ram, mut fake) = machine(CHUNK);
    ram.back(&mut fake, 0).unwrap();
    fake.refuse_memory = true;
    assert_eq!(ram.release(&mut fake, 0, 512), Err(Status::Dead));
    assert!(!ram.is_backed(0));
    assert_eq!(ram.read(&mut fake, 0, &mut [0]), Err(NoMemory { gpa: 0, refused: Some(Status::Exhausted) }));
    fake.refuse_memory = false;
    ram.read(&mut fake, 0, &mut [0]).unwrap();
}

#[test]
fn what_was_asked_for_is_given_back_until_memory_took_it() {
    let (mut ram, mut fake) = machine(2 * CHUNK);
    ram.back(&mut fake, 0).unwrap();
    fake.refuse_memory = true;
    assert_eq!(ram.release(&mut fake, 0, 512), Err(Status::Dead));
    assert_eq!(ram.release(&mut fake, 0, 512), Err(Status::Dead), "it may be there still");
    fake.refuse_memory = false;
    ram.release(&mut fake, 0, 512).unwrap();
    ram.release(&mut fake, 0, 512).unwrap();
    assert_eq!(fake.given_back, [(0, 512), (0, 512), (0, 512)], "and then it isn't");
    // Of a chunk that didn't come as a whole, parts may have come.
    fake.refuse_chunks = true;
    ram.back(&mut fake, CHUNK).unwrap();
    fake.given_back.clear();
    ram.release(&mut fake, 512 + 7, 3).unwrap();
    assert_eq!(fake.given_back, [(512 + 7, 3)]);
}

#[test]
fn the_last_pages_come_one_by_one() {
    let (mut ram, mut fake) = machine(2 * CHUNK);
    fake.refuse_chunks = true;
    ram.back(&mut fake, 5 * PAGE).unwrap();
    assert!(ram.is_backed(5 * PAGE) && !ram.is_backed(6 * PAGE));
    // What comes later comes so, too: some of the chunk may be there.
    fake.refuse_chunks = false;
    ram.back(&mut fake, 6 * PAGE).unwrap();
    assert!(ram.is_backed(6 * PAGE) && !ram.is_backed(7 * PAGE));
    ram.back(&mut fake, CHUNK).unwrap();
    assert!(ram.is_backed(2 * CHUNK - PAGE));
    fake.refuse_memory = true;
    assert_eq!(ram.back(&mut fake, 9 * PAGE), Err(NoMemory { gpa: 9 * PAGE, refused: Some(Status::Exhausted) }));
    assert!(!ram.is_backed(9 * PAGE));
}

proptest! {
    /// [`Fake`] fails the test if anything is accessed that isn't there.
    #[test]
    fn whatever_is_given_back_and_touched(
        steps in prop::collection::vec((0..3u8, 0..3 * 512u64, 1..1100u64, any::<u8>()), 1..60),
    ) {
        let (mut ram, mut fake) = machine(3 * CHUNK);
        let mut model = vec![0; 3 * 512];
        for (act, page, pages, value) in steps {
            match act {
                0 => {
                    let fits = page + pages <= 3 * 512;
                    prop_assert_eq!(ram.release(&mut fake, page, pages).is_ok(), fits);
                    if fits {
                        model[page as usize..(page + pages) as usize].fill(0);
                        prop_assert!((page..page + pages).all(|page| !ram.is_backed(page * PAGE)));
                    }
                }
                1 => {
                    ram.write(&mut fake, page * PAGE + 9, &[value]).unwrap();
                    model[page as usize] = value;
                }
                _ => {
                    let mut seen = [!0];
                    ram.read(&mut fake, page * PAGE + 9, &mut seen).unwrap();
                    prop_assert_eq!(seen[0], model[page as usize]);
                }
            }
            for page in 0..3 * 512 {
                prop_assert_eq!(ram.is_backed(page as u64 * PAGE), fake.backed[page]);
            }
        }
    }
}
