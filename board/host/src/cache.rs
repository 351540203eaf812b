//! Caches whose lines carry (frame, C-bit and ASID, dirty), and DRAM by (frame, key).
//!
//! A frame is one line, and one word. The aliases of a frame, plain or under a guest's ASID, are lines of their own, and
//! aren't coherent with each other (no SME_COHERENT); lines of one alias are, between all CPUs. Any line may be
//! evicted at any time. One that is written back over what has a new owner is corruption.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

/// Whose a frame is, as far as caches are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// Nobody's: nothing in it matters.
    Nobody,
    /// The kernel's.
    Kernel,
    /// A VM's, used plainly.
    Shared(u32),
    /// A VM's, encrypted.
    Private(u32),
    /// The secure processor's.
    Firmware,
}

#[derive(Clone, Debug)]
struct Line {
    value: u64,
    /// The CPU that has to write it back.
    dirty: Option<u16>,
    holders: BTreeSet<u16>,
    /// The VM that wrote it, and when.
    vm: u32,
    step: u64,
}

type Tag = (u64, u32);

/// What is read where nothing sensible is.
const GARBAGE: u64 = 0xbad0_bad0_0000_0001;

/// All caches and all of memory.
#[derive(Debug, Default)]
pub struct Caches {
    lines: BTreeMap<Tag, Line>,
    /// Tags of the lines that each CPU holds, dirty or not.
    held: Vec<BTreeSet<Tag>>,
    /// Key under which memory was written, and what. Absent: plain zero.
    dram: BTreeMap<u64, (u64, u64)>,
    hands: BTreeMap<u64, (Hand, u64)>,
    /// Dirty lines of guests' aliases.
    secret: BTreeSet<Tag>,
    /// Keys by ASID.
    keys: BTreeMap<u32, u64>,
    /// Written back, and perhaps not encrypted yet: ASID and key.
    fabric: Vec<(u32, u64)>,
    /// Frames that changed hands just now: chance likes to evict their lines.
    hot: Vec<u64>,
    /// What went wrong first.
    broken: Option<String>,
    /// The present step.
    pub step: u64,
    /// Lines written back, by flushes and by eviction.
    pub written: u64,
}

impl Caches {
    /// Empty caches of so many CPUs.
    pub fn new(cpus: usize) -> Self {
        Self { held: vec![BTreeSet::new(); cpus], ..Self::default() }
    }

    /// Takes what went wrong.
    pub fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// The key of an ASID; 0 for the plain alias. `None` while it has none.
    pub fn key(&self, asid: u32) -> Option<u64> {
        if asid == 0 { Some(0) } else { self.keys.get(&asid).copied() }
    }

    /// Whose a frame is.
    pub fn hand(&self, frame: u64) -> Hand {
        self.hands.get(&frame).map_or(Hand::Nobody, |(hand, _)| *hand)
    }

    /// A frame changes hands.
    pub fn give(&mut self, frame: u64, hand: Hand) {
        self.hands.insert(frame, (hand, self.step));
        if hand != Hand::Nobody && self.lines.range((frame, 0)..=(frame, u32::MAX)).next().is_some() {
            self.hot.push(frame);
        }
    }

    fn in_dram(&self, frame: u64, asid: u32) -> u64 {
        let (key, value) = self.dram.get(&frame).copied().unwrap_or((0, 0));
        if self.key(asid) == Some(key) { value } else { GARBAGE ^ value ^ key }
    }

    /// What a CPU reads.
    pub fn read(&mut self, cpu: usize, frame: u64, asid: u32) -> u64 {
        let (vm, step, value) = (0, self.step, self.in_dram(frame, asid));
        let new = || Line { value, dirty: None, holders: BTreeSet::new(), vm, step };
        let line = self.lines.entry((frame, asid)).or_insert_with(new);
        line.holders.insert(cpu as u16);
        let value = line.value;
        self.held[cpu].insert((frame, asid));
        value
    }

    /// What anybody would read plainly.
    pub fn peek(&self, frame: u64) -> u64 {
        self.lines.get(&(frame, 0)).map_or_else(|| self.in_dram(frame, 0), |line| line.value)
    }

