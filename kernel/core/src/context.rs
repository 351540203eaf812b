//! Contexts: what is scheduled. A vCPU is one; so is a service's doorbell activation.
//!
//! Everything else runs on a context's time: a call from a vCPU to its vmm and on to memory stays on the vCPU's
//! CPU and in its slice.

use core::cell::Cell;

use crate::{
    service::Caller, sync::Atomic, sync::AtomicU16, sync::AtomicU32, sync::AtomicU64, sync::Ordering, sync::settled,
};
use caisson_proto::prelude::*;

/// Contexts in all.
pub const CONTEXTS: usize = MAX_SERVICES + MAX_VMS * MAX_VCPUS;
/// 64-bit words of a set of contexts.
pub const WORDS: usize = CONTEXTS / 64;

const _: () = assert!(MAX_SERVICES == 64 && CONTEXTS.is_multiple_of(64));

/// A context's number: below [`MAX_SERVICES`] the doorbell activation of that slot, above a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context(u16);

impl Field for Context {
    fn to_word(self) -> u64 {
        self.0.into()
    }
    fn from_word(word: u64) -> Option<Self> {
        Self::from_number(word as u16)
    }
}

/// What a context stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Doorbells of the service in this slot.
    Doorbell(usize),
    /// A vCPU: slot of its VM and index there.
    Vcpu(usize, usize),
}

impl Context {
    /// The doorbell activation of the service in `slot`.
    pub const fn doorbell(slot: usize) -> Self {
        Self((slot % MAX_SERVICES) as u16)
    }

    /// vCPU `index` of the VM in slot `vm`.
    pub const fn vcpu(vm: usize, index: usize) -> Self {
        Self((MAX_SERVICES + vm % MAX_VMS * MAX_VCPUS + index % MAX_VCPUS) as u16)
    }

    /// The context with this number, if there is one.
    pub const fn from_number(number: u16) -> Option<Self> {
        if (number as usize) < CONTEXTS { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Its number, to index tables of [`CONTEXTS`].
    pub const fn index(self) -> usize {
        self.0 as usize % CONTEXTS
    }

    /// What it stands for.
    pub const fn kind(self) -> Kind {
        match (self.0 as usize).checked_sub(MAX_SERVICES) {
            None => Kind::Doorbell(self.0 as usize),
            Some(vcpu) => Kind::Vcpu(vcpu / MAX_VCPUS, vcpu % MAX_VCPUS),
        }
    }
}

/// The contexts in a word of a set, from the highest bit on.
#[inline]
pub fn members(index: usize, mut word: u64) -> impl Iterator<Item = Context> {
    core::iter::from_fn(move || {
        let bit = word.checked_ilog2()?;
        word &= !(1 << bit);
        Context::from_number((index * 64) as u16 + bit as u16)
    })
}

/// A set of contexts that only one CPU touches.
#[derive(Debug)]
pub struct Set([Cell<u64>; WORDS]);

impl Set {
    /// None.
    pub const fn new() -> Self {
        Self([const { Cell::new(0) }; WORDS])
    }

    fn change(&self, context: Context, change: impl FnOnce(u64, u64) -> u64) {
        if let Some(word) = self.0.get(context.index() / 64) {
            word.set(change(word.get(), 1 << (context.index() % 64)));
        }
    }

    /// Puts a context in.
    pub fn insert(&self, context: Context) {
        self.change(context, |word, bit| word | bit);
    }

    /// Takes one out.
    pub fn remove(&self, context: Context) {
        self.change(context, |word, bit| word & !bit);
    }

    /// Whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.get() == 0)
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = Context> {
        self.0.iter().enumerate().flat_map(|(index, word)| members(index, word.get()))
    }

    /// The doorbell activation of the highest slot.
    #[inline]
    pub fn bell(&self) -> Option<Context> {
        members(0, self.0[0].get()).next()
    }

    /// The next vCPU round the circle from a number on.
    pub fn vcpu(&self, from: usize) -> Option<Context> {
        (0..WORDS).find_map(|step| {
            let index = 1 + (from / 64 + WORDS - 2 + step) % (WORDS - 1);
            let mask = if step == 0 { u64::MAX << (from % 64) } else { u64::MAX };
            let bits = self.0[index].get() & mask;
            members(index, bits & bits.wrapping_neg()).next()
        })
    }
}

caisson_proto::wire_enum! {
    /// Where a context is in its life.
    pub enum Phase {
        /// Doesn't run: a doorbell activation without bells, a vCPU that was stopped or never started.
        Idle = 0,
        /// Wants to run: enters its guest, or takes its doorbells.
        Ready = 1,
        /// Its call chain runs in services, or it is in its guest.
        Running = 2,
        /// Its call chain waits for its turn at a service that is busy elsewhere.
        Waiting = 3,
        /// A vCPU that waits for a kick or its deadline.
        Parked = 4,
    }
}

/// Things that happened to a context and that its CPU hasn't seen yet.
pub mod pending {
    /// Somebody kicked the vCPU.
    pub const KICK: u32 = 1 << 0;
    /// The vCPU's deadline passed.
    pub const TIMER: u32 = 1 << 1;
    /// The vCPU is to stop.
    pub const STOP: u32 = 1 << 2;
    /// The turn that it waited for has come.
    pub const GRANTED: u32 = 1 << 3;
}

/// What a kick has to be followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Kicked {
    /// It was parked and is ready now: make it run.
    Ready,
    /// It may be in its guest: interrupt its CPU.
    InGuest,
    /// It finds out by itself before it enters its guest, or when it is run again.
    Noted,
}

/// Whether a vCPU may enter its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Entry {
    /// It counts as in its guest now.
    Entered {
        /// Its translations may be stale: flush them first.
        flush: bool,
    },
    /// Something is pending; it is not in its guest.
    Pending,
}

