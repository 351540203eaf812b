//! The guest's files from Debian's packages, downloaded and unpacked; nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use caisson_manifest::vm::PACKAGE;

use crate::failure::{Context, Failure, Status};
use crate::initramfs;
use crate::paths::{self, Paths, make_folder};
use crate::progress::quietly;
use crate::setup::{apt_get, attempt, update_lists, with_lists};

/// The kernel that guests have if the user gives none.
pub const KERNEL: &str = "linux-image-cloud-amd64";
/// Has the guest's programs.
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// What to do where it doesn't go by itself.
const BY_HAND: &str = "give --kernel BZIMAGE and --initrd FILE";

/// What a guest boots.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The assembled initramfs.
    pub initramfs: PathBuf,
}

/// A kernel of Debian's and an initramfs for it, downloaded and assembled once.
///
/// `wanted` is a kernel's package or a metapackage of one; with a `*` in it, the newest version there.
pub fn guest_files(paths: &Paths, wanted: &str) -> Result<GuestFiles, Failure> {
    check_name(wanted)?;
    let folder = paths.guest();
    make_folder(&folder)?;
    let root = folder.join(wanted);
    let kernel = match unpacked_kernel(&root) {
        Some(kernel) => kernel,
        None => {
            unpack(&root, || package(wanted))?;
            unpacked_kernel(&root)
                .ok_or_else(|| Failure::setup(format!("{wanted} brought no boot/vmlinuz-*; {BY_HAND}")))?
        }
    };
    let tools = folder.join("busybox");
    let busybox = tools.join("bin/busybox");
    if !busybox.is_file() {
        unpack(&tools, || Ok(BUSYBOX_PACKAGE.into()))?;
    }
    let initramfs = folder.join(format!("{wanted}.cpio"));
    let version = kernel.file_name().map(|name| name.to_string_lossy().replacen("vmlinuz-", "", 1)).unwrap_or_default();
    let modules = root.join("lib/modules").join(version);
    paths::write_if_changed(&initramfs, &initramfs::assemble(&busybox, &modules)?)?;
    Ok(GuestFiles { kernel, initramfs })
}

/// The newest kernel in the folder.
fn unpacked_kernel(folder: &Path) -> Option<PathBuf> {
    let kernels = std::fs::read_dir(folder.join("boot")).ok()?.flatten().map(|entry| entry.path());
    kernels.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))).max()
}

/// The package that a name stands for today.
fn package(name: &str) -> Result<String, Failure> {
    let lists = |arguments: &[&str]| -> Result<String, Failure> {
        let output = Command::new("apt-cache").args(arguments).output().context("can't run apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let found = match name.split_once('*') {
        Some((front, back)) => newest(&lists(&["pkgnames", front])?, front, back),
        None => image(name, &lists(&["depends", name])?),
    };
    found.ok_or_else(|| {
        Failure::setup(format!("this system's package lists have no kernel {name}; as root, run: apt-get update"))
    })
}

/// The package of a kernel image: the one that a metapackage depends on, or itself.
fn image(name: &str, depends: &str) -> Option<String> {
    let mut lines = depends.lines();
    lines.next()?;
    let of_meta =
        lines.find_map(|line| line.trim().strip_prefix("Depends: ")).filter(|on| on.starts_with("linux-image-"));
    Some(of_meta.unwrap_or(name).to_owned())
}

/// The package with the highest version between `front` and `back`.
fn newest(names: &str, front: &str, back: &str) -> Option<String> {
    let version = |name: &str| -> Option<Vec<u64>> {
        let middle = name.strip_prefix(front)?.strip_suffix(back)?;
        let part = |part: &str| part.parse().unwrap_or(0);
        // Flavours have letters and dashes there.
        let plain = middle.bytes().all(|byte| byte.is_ascii_digit() || b".+deb~".contains(&byte));
        plain.then(|| middle.split(|byte: char| !byte.is_ascii_digit()).map(part).collect())
    };
    let known = names.lines().filter_map(|name| Some((version(name)?, name)));
    known.max().map(|(_, name)| name.to_owned())
}

fn check_name(name: &str) -> Result<(), Failure> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.+*".contains(&byte));
    if plain && name.starts_with("linux-image-") && name.matches('*').count() < 2 {
        return Ok(());
    }
    Err(Failure::setup(format!(
        "{PACKAGE}{name} is no kernel package of Debian's; give one like {PACKAGE}linux-image-amd64, with one * at the most"
    )))
}

