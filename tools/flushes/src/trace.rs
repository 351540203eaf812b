//! Traces: which VMs there are, where their vCPUs run, and when memory changes hands. Integers and a fixed seed make them, so
//! that they are the same everywhere.
//!
//! Nothing here knows of a policy. Sizes are a 32nd of what a machine of today has (64 MiB stand for 2 GiB), so that all frames
//! fit into a table; nothing but the ratios matters for when memory runs out.

mod balloon;
mod build;
mod churn;
mod rng;
mod storm;

pub use build::Build;

/// Microseconds.
pub type Time = u64;

/// Between two moments at which something can happen.
pub const TICK: Time = 50_000;
/// CPUs that share a last-level cache, among which a scheduler moves a vCPU most freely.
pub const NEIGHBOURS: u64 = 16;
/// Pages of 2 MiB: what is given back and taken is a multiple.
pub const CHUNK: u64 = 512;
/// The ASIDs of SEV guests. Parts with 509 ASIDs, of which firmware set-up leaves 99 to SEV-ES, have so many.
pub const ASIDS: usize = 410;

/// What the machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All VMs are replaced by new ones within seconds; then it is quiet; and so on.
    Storm,
    /// Short-lived VMs come and go beside long-lived ones.
    Churn,
    /// Long-lived VMs give memory back by their balloons, on which jobs run, and take it again.
    Balloon,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Storm, Self::Churn, Self::Balloon];

    /// For tables and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Storm => "storm",
            Self::Churn => "churn",
            Self::Balloon => "balloon",
        }
    }
}

/// A VM. All are SEV guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its memory, all of which is there from its start on, as SEV pins it.
    pub pages: u64,
    /// Its vCPUs.
    pub vcpus: u8,
}

/// What happens. VMs by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VM begins and has its memory.
    Start(usize),
    /// It ends, and its memory is to be somebody else's.
    Stop(usize),
    /// From now on a vCPU of it runs on this CPU.
    Run(usize, u8, u16),
    /// It gives back so many chunks from one on.
    Give(usize, u64, u64),
    /// It takes chunks again.
    Take(usize, u64, u64),
}

/// A trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What it is of.
    pub kind: Kind,
    /// CPUs of the machine.
    pub cpus: u16,
    /// The VMs.
    pub vms: Vec<Vm>,
    /// What happens, in order.
    pub events: Vec<(Time, Event)>,
}

impl Trace {
    /// The trace of a kind for so many CPUs.
    pub fn new(kind: Kind, cpus: u16) -> Self {
        match kind {
            Kind::Storm => storm::trace(cpus),
            Kind::Churn => churn::trace(cpus),
            Kind::Balloon => balloon::trace(cpus),
        }
    }

    /// Frames that its VMs need at the same time at the most, with what a kernel needs for them.
    pub fn demand(&self) -> u64 {
        let (mut now, mut most) = (0, 0);
        for (_, event) in &self.events {
            let whole = |vm: usize| self.vms[vm].pages + overhead(self.vms[vm]);
            match *event {
                Event::Start(vm) => now += whole(vm),
                Event::Stop(vm) => now -= whole(vm),
                Event::Give(_, _, count) => now -= count * CHUNK,
                Event::Take(_, _, count) => now += count * CHUNK,
                Event::Run(..) => {}
            }
            most = most.max(now);
        }
        most
    }

    /// Frames of a machine of which so many percent are free when most is needed.
    pub fn frames(&self, free_percent: u64) -> u64 {
        (self.demand() * 100).div_ceil(100 - free_percent)
    }

    /// When the last thing happens.
    pub fn end(&self) -> Time {
        self.events.last().map_or(0, |(time, _)| *time)
    }
}

/// Frames for a VM beside its memory.
pub fn overhead(vm: Vm) -> u64 {
    caisson_memory::overhead(vm.pages, vm.vcpus)
}

#[cfg(test)]
mod tests;
