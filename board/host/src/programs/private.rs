//! Pages that a vmm makes its guest's alone, or shared again; holes in them; contents for them; and memory that breaks.

use std::collections::BTreeSet;
use std::ops::Range;

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Frame, Gfn, VPage, VmId};
use caisson_proto::kernel::{FrameState, VmKind};
use caisson_proto::memory::{Attribute, Fill, GiveBack, GmemMake, Poison, Populate, Punch, SlotInfo};
use caisson_proto::slots::{GmemAddress, GmemId, SlotId};

use super::judge::Judge;
use super::shown::{WHOLE, finish};
use crate::hardware::LENDABLE;
use crate::seen::Seen;
use crate::service::Sys;

/// Frames that break on one machine, at the most: they are lost to everybody.
const BROKEN: usize = 16;
/// Pages of an encrypted VM below this are its launch's.
const LAUNCHED: u64 = 16;
/// How often a page is asked for whose kind memory doesn't know, or that is broken.
const ATTEMPTS: u32 = 4;

/// What the vmm of a VM knows of it.
pub struct Private {
    judge: Judge,
    /// What it wants private.
    pages: BTreeSet<u64>,
    /// Where private memory lies, as long as memory lives.
    pub gmem: GmemId,
}

impl Private {
    /// Everything is shared.
    pub fn new(judge: Judge) -> Self {
        Self { judge, pages: BTreeSet::new(), gmem: GmemId(0) }
    }

    fn vm(&self) -> VmId {
        self.judge.vm
    }

    /// The run of pages that are wanted as this one, within a range around it.
    fn run(&self, gfn: u64, within: Range<u64>) -> Range<u64> {
        let alike = |page: &u64| self.pages.contains(page) == self.pages.contains(&gfn);
        let start = (within.start..gfn).rev().take_while(alike).last().unwrap_or(gfn);
        start..(gfn..within.end).take_while(alike).last().map_or(gfn, |last| last + 1)
    }

    /// Backs pages around one that the guest reached for, as it wants them.
    pub fn populate(&mut self, sys: &Sys<'_>, gfn: u64, around: Range<u64>) -> Result<(), Status> {
        let mut answer = Err(Status::Busy);
        let mut range = self.run(gfn, around);
        for _ in 0..ATTEMPTS {
            let private = self.pages.contains(&gfn);
            answer = self.ask(sys, &range, private);
            match answer {
                // A memory that was started anew doesn't know what was wanted.
                Err(Status::State) if private => {
                    let unknown = !self.judge.quiet(sys) || self.judge.kind != VmKind::Plain;
                    sys.world.check(unknown, || format!("memory forgot what is private in {:?}", self.vm()));
                    self.tell(sys)?;
                }
                // Other memory takes the place of what is broken; its neighbours are left alone.
                Err(Status::Poisoned) if range.end - range.start > 1 => range = gfn..gfn + 1,
                Err(Status::Poisoned) => self.punch(sys, gfn, 1)?,
                _ => return answer,
            }
        }
        answer
    }

    fn ask(&self, sys: &Sys<'_>, range: &Range<u64>, private: bool) -> Result<(), Status> {
        let (vm, pages) = (self.vm(), range.end - range.start);
        let request = Populate { vm, gfn: Gfn(range.start), pages, private };
        // After a restart what is there stays as it is.
        let told = self.judge.quiet(sys);
        let right = |_: &_, gfn, was: Option<Seen>, is: Option<Seen>| match is {
            Some(page) if range.contains(&gfn) => {
                (page.private == private || !told) && was.is_none_or(|was| was.frame == page.frame)
            }
            _ => was == is && !range.contains(&gfn),
        };
        let ask = || sys.call(sys.world.manifest.memory, &request);
        self.judge.act(sys, "populating", ask, right).map(|_| ())
    }

    /// Tells memory what is private.
    fn tell(&self, sys: &Sys<'_>) -> Result<(), Status> {
        let mut from = 0;
        while let Some(first) = self.pages.range(from..).next().copied() {
            from = self.run(first, first..first + 512).end;
            self.attribute(sys, &(first..from), true)?;
        }
        Ok(())
    }

