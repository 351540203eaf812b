//! Making every CPU forget translations of the host: after a page was taken from a service that may run elsewhere,
//! or a frame from the kernel.
//!
//! Whoever waits answers meanwhile, so that two CPUs that wait for each other both go on.

use crate::prelude::*;

/// Flushes of all CPUs that were wished so far, and how many each CPU has fulfilled.
static WISHED: AtomicU64 = AtomicU64::new(0);
static DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Fulfils what others wish of this CPU.
pub fn answer() {
    let (done, wished) = (&DONE[usize::from(this().local.cpu.0) % MAX_CPUS], WISHED.load(Ordering::SeqCst));
    if done.load(Ordering::Relaxed) != wished {
        cpu::flush_tlb();
        done.store(wished, Ordering::SeqCst);
    }
}

/// Makes all CPUs forget; all have when this returns.
pub(crate) fn flush_everywhere() {
    let wish = WISHED.fetch_add(1, Ordering::SeqCst) + 1;
    let all = DONE.get(..KERNEL.cpu_count()).unwrap_or(&DONE);
    for number in (0..all.len() as u16).filter(|number| *number != this().local.cpu.0) {
        apic::send(CpuId(number), vector::RESCHEDULE);
    }
    for done in all {
        while done.load(Ordering::SeqCst) < wish {
            answer();
            core::hint::spin_loop();
        }
    }
}
