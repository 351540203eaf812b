//! Tickets and the doorbell that says that they are done.

use std::sync::Arc;

use caisson_core::batches::Payable;
use caisson_core::cpus::CpuSet;
use caisson_core::machine::Machine;
use caisson_proto::abi::doorbell;
use caisson_proto::addr::{CpuId, Gfn, Ticket, VmId};
use caisson_proto::kernel::{AsidState, GuestUnmap, TicketCheck, VmKind, WriteBack, WriteBackInvalidate};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::board::{ASID, Cpu, FIRMWARE, MEMORY, NOTIFIER, VM, World, explore, spawn};
use super::common::pay;

/// CPU 1 does nothing but flush when it is interrupted. CPU 0 asks for a WBINVD everywhere; gives an ASID up; asks again
/// and waits for that: by then every CPU has executed one that began after the ASID was given up.
fn recycle(world: Arc<World>, flush: fn(&Cpu), ask: fn(&Cpu) -> Ticket) {
    let over = Arc::new(AtomicBool::new(false));
    let other = {
        let (world, over) = (world.clone(), over.clone());
        spawn(move || {
            let cpu = Cpu::new(&world, 1);
            while !over.load(Ordering::Acquire) {
                cpu.halt();
                flush(&cpu);
            }
        })
    };
    let cpu = Cpu::new(&world, 0);
    ask(&cpu);
    world.tables(|tables| {
        let tickets = tables.tickets;
        tables.asids.get(ASID).unwrap().deactivate(tickets);
        for stale in &world.board.stale {
            stale.swap(1, Ordering::Relaxed);
        }
    });
    let ticket = ask(&cpu);
    loop {
        let check = cpu.ask(FIRMWARE, &TicketCheck { ticket }).unwrap();
        // Only who waits has something left to do.
        let state = world.tables(|tables| tables.asids.get(ASID).unwrap().state);
        let stale = world.board.stale.iter().any(|stale| stale.fetch_or(0, Ordering::Relaxed) != 0);
        assert!(!stale || state == AsidState::Dirty, "recycled by a WBINVD that began too early");
        if check.done {
            assert_eq!(state, AsidState::Flushed);
            break;
        }
        assert_eq!(check.late, CpuId(1), "who is late is named");
        world.board.paid.wait();
    }
    over.store(true, Ordering::Release);
    world.wake_all();
    other.join().unwrap();
}

fn real_flush(cpu: &Cpu) {
    cpu.here().flush_if_wanted();
}

fn real_ask(cpu: &Cpu) -> Ticket {
    cpu.ask(FIRMWARE, &WriteBackInvalidate {}).unwrap().ticket
}

#[test]
fn a_ticket_is_done_when_each_cpu_has_begun_after_it_was_given_and_ended() {
    explore(|world| recycle(world, real_flush, real_ask));
}

/// As `flush_if_wanted`, but it doesn't look whether somebody asked meanwhile.
fn pay_without_looking(cpu: &Cpu) {
    let shared = &cpu.world.kernel.cpus[cpu.number];
    while shared.flush_wanted.swap(false) {
        let invalidate = shared.invalidate_wanted.swap(false);
        cpu.here().machine.write_back(invalidate);
        cpu.world.tables(|tables| {
            if pay(tables, cpu.number, invalidate) > 0 {
                cpu.world.board.paid.notify();
            }
        });
    }
}

#[test]
#[should_panic = "recycled by a WBINVD that began too early"]
fn paying_for_who_asked_meanwhile_is_found() {
    explore(|world| recycle(world, pay_without_looking, real_ask));
}

/// As `WriteBackInvalidate`, but a CPU is told that it is wanted before it is told what for.
fn ask_in_the_wrong_order(cpu: &Cpu) -> Ticket {
    let all = CpuSet::of((0..2).map(CpuId));
    let ticket = cpu.world.tables(|tables| {
        let batch = tables.batches.open(VmId::default(), VmKind::Plain, &all, Payable::Invalidate).unwrap();
        tables.tickets += 1;
        tables.open_tickets.push((tables.tickets, batch)).unwrap();
        for shared in &cpu.world.kernel.cpus {
            shared.flush_wanted.swap(true);
            shared.invalidate_wanted.swap(true);
        }
        Ticket(tables.tickets)
    });
    cpu.here().machine.interrupt_cpu(CpuId(1));
    cpu.here().flush_if_wanted();
    ticket
}

