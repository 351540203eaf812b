//! What is measured, KVM's figures on the same QEMU, and the aims.

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// As the guest and the services name it.
    pub name: &'static str,
    /// In a few words.
    pub about: &'static str,
    /// Instructions of KVM (Linux 6.1, with QEMU as its user side) in the same QEMU, where it was measured.
    pub kvm: Option<u64>,
    /// Instructions that it should take at the most.
    pub aim: Option<u64>,
}

const fn plain(name: &'static str, about: &'static str) -> Figure {
    Figure { name, about, kvm: None, aim: None }
}

const fn judged(name: &'static str, about: &'static str, kvm: u64, aim: u64) -> Figure {
    Figure { name, about, kvm: Some(kvm), aim: Some(aim) }
}

/// In the order of the table.
pub const FIGURES: &[Figure] = &[
    judged("cpuid", "CPUID, answered by the kernel", 2957, 300),
    judged("port-read", "port read, answered by the vmm", 5082, 1000),
    Figure { name: "pm-timer-read", about: "PM timer read", kvm: Some(5253), aim: None },
    plain("port-write", "port write"),
    plain("msr-read", "MSR read"),
    judged("msr-write", "MSR write, answered by the vmm", 3457, 1000),
    judged("wbinvd", "WBINVD", 2754, 600),
    judged("hypercall", "hypercall", 8876, 300),
    plain("memory-mapped-read", "local APIC register read, memory-mapped"),
    judged("self-ipi", "IPI to itself, ended (x2APIC)", 9534, 3000),
    plain("self-ipi-to-handler", "  to its handler's first instruction"),
    plain("self-ipi-xapic", "IPI to itself, ended (xAPIC)"),
    plain("timer-by-count", "timer set by a count"),
    plain("timer-by-deadline", "timer set by a deadline"),
    plain("null-system-call", "null system call"),
    Figure { name: "call", about: "call and reply, 8 words", kvm: None, aim: Some(250) },
    plain("call-with-lease", "call and reply with a page lent"),
    plain("ring-send", "ring message: sending, reader awake"),
    plain("ring-receive", "ring message: reading"),
    plain("ring-with-doorbell", "ring message until read, reader asleep"),
    plain("timer-to-service", "timer until the service's first instruction"),
    plain("call-that-faults", "call of a service that faults, until Died"),
];
