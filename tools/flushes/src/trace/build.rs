//! What makers of traces have in common: the clock, VMs that run, and a scheduler that moves their vCPUs.

use super::rng::Rng;
use super::{Event, Kind, NEIGHBOURS, TICK, Time, Trace, Vm};

/// A vCPU moves to a neighbouring CPU once in so many ticks: every 100 ms, as one that sleeps and is woken often.
const NEAR: u64 = 2;
/// It moves to any CPU once in so many ticks: every 5 s, as the balancing between last-level caches goes.
const FAR: u64 = 100;

/// A trace that is being made.
#[derive(Debug)]
pub struct Build {
    trace: Trace,
    /// Chance.
    pub rng: Rng,
    now: Time,
    /// CPUs on which the VMs that run do so: VM, and the CPU of each vCPU.
    running: Vec<(usize, Vec<u16>)>,
}

impl Build {
    /// Nothing happened yet.
    pub fn new(kind: Kind, cpus: u16) -> Self {
        let trace = Trace { kind, cpus, vms: Vec::new(), events: Vec::new() };
        Self { trace, rng: Rng::new(u64::from(cpus) << 8 | kind as u64), now: 0, running: Vec::new() }
    }

    /// Notes what happens now.
    pub fn note(&mut self, event: Event) {
        self.trace.events.push((self.now, event));
    }

    fn any_cpu(&mut self) -> u16 {
        self.rng.between(0, u64::from(self.trace.cpus) - 1) as u16
    }

    /// A VM begins, on CPUs beside each other as far as there are so many.
    pub fn start(&mut self, vm: Vm) -> usize {
        let number = self.trace.vms.len();
        self.trace.vms.push(vm);
        self.note(Event::Start(number));
        let first = self.any_cpu();
        let cpus: Vec<_> = (0..u16::from(vm.vcpus)).map(|vcpu| (first + vcpu) % self.trace.cpus).collect();
        for (vcpu, cpu) in (0..).zip(&cpus) {
            self.note(Event::Run(number, vcpu, *cpu));
        }
        self.running.push((number, cpus));
        number
    }

    /// It ends.
    pub fn stop(&mut self, vm: usize) {
        self.running.retain(|(number, _)| *number != vm);
        self.note(Event::Stop(vm));
    }

    /// The next tick: the scheduler moves vCPUs.
    pub fn tick(&mut self) {
        self.now += TICK;
        let mut running = std::mem::take(&mut self.running);
        for (vm, cpus) in &mut running {
            for (vcpu, cpu) in (0..).zip(cpus) {
                let to = if self.rng.one_in(FAR) {
                    self.any_cpu()
                } else if self.rng.one_in(NEAR) {
                    let first = u64::from(*cpu) / NEIGHBOURS * NEIGHBOURS;
                    let last = (first + NEIGHBOURS).min(self.trace.cpus.into()) - 1;
                    self.rng.between(first, last) as u16
                } else {
                    *cpu
                };
                if to != std::mem::replace(cpu, to) {
                    self.note(Event::Run(*vm, vcpu, to));
                }
            }
        }
        self.running = running;
    }

    /// Nothing but that for a while.
    pub fn ticks(&mut self, count: u64) {
        (0..count).for_each(|_| self.tick());
    }

    /// The trace.
    pub fn finish(self) -> Trace {
        self.trace
    }
}
