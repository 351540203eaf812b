//! Attempts of more than one step.

use caisson_guest_intruder::attempts::{STATES, Trick};
use caisson_guest_intruder::{Report, ask};
use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, Syscall};
use caisson_proto::addr::{Gfn, PAGE_SIZE, ServiceId, VPage, VmId};
use caisson_proto::info::{RingUse, name};
use caisson_proto::kernel::KernelCall;
use caisson_proto::layout;
use caisson_proto::memory::{self, Populate};
use caisson_proto::ring::{SLOTS, header, slot_offset};
use caisson_proto::wire::{Field, Request, Words};
use caisson_rt::{info, known_id, null, ring_doorbell, rings, slot_of, time};

use crate::{ask_now, raw};

/// MachineInfo: the one operation that needs no capability.
const FREE_OPERATION: u16 = 5;
/// Rounds of a flood.
const FLOOD: u64 = 1000;
/// Milliseconds in which a timer interrupt comes.
const LONG_MS: u64 = 60;
/// What the lent page begins with.
const PATTERN: u8 = 0xa5;

/// Plays it.
pub fn play(trick: Trick) -> Report {
    match trick {
        Trick::NoCapability => no_capability(),
        Trick::ForbiddenCalls => forbidden_calls(),
        Trick::DeadGenerations => dead_generations(),
        Trick::ForgedVms => forged_vms(),
        Trick::BadLeases => bad_leases(),
        Trick::Probe => probe(),
        Trick::Doorbells => doorbells(),
        Trick::Insider => insider(),
        Trick::WildStack => wild_stack(),
        Trick::WildFlags => wild_flags(),
        Trick::TwoReplies => two_replies(),
        Trick::BorrowerDies => lend_to(ask::DIE),
        Trick::BorrowerKeeps => lend_to(ask::KEEP),
        Trick::LenderDies => lend_to(ask::END_LENDER),
        Trick::Spin => loop {
            core::hint::spin_loop();
        },
        Trick::SpinNull => loop {
            null();
        },
        Trick::SpinCalls => loop {
            report(None);
        },
        Trick::SpinWaiting => loop {
            ask_now(slot("accomplice"), &[ask::SLOW, 0, 0, 0, 0, 0, 0, 0], None);
        },
        Trick::SpinRings => loop {
            let _ = ring_doorbell(slot("console"), u64::MAX);
        },
        Trick::SpinLog => loop {
            defmt::info!("a flood");
        },
        Trick::Recurse => Report { got: recurse(1), ..Report::default() },
        Trick::Panic => panic!("as told"),
    }
}

fn slot(name: &str) -> u16 {
    slot_of(name).unwrap_or(u16::MAX)
}

fn names() -> impl Iterator<Item = (u16, &'static str)> {
    (0..).zip(info().names.iter().take(info().services as usize).map(name))
}

/// Whether the manifest lets it call this service.
fn may_call(name: &str) -> bool {
    matches!(name, "switch" | "memory" | "notifier" | "sev-firmware" | "accomplice") || name.starts_with("vmm-")
}

/// Asks memory how it stands, with a lease.
fn report(lease: Option<Lease>) -> Status {
    ask_now(slot("memory"), &memory::Report {}.encode(), lease).0
}

fn raw_call(target: u16, generation: u16, lease: u64, words: &Words) -> (Status, u64) {
    let rax = Syscall::Call as u64 | u64::from(target) << 16 | u64::from(generation) << 32;
    let (rax, words) = raw::system_call(rax, lease, words);
    (Status::from_word(rax & 0xffff).unwrap_or(Status::Malformed), words[0])
}

fn no_capability() -> Report {
    let mut found = Report::default();
    for &(op, _) in KernelCall::OPERATIONS {
        let wanted = if op == FREE_OPERATION { Status::Ok } else { Status::Denied };
        let (status, _) = raw_call(KERNEL_SLOT, 0, 0, &[op.into(), 0, 0, 0, 0, 0, 0, 0]);
        found.case(status == wanted, status as u64);
    }
    found
}

fn forbidden_calls() -> Report {
    let mut found = Report::default();
    for (target, name) in names().filter(|(_, name)| !may_call(name)) {
        let (status, _) = raw_call(target, known_id(target).generation(), 0, &[1; 8]);
        found.case(status == Status::Downhill, u64::from(target) << 8 | status as u64);
        let _ = name;
    }
    for target in [info().services as u16, 63, 64, 65, 255, 256, 0x7fff, 0xfffe] {
        let (status, _) = raw_call(target, 0, 0, &[1; 8]);
        found.case(status == Status::Denied, u64::from(target) << 8 | status as u64);
    }
    found
}

