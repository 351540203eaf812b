//! A VM's file (`--vm FILE.toml`): everything may be left out and then has the value that the caller gives.

use std::path::{Path, PathBuf};

use caisson_proto::abi::MAX_VCPUS;
use caisson_proto::vmm::{Encryption, OnReset};
use serde::Deserialize;

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
        for named in [&mut file.kernel, &mut file.initrd].into_iter().flatten() {
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
    fn a_package_is_no_path() {
        let file = VmFile::parse(Path::new("d/a.toml"), "kernel = \"debian:linux-image-amd64\"").unwrap();
        assert_eq!(file.kernel.as_deref(), Some(Path::new("debian:linux-image-amd64")));
    }

    #[test]
    fn an_empty_file_is_named_after_itself() {
        assert_eq!(VmFile::parse(Path::new("d/web.toml"), "").unwrap().name.as_deref(), Some("web"));
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
