//! The service that is called, rung and written to.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod image {
    use caisson_proto::abi::{Lease, Status};
    use caisson_proto::addr::ServiceId;
    use caisson_proto::info::RingUse;
    use caisson_proto::wire::Words;
    use caisson_qemu_bench::{Samples, ask};
    use caisson_rt::ring::Received;
    use caisson_rt::rings::Inward;
    use caisson_rt::{Server, ring_doorbell, time};

    /// A port that isn't this service's.
    const NO_PORT: u16 = 0x80;

    struct Callee {
        ring: Option<Inward>,
        rung: Samples,
    }

    impl Callee {
        /// Reads all messages and says when each was sent and what it cost to read.
        fn read(&mut self, mut each: impl FnMut(&mut Samples, u64, u64, u64)) {
            let Some(ring) = &mut self.ring else { return };
            let mut message = [0; 8];
            loop {
                let before = time::now().0;
                if ring.receive(&mut message) != Received::Message(8) {
                    return;
                }
                each(&mut self.rung, u64::from_ne_bytes(message), before, time::now().0);
            }
        }
    }

    impl Server for Callee {
        fn call(&mut self, _: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
            let (least, median) = match words[0] {
                ask::NOTHING => return (Status::Ok, *words),
                ask::READ_RING => {
                    let mut cost = Samples::new();
                    self.read(|_, _, before, after| cost.add(after - before));
                    cost.least_and_median()
                }
                ask::SLEEP => (self.ring.as_mut().is_some_and(Inward::sleep).into(), 0),
                ask::RUNG => self.rung.least_and_median(),
                _ => (caisson_rt::port::inb(NO_PORT).into(), 0),
            };
            (Status::Ok, [least, median, 0, 0, 0, 0, 0, 0])
        }

        fn doorbell(&mut self, _: u64) {
            let caller = self.ring.as_ref().map(|ring| ring.info().peer);
            self.read(|rung, sent, _, now| rung.add(now - sent));
            self.ring.as_mut().map(Inward::sleep);
            // It sends the next one.
            caller.map(|caller| ring_doorbell(caller, 1));
        }
    }

    fn start() -> ! {
        caisson_rt::serve(&mut Callee { ring: Inward::find(RingUse::Notices), rung: Samples::new() })
    }

    caisson_rt::entry!(start);
}

#[cfg(not(target_os = "none"))]
fn main() {}