#[test]
#[should_panic = "deadlock"]
fn asking_before_saying_what_for_is_found() {
    explore(|world| recycle(world, real_flush, ask_in_the_wrong_order));
}

/// notifier asks on CPU 0 for what CPU 1 owes, finds its ticket open and waits for the doorbell. On whichever CPU that
/// comes, it finds the ticket done. Nobody but the two CPUs is there to wake it.
fn tell(world: Arc<World>, flush: fn(&Cpu)) {
    let first = Cpu::new(&world, 0);
    first.here().restart(NOTIFIER).unwrap();
    first.run(|_, _| {});
    Cpu::new(&world, 1).guest();
    let ticket = Arc::new(AtomicUsize::new(0));
    let told = Arc::new(AtomicUsize::new(0));
    // Its own thought at each doorbell.
    let think = |ticket: Arc<AtomicUsize>, told: Arc<AtomicUsize>| {
        move |cpu: &Cpu, bells: u64| {
            let open = Ticket(ticket.load(Ordering::Acquire) as u64);
            if bells & doorbell::TICKET != 0 && cpu.ask(NOTIFIER, &TicketCheck { ticket: open }).unwrap().done {
                told.fetch_add(1, Ordering::AcqRel);
                cpu.world.wake_all();
            }
        }
    };
    let other = {
        let (world, think) = (world.clone(), think(ticket.clone(), told.clone()));
        let told = told.clone();
        spawn(move || {
            let cpu = Cpu::new(&world, 1);
            loop {
                flush(&cpu);
                cpu.run(|_, bells| think(&cpu, bells));
                if told.load(Ordering::Acquire) != 0 {
                    return;
                }
                cpu.halt();
            }
        })
    };
    let batch = first
        .ask(MEMORY, &GuestUnmap { vm: VM, view: 0, gfn: Gfn(0), pages: 1, more: false, broken: false })
        .unwrap()
        .batch;
    first.here().ring(NOTIFIER, 1);
    let think = think(ticket.clone(), told.clone());
    first.run(|_, bells| {
        if bells & 1 == 1 {
            let given = first.ask(NOTIFIER, &WriteBack { batch }).unwrap().ticket;
            ticket.store(given.0 as usize, Ordering::Release);
        }
        think(&first, bells);
    });
    while told.load(Ordering::Acquire) == 0 {
        first.halt();
        first.run(|_, bells| think(&first, bells));
    }
    other.join().unwrap();
    assert_eq!(told.load(Ordering::Acquire), 1, "told once");
    assert!(!world.kernel.service(NOTIFIER).bells.any() && !world.kernel.service(NOTIFIER).bells.is_queued());
}

#[test]
fn who_waits_for_a_ticket_is_told_when_it_is_done() {
    explore(|world| tell(world, real_flush));
}

/// Pays, and rings before that or after.
fn ring_and_pay(cpu: &Cpu, early: bool) {
    let shared = &cpu.world.kernel.cpus[cpu.number];
    while shared.flush_wanted.swap(false) {
        cpu.here().machine.write_back(false);
        shared.ran.store(0, Ordering::SeqCst);
        let ring = || cpu.here().ring(NOTIFIER, doorbell::TICKET);
        if early {
            ring();
        }
        cpu.world.tables(|tables| {
            pay(tables, cpu.number, false);
        });
        if !early {
            ring();
        }
    }
}

#[test]
fn ringing_when_it_is_done_passes() {
    explore(|world| tell(world, |cpu| ring_and_pay(cpu, false)));
}

#[test]
#[should_panic = "deadlock"]
fn ringing_before_it_is_done_is_found() {
    explore(|world| tell(world, |cpu| ring_and_pay(cpu, true)));
}
