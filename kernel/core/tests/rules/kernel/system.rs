//! A small system on the fake machine: services by slot, CPUs, and what a test does in their place.

use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use caisson_core::context::Context;
use caisson_core::cpu::{Local, UserFrame};
use caisson_core::frames::{FrameTable, Frames};
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_core::kernel::Kernel;
use caisson_core::schedule::Choice;
use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, Syscall};
use caisson_proto::addr::{CpuId, Frame, Sender, ServiceId, VPage, VcpuId, VmId};
use caisson_proto::bundle::ServiceRecord;
use caisson_proto::kernel::FrameState;
use caisson_proto::kernel::{
    AsidBind, Caps, MailboxReport, MailboxRing, MailboxTake, TablesDonate, VCPU_FRAMES, VcpuCreate, VcpuRun, VmCreate,
    VmKind,
};
use caisson_proto::mailbox;
use caisson_proto::vcpu::{Action, Resume};
use caisson_proto::wire::{Field, Reply, Request, Words};
use zerocopy::FromZeros;

use super::fake::{Fake, exit};

pub const SUPERVISOR: usize = 0;
pub const VMM: usize = 1;
pub const OTHER_VMM: usize = 2;
pub const MEMORY: usize = 3;
pub const NOTIFIER: usize = 4;
pub const FIRMWARE: usize = 5;
pub const PROCESSOR: usize = 6;
/// Services in the system.
pub const SERVICES: usize = 7;
/// Frames of the machine.
pub const FRAMES: usize = 4096;
/// The frames of the kernel's own.
pub const KERNEL_FRAMES: u64 = 40;

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In the service of this slot.
    User(usize),
    /// About to enter this guest.
    Guest(Context),
    /// Waiting for an interrupt.
    Idle,
}

/// What a service finds in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Got {
    pub status: Status,
    pub sender: Sender,
    pub words: Words,
    pub lease: u64,
}

/// The system.
pub struct System {
    pub kernel: Rc<Kernel>,
    pub machine: Fake,
    pub locals: Vec<Rc<Local>>,
    pub frames: Vec<UserFrame>,
}

/// What sev-firmware lends.
pub const LENT: Lease = Lease { page: VPage(0x400), pages: 9, write: true };

fn record(may_call: &[usize], caps: Caps, is_vmm: bool) -> ServiceRecord {
    ServiceRecord {
        may_call: may_call.iter().fold(0, |set, slot| set | 1 << slot),
        may_ring: !0,
        caps: caps.bits(),
        budget_ms: 100,
        is_vmm: u32::from(is_vmm),
        ..ServiceRecord::new_zeroed()
    }
}

pub fn words(first: u64) -> Words {
    [first, 0, 0, 0, 0, 0, 0, 0]
}

impl System {
    /// Nothing started yet.
    pub fn cold(cpus: usize) -> Self {
        let kernel: Rc<Kernel> = Rc::new(Kernel::new());
        let records = [
            record(&[], Caps::SUPERVISE | Caps::TIMER, false),
            record(&[MEMORY, NOTIFIER], Caps::VCPUS | Caps::TIMER, true),
            record(&[MEMORY, NOTIFIER], Caps::VCPUS | Caps::TIMER, true),
            record(&[NOTIFIER], Caps::FRAMES, false),
            record(&[], Caps::WRITEBACK, false),
            record(&[], Caps::FIRMWARE, false),
            record(&[], Caps::SILICON, false),
        ];
        let entries: Vec<AtomicU64> = (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
        let table = FrameTable::new(entries.leak());
        table.declare(Frame(0), FRAMES as u64, Frames::free(true));
        table.declare(Frame(0), KERNEL_FRAMES, Frames::plain(FrameState::Kernel));
        kernel.configure(records.iter(), cpus, table);
        Self {
            kernel,
            machine: Fake::with_processor(),
            locals: (0..cpus).map(|cpu| Rc::new(Local::new(CpuId(cpu as u16)))).collect(),
            frames: vec![UserFrame::default(); cpus],
        }
    }

    /// Every service started and waiting; all CPUs idle.
    pub fn new(cpus: usize) -> Self {
        let mut system = Self::cold(cpus);
        for slot in (0..SERVICES).rev() {
            system.here(0).restart(slot).unwrap();
            assert_eq!(system.pick(0), At::User(slot));
            assert_eq!(system.reply(0, Status::Ok, [0; 8]), At::Idle);
        }
        system.machine.events.borrow_mut().clear();
        system
    }

    pub fn here(&self, cpu: usize) -> Here<'_, &Fake> {
        Here { kernel: &self.kernel, local: &self.locals[cpu], machine: &self.machine }
    }

