//! What the vmm keeps of each vCPU beside its registers.

use crate::dev::lapic::Lapic;
use crate::waiting::Wait;

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Waits for a start-up IPI; the kernel has it stopped.
    Waiting,
    /// Runs.
    Running,
    /// Executed HLT.
    Halted {
        /// RFLAGS.IF then: whether an interrupt wakes it.
        interrupts_on: bool,
    },
}

/// Whether another NMI may come (APM volume 2, section 8.1.3: not until the IRET of the last one's handler).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nmis {
    /// It may.
    Open,
    /// A handler runs: its IRET leaves the guest.
    Masked,
    /// Its IRET is being executed, with a single step behind it that the guest doesn't know of.
    Returning {
        /// DR6 before.
        dr6: u64,
        /// The guest steps, too.
        stepped: bool,
    },
}

/// Where a guest wants a kvm record, if it wants it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// The MSR as the guest wrote it.
    pub msr: u64,
    /// The record's address, when it is on.
    pub at: Option<u64>,
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// Its local APIC.
    pub apic: Lapic,
    /// Whether it runs.
    pub life: Life,
    /// Exits by the place of their reason among the statistics.
    pub exits: [u64; 256],
    /// Of those for a kick, the ones after which there was something to tell the guest.
    pub kicks_used: u64,
    /// When it halted; 0 if it didn't, or ran since.
    pub halted_at: u64,
    /// A kick is on its way.
    pub kicked: bool,
    /// What was injected with the last reply.
    pub injected: u64,
    /// INIT came.
    pub init: bool,
    /// A start-up IPI with this vector came after it.
    pub sipi: Option<u8>,
    /// NMIs that came: two at the most, as one is delivered at once and one waits for its end.
    pub nmi: u8,
    /// Whether it may be delivered.
    pub nmis: Nmis,
    /// Guest TSC less the machine's.
    pub tsc_offset: u64,
    /// The guest's last TSC deadline, in its own TSC.
    pub tsc_deadline: u64,
    /// kvmclock's record of this vCPU.
    pub time: Record,
    /// Its version; even.
    pub time_version: u32,
    /// The word by which the guest ends interrupts without an exit.
    pub eoi: Record,
    /// The guest may end the present interrupt by that word.
    pub eoi_armed: bool,
    /// MISC_ENABLE.
    pub misc_enable: u64,
    /// DE_CFG, of which guests set the bit that makes LFENCE serializing.
    pub de_cfg: u64,
    /// Its wait for a page that memory hasn't, if it waits.
    pub waits: Option<Wait>,
    /// The last nested fault on memory, and how often it came in a row.
    pub fault: (u64, u32),
}

impl Vcpu {
    /// vCPU `index`, before its start.
    pub fn new(index: u8, tsc_offset: u64) -> Self {
        Self {
            apic: Lapic::new(index),
            life: if index == 0 { Life::Running } else { Life::Waiting },
            exits: [0; 256],
            kicks_used: 0,
            halted_at: 0,
            kicked: false,
            injected: 0,
            init: false,
            sipi: None,
            nmi: 0,
            nmis: Nmis::Open,
            tsc_offset,
            tsc_deadline: 0,
            time: Record::default(),
            time_version: 0,
            eoi: Record::default(),
            eoi_armed: false,
            misc_enable: 1,
            de_cfg: 2,
            waits: None,
            fault: (0, 0),
        }
    }

    /// An NMI comes. While one is handled, all others are one.
    pub fn receive_nmi(&mut self) {
        let most = if self.nmis == Nmis::Open { 2 } else { 1 };
        self.nmi = (self.nmi + 1).min(most);
    }

    /// Whether no interrupt, NMI or INIT waits for it.
    #[inline]
    pub fn is_undisturbed(&self) -> bool {
        self.apic.is_quiet() && !self.init && self.nmi == 0
    }

    /// Whether nothing but INIT or an NMI can wake it.
    pub fn is_dead(&self) -> bool {
        let deaf = matches!(self.life, Life::Waiting | Life::Halted { interrupts_on: false });
        deaf && !self.init && self.sipi.is_none() && self.nmi == 0
    }
}
