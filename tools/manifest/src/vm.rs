//! A VM's file (`--vm FILE.toml`): everything may be left out and then has the value that the caller gives.

use std::path::{Path, PathBuf};

use caisson_proto::abi::MAX_VCPUS;
use caisson_proto::layout;
use caisson_proto::vmm::{Balloon, Disk, Encryption, OnReset, Plug};
use serde::Deserialize;

pub use crate::network::{check_mac, check_network, usual_mac};
use crate::{Error, Size, parse, wrong};

/// Longest name of a VM in bytes: `vmm-NAME` must fit a service's name.
pub const MAX_NAME: usize = 12;
/// Guest memory comes in pieces of this many bytes.
pub const MEMORY_STEP: u64 = 2 << 20;
/// Guest memory below this can't hold a kernel with its tables.
pub const MIN_MEMORY: u64 = 64 << 20;

/// What a VM's file may say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmFile {
    /// Name in logs and on the console; the file's own name if absent.
    pub name: Option<String>,
    /// vCPUs.
    pub vcpus: Option<u8>,
    /// Guest memory.
    pub memory: Option<Size>,
    /// How much of the memory it is sure to get; all of it if absent.
    pub promised: Option<Size>,
    /// The kernel, a bzImage or a Multiboot image, relative to this file; or `debian:` and a package.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk; relative to this file.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// What a reset by the guest does.
    pub on_reset: Option<OnReset>,
    /// The devices that test programs expect: debug exit, test device, fw_cfg.
    pub test_devices: Option<bool>,
    /// How its memory is encrypted: none, sev, sev-snp.
    pub encryption: Option<Encryption>,
    /// The physical CPU of vCPU 0; the others follow.
    pub first_cpu: Option<u16>,
    /// A disk's contents, relative to this file. It isn't written to.
    pub disk: Option<PathBuf>,
    /// How much of the disk the guest may change; 0 for a disk that can only be read.
    pub disk_overlay: Option<Size>,
    /// A balloon, by which the guest gives free memory back.
    pub balloon: Option<bool>,
    /// How much of the guest's memory the balloon wants.
    pub balloon_target: Option<Size>,
    /// How much memory it can have at the most, with what is plugged while it runs.
    pub memory_max: Option<Size>,
    /// How much of that is plugged at first; none if absent.
    pub memory_plugged: Option<Size>,
    /// A console by virtio, beside the serial port.
    pub virtio_console: Option<bool>,
    /// The network that it is in: with the other VMs that name the same.
    pub network: Option<String>,
    /// Its address there; one made of its number if absent.
    pub mac: Option<String>,
}

/// In the place of a kernel's file: what follows is the name of a Debian package.
pub const PACKAGE: &str = "debian:";
/// The same for a guest of this repository.
pub const EXAMPLE: &str = "example:";

impl VmFile {
    /// The file's content, with paths made relative to where the file lies.
    ///
    /// # Errors
    /// [`Error`] with the place of what isn't understood.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let mut file: Self = parse::toml(path, text)?;
        if file.encryption == Some(Encryption::SevEs) {
            return Err(wrong!(
                "{}: `encryption` is \"sev-es\", and such a guest can't be launched yet; give \"sev\" or \"sev-snp\"",
                path.display()
            ));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        for named in [&mut file.kernel, &mut file.initrd, &mut file.disk].into_iter().flatten() {
            let text = named.to_string_lossy();
            if ![PACKAGE, EXAMPLE].iter().any(|prefix| text.starts_with(prefix)) {
                *named = folder.join(&*named);
            }
        }
        if file.name.is_none() {
            file.name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        }
        Ok(file)
    }
}

/// Checks a VM's name.
///
/// # Errors
/// [`Error`] if it can't be used.
pub fn check_name(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || name.len() > MAX_NAME || !plain {
        return Err(wrong!(
            "VM name \"{name}\" can't be used: give 1 to {MAX_NAME} lower-case letters, digits or \"-\" as `name`"
        ));
    }
    Ok(())
}

