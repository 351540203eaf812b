//! `cargo xtask memory`: how much memory the VMs of a running machine have, and how much they are to have.

use std::fmt::Write;
use std::time::{Duration, Instant};

use caisson_manifest::Size;
use caisson_manifest::vm::MEMORY_STEP;
use caisson_proto::console::Knob;

use super::{Machine, Vm, find, say, wanted};
use crate::cli::MemoryArgs;
use crate::failure::{Failure, Status};
use crate::paths::Paths;
use crate::stats::serve;

/// How long a vmm may take to hear an order, which may be lost on the way.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is repeated.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes of a page.
const PAGE: u64 = caisson_proto::addr::PAGE_SIZE;

/// How a VM's memory stands, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// What it was configured with.
    pub memory: u64,
    /// What is mapped in it.
    pub mapped: u64,
    /// What people want its balloon to hold.
    pub asked: u64,
    /// What it holds, is to hold with what others need, and may be asked for.
    pub balloon: [u64; 3],
    /// What is plugged of its memory, is to be, and can be.
    pub plugged: [u64; 3],
}

impl Stand {
    /// As its statistics have it.
    pub fn of(vm: &Vm) -> Self {
        let value = |name: &str| vm.blocks.first().and_then(|(_, block)| block.value(name)).unwrap_or(0);
        Self {
            memory: value("memory"),
            mapped: value("frames_mapped") * PAGE,
            asked: value("balloon_asked"),
            balloon: ["balloon_actual", "balloon_target", "balloon_most"].map(value),
            plugged: ["memory_plugged", "memory_plug_wanted", "memory_plug_most"].map(value),
        }
    }

    /// What is wrong with an order.
    fn refuses(&self, name: &str, knob: Knob, wanted: Size) -> Result<(), Failure> {
        let (key, what, most, step) = match knob {
            Knob::Balloon => ("balloon = true", "--balloon", self.balloon[2], PAGE),
            Knob::Plugged => ("memory-max = \"1G\"", "--plug", self.plugged[2], MEMORY_STEP),
        };
        let device = if knob == Knob::Balloon { "balloon" } else { "memory that can be plugged" };
        if most == 0 {
            return Err(Failure::setup(format!("VM \"{name}\" has no {device}: give `{key}` or the like in its file")));
        }
        if wanted.0 > most || !wanted.0.is_multiple_of(step) {
            return Err(Failure::setup(format!(
                "{what} {wanted}: VM \"{name}\" can have a multiple of {} up to {}",
                Size(step),
                Size(most)
            )));
        }
        Ok(())
    }

    /// Whether an order was heard.
    fn heard(&self, knob: Knob, bytes: u64) -> bool {
        match knob {
            Knob::Balloon => self.asked == bytes,
            Knob::Plugged => self.plugged[1] == bytes,
        }
    }
}

/// Bytes as people write them, whole mebibytes if there is no better way.
fn shown(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) { Size(bytes).to_string() } else { format!("{}M", bytes >> 20) }
}

/// The table.
fn table(rows: &[(String, Stand)]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<12} {:>8} {:>8}   {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}",
        "VM", "memory", "mapped", "balloon", "wanted", "at most", "plugged", "wanted", "at most"
    );
    for (name, stand) in rows {
        let [actual, target, most] = stand.balloon.map(shown);
        let [plugged, to_be, can_be] = stand.plugged.map(shown);
        let (memory, mapped) = (shown(stand.memory), shown(stand.mapped));
        let _ = writeln!(
            text,
            "{name:<12} {memory:>8} {mapped:>8}   {actual:>8} {target:>8} {most:>8}   {plugged:>8} {to_be:>8} {can_be:>8}"
        );
    }
    text
}

impl Machine {
    /// How a VM's memory stands.
    pub fn stand(&self, number: usize, name: &str) -> Result<Stand, Failure> {
        let vm = self.read(number, name)?.ok_or_else(|| Failure::setup(format!("machine {} has ended", self.pid)))?;
        Ok(Stand::of(&vm))
    }

    /// Has a VM's memory changed, and waits until its vmm heard of it. The guest has its own time to follow.
    pub fn resize(&self, number: usize, name: &str, knob: Knob, wanted: Size) -> Result<(), Failure> {
        self.stand(number, name)?.refuses(name, knob, wanted)?;
        let start = Instant::now();
        let request = format!("{} {number} {} {}", serve::RESIZE, char::from(knob.letter()), wanted.0);
        while start.elapsed() < PATIENCE {
            let asked = Instant::now();
            self.ask(&request)?.ok_or_else(|| Failure::setup(format!("machine {} has ended", self.pid)))?;
            while asked.elapsed() < AGAIN {
                if self.stand(number, name)?.heard(knob, wanted.0) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Err(Failure::new(Status::Failed, format!("the vmm of \"{name}\" doesn't hear what it is to do")))
    }
}

/// The command.
pub fn memory(paths: &Paths, args: &MemoryArgs) -> Result<(), Failure> {
    let machine = find(paths, args.pid)?;
    let names = machine.vms()?.ok_or_else(|| Failure::setup(format!("machine {} has ended", machine.pid)))?;
    let numbers = wanted(&names, args.vm.as_deref())?;
    let orders = [(Knob::Balloon, args.balloon), (Knob::Plugged, args.plug)];
    for (knob, size) in orders {
        let Some(size) = size else { continue };
        let [number] = numbers.as_slice() else {
            return Err(Failure::setup(format!("{} VMs run; say whose memory with --vm", numbers.len())));
        };
        machine.resize(*number, &names[number - 1], knob, size)?;
    }
    let rows = numbers.iter().map(|number| {
        let name = &names[number - 1];
        machine.stand(*number, name).map(|stand| (name.clone(), stand))
    });
    say(&table(&rows.collect::<Result<Vec<_>, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_vm_cannot_have_is_explained() {
        let stand = Stand { balloon: [0, 0, 192 * MIB], ..Stand::default() };
        let refused = |knob, bytes| stand.refuses("web", knob, Size(bytes)).unwrap_err().text;
        assert!(stand.refuses("web", Knob::Balloon, Size(192 * MIB)).is_ok());
        assert!(refused(Knob::Balloon, 193 * MIB).contains("\"web\" can have a multiple of 4K up to 192M"));
        assert!(refused(Knob::Balloon, 1).contains("multiple of 4K"));
        assert!(refused(Knob::Plugged, MIB).contains("no memory that can be plugged: give `memory-max"));
        let stand = Stand { plugged: [0, 2 * MIB, 128 * MIB], ..stand };
        assert!(stand.heard(Knob::Plugged, 2 * MIB) && !stand.heard(Knob::Balloon, 2 * MIB));
        let refused = stand.refuses("web", Knob::Plugged, Size(MIB)).unwrap_err().text;
        assert!(refused.contains("--plug 1M") && refused.contains("multiple of 2M up to 128M"), "{refused}");
    }

    #[test]
    fn the_table_has_a_line_for_each_vm() {
        let plugged = [2 * MIB, 0, 512 * MIB];
        let stand = Stand { memory: 256 * MIB, mapped: 5000 * PAGE, plugged, ..Stand::default() };
        let text = table(&[("web".into(), stand)]);
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["web", "256M", "19M", "0", "0", "0", "2M", "0", "512M"]);
    }
}
