//! Caches whose lines carry (frame, C-bit and ASID, dirty), and DRAM by (frame, key).
//!
//! A frame is one line, and one word. The aliases of a frame, plain or under a guest's ASID, are lines of their own, and
//! aren't coherent with each other (no SME_COHERENT); lines of one alias are, between all CPUs. Any line may be
//! evicted at any time. One that is written back over what has a new owner is corruption.

use std::collections::BTreeSet;

use crate::bits::Bits;
use crate::place::{Hand, Holders, Line, Place};
use crate::rng::Rng;

type Tag = (u64, u32);

/// What is read where nothing sensible is.
const GARBAGE: u64 = 0xbad0_bad0_0000_0001;

/// All caches and all of memory.
#[derive(Debug, Default)]
pub struct Caches {
    /// By frame.
    places: Vec<Place>,
    /// Frames that have lines.
    cached: Bits,
    /// Frames of which each CPU holds lines, dirty or not; and some of which it did.
    held: Vec<Bits>,
    /// Dirty lines of guests' aliases.
    secret: BTreeSet<Tag>,
    /// Keys by ASID.
    keys: Vec<Option<u64>>,
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
    /// Empty caches of so many CPUs, before so many frames.
    pub fn new(cpus: usize, frames: u64) -> Self {
        let places = vec![Place::NEW; frames as usize];
        Self { places, held: vec![Bits::new(frames); cpus], cached: Bits::new(frames), ..Self::default() }
    }

    /// Takes what went wrong.
    pub fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    fn fail(&mut self, what: impl FnOnce() -> String) {
        self.broken.get_or_insert_with(what);
    }

    fn place(&mut self, frame: u64) -> &mut Place {
        let at = frame as usize;
        if at >= self.places.len() {
            self.places.resize(at + 1, Place::NEW);
        }
        &mut self.places[at]
    }

    fn lines(&self, frame: u64) -> &[Line] {
        self.places.get(frame as usize).map_or(&[], |place| &place.lines)
    }

    /// The key of an ASID; 0 for the plain alias. `None` while it has none.
    pub fn key(&self, asid: u32) -> Option<u64> {
        if asid == 0 { Some(0) } else { self.keys.get(asid as usize).copied().flatten() }
    }

    /// Whose a frame is.
    pub fn hand(&self, frame: u64) -> Hand {
        self.places.get(frame as usize).map_or(Hand::Nobody, |place| place.hand)
    }

    /// A frame changes hands.
    pub fn give(&mut self, frame: u64, hand: Hand) {
        let step = self.step;
        let place = self.place(frame);
        (place.hand, place.since) = (hand, step);
        if hand != Hand::Nobody && !place.lines.is_empty() {
            self.hot.push(frame);
        }
    }

    fn in_dram(&self, frame: u64, asid: u32) -> u64 {
        let (key, value) = self.places.get(frame as usize).map_or((0, 0), |place| (place.key, place.value));
        if self.key(asid) == Some(key) { value } else { GARBAGE ^ value ^ key }
    }

    /// What a CPU reads.
    pub fn read(&mut self, cpu: usize, frame: u64, asid: u32) -> u64 {
        let (vm, step) = (0, self.step);
        let line = match self.place(frame).find(asid) {
            Ok(at) => &mut self.places[frame as usize].lines[at],
            Err(at) => {
                let value = self.in_dram(frame, asid);
                self.cached.insert(frame);
                let lines = &mut self.places[frame as usize].lines;
                lines.insert(at, Line { asid, value, dirty: None, holders: Holders::default(), vm, step });
                &mut lines[at]
            }
        };
        let (value, new) = (line.value, line.holders.insert(cpu));
        if new {
            self.held[cpu].insert(frame);
        }
        value
    }

    /// What anybody would read plainly.
    pub fn peek(&self, frame: u64) -> u64 {
        let line = self.places.get(frame as usize).and_then(|place| place.line(0));
        line.map_or_else(|| self.in_dram(frame, 0), |line| line.value)
    }

    /// A CPU writes, for a VM or for the kernel.
    pub fn write(&mut self, cpu: usize, frame: u64, asid: u32, vm: u32, value: u64) {
        let mut holders = Holders::default();
        holders.insert(cpu);
        let line = Line { asid, value, dirty: Some(cpu as u16), holders, vm, step: self.step };
        let place = self.place(frame);
        let was_dirty = match place.find(asid) {
            Ok(at) => std::mem::replace(&mut place.lines[at], line).dirty.is_some(),
            Err(at) => {
                place.lines.insert(at, line);
                self.cached.insert(frame);
                false
            }
        };
        self.held[cpu].insert(frame);
        if asid != 0 && !was_dirty {
            self.secret.insert((frame, asid));
        }
    }

    /// Lines of guests' aliases that have still to be written back: frame, ASID, the CPU that has to, and since when.
    pub fn owed(&self) -> impl Iterator<Item = (u64, u32, u16, u64)> {
        let line = |&(frame, asid): &Tag| {
            let line = self.places.get(frame as usize)?.line(asid)?;
            Some((frame, asid, line.dirty?, line.step))
        };
        self.secret.iter().filter_map(line)
    }