/// The shared part of a context.
#[derive(Debug)]
pub struct ContextState {
    phase: Atomic<Phase>,
    /// The CPU that it runs on.
    pub home: AtomicU16,
    /// See [`pending`].
    pub pending: AtomicU32,
    /// When it wants to be woken, in TSC ticks; 0 for never.
    pub deadline: AtomicU64,
    /// Odd while the vCPU is in its guest; moves at each entry and exit.
    world: AtomicU32,
    /// Whether translations were removed that the vCPU's CPU may still have.
    stale: Atomic<bool>,
    /// The call that waits for its turn. Only the context's own CPU locks it.
    pub call: spin::Mutex<Stashed>,
}

/// A call on hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stashed {
    /// The service that it goes to.
    pub target: ServiceId,
    /// Whose call it is.
    pub caller: Caller,
    /// Its words.
    pub words: Words,
    /// Its lease word.
    pub lease: u64,
}

impl ContextState {
    /// A context that doesn't run.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            phase: Atomic::new(Phase::Idle as u64),
            home: AtomicU16::new(0),
            pending: AtomicU32::new(0),
            deadline: AtomicU64::new(0),
            world: AtomicU32::new(0),
            stale: Atomic::new(0),
            call: spin::Mutex::new(Stashed {
                target: ServiceId::new(0, 0),
                caller: Caller::None,
                words: [0; 8],
                lease: 0,
            }),
        }
    }

    /// A context that doesn't run.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            phase: Atomic::new(Phase::Idle as u64),
            home: AtomicU16::new(0),
            pending: AtomicU32::new(0),
            deadline: AtomicU64::new(0),
            world: AtomicU32::new(0),
            stale: Atomic::new(0),
            call: spin::Mutex::new(Stashed {
                target: ServiceId::new(0, 0),
                caller: Caller::None,
                words: [0; 8],
                lease: 0,
            }),
        }
    }

    /// Its phase.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves to `phase`.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.swap(phase);
    }

    /// Moves from one phase to another unless something else did.
    pub fn change_phase(&self, from: Phase, to: Phase) -> bool {
        self.phase.change(from, to)
    }

    /// Whether the vCPU is in its guest now.
    pub fn in_guest(&self) -> bool {
        self.world.load(Ordering::SeqCst) & 1 == 1
    }

    /// Counts entries to and exits from the guest; odd while it is in there.
    pub fn world(&self) -> u32 {
        self.world.load(Ordering::SeqCst)
    }

    /// Tells a vCPU of something ([`pending`]), wherever it is. Notes it first and then looks where the vCPU is, as
    /// [`enter`](Self::enter) and [`unpark`](Self::unpark) do it the other way round: nobody misses the other.
    pub fn kick(&self, why: u32) -> Kicked {
        self.pending.fetch_or(why, Ordering::SeqCst);
        settled();
        if self.change_phase(Phase::Parked, Phase::Ready) {
            Kicked::Ready
        } else if self.in_guest() {
            Kicked::InGuest
        } else {
            Kicked::Noted
        }
    }

    /// Its translations are stale from now on. If [`world`](Self::world) is odd after this, it may use them until
    /// `world` moves; its next entry flushes.
    pub fn make_stale(&self) {
        self.stale.swap(true);
        settled();
    }

    /// The vCPU's CPU is about to enter the guest.
    #[inline]
    pub fn enter(&self) -> Entry {
        self.world.fetch_add(1, Ordering::SeqCst);
        settled();
        if self.pending.load(Ordering::SeqCst) != 0 {
            self.leave();
            return Entry::Pending;
        }
        Entry::Entered { flush: self.stale.get() && self.stale.swap(false) }
    }

    /// The vCPU's CPU has left the guest.
    #[inline]
    pub fn leave(&self) {
        self.world.fetch_add(1, Ordering::SeqCst);
    }

    /// It was parked just now. True: it was kicked before, and is ready.
    pub fn unpark(&self) -> bool {
        settled();
        self.phase() == Phase::Parked
            && self.pending.load(Ordering::SeqCst) != 0
            && self.change_phase(Phase::Parked, Phase::Ready)
    }
}
