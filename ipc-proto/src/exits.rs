//! The exit codes that a vmm tells apart (APM volume 2, appendix C), with those that the kernel knows, too; and what else
//! makes exits easier to handle.

use core::ops::{Deref, DerefMut};

use crate::vcpu::{Resume, Save, VcpuState};

/// A vmm names a register wherever in the state page it lies.
impl Deref for VcpuState {
    type Target = Save;
    fn deref(&self) -> &Save {
        &self.save
    }
}

impl DerefMut for VcpuState {
    fn deref_mut(&mut self) -> &mut Save {
        &mut self.save
    }
}

impl Resume {
    /// Run on at `rip` with `rax`, and nothing else.
    pub fn at(rip: u64, rax: u64) -> Self {
        Self { rip, rax, ..Self::default() }
    }
}

/// Exit codes.
pub mod code {
    pub use crate::vcpu::code::*;

    /// MOV to CR0; + n for CRn.
    pub const WRITE_CR0: u16 = 0x10;
    /// MOV from DR0; + n for DRn.
    pub const READ_DR0: u16 = 0x20;
    /// RDTSC, and on QEMU RDTSCP.
    pub const RDTSC: u16 = 0x6e;
    /// RDPMC.
    pub const RDPMC: u16 = 0x6f;
    /// INVD.
    pub const INVD: u16 = 0x76;
    /// PAUSE.
    pub const PAUSE: u16 = 0x77;
    /// HLT.
    pub const HLT: u16 = 0x78;
    /// INVLPGA.
    pub const INVLPGA: u16 = 0x7a;
    /// FERR freeze.
    pub const FERR_FREEZE: u16 = 0x7e;
    /// VMRUN.
    pub const VMRUN: u16 = 0x80;
    /// VMLOAD.
    pub const VMLOAD: u16 = 0x82;
    /// VMSAVE.
    pub const VMSAVE: u16 = 0x83;
    /// STGI.
    pub const STGI: u16 = 0x84;
    /// CLGI.
    pub const CLGI: u16 = 0x85;
    /// SKINIT.
    pub const SKINIT: u16 = 0x86;
    /// RDTSCP.
    pub const RDTSCP: u16 = 0x87;
    /// MONITOR.
    pub const MONITOR: u16 = 0x8a;
    /// MWAIT.
    pub const MWAIT: u16 = 0x8b;
    /// MWAIT with the monitor armed.
    pub const MWAIT_ARMED: u16 = 0x8c;
}
