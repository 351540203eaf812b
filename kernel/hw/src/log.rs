//! The kernel's log: defmt frames into its ring to the console, or straight to the board's log device.
//!
//! The ring is [`caisson_proto::ring`]'s, in a page of the kernel's. Before there is one, and in an epitaph, frames
//! go to the device byte by byte as [`caisson_proto::console`] frames them. For cold paths only.

use core::{
    cell::UnsafeCell, sync::atomic::AtomicBool, sync::atomic::AtomicU64, sync::atomic::Ordering, sync::atomic::fence,
};

use caisson_proto::{
    addr::Frame, console::LOG_KERNEL, console::LOG_MAGIC, ring::SLOT_BYTES, ring::SLOTS, ring::header,
    ring::slot_offset,
};

use crate::{boot, cpu::port, kmap};

/// Longest frame in bytes.
const FRAME: usize = 1024;

struct State {
    encoder: defmt::Encoder,
    length: usize,
    frame: [u8; FRAME],
}

struct Guarded(UnsafeCell<State>);

// SAFETY: the state is used between `acquire` and `release` only.
unsafe impl Sync for Guarded {}

static STATE: Guarded =
    Guarded(UnsafeCell::new(State { encoder: defmt::Encoder::new(), length: 0, frame: [0; FRAME] }));
static LOCKED: AtomicBool = AtomicBool::new(false);
/// Frame of the ring, 0 for none.
static RING: AtomicU64 = AtomicU64::new(0);
static EPITAPH: AtomicBool = AtomicBool::new(false);
static PENDING: AtomicBool = AtomicBool::new(false);

/// From now on the log goes to the ring in this frame, which stays mapped.
pub fn attach(ring: Frame) {
    RING.store(ring.0, Ordering::Release);
}

/// From now on the log goes straight to the device: the machine ends. Takes the log from whoever was writing.
pub fn epitaph() {
    EPITAPH.store(true, Ordering::SeqCst);
    LOCKED.store(false, Ordering::SeqCst);
}

/// Whether the console slept when something was put in the ring, since this was asked last: ring its doorbell.
pub fn take_pending() -> bool {
    PENDING.load(Ordering::Relaxed) && PENDING.swap(false, Ordering::AcqRel)
}

fn to_device(frame: &[u8]) {
    let to = boot::BOARD.get().map_or(0, |board| board.log_port);
    let length = (frame.len() as u16).to_le_bytes();
    let head = [LOG_MAGIC, LOG_KERNEL, length[0], length[1]];
    for byte in head.iter().chain(frame).filter(|_| to != 0) {
        // SAFETY: the board says that this port takes log bytes.
        unsafe { port::write(to, *byte) }
    }
}

/// Puts a frame into the ring, or counts it as dropped.
fn to_ring(ring: Frame, frame: Option<&[u8]>) {
    let word = |offset: usize| kmap::word(ring, offset / 8);
    let head = word(header::HEAD).load(Ordering::Relaxed);
    let used = head.wrapping_sub(word(header::TAIL).load(Ordering::Acquire));
    let pieces = frame.map_or(u64::MAX, |frame| frame.len().div_ceil(SLOT_BYTES) as u64);
    if pieces > u64::from(SLOTS).saturating_sub(used) {
        word(header::DROPPED).fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut at = head;
    for piece in frame.unwrap_or(&[]).chunks(SLOT_BYTES) {
        let mut slot = [0; 2 + SLOT_BYTES];
        let more = at + 1 < head + pieces;
        slot[..2].copy_from_slice(&[piece.len() as u8, more.into()]);
        slot[2..2 + piece.len()].copy_from_slice(piece);
        for (number, bytes) in slot.as_chunks::<8>().0.iter().enumerate() {
            word(slot_offset(at) + number * 8).store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        at += 1;
    }
    word(header::HEAD).store(at, Ordering::Release);
    fence(Ordering::SeqCst);
    // The low half of this word is CONSUMER_SLEEPS.
    if word(header::CONSUMER_SLEEPS).load(Ordering::Relaxed) as u32 != 0 {
        PENDING.store(true, Ordering::Release);
    }
}

impl State {
    /// Lets the encoder do something with what appends to the frame, or to a new one.
    fn encode(new: bool, run: impl FnOnce(&mut defmt::Encoder, &mut dyn FnMut(&[u8]))) -> &'static mut Self {
        // SAFETY: the caller holds the lock and keeps no reference, and none of these functions calls another.
        let state = unsafe { &mut *STATE.0.get() };
        state.length = if new { 0 } else { state.length };
        run(&mut state.encoder, &mut |bytes| {
            if let Some(place) = state.frame.get_mut(state.length..state.length + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            state.length += bytes.len();
        });
        state
    }
}

#[defmt::global_logger]
struct Log;

// SAFETY: `acquire` takes a lock that `release` gives back, with interrupts off in between, as everywhere in the
// kernel; so frames aren't mixed. An epitaph breaks the lock, and then nobody else's frame counts any more.
unsafe impl defmt::Logger for Log {
    fn acquire() {
        while LOCKED.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        State::encode(true, |encoder, append| encoder.start_frame(append));
    }

    unsafe fn write(bytes: &[u8]) {
        State::encode(false, |encoder, append| encoder.write(bytes, append));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        let state = State::encode(false, |encoder, append| encoder.end_frame(append));
        let frame = state.frame.get(..state.length);
        let ring = Frame(RING.load(Ordering::Acquire));
        if ring.0 != 0 && !EPITAPH.load(Ordering::Relaxed) {
            to_ring(ring, frame);
        } else if let Some(frame) = frame {
            to_device(frame);
        }
        LOCKED.store(false, Ordering::Release);
    }
}

defmt::timestamp!("{=u64:us}", crate::clock::micros());
