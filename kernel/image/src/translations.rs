//! Making every CPU forget translations of the host: after a page was taken from a service that may run elsewhere,
//! or a frame from the kernel.
//!
//! Each CPU has a count of wishes and one of fulfilled wishes. Whoever waits answers wishes meanwhile, so that two
//! CPUs that wait for each other both go on.

use core::sync::atomic::{AtomicU32, Ordering};

use caisson_hw::vector;
use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::CpuId;

use crate::statics::KERNEL;

static WANTED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static DONE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Fulfils what others wish of this CPU.
pub fn answer() {
    let own = usize::from(caisson_hw::this_cpu().0);
    if let (Some(wanted), Some(done)) = (WANTED.get(own), DONE.get(own)) {
        let wish = wanted.load(Ordering::SeqCst);
        if done.load(Ordering::Relaxed) != wish {
            caisson_hw::cpu::flush_tlb();
            done.store(wish, Ordering::SeqCst);
        }
    }
}

/// Makes all CPUs forget; all have when this returns.
pub fn flush_everywhere() {
    caisson_hw::cpu::flush_tlb();
    let own = usize::from(caisson_hw::this_cpu().0);
    let others = || WANTED.iter().zip(&DONE).enumerate().take(KERNEL.cpu_count()).filter(|(cpu, _)| *cpu != own);
    for (cpu, (wanted, _)) in others() {
        wanted.fetch_add(1, Ordering::SeqCst);
        caisson_hw::apic::send(CpuId(cpu as u16), vector::FLUSH);
    }
    for (_, (wanted, done)) in others() {
        let wish = wanted.load(Ordering::SeqCst);
        while (done.load(Ordering::SeqCst).wrapping_sub(wish) as i32) < 0 {
            answer();
            caisson_hw::cpu::pause();
        }
    }
}