    /// A CPU writes, for a VM or for the kernel.
    pub fn write(&mut self, cpu: usize, frame: u64, asid: u32, vm: u32, value: u64) {
        let tag = (frame, asid);
        let holders = BTreeSet::from([cpu as u16]);
        let line = Line { value, dirty: Some(cpu as u16), holders, vm, step: self.step };
        if let Some(before) = self.lines.insert(tag, line) {
            for holder in before.holders {
                self.held[usize::from(holder)].remove(&tag);
            }
        }
        self.held[cpu].insert(tag);
        if asid != 0 {
            self.secret.insert(tag);
        }
    }

    /// Lines of guests' aliases that have still to be written back: frame, ASID, the CPU that has to, and since when.
    pub fn owed(&self) -> impl Iterator<Item = (u64, u32, u16, u64)> {
        let line = |tag: &Tag| self.lines.get(tag).and_then(|line| Some((tag.0, tag.1, line.dirty?, line.step)));
        self.secret.iter().filter_map(line)
    }

    /// Writes a line back, if it is dirty.
    fn clean(&mut self, tag @ (frame, asid): Tag) {
        let Some(line) = self.lines.get_mut(&tag) else { return };
        let Some(cpu) = line.dirty.take() else { return };
        let (value, vm, at) = (line.value, line.vm, line.step);
        self.secret.remove(&tag);
        self.written += 1;
        let (hand, since) = self.hands.get(&frame).copied().unwrap_or((Hand::Nobody, 0));
        let right = match hand {
            Hand::Nobody => true,
            Hand::Kernel => asid == 0,
            Hand::Shared(of) => asid == 0 || of == vm,
            // What a mad guest does to its own private pages harms itself alone.
            Hand::Private(of) => of == vm && (asid != 0 || at > since),
            Hand::Firmware => false,
        };
        if !right {
            let alias = if asid == 0 { "plain".into() } else { format!("ASID {asid}, VM {vm:#x}") };
            self.fail(format!(
                "corruption: cpu{cpu} writes back frame {frame:#x} ({alias}) that it dirtied at step {at}; it is \
                 {hand:x?} since step {since}"
            ));
        }
        let key = self.key(asid).unwrap_or(GARBAGE);
        self.dram.insert(frame, (key, value));
        if asid != 0 {
            self.fabric.push((asid, key));
        }
    }

    fn drop_line(&mut self, tag: Tag) {
        self.clean(tag);
        if let Some(line) = self.lines.remove(&tag) {
            for holder in line.holders {
                self.held[usize::from(holder)].remove(&tag);
            }
        }
    }

    /// WBNOINVD of a CPU, or WBINVD.
    pub fn write_back(&mut self, cpu: usize, invalidate: bool) {
        let held: Vec<Tag> = self.held[cpu].iter().copied().collect();
        for tag in held {
            if self.lines.get(&tag).is_some_and(|line| line.dirty == Some(cpu as u16)) {
                self.clean(tag);
            }
            if invalidate && let Some(line) = self.lines.get_mut(&tag) {
                line.holders.remove(&(cpu as u16));
                if line.holders.is_empty() && line.dirty.is_none() {
                    self.lines.remove(&tag);
                }
                self.held[cpu].remove(&tag);
            }
        }
    }

    /// CLFLUSH of frames' lines of one alias, or VM_PAGE_FLUSH.
    pub fn flush(&mut self, first: u64, pages: u64, asid: u32) {
        (first..first + pages).for_each(|frame| self.drop_line((frame, asid)));
    }

    /// The lines of a frame that changed hands are evicted, if there is one. That is the worst time for it.
    pub fn evict_hot(&mut self) {
        if let Some(frame) = self.hot.pop() {
            let tags: Vec<Tag> = self.lines.range((frame, 0)..=(frame, u32::MAX)).map(|(tag, _)| *tag).collect();
            tags.into_iter().for_each(|tag| self.drop_line(tag));
        }
    }

    /// Some line is evicted.
    pub fn evict(&mut self, rng: &Rng, frames: u64) {
        let from = (rng.below(frames), 0);
        if let Some(tag) = self.lines.range(from..).next().map(|(tag, _)| *tag) {
            if rng.chance(1, 2) { self.drop_line(tag) } else { self.clean(tag) }
        }
        if rng.chance(1, 4) {
            self.fabric.pop();
        }
    }

    /// What the processor reads, past all caches.
    pub fn dram(&self, frame: u64) -> u64 {
        self.in_dram(frame, 0)
    }

