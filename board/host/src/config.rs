//! What is simulated: the machine, its VMs, and what goes wrong.

use crate::rng::Rng;

/// A rule that is broken on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Vcpus are entered without the flush that a shoot-down asked for.
    NoFlush,
    /// A CPU tells nobody that it is in a guest, so that no shoot-down waits for it.
    NoShootDown,
    /// A guest is entered although something is pending.
    EnterAnyway,
    /// An interrupt to another CPU now and then gets lost.
    LostInterrupt,
    /// WBNOINVD does nothing: frames are free before they are paid.
    NoWriteBack,
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
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NoFlush,
        Self::NoShootDown,
        Self::EnterAnyway,
        Self::LostInterrupt,
        Self::NoWriteBack,
        Self::NoZero,
        Self::KeptLease,
        Self::NoHostFlush,
        Self::DeafToGenerations,
        Self::StolenTurn,
        Self::LostTimer,
        Self::KeptMapping,
    ];
}

/// A simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// CPUs, 1 to 256.
    pub cpus: usize,
    /// VMs, each with its vmm, 1 to 8.
    pub vms: usize,
    /// vCPUs of a VM at the most.
    pub vcpus: u8,
    /// Frames of the machine.
    pub frames: u64,
    /// Whether VMs may be encrypted, so that their reclaim owes write-backs.
    pub encrypted: bool,
    /// Services that are killed, crash or run for ever.
    pub deaths: u32,
    /// Times that pages are taken from a living VM.
    pub reclaims: u32,
    /// Times that a VM may reset.
    pub resets: u32,
    /// What a vCPU does until it is done.
    pub actions: u32,
    /// In how many of 16 places where the kernel can be interleaved with other CPUs it is.
    pub preemption: u64,
    /// Steps until the run counts as endless.
    pub steps: u64,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
}

impl Config {
    /// What a seed stands for.
    pub fn of_seed(seed: u64) -> Self {
        let rng = Rng::new(seed ^ 0xc0_ff_ee);
        let cpus = match rng.below(32) {
            0 => 256,
            1..4 => 8 + rng.below(56) as usize,
            4..8 => 1,
            _ => 2 + rng.below(6) as usize,
        };
        let vms = 1 + rng.below(4) as usize;
        Self {
            cpus,
            vms,
            vcpus: 1 + rng.below(4) as u8,
            frames: 512 * (4 + rng.below(4) + 2 * vms as u64),
            encrypted: rng.chance(1, 2),
            deaths: rng.below(6) as u32,
            reclaims: rng.below(12) as u32,
            resets: rng.below(6) as u32,
            actions: 20 + rng.below(60) as u32,
            preemption: [0, 1, 4, 12][rng.below(4) as usize],
            steps: 2_000_000,
            mutant: None,
        }
    }
}
