//! What is counted of the VM and of its vCPUs, for whoever reads its statistics ([`caisson_proto::stats`]).
//!
//! A value is kept only where it is read, and changes there by one store: no lock, and no question to anybody. An exit is dear
//! enough, so it costs two such counts, one by its reason and one by its time. What follows from these, and what only others
//! know, is put in when somebody reads ([`Vmm::refresh`]).

use alloc::vec;
use alloc::vec::Vec;

use caisson_proto::exits::code;
use caisson_proto::stats::{BUCKETS, VCPU, VM, VM_PAGE, VcpuStat, VmStat, block, bucket, data_word, id, vcpu_page};
use caisson_proto::vcpu::{Exit, Groups, Resume};
use caisson_proto::vmm::VmConfig;

use crate::platform::Platform;
use crate::vmm::Vmm;

/// The event to inject, in EVENTINJ's format (APM volume 2, section 15.20): its type, and an NMI's and an exception's.
const TYPE: u64 = 7 << 8;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;

/// Where a vCPU's values begin in its page, and the VM's in its own, in words.
const VCPU_DATA: usize = data_word(VCPU);
const VM_DATA: usize = data_word(VM);

/// What has to be remembered.
#[derive(Debug)]
pub struct Counts {
    /// WBINVDs of each vCPU that the kernel had counted when it was last looked at.
    wbinvds: Vec<u64>,
}

impl Counts {
    /// Publishes blocks in which nothing was counted yet.
    pub(crate) fn begin(platform: &mut impl Platform, config: &VmConfig) -> Self {
        let mut publish = |page, block: [u64; 512]| {
            (0..).zip(block).for_each(|(word, value)| platform.publish(page, word, value));
        };
        publish(VM_PAGE, block(VM, &id(&config.name, None)));
        for index in 0..config.vcpus {
            publish(vcpu_page(index.into()), block(VCPU, &id(&config.name, Some(index))));
        }
        for (stat, value) in [(VmStat::Vcpus, config.vcpus.into()), (VmStat::Memory, config.memory)] {
            platform.publish(VM_PAGE, VM_DATA + stat.word(), value);
        }
        Self { wbinvds: vec![0; config.vcpus.into()] }
    }
}

/// Every reason. An exit is counted by one of them.
const REASONS: [VcpuStat; 15] = [
    VcpuStat::Ports,
    VcpuStat::Mmio,
    VcpuStat::Faults,
    VcpuStat::Msrs,
    VcpuStat::Halts,
    VcpuStat::Windows,
    VcpuStat::NmiWindows,
    VcpuStat::Hypercalls,
    VcpuStat::Cpuid,
    VcpuStat::Controls,
    VcpuStat::Exceptions,
    VcpuStat::Timers,
    VcpuStat::Kicks,
    VcpuStat::WriteBacks,
    VcpuStat::Others,
];

/// Why the guest was left; of nested faults, those on devices.
const fn reason(code: u16) -> VcpuStat {
    match code {
        code::IOIO => VcpuStat::Ports,
        code::NPF => VcpuStat::Mmio,
        code::MSR => VcpuStat::Msrs,
        code::HLT => VcpuStat::Halts,
        code::VINTR => VcpuStat::Windows,
        code::IRET => VcpuStat::NmiWindows,
        code::VMMCALL => VcpuStat::Hypercalls,
        code::CPUID => VcpuStat::Cpuid,
        code::TIMER => VcpuStat::Timers,
        code::KICK => VcpuStat::Kicks,
        code::WBINVD => VcpuStat::WriteBacks,
        0x00..=0x3f | code::CR0_SEL_WRITE | code::XSETBV => VcpuStat::Controls,
        0x40..=0x5f => VcpuStat::Exceptions,
        _ => VcpuStat::Others,
    }
}

