//! vmm: the device models of one VM. It is called by vCPUs ([`crate::vcpu`]) and by nobody else.
//! This file has its configuration, which travels as `postcard` in the bundle.

extern crate alloc;
use alloc::string::String;

/// Number of a file of a vmm in the bundle.
pub mod file {
    /// The [`VmConfig`](super::VmConfig).
    pub const CONFIG: usize = 0;
    /// The kernel image.
    pub const KERNEL: usize = 1;
    /// The initial RAM disk; may be absent (length 0).
    pub const INITRD: usize = 2;
    /// The contents of the disk; may be absent (length 0).
    pub const DISK: usize = 3;
}

/// What to do when the guest asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// Start the VM anew.
    Restart,
    /// End it as if it were powered off.
    Stop,
}

/// How a guest's memory is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// Not at all.
    #[default]
    None,
    /// SEV.
    Sev,
    /// SEV-ES.
    SevEs,
    /// SEV-SNP.
    SevSnp,
}

/// A disk. Its contents are a file of the vmm's, which stays as it is: what the guest writes is kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Disk {
    /// Bytes of it that may be changed, in pieces of 4 KiB; 0: none, the disk can only be read.
    pub overlay: u64,
}

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Balloon {
    /// Bytes that the host wants of the guest's memory, a multiple of 4 KiB.
    pub target: u64,
}

/// A port of the [switch](crate::switch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Net {
    /// Its address, as the switch knows it.
    pub mac: crate::switch::Mac,
}

/// Memory that comes and goes while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plug {
    /// Bytes of it at the most, a multiple of 128 MiB.
    pub most: u64,
    /// Bytes that the guest is to have of it at first, a multiple of 2 MiB.
    pub wanted: u64,
}

/// Devices by virtio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Virtio {
    /// The disk, if it has one.
    pub disk: Option<Disk>,
    /// The balloon, if it has one.
    pub balloon: Option<Balloon>,
    /// The memory that can be plugged, if there is any.
    pub plug: Option<Plug>,
    /// Whether it has a console.
    pub console: bool,
    /// The network's card, if it is in one.
    pub net: Option<Net>,
}

/// A VM as its owner configured it, checked and completed by the build.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VmConfig {
    /// Its name in logs and on the console.
    pub name: String,
    /// vCPUs, 1 to 8.
    pub vcpus: u8,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// How much of it the VM is sure to get; the rest as far as there is some.
    pub promised: u64,
    /// The kernel's command line.
    pub cmdline: String,
    /// What a reset does.
    pub on_reset: OnReset,
    /// The devices of test programs: debug exit, test device, fw_cfg.
    pub test_devices: bool,
    /// How its memory is encrypted.
    pub encryption: Encryption,
    /// Its virtio devices.
    pub virtio: Virtio,
    /// The physical CPU of vCPU 0; the others follow.
    pub first_cpu: u16,
    /// The lowest physical CPU that runs guests.
    pub lowest_cpu: u16,
    /// Wall-clock time at the build, in seconds since 1970, if the board has no clock; else 0.
    pub epoch: u64,
    /// A seed that differs from run to run unless it is fixed, for the guest's random generator.
    pub seed: [u8; 32],
}
