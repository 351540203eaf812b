//! What a CPU is to the others: what it does, and what it waits for.
//!
//! Who can go on is asked at each step and for each CPU, so it is kept at hand in [`Rows`] whenever something that it
//! depends on changes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use caisson_core::context::Context;
use caisson_proto::addr::Frame;

use crate::bits::Bits;
use crate::rng::Rng;

/// No timer.
pub const NEVER: u64 = u64::MAX;

/// IPIs.
pub mod ipi {
    /// The CPU is to look at what it should run, or whether a flush is wanted.
    pub const RESCHEDULE: u8 = 1;
    /// Translations of the host's are to be flushed.
    pub const FLUSH: u8 = 2;
}

/// What a CPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is in the kernel.
    Kernel,
    /// It is in the service of this slot.
    User(usize),
    /// As `User`, and the service runs in circles.
    Circles(usize),
    /// It is in the guest of this context.
    Guest(Context),
    /// As `Guest`, and the guest does nothing that leaves it.
    Spins(Context),
    /// It waits for an interrupt.
    Idle,
}

/// What is asked of all CPUs at each step.
#[derive(Debug)]
pub struct Rows {
    /// The time from which each can go on.
    ready_at: Vec<Cell<u64>>,
    /// CPUs that are in a guest.
    guests: RefCell<Bits>,
}

impl Rows {
    /// One of those that can go on now.
    pub fn pick(&self, now: u64, rng: &Rng) -> Option<usize> {
        let ready = || self.ready_at.iter().enumerate().filter(|(_, at)| at.get() <= now);
        let count = ready().count() as u64;
        ready().nth(rng.below(count) as usize).map(|(number, _)| number)
    }

    /// CPUs that are in a guest.
    pub fn in_guests(&self) -> impl Iterator<Item = usize> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let number = self.guests.borrow().next_from(from)?;
            from = number + 1;
            Some(number as usize)
        })
    }
}

/// A CPU.
#[derive(Debug)]
pub struct Cpu {
    number: usize,
    rows: Rc<Rows>,
    mode: Cell<Mode>,
    /// IPIs that are on their way.
    ipi: Cell<u8>,
    /// Devices' interrupts: each rings this slot with these bits.
    devices: RefCell<Vec<(usize, u64)>>,
    /// When its timer fires.
    timer: Cell<u64>,
    /// It takes no step before this time.
    deaf_until: Cell<u64>,
    /// Slot of the space that is loaded.
    pub space: Cell<usize>,
    /// Flushes of host translations that were wished here, and how many were done.
    pub wishes: Cell<(u32, u32)>,
    /// Host translations that it holds: (slot, gfn) of a window to frame.
    pub tlb: RefCell<BTreeMap<(usize, u64), Frame>>,
    /// Guests' translations that it holds.
    pub guest_tlb: RefCell<Translations>,
    /// WBINVDs that it executed.
    pub wbinvds: Cell<u64>,
}

impl Cpu {
    /// So many, all in the kernel.
    pub fn all(cpus: usize) -> (Vec<Self>, Rc<Rows>) {
        let ready_at = (0..cpus).map(|_| Cell::new(0)).collect();
        let rows = Rc::new(Rows { ready_at, guests: RefCell::new(Bits::new(cpus as u64)) });
        let cpu = |number| Self {
            number,
            rows: Rc::clone(&rows),
            mode: Cell::new(Mode::Kernel),
            ipi: Cell::new(0),
            devices: RefCell::default(),
            timer: Cell::new(NEVER),
            deaf_until: Cell::new(0),
            space: Cell::new(usize::MAX),
            wishes: Cell::new((0, 0)),
            tlb: RefCell::default(),
            guest_tlb: RefCell::default(),
            wbinvds: Cell::new(0),
        };
        ((0..cpus).map(cpu).collect(), rows)
    }

    /// When it can go on, from what it does and what is on its way to it.
    fn changed(&self) {
        let waits = matches!(self.mode.get(), Mode::Idle | Mode::Spins(_));
        let told = !waits || self.ipi.get() != 0 || !self.devices.borrow().is_empty();
        let at = if told { 0 } else { self.timer.get() };
        self.rows.ready_at[self.number].set(at.max(self.deaf_until.get()));
    }

    /// What it does.
    pub fn mode(&self) -> Mode {
        self.mode.get()
    }