    pub fn id(&self, slot: usize) -> ServiceId {
        self.kernel.service(slot).id.get()
    }

    /// Goes on on a CPU.
    pub fn settle(&mut self, cpu: usize, next: Next) -> At {
        if next == Next::User { self.at_user(cpu) } else { self.pick(cpu) }
    }

    fn at_user(&self, cpu: usize) -> At {
        let slot = usize::from(self.locals[cpu].service.get());
        assert_eq!(self.machine.space.get(), Some(slot), "another space is loaded");
        At::User(slot)
    }

    pub fn pick(&mut self, cpu: usize) -> At {
        let mut frame = self.frames[cpu];
        let choice = self.here(cpu).pick(&mut frame);
        self.frames[cpu] = frame;
        match choice {
            Choice::User => self.at_user(cpu),
            Choice::Guest(context) => At::Guest(context),
            Choice::Idle => At::Idle,
        }
    }

    /// A system call of the service that is on a CPU.
    pub fn syscall(&mut self, cpu: usize, rax: u64, rbx: u64, words: Words) -> At {
        let slot = self.locals[cpu].service.get();
        self.machine.space.set(Some(usize::from(slot)));
        let mut frame = UserFrame { rax, words, rbx, rip: 0x1000 + u64::from(slot), rsp: 0x2000 };
        let next = self.here(cpu).syscall(&mut frame);
        self.frames[cpu] = frame;
        self.settle(cpu, next)
    }

    pub fn call_id(&mut self, cpu: usize, id: ServiceId, lease: u64, words: Words) -> At {
        self.syscall(cpu, Syscall::Call as u64 | u64::from(id.bits()) << 16, lease, words)
    }

    pub fn call(&mut self, cpu: usize, slot: usize, words: Words) -> At {
        self.call_id(cpu, self.id(slot), 0, words)
    }

    pub fn reply(&mut self, cpu: usize, status: Status, words: Words) -> At {
        self.syscall(cpu, Syscall::Reply as u64 | (status as u64) << 16, 0, words)
    }

    pub fn resume(&mut self, cpu: usize, action: Action, deadline: u64) -> At {
        self.reply(cpu, Status::Ok, Resume { action, deadline, ..Resume::at(0, 0) }.to_words())
    }

    pub fn ring(&mut self, cpu: usize, slot: usize, bits: u64) -> At {
        self.syscall(cpu, Syscall::Ring as u64 | (slot as u64) << 16, 0, words(bits))
    }

    pub fn exit(&mut self, cpu: usize, code: u64) -> At {
        self.syscall(cpu, Syscall::Exit as u64, 0, words(code))
    }

    /// What the service on a CPU finds in its registers.
    pub fn got(&self, cpu: usize) -> Got {
        let frame = self.frames[cpu];
        Got {
            status: Status::from_word(frame.rax & 0xffff).unwrap(),
            sender: Sender((frame.rax >> 32) as u32),
            words: frame.words,
            lease: frame.rbx,
        }
    }

    /// A kernel operation with a lease.
    pub fn ask_lending<R: Request>(
        &mut self, cpu: usize, request: &R, lease: Option<Lease>,
    ) -> Result<R::Reply, Status> {
        let slot = usize::from(self.locals[cpu].service.get());
        let rax = Syscall::Call as u64 | u64::from(KERNEL_SLOT) << 16;
        let at = self.syscall(cpu, rax, lease.map_or(0, Lease::to_word), request.encode());
        assert_eq!(at, At::User(slot), "a kernel operation doesn't switch");
        match self.got(cpu).status {
            Status::Ok => Ok(R::Reply::decode(&self.got(cpu).words).unwrap()),
            status => Err(status),
        }
    }

    pub fn ask<R: Request>(&mut self, cpu: usize, request: &R) -> Result<R::Reply, Status> {
        self.ask_lending(cpu, request, None)
    }

    /// Makes a service run on an idle CPU, for its doorbell.
    pub fn awake(&mut self, cpu: usize, slot: usize) {
        self.here(cpu).ring(slot, 1);
        assert_eq!(self.pick(cpu), At::User(slot));
    }

