//! The agent: has the intruder make every attempt, one after the other, and logs what came of each. Over a serial
//! line it is told to begin, and whom the supervisor should end.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod image {
    use caisson_guest_intruder::attempts::{Attempt, attempts};
    use caisson_guest_intruder::{ask, order};
    use caisson_proto::abi::{Lease, Status, doorbell};
    use caisson_proto::addr::{ServiceId, Tsc};
    use caisson_proto::kernel::TimerSet;
    use caisson_proto::supervisor::{End, Forgive};
    use caisson_proto::wire::Words;
    use caisson_rt::port::{inb, outb};
    use caisson_rt::{LeasePage, Server, call, call_raw, kernel, known_id, slot_of, time};

    /// The serial line (16550): data, interrupt enable, modem control, line status.
    const COM2: u16 = 0x2f8;
    const ENABLE: u16 = COM2 + 1;
    const MODEM: u16 = COM2 + 4;
    const STATUS: u16 = COM2 + 5;
    /// Milliseconds between two attempts, for those who restart and log.
    const PACE_MS: u64 = 2;
    /// How often the agent looks whether the intruder and its accomplice are back.
    const LOOKS: u32 = 2500;

    struct Agent {
        supervisor: u16,
        intruder: u16,
        accomplice: u16,
        /// The next attempt's number, while there are any to make.
        next: Option<u32>,
        looks: u32,
        nonce: u64,
        page: LeasePage,
    }

    impl Agent {
        fn soon() {
            let at = Tsc(time::now().0 + time::ticks(PACE_MS));
            if kernel(&TimerSet { at }).is_err() {
                defmt::error!("agent: no timer");
            }
        }

        /// Whether this service answers, with what it was asked just now.
        fn lives(&mut self, slot: u16) -> bool {
            self.nonce += 1;
            let words = [ask::ECHO, self.nonce, 0, 0, 0, 0, 0, 0];
            let mut answer = call_raw(slot, &words, None);
            if answer.0 == Status::Dead {
                answer = call_raw(slot, &words, None);
            }
            answer.0 == Status::Ok && answer.1[1] == self.nonce
        }

        fn forgive(&self, slot: u16) {
            if call(self.supervisor, &Forgive { slot }).is_err() {
                defmt::error!("agent: the supervisor doesn't forgive");
            }
        }

        fn attempt(&mut self, number: u32, attempt: &Attempt) {
            self.nonce += 1;
            let words = [ask::ATTEMPT, self.nonce, number.into(), 0, 0, 0, 0, 0];
            let life = known_id(self.intruder).generation();
            let lease = attempt.lease.then(|| self.page.lease());
            let (status, [_, nonce, cases, wrong, got, ..]) = call_raw(self.intruder, &words, lease);
            let own = status != Status::Ok || nonce == self.nonce;
            defmt::info!(
                "attempt {=u32} life {=u16} status {=u8} cases {=u64} wrong {=u64} got {=u64} own {=bool}",
                number,
                life,
                status as u8,
                cases,
                wrong,
                got,
                own
            );
        }

        /// The next attempt, if those who make it are back from the last.
        fn step(&mut self) {
            let Some(number) = self.next else { return };
            let Some(attempt) = attempts().nth(number as usize) else {
                defmt::info!("agent: over");
                self.next = None;
                return;
            };
            if !(self.lives(self.intruder) && self.lives(self.accomplice)) {
                self.looks += 1;
                if self.looks == LOOKS {
                    defmt::error!("agent: the intruder isn't back before attempt {=u32}", number);
                    self.next = None;
                }
                return Self::soon();
            }
            self.looks = 0;
            self.forgive(self.intruder);
            self.forgive(self.accomplice);
            self.attempt(number, &attempt);
            self.next = Some(number + 1);
            Self::soon();
        }

        fn ordered(&mut self, byte: u8) {
            match byte {
                order::GO => {
                    self.next = Some(0);
                    Self::soon();
                }
                byte if byte & order::END != 0 => {
                    let slot = u16::from(byte & !order::END);
                    // One that died meanwhile has a successor.
                    let mut answer = call(self.supervisor, &End { slot });
                    if answer == Err(Status::Dead) {
                        answer = call(self.supervisor, &End { slot });
                    }
                    let status = answer.err().unwrap_or(Status::Ok);
                    defmt::info!("agent: ended slot {=u16}, status {=u8}", slot, status as u8);
                }
                byte if byte & order::FORGIVE != 0 => self.forgive(u16::from(byte & !order::FORGIVE)),
                _ => defmt::error!("agent: order {=u8} is none", byte),
            }
        }
    }

    impl Server for Agent {
        fn call(&mut self, _: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
            (Status::Denied, [0; 8])
        }

        fn doorbell(&mut self, bits: u64) {
            while inb(STATUS) & 1 != 0 {
                self.ordered(inb(COM2));
            }
            if bits & doorbell::TIMER != 0 {
                self.step();
            }
        }
    }

    fn start() -> ! {
        let slot = |name| slot_of(name).unwrap_or(0);
        let mut agent = Agent {
            supervisor: slot("supervisor"),
            intruder: slot("intruder"),
            accomplice: slot("accomplice"),
            next: None,
            looks: 0,
            nonce: 0,
            page: LeasePage::zeroed(),
        };
        // Data terminal ready, request to send, and the gate of the interrupt; then the interrupt of received data.
        outb(MODEM, 0x0b);
        outb(ENABLE, 1);
        defmt::info!("agent: ready");
        caisson_rt::serve(&mut agent)
    }

    caisson_rt::entry!(start);
}

#[cfg(not(target_os = "none"))]
fn main() {}
