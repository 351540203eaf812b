//! The kernel's only global state.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use caisson_core::kernel::Kernel;
use caisson_hw::svm;
use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::{CpuId, Frame};
use spin::Once;

/// Tables and rules.
pub static KERNEL: Kernel = Kernel::new();

/// Frames of the I/O permission map that every vCPU shares: all ports are intercepted.
pub static IOPM: Once<Frame> = Once::new();

/// Each CPU's virtualisation.
static SVM: [Once<svm::Cpu>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// Service that each ISA interrupt line rings; `u16::MAX` for none.
static INTERRUPTS: [AtomicU16; 16] = [const { AtomicU16::new(u16::MAX) }; 16];

/// The virtualisation of a CPU, which only that CPU uses.
#[inline]
pub fn svm_cpu(cpu: CpuId) -> Option<&'static svm::Cpu> {
    SVM.get(usize::from(cpu.0))?.get()
}

/// Takes note of it, once.
pub fn set_svm_cpu(cpu: CpuId, svm: svm::Cpu) {
    if let Some(place) = SVM.get(usize::from(cpu.0)) {
        place.call_once(|| svm);
    }
}

/// Who gets an interrupt line.
pub fn interrupt_owner(line: u8) -> Option<usize> {
    let owner = INTERRUPTS.get(usize::from(line))?.load(Ordering::Relaxed);
    (owner != u16::MAX).then_some(usize::from(owner))
}

/// Gives an interrupt line to a service.
pub fn set_interrupt_owner(line: u16, slot: usize) {
    if let Some(place) = INTERRUPTS.get(usize::from(line)) {
        place.store(slot as u16, Ordering::Relaxed);
    }
}

/// Who reads the kernel's log ring: slot, and the ring's number there in the upper half.
static LOG_READER: AtomicU32 = AtomicU32::new(u32::MAX);

/// The service to ring when the kernel has logged, and the ring's number there.
pub fn log_reader() -> Option<(usize, usize)> {
    let reader = LOG_READER.load(Ordering::Relaxed);
    (reader != u32::MAX).then_some(((reader & 0xffff) as usize, (reader >> 16) as usize))
}

/// Takes note of it.
pub fn set_log_reader(slot: u16, number: u16) {
    LOG_READER.store(u32::from(slot) | u32::from(number) << 16, Ordering::Relaxed);
}
