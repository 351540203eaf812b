//! How long a fault waits while 1 TiB is unmapped.
//!
//! A fault that comes in between two pieces is served at once; so what it waits for is the longest piece that nobody
//! interrupts. For Caisson that is a call of at most 512 pages; for Linux, which lets others in as soon as they wait, a page
//! table of 512 entries; for the naive way everything. A fault inside the range waits for the end of the event in each.

use std::time::Instant;

use serde::Serialize;

use crate::costs::median;
use crate::vm::Vm;
use crate::ways::{Caisson, MOST};

/// Pages of 1 TiB.
pub const PAGES: u64 = 1 << 28;

/// Medians over the rounds, in microseconds, by way.
#[derive(Clone, Debug, Serialize)]
pub struct Unmap {
    /// Pages.
    pub pages: u64,
    /// The longest time that a fault outside the range waits.
    pub outside: [f64; 3],
    /// The same of 99 in 100 pieces.
    pub outside_p99: [f64; 3],
    /// And inside it.
    pub inside: [f64; 3],
}

/// Microseconds of each piece until there is no more.
fn pieces(mut piece: impl FnMut() -> bool) -> Vec<f64> {
    let mut all = Vec::new();
    loop {
        let start = Instant::now();
        let more = piece();
        all.push(start.elapsed().as_nanos() as f64 / 1e3);
        if !more {
            return all;
        }
    }
}

/// Measures it.
///
/// # Errors
/// What the table refused.
pub fn measure(pages: u64, rounds: usize) -> Result<Unmap, String> {
    let range = 0..pages;
    let vm = || Vm::new(pages, 8);
    let mut caisson = Caisson::new(std::slice::from_ref(&range), pages, vm()).map_err(|error| format!("{error:?}"))?;
    let plain = vm();
    let mut all: [[Vec<f64>; 3]; 3] = Default::default();
    for _ in 0..rounds {
        caisson.kernel.vm.fill();
        let first = pieces(|| caisson.event(&range));
        plain.fill();
        let mut at = 0;
        let second = pieces(|| {
            at = plain.unmap(at..pages, MOST).1;
            at < pages
        });
        plain.fill();
        let third = pieces(|| {
            plain.unmap(0..pages, u64::MAX);
            plain.flush();
            false
        });
        for (way, mut times) in [first, second, third].into_iter().enumerate() {
            all[2][way].push(times.iter().sum());
            times.sort_by(f64::total_cmp);
            all[0][way].extend(times.last());
            all[1][way].extend(times.get(times.len() * 99 / 100));
        }
    }
    let [outside, outside_p99, inside] = all.each_mut().map(|of| of.each_mut().map(|values| median(values)));
    Ok(Unmap { pages, outside, outside_p99, inside })
}
