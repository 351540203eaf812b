//! Installs and downloads what is missing, and says exactly what to do where it can't.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Context, Failure, Status};
use crate::initramfs;
use crate::paths::{self, Paths, make_folder};
use crate::progress::quietly;

/// QEMU's binary and the Debian package that has it.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// Names the guest's kernel package of the day.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// Has the guest's programs.
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// What to do where it doesn't go by itself.
const BY_HAND: &str = "give --kernel BZIMAGE and --initrd FILE";
/// What Caisson is built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// What a guest boots if the user gives nothing.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The assembled initramfs.
    pub initramfs: PathBuf,
}

/// Sets up everything there is.
pub fn everything(paths: &Paths) -> Result<GuestFiles, Failure> {
    toolchain()?;
    let qemu = qemu()?;
    let files = guest_files(paths)?;
    eprintln!("QEMU: {}", qemu.display());
    eprintln!("guest's kernel: {}", files.kernel.display());
    eprintln!("guest's initramfs: {}", files.initramfs.display());
    Ok(files)
}

/// Makes sure that the compiler can build for ring 0.
pub fn toolchain() -> Result<(), Failure> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("can't run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    if sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["target", "add", TARGET]);
    quietly("adding the compiler's target", &mut command, Status::BadSetup)
        .map(|_| ())
        .map_err(|_| Failure::setup(format!("the compiler can't build for {TARGET}. Run: rustup target add {TARGET}")))
}

/// QEMU, installed if that is possible.
pub fn qemu() -> Result<PathBuf, Failure> {
    if let Some(found) = paths::program(QEMU.0) {
        return Ok(found);
    }
    let line = format!("apt-get install --no-install-recommends {}", QEMU.1);
    if !may_install() {
        return Err(Failure::setup(format!(
            "{} is missing. On Debian, run as root: {line}; elsewhere install QEMU 7.2 or newer for x86",
            QEMU.0
        )));
    }
    eprintln!("installing QEMU");
    with_lists(update_lists, || attempt(apt_get().args(["install", "-y", "--no-install-recommends", QEMU.1])))
        .map_err(|failure| Failure::setup(format!("{}; run: {line}", failure.text)))?;
    paths::program(QEMU.0).ok_or_else(|| Failure::setup(format!("{} is missing after: {line}", QEMU.0)))
}

/// The guest's kernel and initramfs, downloaded and assembled once.
pub fn guest_files(paths: &Paths) -> Result<GuestFiles, Failure> {
    let folder = paths.guest();
    make_folder(&folder)?;
    let root = folder.join("kernel");
    let kernel = match unpacked_kernel(&root) {
        Some(kernel) => kernel,
        None => {
            unpack(&root, kernel_package)?;
            unpacked_kernel(&root)
                .ok_or_else(|| Failure::setup(format!("{KERNEL_PACKAGE} brought no boot/vmlinuz-*; {BY_HAND}")))?
        }
    };
    let tools = folder.join("busybox");
    let busybox = tools.join("bin/busybox");
    if !busybox.is_file() {
        unpack(&tools, || Ok(BUSYBOX_PACKAGE.into()))?;
    }
    let initramfs = folder.join("initramfs.cpio");
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

/// The package that the kernel's metapackage stands for today.
fn kernel_package() -> Result<String, Failure> {
    let output = Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]).output().context("can't run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let depends = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    depends.filter(|package| package.starts_with("linux-image-")).map(str::to_owned).ok_or_else(|| {
        Failure::setup(format!("this system's package lists have no {KERNEL_PACKAGE}; as root, run: apt-get update"))
    })
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

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(["-q", "-o", "Dpkg::Use-Pty=0"]);
    command
}

/// Runs a command; if it fails, its own words are the error.
fn attempt(command: &mut Command) -> Result<(), Failure> {
    let what = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().context(format_args!("can't run {what}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.lines().filter(|line| line.starts_with("E:")).collect();
    Err(Failure::setup(format!("{what} failed ({}) {}", output.status, errors.join(" "))))
}

/// Does something that depends on the package lists; if it fails, once more with fresh ones.
fn with_lists<T>(update: impl Fn() -> Result<(), Failure>, act: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
    act().or_else(|_| {
        update()?;
        act()
    })
}

fn update_lists() -> Result<(), Failure> {
    if !is_root() {
        return Ok(());
    }
    eprintln!("reading Debian's package lists");
    attempt(apt_get().arg("update"))
}

fn may_install() -> bool {
    is_root() && paths::program("apt-get").is_some()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_package_that_moved_on_is_asked_for_anew() {
        let fresh = Cell::new(false);
        let update = || {
            fresh.set(true);
            Ok(())
        };
        let name = || if fresh.get() { "linux-image-2" } else { "linux-image-1" };
        let download = |package: &str| match package {
            "linux-image-2" => Ok(package.to_owned()),
            _ => Err(Failure::setup("404")),
        };
        assert_eq!(with_lists(update, || download(name())), Ok("linux-image-2".into()));
        let never = || -> Result<(), _> { Err(Failure::setup("404")) };
        assert!(with_lists(|| Ok(()), never).is_err());
    }

    #[test]
    fn lists_that_suffice_are_not_read_again() {
        assert_eq!(with_lists(|| panic!("needless"), || Ok(1)), Ok(1));
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
