//! A kernel: VMs, ASIDs, tickets and the timer. The mailbox is in `mailbox`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use caisson_proto::abi::Status;
use caisson_proto::addr::{CpuId, Gpa, ServiceId, Ticket, VmId};
use caisson_proto::kernel::*;
use caisson_proto::wire::{Done, Reply, Request, Words};
use caisson_qemu_psp::rmp::Entry;
use caisson_qemu_psp::{Asid, Config, Mailbox, Processor};
use caisson_sev_firmware::{Kernel, Lent, Note};

use crate::mailbox::Command;
use crate::psp::Machine as Board;

/// CPUs.
pub const CPUS: u16 = 4;
/// The lowest ASID of SEV VMs, and the highest of all.
pub const ASIDS: (u32, u32) = (5, 8);
/// Guest memory lies from here on.
const MEMORY: u64 = 1 << 20;
/// Frames given to the processor by `FrameDonate`: 2 MiB.
pub const DONATED: u64 = 8 << 20;
/// Where contexts are made.
pub const CONTEXTS: u64 = 11 << 20;

/// A page of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage {
    pub at: u64,
    pub private: bool,
}

/// A VM.
#[derive(Clone, Debug)]
pub struct Vm {
    pub id: VmId,
    pub handler: ServiceId,
    pub kind: VmKind,
    pub state: VmState,
    pub pages: BTreeMap<u64, GuestPage>,
    /// A vCPU is in its guest.
    pub running: bool,
    /// It has, or had, an ASID; it never gets another.
    pub bound: bool,
}

/// A row of the ASID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub state: AsidState,
    pub vm: VmId,
    pub kind: VmKind,
    pub handle: u64,
}

/// A row of nobody.
pub const FREE: Row = Row { state: AsidState::Free, vm: VmId::new(0x3ff, 0), kind: VmKind::Plain, handle: 0 };

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It isn't executed, and this is its status. With status 0 the processor lies.
    Fails(u16),
    /// It is executed, and this is told instead of its status.
    Lies(u16),
    /// It isn't executed, and this is told of the guest's handle.
    Handle(u32),
    /// It is never answered.
    Silent,
    /// The answer is one to another command.
    Other(u16),
    /// There is no answer, and nothing was asked.
    Lost,
}

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Wbinvd,
    Command(u16, u16),
}

pub struct Fake {
    pub now: u64,
    pub timer: u64,
    pub board: Board,
    pub processor: Processor,
    pub mailbox: Mailbox,
    pub vms: Vec<Vm>,
    pub rows: Vec<Row>,
    pub command: Option<Command>,
    /// A write-back under way: its ticket, and the ASIDs that it pays for.
    pub writing: Option<(Ticket, BTreeSet<u32>)>,
    pub tickets: u64,
    /// This CPU never answers.
    pub late: Option<CpuId>,
    pub faults: HashMap<u16, VecDeque<Fault>>,
    pub bells: Vec<ServiceId>,
    pub again: bool,
    pub notes: Vec<Note>,
    pub log: Vec<Event>,
    /// Pages whose plain lines were flushed.
    pub flushed_pages: u64,
    /// Contexts whose page is the processor's for good.
    pub leaked_pages: u64,
    /// Pages of the mailbox that are the processor's.
    pub lent: u64,
    /// At this command the mailbox is lent, and the command is refused.
    pub lends_some: Option<u16>,
    pub private_calls: Vec<u64>,
    /// Kernel operations that are refused, by number.
    pub refused: HashMap<u16, Status>,
    next_frame: u64,
    pub next_context: u64,
    pub snp: bool,
}

impl Fake {
    pub fn new() -> Self {
        Self {
            now: 1,
            timer: 0,
            board: Board::new(CPUS),
            processor: Processor::new(Config::emulated(CPUS, 1)),
            mailbox: Mailbox::new(),
            vms: Vec::new(),
            rows: vec![FREE; ASIDS.1 as usize],
            command: None,
            writing: None,
            tickets: 0,
            late: None,
            faults: HashMap::new(),
            bells: Vec::new(),
            again: false,
            notes: Vec::new(),
            log: Vec::new(),
            flushed_pages: 0,
            leaked_pages: 0,
            lent: 0,
            lends_some: None,
            private_calls: Vec::new(),
            refused: HashMap::new(),
            next_frame: MEMORY,
            next_context: CONTEXTS,
            snp: false,
        }
    }

    /// The machine as `MachineInfo` tells it.
    pub fn machine(features: Features) -> Machine {
        Machine {
            cpus: CPUS,
            tsc_khz: 1,
            features,
            frames: 4096,
            asids: 16,
            services: 8,
            sev_asids: ASIDS.0 << 16 | ASIDS.1,
        }
    }

