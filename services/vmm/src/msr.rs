//! RDMSR and WRMSR (APM volume 2, appendix A; Linux's Documentation/virt/kvm/x86/msr.rst).

use caisson_proto::vcpu::{Exit, Groups, Resume, VcpuState};

use crate::dev::pvclock::{self, time_record, wall_record};
use crate::exits::{GP, RDX, done, fault};
use crate::insn::walk::{CR0_PG, EFER_LMA, EFER_NXE};
use crate::msr_list::*;
use crate::platform::{Event, Platform};
use crate::vcpu::Record;
use crate::vmm::Vmm;

/// EFER: SYSCALL, long mode, FFXSR.
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_FFXSR: u64 = 1 << 14;
/// Eight variable ranges would be told here; there are none, and no fixed ones.
const MTRR_CAP_VALUE: u64 = 0;
/// Enabled, everything write-back.
const MTRR_DEFAULT_VALUE: u64 = 0x806;

/// The guest gets #GP.
pub(crate) struct Protection;

impl<P: Platform> Vmm<P> {
    #[inline]
    pub(crate) fn msr_exit(&mut self, at: usize, exit: &Exit, state: &mut VcpuState) -> Resume {
        let msr = exit.rcx as u32;
        if exit.info1 & 1 == 0 {
            return match self.read_msr(at, msr, exit, state) {
                Ok(value) => {
                    let next = self.next(exit, state, [0x0f, 0x32]);
                    self.platform.set_gpr(exit.vcpu, RDX, value >> 32);
                    done(next, value & 0xffff_ffff)
                }
                Err(Protection) => {
                    self.note(Event::UnknownMsrRead(msr));
                    fault(exit, GP, Some(0))
                }
            };
        }
        let value = exit.rax & 0xffff_ffff | exit.rdx << 32;
        // The address first: the write may load groups from the state page, into which finding it fills others.
        let next = self.next(exit, state, [0x0f, 0x30]);
        match self.write_msr(at, msr, value, exit, state) {
            Ok(groups) => Resume { groups, ..done(next, exit.rax) },
            Err(Protection) => {
                self.note(Event::UnknownMsrWrite(msr, value));
                fault(exit, GP, Some(0))
            }
        }
    }

    fn read_msr(&mut self, at: usize, msr: u32, exit: &Exit, state: &mut VcpuState) -> Result<u64, Protection> {
        let vcpu = self.vcpus.get(at).ok_or(Protection)?;
        Ok(match msr {
            X2APIC_FIRST..=X2APIC_LAST if vcpu.apic.is_x2() => {
                let now = self.platform.now();
                return vcpu.apic.read((msr - X2APIC_FIRST) as u16, now).map_err(|_| Protection);
            }
            TSC => self.platform.now().wrapping_add(vcpu.tsc_offset),
            TSC_DEADLINE if vcpu.apic.timer.is_deadline() && vcpu.apic.timer.due() != 0 => vcpu.tsc_deadline,
            TSC_DEADLINE => 0,
            APIC_BASE => vcpu.apic.base(),
            MTRR_CAP => MTRR_CAP_VALUE,
            MTRR_DEFAULT => MTRR_DEFAULT_VALUE,
            MISC_ENABLE => vcpu.misc_enable,
            HWCR => HWCR_VALUE,
            DE_CFG => vcpu.de_cfg,
            KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW => vcpu.time.msr,
            KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => 0,
            KVM_PV_EOI => vcpu.eoi.msr,
            _ if is_pretended(msr) => 0,
            _ => return self.read_register_msr(msr, exit, state),
        })
    }

    /// MSRs that are in the state page. The kernel normally lets the guest have them without an exit.
    fn read_register_msr(&mut self, msr: u32, exit: &Exit, state: &mut VcpuState) -> Result<u64, Protection> {
        let groups = group_of(msr).ok_or(Protection)?;
        self.fill(exit, groups, state);
        Ok(match msr {
            FS_BASE => state.segments[4].base,
            GS_BASE => state.segments[5].base,
            _ => *register_of(state, msr).ok_or(Protection)?,
        })
    }

    fn write_msr(
        &mut self, at: usize, msr: u32, value: u64, exit: &Exit, state: &mut VcpuState,
    ) -> Result<Groups, Protection> {
        let vcpu = self.vcpus.get_mut(at).ok_or(Protection)?;
        match msr {
            TSC_DEADLINE => {
                vcpu.tsc_deadline = value;
                let due = if value == 0 { 0 } else { value.wrapping_sub(vcpu.tsc_offset).max(1) };
                vcpu.apic.timer.set_deadline(due);
                // A deadline that is over fires at once and saves an exit.
                if due != 0 && due <= self.platform.now() {
                    vcpu.apic.tick(due);
                }
            }
            X2APIC_FIRST..=X2APIC_LAST if vcpu.apic.is_x2() => {
                let now = self.platform.now();
                let register = (msr - X2APIC_FIRST) as u16;
                let effect = vcpu.apic.write(register, value, now).map_err(|_| Protection)?;
                self.apply(at, effect);
            }
            APIC_BASE => return self.write_apic_base(at, value),
            TSC => return Ok(self.write_tsc(at, value, exit, state)),
            EFER => return self.write_efer(value, exit, state),
            MISC_ENABLE => vcpu.misc_enable = value,
            MTRR_DEFAULT | HWCR => {}
            DE_CFG => vcpu.de_cfg = value,
            KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW => self.set_time_record(at, value),
            KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => self.write_wall_clock(value),
            KVM_PV_EOI => {
                let at = (value & 1 != 0).then_some(value & !3).filter(|&word| self.ram.contains(word));
                vcpu.eoi = Record { msr: value, at };
                vcpu.eoi_armed = false;
            }
            _ if is_pretended(msr) => {}
            _ => return self.write_register_msr(msr, value, exit, state),
        }
        Ok(Groups::empty())
    }