/// Exit codes below this have the places of their counts in a table.
const CODES: usize = 0x90;
const PLACES: [u8; CODES] = {
    let (mut table, mut code) = ([0; CODES], 0);
    while code < CODES {
        table[code] = (VCPU_DATA + reason(code as u16).word()) as u8;
        // It must fit, and only histograms lie behind the reasons.
        assert!(VCPU_DATA + reason(code as u16).word() <= u8::MAX as usize);
        code += 1;
    }
    table
};

impl<P: Platform> Vmm<P> {
    /// Counts one more of a vCPU's.
    #[inline(always)]
    pub(crate) fn count(&mut self, at: usize, stat: VcpuStat) {
        self.platform.count(vcpu_page(at), VCPU_DATA + stat.word(), 1);
    }

    /// An exit begins to be handled, of a vCPU that exists.
    #[inline(always)]
    pub(crate) fn count_exit(&mut self, at: usize, exit: &Exit) {
        let place = match PLACES.get(usize::from(exit.code)) {
            Some(place) => usize::from(*place),
            None => VCPU_DATA + self.rare(exit).word(),
        };
        self.platform.count(vcpu_page(at), place, 1);
    }

    fn rare(&self, exit: &Exit) -> VcpuStat {
        let on_memory = exit.code == code::NPF && self.ram.contains(exit.info2);
        if on_memory { VcpuStat::Faults } else { reason(exit.code) }
    }

    /// It ends with this reply; `lost` is what the reply before should have injected, and was counted then.
    #[inline(always)]
    pub(crate) fn count_reply(&mut self, at: usize, exit: &Exit, resume: &Resume, lost: u64) {
        if resume.inject != 0 || exit.code == code::KICK {
            self.count_event(at, resume, lost);
        }
    }

    fn count_event(&mut self, at: usize, resume: &Resume, lost: u64) {
        match resume.inject {
            0 if resume.window || resume.groups != Groups::empty() => {}
            0 => self.count(at, VcpuStat::SpuriousKicks),
            event if event == lost => {}
            event => match event & TYPE {
                NMI => self.count(at, VcpuStat::Nmis),
                EXCEPTION => self.count(at, VcpuStat::Injected),
                _ => self.count(at, VcpuStat::Interrupts),
            },
        }
    }

    /// It took from this point of the TSC until now.
    #[inline(always)]
    pub(crate) fn count_time(&mut self, at: usize, start: u64) {
        let ticks = self.platform.now().wrapping_sub(start);
        self.platform.count(vcpu_page(at), VCPU_DATA + VcpuStat::Latency.word() + bucket(ticks, BUCKETS), 1);
    }

    /// memory was asked for a page that the guest lacked, from this point of the TSC until now.
    pub(crate) fn count_populate(&mut self, at: usize, start: u64, fixed: bool) {
        let ticks = self.platform.now().wrapping_sub(start);
        self.platform.count(VM_PAGE, VM_DATA + VmStat::Populate.word() + bucket(ticks, BUCKETS), 1);
        if fixed {
            self.count(at, VcpuStat::FaultsFixed);
        }
    }

    /// Somebody reads: these are what others know of the VM, and the kernel of its vCPUs.
    pub fn refresh(&mut self, known: &[(VmStat, u64)]) {
        for (stat, value) in known {
            self.platform.publish(VM_PAGE, VM_DATA + stat.word(), *value);
        }
        for (at, before) in self.counts.wbinvds.iter_mut().enumerate() {
            let (page, now) = (vcpu_page(at), self.platform.wbinvds(at as u8));
            // A vCPU's page may be newer than what was seen of it: then it counts from 0.
            let more = now.checked_sub(*before).unwrap_or(now);
            *before = now;
            self.platform.count(page, VCPU_DATA + VcpuStat::WriteBacks.word(), more);
            let counted = REASONS.iter().map(|stat| self.platform.published(page, VCPU_DATA + stat.word()));
            // Those that the kernel answered were no exits to here.
            let exits = counted.fold(0, u64::wrapping_add).wrapping_sub(now);
            self.platform.publish(page, VCPU_DATA + VcpuStat::Exits.word(), exits);
        }
    }
}
