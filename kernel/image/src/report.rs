//! What the kernel says: events to the log, and an epitaph when it dies itself.

use caisson_core::bundle::Fault;
use caisson_core::event::Event;
use caisson_hw::Trap;
use caisson_proto::kernel::FaultKind;
use caisson_proto::kernel::verdict;

/// Logs an event.
pub fn event(event: Event) {
    match event {
        Event::Started(id) => {
            defmt::debug!("service {=u16} generation {=u16} starts", slot(id), id.generation())
        }
        Event::Faulted { service, kind, code, rip, address } => {
            let slot = slot(service);
            match kind {
                FaultKind::Exception => defmt::error!(
                    "service {=u16} faulted: exception {=u64}, error code {=u64:#x}, at {=u64:#x}, address {=u64:#x}",
                    slot,
                    code >> 32,
                    code & 0xffff_ffff,
                    rip,
                    address
                ),
                FaultKind::Protocol => defmt::error!(
                    "service {=u16} faulted: forbidden message, word 0 = {=u64:#x}, rax = {=u64:#x}, at {=u64:#x}",
                    slot,
                    code,
                    address,
                    rip
                ),
                FaultKind::Overrun => {
                    defmt::error!("service {=u16} faulted: ran longer than {=u64} ms for one message", slot, code)
                }
                FaultKind::Panic | FaultKind::None => defmt::error!("service {=u16} faulted", slot),
            }
        }
        Event::Killed(id) => defmt::warn!("service {=u16} was killed", slot(id)),
        Event::Exited(id, kind) => defmt::debug!("service {=u16} ended itself, kind {=u64}", slot(id), kind),
        Event::Refused(id, op, status) => {
            defmt::warn!("service {=u16} was refused operation {=u64}: status {=u8}", slot(id), op, status as u8)
        }
        Event::VmMade(vm, handler) => {
            defmt::debug!("VM {=usize} was made for service {=u16}", vm.index(), slot(handler))
        }
        Event::VmGone(vm) => defmt::debug!("the last of VM {=usize} is gone", vm.index()),
        Event::BatchPaid(batch, frames) => {
            defmt::debug!("batch {=u32:#x} is paid: {=u64} frames are free", batch.0, frames)
        }
        Event::WroteBack(cpu) => defmt::debug!("CPU {=u16} wrote back", cpu.0),
    }
}

fn slot(id: caisson_proto::addr::ServiceId) -> u16 {
    id.index() as u16
}

/// The kernel itself faulted: says what happened where, and ends the machine.
pub fn epitaph(trap: &Trap) -> ! {
    caisson_hw::log::epitaph();
    defmt::error!(
        "KERNEL FAULT on CPU {=u16}: exception {=u64}, error code {=u64:#x}, rip {=u64:#x}, rsp {=u64:#x}, address {=u64:#x}, rflags {=u64:#x}",
        caisson_hw::this_cpu().0,
        trap.vector,
        trap.error,
        trap.rip,
        trap.rsp,
        trap.address(),
        trap.rflags
    );
    defmt::error!(
        "rax {=u64:#x} rbx {=u64:#x} rcx {=u64:#x} rdx {=u64:#x} rsi {=u64:#x} rdi {=u64:#x} rbp {=u64:#x}",
        trap.rax,
        trap.rbx,
        trap.rcx,
        trap.rdx,
        trap.rsi,
        trap.rdi,
        trap.rbp
    );
    caisson_hw::power_off(verdict::FAULTED)
}

/// The machine can't be booted: says why, and ends it.
pub fn cannot_boot(why: &str, detail: u64) -> ! {
    caisson_hw::log::epitaph();
    defmt::error!("can't boot: {=str} ({=u64})", why, detail);
    caisson_hw::power_off(verdict::BAD_SETUP)
}

/// The processor can't run guests: says why, and ends the machine.
pub fn no_svm(error: caisson_hw::svm::Unsupported) -> ! {
    use caisson_hw::svm::Unsupported as U;
    let why = match error {
        U::NoSvm => "the CPU has no SVM; on QEMU use -accel tcg -cpu max",
        U::Disabled => "the firmware disabled SVM",
        U::NoNestedPaging => "the CPU has no nested paging",
        U::NoXsave => "the CPU has no XSAVE",
        U::NoFrame => "no frame for the host's state",
    };
    cannot_boot(why, 0)
}

/// The bundle isn't one that can be booted.
pub fn bad_bundle(fault: Fault) -> ! {
    let (why, detail) = match fault {
        Fault::Header => ("the bundle's header is wrong; was QEMU started with -initrd bundle?", 0),
        Fault::Services => ("the bundle has no service, or too many", 0),
        Fault::Authority(slot) => ("a service has a capability or interrupt that doesn't exist", slot),
        Fault::Downhill(slot) => ("a service may call one that isn't of a higher rank", slot),
        Fault::Image(slot) => ("a service's image, stack or heap is out of place", slot),
        Fault::File(slot) => ("a service's file is out of place", slot),
        Fault::Ring(number) => ("a ring is out of place", number),
        Fault::Supervisor => ("not exactly one service can supervise the others", 0),
    };
    cannot_boot(why, detail as u64)
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    caisson_hw::log::epitaph();
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    defmt::error!("KERNEL PANIC on CPU {=u16} at {=str}:{=u32}", caisson_hw::this_cpu().0, file, line);
    caisson_hw::power_off(verdict::FAULTED)
}
