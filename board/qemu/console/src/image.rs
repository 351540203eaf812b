//! The console on its ports and rings.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::bundle::MAX_RINGS;
use caisson_proto::console::Resize;
use caisson_proto::info::{MAX_SHARES, RingUse, ShareInfo, ShareUse};
use caisson_proto::kernel::TimerSet;
use caisson_proto::ring::SLOT_BYTES;
use caisson_proto::stats;
use caisson_proto::wire::Words;
use caisson_qemu_console::report::Report;
use caisson_qemu_console::uart::Received;
use caisson_qemu_console::{Console, Port, log_frame};
use caisson_rt::ring::Received as Taken;
use caisson_rt::rings::{self, Inward, Outward};
use caisson_rt::share::ShareWindow;
use caisson_rt::{Server, info, name_of, ring_doorbell, time};
use heapless::Vec;
use static_cell::ConstStaticCell;
use zerocopy::IntoBytes;

/// Rounds over all rings in one activation; after that the console rings itself by timer.
const ROUNDS: usize = 16;
/// Messages of one ring in one round.
const MESSAGES: usize = 64;
/// Milliseconds until the console looks again when the line is slow or a round limit was reached.
const AGAIN_MS: u64 = 2;
/// Milliseconds that a vmm has to bring its statistics up to date before they are read.
const REFRESH_MS: u64 = 10;
/// Longest log frame.
const FRAME: usize = 512;

struct Ports;

impl Port for Ports {
    fn inb(&mut self, port: u16) -> u8 {
        caisson_rt::port::inb(port)
    }
    fn outb(&mut self, port: u16, value: u8) {
        caisson_rt::port::outb(port, value);
    }
}

struct Log {
    ring: Inward,
    dropped: u32,
}

struct Image {
    console: Console,
    logs: Vec<Log, MAX_RINGS>,
    notices: Option<Inward>,
    outputs: Vec<Inward, MAX_RINGS>,
    inputs: Vec<Outward, MAX_RINGS>,
    resizes: Vec<Outward, MAX_RINGS>,
    stats: Vec<(&'static ShareInfo, ShareWindow), MAX_SHARES>,
    /// An answer to whoever reads statistics: whose they are, and when it may begin.
    report: Option<(Report, Option<ShareWindow>, Tsc)>,
}

impl Image {
    const fn new() -> Self {
        Self {
            console: Console::new(),
            logs: Vec::new(),
            notices: None,
            outputs: Vec::new(),
            inputs: Vec::new(),
            resizes: Vec::new(),
            stats: Vec::new(),
            report: None,
        }
    }

    fn take_rings(&mut self) {
        for (number, ring) in rings::all() {
            // Each vector has room for as many rings as a service can have.
            match rings::purpose(ring) {
                Some(RingUse::Log) => {
                    if let Some(ring) = Inward::take(number) {
                        let _ = self.logs.push(Log { dropped: ring.dropped(), ring });
                    }
                }
                Some(RingUse::Notices) => self.notices = Inward::take(number),
                Some(RingUse::ConsoleOut) => {
                    if let Some(ring) = Inward::take(number) {
                        let _ = self.outputs.push(ring);
                    }
                }
                Some(RingUse::ConsoleIn) => {
                    if let Some(ring) = Outward::take(number) {
                        let _ = self.inputs.push(ring);
                    }
                }
                Some(RingUse::Resize) => {
                    if let Some(ring) = Outward::take(number) {
                        let _ = self.resizes.push(ring);
                    }
                }
                _ => {}
            }
        }
    }

    /// Goes on with what was asked for of statistics. True if more of it can be sent now, once there is room.
    fn answer(&mut self) -> bool {
        if self.report.is_none()
            && let Some(channel) = self.console.input().take_request()
        {
            let share = self.stats.iter().find(|(info, _)| usize::from(info.channel) == channel);
            if let Some((info, _)) = share {
                // A vmm that is dead has its statistics all the same.
                let _ = ring_doorbell(info.peer, stats::READ);
            }
            let share = share.map(|(_, window)| *window);
            let due = Tsc(time::now().0 + if share.is_some() { time::ticks(REFRESH_MS) } else { 0 });
            self.report = Some((Report::new(channel, share.as_ref().map(ShareWindow::words)), share, due));
        }
        let Some((report, share, due)) = &mut self.report else { return false };
        if time::now() < *due {
            return false;
        }
        let load = |word| share.as_ref().map_or(0, |share| share.load(word));
        if self.console.report(report, load) {
            self.report = None;
        }
        true
    }

