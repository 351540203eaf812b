//! The transport of the log: each defmt frame is one message in this service's log ring to the console.
//!
//! Frames that don't fit, or find the ring full, are counted in the ring; the console tells.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

use caisson_proto::info::RingUse;

use crate::rings::Outward;

/// Longest frame in bytes.
const FRAME: usize = 480;

/// Takes the frames of a service that has no log ring: the console's own. Called with one frame.
static SINK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Names what takes this service's log frames if it has no log ring. Anything that it logs itself is refused.
pub fn set_log_sink(sink: fn(&[u8])) {
    SINK.store(sink as *mut (), Ordering::Release);
}

fn sink() -> Option<fn(&[u8])> {
    let sink = SINK.load(Ordering::Acquire);
    // SAFETY: `SINK` is null or was stored from a function pointer of this very type.
    (!sink.is_null()).then(|| unsafe { core::mem::transmute::<*mut (), fn(&[u8])>(sink) })
}

struct State {
    encoder: defmt::Encoder,
    ring: Option<Outward>,
    looked: bool,
    busy: bool,
    length: usize,
    overflow: bool,
    frame: [u8; FRAME],
}

struct Global(UnsafeCell<State>);

// SAFETY: a service has one thread, and no handler interrupts it.
unsafe impl Sync for Global {}

static STATE: Global = Global(UnsafeCell::new(State {
    encoder: defmt::Encoder::new(),
    ring: None,
    looked: false,
    busy: false,
    length: 0,
    overflow: false,
    frame: [0; FRAME],
}));

fn append(length: &mut usize, overflow: &mut bool, frame: &mut [u8; FRAME], bytes: &[u8]) {
    match frame.get_mut(*length..*length + bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            *length += bytes.len();
        }
        None => *overflow = true,
    }
}

#[defmt::global_logger]
struct Log;

// SAFETY: a service has one thread, so one frame is written at a time; a frame begun inside another is refused by
// a panic, as the trait asks.
unsafe impl defmt::Logger for Log {
    fn acquire() {
        // SAFETY: the only references to the state live inside these four functions, none of which calls another.
        let state = unsafe { &mut *STATE.0.get() };
        assert!(!state.busy, "a log frame inside a log frame");
        state.busy = true;
        if !state.looked {
            state.looked = true;
            state.ring = Outward::find(RingUse::Log);
        }
        let State { encoder, length, overflow, frame, .. } = state;
        *length = 0;
        *overflow = false;
        encoder.start_frame(|bytes| append(length, overflow, frame, bytes));
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: as in `acquire`.
        let State { encoder, length, overflow, frame, .. } = unsafe { &mut *STATE.0.get() };
        encoder.write(bytes, |bytes| append(length, overflow, frame, bytes));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: as in `acquire`.
        let State { encoder, ring, busy, length, overflow, frame, .. } = unsafe { &mut *STATE.0.get() };
        encoder.end_frame(|bytes| append(length, overflow, frame, bytes));
        match (ring, frame.get(..*length)) {
            // What was cut off can't be decoded.
            (Some(ring), _) if *overflow => ring.drop_one(),
            (Some(ring), Some(frame)) => ring.send_or_drop(frame),
            (None, Some(frame)) if !*overflow => {
                if let Some(sink) = sink() {
                    sink(frame);
                }
            }
            _ => {}
        }
        *busy = false;
    }
}

defmt::timestamp!("{=u64:us}", crate::time::micros());
