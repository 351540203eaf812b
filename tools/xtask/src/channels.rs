//! The serial line carries several channels: the system's and one for each guest (`ipc-proto/console`).

use caisson_proto::console::{CHANNEL_0, ESCAPE, MAX_CHANNELS};

/// Takes the line apart.
#[derive(Debug, Default)]
pub struct Demux {
    channel: usize,
    escaped: bool,
}

impl Demux {
    /// Calls `take` with each run of bytes of one channel.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(usize, &[u8])) {
        let mut run = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, digit) if digit != ESCAPE => {
                    let channel = usize::from(digit.wrapping_sub(CHANNEL_0));
                    if channel < MAX_CHANNELS && channel != self.channel {
                        if !run.is_empty() {
                            take(self.channel, &std::mem::take(&mut run));
                        }
                        self.channel = channel;
                    }
                }
                (_, byte) => run.push(byte),
            }
        }
        if !run.is_empty() {
            take(self.channel, &run);
        }
    }
}

/// Puts the line together.
#[derive(Debug, Default)]
pub struct Mux {
    channel: Option<usize>,
}

impl Mux {
    /// The bytes for the line that carry `bytes` on a channel.
    pub fn wrap(&mut self, channel: usize, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 2);
        if self.channel != Some(channel) {
            self.channel = Some(channel);
            out.extend([ESCAPE, CHANNEL_0 + channel as u8]);
        }
        for &byte in bytes {
            if byte == ESCAPE {
                out.push(ESCAPE);
            }
            out.push(byte);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(pieces: &[&[u8]]) -> Vec<(usize, Vec<u8>)> {
        let mut demux = Demux::default();
        let mut all: Vec<(usize, Vec<u8>)> = Vec::new();
        for piece in pieces {
            demux.feed(piece, |channel, bytes| match all.last_mut() {
                Some((last, so_far)) if *last == channel => so_far.extend(bytes),
                _ => all.push((channel, bytes.to_vec())),
            });
        }
        all
    }

    #[test]
    fn what_is_put_together_comes_apart_the_same_however_it_is_cut() {
        let mut mux = Mux::default();
        let line = [mux.wrap(1, b"a\x01b"), mux.wrap(1, b"c"), mux.wrap(2, b"\x012"), mux.wrap(0, b"n\n")].concat();
        let whole = vec![(1, b"a\x01bc".to_vec()), (2, b"\x012".to_vec()), (0, b"n\n".to_vec())];
        assert_eq!(apart(&[&line]), whole);
        for cut in 0..line.len() {
            assert_eq!(apart(&[&line[..cut], &line[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_channel_that_does_not_exist_is_ignored() {
        assert_eq!(apart(&[b"\x011x\x01zy"]), vec![(1, b"xy".to_vec())]);
    }
}