    fn attribute(&self, sys: &Sys<'_>, range: &Range<u64>, private: bool) -> Result<(), Status> {
        let (vm, pages) = (self.vm(), range.end - range.start);
        let request = Attribute { vm, gfn: Gfn(range.start), pages, private };
        let turned = |was: Option<Seen>| was.map(|was| Seen { private, shown: !private, ..was });
        let right = |_: &_, gfn, was, is| is == if range.contains(&gfn) { turned(was) } else { was };
        let ask = || finish(|| sys.call(sys.world.manifest.memory, &request).map(|_| false));
        self.judge.act(sys, "a conversion", ask, right)
    }

    /// Makes pages private or shared.
    fn convert(&mut self, sys: &Sys<'_>, range: &Range<u64>, private: bool) {
        if private {
            // Nothing else is asked for from here on, whatever is answered.
            self.pages.extend(range.clone());
        }
        let answer = self.attribute(sys, range, private);
        if self.judge.answer(sys, "a conversion", answer) && !private {
            self.pages.retain(|gfn| !range.contains(gfn));
        }
    }

    /// The gmem that slots show, page by page.
    pub fn look_up(&mut self, sys: &Sys<'_>) -> GmemId {
        let asked = sys.call(sys.world.manifest.memory, &SlotInfo { vm: self.vm(), slot: SlotId(0) });
        if let Ok(slot) = asked {
            self.gmem = slot.gmem.gmem;
        }
        self.gmem
    }

    /// Memory lost it together with the slots.
    pub fn renew(&mut self, sys: &Sys<'_>) {
        let make = GmemMake { vm: self.vm(), flags: 0, bytes: WHOLE << 12 };
        if let Ok(made) = sys.call(sys.world.manifest.memory, &make) {
            self.gmem = made.gmem;
        }
    }

    /// Takes what is private.
    fn punch(&mut self, sys: &Sys<'_>, first: u64, pages: u64) -> Result<(), Status> {
        let (vm, gmem) = (self.vm(), self.look_up(sys));
        let end = first + pages;
        let mut page = first;
        let ask = || {
            finish(|| {
                let request = Punch { vm, at: GmemAddress { gmem, page }, pages: end - page };
                page += sys.call(sys.world.manifest.memory, &request)?.pages;
                Ok(page < end)
            })
        };
        let right = |_: &_, gfn, was: Option<Seen>, is: Option<Seen>| {
            let taken = (first..end).contains(&gfn) && was.is_some_and(|was| was.private);
            if taken { is.is_none() } else { was == is }
        };
        self.judge.act(sys, "a hole", ask, right)
    }

    /// Something breaks, and is nobody's any more.
    fn poison(&mut self, sys: &Sys<'_>, gfn: u64) {
        let world = sys.world;
        if world.breaking.borrow().len() >= BROKEN {
            return;
        }
        let (vm, was) = (self.vm(), world.seen(self.vm(), sys.slot));
        let taken = world.takings.get();
        let right = |_: &_, at, was: Option<Seen>, is: Option<Seen>| if at == gfn { is.is_none() } else { was == is };
        let ask = || sys.call(world.manifest.memory, &Poison { vm, gfn: Gfn(gfn) });
        let answer = self.judge.act(sys, "breaking", ask, right).map(|_| ());
        if !self.judge.answer(sys, "breaking", answer) || taken != world.takings.get() {
            return;
        }
        if let Some(page) = was.and_then(|was| was.pages[gfn as usize]) {
            let is = world.frame(Frame(page.frame));
            let lost = is.is_none_or(|is| is.state == FrameState::Leaked);
            world.check(lost || !self.judge.quiet(sys), || format!("broken frame {:#x} is {is:?}", page.frame));
            if is.is_some() && lost {
                world.broken.borrow_mut().insert(page.frame);
            }
        }
        let again = self.ask(sys, &(gfn..gfn + 1), self.pages.contains(&gfn));
        let refused = matches!(again, Err(Status::Poisoned)) || !self.judge.quiet(sys);
        world.check(refused, || format!("a broken page of {vm:?} is populated: {again:?}"));
    }

