//! Services in the simulation: each life is a coroutine that runs from one system call to the next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use caisson_core::cpu::UserFrame;
use caisson_proto::abi::{KERNEL_SLOT, Lease, Status, Syscall};
use caisson_proto::addr::{Sender, ServiceId};
use caisson_proto::layout;
use caisson_proto::wire::{Field, Reply, Request, Words};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::programs;
use crate::stacks;
use crate::world::{Pending, World};

/// Bytes of a coroutine's stack. The services' states are made on it before they go to the heap.
const STACK: usize = 2 << 20;

/// What lets a service go on.
pub enum Wake {
    /// These registers.
    Run(UserFrame),
    /// Nothing any more: it is dead. System calls end at once from now on, and it comes to its end.
    Stop,
}

type Life = Coroutine<Wake, UserFrame, ()>;

/// The programs by slot.
#[derive(Default)]
pub struct Lives {
    slots: RefCell<Vec<Option<Life>>>,
    /// Slots whose program is to be made anew at the next entry.
    fresh: RefCell<Vec<bool>>,
    dead: RefCell<Vec<Life>>,
}

impl Lives {
    /// Nobody lives.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: RefCell::new((0..slots).map(|_| None).collect()),
            fresh: RefCell::new(vec![false; slots]),
            dead: RefCell::default(),
        }
    }

    /// The next entry begins a new life.
    pub fn begin(&self, slot: usize) {
        if let Some(fresh) = self.fresh.borrow_mut().get_mut(slot) {
            *fresh = true;
        }
    }

    /// Runs a service until its next system call, whose registers it returns.
    pub fn run(&self, world: &Rc<World>, slot: usize, frame: UserFrame) -> Option<UserFrame> {
        let fresh = self.fresh.borrow_mut().get_mut(slot).is_some_and(std::mem::take);
        let taken = self.slots.borrow_mut().get_mut(slot).and_then(Option::take);
        let mut life = if fresh {
            self.dead.borrow_mut().extend(taken);
            world.check(frame.rip == layout::IMAGE && frame.rsp == layout::STACK_TOP, || {
                format!("slot {slot} begins at {:#x}", frame.rip)
            });
            spawn(world, slot)
        } else {
            taken?
        };
        let result = life.resume(Wake::Run(frame));
        match result {
            CoroutineResult::Yield(call) => {
                if let Some(place) = self.slots.borrow_mut().get_mut(slot) {
                    *place = Some(life);
                }
                Some(call)
            }
            CoroutineResult::Return(()) => None,
        }
    }

    /// Lets every program come to its end.
    pub fn end(&self) {
        let all: Vec<Life> = self
            .slots
            .borrow_mut()
            .iter_mut()
            .filter_map(Option::take)
            .chain(self.dead.borrow_mut().drain(..))
            .collect();
        // A system call after the end of its life returns at once, so a program that ends at all ends here.
        all.into_iter().for_each(|life| stacks::end(life, STACK, 1, || Wake::Stop));
    }
}

fn spawn(world: &Rc<World>, slot: usize) -> Life {
    let world = Rc::clone(world);
    let main = move |yielder: &Yielder<Wake, UserFrame>, wake: Wake| {
        if let Wake::Run(frame) = wake {
            let id = ServiceId::from_bits(world.kernel.service(slot).id.get().bits());
            world.check(Sender((frame.rax >> 32) as u32) == Sender::START, || {
                format!("slot {slot} begins with a message of {:#x}", frame.rax >> 32)
            });
            let sys = Sys {
                world: &world,
                slot,
                id,
                yielder,
                known: RefCell::new(vec![0; world.manifest.services.len()]),
                stopped: Cell::new(false),
                rip: Cell::new(layout::IMAGE),
            };
            programs::main(&sys);
        }
    };
    stacks::spawn(STACK, main)
}

/// A service's way to the kernel: what `services/rt` is on the machine.
pub struct Sys<'a> {
    /// The machine, to look at and to check against.
    pub world: &'a Rc<World>,
    /// Its slot.
    pub slot: usize,
    /// Its id.
    pub id: ServiceId,
    yielder: &'a Yielder<Wake, UserFrame>,
    known: RefCell<Vec<u16>>,
    stopped: Cell<bool>,
    rip: Cell<u64>,
}

/// A message.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// The sender field.
    pub sender: Sender,
    /// The words.
    pub words: Words,
    /// The pages lent with it.
    pub lease: Option<Lease>,
}

