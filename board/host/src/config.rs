//! What is simulated: the machine, its VMs, and what goes wrong.

use caisson_proto::mailbox;

use crate::rng::Rng;

macro_rules! mutants {
    ($(#[doc = $rule:literal] $name:ident,)+) => {
        /// A rule that is broken on purpose, to see that it is found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Mutant { $(#[doc = $rule] $name,)+ }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// How it breaks which rule.
            pub fn rule(self) -> &'static str {
                match self { $(Self::$name => $rule.trim(),)+ }
            }

            /// What it is called.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The one that is called so.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|mutant| mutant.name().eq_ignore_ascii_case(name))
            }
        }
    };
}

mutants! {
    /// Vcpus are entered without the flush that a shoot-down asked for.
    NoFlush,
    /// A CPU tells nobody that it is in a guest, so that no shoot-down waits for it.
    NoShootDown,
    /// A guest is entered although something is pending.
    EnterAnyway,
    /// An interrupt to another CPU now and then gets lost.
    LostInterrupt,
    /// Frames aren't zeroed.
    NoZero,
    /// Leases aren't revoked.
    KeptLease,
    /// Translations of the host's aren't flushed.
    NoHostFlush,
    /// A call to a dead generation is delivered to the present one.
    DeafToGenerations,
    /// Two callers are served at once: a turn is passed on too early.
    StolenTurn,
    /// A timer now and then doesn't fire.
    LostTimer,
    /// A frame that leaves a VM keeps its place in the nested table.
    KeptMapping,
    /// A write-back is skipped: frames are free before they are paid.
    NoWriteBack,
    /// A CPU that ran a VM is omitted: its row says that it didn't.
    OmitCpu,
    /// The CPUs that owe are sampled before the shoot-down.
    SampleEarly,
    /// A flush clears another CPU's row, too.
    ClearForeignRow,
    /// A CPU's row is cleared before the instruction is executed.
    ClearEarly,
    /// Batches are paid when a CPU is asked, before it acknowledges.
    PayEarly,
    /// A restarted memory takes what waits in batches for free.
    StaleBatch,
    /// The first CPU that acknowledges pays for all.
    PayForAll,
    /// WBNOINVD is executed where ASIDs are recycled.
    WeakRecycling,
    /// Some CPUs are left out where ASIDs are recycled.
    SomeCpusOnly,
    /// ASIDs count as flushed when they are deactivated: no WBINVD is owed.
    NoWbinvd,
    /// ASIDs are free after WBINVD: no DF_FLUSH is owed.
    BindBeforeDfFlush,
    /// A deactivation between WBINVD and DF_FLUSH counts as before both.
    LateDeactivation,
    /// The processor's DF_FLUSH isn't executed, and counts.
    ClaimedDfFlush,
    /// A guest runs whose ASID isn't active.
    ClaimedActivate,
    /// An ASID is used again although the processor still knows its guest.
    ReuseLeaked,
    /// A vCPU gets another VM's ASID.
    WrongAsid,
    /// A recycled ASID's translations of its last VM stay.
    KeptTranslations,
    /// A page turns private with its plain lines in caches.
    ForgetPlainAlias,
    /// Frames are given to the processor with lines in caches.
    ForgetDonated,
    /// A page that turned private stays in its handler's window.
    KeptWindow,
    /// A command names another page than the one that was asked for.
    WrongPage,
    /// A command names another VM's guest.
    WrongGuest,
    /// RMPUPDATE isn't executed where a page becomes the host's, and counts.
    KeptEntry,
    /// What the processor has counts as the host's.
    IgnoreImmutable,
    /// A page is assigned to another guest.
    WrongEntry,
    /// A page is assigned at another address.
    WrongAddress,
    /// A page of an SNP guest is free before its lines were flushed.
    ForgetFreed,
    /// A page turns shared before the guest's lines of it were flushed.
    ForgetTurned,
    /// The processor isn't given the mailbox's pages that it is to write.
    KeptMailbox,
    /// memory commits with the newest sequence, whatever it decided by.
    NewestSequence,
    /// A change of a VM's memory begins without the kernel's knowledge.
    NoBegin,
    /// The in-progress count is 0 before the sequence moves.
    CountFirst,
    /// The hull is forgotten at the first of two ends.
    HullGone,
    /// memory leaves the last page of what a VM gives back.
    GiveBackLess,
    /// memory answers that it populated what no slot shows.
    ClaimedPopulate,
    /// Slots may overlap.
    OverlapTaken,
    /// The end of an event flushes no translations.
    NoEventFlush,
    /// The CPUs that owe for an event are sampled at its beginning.
    SampleEventEarly,
    /// What an event took can be paid before its end.
    HeldPaid,
    /// Each unmapping of an event has a shoot-down.
    ShootEach,
    /// A slot is deleted amid an event.
    SwapAmid,
    /// A restarted memory doesn't end the event in which its predecessor died.
    EventLeftOpen,
    /// A plain VM's page that turned private stays in its handler's window.
    KeptPlainWindow,
    /// What a plain VM has in a page is lost where it turns.
    ContentsLost,
    /// A discard takes private pages.
    DiscardPrivate,
    /// A hole takes shared pages.
    PunchShared,
    /// A hole ends before its last page.
    PunchLess,
    /// memory answers that it punched a hole and doesn't.
    ClaimedPunch,
    /// Pages count as private, or shared, although the kernel didn't turn them.
    ClaimedTurn,
    /// Pages turn private, and memory doesn't know it.
    ForgottenAttribute,
    /// memory answers that it populated a page that isn't what it was wanted as.
    WrongKind,
    /// memory answers that it populated a broken page.
    UsedPoison,
    /// A broken frame is handed out again.
    PoisonReused,
    /// A broken page stays where it is.
    PoisonKept,
    /// Private pages count as filled without their contents.
    EmptyFill,
    /// memory takes the page after those that a VM gives back, too.
    GiveBackMore,
    /// Two slots show the same page of a gmem.
    GmemTwice,
    /// Part of a large page changes hands without PSMASH.
    NoSmash,
}

