//! The VM that all three ways work on: what is mapped, which vCPUs have to flush, and the rule for stale commits.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// One VM. Guest frames are what they are in the region, so that nothing but the ways themselves differs.
#[derive(Debug)]
pub struct Vm {
    /// A bit a guest frame.
    mapped: Vec<AtomicU64>,
    /// A flush that a vCPU was asked for.
    vcpus: Vec<AtomicU64>,
    /// Flushes of the VM.
    pub flushes: AtomicU64,
    /// What its owner was told.
    pub reclaimed: AtomicU64,
}

impl Vm {
    /// With so many guest frames, of which none is mapped.
    pub fn new(pages: u64, vcpus: usize) -> Self {
        let zeros = |count: u64| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            mapped: zeros(pages.div_ceil(64)),
            vcpus: zeros(vcpus as u64),
            flushes: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
        }
    }

    /// Maps a page, if it may be; whether it is.
    pub fn map(&self, may: bool, gfn: u64) -> bool {
        if may {
            self.put(gfn);
        }
        may
    }

    /// Maps a page.
    pub fn put(&self, gfn: u64) {
        self.mapped[(gfn / 64) as usize].fetch_or(1 << (gfn % 64), Ordering::Relaxed);
    }

    /// Maps everything.
    pub fn fill(&self) {
        self.mapped.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    }

    /// Unmaps pages from a range, at most so many: how many, and where to go on.
    pub fn unmap(&self, range: Range<u64>, most: u64) -> (u64, u64) {
        let (mut taken, mut at) = (0, range.start);
        while at < range.end && taken < most {
            let bits = (64 - at % 64).min(range.end - at).min(most - taken);
            let mask = u64::MAX >> (64 - bits) << (at % 64);
            let word = &self.mapped[(at / 64) as usize];
            if word.load(Ordering::Relaxed) & mask != 0 {
                taken += u64::from((word.fetch_and(!mask, Ordering::Relaxed) & mask).count_ones());
            }
            at += bits;
        }
        (taken, at)
    }

    /// Asks each vCPU to flush.
    pub fn flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.vcpus.iter().for_each(|vcpu| {
            vcpu.fetch_or(1, Ordering::SeqCst);
        });
    }

    /// Tells its owner.
    pub fn tell(&self) {
        self.reclaimed.fetch_add(1, Ordering::Relaxed);
    }
}
