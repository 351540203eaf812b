//! console: the board's service for guests' consoles and logs. Talked to by rings only.
//!
//! On the wire (a serial line) it multiplexes channels: the byte [`ESCAPE`] followed by a channel's digit makes
//! that channel the current one, in either direction; `ESCAPE ESCAPE` is the byte itself. Channel 0 is the
//! system's (records of [`Notice`](crate::supervisor::Notice), in hex, a line each); channel n is the n-th VM's.
//! So a person on a plain serial line presses Ctrl-A and a digit, and a program sees every guest at once.
//! Logs go to a device of their own as frames: [`LOG_MAGIC`], slot of the sender, length (u16, little endian),
//! then that many bytes of one defmt frame. The kernel logs to a device that nobody shares with it.

/// Switches channels: Ctrl-A.
pub const ESCAPE: u8 = 1;
/// The digit of channel 0.
pub const CHANNEL_0: u8 = b'0';
/// Channels at the most: the system's and nine guests'.
pub const MAX_CHANNELS: usize = 10;
/// Begins a frame on the log device.
pub const LOG_MAGIC: u8 = 0xc5;