/// Checks a VM's number of vCPUs.
///
/// # Errors
/// [`Error`] if it is outside 1 to [`MAX_VCPUS`].
pub fn check_vcpus(name: &str, vcpus: u64) -> Result<u8, Error> {
    match u8::try_from(vcpus) {
        Ok(vcpus @ 1..) if usize::from(vcpus) <= MAX_VCPUS => Ok(vcpus),
        _ => Err(wrong!("VM \"{name}\" wants {vcpus} vCPUs; it can have 1 to {MAX_VCPUS}")),
    }
}

/// Checks a VM's memory.
///
/// # Errors
/// [`Error`] if it is too little or not in steps of 2 MiB.
pub fn check_memory(name: &str, memory: Size) -> Result<u64, Error> {
    if memory.0 < MIN_MEMORY {
        return Err(wrong!("VM \"{name}\" has {memory} of memory; it needs at least {}", Size(MIN_MEMORY)));
    }
    if !memory.0.is_multiple_of(MEMORY_STEP) {
        return Err(wrong!("VM \"{name}\" has {memory} of memory; give a multiple of {}", Size(MEMORY_STEP)));
    }
    Ok(memory.0)
}

/// Checks how much of a VM's memory it is sure to get; all of it if its file doesn't say.
///
/// # Errors
/// [`Error`] if that is more than it has, isn't in steps of 2 MiB, or is less for a VM that has all its memory from the start.
pub fn check_promised(name: &str, memory: u64, promised: Option<Size>, encrypted: bool) -> Result<u64, Error> {
    let promised = promised.unwrap_or(Size(memory));
    if promised.0 > memory || !promised.0.is_multiple_of(MEMORY_STEP) {
        let (step, most) = (Size(MEMORY_STEP), Size(memory));
        return Err(wrong!(
            "`promised` of VM \"{name}\" is {promised}: give a multiple of {step} up to its memory, {most}"
        ));
    }
    if encrypted && promised.0 < memory {
        return Err(wrong!(
            "`promised` of VM \"{name}\": it is encrypted and has all its memory from the start; leave it out"
        ));
    }
    Ok(promised.0)
}

/// Bytes in which a disk is counted.
pub const SECTOR: u64 = 512;
/// Bytes of a disk at the most: what a file of the bundle can have.
pub const MAX_DISK: u64 = layout::FILE_STRIDE;
/// How much of a disk may be changed at the most: what the vmm's heap has room for.
pub const MAX_OVERLAY: u64 = 192 << 20;
/// How much of a disk may be changed if the VM's file doesn't say.
const USUAL_OVERLAY: u64 = 64 << 20;
/// A page.
const PAGE: u64 = 4096;

/// Checks a VM's disk of so many bytes and says how much of it may be changed.
///
/// # Errors
/// [`Error`] for a disk that is none, or more to be changed than there is room for.
pub fn check_disk(name: &str, bytes: u64, overlay: Option<Size>) -> Result<Disk, Error> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(wrong!(
            "the disk of VM \"{name}\" has {bytes} bytes; a disk has one or more whole sectors of {SECTOR} bytes"
        ));
    }
    if bytes > MAX_DISK {
        return Err(wrong!("the disk of VM \"{name}\" has {}; at most {} fit", Size(bytes), Size(MAX_DISK)));
    }
    let whole = bytes.next_multiple_of(PAGE);
    let asked = overlay.map_or(USUAL_OVERLAY, |overlay| overlay.0);
    if !asked.is_multiple_of(PAGE) || asked > MAX_OVERLAY {
        return Err(wrong!(
            "`disk-overlay` of VM \"{name}\" is {}: give a multiple of {} up to {}",
            Size(asked),
            Size(PAGE),
            Size(MAX_OVERLAY)
        ));
    }
    Ok(Disk { overlay: asked.min(whole) })
}

/// Checks how much of a VM's memory its balloon wants.
///
/// # Errors
/// [`Error`] if that is no number of pages, or leaves the guest less than any VM has.
pub fn check_balloon(name: &str, memory: u64, target: Option<Size>) -> Result<Balloon, Error> {
    let target = target.unwrap_or_default();
    if !target.0.is_multiple_of(PAGE) || target.0 > memory.saturating_sub(MIN_MEMORY) {
        return Err(wrong!(
            "`balloon-target` of VM \"{name}\" is {target}: give a multiple of {} that leaves the guest {} of its {}",
            Size(PAGE),
            Size(MIN_MEMORY),
            Size(memory)
        ));
    }
    Ok(Balloon { target: target.0 })
}

