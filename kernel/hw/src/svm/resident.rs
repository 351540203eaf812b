//! Registers that stay in the CPU when a guest is left, until another vCPU needs it.
//!
//! Nobody but guests uses the FPU: CR0.TS is set whenever a service or the kernel runs.

use super::vcpu::Vcpu;
use crate::prelude::*;
use core::arch::x86_64::{_xgetbv, _xrstor64, _xsave64, _xsetbv};
use x86_64::registers::{debug::*, model_specific::Msr};

/// What RDTSCP and RDPID tell (APM volume 2, appendix A).
const TSC_AUX: u32 = 0xc000_0103;

fn save_fpu(vcpu: &mut Vcpu) {
    // SAFETY: OSXSAVE is set. All components that fit the area are saved, whichever of them the guest enables at the
    // moment; the area is the vCPU's own, aligned to a frame. CR0 is then as always in the kernel.
    unsafe {
        asm!("clts");
        vcpu.extra.xcr0 = _xgetbv(0);
        _xsetbv(0, this().svm.limits.xcr0);
        _xsave64(vcpu.fpu.as_mut_ptr(), u64::MAX);
        Cr0::write_raw(CR0);
    }
}

fn load_fpu(vcpu: &mut Vcpu) {
    // SAFETY: as in `save_fpu`; the area holds what was saved or the initial state.
    unsafe {
        asm!("clts");
        _xsetbv(0, this().svm.limits.xcr0);
        _xrstor64(vcpu.fpu.as_ptr(), u64::MAX);
        Cr0::write_raw(CR0);
    }
}

fn load_xcr0(vcpu: &mut Vcpu) {
    // SAFETY: OSXSAVE is set; the value was checked when the vmm loaded it or accepted by the CPU when the guest did.
    unsafe { _xsetbv(0, vcpu.extra.xcr0) };
}

fn save_debug(vcpu: &mut Vcpu) {
    vcpu.extra.dr = [Dr0::read(), Dr1::read(), Dr2::read(), Dr3::read()];
}

/// Addresses are without effect while DR7 enables none, as it does whenever the host runs.
fn load_debug(vcpu: &mut Vcpu) {
    let writes = [Dr0::write, Dr1::write, Dr2::write, Dr3::write];
    writes.iter().zip(vcpu.extra.dr).for_each(|(write, address)| write(address));
}

/// The guest can't change it without an exit.
fn load_tsc_aux(vcpu: &mut Vcpu) {
    if this().svm.tsc_aux {
        // SAFETY: the CPU has it; the value has 32 bits, as was checked when it was loaded.
        unsafe { Msr::new(TSC_AUX).write(vcpu.extra.tsc_aux) };
    }
}

/// Gives the CPU what the vmm loaded since the last entry, or everything.
#[cold]
pub(super) fn reload(vcpu: &mut Vcpu) {
    if vcpu.extra.reload == ABSENT {
        load_fpu(vcpu);
    }
    let groups = Groups::from_bits_truncate(vcpu.extra.reload as u32);
    let loads = [(Groups::XCR0, load_xcr0 as fn(&mut Vcpu)), (Groups::DEBUG, load_debug), (Groups::TSC, load_tsc_aux)];
    loads.iter().filter(|(group, _)| groups.contains(*group)).for_each(|(_, give)| give(vcpu));
    vcpu.extra.reload = 0;
}

/// Takes everything out of this CPU, where it is, or was loaded by the vmm since.
pub(super) fn switch_out(vcpu: &mut Vcpu) {
    if vcpu.extra.reload != ABSENT {
        reload(vcpu);
        save_fpu(vcpu);
        save_debug(vcpu);
        vcpu.extra.reload = ABSENT;
    }
}