fn dead_generations() -> Report {
    let mut found = Report::default();
    for (target, _) in names().filter(|(_, name)| may_call(name)) {
        // One that answers is of the present generation.
        ask_now(target, &[u64::MAX; 8], None);
        let now = known_id(target);
        for wrong in [1, 2, 3, 0x100, 0x7fff, 0x8000] {
            let (status, word) = raw_call(target, now.generation() ^ wrong, 0, &[1; 8]);
            found.case(status == Status::Dead && word == now.to_word(), word << 8 | status as u64);
        }
    }
    found
}

fn forged_vms() -> Report {
    let mut found = Report::default();
    for (index, generation) in (0..50).flat_map(|index| [0, 1, 2, 0x7fff, 0xffff].map(|life| (index, life))) {
        let request = Populate { vm: VmId::new(index, generation), gfn: Gfn(0), pages: 512, private: false };
        let (status, _) = ask_now(slot("memory"), &request.encode(), None);
        found.case(matches!(status, Status::Denied | Status::NotFound), status as u64);
    }
    found
}

fn bad_leases() -> Report {
    let mut found = Report::default();
    let lease = |at: u64, pages, write| Lease { page: VPage(at / PAGE_SIZE), pages, write }.to_word();
    let leases = [
        lease(layout::IMAGE, 1, true),
        lease(layout::INFO, 1, true),
        lease(0, 1, false),
        lease(layout::IMAGE - PAGE_SIZE, 2, false),
        lease(layout::INFO, 2, false),
        lease(layout::STACK_TOP, 1, false),
        lease(layout::STACK_TOP - 16 * PAGE_SIZE, 16, false),
        lease(layout::HEAP, 1, false),
        lease(layout::RINGS - PAGE_SIZE, 2, false),
        lease(layout::RINGS, 1, true),
        lease(layout::VCPU_STATE, 1, false),
        lease(layout::LEASE, 1, false),
        lease(layout::FILES, 1, false),
        lease(layout::GUEST, 16, true),
        lease(layout::USER_END - PAGE_SIZE, 1, false),
        lease(layout::USER_END, 1, false),
        lease(layout::STACK_TOP - PAGE_SIZE, 17, false),
        lease(layout::STACK_TOP - PAGE_SIZE, 64, false),
        lease(0xffff_8000_0000_0000, 1, true) | 1 << 63,
        raw::page(),
        raw::page() | 1 << 55 | 1 << 63,
        1,
        u64::MAX,
    ];
    for lease in leases {
        report(None);
        let memory = known_id(slot("memory"));
        let words = memory::Report {}.encode();
        let (status, _) = raw_call(memory.index() as u16, memory.generation(), lease, &words);
        found.case(status == Status::BadLease, status as u64);
    }
    found
}

fn probe() -> Report {
    let mut found = Report::default();
    let [image, end] = [layout::IMAGE, raw::image_end().next_multiple_of(PAGE_SIZE)].map(|at| at / PAGE_SIZE);
    let (info, stack) = (layout::INFO / PAGE_SIZE, layout::STACK_TOP / PAGE_SIZE);
    let edges = [image - 1, end - 1, end, info - 1, info, info + 1, stack - 9, stack - 8, stack - 1, stack];
    for page in (0..layout::RINGS / PAGE_SIZE).step_by(64).chain(edges) {
        let own = (image..end).contains(&page) || page == info || (stack - 8..stack).contains(&page);
        let status = report(Some(Lease { page: VPage(page), pages: 1, write: false }));
        found.case(status == if own { Status::Ok } else { Status::BadLease }, page << 8 | status as u64);
    }
    found
}

fn doorbells() -> Report {
    let mut found = Report::default();
    for round in 0..FLOOD {
        for (target, name) in names() {
            let rung = ring_doorbell(target, u64::MAX << (round % 64));
            // All but its agent.
            found.case(rung.is_ok() == (name != "agent"), target.into());
        }
    }
    for target in [info().services as u16, 63, 64, 1000, KERNEL_SLOT] {
        found.case(ring_doorbell(target, u64::MAX) == Err(Status::Denied), target.into());
    }
    found
}

