//! What Caisson does: the kernel's own tables and rules, memory and notifier as they are, driven by a trace.
//!
//! Played here are a vmm, as far as it makes a VM and gives its memory back; the secure processor, which accepts
//! everything; and of sev-firmware its rule that ASIDs are recycled when a launch finds none free. vCPUs run where the
//! trace says, also where the kernel's scheduler wouldn't move them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use caisson_memory::Memory;
use caisson_notifier::Notifier;
use caisson_proto::abi::{MAX_VMS, Status, doorbell};
use caisson_proto::addr::{CpuId, Gfn, VmId};
use caisson_proto::kernel::{
    AsidBind, AsidInfo, AsidState, MailboxRing, MailboxTake, VmDestroy, VmKind, WriteBackInvalidate,
};
use caisson_proto::mailbox;
use caisson_proto::memory::{GiveBack, Populate, Reclaimed, VmMade, VmMake};
use caisson_proto::notifier::{Settle, Want};
use caisson_proto::wire::{Reply, Request};
use zerocopy::IntoBytes;

use crate::machine::SEV_ASIDS;
use crate::policy::{Cost, Meter};
use crate::system::{FIRMWARE, MEMORY, NOTIFIER, System};
use crate::trace::{CHUNK, Event, Time, Trace};

/// How often a vmm asks again for what memory can't give at once.
const ATTEMPTS: u32 = 4;

/// notifier's view of the kernel.
struct ForNotifier<'a>(&'a System);

impl caisson_notifier::Kernel for ForNotifier<'_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.0.ask(NOTIFIER, request)
    }
}

/// memory's view of the kernel and of notifier.
struct ForMemory<'a> {
    system: &'a System,
    notifier: &'a RefCell<Notifier>,
    /// What it posted to notifier.
    posted: VecDeque<Reclaimed>,
    /// It rang its own bell.
    again: bool,
}

impl caisson_memory::Kernel for ForMemory<'_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.system.ask(MEMORY, request)
    }
    fn post(&mut self, reclaimed: &Reclaimed) -> bool {
        self.posted.push_back(*reclaimed);
        true
    }
    fn settle(&mut self) {
        self.notifier.borrow_mut().handle(&Settle {}.encode(), &mut ForNotifier(self.system));
    }
    fn want(&mut self, frames: u64) {
        self.notifier.borrow_mut().handle(&Want { frames }.encode(), &mut ForNotifier(self.system));
    }
    fn settled(&mut self) {}
    fn again(&mut self) -> bool {
        self.again = true;
        true
    }
    fn later(&mut self) {
        self.again = true;
    }
}

/// A VM of the trace that is there.
#[derive(Clone, Copy)]
struct Here {
    vm: VmId,
    /// Slot of its vmm.
    vmm: usize,
}

struct Player<'a> {
    trace: &'a Trace,
    system: &'a System,
    memory: Box<Memory>,
    kernel: ForMemory<'a>,
    meter: Meter,
    now: Time,
    /// By number in the trace.
    vms: BTreeMap<usize, Here>,
    /// Where vCPUs are.
    cpus: BTreeMap<(usize, u8), u16>,
    vmms: Vec<usize>,
}

/// What Caisson costs on a trace, on a machine with so many frames.
///
/// # Errors
/// What it couldn't do, as a sentence: the trace can't be played to its end.
pub fn cost(trace: &Trace, frames: u64) -> Result<Cost, String> {
    let system = System::new(trace.cpus, frames);
    let notifier = RefCell::new(Notifier::new());
    let kernel = ForMemory { system: &system, notifier: &notifier, posted: VecDeque::new(), again: false };
    let mut player = Player {
        trace,
        system: &system,
        memory: Box::default(),
        kernel,
        meter: Meter::new(trace.cpus),
        now: 0,
        vms: BTreeMap::new(),
        cpus: BTreeMap::new(),
        vmms: (0..MAX_VMS).rev().collect(),
    };
    player.memory.start(trace.cpus, &mut player.kernel);
    for &(now, event) in &trace.events {
        player.now = now;
        player.play(event).map_err(|status| format!("{event:?} at {now} µs: {status:?}"))?;
        player.come_to_rest();
    }
    Ok(player.meter.cost())
}

