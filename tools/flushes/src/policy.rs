//! The policies that are compared, and what one costs.

use crate::lines::Lines;
use crate::trace::Time;

/// Who flushes when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// WBINVD on all CPUs at each reclaim, as Linux 6.12 does.
    AllWbinvd,
    /// WBNOINVD on all CPUs, as the series of 2025 has it before its last step.
    AllWbnoinvd,
    /// WBNOINVD on the CPUs that ever ran the VM, as Linux 6.17 does.
    EverRan,
    /// What the kernel and the services here do.
    Caisson,
}

impl Policy {
    /// All, the dearest first.
    pub const ALL: [Self; 4] = [Self::AllWbinvd, Self::AllWbnoinvd, Self::EverRan, Self::Caisson];

    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllWbinvd => "all CPUs, WBINVD (Linux 6.12)",
            Self::AllWbnoinvd => "all CPUs, WBNOINVD (2025 series)",
            Self::EverRan => "CPUs that ever ran the VM (Linux 6.17)",
            Self::Caisson => "Caisson",
        }
    }

    /// For machines to read.
    pub const fn key(self) -> &'static str {
        match self {
            Self::AllWbinvd => "all-wbinvd",
            Self::AllWbnoinvd => "all-wbnoinvd",
            Self::EverRan => "ever-ran",
            Self::Caisson => "caisson",
        }
    }
}

/// What a policy costs on a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Times that a CPU executed WBINVD or WBNOINVD.
    pub executions: u64,
    /// Of these, WBINVD, which recycling ASIDs takes under every policy.
    pub wbinvds: u64,
    /// Cache lines that were valid and aren't any more.
    pub lost: u64,
}

/// Counts what CPUs execute.
#[derive(Debug)]
pub struct Meter {
    cost: Cost,
    lines: Lines,
}

impl Meter {
    /// Nothing was executed.
    pub fn new(cpus: u16) -> Self {
        Self { cost: Cost::default(), lines: Lines::new(cpus) }
    }

    /// A CPU executes WBINVD, or WBNOINVD.
    pub fn execute(&mut self, now: Time, cpu: u16, wbinvd: bool) {
        self.cost.executions += 1;
        if wbinvd {
            self.cost.wbinvds += 1;
            self.cost.lost += self.lines.lose(now, cpu);
        }
    }

    /// So far.
    pub const fn cost(&self) -> Cost {
        self.cost
    }
}
