//! Driving SNP guests.

use caisson_proto::addr::Gpa;
use caisson_qemu_psp::rmp::{Entry, Size};
use caisson_qemu_psp::{Command, Status};

use super::*;

/// A policy that everybody accepts.
pub const POLICY: u64 = 0x3_0000;
/// Where contexts lie: 1 MiB, one page each.
pub const CONTEXTS: u64 = 1 << 20;

impl Rig {
    /// With SNP_INIT_EX done and ASIDs flushed.
    pub fn snp() -> Self {
        let mut rig = Self::new();
        rig.machine.wbinvd();
        assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::Success);
        rig.snp_flush();
        rig
    }

    pub fn snp_flush(&mut self) {
        self.machine.wbinvd();
        assert_eq!(self.run(Command::SnpDfFlush, &[]).0, Status::Success);
    }

    /// A new context at this page.
    pub fn context(&mut self, at: u64) -> u64 {
        *self.machine.entry(at) = Entry::firmware(Size::Small);
        assert_eq!(self.addressed(Command::SnpGctxCreate, at), Status::Success);
        at
    }

    /// A guest in its launch, bound to an ASID.
    pub fn launching(&mut self, index: u64, asid: u32) -> u64 {
        let context = self.context(CONTEXTS + index * 4096);
        assert_eq!(self.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::Success);
        assert_eq!(self.run(Command::SnpActivate, &snp_activate(context, asid)).0, Status::Success);
        context
    }

    /// Gives the processor a page to fill.
    pub fn add(&mut self, context: u64, asid: u16, page_type: u32, at: u64, gpa: u64) -> Status {
        *self.machine.entry(at) = Entry::pre_guest(Asid(asid), Gpa(gpa), Size::Small);
        self.run(Command::SnpLaunchUpdate, &snp_update(context, page_type << 1, at)).0
    }

    pub fn finish(&mut self, context: u64) -> Status {
        self.run(Command::SnpLaunchFinish, &pack(&[&context.to_le_bytes(), &[0; 56]])).0
    }

    /// A command whose buffer is an address.
    pub fn addressed(&mut self, command: Command, at: u64) -> Status {
        self.run(command, &at.to_le_bytes()).0
    }

    /// SNP_GUEST_STATUS: policy, ASID, state.
    pub fn snp_status(&mut self, context: u64) -> (u64, u32, u8) {
        let (status, _) = self.run(Command::SnpGuestStatus, &pack(&[&context.to_le_bytes(), &DATA.to_le_bytes()]));
        assert_eq!(status, Status::Success);
        let page = self.machine.get(DATA, 32);
        (u64::from_le_bytes(page[..8].try_into().expect("eight bytes")), word(page, 8), page[12])
    }
}

pub fn snp_init(flags: u32) -> Vec<u8> {
    pack(&[&words(&[flags]), &[0; 60]])
}

pub fn snp_start(context: u64, policy: u64) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &policy.to_le_bytes(), &[0; 32]])
}

pub fn snp_activate(context: u64, asid: u32) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &words(&[asid])])
}

/// Flags: bit 0 the size, \[3:1\] the type.
pub fn snp_update(context: u64, flags: u32, at: u64) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &words(&[flags, 0]), &at.to_le_bytes(), &[0; 8]])
}