    /// Private pages come with contents.
    fn fill(&mut self, sys: &Sys<'_>, from: u64) {
        let (world, vm) = (sys.world, self.vm());
        let Some(seen) = world.seen(vm, sys.slot) else { return };
        let empty = |gfn: &u64| self.pages.contains(gfn) && seen.pages[*gfn as usize].is_none();
        let end = world.manifest.guest_pages;
        let Some(first) = (from..end).find(empty) else { return };
        let pages = (first..end.min(first + 4)).take_while(empty).count() as u64;
        for page in LENDABLE.start..LENDABLE.start + pages {
            world.pages.borrow_mut().insert((sys.slot, page), world.rng.next() | 1);
        }
        let lease = Lease { page: VPage(LENDABLE.start), pages, write: false };
        let request = Fill { vm, gfn: Gfn(first), pages };
        let right = |filled: &u64, gfn, was: Option<Seen>, is: Option<Seen>| {
            let known = || world.memory.borrow().get((vm.bits(), gfn)).is_some();
            if (first..first + filled).contains(&gfn) { is.is_some_and(|is| is.private) && known() } else { was == is }
        };
        let ask = || sys.call_lending(world.manifest.memory, &request, lease).map(|filled| filled.pages);
        let answer = self.judge.act(sys, "contents", ask, right);
        let broken = answer == Err(Status::Poisoned);
        if !broken {
            self.judge.answer(sys, "contents", answer.map(|_| ()));
        }
    }

    /// What isn't wanted so isn't backed so.
    fn mistake(&self, sys: &Sys<'_>, gfn: u64) {
        let answer = self.ask(sys, &(gfn..gfn + 1), !self.pages.contains(&gfn));
        let refused = answer == Err(Status::State) || !self.judge.quiet(sys);
        sys.world.check(refused, || format!("gfn {gfn:#x} of {:?} is wanted otherwise: {answer:?}", self.vm()));
    }

    /// Every other page turns private, so that what is done to all of them takes long.
    pub fn stripe(&mut self, sys: &Sys<'_>) {
        for gfn in (0..sys.world.manifest.guest_pages.min(160)).step_by(2) {
            self.convert(sys, &(gfn..gfn + 1), true);
            let _ = self.populate(sys, gfn + 1, gfn + 1..gfn + 2);
        }
    }

    /// Changes something.
    pub fn change(&mut self, sys: &Sys<'_>) {
        let (world, encrypted) = (sys.world, self.judge.kind != VmKind::Plain);
        let lowest = if encrypted { LAUNCHED } else { 0 };
        let end = world.manifest.guest_pages;
        if end <= lowest {
            return;
        }
        let first = lowest + world.rng.below(end - lowest);
        let pages = (1 + world.rng.below([8, 64][world.rng.below(2) as usize])).min(end - first);
        let range = first..first + pages;
        match world.rng.below(if encrypted { 8 } else { 12 }) {
            // As one large page, if there is such a run of frames.
            0 | 1 if end >= 512 + lowest.next_multiple_of(512) => {
                let first = lowest.next_multiple_of(512);
                // There must be a frame for all of it, not one for each.
                let (vm, gfn) = (self.vm(), Gfn(first));
                let _ = sys.call(world.manifest.memory, &GiveBack { vm, gfn, pages: 512 });
                self.convert(sys, &(first..first + 512), true);
                let _ = self.populate(sys, first, first..first + 512);
            }
            0..4 => self.convert(sys, &range, true),
            4..6 => self.convert(sys, &range, false),
            6..8 => {
                let answer = self.punch(sys, first, pages);
                self.judge.answer(sys, "a hole", answer);
            }
            8 => self.poison(sys, first),
            9 | 10 => self.fill(sys, first),
            _ => self.mistake(sys, first),
        }
    }
}