/// Leaves a ring in a state that no honest writer leaves, for its reader to find.
pub fn ring(wanted: RingUse, state: u64) -> Report {
    let mut found = Report::default();
    let ring = rings::all().find(|(_, ring)| rings::purpose(ring) == Some(wanted));
    let Some((number, ring)) = ring else { return Report { wrong: 1, ..found } };
    let page = layout::RINGS + number as u64 * PAGE_SIZE;
    let set = |at: usize, value: u64| raw::write_word(page + at as u64, value);
    if state + 1 == STATES {
        // An empty ring, so that a successor can be heard.
        [header::HEAD, header::TAIL, header::CONSUMER_SLEEPS, header::DROPPED].into_iter().for_each(|at| set(at, 0));
        return Report { cases: 1, ..found };
    }
    let first = [u64::MAX, 0x013e, 0x01ff, 0x003e, 0x0020][state as usize % 5];
    for slot in 0..u64::from(SLOTS) {
        set(slot_offset(slot), first | (state + slot) << 16);
        set(slot_offset(slot) + 8, u64::MAX / (slot + 1));
    }
    let tail = raw::read_word(page + header::TAIL as u64);
    let head = [tail + u64::from(SLOTS), u64::MAX, tail + 1, 1 << 63, tail + u64::from(SLOTS) + 1][state as usize / 5];
    set(header::HEAD, head);
    if state % 4 == 3 {
        set(header::TAIL, tail ^ state << 32);
    }
    set(header::CONSUMER_SLEEPS, state << 32 | 1);
    set(header::DROPPED, state);
    for bell in 0..64 {
        found.case(ring_doorbell(ring.peer, 1 << bell).is_ok(), bell);
    }
    found
}

fn insider() -> Report {
    let (status, words) = ask_now(slot("accomplice"), &[ask::OPERATIONS, 0, 0, 0, 0, 0, 0, 0], None);
    match status {
        Status::Ok => Report { cases: words[2], wrong: words[3], got: words[4] },
        status => Report { cases: 1, wrong: 1, got: status as u64 },
    }
}

fn wild_stack() -> Report {
    let mut found = Report::default();
    let wild =
        [0, 1, 8, 1 << 47, u64::MAX, 0xffff_8000_0000_0000, 0xffff_ffff_c003_0000, layout::USER_END, layout::INFO];
    for (stack, ms) in wild.map(|stack| (stack, 0)).into_iter().chain([(1 << 47, LONG_MS)]) {
        let (rax, after) = raw::null_with_stack(stack, time::now().0 + time::ticks(ms));
        found.case(rax & 0xffff == 0 && after == stack, after);
    }
    found
}

fn wild_flags() -> Report {
    // Carry, parity, adjust, zero, sign, trap, direction, overflow, I/O level, nested task, resume, alignment, id.
    const ALL: u64 = 0x25_7dd5;
    const CLEAR: u64 = 0x202;
    let mut found = Report::default();
    let flags = (0..22).map(|bit| (1 << bit & ALL, 0)).chain([(ALL, 0), (ALL, LONG_MS)]);
    for (flags, ms) in flags {
        let (rax, after) = raw::null_with_flags(flags, time::now().0 + time::ticks(ms));
        found.case(rax & 0xffff == 0 && after == CLEAR, after);
    }
    found
}

fn two_replies() -> Report {
    let own = ServiceId::from_bits(info().head.id).index() as u16;
    let mut found = Report::default();
    // Each bell is a message, and will be answered.
    found.case(ring_doorbell(own, 1).is_ok(), 0);
    found
}

/// Lends its page to the accomplice, which doesn't give it back in good order.
fn lend_to(what: u64) -> Report {
    let mut found = Report::default();
    let at = raw::page() * PAGE_SIZE;
    raw::write(at, PATTERN);
    let lease = Lease { page: VPage(raw::page()), pages: 1, write: true };
    let (status, _) = ask_now(slot("accomplice"), &[what, 0, 0, 0, 0, 0, 0, 0], Some(lease));
    found.case(status == Status::Died, status as u64);
    found.case(raw::read(at) == PATTERN, raw::read(at).into());
    found
}

#[allow(unconditional_recursion)] // until the guard page
fn recurse(depth: u64) -> u64 {
    let place = core::hint::black_box([depth; 64]);
    recurse(depth + 1) + place[(depth % 64) as usize]
}
