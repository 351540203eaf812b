//! Rows: a CPU enters the guest and flushes while another takes pages from the VM. Once a page's frame is free, no CPU
//! has a dirty line of it.

use std::sync::Arc;

use caisson_core::batches::Payable;
use caisson_core::cpus::CpuSet;
use caisson_core::frames::Frames;
use caisson_core::machine::Machine;
use caisson_proto::addr::{BatchId, CpuId, Frame, Gfn};
use caisson_proto::kernel::{FrameState, GuestUnmap, VmKind, WriteBack, WriteBackInvalidate};
use loom::sync::atomic::{AtomicBool, Ordering};

use super::board::{Cpu, FIRMWARE, FIRST, MEMORY, NOTIFIER, VCPU, VM, World, explore, spawn};
use super::common::pay;

/// How CPU 1 flushes when it is asked to.
type Flush = fn(&Cpu);

/// CPU 1 enters the guest so often, flushing before it when asked, and then waits. CPU 0 takes pages, has them paid
/// for, and looks.
fn model(world: Arc<World>, entries: usize, pages: u64, flush: Flush, unmap: fn(&Cpu, u64) -> BatchId) {
    let over = Arc::new(AtomicBool::new(false));
    let other = {
        let (world, over) = (world.clone(), over.clone());
        spawn(move || {
            let cpu = Cpu::new(&world, 1);
            for _ in 0..entries {
                cpu.guest();
                flush(&cpu);
            }
            while !over.load(Ordering::Acquire) {
                cpu.halt();
                flush(&cpu);
            }
        })
    };
    let cpu = Cpu::new(&world, 0);
    for page in 0..pages {
        let batch = unmap(&cpu, page);
        // In a batch that was paid before anybody asked, or that nobody owes, or that is paid later.
        let _ = cpu.ask(NOTIFIER, &WriteBack { batch });
        while !world.is_free(page) {
            world.board.paid.wait();
        }
        let dirty = |cpu: usize| world.board.dirty[cpu].fetch_or(0, Ordering::Relaxed) >> page & 1 == 1;
        assert!(!dirty(0) && !dirty(1), "a free frame has a dirty line");
    }
    over.store(true, Ordering::Release);
    world.wake_all();
    other.join().unwrap();
}

fn real_flush(cpu: &Cpu) {
    cpu.here().flush_if_wanted();
}

fn real_unmap(cpu: &Cpu, page: u64) -> BatchId {
    cpu.ask(MEMORY, &GuestUnmap { vm: VM, view: 0, gfn: Gfn(page), pages: 1, more: false, broken: false })
        .unwrap()
        .batch
}

/// While every CPU is to flush for another reason.
fn flush_and_unmap(cpu: &Cpu, page: u64) -> BatchId {
    cpu.ask(FIRMWARE, &WriteBackInvalidate {}).unwrap();
    real_unmap(cpu, page)
}

#[test]
fn a_frame_that_is_free_has_no_dirty_line() {
    explore(|world| model(world, 2, 1, real_flush, real_unmap));
}

#[test]
fn nor_has_the_next_one_of_the_same_vm() {
    explore(|world| model(world, 1, 2, real_flush, real_unmap));
}

#[test]
fn nor_has_one_that_is_taken_while_a_cpu_flushes_for_another_reason() {
    explore(|world| model(world, 2, 1, real_flush, flush_and_unmap));
}

/// In an event of two steps: until its end the guest may use translations of what the first one took.
fn unmap_in_event(cpu: &Cpu, page: u64) -> BatchId {
    let unmap = GuestUnmap { vm: VM, view: 0, gfn: Gfn(page), pages: 1, more: true, broken: false };
    let batch = cpu.ask(MEMORY, &unmap).unwrap().batch;
    assert!(!cpu.world.is_free(page));
    let end = cpu.ask(MEMORY, &GuestUnmap { pages: 0, more: false, ..unmap }).unwrap();
    assert_eq!((end.batch, end.waiting), (batch, 1));
    batch
}

#[test]
fn nor_has_one_that_was_taken_in_an_event() {
    explore(|world| model(world, 2, 1, real_flush, unmap_in_event));
}

