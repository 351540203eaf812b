//! sev-firmware.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::ServiceId;
use caisson_proto::kernel::{Features, MachineInfo};
use caisson_proto::wire::Words;
use caisson_sev_firmware::Firmware;

use super::{Server, serve};
use crate::service::Sys;

struct Image(Firmware);

impl Server for Image {
    fn call(&mut self, _: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
        self.0.handle(words)
    }
}

/// Runs it.
pub fn main(sys: &Sys<'_>) {
    let features = sys.ask(&MachineInfo {}).map_or(Features::empty(), |machine| machine.features);
    serve(sys, &mut Image(Firmware::new(features)));
}