    /// Asks for a kernel operation on behalf of a service, from an idle CPU.
    pub fn as_service<R: Request>(&mut self, slot: usize, request: &R) -> Result<R::Reply, Status> {
        self.as_lender(slot, request, None)
    }

    /// The same, with a lease.
    pub fn as_lender<R: Request>(
        &mut self, slot: usize, request: &R, lease: Option<Lease>,
    ) -> Result<R::Reply, Status> {
        self.awake(0, slot);
        let answer = self.ask_lending(0, request, lease);
        let at = self.reply(0, Status::Ok, [0; 8]);
        self.drain(0, at);
        answer
    }

    /// Lets services on a CPU take their doorbells and do nothing about them.
    pub fn drain(&mut self, cpu: usize, mut at: At) {
        while matches!(at, At::User(_)) {
            at = self.reply(cpu, Status::Ok, [0; 8]);
        }
    }

    /// A CPU does what others want flushed; its services take their doorbells.
    pub fn flush(&mut self, cpu: usize) {
        self.here(cpu).flush_if_wanted();
        let at = self.pick(cpu);
        self.drain(cpu, at);
    }

    /// A VM of `handler` with `vcpus` vCPUs on CPU 0 and so on, from frame `first` on.
    pub fn vm(&mut self, handler: usize, kind: VmKind, vcpus: u8, first: u64) -> VmId {
        let cpus = self.locals.len() as u16;
        let create = VmCreate { handler: self.id(handler), kind, root: Frame(first) };
        let vm = self.as_service(MEMORY, &create).unwrap().vm;
        self.as_service(MEMORY, &TablesDonate { vm, frame: Frame(first + 1), count: 32 }).unwrap();
        for index in 0..vcpus {
            let frame = Frame(first + 40 + u64::from(index) * VCPU_FRAMES);
            let create = VcpuCreate { vcpu: VcpuId { vm, index }, cpu: CpuId(u16::from(index) % cpus), frame };
            self.as_service(MEMORY, &create).unwrap();
        }
        vm
    }

    /// sev-firmware rings a command with this buffer.
    pub fn ring_processor(&mut self, command: u16, vm: VmId, buffer: &[u64]) -> Result<(), Status> {
        self.machine.compose(buffer);
        // Data would be written where pages are perhaps the processor's.
        let pages = if command == mailbox::SNP_PAGE_RECLAIM { 1 } else { LENT.pages };
        self.as_lender(FIRMWARE, &MailboxRing { command, vm }, Some(Lease { pages, ..LENT })).map(|_| ())
    }

    /// The processor answers with a status and, in the buffer's first word, this; sev-firmware takes it.
    pub fn answered(&mut self, status: u16, word: u64) -> MailboxReport {
        let first = self.machine.command()[0];
        self.machine.compose(&[if word == 0 { first } else { word }]);
        self.machine.answer(status);
        self.as_lender(FIRMWARE, &MailboxTake {}, Some(LENT)).unwrap()
    }

    /// Rings a command that succeeds.
    pub fn command(&mut self, command: u16, vm: VmId) {
        self.ring_processor(command, vm, &[]).unwrap();
        assert_eq!(self.answered(0, 0).status, 0);
    }

    /// Launches a guest: binds the VM to an ASID, which has to be free, and activates it with this handle.
    pub fn activate(&mut self, vm: VmId, asid: u32, handle: u64) {
        self.as_service(FIRMWARE, &AsidBind { vm, asid }).unwrap();
        self.ring_processor(mailbox::LAUNCH_START, vm, &[]).unwrap();
        self.answered(0, handle);
        self.command(mailbox::ACTIVATE, vm);
    }

    /// Lets a vCPU run. CPU 0 must be idle; afterwards it is about to enter the guest if the vCPU is at home there.
    pub fn run(&mut self, handler: usize, vcpu: VcpuId) {
        self.as_service(handler, &VcpuRun { vcpu }).unwrap();
    }

    /// Enters the guest and leaves it with an exit code.
    pub fn guest_exit(&mut self, cpu: usize, vcpu: Context, code: u16) -> At {
        assert!(self.here(cpu).entering(vcpu));
        self.here(cpu).context(vcpu).leave();
        let caisson_core::context::Kind::Vcpu(_, index) = vcpu.kind() else { panic!("no vCPU") };
        let mut frame = self.frames[cpu];
        let next = self.here(cpu).vm_exit(&mut frame, vcpu, &exit(index as u8, code));
        self.frames[cpu] = frame;
        self.settle(cpu, next)
    }
}
