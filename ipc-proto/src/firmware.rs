//! sev-firmware: speaks for the secure processor.

use crate::abi::Status;

/// Errors are [`Status`] values; `Unsupported` on a machine without SEV.
pub type Error = Status;

wire_enum! {
    /// What the machine offers.
    pub enum SevSupport {
        /// No SEV: CPUID 8000_001F EAX\[1\] is 0 or the leaf is absent.
        None = 0,
        /// SEV, and perhaps more.
        Present = 1,
    }
}

replies! {
    /// The platform.
    pub struct Platform {
        /// What it offers.
        pub support: SevSupport,
    }
    /// A guest's handle.
    pub struct GuestHandle {
        /// The firmware's handle.
        pub handle: u32,
    }
}

requests! {
    /// Every request to sev-firmware.
    pub enum FirmwareCall;

    /// What the platform offers.
    PlatformStatus = 1 {} -> Platform;
    /// Start the launch of an encrypted guest. `Unsupported` until a secure processor is behind this service.
    LaunchStart = 2 {
        /** The VM. */ vm: crate::addr::VmId,
        /** SEV guest policy. */ policy: u32,
    } -> GuestHandle;
}
