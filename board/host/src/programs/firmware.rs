//! sev-firmware, on a machine without a secure processor.

use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::kernel::MachineInfo;
use caisson_proto::wire::{Request, Words};
use caisson_sev_firmware::{Firmware, Kernel, Lent, Note};

use super::{Server, serve};
use crate::service::Sys;

struct OnKernel<'a, 'b>(&'a Sys<'b>);

impl Kernel for OnKernel<'_, '_> {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        self.0.ask(request)
    }

    fn lend<R: Request>(&mut self, request: &R, _: &mut Lent, _: usize) -> Result<R::Reply, Status> {
        self.0.ask(request)
    }

    fn bell(&mut self, client: ServiceId) {
        let _ = self.0.ring(client.index(), doorbell::TICKET);
    }

    fn again(&mut self) -> bool {
        false
    }

    fn note(&mut self, _: Note) {}
}

struct Image<'a, 'b> {
    sys: &'a Sys<'b>,
    firmware: Box<Firmware>,
}

impl Server for Image<'_, '_> {
    fn call(&mut self, sender: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
        self.firmware.handle(sender, words, None, Tsc(0), &mut OnKernel(self.sys))
    }
}

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let mut image = Image { sys, firmware: Box::default() };
    if let Ok(machine) = sys.ask(&MachineInfo {}) {
        image.firmware.start(&machine, &[], Tsc(0), &mut OnKernel(sys));
    }
    serve(sys, &mut image);
}
