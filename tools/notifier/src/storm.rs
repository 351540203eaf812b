//! Events while vCPUs fault without end.
//!
//! One thread faults, another one has events, of which one in 64 is real. memory is a monitor: faults and events are messages to
//! it, one at a time, so for Caisson a lock stands for the kernel's queue of callers.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::costs::median;
use crate::layout::{self, Kind, LENGTH};
use crate::ways::Ways;

/// Of so many events one is real.
pub const REAL: usize = 64;

/// Medians over the rounds, by way.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Slots.
    pub slots: u64,
    /// Events a second.
    pub events: [f64; 3],
    /// Faults a second, beside them.
    pub faults: [f64; 3],
}

/// Both threads for some time: events and faults a second.
fn both(time: Duration, mut event: impl FnMut(usize), fault: impl Fn(u64) -> bool + Sync, slots: u64) -> (f64, f64) {
    let (over, faults) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    let events = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0u64;
            while !over.load(Ordering::Relaxed) {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let done = fault(layout::start((at >> 33) % slots, slots) + at % LENGTH);
                faults.fetch_add(u64::from(done), Ordering::Relaxed);
            }
        });
        let mut events = 0usize;
        while start.elapsed() < time {
            // Asking for the time costs as much as an event does.
            for _ in 0..256 {
                event(events);
                events += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
        events
    });
    let seconds = start.elapsed().as_secs_f64();
    (events as f64 / seconds, faults.load(Ordering::Relaxed) as f64 / seconds)
}

/// Measures it.
///
/// # Errors
/// What the table refused.
pub fn measure(slots: u64, rounds: usize, time: Duration) -> Result<Storm, String> {
    let Ways { caisson, linux, naive } = Ways::new(slots, 8)?;
    let caisson = Mutex::new(caisson);
    let lock = || caisson.lock().unwrap_or_else(PoisonError::into_inner);
    let (spurious, real) = (Kind::Elsewhere.ranges(slots), Kind::Real.ranges(slots));
    let range = |at: usize| {
        let of = if at.is_multiple_of(REAL) { &real } else { &spurious };
        &of[at / REAL % of.len()]
    };
    let mut all: [(Vec<f64>, Vec<f64>); 3] = Default::default();
    for _ in 0..rounds {
        let turns = [
            both(time, |at| while lock().event(range(at)) {}, |gfn| lock().fault(gfn), slots),
            both(time, |at| linux.event(range(at)), |gfn| linux.fault(gfn), slots),
            both(time, |at| naive.event(range(at)), |gfn| naive.fault(gfn), slots),
        ];
        for (of, (events, faults)) in all.iter_mut().zip(turns) {
            of.0.push(events);
            of.1.push(faults);
        }
    }
    Ok(Storm {
        slots,
        events: all.each_mut().map(|(events, _)| median(events)),
        faults: all.each_mut().map(|(_, faults)| median(faults)),
    })
}
