//! From the board's entry to the first service.

use caisson_core::{boot::BootInfo, bundle::Bundle};
use caisson_hw::{KERNEL, cannot_boot, clock, home, ioapic, run};

caisson_qemu_boot::entry!(start);

/// The boot CPU, once the board knows the machine.
fn start(boot: &BootInfo) -> ! {
    let mut early =
        caisson_hw::init(boot).unwrap_or_else(|lacking| cannot_boot("the machine lacks something", lacking));
    defmt::info!("{=usize} CPUs, TSC at {=u64} kHz", boot.cpus.len(), clock::tsc_khz());
    let bundle = Bundle::parse(early.bundle(&boot.bundle)).unwrap_or_else(|fault| {
        cannot_boot("the bundle is inconsistent; was QEMU started with -initrd bundle?", fault)
    });
    if let Err(status) = home::build(&bundle, boot, &mut early) {
        cannot_boot("the services don't fit in memory; give the machine more", status as u64)
    }
    KERNEL.configure(bundle.services.iter(), boot.cpus.len(), early.finish(boot));
    for service in bundle.services.iter().filter(|service| service.interrupt != u16::MAX) {
        ioapic::enable_line(service.interrupt as u8);
    }
    if let Err(absent) = caisson_hw::start_cpus(boot) {
        cannot_boot("a CPU doesn't start", absent)
    }
    run::start(bundle)
}