impl Sys<'_> {
    /// Whether this life is over.
    pub fn stopped(&self) -> bool {
        self.stopped.get()
    }

    fn syscall(&self, rax: u64, lease: u64, words: &Words) -> UserFrame {
        let over = UserFrame { rax: Status::Died as u64, ..UserFrame::default() };
        if self.stopped() {
            return over;
        }
        self.rip.set(self.rip.get() + 2);
        let rsp = layout::STACK_TOP - 8 * u64::from(self.id.generation()) - 64;
        let call = UserFrame { rax, words: *words, rbx: lease, rip: self.rip.get(), rsp };
        match self.yielder.suspend(call) {
            Wake::Run(frame) => {
                self.world.check((frame.rip, frame.rsp) == (call.rip, rsp), || {
                    format!("slot {} goes on at {:#x} instead of {:#x}", self.slot, frame.rip, call.rip)
                });
                frame
            }
            Wake::Stop => {
                self.stopped.set(true);
                over
            }
        }
    }

    /// Null system call.
    pub fn null(&self) {
        self.syscall(Syscall::Null as u64, 0, &[0; 8]);
    }

    /// Calls a service under this id.
    pub fn call_id(&self, id: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let pending = Pending { target: id, words: *words, delivered: false, answer: None };
        if !self.stopped() {
            self.world.calls.borrow_mut().insert(self.slot, pending);
        }
        let rax = Syscall::Call as u64 | u64::from(id.bits()) << 16;
        let returned = self.syscall(rax, lease.map_or(0, Lease::to_word), words);
        let status = Status::from_word(returned.rax & 0xffff).unwrap_or(Status::Malformed);
        if !self.stopped() {
            self.returned(id, status, &returned.words);
        }
        (status, returned.words)
    }

    /// Checks that the answer is the one that was given, or that there can't be one.
    fn returned(&self, id: ServiceId, status: Status, words: &Words) {
        let world = self.world;
        let Some(pending) = world.calls.borrow_mut().remove(&self.slot) else {
            return world.fail(|| format!("slot {} is answered twice", self.slot));
        };
        let present = world.kernel.service(id.index()).id.get();
        match pending.answer {
            Some(answer) if status != Status::Died => {
                world.answered.set(world.answered.get() + 1);
                world.check(answer == (status, *words), || {
                    format!("slot {} gets {status:?} {words:x?} for the answer {answer:x?}", self.slot)
                });
            }
            _ if status == Status::Died => {
                world.check(pending.delivered && present != id, || {
                    format!("slot {} hears that {id:?} died while it served; it is {present:?}", self.slot)
                });
            }
            _ => {
                let early = matches!(status, Status::Dead | Status::Downhill | Status::Denied | Status::BadLease);
                world.check(early && !pending.delivered, || {
                    format!("slot {} gets {status:?} from {id:?}, which didn't answer", self.slot)
                });
                let told = ServiceId::from_bits(words[0] as u32);
                world.check(status != Status::Dead || told.index() == id.index(), || {
                    format!("slot {} is told {told:?} instead of {id:?}", self.slot)
                });
            }
        }
    }

    /// The id under which a slot is known here.
    pub fn known(&self, slot: usize) -> ServiceId {
        ServiceId::new(slot as u16, self.known.borrow().get(slot).copied().unwrap_or(0))
    }

    /// Calls a service in the generation that is known here; learns the present one if that is dead.
    pub fn call_raw(&self, slot: usize, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let (status, words) = self.call_id(self.known(slot), words, lease);
        if status == Status::Dead
            && let Some(known) = self.known.borrow_mut().get_mut(slot)
        {
            *known = ServiceId::from_bits(words[0] as u32).generation();
        }
        (status, words)
    }

    /// A typed call.
    pub fn call<R: Request>(&self, slot: usize, request: &R) -> Result<R::Reply, Status> {
        let (status, words) = self.call_raw(slot, &request.encode(), None);
        match status {
            Status::Ok => R::Reply::decode(&words).map_err(|_| Status::Malformed),
            refused => Err(refused),
        }
    }

    /// A typed call that lends pages.
    pub fn call_lending<R: Request>(&self, slot: usize, request: &R, lease: Lease) -> Result<R::Reply, Status> {
        match self.call_raw(slot, &request.encode(), Some(lease)) {
            (Status::Ok, words) => R::Reply::decode(&words).map_err(|_| Status::Malformed),
            (refused, _) => Err(refused),
        }
    }

    /// A kernel operation, with a lease.
    pub fn ask_lending<R: Request>(&self, request: &R, lease: Option<Lease>) -> Result<R::Reply, Status> {
        self.ask_raw(&request.encode(), lease).and_then(|words| R::Reply::decode(&words).map_err(|_| Status::Malformed))
    }

    /// A kernel operation.
    pub fn ask<R: Request>(&self, request: &R) -> Result<R::Reply, Status> {
        self.ask_lending(request, None)
    }

    /// A kernel operation from its words.
    pub fn ask_raw(&self, words: &Words, lease: Option<Lease>) -> Result<Words, Status> {
        let rax = Syscall::Call as u64 | u64::from(KERNEL_SLOT) << 16;
        let returned = self.syscall(rax, lease.map_or(0, Lease::to_word), words);
        match Status::from_word(returned.rax & 0xffff) {
            Some(Status::Ok) => Ok(returned.words),
            status => Err(status.unwrap_or(Status::Malformed)),
        }
    }

    /// Rings.
    pub fn ring(&self, slot: usize, bits: u64) -> Result<(), Status> {
        let rax = Syscall::Ring as u64 | (slot as u64) << 16;
        match Status::from_word(self.syscall(rax, 0, &[bits, 0, 0, 0, 0, 0, 0, 0]).rax & 0xffff) {
            Some(Status::Ok) => Ok(()),
            status => Err(status.unwrap_or(Status::Malformed)),
        }
    }

    /// Ends this life.
    pub fn exit(&self, words: &Words) {
        self.syscall(Syscall::Exit as u64, 0, words);
        self.world.check(self.stopped(), || format!("slot {} goes on after its end", self.slot));
        self.stopped.set(true);
    }

    /// Replies and waits for the next message.
    pub fn reply_wait(&self, to: Sender, status: Status, words: &Words) -> Delivered {
        if let Some(service) = to.service()
            && !self.stopped()
            && let Some(pending) = self.world.calls.borrow_mut().get_mut(&service.index())
        {
            pending.answer = Some((status, *words));
        }
        let returned = self.syscall(Syscall::Reply as u64 | (status as u64) << 16, 0, words);
        let sender = Sender((returned.rax >> 32) as u32);
        Delivered { sender, words: returned.words, lease: Lease::from_word(returned.rbx).ok().flatten() }
    }
}
