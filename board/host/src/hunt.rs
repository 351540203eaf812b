//! The machines in which broken rules are looked for.

use caisson_proto::mailbox;

use crate::config::{Config, Mutant};

/// Kinds of machines.
const KINDS: u64 = 11;

/// What a seed stands for where broken rules are looked for: small machines of a few kinds, each of which brings some
/// rules often to where they matter.
pub fn hunt(seed: u64, mutant: Option<Mutant>) -> Config {
    let (kind, number) = (seed % KINDS, seed / KINDS);
    let usual = Config {
        mutant,
        hunt: true,
        fewest: 0,
        cpus: 2 + (number % 3) as usize,
        lies: false,
        events: 0,
        vms: 1 + (seed % 5) as usize,
        ..Config::of_seed(seed)
    };
    // Little memory in small guests, so that frames and ASIDs are soon somebody else's.
    let tight = Config { encrypted: true, guest_pages: 48, frames: 512 * 4, vms: 4, vcpus: 4, changes: 0, ..usual };
    // VMs that come and go, with hardly an ASID for each, and a processor at which one command fails often.
    let churn = |sev, snp, faults| Config {
        snp: number.is_multiple_of(2),
        stubborn: if number.is_multiple_of(2) { snp } else { sev },
        sev_asids: (2, 3 + (number / 2 % 2) as u32),
        events: 12_000,
        actions: 30,
        reclaims: 20,
        faults,
        others: 0,
        deaths: 0,
        lazy: false,
        ..tight
    };
    let alternate = (number % 2) as usize;
    match kind {
        0 => usual,
        // A vmm has memory change something under its guest all the time, and memory lives.
        1 if number.is_multiple_of(2) => {
            Config { vms: 1, actions: 100, changes: 6, deaths: 0, encrypted: false, ..usual }
        }
        1 => Config { vms: 1, actions: 200, reclaims: 60, ..usual },
        2 => Config { actions: 300, resets: 20, reclaims: 100, faults: 6, lazy: number % 4 == 1, ..tight },
        3 => Config { actions: 500, resets: 20, reclaims: 200, faults: 0, deaths: 0, lazy: number % 4 == 2, ..tight },
        // Frames are taken again and again while the last write-back is under way, and nothing is evicted that needn't be.
        4 => Config {
            snp: false,
            guest_pages: 24,
            cpus: [2, 3][alternate],
            vcpus: [2, 4][alternate],
            events: 40_000,
            actions: 60,
            reclaims: 20_000,
            calm: [60, 30][(number / 4 % 2) as usize],
            thirsty: true,
            faults: 0,
            deaths: 0,
            deaf: 0,
            lazy: false,
            preemption: [4, 12][(number / 2 % 2) as usize],
            evictions: 0,
            // So that a CPU is asked for several things at once.
            latency: [32, 8][alternate],
            diligence: [14, 8][alternate],
            ..tight
        },
        5 => Config { lazy: number % 4 >= 2, ..churn(mailbox::DF_FLUSH, mailbox::SNP_DF_FLUSH, 40) },
        // What the processor keeps is remembered by a sev-firmware that dies after that.
        6 => Config {
            snp: false,
            stubborn: mailbox::DECOMMISSION,
            deaths: 5,
            peace: 3000,
            sev_asids: (2, 4),
            ..churn(mailbox::DECOMMISSION, 0, 1)
        },
        7 => Config { snp: true, ..churn(mailbox::DEACTIVATE, mailbox::SNP_PAGE_RECLAIM, 6) },
        // Vmms make pages private and shared again, punch holes and break memory all the time; memory may die at each step of that.
        8 => Config {
            vms: 1 + alternate,
            guest_pages: [48, 24, 200][(number % 3) as usize],
            actions: 400,
            changes: 3,
            deaths: 0,
            mortal: if number.is_multiple_of(3) { 12 } else { 0 },
            encrypted: number % 4 == 3,
            snp: false,
            evictions: 0,
            restless: alternate == 1,
            thirsty: true,
            reclaims: 0,
            faults: 0,
            ..usual
        },
        // The same where some pages are large.
        9 => Config {
            vms: 1,
            guest_pages: 1040,
            frames: 512 * 9,
            actions: 300,
            changes: 3,
            deaths: 0,
            encrypted: true,
            snp: true,
            reclaims: 0,
            faults: 0,
            lazy: false,
            ..usual
        },
        // Pages are taken from one VM while CPUs that ran it flush for another, or did just now; guests live on meanwhile,
        // and write what they still can.
        _ => Config {
            snp: false,
            sev_asids: (2, 9),
            guest_pages: 16,
            cpus: [2, 3][alternate],
            events: 12_000,
            actions: 2000,
            reclaims: 20_000,
            // Seldom, so that translations and dirty lines have come together again.
            calm: [1000, 2000][(number / 4 % 2) as usize],
            faults: 0,
            deaths: 0,
            deaf: 0,
            lazy: false,
            preemption: 1,
            stalls: 0,
            evictions: 0,
            // So that a CPU is asked for a flush and for its translations at once, and guests go on for long until they leave.
            latency: [32, 100][(number / 2 % 2) as usize],
            diligence: 4,
            restless: true,
            ..tight
        },
    }
}