    /// Writes a line back, if it is dirty.
    fn clean(&mut self, (frame, asid): Tag) {
        let Some(place) = self.places.get_mut(frame as usize) else { return };
        let Ok(found) = place.find(asid) else { return };
        let line = &mut place.lines[found];
        let Some(cpu) = line.dirty.take() else { return };
        let (value, vm, at) = (line.value, line.vm, line.step);
        let (hand, since) = (place.hand, place.since);
        self.written += 1;
        let right = match hand {
            Hand::Nobody => true,
            Hand::Kernel => asid == 0,
            // What a mad guest does to its own pages harms itself alone.
            Hand::Shared(of) => asid == 0 || of == vm && at > since,
            Hand::Private(of) => of == vm && (asid != 0 || at > since),
            Hand::Firmware => false,
        };
        if !right {
            let alias = if asid == 0 { "plain".into() } else { format!("ASID {asid}, VM {vm:#x}") };
            self.fail(|| {
                format!(
                    "corruption: cpu{cpu} writes back frame {frame:#x} ({alias}) that it dirtied at step {at}; it is \
                     {hand:x?} since step {since}"
                )
            });
        }
        let key = self.key(asid).unwrap_or(GARBAGE);
        let place = self.place(frame);
        (place.key, place.value) = (key, value);
        if asid != 0 {
            self.secret.remove(&(frame, asid));
            // What a guest wrote that has no key, of a processor that lied, is nobody's secret.
            if key != GARBAGE {
                self.fabric.push((asid, key));
            }
        }
    }

    fn drop_line(&mut self, tag @ (frame, asid): Tag) {
        self.clean(tag);
        let place = self.place(frame);
        if let Ok(at) = place.find(asid) {
            place.lines.remove(at);
            if place.lines.is_empty() {
                self.cached.remove(frame);
            }
        }
    }

    /// WBNOINVD of a CPU, or WBINVD.
    pub fn write_back(&mut self, cpu: usize, invalidate: bool) {
        let mut from = 0;
        while let Some(frame) = self.held[cpu].next_from(from) {
            from = frame + 1;
            let mut at = 0;
            let mut holds = false;
            while let Some(line) = self.lines(frame).get(at) {
                let (asid, here) = (line.asid, line.holders.contains(cpu));
                at += 1;
                if !here {
                    continue;
                }
                if line.dirty == Some(cpu as u16) {
                    self.clean((frame, asid));
                }
                holds = true;
                if invalidate {
                    let lines = &mut self.places[frame as usize].lines;
                    let line = &mut lines[at - 1];
                    line.holders.remove(cpu);
                    if line.holders.is_empty() && line.dirty.is_none() {
                        at -= 1;
                        lines.remove(at);
                        if lines.is_empty() {
                            self.cached.remove(frame);
                        }
                    }
                }
            }
            if invalidate || !holds {
                self.held[cpu].remove(frame);
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
            while let Some(line) = self.lines(frame).first() {
                self.drop_line((frame, line.asid));
            }
        }
    }

    /// Some line is evicted, of whichever alias.
    pub fn evict(&mut self, rng: &Rng, frames: u64) {
        if let Some(frame) = self.cached.next_from(rng.below(frames))
            && let Some(&Line { asid, .. }) = rng.one_of(self.lines(frame))
        {
            if rng.chance(1, 2) { self.drop_line((frame, asid)) } else { self.clean((frame, asid)) }
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
        let place = self.place(frame);
        (place.key, place.value) = (key, value);
    }

    /// A guest's key is loaded. Nothing of who had the ASID before may be left.
    pub fn install_key(&mut self, asid: u32, key: u64) {
        let under = |frame| self.places.get(frame as usize)?.line(asid).map(|line| (frame, line.clone()));
        let left = self.cached.iter().find_map(under);
        if let Some((frame, Line { dirty, vm, holders, .. })) = left {
            let (holder, dirty) = (holders.first(), dirty.is_some());
            self.fail(|| {
                format!(
                    "corruption: ASID {asid} gets a new guest while cpu{holder:?} holds a line of frame {frame:#x} of VM \
                     {vm:#x} under it (dirty: {dirty})"
                )
            });
        }
        if self.fabric.iter().any(|(of, with)| *of == asid && *with != key) {
            self.fail(|| {
                format!("corruption: ASID {asid} gets a new guest while its last one's lines are in the fabric")
            });
        }
        let at = asid as usize;
        if self.keys.len() <= at {
            self.keys.resize(at + 1, None);
        }
        self.keys[at] = Some(key);
    }

    /// It is taken out.
    pub fn remove_key(&mut self, asid: u32) {
        if let Some(key) = self.keys.get_mut(asid as usize) {
            *key = None;
        }
    }

    /// DF_FLUSH.
    pub fn flush_fabric(&mut self) {
        self.fabric.clear();
    }
}

#[cfg(test)]
mod tests;
