//! sev-firmware: speaks for the secure processor.
//!
//! No secure processor is behind it: it says what the CPU reports and refuses every launch.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

use caisson_proto::abi::Status;
use caisson_proto::firmware::{FirmwareCall, Platform, SevSupport};
use caisson_proto::kernel::Features;
use caisson_proto::wire::{Reply, Words};

/// The service's state.
#[derive(Clone, Copy, Debug)]
pub struct Firmware {
    support: SevSupport,
}

impl Firmware {
    /// On a machine with these features.
    pub const fn new(features: Features) -> Self {
        let present = features.contains(Features::SEV);
        Self { support: if present { SevSupport::Present } else { SevSupport::None } }
    }

    /// Answers one request.
    pub fn handle(&self, words: &Words) -> (Status, Words) {
        match FirmwareCall::decode(words) {
            Ok(FirmwareCall::PlatformStatus(_)) => (Status::Ok, Platform { support: self.support }.encode()),
            Ok(FirmwareCall::LaunchStart(_)) => (Status::Unsupported, [0; 8]),
            Err(_) => (Status::Malformed, [0; 8]),
        }
    }
}

#[cfg(test)]
mod tests {
    use caisson_proto::addr::VmId;
    use caisson_proto::firmware::{LaunchStart, PlatformStatus};
    use caisson_proto::wire::Request;

    use super::*;

    #[test]
    fn tells_what_the_cpu_reports() {
        for (features, support) in [
            (Features::empty(), SevSupport::None),
            (Features::NESTED_PAGING, SevSupport::None),
            (Features::SEV | Features::NESTED_PAGING, SevSupport::Present),
        ] {
            let (status, words) = Firmware::new(features).handle(&PlatformStatus {}.encode());
            assert_eq!((status, Platform::decode(&words)), (Status::Ok, Ok(Platform { support })));
        }
    }

    #[test]
    fn refuses_launches_even_where_sev_is_present() {
        let launch = LaunchStart { vm: VmId::new(0, 0), policy: 0 };
        for features in [Features::empty(), Features::SEV] {
            assert_eq!(Firmware::new(features).handle(&launch.encode()).0, Status::Unsupported);
        }
    }

    #[test]
    fn malformed_requests_are_the_senders_fault() {
        let firmware = Firmware::new(Features::SEV);
        for words in [[0; 8], [99, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [u64::MAX; 8]] {
            assert_eq!(firmware.handle(&words).0, Status::Malformed);
        }
    }
}