#[test]
#[should_panic = "a free frame has a dirty line"]
fn an_event_without_its_shoot_down_is_found() {
    let unmap = |cpu: &Cpu, page| {
        let unmap = GuestUnmap { vm: VM, view: 0, gfn: Gfn(page), pages: 1, more: true, broken: false };
        let batch = cpu.ask(MEMORY, &unmap).unwrap().batch;
        cpu.world.tables(|tables| tables.batches.release(batch, &CpuSet::EMPTY));
        batch
    };
    explore(move |world| model(world, 1, 1, real_flush, unmap));
}

/// The steps of a flush.
#[derive(Clone, Copy)]
enum Step {
    Execute,
    Clear,
    Pay,
}
use Step::{Clear, Execute, Pay};

/// What `flush_if_wanted` does, in any order.
fn flush_in_order(cpu: &Cpu, steps: [Step; 3]) {
    let shared = &cpu.world.kernel.cpus[cpu.number];
    while shared.flush_wanted.swap(false) {
        for step in steps {
            match step {
                Execute => cpu.here().machine.write_back(false),
                Clear => shared.ran.store(0, Ordering::SeqCst),
                Pay => cpu.world.tables(|tables| {
                    if pay(tables, cpu.number, false) > 0 {
                        cpu.world.board.paid.notify();
                    }
                }),
            }
        }
    }
}

/// So what the next two find is found because of the order, and not for how the page is taken.
#[test]
fn the_kernels_own_order_passes() {
    for unmap in [flush_and_unmap, real_unmap] {
        explore(move |world| model(world, 2, 1, |cpu| flush_in_order(cpu, [Execute, Clear, Pay]), unmap));
    }
}

#[test]
#[should_panic = "a free frame has a dirty line"]
fn clearing_before_executing_is_found() {
    explore(|world| model(world, 1, 1, |cpu| flush_in_order(cpu, [Clear, Execute, Pay]), flush_and_unmap));
}

#[test]
#[should_panic = "a free frame has a dirty line"]
fn paying_before_executing_is_found() {
    explore(|world| model(world, 2, 1, |cpu| flush_in_order(cpu, [Pay, Execute, Clear]), real_unmap));
}

#[test]
#[should_panic = "a free frame has a dirty line"]
fn clearing_the_row_of_another_cpu_is_found() {
    let unmap = |cpu: &Cpu, page| {
        cpu.world.kernel.cpus[1].ran.store(0, Ordering::SeqCst);
        real_unmap(cpu, page)
    };
    explore(move |world| model(world, 1, 1, real_flush, unmap));
}

/// What `GuestUnmap` does to one page; the rows are looked at before the shoot-down or after it.
fn unmap_looking(cpu: &Cpu, page: u64, early: bool) -> BatchId {
    let look = || {
        CpuSet::of(
            (0..2)
                .map(CpuId)
                .filter(|cpu_id| cpu.world.kernel.cpus[usize::from(cpu_id.0)].ran.load(Ordering::SeqCst) & 1 == 1),
        )
    };
    cpu.world.tables(|tables| {
        let machine = cpu.here().machine;
        let pool = &mut tables.books[0].stock;
        machine.nested_unmap(Frame(1), Gfn(page), Gfn(page + 1), pool).unwrap();
        let before = look();
        let vcpu = cpu.world.kernel.context(VCPU);
        vcpu.make_stale();
        let in_guest = vcpu.world();
        while in_guest & 1 == 1 && vcpu.world() == in_guest {
            loom::thread::yield_now();
        }
        let owed = if early { before } else { look() };
        let batch = tables.batches.open(VM, VmKind::Sev, &owed, Payable::WriteBack).unwrap();
        tables.frames.turn(Frame(FIRST + page), 1, FrameState::Owned, Frames::quarantined(batch));
        tables.batches.join(batch, 1);
        batch
    })
}

#[test]
fn looking_at_the_rows_after_the_shoot_down_passes() {
    explore(|world| model(world, 1, 1, real_flush, |cpu, page| unmap_looking(cpu, page, false)));
}

#[test]
#[should_panic = "a free frame has a dirty line"]
fn looking_at_the_rows_before_the_shoot_down_is_found() {
    explore(|world| model(world, 1, 1, real_flush, |cpu, page| unmap_looking(cpu, page, true)));
}
