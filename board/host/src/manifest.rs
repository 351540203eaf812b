//! Who there is in the simulation and what they may. The services, their ranks and what they may ask the kernel for are those of
//! `board/qemu/system.toml`; without console and psp, with two services more that echo, and with shorter budgets.

use caisson_proto::abi::MAX_SERVICES;
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::{Caps, VmKind};
use zerocopy::FromZeros;

use crate::config::Config;
use crate::rng::Rng;

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Restarts and buries the others.
    Supervisor,
    /// The model of a vmm; which of them.
    Vmm(usize),
    /// Owns the frames.
    Memory,
    /// Decides on write-backs.
    Notifier,
    /// Speaks for the secure processor.
    Firmware,
    /// Sends back what it gets, with the help of the deep one.
    Echo,
    /// Sends back what it gets.
    Deep,
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// What it is.
    pub role: Role,
    /// Kind of its VM, of a vmm.
    pub kind: VmKind,
}

/// All services, in rank order.
#[derive(Debug)]
pub struct Manifest {
    /// By slot.
    pub services: Vec<Service>,
    /// Their names.
    pub names: Vec<String>,
    /// Pages of each guest.
    pub guest_pages: u64,
    /// Slots, by role.
    pub supervisor: usize,
    /// Slot of memory.
    pub memory: usize,
    /// Slot of notifier.
    pub notifier: usize,
    /// Slot of sev-firmware.
    pub firmware: usize,
    /// Slot of the service that echoes.
    pub echo: usize,
    /// Slot of the deep one.
    pub deep: usize,
}

impl Manifest {
    /// What a configuration has.
    pub fn new(config: &Config, rng: &Rng) -> Self {
        let plain = |role| Service { role, kind: VmKind::Plain };
        let mut services = vec![plain(Role::Supervisor)];
        for vm in 0..config.vms {
            let kind = match rng.below(5) {
                0 | 1 if config.encrypted => VmKind::Sev,
                2 | 3 if config.encrypted && config.snp => VmKind::SevSnp,
                2 | 3 if config.encrypted => VmKind::SevEs,
                _ => VmKind::Plain,
            };
            services.push(Service { role: Role::Vmm(vm), kind });
        }
        let memory = services.len();
        services.extend([Role::Memory, Role::Notifier, Role::Firmware, Role::Echo, Role::Deep].map(plain));
        let names = services.iter().map(|service| name(service.role)).collect();
        let by_chance = [48, 300, 512, 700, 1024][rng.below(5) as usize];
        let guest_pages = if config.guest_pages == 0 { by_chance } else { config.guest_pages };
        Self {
            services,
            names,
            guest_pages,
            supervisor: 0,
            memory,
            notifier: memory + 1,
            firmware: memory + 2,
            echo: memory + 3,
            deep: memory + 4,
        }
    }

    /// The record of a slot.
    pub fn record(&self, slot: usize) -> ServiceRecord {
        let bit = |slot: usize| 1u64 << (slot % MAX_SERVICES);
        let none = Caps::empty();
        let (may_call, may_ring, caps, budget_ms) = match self.services.get(slot).map(|service| service.role) {
            Some(Role::Supervisor) => (0, bit(self.memory), Caps::SUPERVISE | Caps::TIMER, 1000),
            Some(Role::Vmm(_)) => {
                (bit(self.memory) | bit(self.firmware) | bit(self.echo), 0, Caps::VCPUS | Caps::TIMER, 5000)
            }
            Some(Role::Memory) => (
                bit(self.notifier) | bit(self.firmware),
                bit(self.supervisor) | bit(self.memory) | bit(self.notifier),
                Caps::FRAMES | Caps::TIMER,
                1000,
            ),
            Some(Role::Notifier) => (bit(self.firmware), bit(self.memory), Caps::WRITEBACK, 1000),
            Some(Role::Echo) => (bit(self.deep), 0, none, 1000),
            // It rings whoever has jobs, and itself.
            Some(Role::Firmware) => {
                (0, (bit(self.echo) - 1) & !bit(self.supervisor), Caps::FIRMWARE | Caps::TIMER, 1000)
            }
            Some(Role::Deep) | None => (0, 0, none, 1000),
        };
        let is_vmm = u32::from(self.is_vmm(slot));
        ServiceRecord { may_call, may_ring, caps: caps.bits(), budget_ms, is_vmm, ..ServiceRecord::new_zeroed() }
    }

    /// Whether there is a vmm in a slot.
    pub fn is_vmm(&self, slot: usize) -> bool {
        matches!(self.services.get(slot), Some(Service { role: Role::Vmm(_), .. }))
    }
}

fn name(role: Role) -> String {
    match role {
        Role::Supervisor => "supervisor".into(),
        Role::Vmm(number) => format!("vmm{number}"),
        Role::Memory => "memory".into(),
        Role::Notifier => "notifier".into(),
        Role::Firmware => "sev-firmware".into(),
        Role::Echo => "echo".into(),
        Role::Deep => "deep".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_manifest::{plan, system::System};

    /// But for console and psp, which aren't here, and for the two that echo, which aren't there.
    #[test]
    fn nobody_rings_whom_the_board_keeps_from_him() {
        let text = include_str!("../../qemu/system.toml");
        let board = System::parse("system.toml".as_ref(), text).expect("the board's manifest is sound");
        let board = plan::plan(&board, &["0"]).expect("one VM fits");
        let config = Config { vms: 1, ..Config::of_seed(0) };
        let here = Manifest::new(&config, &Rng::new(0));
        for (slot, name) in here.names.iter().enumerate().take(here.echo) {
            let same = |planned: &&plan::Planned| planned.name.replace('-', "") == name.replace('-', "");
            let may = board.services.iter().find(same).expect("it is on the board").record.may_ring;
            let there = |at: &usize| may >> at & 1 == 1;
            let rings = (0..64).filter(|at| here.record(slot).may_ring >> at & 1 == 1);
            let allowed: Vec<String> =
                (0..board.services.len()).filter(there).map(|at| board.services[at].name.replace('-', "")).collect();
            for target in rings.map(|at| here.names[at].replace('-', "")) {
                assert!(allowed.contains(&target), "{name} rings {target}");
            }
        }
    }
}
