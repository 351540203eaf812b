//! The exits, each between two reads of the time-stamp counter.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use caisson_guest_rt::{cmdline, cpu, entry, idt, println};

/// How often each is measured.
const TIMES: usize = 65;
/// The vector of the IPI to ourselves.
const VECTOR: u8 = 0x40;
/// Where a local APIC is from reset on.
const APIC: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2: u64 = 1 << 10;

/// When the handler began, low half.
static HANDLED: AtomicU32 = AtomicU32::new(0);

/// One run of `$setup` and `$exit` between two reads of the counter. All registers but rsp and rbp may be used by them,
/// but r8.
macro_rules! once {
    ($setup:literal, $exit:literal) => {
        || {
            let ticks: u32;
            // SAFETY: what is measured changes nothing but the registers named, devices, and memory of its own.
            // The stack is our own alone: no red zone is in use on this target.
            unsafe {
                asm!("push rbx", "sti", "nop", "rdtsc", "mov r8d, eax", $setup, $exit, "rdtsc", "cli",
                    "sub eax, r8d", "pop rbx",
                    out("eax") ticks, out("ecx") _, out("edx") _, out("rsi") _, out("rdi") _,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            }
            ticks
        }
    };
}

/// Prints what `$exit` costs after `$setup`, whose own cost doesn't count.
macro_rules! measure {
    ($name:literal, $setup:literal, $exit:literal) => {
        report($name, &mut samples(once!($setup, $exit)), samples(once!($setup, ""))[TIMES / 2])
    };
}

/// Sorted.
fn samples(once: impl Fn() -> u32) -> [u32; TIMES] {
    let mut all = [0; TIMES];
    // The first one warms up.
    once();
    all.iter_mut().for_each(|sample| *sample = once());
    all.sort_unstable();
    all
}

fn report(name: &str, samples: &mut [u32; TIMES], empty: u32) {
    println!("exits {name} {} {}", samples[0].saturating_sub(empty), samples[TIMES / 2].saturating_sub(empty));
}

/// Notes when it began, and ends the interrupt by the x2APIC. Whom it interrupts keeps nothing in eax, ecx and edx.
#[unsafe(naked)]
unsafe extern "C" fn handler_x2() {
    naked_asm!("rdtsc", "mov [{at}], eax", "mov ecx, 0x80b", "xor eax, eax", "xor edx, edx", "wrmsr", "iretq",
        at = sym HANDLED)
}

/// The same by the xAPIC.
#[unsafe(naked)]
unsafe extern "C" fn handler_x1() {
    naked_asm!("rdtsc", "mov [{at}], eax", "mov ecx, 0xfee000b0", "mov dword ptr [rcx], 0", "iretq",
        at = sym HANDLED)
}

/// How long an IPI to ourselves takes until its handler's first instruction: `send` causes one and says when it began.
fn until_handled(send: impl Fn() -> u32) -> impl Fn() -> u32 {
    move || {
        let began = send();
        HANDLED.load(Ordering::Relaxed).wrapping_sub(began)
    }
}

fn cpuid_and_ports() {
    measure!("cpuid", "xor eax, eax; xor ecx, ecx", "cpuid");
    measure!("port-read", "mov edx, 0x1234", "in eax, dx");
    measure!("pm-timer-read", "mov edx, 0x608", "in eax, dx");
    measure!("port-write", "mov edx, 0x80", "out dx, al");
    measure!("wbinvd", "", "wbinvd");
    measure!("hypercall", "mov eax, 1", "vmmcall");
    measure!("msr-read", "mov ecx, 0x1b", "rdmsr");
    measure!("msr-write", "mov ecx, 0xc0011029; xor eax, eax; xor edx, edx", "wrmsr");
    measure!("memory-mapped-read", "mov ecx, 0xfee00020", "mov eax, [rcx]");
}

fn xapic() {
    // SAFETY: the local APIC is mapped as it is and no memory; the handler ends as it must.
    unsafe {
        idt::set(VECTOR, handler_x1);
        ((APIC + 0xf0) as *mut u32).write_volatile(0x1ff);
    }
    measure!("self-ipi-xapic", "mov ecx, 0xfee00300", "mov dword ptr [rcx], 0x40040");
}

fn x2apic() {
    // SAFETY: local APICs may go from xAPIC to x2APIC mode; the handler ends as it must.
    unsafe {
        cpu::wrmsr(APIC_BASE, cpu::rdmsr(APIC_BASE) | APIC_BASE_X2);
        idt::set(VECTOR, handler_x2);
    }
    measure!("self-ipi", "mov ecx, 0x830; mov eax, 0x40040; xor edx, edx", "wrmsr");
    let empty = samples(once!("", ""))[TIMES / 2];
    let send = || {
        let began: u32;
        // SAFETY: as in `once!`; the handler changes eax, ecx and edx.
        unsafe {
            asm!("sti", "mov ecx, 0x830", "rdtsc", "mov r8d, eax", "xor edx, edx", "mov eax, 0x40040", "wrmsr", "cli",
                out("eax") _, out("ecx") _, out("edx") _, out("r8d") began);
        }
        began
    };
    // Two instructions of ours come before the write.
    report("self-ipi-to-handler", &mut samples(until_handled(send)), empty + 2);
    // One-shot by count, then by deadline, both too far away to come; off again at the end.
    // SAFETY: the timer's interrupt is masked.
    unsafe { cpu::wrmsr(0x832, 0x1_0000) };
    measure!("timer-by-count", "mov ecx, 0x838; mov eax, 0x7fffffff; xor edx, edx", "wrmsr");
    // SAFETY: as before.
    unsafe {
        cpu::wrmsr(0x838, 0);
        cpu::wrmsr(0x832, 0x5_0000);
    }
    measure!("timer-by-deadline", "mov ecx, 0x6e0; mov eax, -1; mov edx, 0xffff", "wrmsr");
    // SAFETY: as before.
    unsafe { cpu::wrmsr(0x6e0, 0) };
}

/// Causes one kind of exit for ever, for whoever looks on.
fn repeat(name: &str) -> ! {
    println!("exits repeating {name}");
    let sample = match name {
        "cpuid" => once!("xor eax, eax; xor ecx, ecx", "cpuid"),
        "port-read" => once!("mov edx, 0x1234", "in eax, dx"),
        "msr-write" => once!("mov ecx, 0xc0011029; xor eax, eax; xor edx, edx", "wrmsr"),
        "wbinvd" => once!("", "wbinvd"),
        "hypercall" => once!("mov eax, 1", "vmmcall"),
        _ => panic!("no exit is named {name}"),
    };
    loop {
        sample();
    }
}

fn main() -> ! {
    if let Some(name) = cmdline().split(' ').find_map(|word| word.strip_prefix("repeat=")) {
        repeat(name);
    }
    cpuid_and_ports();
    xapic();
    x2apic();
    println!("exits end");
    cpu::halt()
}

entry!(main);
