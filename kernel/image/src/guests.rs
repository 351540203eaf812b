//! vCPUs on silicon: which frames they have, and how their guests are entered and left.

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_core::context::{Context, Kind};
use caisson_core::cpu::UserFrame;
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_hw::svm::{Left, Vcpu};
use caisson_proto::abi::{MAX_CPUS, MAX_SERVICES, MAX_VCPUS, MAX_VMS};
use caisson_proto::addr::{CpuId, Frame};
use caisson_proto::vcpu::Exit;

use crate::silicon::Silicon;
use crate::statics::svm_cpu;

/// First of the frames of each vCPU; 0 for none.
static FIRST: [AtomicU64; MAX_VMS * MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VMS * MAX_VCPUS];

/// The vCPU whose registers are in each CPU, by context number + 1; 0 for none.
static RESIDENT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn place(context: Context) -> Option<&'static AtomicU64> {
    FIRST.get(context.index().checked_sub(MAX_SERVICES)?)
}

/// The frames of a vCPU.
#[inline]
pub fn vcpu(context: Context) -> Option<Vcpu> {
    let first = place(context)?.load(Ordering::Acquire);
    if first == 0 { None } else { Vcpu::at(Frame(first)) }
}

/// Notes the frames of a vCPU, or with `None` that it has none any more.
pub fn set(context: Context, first: Option<Frame>) {
    if let Some(place) = place(context) {
        place.store(first.map_or(0, |frame| frame.0), Ordering::Release);
    }
    for resident in &RESIDENT {
        // Its registers in whichever CPU are nobody's now.
        let own = u64::from(context.number()) + 1;
        let _ = resident.compare_exchange(own, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Index of a vCPU in its VM.
pub fn index(context: Context) -> u8 {
    match context.kind() {
        Kind::Vcpu(_, index) => index as u8,
        Kind::Doorbell(_) => 0,
    }
}

/// Makes this CPU hold the registers of a vCPU that aren't switched at each exit.
fn make_resident(cpu: CpuId, context: Context, vcpu: &mut Vcpu) {
    let Some(resident) = RESIDENT.get(usize::from(cpu.0)) else { return };
    let own = u64::from(context.number()) + 1;
    let before = resident.load(Ordering::Relaxed);
    if before == own {
        return;
    }
    let Some(svm) = svm_cpu(cpu) else { return };
    if let Some(mut other) =
        before.checked_sub(1).and_then(|number| Context::from_number(number as u16)).and_then(self::vcpu)
    {
        other.switch_out(svm);
    }
    // Another vCPU of the VM may have been here under the same ASID.
    vcpu.flush(&svm.features);
    vcpu.switch_in(svm);
    resident.store(own, Ordering::Relaxed);
}

/// Runs a guest until its vmm must be asked (then the frame enters the vmm, or the call waits), or an interrupt
/// came.
#[inline]
pub fn run(here: &Here<'static, Silicon>, context: Context, frame: &mut UserFrame) -> Next {
    let (Some(mut vcpu), Some(svm)) = (vcpu(context), svm_cpu(here.local.cpu)) else { return Next::Pick };
    make_resident(here.local.cpu, context, &mut vcpu);
    if !here.entering(context) {
        return Next::Pick;
    }
    let left = vcpu.enter(svm);
    here.left(context);
    match left {
        Left::Interrupt => {
            caisson_hw::cpu::poll_interrupts();
            Next::Pick
        }
        Left::Exit(code) => {
            let exit: Exit = vcpu.exit(index(context), code, svm);
            here.vm_exit(frame, context, &exit)
        }
    }
}