    /// What the processor writes through a guest's key, past all caches.
    pub fn put(&mut self, frame: u64, asid: u32, value: u64) {
        let key = self.key(asid).unwrap_or(GARBAGE);
        self.dram.insert(frame, (key, value));
    }

    /// A guest's key is loaded. Nothing of who had the ASID before may be left.
    pub fn install_key(&mut self, asid: u32, key: u64) {
        let left = self.lines.iter().find(|((_, of), _)| *of == asid);
        let left = left.map(|((frame, _), line)| (*frame, line.dirty, line.vm, line.holders.first().copied()));
        if let Some((frame, dirty, vm, holder)) = left {
            self.fail(format!(
                "corruption: ASID {asid} gets a new guest while cpu{holder:?} holds a line of frame {frame:#x} of VM \
                 {vm:#x} under it (dirty: {})",
                dirty.is_some()
            ));
        }
        if self.fabric.iter().any(|(of, with)| *of == asid && *with != key) {
            self.fail(format!("corruption: ASID {asid} gets a new guest while its last one's lines are in the fabric"));
        }
        self.keys.insert(asid, key);
    }

    /// It is taken out.
    pub fn remove_key(&mut self, asid: u32) {
        self.keys.remove(&asid);
    }

    /// DF_FLUSH.
    pub fn flush_fabric(&mut self) {
        self.fabric.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: u32 = 7;
    const FRAME: u64 = 3;

    /// A frame that is a VM's under ASID 5, with a dirty line on CPU 0.
    fn dirty() -> Caches {
        let mut caches = Caches::new(2);
        caches.install_key(5, 55);
        caches.give(FRAME, Hand::Private(VM));
        caches.write(0, FRAME, 5, VM, 1);
        caches
    }

    #[test]
    fn aliases_are_not_coherent_and_cpus_are() {
        let mut caches = dirty();
        assert_eq!(caches.read(1, FRAME, 5), 1);
        assert_eq!(caches.read(1, FRAME, 0), 0, "plainly memory still reads zero");
        caches.write_back(0, true);
        assert_eq!(caches.read(0, FRAME, 5), 1, "cpu1 has it, and memory has it encrypted");
        caches.flush(FRAME, 1, 0);
        assert_ne!(caches.read(0, FRAME, 0), 1);
        assert_eq!(caches.take_broken(), None);
    }

    #[test]
    fn an_encrypted_line_over_anybody_elses_frame_is_corruption() {
        for hand in [Hand::Kernel, Hand::Shared(8), Hand::Private(8), Hand::Firmware] {
            let mut caches = dirty();
            caches.give(FRAME, hand);
            caches.write_back(1, false);
            assert_eq!(caches.take_broken(), None);
            caches.write_back(0, false);
            assert!(caches.take_broken().is_some(), "{hand:?}");
        }
        for hand in [Hand::Nobody, Hand::Shared(VM)] {
            let mut caches = dirty();
            caches.give(FRAME, hand);
            caches.write_back(0, false);
            assert_eq!(caches.take_broken(), None, "{hand:?}");
        }
    }

    #[test]
    fn a_plain_line_over_a_private_frame_is_corruption() {
        for hand in [Hand::Private(VM), Hand::Firmware] {
            let mut caches = Caches::new(1);
            caches.write(0, FRAME, 0, VM, 1);
            caches.give(FRAME, hand);
            caches.evict_hot();
            assert!(caches.take_broken().is_some(), "{hand:?}");
        }
    }

    #[test]
    fn a_recycled_asid_leaves_nothing() {
        let mut caches = dirty();
        caches.write_back(0, false);
        caches.remove_key(5);
        caches.install_key(5, 66);
        assert!(caches.take_broken().is_some(), "WBNOINVD leaves the line valid");
        let mut caches = dirty();
        caches.write_back(0, true);
        caches.remove_key(5);
        caches.install_key(5, 66);
        assert!(caches.take_broken().is_some(), "the fabric wasn't flushed");
        let mut caches = dirty();
        caches.write_back(0, true);
        caches.flush_fabric();
        caches.remove_key(5);
        caches.install_key(5, 66);
        assert_eq!(caches.take_broken(), None);
        assert_ne!(caches.read(0, FRAME, 5), 1, "memory was written with another key");
    }
}
