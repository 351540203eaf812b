//! The system-call stubs. The registers are those of `ipc-proto/src/abi.rs`.

use core::arch::asm;
use core::sync::atomic::{AtomicU16, Ordering};

use caisson_proto::abi::{KERNEL_SLOT, Lease, MAX_LEASE_PAGES, MAX_SERVICES, Status, Syscall};
use caisson_proto::addr::{PAGE_SIZE, Sender, ServiceId, VPage};
use caisson_proto::supervisor::ExitKind;
use caisson_proto::wire::{Field, Reply, Request, Words};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: usize = PAGE_SIZE as usize;

/// What a system call came back with.
struct Returned {
    rax: u64,
    lease: u64,
    words: Words,
}

/// The one `syscall` instruction.
#[inline]
fn syscall(rax: u64, lease: u64, words: &Words) -> Returned {
    let mut returned = Returned { rax, lease, words: *words };
    let [w0, w1, w2, w3, w4, w5, w6, w7] = &mut returned.words;
    // SAFETY: the kernel returns to the next instruction with this stack pointer and writes no memory of this
    // service except leased pages that the caller lent for writing. rbx and rbp, which asm! can't name, are saved
    // on the stack; every other register that the ABI lets the kernel change is an output or a clobber.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rbx, rcx",
            "syscall",
            "mov rcx, rbx",
            "pop rbp",
            "pop rbx",
            inout("rax") returned.rax,
            inout("rcx") returned.lease,
            inout("rdi") *w0,
            inout("rsi") *w1,
            inout("rdx") *w2,
            inout("r10") *w3,
            inout("r8") *w4,
            inout("r9") *w5,
            inout("r12") *w6,
            inout("r13") *w7,
            out("r11") _,
            out("r14") _,
            out("r15") _,
        );
    }
    returned
}

/// The generation of each service as far as this one knows it.
static GENERATIONS: [AtomicU16; MAX_SERVICES] = [const { AtomicU16::new(0) }; MAX_SERVICES];

/// The id under which the service in `slot` is called from here. The kernel's slot has none, and the kernel ignores it.
#[inline(always)]
pub fn known_id(slot: u16) -> ServiceId {
    ServiceId::new(slot, GENERATIONS[usize::from(slot) % MAX_SERVICES].load(Ordering::Relaxed))
}

fn number(call: Syscall, upper: u16) -> u64 {
    call as u64 | u64::from(upper) << 16
}

fn status(rax: u64) -> Status {
    Status::from_word(rax & 0xffff).unwrap_or(Status::Malformed)
}

/// Calls the service in `slot`, or the kernel, and waits for the reply.
///
/// The call goes to the generation that this service knows. If that is [`Status::Dead`], the present one is known
/// from then on: whoever gets `Dead` sends what only it knows once more, and goes on.
#[inline]
pub fn call_raw(slot: u16, words: &Words, lease: Option<Lease>) -> (Status, Words) {
    let rax = Syscall::Call as u64 | u64::from(known_id(slot).bits()) << 16;
    let returned = syscall(rax, lease.map_or(0, Lease::to_word), words);
    if returned.rax & 0xffff == Status::Dead as u64 && slot != KERNEL_SLOT {
        let id = ServiceId::from_bits(returned.words[0] as u32);
        if let Some(known) = GENERATIONS.get(id.index()) {
            known.store(id.generation(), Ordering::Relaxed);
        }
    }
    (status(returned.rax), returned.words)
}

/// Calls the service in `slot` with a typed request.
///
/// # Errors
/// What the service replied; `Malformed` also if the reply is none of this request.
#[inline]
pub fn call<R: Request>(slot: u16, request: &R) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(slot, &request.encode(), None))
}

/// Asks the kernel for one of its operations.
///
/// # Errors
/// What the kernel refused it for.
#[inline]
pub fn kernel<R: Request>(request: &R) -> Result<R::Reply, Status> {
    call(KERNEL_SLOT, request)
}

/// Like [`kernel`], with the reply's words too when it was refused: `Dead` has the present id in word 0.
///
/// # Errors
/// Status and words of the refusal.
pub fn kernel_words<R: Request>(request: &R) -> Result<R::Reply, (Status, Words)> {
    let (status, words) = call_raw(KERNEL_SLOT, &request.encode(), None);
    decode::<R>((status, words)).map_err(|status| (status, words))
}

