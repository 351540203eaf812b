//! What is counted of the VM and of its vCPUs, for whoever reads its statistics ([`caisson_proto::stats`]).
//!
//! A value is kept here and stored where it is read at the moment it changes: one store, no lock, and no question to anybody.
//! What only others know is asked for when somebody reads ([`Vmm::refresh`]), never at an exit.

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

/// The values.
#[derive(Debug)]
pub struct Counts {
    vm: [u64; VmStat::WORDS],
    vcpus: Vec<[u64; VcpuStat::WORDS]>,
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
        let vcpus = usize::from(config.vcpus);
        let mut counts =
            Self { vm: [0; VmStat::WORDS], vcpus: vec![[0; VcpuStat::WORDS]; vcpus], wbinvds: vec![0; vcpus] };
        counts.set(platform, VmStat::Vcpus, config.vcpus.into());
        counts.set(platform, VmStat::Memory, config.memory);
        counts
    }

    #[inline]
    fn add_vcpu(&mut self, platform: &mut impl Platform, at: usize, word: usize, more: u64) {
        if let Some(value) = self.vcpus.get_mut(at).and_then(|values| values.get_mut(word)) {
            *value = value.wrapping_add(more);
            platform.publish(vcpu_page(at), const { data_word(VCPU) } + word, *value);
        }
    }

    fn add_vm(&mut self, platform: &mut impl Platform, word: usize, more: u64) {
        if let Some(value) = self.vm.get_mut(word) {
            *value = value.wrapping_add(more);
            platform.publish(VM_PAGE, const { data_word(VM) } + word, *value);
        }
    }

    fn set(&mut self, platform: &mut impl Platform, stat: VmStat, value: u64) {
        let old = self.vm.get(stat.word()).copied().unwrap_or_default();
        self.add_vm(platform, stat.word(), value.wrapping_sub(old));
    }
}

/// Why the guest was left.
fn reason(exit: &Exit, on_memory: bool) -> VcpuStat {
    match exit.code {
        code::IOIO => VcpuStat::Ports,
        code::NPF if on_memory => VcpuStat::Faults,
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

impl<P: Platform> Vmm<P> {
    /// Counts one more of a vCPU's.
    #[inline]
    pub(crate) fn count(&mut self, at: usize, stat: VcpuStat) {
        self.counts.add_vcpu(&mut self.platform, at, stat.word(), 1);
    }

    /// An exit begins to be handled.
    #[inline]
    pub(crate) fn count_exit(&mut self, at: usize, exit: &Exit) {
        self.count(at, VcpuStat::Exits);
        let on_memory = exit.code == code::NPF && self.ram.contains(exit.info2);
        self.count(at, reason(exit, on_memory));
    }

    /// It ends with this reply; `lost` is what the reply before should have injected, and was counted then.
    #[inline]
    pub(crate) fn count_reply(&mut self, at: usize, exit: &Exit, resume: &Resume, lost: u64) {
        if resume.inject != 0 && resume.inject != lost {
            self.count(
                at,
                match resume.inject & TYPE {
                    NMI => VcpuStat::Nmis,
                    EXCEPTION => VcpuStat::Injected,
                    _ => VcpuStat::Interrupts,
                },
            );
        } else if exit.code == code::KICK && resume.inject == 0 && !resume.window && resume.groups == Groups::empty() {
            self.count(at, VcpuStat::SpuriousKicks);
        }
    }

    /// It took from this point of the TSC until now.
    #[inline]
    pub(crate) fn count_time(&mut self, at: usize, start: u64) {
        let ticks = self.platform.now().wrapping_sub(start);
        self.counts.add_vcpu(&mut self.platform, at, VcpuStat::Latency.word() + bucket(ticks, BUCKETS), 1);
    }

    /// memory was asked for a page that the guest lacked, from this point of the TSC until now.
    pub(crate) fn count_populate(&mut self, at: usize, start: u64, fixed: bool) {
        let ticks = self.platform.now().wrapping_sub(start);
        self.counts.add_vm(&mut self.platform, VmStat::Populate.word() + bucket(ticks, BUCKETS), 1);
        if fixed {
            self.count(at, VcpuStat::FaultsFixed);
        }
    }

    /// Somebody reads: these are what others know of the VM, and the kernel of its vCPUs.
    pub fn refresh(&mut self, known: &[(VmStat, u64)]) {
        for (stat, value) in known {
            self.counts.set(&mut self.platform, *stat, *value);
        }
        for at in 0..self.vcpus.len() {
            let now = self.platform.wbinvds(at as u8);
            if let Some(before) = self.counts.wbinvds.get_mut(at) {
                // A vCPU's page may be newer than what was seen of it: then it counts from 0.
                let more = now.checked_sub(core::mem::replace(before, now)).unwrap_or(now);
                self.counts.add_vcpu(&mut self.platform, at, VcpuStat::WriteBacks.word(), more);
            }
        }
    }
}
