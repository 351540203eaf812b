//! From the board's entry to the first service.

use caisson_core::boot::BootInfo;
use caisson_core::bundle::Bundle;
use caisson_core::frames::{FrameTable, Frames};
use caisson_hw::{Early, svm};
use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::{CpuId, Frame};
use spin::Once;

use crate::report::{bad_bundle, cannot_boot};
use crate::run::{Caisson, forever, here};
use crate::statics::{IOPM, KERNEL, set_interrupt_owner, set_svm_cpu};
use crate::{report, spaces};

/// The two frames that SVM needs on each CPU: host save area and host registers.
static SVM_FRAMES: [Once<(Frame, Frame)>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
static QUIRKS: Once<caisson_core::boot::Quirks> = Once::new();

caisson_qemu_boot::entry!(start);

/// The boot CPU, once the board knows the machine.
fn start(boot: &BootInfo) -> ! {
    let mut early = match caisson_hw::init(boot) {
        Ok(early) => early,
        Err(error) => {
            caisson_hw::log::epitaph();
            defmt::error!("this machine can't run Caisson: {}", error);
            caisson_hw::power_off(caisson_proto::kernel::verdict::BAD_SETUP)
        }
    };
    defmt::info!("{=usize} CPUs, TSC at {=u64} kHz", boot.cpus.len(), caisson_hw::clock::tsc_khz());
    QUIRKS.call_once(|| boot.quirks);
    let bundle = Bundle::parse(early.bundle()).unwrap_or_else(|fault| bad_bundle(fault));
    KERNEL.configure(bundle.services.iter(), boot.cpus.len());
    if let Err(status) = spaces::build(&bundle, boot.bundle.start.frame(), &mut early, boot.cpus.len() as u32) {
        cannot_boot("the services don't fit in memory; give the machine more", status as u64)
    }
    prepare_svm(boot.cpus.len(), &mut early);
    take_memory(boot, early);
    for (slot, service) in bundle.services.iter().enumerate() {
        if service.interrupt != u16::MAX {
            set_interrupt_owner(service.interrupt, slot);
            caisson_hw::ioapic::enable_line(service.interrupt as u8);
        }
    }
    begin(CpuId(0));
    if let Err(absent) = caisson_hw::start_cpus(boot, other) {
        cannot_boot("a CPU doesn't start", u64::from(absent.0.0))
    }
    if here().restart(bundle.supervisor()).is_err() {
        cannot_boot("the supervisor can't be started", 0)
    }
    forever()
}

/// Every other CPU.
fn other() -> ! {
    begin(caisson_hw::this_cpu());
    forever()
}

fn prepare_svm(cpus: usize, early: &mut Early) {
    let mut two = || early.alloc_frame().zip(early.alloc_frame());
    for place in SVM_FRAMES.iter().take(cpus) {
        match two() {
            Some(frames) => _ = place.call_once(|| frames),
            None => cannot_boot("memory ends at boot; give the machine more", 0),
        }
    }
    if let Some(first) = early.alloc_frames(svm::IOPM_FRAMES) {
        svm::fill_iopm(first);
        IOPM.call_once(|| first);
    }
}

/// Declares what every frame is.
fn take_memory(boot: &BootInfo, early: Early) {
    let table = FrameTable::new(early.frame_table());
    let settled = early.finish();
    for range in &settled.free {
        table.declare(range.first, range.count, Frames::Free { clean: boot.quirks.ram_is_zero });
    }
    for range in &settled.kernel {
        table.declare(range.first, range.count, Frames::Kernel);
    }
    KERNEL.adopt_frames(table);
}

/// Makes a CPU ready for services and guests.
fn begin(cpu: CpuId) {
    caisson_hw::install::<Caisson>();
    let frames = SVM_FRAMES.get(usize::from(cpu.0)).and_then(Once::get);
    let (Some((save, host)), Some(quirks)) = (frames, QUIRKS.get()) else {
        cannot_boot("a CPU that wasn't expected", u64::from(cpu.0))
    };
    match svm::Cpu::init(*save, *host, quirks) {
        Ok(svm) => set_svm_cpu(cpu, svm),
        Err(error) => report::no_svm(error),
    }
}
