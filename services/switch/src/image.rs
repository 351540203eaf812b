//! The switch on the kernel.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{PAGE_SIZE, ServiceId};
use caisson_proto::switch;
use caisson_proto::wire::Words;
use caisson_rt::window::LeaseWindow;
use caisson_rt::{Server, info, ring_doorbell};
use caisson_switch::{Bells, Lent, Switch};
use static_cell::ConstStaticCell;

struct OnLease {
    lease: Lease,
    window: LeaseWindow,
}

impl Lent for OnLease {
    fn bytes(&self) -> usize {
        (self.lease.pages * PAGE_SIZE) as usize
    }
    fn is_writable(&self) -> bool {
        self.lease.write
    }
    fn read(&self, at: usize, into: &mut [u8]) -> bool {
        self.window.read(at as u64, into).is_ok()
    }
    fn write(&mut self, at: usize, from: &[u8]) -> bool {
        self.window.write(at as u64, from).is_ok()
    }
}

struct OnKernel;

impl Bells for OnKernel {
    fn ring(&mut self, slot: u16) {
        // The bell of one that died rings in its next life, which calls then.
        let _ = ring_doorbell(slot, switch::FRAMES);
    }
}

struct Image(&'static mut Switch);

impl Server for Image {
    fn call(&mut self, caller: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let mut lent = lease.map(|lease| OnLease { lease, window: LeaseWindow::new(&lease) });
        self.0.handle(caller, words, lent.as_mut(), &mut OnKernel)
    }

    fn doorbell(&mut self, _: u64) {}
}

static SWITCH: ConstStaticCell<Switch> = ConstStaticCell::new(Switch::new());

fn start() -> ! {
    let switch = SWITCH.take();
    let refused = switch.configure(caisson_rt::file(switch::FILE));
    if refused > 0 {
        defmt::error!("switch: {=usize} ports that can't be", refused);
    }
    let generation = ServiceId::from_bits(info().head.id).generation();
    if generation > 0 {
        switch.call_in(&mut OnKernel);
    }
    defmt::info!("switch: {=usize} ports, generation {=u16}", switch.ports(), generation);
    caisson_rt::serve(&mut Image(switch))
}

caisson_rt::entry!(start);