    /// Does what there is to do, a bounded amount of it, and arranges to be rung for the rest.
    fn work(&mut self) {
        let mut again = true;
        for _ in 0..ROUNDS {
            let received = self.console.receive(&mut Ports);
            self.pass_input_on();
            self.pass_orders_on();
            self.drain_logs();
            self.drain_notices();
            let answers = self.answer();
            self.drain_outputs();
            let sent = self.console.transmit(&mut Ports);
            again = !sent || received == Received::More;
            if again {
                // The line is slow: whatever came in the meantime waits for the next round, soon.
                break;
            }
            again = true;
            if !answers && self.sleep() {
                // What isn't due yet is so at the timer.
                again = self.report.is_some();
                break;
            }
        }
        let lost = self.console.input().take_lost();
        if lost > 0 {
            defmt::warn!("console: {=u32} bytes of input were for nobody", lost);
        }
        if again {
            let at = time::now().0 + time::ticks(AGAIN_MS);
            if caisson_rt::kernel(&TimerSet { at: Tsc(at) }).is_err() {
                defmt::error!("console: no timer");
            }
        }
    }

    fn pass_input_on(&mut self) {
        let mut buffer = [0; SLOT_BYTES * 4];
        for ring in &mut self.inputs {
            let channel = usize::from(ring.info().channel);
            loop {
                let count = self.console.input().peek(channel, &mut buffer);
                let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
                let written = ring.write(part);
                self.console.input().consume(channel, written);
                if written == 0 && ring.wait_room() {
                    break;
                }
            }
        }
    }

    /// What finds no room waits for the next round.
    fn pass_orders_on(&mut self) {
        for ring in &mut self.resizes {
            let vm = usize::from(ring.info().channel);
            while let Some((knob, bytes)) = self.console.input().orders().peek(vm) {
                if ring.send(Resize { knob: knob as u64, bytes }.as_bytes()).is_err() {
                    break;
                }
                self.console.input().orders().done(vm, knob);
            }
        }
    }

    fn drain_logs(&mut self) {
        let mut frame = [0; FRAME];
        for Log { ring, dropped } in &mut self.logs {
            let slot = ring.info().peer as u8;
            let mut bad = 0;
            for _ in 0..MESSAGES {
                match ring.receive(&mut frame) {
                    Taken::Message(bytes) => log_frame(&mut Ports, slot, frame.get(..bytes).unwrap_or(&[])),
                    Taken::Broken => bad += 1,
                    Taken::Nothing => break,
                }
            }
            let who = name_of(ring.info().peer.into());
            if bad > 0 {
                defmt::warn!("refused {=str}: {=u32} log messages that are none", who, bad);
            }
            let now = ring.dropped();
            if now != *dropped {
                let count = now.wrapping_sub(*dropped);
                *dropped = now;
                defmt::warn!("console: {=str} dropped {=u32} log messages", who, count);
            }
        }
    }

    fn drain_notices(&mut self) {
        let Some(ring) = &mut self.notices else { return };
        let mut message = [0; SLOT_BYTES];
        while self.console.takes_notice() {
            match ring.receive(&mut message) {
                Taken::Message(bytes) if self.console.notice(message.get(..bytes).unwrap_or(&[])) => {}
                Taken::Nothing => break,
                _ => defmt::warn!("console: a notice that is none"),
            }
        }
    }

    fn drain_outputs(&mut self) {
        let mut bytes = [0; SLOT_BYTES];
        for ring in &mut self.outputs {
            let channel = usize::from(ring.info().channel);
            for _ in 0..MESSAGES {
                if !self.console.takes_slot(channel) {
                    break;
                }
                match ring.receive(&mut bytes) {
                    Taken::Message(count) => {
                        self.console.output(channel, bytes.get(..count).unwrap_or(&[]));
                    }
                    Taken::Broken => defmt::warn!("console: channel {=usize}: not a slot", channel),
                    Taken::Nothing => break,
                }
            }
        }
    }

    /// Asks every ring for its doorbell. False if one has something already.
    fn sleep(&mut self) -> bool {
        let mut asleep = true;
        for Log { ring, .. } in &mut self.logs {
            asleep &= ring.sleep();
        }
        for ring in self.outputs.iter_mut().chain(&mut self.notices) {
            asleep &= ring.sleep();
        }
        asleep
    }
}

impl Server for Image {
    fn call(&mut self, _: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
        (Status::Malformed, [0; 8])
    }

    fn doorbell(&mut self, _: u64) {
        self.work();
    }
}

static IMAGE: ConstStaticCell<Image> = ConstStaticCell::new(Image::new());

fn own_log(frame: &[u8]) {
    let slot = ServiceId::from_bits(info().head.id).index();
    log_frame(&mut Ports, slot as u8, frame);
}

fn start() -> ! {
    caisson_rt::set_log_sink(own_log);
    let image = IMAGE.take();
    let generation = ServiceId::from_bits(info().head.id).generation();
    image.console.start(&mut Ports, generation > 0);
    image.take_rings();
    // There is room for as many as a service can have.
    image.stats.extend(ShareWindow::read(ShareUse::Stats).take(MAX_SHARES));
    defmt::info!(
        "console: {=usize} logs, {=usize} guests, generation {=u16}",
        image.logs.len(),
        image.outputs.len(),
        generation
    );
    image.work();
    caisson_rt::serve(image)
}

caisson_rt::entry!(start);