/// A simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// CPUs, 1 to 256.
    pub cpus: usize,
    /// VMs, each with its vmm, 1 to 16.
    pub vms: usize,
    /// vCPUs of a VM at the most.
    pub vcpus: u8,
    /// Frames of the machine.
    pub frames: u64,
    /// Whether VMs may be encrypted, so that their reclaim owes write-backs.
    pub encrypted: bool,
    /// Whether encrypted VMs are SEV-SNP's or SEV's; else they are SEV-ES's or SEV's.
    pub snp: bool,
    /// The lowest ASID of SEV VMs, and the highest of encrypted ones.
    pub sev_asids: (u32, u32),
    /// Commands of the secure processor that fail or are lied about.
    pub faults: u32,
    /// A command that fails oftener than others; 0: none.
    pub stubborn: u16,
    /// In how many of 12 times others fail.
    pub others: u64,
    /// Whether the processor lies about them.
    pub lies: bool,
    /// Whether sev-firmware now and then claims what it didn't ask for.
    pub lazy: bool,
    /// Whether frames are wanted all the time, so that nothing is held back in batches.
    pub thirsty: bool,
    /// Pages of each guest; 0: as chance has it.
    pub guest_pages: u64,
    /// Times that a CPU doesn't answer for a while.
    pub deaf: u32,
    /// An interrupt is taken in one of so many steps of its CPU.
    pub latency: u64,
    /// Services that are killed, crash or run for ever.
    pub deaths: u32,
    /// Events before the first of them.
    pub peace: u64,
    /// Times that pages are taken from a living VM.
    pub reclaims: u32,
    /// In one of how many steps that happens.
    pub calm: u64,
    /// At one of how many exits a vmm has memory change something under its guest; 0: never.
    pub changes: u64,
    /// memory or notifier dies at one of how many kernel operations that change what is private, or within events; 0: only elsewhere.
    pub mortal: u64,
    /// memory and notifier die at this one of them each; 0: at none.
    pub dies_at: [u64; 2],
    /// Times that a VM may reset.
    pub resets: u32,
    /// What a vCPU does until it is done.
    pub actions: u32,
    /// In how many of 16 steps a guest does nothing but use its memory.
    pub diligence: u64,
    /// Whether a guest uses other pages while it can't know whether the one that it wants is private, since the kernel's
    /// tables are being changed; else it waits.
    pub restless: bool,
    /// In how many of 16 places where the kernel can be interleaved with other CPUs it is.
    pub preemption: u64,
    /// In how many of 64 of those the CPU doesn't come on for a while.
    pub stalls: u64,
    /// In how many of 64 steps a line is evicted for no reason. What is never evicted stays dirty until it is flushed.
    pub evictions: u64,
    /// Events before the last VM may end for good.
    pub events: u64,
    /// Steps until the run counts as endless.
    pub steps: u64,
    /// Events without which a run is none.
    pub fewest: u64,
    /// It is one of the machines in which broken rules are looked for.
    pub hunt: bool,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
}

