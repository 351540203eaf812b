//! From who asks to the console service and back: requests on the system channel, and the lines that answer them.

use std::time::{Duration, Instant};

use caisson_proto::console::{CHANNEL_0, ESCAPE, Knob, RESIZE};
use caisson_stats::lines::{Answer, Collector};

use super::serve::Ask;

/// How long until it is asked again: the console may have been restarted in between.
const AGAIN: Duration = Duration::from_secs(3);
/// The same where the answer was incomplete: another may be on its way.
const SOON: Duration = Duration::from_millis(300);
/// How long until it is given up.
const LONGEST: Duration = Duration::from_secs(20);
/// Longest line.
const LINE: usize = 4096;

struct Waiting {
    ask: Ask,
    collector: Collector,
    since: Instant,
    asked: Instant,
}

/// Those who wait for an answer.
#[derive(Default)]
pub struct Asked {
    waiting: Vec<Waiting>,
    line: Vec<u8>,
}

/// The bytes for the line that ask: on the system channel, named in any case.
fn request(collector: &Collector) -> Vec<u8> {
    [&[ESCAPE, CHANNEL_0][..], &collector.request()].concat()
}

/// The bytes for the line that order how much memory the VM with this channel is to have.
pub fn order(channel: u8, knob: Knob, bytes: u64) -> Vec<u8> {
    let order = format!("{}{bytes:x}\n", char::from(knob.letter()));
    [&[ESCAPE, CHANNEL_0, RESIZE, CHANNEL_0.wrapping_add(channel)], order.as_bytes()].concat()
}

impl Asked {
    /// Somebody asks. The bytes for the line, after which the other end's channel is another.
    pub fn ask(&mut self, ask: Ask, now: Instant) -> Vec<u8> {
        if let Some((knob, value)) = ask.order {
            // Whether it was heard, the statistics tell.
            let bytes = order(ask.channel, knob, value);
            ask.answer(Ok(b""));
            return bytes;
        }
        let collector = Collector::new(ask.channel);
        let bytes = request(&collector);
        self.waiting.push(Waiting { ask, collector, since: now, asked: now });
        bytes
    }

    /// Bytes of the system channel. What is to be asked again is asked at a later [`tick`](Self::tick).
    pub fn feed(&mut self, bytes: &[u8], now: Instant) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < LINE {
                    self.line.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            for mut one in std::mem::take(&mut self.waiting) {
                match one.collector.feed(&line) {
                    Some(Answer::Pages(pages)) => one.ask.answer(Ok(pages.as_flattened())),
                    Some(Answer::NoSuchVm) => one.ask.answer(Err("this machine publishes no statistics of that VM")),
                    Some(Answer::Torn) => {
                        // Another's answer was under way, or something was lost.
                        one.collector = Collector::new(one.ask.channel);
                        one.asked = now.checked_sub(AGAIN - SOON).unwrap_or(now);
                        self.waiting.push(one);
                    }
                    None => self.waiting.push(one),
                }
            }
        }
    }

    /// What has to be asked again; who waited too long is told so.
    pub fn tick(&mut self, now: Instant) -> Vec<u8> {
        let mut bytes = Vec::new();
        for mut one in std::mem::take(&mut self.waiting) {
            if now.saturating_duration_since(one.since) >= LONGEST {
                one.ask.answer(Err("the console service doesn't answer"));
                continue;
            }
            if now.saturating_duration_since(one.asked) >= AGAIN {
                one.asked = now;
                bytes.extend(request(&one.collector));
            }
            self.waiting.push(one);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    const ASKS: &[u8] = b"\x010s1";

    fn ask(asked: &mut Asked, now: Instant) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(asked.ask(Ask::new(1, theirs), now), ASKS);
        ours
    }

    /// What was answered. The other end is closed by then.
    fn answer(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_answer_goes_to_all_who_heard_its_beginning_and_others_ask_again() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let mut first = ask(&mut asked, now);
        asked.feed(b"s1  5\ns1 200 ", now);
        let mut second = ask(&mut asked, now);
        asked.feed(b"7\n00ff\ns1 300 8\ns1 end 3\n", now);
        let pages = std::thread::spawn(move || answer(&mut first)).join().unwrap();
        assert_eq!((&pages[..4], pages.len()), (&b"ok\n\x05"[..], 3 + 9 * 4096));
        assert_eq!(pages[3 + 4096], 7);
        // The second one missed a line: not at once, as another answer may be under way, but soon.
        assert_eq!(asked.tick(now), b"");
        assert_eq!(asked.tick(now + SOON), ASKS);
        assert_eq!(asked.tick(now + SOON), b"");
        asked.feed(b"s1 none\n", now + SOON);
        assert_eq!(answer(&mut second), b"this machine publishes no statistics of that VM\n");
    }

    #[test]
    fn an_order_is_answered_at_once() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut order = Ask::new(2, ours);
        order.order = Some((Knob::Plugged, 0x20_0000));
        assert_eq!(asked.ask(order, now), b"\x010r2p200000\n");
        assert_eq!(answer(&mut theirs), b"ok\n");
        assert_eq!(asked.tick(now + AGAIN), b"", "nobody waits");
    }

    #[test]
    fn a_console_that_is_silent_is_asked_again_and_then_given_up() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let mut one = ask(&mut asked, now);
        assert_eq!(asked.tick(now + AGAIN / 2), b"");
        assert_eq!(asked.tick(now + AGAIN), ASKS);
        assert_eq!(asked.tick(now + LONGEST), b"");
        assert_eq!(answer(&mut one), b"the console service doesn't answer\n");
        assert_eq!(asked.tick(now + LONGEST + AGAIN), b"", "nobody waits");
    }
}
