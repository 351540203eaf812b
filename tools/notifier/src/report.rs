//! What was measured: for people, for machines, and for the book.

use std::fmt::Write;

use serde::Serialize;

use crate::costs::{Cost, WAYS, median};
use crate::layout::{Kind, SLOTS};
use crate::storm::Storm;
use crate::unmap::Unmap;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Single events.
    pub costs: Vec<Cost>,
    /// Slots, and flushes for one event over them, by way.
    pub flushes: (u64, [u64; 3]),
    /// While vCPUs fault.
    pub storms: Vec<Storm>,
    /// A large one.
    pub unmap: Unmap,
}

/// What was aimed at, and whether it is so.
#[derive(Clone, Debug, Serialize)]
pub struct Aim {
    /// What.
    pub aim: &'static str,
    /// The number.
    pub value: f64,
    /// Whether it is met.
    pub met: bool,
}

impl Report {
    fn of(&self, kind: Kind) -> impl Iterator<Item = &Cost> {
        self.costs.iter().filter(move |cost| cost.event == kind.name())
    }

    /// The aims.
    pub fn aims(&self) -> Vec<Aim> {
        // How many vCPUs there are doesn't matter to a spurious event: more numbers for one median.
        let over = |kind, slots, of: fn(&Cost) -> f64| {
            let mut values: Vec<f64> = self.of(kind).filter(|cost| cost.slots == slots).map(of).collect();
            median(&mut values)
        };
        let cheaper = |kind| over(kind, 1024, Cost::ratio);
        let flat = |kind| over(kind, SLOTS[3], |cost| cost.ns[0]) / over(kind, 1, |cost| cost.ns[0]);
        let own =
            |counts: fn(&Cost) -> [u64; 3]| self.costs.iter().map(|cost| counts(cost)[0]).max().unwrap_or(0) as f64;
        let aim = |aim, value: f64, met: bool| Aim { aim, value, met };
        let (near, far) = (cheaper(Kind::Beside), cheaper(Kind::Elsewhere));
        let (flat_near, flat_far) = (flat(Kind::Beside), flat(Kind::Elsewhere));
        let (locks, allocations) = (own(|cost| cost.locks), own(|cost| cost.allocations));
        vec![
            aim("spurious, elsewhere: at least 5 times cheaper than Linux's way at 1,024 slots", far, far >= 5.0),
            aim("spurious, between slots: at least 5 times cheaper than Linux's way at 1,024 slots", near, near >= 5.0),
            aim("spurious, elsewhere: 32,764 slots at most twice as dear as 1", flat_far, flat_far <= 2.0),
            aim("spurious, between slots: 32,764 slots at most twice as dear as 1", flat_near, flat_near <= 2.0),
            aim("locks that Caisson takes for an event", locks, locks == 0.0),
            aim("allocations that Caisson makes for all events", allocations, allocations == 0.0),
            aim(
                "TLB flushes of Caisson for one event over many slots",
                self.flushes.1[0] as f64,
                self.flushes.1[0] == 1,
            ),
        ]
    }

    /// As JSON.
    pub fn json(&self) -> String {
        let report = serde_json::json!({
            "bench": "notifier", "ways": WAYS, "unit": "medians; ns an event, events and faults a second, µs of an unmap",
            "aims": self.aims(), "measured": self,
        });
        format!("{report:#}\n")
    }

    /// As tables of Markdown, which are read as they are, too.
    pub fn tables(&self) -> String {
        let mut text = String::from("Nanoseconds an event\n\n");
        text += "| event | slots | vCPUs | Caisson | Linux's way | naive | Linux's of Caisson's | locks |\n|---|---|---|---|---|---|---|---|\n";
        for cost in &self.costs {
            let Cost { event, slots, vcpus, ns: [own, linux, naive], locks, .. } = cost;
            let locks = locks.map(|count| count.to_string()).join(", ");
            let _ = writeln!(
                text,
                "| {event} | {slots} | {vcpus} | {own:.1} | {linux:.1} | {naive:.1} | {:.1} | {locks} |",
                cost.ratio()
            );
        }
        text += "\nWhile a vCPU faults without end, in thousands a second\n\n";
        text += "| slots | | Caisson | Linux's way | naive |\n|---|---|---|---|---|\n";
        for storm in &self.storms {
            for (what, of) in [("events", storm.events), ("faults", storm.faults)] {
                let [own, linux, naive] = of.map(|value| value / 1e3);
                let _ = writeln!(text, "| {} | {what} | {own:.0} | {linux:.0} | {naive:.0} |", storm.slots);
            }
        }
        let _ = writeln!(text, "\nMicroseconds that a fault waits while {} GiB are unmapped\n", self.unmap.pages >> 18);
        text += "| where | Caisson | Linux's way | naive |\n|---|---|---|---|\n";
        let waits = [
            ("outside, 99 in 100", self.unmap.outside_p99),
            ("outside, the longest", self.unmap.outside),
            ("inside", self.unmap.inside),
        ];
        for (what, [own, linux, naive]) in waits {
            let _ = writeln!(text, "| {what} | {own:.1} | {linux:.1} | {naive:.1} |");
        }
        let (slots, [own, linux, naive]) = self.flushes;
        let _ = writeln!(text, "\nTLB flushes for one event over {slots} slots: {own}, {linux}, {naive}\n");
        text += "| aim | is | met |\n|---|---|---|\n";
        for Aim { aim, value, met } in self.aims() {
            let _ = writeln!(text, "| {aim} | {value:.1} | {} |", if met { "yes" } else { "no" });
        }
        text
    }
}