/// Like [`kernel`], lending a page for the kernel to read.
///
/// # Errors
/// What the kernel refused it for.
pub fn kernel_lend<R: Request>(request: &R, page: &LeasePage) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(KERNEL_SLOT, &request.encode(), Some(page.lease())))
}

/// Like [`kernel`], lending on what was lent to this service, for the kernel to read.
///
/// # Errors
/// What the kernel refused it for.
pub fn kernel_relend<R: Request>(request: &R, lease: Lease) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(KERNEL_SLOT, &request.encode(), Some(Lease { write: false, ..lease })))
}

/// Like [`kernel`], lending a page for the kernel to write.
///
/// # Errors
/// What the kernel refused it for.
pub fn kernel_borrow<R: Request>(request: &R, page: &mut LeasePage) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(KERNEL_SLOT, &request.encode(), Some(Lease { write: true, ..page.lease() })))
}

/// A lease of the first pages of a value, so many that `bytes` of it are lent. Nothing else lies in them.
fn lease_of<T>(value: *const T, bytes: usize, write: bool) -> Lease {
    const { assert!(align_of::<T>() == PAGE && size_of::<T>() <= MAX_LEASE_PAGES as usize * PAGE && size_of::<T>() > 0) };
    let pages = bytes.clamp(1, size_of::<T>()).div_ceil(PAGE) as u64;
    Lease { page: VPage(value as u64 >> 12), pages, write }
}

/// Calls the service in `slot`, lending the first `bytes` of a value for it to read. The value has pages of its own.
///
/// # Errors
/// What the service replied; `Malformed` also if the reply is none of this request.
pub fn call_lend<R: Request, T: IntoBytes + Immutable>(
    slot: u16, request: &R, value: &T, bytes: usize,
) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(slot, &request.encode(), Some(lease_of(value, bytes, false))))
}

/// Like [`call_lend`], lending all of the value for the service to write.
///
/// # Errors
/// What the service replied; `Malformed` also if the reply is none of this request.
pub fn call_borrow<R: Request, T: FromBytes + IntoBytes>(
    slot: u16, request: &R, value: &mut T,
) -> Result<R::Reply, Status> {
    decode::<R>(call_raw(slot, &request.encode(), Some(lease_of(value, size_of::<T>(), true))))
}

fn decode<R: Request>((status, words): (Status, Words)) -> Result<R::Reply, Status> {
    match status {
        Status::Ok => R::Reply::decode(&words).map_err(|_| Status::Malformed),
        refused => Err(refused),
    }
}

/// Rings doorbells of the service in `slot`. Never waits.
///
/// # Errors
/// `Denied` if the manifest doesn't let this service ring that one.
pub fn ring_doorbell(slot: u16, bits: u64) -> Result<(), Status> {
    match status(syscall(number(Syscall::Ring, slot), 0, &[bits, 0, 0, 0, 0, 0, 0, 0]).rax) {
        Status::Ok => Ok(()),
        refused => Err(refused),
    }
}

/// The system call that does nothing, for measuring.
#[inline]
pub fn null() {
    syscall(number(Syscall::Null, 0), 0, &[0; 8]);
}

/// Ends this service.
pub fn exit(kind: ExitKind, details: [u64; 6]) -> ! {
    let [a, b, c, d, e, f] = details;
    loop {
        syscall(number(Syscall::Exit, 0), 0, &[kind as u64, a, b, c, d, e, f, 0]);
    }
}

/// A message delivered to this service.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// Whose it is.
    pub sender: Sender,
    /// The message.
    pub words: Words,
    /// Pages lent with it, in this service's lease window.
    pub lease: Option<Lease>,
}

/// Replies to the message being served and waits for the next.
#[inline]
pub fn reply_wait(status: Status, words: &Words) -> Delivered {
    let returned = syscall(number(Syscall::Reply, status as u16), 0, words);
    Delivered {
        sender: Sender((returned.rax >> 32) as u32),
        words: returned.words,
        lease: Lease::from_word(returned.lease).ok().flatten(),
    }
}

/// A page that can be lent: nothing else shares it.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct LeasePage(pub [u8; PAGE_SIZE as usize]);

impl LeasePage {
    /// A page of zeros.
    pub const fn zeroed() -> Self {
        Self([0; PAGE_SIZE as usize])
    }

    /// The page lent read-only. The system call's asm! may read any memory, so the contents are there by then.
    pub fn lease(&self) -> Lease {
        Lease { page: VPage(self.0.as_ptr() as u64 >> 12), pages: 1, write: false }
    }
}
