//! Instructions of this module, each in a function of its own.

use core::arch::asm;

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[inline]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: in ring 0 this only reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The value must leave the machine as Rust and the kernel expect it.
        #[inline]
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller's.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_dr0, write_dr0, "dr0");
control_register!(read_dr1, write_dr1, "dr1");
control_register!(read_dr2, write_dr2, "dr2");
control_register!(read_dr3, write_dr3, "dr3");

/// Reads CR3.
#[inline]
pub fn read_cr3() -> u64 {
    let value;
    // SAFETY: in ring 0 this only reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Lets the FPU's instructions run.
///
/// # Safety
/// As [`write_cr0`]: whoever uses the FPU then must own what is in it.
#[inline]
pub unsafe fn clear_task_switched() {
    // SAFETY: the caller's.
    unsafe { asm!("clts", options(nostack, preserves_flags)) };
}

/// Reads XCR0.
///
/// # Safety
/// CR4.OSXSAVE must be set.
#[inline]
pub unsafe fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's; reading changes nothing.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
/// CR4.OSXSAVE must be set, and the CPU must accept the value.
#[inline]
pub unsafe fn write_xcr0(value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nomem, nostack));
    }
}

/// Saves every component that XCR0 enables.
///
/// # Safety
/// `area` must be writable for all of them and aligned to 64 bytes; CR0.TS must be clear.
#[inline]
pub unsafe fn xsave(area: *mut u8) {
    // SAFETY: the caller's.
    unsafe { asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) };
}

/// Loads every component that XCR0 enables.
///
/// # Safety
/// As [`xsave`], and the area must hold what `xsave` wrote, or zeros with a valid MXCSR.
#[inline]
pub unsafe fn xrstor(area: *const u8) {
    // SAFETY: the caller's.
    unsafe { asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack)) };
}

/// Saves FS, GS, TR, LDTR and the system-call registers to a VMCB.
///
/// # Safety
/// `vmcb` must be the physical address of a frame for it; EFER.SVME must be set.
#[inline]
pub unsafe fn vmsave(vmcb: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("vmsave rax", in("rax") vmcb, options(nostack, preserves_flags)) };
}
