//! QEMU's arguments for a machine of the board "qemu".

use std::path::Path;

use crate::guests::Machine;

/// The port of the device that ends QEMU with an exit status.
const EXIT_PORT: &str = "isa-debug-exit,iobase=0xf4,iosize=0x04";

/// Arguments that every machine has, whatever it boots. QEMU emulates the CPU, so this works anywhere.
pub fn hardware(cpus: u16, memory: u64, icount: bool) -> Vec<String> {
    // -nodefaults would add no device anyway; -no-reboot makes a reset of the machine its end.
    let fixed = "-machine pc -cpu max -nodefaults -no-user-config -display none -no-reboot";
    let mut arguments: Vec<String> = fixed.split(' ').map(String::from).collect();
    let accelerator = if icount { "tcg" } else { "tcg,thread=multi" };
    arguments.extend(["-accel", accelerator].map(String::from));
    arguments.extend(["-smp".into(), cpus.to_string(), "-m".into(), format!("{}M", memory.div_ceil(1 << 20))]);
    if icount {
        let fixed = "-icount shift=0,sleep=off -rtc clock=vm,base=2026-01-01 -seed 1";
        arguments.extend(fixed.split(' ').map(String::from));
    }
    arguments
}

/// Arguments for Caisson: the hardware, the kernel, the bundle and the way to end. Console and log are the caller's.
pub fn arguments(machine: &Machine, kernel: &Path, bundle: &Path) -> Vec<String> {
    let mut arguments = hardware(machine.cpus + machine.spare_cpus(), machine.memory, machine.icount);
    arguments.extend(["-device".into(), EXIT_PORT.into()]);
    for (option, path) in [("-kernel", kernel), ("-initrd", bundle)] {
        arguments.extend([option.into(), path.display().to_string()]);
    }
    arguments
}