    fn write_register_msr(
        &mut self, msr: u32, value: u64, exit: &Exit, state: &mut VcpuState,
    ) -> Result<Groups, Protection> {
        let groups = group_of(msr).ok_or(Protection)?;
        let is_address = matches!(msr, FS_BASE | GS_BASE | KERNEL_GS_BASE | LSTAR | CSTAR);
        let bad_pat = msr == PAT && !value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
        let bad_aux = msr == TSC_AUX && value >> 32 != 0;
        if (is_address && !is_canonical(value)) || bad_pat || bad_aux {
            return Err(Protection);
        }
        self.fill(exit, groups, state);
        match msr {
            FS_BASE => state.segments[4].base = value,
            GS_BASE => state.segments[5].base = value,
            _ => *register_of(state, msr).ok_or(Protection)? = value,
        }
        Ok(groups)
    }

    /// CPUID shows a local APIC only while it is on.
    fn write_apic_base(&mut self, at: usize, value: u64) -> Result<Groups, Protection> {
        let [width, ..] = crate::cpuid::answer(&self.cpuid, 0, 0x8000_0008, 0);
        let vcpu = self.vcpus.get_mut(at).ok_or(Protection)?;
        let was_on = vcpu.apic.is_on();
        vcpu.apic.set_base(value, (width & 0xff).min(52)).map_err(|_| Protection)?;
        let is_on = vcpu.apic.is_on();
        if is_on != was_on {
            let own = crate::cpuid::with_apic(&crate::cpuid::for_vcpu(&self.cpuid, at as u8), is_on);
            // The kernel took a table of this length when the VM was made.
            let _ = self.platform.load_cpuid(at as u8, &own);
        }
        Ok(Groups::empty())
    }

    fn write_efer(&mut self, value: u64, exit: &Exit, state: &mut VcpuState) -> Result<Groups, Protection> {
        self.fill(exit, Groups::CONTROL, state);
        let changes_mode = (value ^ state.efer) & EFER_LME != 0 && state.cr0 & CR0_PG != 0;
        if value & !(self.efer_bits() | EFER_LMA) != 0 || changes_mode {
            return Err(Protection);
        }
        state.efer = value & !EFER_LMA | state.efer & EFER_LMA;
        Ok(Groups::CONTROL)
    }

    /// Bits of EFER that CPUID told the guest of.
    fn efer_bits(&self) -> u64 {
        let [.., edx] = crate::cpuid::answer(&self.cpuid, 0, 0x8000_0001, 0);
        [(11, EFER_SCE), (20, EFER_NXE), (25, EFER_FFXSR), (29, EFER_LME)]
            .iter()
            .fold(0, |bits, (feature, bit)| bits | if edx >> feature & 1 == 1 { *bit } else { 0 })
    }

    fn write_tsc(&mut self, at: usize, value: u64, exit: &Exit, state: &mut VcpuState) -> Groups {
        self.fill(exit, Groups::TSC, state);
        let offset = value.wrapping_sub(self.platform.now());
        let Some(vcpu) = self.vcpus.get_mut(at) else { return Groups::empty() };
        vcpu.tsc_offset = offset;
        state.tsc_offset = offset;
        let msr = vcpu.time.msr;
        self.set_time_record(at, msr);
        Groups::TSC
    }

    /// Writes kvmclock's record of a vCPU where the guest wants it.
    fn set_time_record(&mut self, at: usize, msr: u64) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        let place = (msr & 1 != 0).then_some(msr & !1);
        vcpu.time = Record { msr, at: place };
        let Some(place) = place else { return };
        vcpu.time_version = vcpu.time_version.wrapping_add(2);
        let record = time_record(self.scale, self.born.wrapping_add(vcpu.tsc_offset), vcpu.time_version);
        debug_assert_eq!(record.len(), pvclock::TIME_BYTES);
        if self.ram.write(&mut self.platform, place, &record).is_err() {
            self.note(Event::NoDevice(place));
        }
    }

    fn write_wall_clock(&mut self, place: u64) {
        self.wall_version = self.wall_version.wrapping_add(2);
        let record = wall_record(self.epoch, self.wall_version);
        if self.ram.write(&mut self.platform, place, &record).is_err() {
            self.note(Event::NoDevice(place));
        }
    }
}

/// Whether an address has its upper 17 bits alike.
pub(crate) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

fn group_of(msr: u32) -> Option<Groups> {
    Some(match msr {
        EFER => Groups::CONTROL,
        STAR | LSTAR | CSTAR | SFMASK | KERNEL_GS_BASE | SYSENTER_CS | SYSENTER_ESP | SYSENTER_EIP => Groups::SYSCALL,
        FS_BASE | GS_BASE => Groups::SEGMENTS,
        PAT => Groups::PAT,
        TSC_AUX => Groups::TSC,
        _ => return None,
    })
}

fn register_of(state: &mut VcpuState, msr: u32) -> Option<&mut u64> {
    Some(match msr {
        EFER => &mut state.efer,
        STAR => &mut state.star,
        LSTAR => &mut state.lstar,
        CSTAR => &mut state.cstar,
        SFMASK => &mut state.sfmask,
        KERNEL_GS_BASE => &mut state.kernel_gs_base,
        SYSENTER_CS => &mut state.sysenter_cs,
        SYSENTER_ESP => &mut state.sysenter_esp,
        SYSENTER_EIP => &mut state.sysenter_eip,
        PAT => &mut state.pat,
        TSC_AUX => &mut state.tsc_aux,
        _ => return None,
    })
}
