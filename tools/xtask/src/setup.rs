//! Installs and downloads what is missing, and says exactly what to do where it can't.

use std::path::{Path, PathBuf};
use std::process::Command;

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
    with_lists("installing QEMU", || {
        let mut command = apt_get();
        command.args(["install", "-y", "--no-install-recommends", QEMU.1]);
        command
    })?;
    paths::program(QEMU.0).ok_or_else(|| Failure::setup(format!("{} is missing after: {line}", QEMU.0)))
}

/// The guest's kernel and initramfs, downloaded and assembled once.
pub fn guest_files(paths: &Paths) -> Result<GuestFiles, Failure> {
    let folder = paths.guest();
    make_folder(&folder)?;
    let kernel = match unpacked_kernel(&folder) {
        Some(kernel) => kernel,
        None => {
            let package = kernel_package()?;
            unpack(&folder, &package)?;
            unpacked_kernel(&folder)
                .ok_or_else(|| Failure::setup(format!("package {package} has no boot/vmlinuz-*")))?
        }
    };
    let busybox = folder.join("bin/busybox");
    if !busybox.is_file() {
        unpack(&folder, BUSYBOX_PACKAGE)?;
    }
    let initramfs = folder.join("initramfs.cpio");
    let version = kernel.file_name().map(|name| name.to_string_lossy().replacen("vmlinuz-", "", 1)).unwrap_or_default();
    let modules = folder.join("lib/modules").join(version);
    paths::write_if_changed(&initramfs, &initramfs::assemble(&busybox, &modules)?)?;
    Ok(GuestFiles { kernel, initramfs })
}

/// The newest kernel in the folder.
fn unpacked_kernel(folder: &Path) -> Option<PathBuf> {
    let kernels = std::fs::read_dir(folder.join("boot")).ok()?.flatten().map(|entry| entry.path());
    kernels.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))).max()
}

/// The package that the kernel's metapackage stands for.
fn kernel_package() -> Result<String, Failure> {
    let ask = || {
        let output = Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let depends = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?;
        depends.starts_with("linux-image-").then(|| depends.to_owned())
    };
    if let Some(package) = ask() {
        return Ok(package);
    }
    if paths::program("apt-get").is_some() && is_root() {
        update_lists()?;
    }
    ask().ok_or_else(|| {
        Failure::setup(format!(
            "no guest kernel: this system's packages have no {KERNEL_PACKAGE}. On Debian 12, run as root: \
             apt-get update; elsewhere give --kernel BZIMAGE and --initrd FILE"
        ))
    })
}

/// Downloads a package and unpacks it into the folder. It isn't installed.
fn unpack(folder: &Path, package: &str) -> Result<(), Failure> {
    let by_hand = format!(
        "run: cd {} && apt-get download {package} && dpkg -x {package}_*.deb . ; or give --kernel and --initrd",
        folder.display()
    );
    if paths::program("apt-get").is_none() || paths::program("dpkg").is_none() {
        return Err(Failure::setup(format!(
            "the guest's files come from Debian packages, and this is no Debian: {by_hand}"
        )));
    }
    let downloads = folder.join("packages");
    make_folder(&downloads)?;
    with_lists(&format!("downloading {package}"), || {
        let mut command = apt_get();
        command.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(&downloads);
        command
    })
    .map_err(|failure| Failure::setup(format!("{}; {by_hand}", failure.text)))?;
    let prefix = format!("{package}_");
    let archive = std::fs::read_dir(&downloads)
        .about("read", &downloads)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .ok_or_else(|| Failure::setup(format!("apt-get left no archive of {package}; {by_hand}")))?;
    let mut command = Command::new("dpkg");
    command.arg("-x").arg(&archive).arg(folder);
    quietly(&format!("unpacking {package}"), &mut command, Status::BadSetup).map(|_| ())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(["-q", "-o", "Dpkg::Use-Pty=0"]);
    command
}

/// Runs an apt-get command; if it fails, once more with fresh package lists.
fn with_lists(what: &str, command: impl Fn() -> Command) -> Result<(), Failure> {
    if command().output().context("can't run apt-get")?.status.success() {
        return Ok(());
    }
    if is_root() {
        update_lists()?;
    }
    quietly(what, &mut command(), Status::BadSetup).map(|_| ())
}

fn update_lists() -> Result<(), Failure> {
    quietly("reading Debian's package lists", apt_get().arg("update"), Status::BadSetup).map(|_| ())
}

fn may_install() -> bool {
    is_root() && paths::program("apt-get").is_some()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