    pub fn fault(&mut self, command: u16, fault: Fault) {
        self.faults.entry(command).or_default().push_back(fault);
    }

    pub fn row(&self, asid: u32) -> &Row {
        &self.rows[asid as usize - 1]
    }

    pub fn row_mut(&mut self, asid: u32) -> &mut Row {
        &mut self.rows[asid as usize - 1]
    }

    /// The ASID of a VM that has one.
    pub fn asid_of(&self, vm: VmId) -> Option<u32> {
        let held = |row: &Row| row.vm == vm && matches!(row.state, AsidState::Bound | AsidState::Active);
        self.rows.iter().position(held).map(|at| at as u32 + 1)
    }

    /// The row of a VM, also of one that has given its ASID up.
    pub fn row_of(&self, vm: VmId) -> Option<u32> {
        let row = |row: &Row| row.vm == vm && (row.state != AsidState::Free || row.handle != 0);
        self.rows.iter().position(row).map(|at| at as u32 + 1)
    }

    /// Makes a VM with so many shared pages from gfn 0 on, in one piece.
    pub fn vm(&mut self, slot: u16, handler: ServiceId, kind: VmKind, pages: u64) -> VmId {
        let generation = self.vms.iter().filter(|vm| vm.id.index() == usize::from(slot)).count() as u16;
        let id = VmId::new(slot, generation);
        let pages = (0..pages).map(|gfn| (gfn, GuestPage { at: self.frame(), private: false })).collect();
        self.vms.push(Vm { id, handler, kind, state: VmState::Alive, pages, running: false, bound: false });
        id
    }

    fn frame(&mut self) -> u64 {
        self.next_frame += 4096;
        if self.next_frame >= DONATED {
            self.next_frame = MEMORY;
        }
        self.next_frame - 4096
    }

    /// Swaps two pages' frames: what was one piece isn't any more.
    pub fn scatter(&mut self, vm: VmId, a: u64, b: u64) {
        let pages = &mut self.vm_mut(vm).expect("a VM").pages;
        let (first, second) = (pages[&a], pages[&b]);
        pages.insert(a, second);
        pages.insert(b, first);
    }

    pub fn vm_mut(&mut self, id: VmId) -> Option<&mut Vm> {
        self.vms.iter_mut().find(|vm| vm.id == id && vm.handler != GONE)
    }

    /// Its handler died.
    pub fn kill(&mut self, id: VmId) {
        self.vm_mut(id).expect("a VM").state = VmState::Dying;
    }

    /// memory is done with it.
    pub fn release(&mut self, id: VmId) {
        let vm = self.vm_mut(id).expect("a VM");
        (vm.handler, vm.pages) = (GONE, BTreeMap::new());
        for row in self.rows.iter_mut().filter(|row| row.vm == id && row.state == AsidState::Bound) {
            row.state = AsidState::Dirty;
        }
    }

    /// Ends a write-back that is under way, if every CPU answers. Whether anything happened.
    pub fn complete_write_back(&mut self) -> bool {
        if self.late.is_some() {
            return false;
        }
        let Some((_, paid)) = self.writing.take() else { return false };
        self.board.wbinvd();
        self.log.push(Event::Wbinvd);
        for asid in paid {
            let row = self.row_mut(asid);
            if row.state == AsidState::Dirty {
                row.state = AsidState::Flushed;
            }
        }
        true
    }

    fn serve(&mut self, words: &Words) -> Result<Words, Status> {
        if let Some(status) = self.refused.get(&(words[0] as u16)) {
            return Err(*status);
        }
        Ok(match KernelCall::decode(words).expect("a kernel operation") {
            KernelCall::TimerSet(set) => {
                self.timer = set.at.0;
                Done {}.encode()
            }
            KernelCall::VmInfo(VmInfo { slot }) => {
                let of_slot = |vm: &&Vm| vm.id.index() >= usize::from(slot) && vm.handler != GONE;
                let vm = self.vms.iter().filter(of_slot).min_by_key(|vm| vm.id.index()).ok_or(Status::NotFound)?;
                VmReport {
                    vm: vm.id,
                    handler: vm.handler,
                    kind: vm.kind,
                    state: vm.state,
                    pages: vm.pages.len() as u64,
                    kernel_frames: 0,
                    next: vm.id.index() as u16 + 1,
                    sequence: Default::default(),
                }
                .encode()
            }
            KernelCall::AsidInfo(AsidInfo { asid }) => {
                let row = (asid > 0).then(|| self.rows.get(asid as usize - 1)).flatten().ok_or(Status::NotFound)?;
                AsidReport { state: row.state, vm: row.vm, kind: row.kind, handle: row.handle }.encode()
            }
            KernelCall::AsidBind(AsidBind { vm, asid }) => self.bind(vm, asid)?,
            KernelCall::WriteBackInvalidate(_) => {
                if self.writing.is_some() {
                    return Err(Status::Busy);
                }
                self.tickets += 1;
                let dirty = (1..).zip(&self.rows).filter(|(_, row)| row.state == AsidState::Dirty).map(|(at, _)| at);
                self.writing = Some((Ticket(self.tickets), dirty.collect()));
                Accepted { ticket: Ticket(self.tickets) }.encode()
            }
            KernelCall::TicketCheck(TicketCheck { ticket }) => {
                let open = self.writing.as_ref().is_some_and(|(open, _)| *open == ticket);
                TicketState { done: !open, late: self.late.unwrap_or_default() }.encode()
            }
            KernelCall::GuestConvert(GuestConvert { vm, gfn, pages, private: true, large: false }) => {
                self.guest_private(vm, gfn.0, pages)?
            }
            other => panic!("{other:?} isn't sev-firmware's"),
        })
    }

