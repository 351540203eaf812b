//! The network's card between its guest and the switch.

use super::Device;
use super::net::{Counts, Net, RECEIVE, TRANSMIT};
use crate::platform::Platform;
use crate::vmm::Vmm;

/// Batches each way before other things have their turn: more than a whole queue.
const ROUNDS: usize = 16;

impl<P: Platform> Vmm<P> {
    /// Frames wait at the switch.
    pub fn frames_wait(&mut self) {
        if let Some(card) = self.virtio.card() {
            card.expect();
        }
        if let Some(number) = self.virtio.net()
            && !self.receive_frames(number)
        {
            // It may be a successor that rang, for which a card doesn't live before it calls.
            self.platform.call_switch();
        }
    }

    /// What passed the card, if there is one.
    pub(crate) fn net_counts(&mut self) -> Option<Counts> {
        self.virtio.card().map(|card| card.counts())
    }

    /// Sends what the guest gave the card, and gives it what came.
    pub(super) fn update_virtio_net(&mut self, number: u8) {
        self.send_frames(number);
        self.receive_frames(number);
    }

    fn card(&mut self, number: u8) -> Option<(&mut Net, &mut P)> {
        Some((self.virtio.device(number)?.net()?, &mut self.platform))
    }

    fn send_frames(&mut self, number: u8) {
        for _ in 0..ROUNDS {
            let Some((card, platform)) = self.card(number) else { return };
            // One that took all there was has told its driver to notify it of the next.
            let is_all = card.wants(TRANSMIT);
            if !card.send(|batch, bytes| platform.send_frames(batch, bytes)) || is_all {
                return;
            }
            self.with_virtio(number, |device, memory| device.poke(TRANSMIT, memory));
        }
        self.defer(number, TRANSMIT);
    }

    /// Whether the switch was called for frames.
    fn receive_frames(&mut self, number: u8) -> bool {
        let mut called = false;
        for _ in 0..ROUNDS {
            self.with_virtio(number, |device, memory| {
                let waits = device.net()?.wants(RECEIVE);
                if waits { device.poke(RECEIVE, memory) } else { None }
            });
            let Some((card, platform)) = self.card(number) else { return called };
            // The rest of a batch waits for buffers, of which the driver notifies.
            if !card.is_hungry() {
                return called;
            }
            card.fetch(|batch| platform.fetch_frames(batch));
            called = true;
        }
        self.defer(number, RECEIVE);
        called
    }

    /// The driver comes back to this when it acknowledges the interrupt.
    fn defer(&mut self, number: u8, queue: u16) {
        self.with_virtio(number, |device, _| {
            device.defer(queue);
            None
        });
    }
}
