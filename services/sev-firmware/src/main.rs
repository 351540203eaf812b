//! The image of sev-firmware.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod image {
    use caisson_proto::abi::{Lease, Status};
    use caisson_proto::addr::ServiceId;
    use caisson_proto::kernel::{Features, MachineInfo};
    use caisson_proto::wire::Words;
    use caisson_rt::Server;
    use caisson_sev_firmware::Firmware;

    struct Image(Firmware);

    impl Server for Image {
        fn call(&mut self, _: ServiceId, words: &Words, _: Option<Lease>) -> (Status, Words) {
            self.0.handle(words)
        }
        fn doorbell(&mut self, _: u64) {}
    }

    fn start() -> ! {
        let features = caisson_rt::kernel(&MachineInfo {}).map_or(Features::empty(), |machine| machine.features);
        defmt::info!("sev-firmware: no secure processor; SEV in CPUID: {=bool}", features.contains(Features::SEV));
        caisson_rt::serve(&mut Image(Firmware::new(features)))
    }

    caisson_rt::entry!(start);
}

#[cfg(not(target_os = "none"))]
fn main() {}
