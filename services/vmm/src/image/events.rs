//! The wording of what a vmm logs.

use caisson_vmm::Event;
use caisson_vmm::virtio::Trouble;

/// Logs an event.
pub fn log(event: Event) {
    match event {
        Event::Loaded { entry, kernel_end, initrd } => {
            defmt::info!("guest: entry {=u64:#x}, kernel to {=u64:#x}, initrd {=u64:#x}", entry, kernel_end, initrd);
        }
        Event::Started { vcpu, vector } => {
            defmt::info!("guest: vCPU {=u8} starts at page {=u8:#x}", vcpu, vector);
        }
        Event::UnknownMsrRead(msr) => defmt::warn!("guest: RDMSR {=u32:#x}: #GP", msr),
        Event::UnknownMsrWrite(msr, value) => {
            defmt::warn!("guest: WRMSR {=u32:#x}, {=u64:#x}: #GP", msr, value);
        }
        Event::NoDevice(gpa) => defmt::warn!("guest: nothing at {=u64:#x}", gpa),
        Event::Unemulated { code, rip, bytes } => {
            defmt::error!("guest: exit {=u16:#x} at {=u64:#x} (bytes {=u64:#x})", code, rip, bytes);
        }
        Event::NoMemory(gpa, status) => {
            defmt::error!("guest: no memory for {=u64:#x}: status {=u8}", gpa, status as u8);
        }
        Event::PoweredOff => defmt::info!("guest: powered off"),
        Event::TestEnded(value) => defmt::info!("guest: ended its test with {=u32}", value),
        Event::Reset => defmt::info!("guest: reset"),
        Event::Hung => defmt::error!("guest: all vCPUs halted with interrupts off"),
        Event::Shutdown { vcpu, rip } => {
            defmt::error!("guest: vCPU {=u8} shut down at {=u64:#x}", vcpu, rip);
        }
        Event::Epitaph { name, values: [a, b, c, d] } => {
            defmt::error!("guest: {=str}: {=u64:#x} {=u64:#x} {=u64:#x} {=u64:#x}", name, a, b, c, d);
        }
        Event::Virtio(device, trouble) => {
            let (what, number) = trouble.describe();
            if matches!(trouble, Trouble::GaveBack(_)) {
                defmt::info!("guest: virtio device {=u8}: {=str}: {=u64}", device, what, number);
            } else {
                defmt::warn!("guest: virtio device {=u8}: {=str}: {=u64}", device, what, number);
            }
        }
        Event::Panicked => defmt::error!("guest: its kernel panicked"),
    }
}
