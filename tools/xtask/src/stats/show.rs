//! Statistics for people and for programs.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Instant;

use caisson_stats::Block;
use caisson_stats::read::{Kind, Statistic, Unit};
use serde_json::{Map, Value, json};

use super::Vm;

/// How fast values grow, from one reading to the next.
#[derive(Debug, Default)]
pub struct Rates {
    readings: usize,
    at: Option<Instant>,
    seconds: f64,
    /// By block and name: the value at the last reading, and by how much it grew since the one before.
    values: HashMap<(String, String), (u64, u64)>,
}

impl Rates {
    /// Another reading.
    pub fn feed(&mut self, vms: &[Vm], now: Instant) {
        self.seconds = self.at.map_or(0.0, |before| now.saturating_duration_since(before).as_secs_f64());
        (self.at, self.readings) = (Some(now), self.readings + 1);
        for (_, block) in vms.iter().flat_map(|vm| &vm.blocks) {
            for stat in block.stats.iter().filter(|stat| stat.kind == Kind::Cumulative) {
                let value = stat.values.first().copied().unwrap_or(0);
                let place = self.values.entry((block.id.clone(), stat.name.clone())).or_insert((value, 0));
                // A VM that was started again counts from 0.
                *place = (value, value.checked_sub(place.0).unwrap_or(value));
            }
        }
    }

    /// Whether there was a reading.
    pub fn is_begun(&self) -> bool {
        self.readings > 0
    }

    /// A second, where that is known.
    fn of(&self, block: &Block, stat: &Statistic) -> Option<f64> {
        let (_, grew) = self.values.get(&(block.id.clone(), stat.name.clone()))?;
        (self.readings > 1 && self.seconds > 0.0).then(|| *grew as f64 / self.seconds)
    }
}

/// For people: a table for each VM, then one with a column for each vCPU. What is 0 everywhere is left out and counted.
pub fn table(vms: &[Vm], rates: &Rates) -> String {
    let mut text = String::new();
    for vm in vms {
        for blocks in groups(vm) {
            let Some(first) = blocks.first() else { continue };
            let names: Vec<&str> = blocks.iter().map(|block| last(&block.id)).collect();
            let _ = writeln!(text, "{}", if blocks.len() == 1 { &first.id } else { &vm.name });
            let mut rows = vec![Row::heads(&names, rates.readings > 1)];
            let mut zeros = 0;
            for at in 0..first.stats.len() {
                let stats: Vec<(&Block, &Statistic)> =
                    blocks.iter().filter_map(|block| Some((*block, block.stats.get(at)?))).collect();
                if stats.iter().all(|(_, stat)| stat.values.iter().all(|value| *value == 0)) {
                    zeros += 1;
                    continue;
                }
                rows.push(Row::of(&stats, rates));
            }
            text += &aligned(&rows);
            if zeros > 0 {
                let _ = writeln!(text, "  ({zeros} more are 0)");
            }
            text.push('\n');
        }
    }
    text
}

/// The VM's block, then its vCPUs' together.
fn groups(vm: &Vm) -> Vec<Vec<&Block>> {
    let (own, vcpus): (Vec<&Block>, Vec<&Block>) =
        vm.blocks.iter().map(|(_, block)| block).partition(|block| !block.id.contains('/'));
    [own, vcpus].into_iter().filter(|group| !group.is_empty()).collect()
}

/// "vcpu-0" of "kvm-guest/vcpu-0".
fn last(id: &str) -> &str {
    id.rsplit_once('/').map_or("", |(_, last)| last)
}

/// A line of a table.
struct Row(Vec<String>);

impl Row {
    fn heads(names: &[&str], rates: bool) -> Self {
        let mut cells = vec![String::new()];
        for name in names {
            cells.push((*name).into());
            if rates {
                cells.push("/s".into());
            }
        }
        Self(cells)
    }

    fn of(stats: &[(&Block, &Statistic)], rates: &Rates) -> Self {
        let mut cells = vec![stats.first().map(|(_, stat)| stat.name.clone()).unwrap_or_default()];
        for (block, stat) in stats {
            cells.push(value(stat));
            if rates.readings > 1 {
                cells.push(rates.of(block, stat).map(|rate| format!("{rate:.0}")).unwrap_or_default());
            }
        }
        Self(cells)
    }
}