/// Memory that is plugged comes in regions of a multiple of this many bytes: Linux takes no smaller pieces.
pub const PLUG_STEP: u64 = 128 << 20;
/// And at most so much: what a request for all of it can be answered for at once.
pub const MAX_PLUG: u64 = 16 << 30;

/// Checks how much memory can be plugged into a VM while it runs, and how much of it is at first.
///
/// # Errors
/// [`Error`] if the most is less than the VM has or not in steps of 128 MiB above it, or more is plugged than that leaves.
pub fn check_plug(name: &str, memory: u64, most: Size, plugged: Option<Size>) -> Result<Plug, Error> {
    let region = most.0.checked_sub(memory).filter(|region| (1..=MAX_PLUG).contains(region));
    let Some(region) = region.filter(|region| region.is_multiple_of(PLUG_STEP)) else {
        return Err(wrong!(
            "`memory-max` of VM \"{name}\" is {most}: give its memory, {}, and a multiple of {} more, at most {} more",
            Size(memory),
            Size(PLUG_STEP),
            Size(MAX_PLUG)
        ));
    };
    let wanted = plugged.unwrap_or_default();
    if wanted.0 > region || !wanted.0.is_multiple_of(MEMORY_STEP) {
        return Err(wrong!(
            "`memory-plugged` of VM \"{name}\" is {wanted}: give a multiple of {} up to {}, which is `memory-max` less `memory`",
            Size(MEMORY_STEP),
            Size(region)
        ));
    }
    Ok(Plug { most: region, wanted: wanted.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_read() {
        let text = "name = \"a\"\nvcpus = 4\nmemory = \"1G\"\nkernel = \"k\"\ninitrd = \"/i\"\ncmdline = \"c\"\n\
                    on-reset = \"restart\"\nfirst-cpu = 1\ntest-devices = true\n";
        let file = VmFile::parse(Path::new("d/x.toml"), text).unwrap();
        assert_eq!(file.kernel.as_deref(), Some(Path::new("d/k")));
        assert_eq!(file.initrd.as_deref(), Some(Path::new("/i")));
        assert_eq!(file.on_reset, Some(OnReset::Restart));
        assert_eq!(file.memory, Some(Size(1 << 30)));
        assert_eq!(file.test_devices, Some(true));
    }

    #[test]
    fn no_more_is_promised_than_there_is() {
        const MIB: u64 = 1 << 20;
        let check = |promised, encrypted| check_promised("a", 128 * MIB, promised, encrypted);
        assert_eq!(check(None, true), Ok(128 * MIB));
        assert_eq!(check(Some(Size(0)), false), Ok(0));
        assert_eq!(check(Some(Size(64 * MIB)), false), Ok(64 * MIB));
        assert_eq!(check(Some(Size(128 * MIB)), true), Ok(128 * MIB));
        for (promised, encrypted, says) in [
            (130 * MIB, false, "up to its memory, 128M"),
            (MIB, false, "multiple of 2M"),
            (64 * MIB, true, "encrypted"),
        ] {
            assert!(check(Some(Size(promised)), encrypted).unwrap_err().0.contains(says), "{promised}");
        }
        let file = VmFile::parse(Path::new("d/a.toml"), "promised = \"64M\"").unwrap();
        assert_eq!(file.promised, Some(Size(64 * MIB)));
    }

    #[test]
    fn a_package_is_no_path() {
        let file = VmFile::parse(Path::new("d/a.toml"), "kernel = \"debian:linux-image-amd64\"").unwrap();
        assert_eq!(file.kernel.as_deref(), Some(Path::new("debian:linux-image-amd64")));
    }

    #[test]
    fn an_empty_file_is_named_after_itself() {
        assert_eq!(VmFile::parse(Path::new("d/web.toml"), "").unwrap().name.as_deref(), Some("web"));
    }

    #[test]
    fn disks_and_balloons_are_checked() {
        const MIB: u64 = 1 << 20;
        assert_eq!(check_disk("a", 512, None), Ok(Disk { overlay: 4096 }), "no more than there is");
        assert_eq!(check_disk("a", 256 * MIB, None), Ok(Disk { overlay: 64 * MIB }));
        assert_eq!(check_disk("a", 256 * MIB, Some(Size(0))), Ok(Disk { overlay: 0 }));
        assert!(
            check_disk("a", 0, None).is_err() && check_disk("a", 513, None).unwrap_err().0.contains("whole sectors")
        );
        assert_eq!(check_disk("a", MAX_DISK, Some(Size(MAX_OVERLAY))), Ok(Disk { overlay: MAX_OVERLAY }));
        assert!(check_disk("a", MAX_DISK + 512, None).unwrap_err().0.contains("at most 1G fit"));
        let error = check_disk("a", MIB, Some(Size(MAX_OVERLAY + 4096))).unwrap_err();
        assert!(error.0.contains("multiple of 4K up to 192M"), "{error}");
        assert!(check_disk("a", MIB, Some(Size(512))).is_err());

        assert_eq!(check_balloon("a", 128 * MIB, None), Ok(Balloon { target: 0 }));
        assert_eq!(check_balloon("a", 128 * MIB, Some(Size(64 * MIB))), Ok(Balloon { target: 64 * MIB }));
        let error = check_balloon("a", 128 * MIB, Some(Size(65 * MIB))).unwrap_err();
        assert!(error.0.contains("leaves the guest 64M of its 128M"), "{error}");
        assert!(check_balloon("a", 128 * MIB, Some(Size(1))).is_err());
        let file = VmFile::parse(Path::new("d/a.toml"), "disk = \"x.img\"\ndisk-overlay = \"8M\"\nballoon = true\n");
        assert_eq!(file.unwrap().disk.as_deref(), Some(Path::new("d/x.img")));
    }

    #[test]
    fn memory_that_is_plugged_is_checked() {
        const MIB: u64 = 1 << 20;
        let check = |most: u64, plugged| check_plug("a", 256 * MIB, Size(most * MIB), plugged);
        assert_eq!(check(512, None), Ok(Plug { most: 256 * MIB, wanted: 0 }));
        assert_eq!(check(384, Some(Size(128 * MIB))), Ok(Plug { most: 128 * MIB, wanted: 128 * MIB }));
        for most in [0, 128, 256, 257, 300, 256 + (16 << 10) + 128] {
            assert!(check(most, None).unwrap_err().0.contains("256M, and a multiple of 128M more, at most 16G more"));
        }
        for plugged in [1, MIB, 130 * MIB] {
            assert!(check(384, Some(Size(plugged))).unwrap_err().0.contains("multiple of 2M up to 128M"), "{plugged}");
        }
        let file = VmFile::parse(Path::new("d/a.toml"), "memory-max = \"1G\"\nmemory-plugged = \"64M\"\n").unwrap();
        assert_eq!((file.memory_max, file.memory_plugged), (Some(Size(1 << 30)), Some(Size(64 * MIB))));
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |text| VmFile::parse(Path::new("v.toml"), text).unwrap_err().0;
        assert!(error("vcpu = 2").starts_with("v.toml:1:1: unknown key \"vcpu\"; did you mean \"vcpus\"?"));
        assert!(error("on-reset = \"restat\"").contains("did you mean \"restart\"?"));
        let es = error("encryption = \"sev-es\"");
        assert!(es.starts_with("v.toml: ") && es.contains("give \"sev\" or \"sev-snp\""));
        assert!(error("vcpus = 300").starts_with("v.toml:1:9"));
        assert!(check_name("Big Name").is_err() && check_name("thirteenbytes").is_err() && check_name("web-1").is_ok());
        assert!(check_vcpus("a", 9).unwrap_err().0.contains("1 to 8") && check_vcpus("a", 0).is_err());
        assert!(check_memory("a", Size(32 << 20)).unwrap_err().0.contains("at least 64M"));
        assert!(check_memory("a", Size((64 << 20) + 4096)).unwrap_err().0.contains("multiple of 2M"));
        assert_eq!(check_memory("a", Size(64 << 20)), Ok(64 << 20));
    }
}
