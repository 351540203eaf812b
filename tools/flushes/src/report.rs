//! What was counted: for people, for machines, and for the book.

use std::fmt::Write;

use serde::Serialize;

use crate::policy::{Cost, Policy};
use crate::trace::Kind;

/// One trace on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The trace.
    pub kind: Kind,
    /// Its CPUs.
    pub cpus: u16,
    /// Percent of the machine's memory that are free when most is needed.
    pub free: u64,
    /// By policy, in the order of [`Policy::ALL`].
    pub costs: [Cost; Policy::ALL.len()],
    /// Executions that no policy can do without.
    pub bound: u64,
}

impl Row {
    fn executions(&self, policy: Policy) -> u64 {
        let at = Policy::ALL.iter().position(|of| *of == policy);
        at.map_or(0, |at| self.costs[at].executions)
    }

    /// Caisson's executions, in parts of Linux 6.17's and of the bound.
    pub fn ratios(&self) -> (f64, f64) {
        let own = self.executions(Policy::Caisson) as f64;
        (own / self.executions(Policy::EverRan) as f64, own / self.bound as f64)
    }

    /// Executions of each policy and of the bound, with their names.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let costs = Policy::ALL.iter().zip(self.costs).map(|(policy, cost)| (policy.name(), cost.executions));
        costs.chain([("bound for any policy", self.bound)])
    }
}

#[derive(Serialize)]
struct Counted {
    policy: &'static str,
    executions: u64,
    wbinvds: u64,
    lines_lost: u64,
}

#[derive(Serialize)]
struct Machine {
    trace: &'static str,
    cpus: u16,
    free_percent: u64,
    policies: Vec<Counted>,
    bound_executions: u64,
}

/// As JSON.
pub fn json(rows: &[Row]) -> String {
    let machines = rows.iter().map(|row| Machine {
        trace: row.kind.name(),
        cpus: row.cpus,
        free_percent: row.free,
        policies: (Policy::ALL.iter().zip(row.costs))
            .map(|(policy, Cost { executions, wbinvds, lost })| Counted {
                policy: policy.key(),
                executions,
                wbinvds,
                lines_lost: lost,
            })
            .collect(),
        bound_executions: row.bound,
    });
    let report = serde_json::json!({
        "bench": "flushes", "unit": "executions of WBINVD or WBNOINVD by a CPU",
        "machines": machines.collect::<Vec<_>>(),
    });
    format!("{report:#}\n")
}

/// As tables of Markdown, which are read as they are, too.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::from("Executions of WBINVD or WBNOINVD\n\n");
    text += "| trace | CPUs | free | Linux 6.12 | 2025 series | Linux 6.17 | Caisson | bound | of 6.17's | of the bound |\n";
    text += "|---|---|---|---|---|---|---|---|---|---|\n";
    for row in rows {
        let (linux, bound) = row.ratios();
        let _ = write!(text, "| {} | {} | {} % ", row.kind.name(), row.cpus, row.free);
        text.extend(row.lines().map(|(_, count)| format!("| {count} ")));
        let _ = writeln!(text, "| {linux:.3} | {bound:.2} |");
    }
    text += "\nCache lines lost to WBINVD, in thousands, with any free memory\n\n";
    text += "| trace | CPUs | Linux 6.12 | 2025 series | Linux 6.17 | Caisson |\n|---|---|---|---|---|---|\n";
    let mut before = None;
    for row in rows {
        let lost = row.costs.map(|cost| cost.lost);
        if before.replace((row.kind, row.cpus, lost)) == Some((row.kind, row.cpus, lost)) {
            continue;
        }
        let _ = write!(text, "| {} | {} ", row.kind.name(), row.cpus);
        text.extend(lost.map(|lost| format!("| {} ", lost / 1000)));
        text += "|\n";
    }
    text
}
