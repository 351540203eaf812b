//! console: the board's service for guests' consoles and logs. Talked to by rings only.
//!
//! On the wire (a serial line) it multiplexes channels: the byte [`ESCAPE`] followed by a channel's digit makes
//! that channel the current one, in either direction; `ESCAPE ESCAPE` is the byte itself. Channel 0 is the
//! system's (records of [`Notice`](crate::supervisor::Notice), in hex, a line each); channel n is the n-th VM's.
//! On channel 0 the console also takes requests: [`STATS`] and a VM's digit ask for the pages of that VM's
//! [statistics](crate::stats). The answer is lines that begin with the request: `s1 20 5  ff` says that of the words of 64 bits
//! from hexadecimal 20 on the first is 5, the second 0 and the third ff, and that the rest of the [`STATS_WORDS`] that a line has
//! are 0; lines of which all are 0 are left out. `s1 end 3` ends it: so many lines came before. `s1 none`: there is no such VM.
//! [`RESIZE`], a VM's digit, a [knob](Knob)'s letter and a hexadecimal number of bytes, with the end of the line, order
//! how much memory that VM is to have: `r1b8000000`. Whether it was heard, the statistics tell.
//! So a person on a plain serial line presses Ctrl-A and a digit, and a program sees every guest at once.
//! Logs go to a device of their own as frames: [`LOG_MAGIC`], slot of the sender, length (u16, little endian),
//! then that many bytes of one defmt frame. The kernel logs to a device that nobody shares with it.

/// Switches channels: Ctrl-A.
pub const ESCAPE: u8 = 1;
/// The digit of channel 0.
pub const CHANNEL_0: u8 = b'0';
/// Channels at the most: the system's and nine guests'.
pub const MAX_CHANNELS: usize = 10;
/// On channel 0, with a VM's digit: asks for its statistics.
pub const STATS: u8 = b's';
/// On channel 0: begins an order about a VM's memory.
pub const RESIZE: u8 = b'r';
/// Words that a line of the answer tells of.
pub const STATS_WORDS: usize = 16;
/// Begins a frame on the log device.
pub const LOG_MAGIC: u8 = 0xc5;

wire_enum! {
    /// What can be changed of a VM's memory while it runs.
    pub enum Knob {
        /// How much the balloon is to hold.
        Balloon = 0,
        /// How much of what can be plugged is to be.
        Plugged = 1,
    }
}

impl Knob {
    /// On the console's system channel.
    pub const fn letter(self) -> u8 {
        match self {
            Self::Balloon => b'b',
            Self::Plugged => b'p',
        }
    }
}

/// Tells a vmm how much memory its VM is to have: a message of the console's ring to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
pub struct Resize {
    /// A [`Knob`], as a number.
    pub knob: u64,
    /// How many bytes. What the VM can't have isn't done.
    pub bytes: u64,
}
