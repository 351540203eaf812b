//! The service that calls, rings and writes, and logs `bench NAME LEAST MEDIAN` in ticks for each way.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod image {
    use caisson_proto::abi::{Lease, Status, doorbell};
    use caisson_proto::addr::{ServiceId, Tsc};
    use caisson_proto::info::RingUse;
    use caisson_proto::kernel::TimerSet;
    use caisson_proto::wire::Words;
    use caisson_qemu_bench::{Samples, TIMES, ask};
    use caisson_rt::rings::Outward;
    use caisson_rt::{LeasePage, Server, call_raw, kernel, null, slot_of, time};

    /// Milliseconds until the machine is quiet: services have started, guests wait.
    const QUIET_MS: u64 = 2000;
    /// Milliseconds until an interrupt that is waited for.
    const SOON_MS: u64 = 2;

    /// What is measured now.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Phase {
        Waiting,
        Ring,
        Interrupt,
        Over,
    }

    struct Caller {
        callee: u16,
        ring: Option<Outward>,
        phase: Phase,
        /// The time that was set.
        due: u64,
        late: Samples,
        sent: usize,
        /// What reading the counter costs.
        empty: u64,
    }

    /// What happens between two reads of the counter.
    fn measured(mut act: impl FnMut()) -> Samples {
        let mut samples = Samples::new();
        act();
        while !samples.full() {
            let before = time::now().0;
            act();
            samples.add(time::now().0 - before);
        }
        samples
    }

    impl Caller {
        fn ask(&self, question: u64) -> (Status, Words) {
            call_raw(self.callee, &[question, 0, 0, 0, 0, 0, 0, 0], None)
        }

        fn report(&self, name: &str, (least, median): (u64, u64)) {
            let less = |ticks: u64| ticks.saturating_sub(self.empty);
            defmt::info!("bench {=str} {=u64} {=u64}", name, less(least), less(median));
        }

        fn timer(&mut self, ms: u64) {
            self.due = time::now().0 + time::ticks(ms);
            // Refused only without the capability; then nothing is measured, and whoever waits says so.
            let _ = kernel(&TimerSet { at: Tsc(self.due) });
        }

        /// What needs no waiting.
        fn calls(&mut self) {
            let callee = self.callee;
            let words = [ask::NOTHING, 1, 2, 3, 4, 5, 6, 7];
            let page = LeasePage::zeroed();
            self.empty = measured(|| ()).least_and_median().1;
            self.report("null-system-call", measured(null).least_and_median());
            let call = |lease: Option<Lease>| {
                let _ = call_raw(callee, &words, lease);
            };
            self.report("call", measured(|| call(None)).least_and_median());
            self.report("call-with-lease", measured(|| call(Some(page.lease()))).least_and_median());
            if let Some(ring) = &mut self.ring {
                let mut samples = Samples::new();
                // As many as fit. Nobody sleeps yet, so nobody is rung.
                for _ in 0..TIMES - 3 {
                    let before = time::now().0;
                    let sent = ring.send(&before.to_ne_bytes()).is_ok();
                    let took = time::now().0 - before;
                    if sent {
                        samples.add(took);
                    }
                }
                self.report("ring-send", samples.least_and_median());
            }
            let (_, [least, median, ..]) = self.ask(ask::READ_RING);
            self.report("ring-receive", (least, median));
            self.ask(ask::SLEEP);
        }

        /// One message to a reader that sleeps.
        fn send(&mut self) {
            self.sent += 1;
            if let Some(ring) = &mut self.ring {
                let _ = ring.send(&time::now().0.to_ne_bytes());
            }
        }

        fn fault(&mut self) {
            let before = time::now().0;
            let (status, _) = self.ask(ask::FAULT);
            let took = time::now().0 - before;
            if status == Status::Died {
                self.report("call-that-faults", (took, took));
            }
        }
    }

    impl Server for Caller {
        fn call(&mut self, _: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
            (Status::Denied, [0; 8])
        }

        fn doorbell(&mut self, bits: u64) {
            let now = time::now().0;
            match self.phase {
                Phase::Waiting if bits & doorbell::TIMER != 0 => {
                    self.calls();
                    self.phase = Phase::Ring;
                    self.send();
                }
                Phase::Ring if self.sent < TIMES => self.send(),
                Phase::Ring => {
                    let (_, [least, median, ..]) = self.ask(ask::RUNG);
                    self.report("ring-with-doorbell", (least, median));
                    self.phase = Phase::Interrupt;
                    self.timer(SOON_MS);
                }
                Phase::Interrupt if bits & doorbell::TIMER != 0 => {
                    self.late.add(now.saturating_sub(self.due));
                    if !self.late.full() {
                        return self.timer(SOON_MS);
                    }
                    let late = self.late.least_and_median();
                    self.report("timer-to-service", late);
                    self.phase = Phase::Over;
                    self.fault();
                    defmt::info!("bench end");
                    self.timer(SOON_MS);
                }
                // For whoever looks on where the instructions of a call go.
                Phase::Over => {
                    for _ in 0..TIMES {
                        self.ask(ask::NOTHING);
                    }
                    self.timer(SOON_MS);
                }
                _ => {}
            }
        }
    }

    fn start() -> ! {
        let callee = slot_of("bench-callee").unwrap_or(0);
        let ring = Outward::find(RingUse::Notices);
        let late = Samples::new();
        let mut caller = Caller { callee, ring, phase: Phase::Waiting, due: 0, late, sent: 0, empty: 0 };
        caller.timer(QUIET_MS);
        caisson_rt::serve(&mut caller)
    }

    caisson_rt::entry!(start);
}

#[cfg(not(target_os = "none"))]
fn main() {}
