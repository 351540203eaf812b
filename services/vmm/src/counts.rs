//! What is counted of the VM and of its vCPUs, for whoever reads its statistics ([`caisson_proto::stats`]).
//!
//! An exit is dear enough: its reason is counted by one addition here, and published with what follows from it and with what
//! only others know when somebody reads ([`Vmm::refresh`]). What happens seldom is published as it happens. No lock, and no
//! question to anybody. An exit isn't timed: two looks at the clock would cost as much as a tenth of all that the vmm does for it.

use caisson_proto::exits::code;
use caisson_proto::stats::{BUCKETS, VCPU, VM, VM_PAGE, VcpuStat, VmStat, block, bucket, data_word, id, vcpu_page};
use caisson_proto::vcpu::{Exit, Groups, Resume};
use caisson_proto::vmm::VmConfig;

use crate::platform::Platform;
use crate::vcpu::Life;
use crate::virtio::net::Counts;
use crate::vmm::Vmm;

/// The event to inject, in EVENTINJ's format (APM volume 2, section 15.20): its type, and an NMI's and an exception's.
const TYPE: u64 = 7 << 8;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;

/// Where a vCPU's values begin in its page, and the VM's in its own, in words.
const VCPU_DATA: usize = data_word(VCPU);
const VM_DATA: usize = data_word(VM);

/// Publishes blocks in which nothing was counted yet.
pub(crate) fn begin(platform: &mut impl Platform, config: &VmConfig) {
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

/// Where a reason's count lies in a vCPU's page, in words. Only histograms lie so far behind that it wouldn't fit.
const fn place(reason: VcpuStat) -> u8 {
    let word = VCPU_DATA + reason.word();
    assert!(word <= u8::MAX as usize);
    word as u8
}

/// Exit codes below this have the places of their counts in a table.
const CODES: usize = 0x90;
const PLACES: [u8; CODES] = {
    let (mut table, mut code) = ([0; CODES], 0);
    while code < CODES {
        table[code] = place(reason(code as u16));
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

    /// Where an exit is counted.
    #[inline(always)]
    pub(crate) fn place_of(&self, exit: &Exit) -> u8 {
        PLACES.get(usize::from(exit.code)).copied().unwrap_or_else(|| self.rare(exit))
    }

    #[cold]
    fn rare(&self, exit: &Exit) -> u8 {
        let on_memory = exit.code == code::NPF && self.ram.contains(exit.info2);
        place(if on_memory { VcpuStat::Faults } else { reason(exit.code) })
    }

    /// An exit ends with this reply, which isn't the usual one that tells the guest nothing. `lost` is what the reply before
    /// should have injected, and was counted then.
    #[inline(never)]
    pub(crate) fn count_reply(&mut self, at: usize, exit: &Exit, resume: &Resume, lost: u64) {
        if self.vcpus.get(at).is_some_and(|vcpu| vcpu.life == Life::Running) {
            self.count_wake(at);
        }
        let told = resume.inject != 0 || resume.window || resume.groups != Groups::empty();
        if told
            && exit.code == code::KICK
            && let Some(vcpu) = self.vcpus.get_mut(at)
        {
            vcpu.kicks_used += 1;
        }
        match resume.inject {
            0 => {}
            event if event == lost => {}
            event => match event & TYPE {
                NMI => self.count(at, VcpuStat::Nmis),
                EXCEPTION => self.count(at, VcpuStat::Injected),
                _ => self.count(at, VcpuStat::Interrupts),
            },
        }
    }

    /// A vCPU halts.
    #[inline(never)]
    pub(crate) fn count_halt(&mut self, at: usize) {
        let now = self.platform.now();
        if let Some(vcpu) = self.vcpus.get_mut(at) {
            vcpu.halted_at = now;
        }
    }

    /// A vCPU runs, and perhaps it was halted.
    #[inline(never)]
    pub(crate) fn count_wake(&mut self, at: usize) {
        let halted_at = self.vcpus.get_mut(at).map_or(0, |vcpu| core::mem::take(&mut vcpu.halted_at));
        if halted_at != 0 {
            let waited = bucket(self.platform.now().wrapping_sub(halted_at), BUCKETS);
            self.platform.count(vcpu_page(at), VCPU_DATA + VcpuStat::HaltWait.word() + waited, 1);
        }
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
    pub fn refresh(&mut self, known: impl IntoIterator<Item = (VmStat, u64)>) {
        let private = [(VmStat::Private, self.ram.private_pages())];
        for (stat, value) in known.into_iter().chain(self.virtio.known()).chain(private) {
            self.platform.publish(VM_PAGE, VM_DATA + stat.word(), value);
        }
        if let Some(counts) = self.net_counts() {
            let Counts { sent, sent_bytes, lost, received, received_bytes, cut } = counts;
            let counts = [
                (VmStat::NetSent, sent),
                (VmStat::NetSentBytes, sent_bytes),
                (VmStat::NetLost, lost),
                (VmStat::NetReceived, received),
                (VmStat::NetReceivedBytes, received_bytes),
                (VmStat::NetCut, cut),
            ];
            for (stat, value) in counts {
                self.platform.publish(VM_PAGE, VM_DATA + stat.word(), value);
            }
        }
        for (at, vcpu) in self.vcpus.iter().enumerate() {
            let (page, exits) = (vcpu_page(at), &vcpu.exits);
            // Those that the kernel answered were no exits to here.
            let (wbinvds, mut all) = (self.platform.wbinvds(at as u8), 0);
            for stat in REASONS {
                let count = exits[usize::from(place(stat))];
                let more = if stat == VcpuStat::WriteBacks { wbinvds } else { 0 };
                self.platform.publish(page, usize::from(place(stat)), count + more);
                all += count;
            }
            let kicks = exits[usize::from(place(VcpuStat::Kicks))];
            self.platform.publish(page, VCPU_DATA + VcpuStat::SpuriousKicks.word(), kicks - vcpu.kicks_used);
            self.platform.publish(page, VCPU_DATA + VcpuStat::Exits.word(), all);
        }
    }
}
