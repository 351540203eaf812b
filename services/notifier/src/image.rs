//! notifier on the kernel.

use caisson_notifier::{Kernel, Notifier};
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::ServiceId;
use caisson_proto::info::RingUse;
use caisson_proto::ring::{SLOT_BYTES, SLOTS};
use caisson_proto::wire::{Request, Words};
use caisson_rt::ring::Received;
use caisson_rt::rings::Inward;
use caisson_rt::{Server, name_of};
use static_cell::ConstStaticCell;

/// Notices looked at in one activation, and as many again that may be skipped.
const LIMIT: u32 = SLOTS * 2;

struct OnKernel;

impl Kernel for OnKernel {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        caisson_rt::kernel(request)
    }
}

struct Image {
    notifier: &'static mut Notifier,
    reclaimed: Option<Inward>,
}

impl Image {
    /// Reads what memory posted, a bounded amount. If memory posts as fast as this reads, the rest is skipped and
    /// one look at every batch replaces it.
    fn read(&mut self) {
        let bad = self.take();
        if bad > 0
            && let Some(ring) = &self.reclaimed
        {
            let who = name_of(ring.info().peer.into());
            defmt::warn!("refused {=str}: {=u32} notices that are none", who, bad);
        }
    }

    /// The same; returns how many messages were no notices.
    fn take(&mut self) -> u32 {
        let Some(ring) = &mut self.reclaimed else { return 0 };
        let mut message = [0; SLOT_BYTES];
        let mut bad = 0;
        for left in (0..LIMIT * 2).rev() {
            match ring.receive(&mut message) {
                Received::Message(bytes) if left >= LIMIT => {
                    let message = message.get(..bytes).unwrap_or(&[]);
                    bad += u32::from(!self.notifier.reclaimed(message, &mut OnKernel));
                }
                Received::Message(_) => {}
                Received::Broken => bad += 1,
                Received::Nothing if !ring.sleep() => {}
                Received::Nothing if left >= LIMIT => return bad,
                Received::Nothing => break,
            }
        }
        // After the last skipped notice. Should the ring not be empty even now, the tickets' bells bring us back.
        self.notifier.settle(&mut OnKernel);
        bad
    }
}

impl Server for Image {
    fn call(&mut self, _: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
        self.notifier.handle(words, &mut OnKernel)
    }

    fn doorbell(&mut self, bits: u64) {
        if bits & doorbell::TICKET != 0 {
            self.notifier.ticket(&mut OnKernel);
        }
        self.read();
    }
}

static NOTIFIER: ConstStaticCell<Notifier> = ConstStaticCell::new(Notifier::new());

fn start() -> ! {
    let mut image = Image { notifier: NOTIFIER.take(), reclaimed: Inward::find(RingUse::Reclaimed) };
    image.notifier.settle(&mut OnKernel);
    image.read();
    defmt::info!("notifier: ready");
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