impl Player<'_> {
    fn play(&mut self, event: Event) -> Result<(), Status> {
        match event {
            Event::Start(vm) => self.start(vm),
            Event::Stop(vm) => self.stop(vm),
            Event::Run(vm, vcpu, cpu) => {
                self.cpus.insert((vm, vcpu), cpu);
                self.system.enter(cpu, self.here(vm)?.vm.index(), vcpu);
                Ok(())
            }
            Event::Give(vm, first, count) => {
                let Here { vm, vmm } = self.here(vm)?;
                (first..first + count).try_for_each(|chunk| {
                    let give = GiveBack { vm, gfn: Gfn(chunk * CHUNK), pages: CHUNK };
                    self.ask_memory(vmm, &give).map(drop)
                })
            }
            Event::Take(vm, first, count) => self.populate(vm, first * CHUNK, count * CHUNK),
        }
    }

    fn here(&self, vm: usize) -> Result<Here, Status> {
        self.vms.get(&vm).copied().ok_or(Status::NotFound)
    }

    fn start(&mut self, number: usize) -> Result<(), Status> {
        let of = self.trace.vms[number];
        let vmm = self.vmms.pop().ok_or(Status::Exhausted)?;
        let cpu = CpuId(0);
        let make = VmMake {
            kind: VmKind::Sev,
            vcpus: of.vcpus,
            pages: of.pages,
            promised: of.pages,
            first_cpu: cpu,
            lowest_cpu: cpu,
        };
        let VmMade { vm } = self.ask_memory(vmm, &make)?;
        self.vms.insert(number, Here { vm, vmm });
        self.bind(vm)?;
        self.populate(number, 0, of.pages)
    }

    fn stop(&mut self, number: usize) -> Result<(), Status> {
        self.cpus.retain(|(vm, _), _| *vm != number);
        let Here { vm, vmm } = self.vms.remove(&number).ok_or(Status::NotFound)?;
        self.vmms.push(vmm);
        self.system.ask(MEMORY, &VmDestroy { vm })?;
        self.memory.doorbell(doorbell::VM_GONE, &mut self.kernel);
        Ok(())
    }

    fn populate(&mut self, number: usize, from: u64, pages: u64) -> Result<(), Status> {
        let Here { vm, vmm } = self.here(number)?;
        let mut chunks = (from..from + pages).step_by(CHUNK as usize);
        chunks.try_for_each(|gfn| {
            self.ask_memory(vmm, &Populate { vm, gfn: Gfn(gfn), pages: CHUNK, private: false }).map(drop)
        })
    }

    /// A vmm calls memory. If there isn't enough, it waits until what is going on has ended, and asks again.
    fn ask_memory<R: Request>(&mut self, vmm: usize, request: &R) -> Result<R::Reply, Status> {
        let mut status = Status::Busy;
        for _ in 0..ATTEMPTS {
            let words;
            (status, words) = self.memory.handle(self.system.service(vmm), &request.encode(), None, &mut self.kernel);
            self.come_to_rest();
            match status {
                Status::Ok => return R::Reply::decode(&words).map_err(|_| Status::Malformed),
                Status::Exhausted | Status::Busy => {}
                _ => break,
            }
        }
        Err(status)
    }

    /// sev-firmware gives a VM the lowest free ASID; without one, it recycles them.
    fn bind(&mut self, vm: VmId) -> Result<(), Status> {
        for _ in 0..2 {
            for asid in SEV_ASIDS.0..=SEV_ASIDS.1 {
                if self.system.ask(FIRMWARE, &AsidInfo { asid })?.state == AsidState::Free {
                    return self.system.ask(FIRMWARE, &AsidBind { vm, asid }).map(drop);
                }
            }
            self.system.ask(FIRMWARE, &WriteBackInvalidate {})?;
            self.come_to_rest();
            self.system.ask(FIRMWARE, &MailboxRing { command: mailbox::DF_FLUSH, vm: VmId::default() })?;
            self.system.host.answer();
            self.system.ask(FIRMWARE, &MailboxTake {})?;
        }
        Err(Status::Busy)
    }

    /// Everybody does what is to be done: notifier reads what memory posted, CPUs flush and go on in their guests, bells ring.
    fn come_to_rest(&mut self) {
        loop {
            let told = !self.kernel.posted.is_empty();
            while let Some(reclaimed) = self.kernel.posted.pop_front() {
                let kernel = &mut ForNotifier(self.system);
                self.kernel.notifier.borrow_mut().reclaimed(reclaimed.as_bytes(), kernel);
            }
            let flushed = self.system.flush();
            let executed = self.system.host.executed.take();
            for (cpu, wbinvd) in &executed {
                self.meter.execute(self.now, cpu.0, *wbinvd);
            }
            for ((vm, vcpu), at) in &self.cpus {
                if executed.iter().any(|(cpu, _)| cpu.0 == *at)
                    && let Some(here) = self.vms.get(vm)
                {
                    self.system.enter(*at, here.vm.index(), *vcpu);
                }
            }
            if !told && !flushed && executed.is_empty() && !std::mem::take(&mut self.kernel.again) {
                return;
            }
            self.kernel.notifier.borrow_mut().ticket(&mut ForNotifier(self.system));
            self.memory.doorbell(doorbell::TICKET, &mut self.kernel);
        }
    }
}
