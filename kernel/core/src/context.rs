//! Contexts: what is scheduled. A vCPU is one; so is a service's doorbell activation.
//!
//! Everything else runs on a context's time: a call from a vCPU to its vmm and on to memory stays on the vCPU's
//! CPU and in its slice.

use crate::prelude::*;

/// Contexts in all.
pub const CONTEXTS: usize = MAX_SERVICES + MAX_VMS * MAX_VCPUS;
/// 64-bit words of a set of contexts.
pub const WORDS: usize = CONTEXTS / 64;

const _: () = assert!(MAX_SERVICES == 64 && CONTEXTS.is_multiple_of(64));

/// A context's number: below [`MAX_SERVICES`] the doorbell activation of that slot, above a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context(u16);

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
pub fn members(index: usize, mut word: u64) -> impl Iterator<Item = Context> {
    core::iter::from_fn(move || {
        let bit = word.checked_ilog2()?;
        word &= !(1 << bit);
        Context::from_number((index * 64) as u16 + bit as u16)
    })
}

/// A set of contexts that only one CPU touches.
pub struct Set {
    words: [Cell<u64>; WORDS],
    /// Which words aren't 0, a bit each.
    used: Cell<u64>,
}

impl Set {
    /// None.
    pub const fn new() -> Self {
        Self { words: [const { Cell::new(0) }; WORDS], used: Cell::new(0) }
    }

    fn change(&self, context: Context, change: impl FnOnce(u64, u64) -> u64) {
        let at = context.index() / 64;
        let word = &self.words[at];
        word.set(change(word.get(), 1 << (context.index() % 64)));
        self.used.set(self.used.get() & !(1 << at) | u64::from(word.get() != 0) << at);
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
    pub fn is_empty(&self) -> bool {
        self.used.get() == 0
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = Context> {
        self.words.iter().enumerate().flat_map(|(index, word)| members(index, word.get()))
    }

    /// The doorbell activation of the highest slot.
    pub fn bell(&self) -> Option<Context> {
        members(0, self.words[0].get()).next()
    }

    /// The next vCPU round the circle from a number on.
    pub fn vcpu(&self, from: usize) -> Option<Context> {
        (0..WORDS).find_map(|step| {
            let index = 1 + (from / 64 + WORDS - 2 + step) % (WORDS - 1);
            let mask = if step == 0 { u64::MAX << (from % 64) } else { u64::MAX };
            let bits = self.words[index].get() & mask;
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

initial! {
    /// The shared part of a context.
    pub struct ContextState {
        /// Where it is in its life.
        pub phase: Atomic<Phase> = Atomic::new(Phase::Idle as u64),
        /// The CPU that it runs on.
        pub home: AtomicU16 = AtomicU16::new(0),
        /// See [`pending`].
        pub pending: AtomicU32 = AtomicU32::new(0),
        /// When it wants to be woken, in TSC ticks; 0 for never.
        pub deadline: AtomicU64 = AtomicU64::new(0),
        /// Odd while the vCPU is in its guest; moves at each entry and exit.
        world: AtomicU32 = AtomicU32::new(0),
        /// Whether translations were removed that the vCPU's CPU may still have.
        stale: Atomic<bool> = Atomic::new(0),
        /// The call that waits for its turn. Only the context's own CPU locks it.
        pub call: spin::Mutex<Stashed> = spin::Mutex::new(Stashed::NONE),
    }
}

/// A call on hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stashed {
    /// The service that it goes to.
    pub target: ServiceId,
    /// Whose call it is.
    pub caller: Sender,
    /// Its words.
    pub words: Words,
    /// Its lease word.
    pub lease: u64,
}

impl Stashed {
    const NONE: Self = Self { target: ServiceId::new(0, 0), caller: Sender::NONE, words: [0; 8], lease: 0 };
}

impl ContextState {
    /// Whether the vCPU is in its guest now.
    pub fn in_guest(&self) -> bool {
        self.world() & 1 == 1
    }

    /// Counts entries to and exits from the guest; odd while it is in there.
    pub fn world(&self) -> u32 {
        self.world.load(Ordering::SeqCst)
    }

    /// Tells a vCPU of something ([`pending`]), wherever it is. Notes it first; its CPU looks after it has said where
    /// the vCPU is ([`enter`](Self::enter), [`unpark`](Self::unpark)): nobody misses the other. True: it was parked and
    /// is ready now, make it run. Else, if it is [`in_guest`](Self::in_guest) after this, interrupt its CPU; if not, it
    /// finds out by itself before it enters, or when it is run again.
    pub fn kick(&self, why: u32) -> bool {
        self.pending.fetch_or(why, Ordering::SeqCst);
        settled();
        self.phase.change(Phase::Parked, Phase::Ready)
    }

    /// Its translations are stale from now on. If [`world`](Self::world) is odd after this, it may use them until
    /// `world` moves; its next entry flushes.
    pub fn make_stale(&self) {
        self.stale.swap(true);
        settled();
    }

    /// The vCPU's CPU is about to enter the guest. `None`: something is pending, and it isn't in its guest. Else it
    /// counts as in there, and `true` says that its translations may be stale: flush them first.
    pub fn enter(&self) -> Option<bool> {
        self.world.fetch_add(1, Ordering::SeqCst);
        settled();
        if self.pending.load(Ordering::SeqCst) != 0 {
            self.leave();
            return None;
        }
        Some(self.stale.get() && self.stale.swap(false))
    }

    /// The vCPU's CPU has left the guest.
    pub fn leave(&self) {
        self.world.fetch_add(1, Ordering::SeqCst);
    }

    /// It was parked just now. True: it was kicked before, and is ready.
    pub fn unpark(&self) -> bool {
        settled();
        self.phase.get() == Phase::Parked
            && self.pending.load(Ordering::SeqCst) != 0
            && self.phase.change(Phase::Parked, Phase::Ready)
    }
}
