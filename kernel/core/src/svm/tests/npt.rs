extern crate std;

use std::collections::BTreeMap;
use std::vec::Vec;

use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn};
use caisson_proto::kernel::Access;
use proptest::prelude::*;

use crate::machine::{Removed, TablePool};
use crate::svm::npt::{ENTRIES, Tables, Tree, drop_all, look_up, map, unmap};

#[derive(Default)]
struct Memory(BTreeMap<u64, Vec<u64>>);

impl Tables for Memory {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.0.get(&table.0).map_or(0, |table| table[index])
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.0.entry(table.0).or_insert_with(|| std::vec![0; ENTRIES])[index] = entry;
    }
}

struct Pool {
    next: u64,
    left: usize,
    back: Vec<u64>,
}

impl Pool {
    fn new(left: usize) -> Self {
        Self { next: 0x1000, left, back: Vec::new() }
    }
}

impl TablePool for Pool {
    fn take(&mut self) -> Option<Frame> {
        self.left = self.left.checked_sub(1)?;
        self.next += 1;
        Some(Frame(self.next))
    }
    fn give_back(&mut self, frame: Frame) {
        self.back.push(frame.0);
    }
}

const ROOT: Tree = Tree::nested(Frame(0x1000));

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, frame: u64, pages: u64, access: Access },
    Unmap { from: u64, pages: u64 },
}

/// Pages round the edges of tables of each level.
fn page() -> impl Strategy<Value = u64> {
    let base = prop_oneof![Just(0), Just(512), Just(1 << 18), Just((1 << 27) - 1024), Just((1 << 36) - 1024)];
    (base, prop_oneof![0..1024u64, Just(0), Just(512)]).prop_map(|(base, offset)| base + offset)
}

fn step() -> impl Strategy<Value = Step> {
    let frame = prop_oneof![0..0x10_0000u64, (0..0x800u64).prop_map(|large| large * 512)];
    let pages = prop_oneof![1..5u64, Just(512), 1..=512u64];
    let access = (0..4u8).prop_map(|bits| Access::READ | Access::from_bits_truncate(bits << 1));
    prop_oneof![
        3 => (page(), frame, pages, access).prop_map(|(page, frame, pages, access)| Step::Map { page, frame, pages, access }),
        2 => (page(), prop_oneof![1..8u64, 1..2000u64]).prop_map(|(from, pages)| Step::Unmap { from, pages }),
    ]
}

proptest! {
    #![proptest_config(super::cases(64))]

    #[test]
    fn maps_what_a_map_does(steps in prop::collection::vec(step(), 1..16), tables in 4..30usize) {
        let (mut memory, mut pool) = (Memory::default(), Pool::new(tables));
        let mut model: BTreeMap<u64, (u64, Access)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Map { page, frame, pages, access } => {
                    let free = model.range(page..page + pages).next().is_none();
                    match map(&mut memory, ROOT, Gfn(page), Frame(frame), pages, access, &mut pool) {
                        Ok(()) => {
                            prop_assert!(free && page + pages <= ROOT.end());
                            model.extend((0..pages).map(|at| (page + at, (frame + at, access))));
                        }
                        Err(Status::Range) => prop_assert!(page + pages > ROOT.end()),
                        Err(Status::State) => prop_assert!(!free),
                        Err(error) => prop_assert!(error == Status::Exhausted && pool.left == 0),
                    }
                }
                Step::Unmap { from, pages } => {
                    let mut at = from;
                    loop {
                        match unmap(&mut memory, ROOT, Gfn(at), Gfn(from + pages), &mut pool) {
                            Ok(Some(Removed { gfn, frame, pages: removed })) => {
                                prop_assert_eq!(model.range(at..from + pages).next().map(|(page, _)| *page), Some(gfn.0));
                                for number in 0..removed {
                                    let gone = model.remove(&(gfn.0 + number)).map(|(frame, _)| frame);
                                    prop_assert_eq!(gone, Some(frame.0 + number));
                                }
                                at = gfn.0 + removed;
                                prop_assert!(at <= from + pages);
                            }
                            Ok(None) => {
                                prop_assert!(model.range(from..from + pages).next().is_none());
                                break;
                            }
                            Err(error) => {
                                prop_assert!(error == Status::Exhausted && pool.left == 0);
                                break;
                            }
                        }
                    }
                }
            }
        }
        for (page, (frame, access)) in &model {
            let found = look_up(&memory, ROOT, Gfn(*page)).map(|found| (found.frame.0, found.access));
            prop_assert_eq!(found, Some((*frame, *access)));
        }
        let taken = pool.next - 0x1000;
        let mut at = 0;
        while let Ok(Some(removed)) = unmap(&mut memory, ROOT, Gfn(at), Gfn(ROOT.end()), &mut pool) {
            at = removed.gfn.0 + removed.pages;
        }
        drop_all(&mut memory, ROOT, &mut pool);
        pool.back.sort_unstable();
        prop_assert_eq!(pool.back, (0x1000..=0x1000 + taken).collect::<Vec<_>>());
        prop_assert!(memory.0.values().flatten().all(|entry| *entry == 0));
    }
}

#[test]
fn large_pages_are_made_and_split() {
    let (mut memory, mut pool) = (Memory::default(), Pool::new(3));
    map(&mut memory, ROOT, Gfn(512), Frame(1024), 512, Access::all(), &mut pool).unwrap();
    assert_eq!(pool.left, 1);
    assert_eq!(look_up(&memory, ROOT, Gfn(513)).unwrap().pages, 512);
    let removed = unmap(&mut memory, ROOT, Gfn(520), Gfn(521), &mut pool).unwrap().unwrap();
    assert_eq!(removed, Removed { gfn: Gfn(520), frame: Frame(1032), pages: 1 });
    assert_eq!(look_up(&memory, ROOT, Gfn(521)).unwrap().frame, Frame(1033));
    assert_eq!(look_up(&memory, ROOT, Gfn(520)), None);
    // Small pages stay small: the table is there.
    while unmap(&mut memory, ROOT, Gfn(512), Gfn(1024), &mut pool).unwrap().is_some() {}
    map(&mut memory, ROOT, Gfn(512), Frame(1024), 512, Access::READ, &mut pool).unwrap();
    assert_eq!(look_up(&memory, ROOT, Gfn(513)).unwrap().pages, 1);
}

#[test]
fn refuses_nonsense() {
    let (mut memory, mut pool) = (Memory::default(), Pool::new(9));
    for (gfn, pages, access) in [
        (0, 0, Access::READ),
        (0, 513, Access::READ),
        (0, 1, Access::WRITE),
        (ROOT.end(), 1, Access::READ),
        (u64::MAX, 2, Access::READ),
    ] {
        let result = map(&mut memory, ROOT, Gfn(gfn), Frame(0), pages, access, &mut pool);
        assert_eq!(result, Err(Status::Range));
    }
    assert_eq!(unmap(&mut memory, ROOT, Gfn(u64::MAX), Gfn(u64::MAX), &mut pool), Ok(None));
    assert_eq!(look_up(&memory, ROOT, Gfn(u64::MAX)), None);
    assert_eq!(pool.left, 9);
}
