//! The kernel's log: a stream of defmt frames to a device of its own, byte by byte. It needs nobody, so it works from
//! the first instruction to the epitaph. For cold paths only.

use crate::prelude::*;
use spin::mutex::SpinMutex;

/// Locked from `acquire` to `release`.
static ENCODER: SpinMutex<defmt::Encoder> = SpinMutex::new(defmt::Encoder::new());

fn put(bytes: &[u8]) {
    let to = boot::BOARD.get().map_or(0, |board| board.log_port);
    for byte in bytes.iter().filter(|_| to != 0) {
        // SAFETY: the board says that this port takes log bytes.
        unsafe { u8::write_to_port(to, *byte) }
    }
}

/// The machine ends: takes the log from whoever was writing. What it wrote ends here, as a frame that can't be decoded.
pub fn epitaph() {
    // SAFETY: whoever holds it is stopped soon or has faulted; the encoder is plain numbers, whatever it was amid.
    unsafe { ENCODER.force_unlock() };
    put(&[0]);
}

fn encode(run: impl FnOnce(&mut defmt::Encoder)) {
    // SAFETY: whoever calls this has the lock, or ends the machine.
    run(unsafe { &mut *ENCODER.as_mut_ptr() });
}

#[defmt::global_logger]
struct Log;

// SAFETY: one CPU at a time is between `acquire` and `release`, and interrupts are off in the kernel.
unsafe impl defmt::Logger for Log {
    fn acquire() {
        core::mem::forget(ENCODER.lock());
        encode(|encoder| encoder.start_frame(put));
    }

    unsafe fn write(bytes: &[u8]) {
        encode(|encoder| encoder.write(bytes, put));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        encode(|encoder| encoder.end_frame(put));
        // SAFETY: `acquire` locked it.
        unsafe { ENCODER.force_unlock() };
    }
}

defmt::timestamp!("{=u64:us}", crate::clock::micros());