/// Downloads the package that `name` says and unpacks it as `folder`. It isn't installed. What was interrupted before
/// its end leaves no `folder`, so the next time begins anew.
fn unpack(folder: &Path, name: impl Fn() -> Result<String, Failure>) -> Result<(), Failure> {
    if ["apt-get", "apt-cache", "dpkg"].iter().any(|program| paths::program(program).is_none()) {
        return Err(Failure::setup(format!(
            "the guest's files come from Debian packages, and this is no Debian: {BY_HAND}"
        )));
    }
    let parent = folder.parent().unwrap_or(folder);
    let scratch = tempfile::Builder::new().prefix("unpacking-").tempdir_in(parent).about("use folder", parent)?;
    let archive = with_lists(update_lists, || {
        // Asked each time: with new lists the package may have another name.
        let package = name()?;
        eprintln!("downloading {package}");
        attempt(apt_get().args(["-o", "APT::Sandbox::User=root", "download", &package]).current_dir(scratch.path()))?;
        archive(scratch.path(), &package)
    })
    .map_err(|failure| Failure::setup(format!("{}; {BY_HAND}", failure.text)))?;
    let root = scratch.path().join("root");
    let mut command = Command::new("dpkg");
    command.arg("-x").arg(&archive).arg(&root);
    let file = archive.file_name().unwrap_or_default();
    quietly(&format!("unpacking {}", file.display()), &mut command, Status::BadSetup)?;
    put(&root, folder)
}

/// The archive of this package that was downloaded into the folder.
fn archive(folder: &Path, package: &str) -> Result<PathBuf, Failure> {
    let prefix = format!("{package}_");
    let mut files = std::fs::read_dir(folder).about("read", folder)?.flatten().map(|entry| entry.path());
    files
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .ok_or_else(|| Failure::setup(format!("apt-get left no archive of {package}")))
}

/// Puts a complete folder in the place of whatever is there.
fn put(complete: &Path, folder: &Path) -> Result<(), Failure> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).about("remove", folder)?;
    }
    std::fs::rename(complete, folder).about("make", folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_pattern_and_no_other_flavour() {
        let names = "linux-image-6.12.9-cloud-amd64\nlinux-image-6.12.111+deb12-cloud-amd64\n\
            linux-image-6.12.200-rt-cloud-amd64\nlinux-image-6.13.1-cloud-amd64\nlinux-image-6.12.300-cloud-amd64-dbg\n";
        let found = newest(names, "linux-image-6.12.", "-cloud-amd64");
        assert_eq!(found.as_deref(), Some("linux-image-6.12.111+deb12-cloud-amd64"));
        assert_eq!(newest(names, "linux-image-7.", "-cloud-amd64"), None);
    }

    #[test]
    fn a_metapackage_stands_for_what_it_depends_on() {
        let meta = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(image("linux-image-amd64", meta).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        let itself = "linux-image-6.1.0-56-amd64\n  Depends: kmod\n  Depends: linux-base\n";
        assert_eq!(image("linux-image-6.1.0-56-amd64", itself).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(image("linux-image-nothing", ""), None);
    }

    #[test]
    fn names_are_no_paths() {
        for name in ["linux-image-../x", "busybox", "linux-image-*-*", "linux-image-a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert_eq!(check_name("linux-image-6.12.*-cloud-amd64"), Ok(()));
    }

    #[test]
    fn what_was_interrupted_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("kernel"), place.path().join("new"));
        for (folder, file) in [(&old, "half"), (&new, "vmlinuz-2")] {
            std::fs::create_dir_all(folder.join("boot")).unwrap();
            std::fs::write(folder.join("boot").join(file), "").unwrap();
        }
        assert_eq!(unpacked_kernel(&old), None);
        put(&new, &old).unwrap();
        assert_eq!(unpacked_kernel(&old), Some(old.join("boot/vmlinuz-2")));
        assert!(!old.join("boot/half").exists() && !new.exists());
    }
}