    /// It does something else now.
    pub fn set_mode(&self, mode: Mode) {
        let is_guest = |mode| matches!(mode, Mode::Guest(_) | Mode::Spins(_));
        let (before, after) = (is_guest(self.mode.replace(mode)), is_guest(mode));
        if before != after {
            let mut guests = self.rows.guests.borrow_mut();
            let number = self.number as u64;
            if after { guests.insert(number) } else { guests.remove(number) }
        }
        self.changed();
    }

    /// IPIs that are on their way.
    pub fn ipis(&self) -> u8 {
        self.ipi.get()
    }

    /// When its timer fires.
    pub fn timer(&self) -> u64 {
        self.timer.get()
    }

    /// Sets it.
    pub fn set_timer(&self, at: u64) {
        self.timer.set(at);
        self.changed();
    }

    /// Until when it takes no step.
    pub fn deaf_until(&self) -> u64 {
        self.deaf_until.get()
    }

    /// It takes none until then.
    pub fn deafen(&self, until: u64) {
        self.deaf_until.set(until);
        self.changed();
    }

    /// An IPI is sent to it.
    pub fn send(&self, kind: u8) {
        self.ipi.set(self.ipi.get() | kind);
        self.changed();
    }

    /// A device interrupts it.
    pub fn interrupt(&self, slot: usize, bits: u64) {
        self.devices.borrow_mut().push((slot, bits));
        self.changed();
    }

    /// It takes what is on its way.
    pub fn take(&self) -> (u8, Vec<(usize, u64)>) {
        let taken = (self.ipi.take(), self.devices.take());
        self.changed();
        taken
    }

    /// Whether anything is on its way to it, but for its timer.
    pub fn is_told(&self) -> bool {
        self.ipi.get() != 0 || !self.devices.borrow().is_empty()
    }

    /// Whether it would take an interrupt now.
    pub fn interrupted(&self, now: u64) -> bool {
        self.is_told() || self.timer.get() <= now
    }
}

/// Guests' translations: by ASID and gfn the frame, and whether its guest found it private.
#[derive(Debug, Default)]
pub struct Translations(Vec<Vec<Option<(Frame, bool)>>>);

impl Translations {
    /// What is known of a gfn.
    pub fn get(&self, asid: u32, gfn: u64) -> Option<(Frame, bool)> {
        self.0.get(asid as usize)?.get(gfn as usize).copied().flatten()
    }

    /// It was looked up.
    pub fn insert(&mut self, asid: u32, gfn: u64, is: (Frame, bool)) {
        let (asid, gfn) = (asid as usize, gfn as usize);
        if self.0.len() <= asid {
            self.0.resize(asid + 1, Vec::new());
        }
        if self.0[asid].len() <= gfn {
            self.0[asid].resize(gfn + 1, None);
        }
        self.0[asid][gfn] = Some(is);
    }

    /// Those of an ASID are flushed.
    pub fn flush(&mut self, asid: u32) {
        if let Some(of) = self.0.get_mut(asid as usize) {
            of.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a step of it would change anything, from what that depends on.
    fn can_go_on(cpu: &Cpu, now: u64) -> bool {
        let waits = matches!(cpu.mode(), Mode::Idle | Mode::Spins(_));
        cpu.deaf_until() <= now && (!waits || cpu.interrupted(now))
    }

    #[test]
    fn who_can_go_on_is_at_hand() {
        let rng = Rng::new(7);
        let (cpus, rows) = Cpu::all(20);
        let context = Context::vcpu(1, 1);
        let modes =
            [Mode::Kernel, Mode::User(1), Mode::Circles(2), Mode::Guest(context), Mode::Spins(context), Mode::Idle];
        for now in 0..5000 {
            let cpu = &cpus[rng.below(20) as usize];
            match rng.below(8) {
                0 => cpu.send(ipi::FLUSH),
                1 => cpu.interrupt(3, 1),
                2 => drop(cpu.take()),
                3 => cpu.set_timer(now + rng.below(40)),
                4 => cpu.deafen(now + rng.below(40)),
                _ => cpu.set_mode(modes[rng.below(6) as usize]),
            }
            let slow: Vec<usize> = (0..20).filter(|number| can_go_on(&cpus[*number], now)).collect();
            let fast: Vec<usize> = (0..20).filter(|number| rows.ready_at[*number].get() <= now).collect();
            assert_eq!(slow, fast);
            let (seed, picked) = (Rng::new(now), rows.pick(now, &Rng::new(now)));
            assert_eq!(picked, seed.pick(&slow));
            let guests = (0..20).filter(|number| matches!(cpus[*number].mode(), Mode::Guest(_) | Mode::Spins(_)));
            assert!(guests.eq(rows.in_guests()));
        }
    }
}