/// Names to the left, values to the right.
fn aligned(rows: &[Row]) -> String {
    let columns = rows.iter().map(|Row(cells)| cells.len()).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|Row(cells)| cells.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for Row(cells) in rows {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let _ = if at == 0 { write!(line, "  {cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        if !line.trim_end().is_empty() {
            text += line.trim_end();
            text.push('\n');
        }
    }
    text
}

/// A value with its unit; of a histogram the middle and the 99th of a hundred.
fn value(stat: &Statistic) -> String {
    let unit = match stat.unit {
        Unit::None | Unit::Boolean => "",
        Unit::Bytes => " B",
        Unit::Seconds => " s",
        Unit::Cycles => " cycles",
    };
    match stat.kind {
        Kind::Linear(_) | Kind::Log => {
            let below = |share| match bound(stat, share) {
                Some(bound) => format!("< {}{unit}", short(bound)),
                None => "any".into(),
            };
            format!("p50 {}, p99 {}", below(50), below(99))
        }
        _ => {
            let one = stat.values.first().copied().unwrap_or(0);
            let scale = match (stat.base, stat.exponent) {
                (_, 0) => String::new(),
                (base, exponent) => format!(" × {base}^{exponent}"),
            };
            if stat.unit == Unit::Bytes {
                format!("{}{scale}{unit}", short(one))
            } else {
                format!("{one}{scale}{unit}")
            }
        }
    }
}

/// The bound of the bucket below which so many percent of a histogram are; `None` for the last, which is open.
fn bound(stat: &Statistic, percent: u128) -> Option<u64> {
    let all: u128 = stat.values.iter().map(|value| u128::from(*value)).sum();
    let mut sum = 0;
    let at = stat.values.iter().position(|value| {
        sum += u128::from(*value);
        sum * 100 >= all * percent
    })?;
    if at + 1 >= stat.values.len() {
        return None;
    }
    match stat.kind {
        Kind::Linear(size) => (at as u64 + 1).checked_mul(size.into()),
        _ => 1u64.checked_shl(at as u32),
    }
}

/// With K, M or G, powers of 1024, where that loses nothing that matters.
fn short(number: u64) -> String {
    match number {
        0..=9999 => number.to_string(),
        _ if number >> 30 > 0 && number.trailing_zeros() >= 20 => {
            format!("{:.4} G", number as f64 / f64::from(1 << 30))
        }
        _ if number >> 20 > 0 => format!("{} M", number >> 20),
        _ => format!("{} K", number >> 10),
    }
}

/// For programs. A value is a number, a histogram a list.
pub fn json(pid: u32, vms: &[Vm]) -> Value {
    let of = |block: &Block| {
        let stats = block.stats.iter().map(|stat| {
            let value = match stat.kind {
                Kind::Linear(_) | Kind::Log => json!(stat.values),
                _ => json!(stat.values.first()),
            };
            (stat.name.clone(), value)
        });
        json!({ "id": block.id, "stats": stats.collect::<Map<_, _>>() })
    };
    let vm = |vm: &Vm| {
        let blocks: Vec<Value> = vm.blocks.iter().map(|(_, block)| of(block)).collect();
        json!({ "number": vm.number, "name": vm.name, "blocks": blocks })
    };
    json!({ "pid": pid, "vms": vms.iter().map(vm).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stat(name: &str, kind: Kind, unit: Unit, values: &[u64]) -> Statistic {
        Statistic { name: name.into(), kind, unit, base: 10, exponent: 0, values: values.into() }
    }

    fn vm(exits: u64) -> Vm {
        let block = |id: &str, stats| (Vec::new(), Block { id: id.into(), stats, bytes: 0 });
        let vcpu = |exits| {
            let zero = stat("zero", Kind::Cumulative, Unit::None, &[0]);
            let hist = stat("hist", Kind::Log, Unit::Cycles, &[0, 0, 0, 3, 1, 0]);
            vec![stat("exits", Kind::Cumulative, Unit::None, &[exits]), zero, hist]
        };
        let memory = stat("memory", Kind::Instant, Unit::Bytes, &[512 << 20]);
        let blocks = vec![
            block("kvm-web", vec![memory]),
            block("kvm-web/vcpu-0", vcpu(exits)),
            block("kvm-web/vcpu-1", vcpu(2 * exits)),
        ];
        Vm { number: 1, name: "web".into(), blocks }
    }

    #[test]
    fn a_table_has_a_column_for_each_vcpu_and_leaves_zeros_out() {
        let table = table(&[vm(70)], &Rates::default());
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[..2], [vec!["kvm-web"], vec!["memory", "512", "M", "B"]]);
        assert_eq!(lines[3..6], [vec!["web"], vec!["vcpu-0", "vcpu-1"], vec!["exits", "70", "140"]]);
        assert!(table.contains("p50 < 8 cycles, p99 < 16 cycles") && table.contains("(1 more are 0)"), "{table}");
    }

    #[test]
    fn rates_are_of_a_second() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        rates.feed(&[vm(10)], now);
        assert!(!table(&[vm(10)], &rates).contains("/s"));
        rates.feed(&[vm(60)], now + Duration::from_secs(2));
        let exits = |rates: &Rates, count| {
            let table = table(&[vm(count)], rates);
            let line = table.lines().find(|line| line.contains("exits")).unwrap();
            line.split_whitespace().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(exits(&rates, 60), ["exits", "60", "25", "120", "50"]);
        // Started again.
        rates.feed(&[vm(4)], now + Duration::from_secs(4));
        assert_eq!(exits(&rates, 4), ["exits", "4", "2", "8", "4"]);
    }

    #[test]
    fn programs_get_numbers_and_lists() {
        let json = json(5, &[vm(7)]);
        assert_eq!(json["vms"][0]["blocks"][1]["stats"]["exits"], 7);
        assert_eq!(json["vms"][0]["blocks"][2]["stats"]["hist"][3], 3);
        assert_eq!((&json["pid"], &json["vms"][0]["name"]), (&Value::from(5), &Value::from("web")));
    }

    #[test]
    fn a_share_in_the_open_bucket_has_no_bound() {
        let open = stat("h", Kind::Log, Unit::Cycles, &[1, 0, 9]);
        assert_eq!((bound(&open, 10), bound(&open, 50)), (Some(1), None));
        let linear = stat("h", Kind::Linear(100), Unit::None, &[1, 1, 0]);
        assert_eq!(bound(&linear, 99), Some(200));
        assert_eq!(value(&stat("n", Kind::Log, Unit::None, &[0, 4])), "p50 any, p99 any");
    }
}