/// Commands whose failure costs most; and none.
const STUBBORN: [u16; 8] = [
    0,
    0,
    mailbox::LAUNCH_START,
    mailbox::ACTIVATE,
    mailbox::DF_FLUSH,
    mailbox::DEACTIVATE,
    mailbox::DECOMMISSION,
    mailbox::DECOMMISSION,
];

impl Config {
    /// What a seed stands for.
    pub fn of_seed(seed: u64) -> Self {
        let rng = Rng::new(seed ^ 0xc0_ff_ee);
        let cpus = match rng.below(64) {
            0 => 256,
            1..4 => 8 + rng.below(56) as usize,
            _ => 8,
        };
        let vms = 16;
        let guest_pages = [24, 48, 48, 48, 48, 100, 300, 520][rng.below(8) as usize];
        Self {
            cpus,
            vms,
            vcpus: 2 + rng.below(3) as u8,
            frames: 512 * (5 + rng.below(4)) + (vms as u64 * (guest_pages + 160)).next_multiple_of(512),
            encrypted: rng.chance(2, 3),
            snp: rng.chance(1, 2),
            sev_asids: (2 + rng.below(2) as u32, 3 + rng.below(3) as u32),
            faults: rng.below(3).saturating_sub(1) as u32 * rng.below(6) as u32,
            stubborn: STUBBORN[rng.below(STUBBORN.len() as u64) as usize],
            others: 1,
            lies: rng.chance(2, 3),
            lazy: rng.chance(1, 8),
            guest_pages,
            deaf: rng.below(4) as u32,
            latency: [2, 8, 32][rng.below(3) as usize],
            deaths: rng.below(6) as u32,
            peace: 0,
            reclaims: rng.below(12) as u32,
            calm: [30, 100, 500][rng.below(3) as usize],
            resets: 4 + rng.below(12) as u32,
            actions: 40 + rng.below(30) as u32,
            diligence: [0, 8, 14][rng.below(3) as usize],
            restless: false,
            preemption: [0, 1, 4, 12][rng.below(4) as usize],
            stalls: [0, 1, 8][rng.below(3) as usize],
            evictions: [32, 4, 1, 0][rng.below(4) as usize],
            thirsty: rng.chance(1, 2),
            changes: [0, 30, 100, 400][rng.below(4) as usize],
            mortal: [0, 20, 200][rng.below(3) as usize],
            dies_at: [0; 2],
            events: 5000,
            steps: 2_000_000,
            fewest: 4000,
            hunt: false,
            mutant: None,
        }
    }
}
