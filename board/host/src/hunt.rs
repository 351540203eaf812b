//! The machines in which broken rules are looked for.

use caisson_proto::mailbox;

use crate::config::{Config, Mutant};

/// What a seed stands for where broken rules are looked for. Every other one has much taken from living VMs; where memory
/// is encrypted there is more of that, too.
pub fn hunt(seed: u64, mutant: Option<Mutant>) -> Config {
    let usual = Config {
        mutant,
        hunt: true,
        fewest: 0,
        cpus: 2 + (seed / 4 % 3) as usize,
        lies: false,
        events: 0,
        vms: 1 + (seed % 5) as usize,
        ..Config::of_seed(seed)
    };
    // Little memory in small guests, so that frames and ASIDs are soon somebody else's.
    let tight = Config { encrypted: true, guest_pages: 48, frames: 512 * 4, vms: 4, vcpus: 4, ..usual };
    // A processor that keeps what it should forget, and a sev-firmware that has to find out.
    let stubborn = if seed % 8 == 6 { mailbox::DECOMMISSION } else { tight.stubborn };
    let deaths = if seed % 8 == 6 { 8 } else { tight.deaths };
    match seed % 4 {
        0 => usual,
        1 => Config { vms: 1, actions: 200, reclaims: 60, ..usual },
        2 => Config {
            stubborn,
            deaths,
            actions: 300,
            resets: 20,
            reclaims: 100,
            faults: 6,
            lazy: seed % 16 == 2,
            ..tight
        },
        _ => Config { actions: 500, resets: 20, reclaims: 200, faults: 0, deaths: 0, lazy: seed % 16 == 7, ..tight },
    }
}
