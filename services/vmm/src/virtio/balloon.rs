//! The balloon (virtio 1.3, section 5.5): the guest gives memory back, when the host wants some and whenever it has
//! free memory to report. What it takes again it simply touches.

use alloc::vec;
use alloc::vec::Vec;

use caisson_proto::console::Knob;
use caisson_proto::stats::VmStat;

use super::chain::{self, Chain};
use super::memory::{Broken, Reach};
use super::{CONFIG, Device, Served, Trouble, put};
use crate::need::{self, Told};

/// The guest may take pages back when it runs out of memory.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// The guest tells which of its pages are free.
const REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// Pages that a request of the inflate queue may name: four times what Linux does.
const MAX_PAGES: usize = 1024;
/// Bytes of a page's number.
const NUMBER: usize = 4;
/// What giving a run of pages back costs, in bytes that could be copied meanwhile.
const CALL: u64 = 64 << 10;
/// Pages of a call to memory.
const PER_CALL: u64 = caisson_proto::abi::MAX_PAGES_PER_CALL;
const PAGE: u64 = caisson_proto::addr::PAGE_SIZE;

/// A guest keeps so many bytes at the least, as any VM has them.
pub const FLOOR: u64 = 64 << 20;

/// A balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    /// Pages that people want it to hold.
    asked: u32,
    /// Pages that it is to hold beside, since others need them.
    need: u32,
    /// Pages that it may be wanted to hold at the most.
    most: u32,
    /// Pages that the driver says it gave.
    actual: u32,
    /// Pages that were given back, by the balloon or as free, since the device was last told of them.
    given: u64,
    /// At how many the log is told next.
    tell_at: u64,
    refused: bool,
}

impl Balloon {
    /// One by which the host wants so many pages of 4 KiB, and may want up to `most`.
    pub fn new(asked: u32, most: u32) -> Self {
        Self { asked, most, tell_at: 1, ..Self::default() }
    }

    fn target(&self) -> u32 {
        self.asked.saturating_add(self.need).min(self.most)
    }

    fn release(&mut self, memory: &mut dyn Reach, gfn: u64, pages: u64, served: &mut Served) {
        served.cost += CALL * pages.div_ceil(PER_CALL);
        match memory.release(gfn, pages) {
            Ok(()) => self.given = self.given.saturating_add(pages),
            // The guest has these pages still; all that is lost is the gain.
            Err(status) => {
                if !core::mem::replace(&mut self.refused, true) {
                    served.trouble = Some(Trouble::NotReleased(status));
                }
            }
        }
    }

    /// Pages by their numbers, in runs as long as can be.
    fn inflate(&mut self, chain: &Chain, memory: &mut dyn Reach, served: &mut Served) -> Result<(), Broken> {
        let bytes = chain::length(&chain.readable);
        let mut buffer = [0; MAX_PAGES * NUMBER];
        // More than there is room for is refused.
        let whole = usize::try_from(bytes).map_err(|_| Broken::Request)? / NUMBER * NUMBER;
        let buffer = buffer.get_mut(..whole).ok_or(Broken::Request)?;
        chain.read(memory, 0, buffer)?;
        let (numbers, _) = buffer.as_chunks();
        let mut pages: Vec<u64> = numbers.iter().map(|number| u32::from_le_bytes(*number).into()).collect();
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            if let Some(&first) = run.first() {
                if !memory.contains(first * PAGE, run.len() as u64 * PAGE) {
                    return Err(Broken::Buffer);
                }
                self.release(memory, first, run.len() as u64, served);
            }
        }
        Ok(())
    }

    /// Buffers that are free memory themselves: whole pages of them.
    fn reported(&mut self, chain: &Chain, memory: &mut dyn Reach, served: &mut Served) {
        for span in &chain.writable {
            let (first, end) = (span.gpa.div_ceil(PAGE), (span.gpa + u64::from(span.bytes)) / PAGE);
            if let Some(pages) = end.checked_sub(first).filter(|pages| *pages > 0) {
                self.release(memory, first, pages, served);
            }
        }
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        5
    }

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM | REPORTING
    }

    fn queues(&self) -> &'static [u16] {
        // Reports have number 4 by the specification; drivers leave no gap for queues that aren't offered, so 2.
        &[128, 128, 128, 128, 128]
    }

    fn config(&self) -> [u8; CONFIG] {
        let mut config = [0; CONFIG];
        put(&mut config, 0, &self.target().to_le_bytes());
        put(&mut config, 4, &self.actual.to_le_bytes());
        config
    }

    fn configure(&mut self, offset: usize, bytes: &[u8]) {
        if let (4, Ok(actual)) = (offset, bytes.try_into()) {
            self.actual = u32::from_le_bytes(actual);
        }
    }

    fn resize(&mut self, knob: Knob, bytes: u64) -> bool {
        let pages = u32::try_from(bytes / PAGE).ok().filter(|pages| *pages <= self.most);
        let (Knob::Balloon, Some(pages)) = (knob, pages) else { return false };
        self.asked = pages;
        self.need = self.need.min(self.most - pages);
        true
    }

    fn follow(&mut self, told: &Told) -> bool {
        let Self { asked, actual, most, .. } = *self;
        let balloon = need::Balloon { asked: asked.into(), actual: actual.into(), most: most.into() };
        let before = self.target();
        self.need = u32::try_from(need::follow(self.need.into(), told, &balloon)).unwrap_or(self.need);
        self.target() != before
    }

    fn known(&self) -> Vec<(VmStat, u64)> {
        let bytes = |pages| u64::from(pages) * PAGE;
        let Self { asked, actual, most, .. } = *self;
        vec![
            (VmStat::BalloonAsked, bytes(asked)),
            (VmStat::BalloonTarget, bytes(self.target())),
            (VmStat::BalloonActual, bytes(actual)),
            (VmStat::BalloonMost, bytes(most)),
        ]
    }

    fn reset(&mut self) {
        self.actual = 0;
    }

    fn serve(&mut self, queue: u16, chain: &Chain, memory: &mut dyn Reach) -> Result<Served, Broken> {
        let mut served = Served::default();
        match queue {
            INFLATE => self.inflate(chain, memory, &mut served)?,
            // They come back when they are touched.
            DEFLATE => {}
            _ => self.reported(chain, memory, &mut served),
        }
        if self.given >= self.tell_at && served.trouble.is_none() {
            served.trouble = Some(Trouble::GaveBack(self.given));
            self.tell_at = self.given.saturating_mul(2);
        }
        Ok(served)
    }
}