    fn bind(&mut self, vm: VmId, asid: u32) -> Result<Words, Status> {
        let vm = self.vm_mut(vm).ok_or(Status::NotFound)?;
        let (id, kind, state, bound) = (vm.id, vm.kind, vm.state, vm.bound);
        let range = if kind == VmKind::Sev { ASIDS.0..=ASIDS.1 } else { 1..=ASIDS.0 - 1 };
        if !range.contains(&asid) {
            return Err(Status::Range);
        }
        if bound || kind == VmKind::Plain || state == VmState::Dying {
            return Err(Status::State);
        }
        match self.row(asid).state {
            AsidState::Free => {}
            AsidState::Bound | AsidState::Active => return Err(Status::Busy),
            AsidState::Dirty | AsidState::Flushed => return Err(Status::TooWeak),
        }
        if let Some(vm) = self.vm_mut(id) {
            vm.bound = true;
        }
        *self.row_mut(asid) = Row { state: AsidState::Bound, vm: id, kind, handle: 0 };
        Ok(Done {}.encode())
    }

    fn guest_private(&mut self, vm: VmId, gfn: u64, count: u64) -> Result<Words, Status> {
        let asid = self.asid_of(vm);
        let vm = self.vm_mut(vm).ok_or(Status::NotFound)?;
        if count == 0 || count > 512 {
            return Err(Status::Range);
        }
        let shared = |gfn| vm.pages.get(&gfn).is_some_and(|page: &GuestPage| !page.private);
        if vm.kind == VmKind::Plain || vm.state == VmState::Dying || !(gfn..gfn + count).all(shared) {
            return Err(Status::State);
        }
        let snp = vm.kind == VmKind::SevSnp;
        // The RMP names the ASID.
        let asid = if snp { asid.ok_or(Status::State)? } else { 0 };
        let mut frames = Vec::new();
        for (gfn, page) in vm.pages.range_mut(gfn..gfn + count) {
            page.private = true;
            frames.push((*gfn, page.at));
        }
        self.private_calls.push(count);
        self.flushed_pages += count;
        for (gfn, at) in frames.into_iter().filter(|_| snp) {
            let gpa = Gpa(gfn << 12);
            *self.board.entry(at) =
                Entry { immutable: false, ..Entry::pre_guest(Asid(asid as u16), gpa, Default::default()) };
        }
        Ok(Done {}.encode())
    }
}

/// The handler of a VM whose id is dead.
pub const GONE: ServiceId = ServiceId::new(0xfff, 0);

impl Kernel for Fake {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.serve(&request.encode()).map(|words| R::Reply::decode(&words).expect("a reply"))
    }

    fn lend<R: Request>(&mut self, request: &R, pages: &mut Lent, count: usize) -> Result<R::Reply, Status> {
        let words = request.encode();
        if let Some(status) = self.refused.get(&(words[0] as u16)) {
            return Err(*status);
        }
        let bytes = &mut pages.0[..count * 4096];
        let words = match KernelCall::decode(&words).expect("a kernel operation") {
            KernelCall::MailboxRing(ring) => self.ring(ring.command, ring.vm, bytes)?,
            KernelCall::MailboxTake(_) => self.take(bytes),
            other => panic!("{other:?} takes no pages"),
        };
        Ok(R::Reply::decode(&words).expect("a reply"))
    }

    fn bell(&mut self, client: ServiceId) {
        self.bells.push(client);
    }

    fn again(&mut self) -> bool {
        self.again = true;
        true
    }

    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
}
