//! Installs and downloads what is missing, and says exactly what to do where it can't.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::debian::{self, GuestFiles};
use crate::failure::{Context, Failure, Status};
use crate::paths::{self, Paths};
use crate::progress::quietly;

/// QEMU's binary and the Debian package that has it.
const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// What is installed already stays as it is.
const APT_INSTALL: [&str; 4] = ["install", "-y", "--no-install-recommends", "--no-upgrade"];
/// What Caisson is built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// Sets up everything there is.
pub fn everything(paths: &Paths) -> Result<GuestFiles, Failure> {
    toolchain()?;
    let qemu = qemu()?;
    let files = debian::guest_files(paths, debian::KERNEL)?;
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
    install(&[QEMU.1]).map_err(|failure| {
        Failure::setup(format!("{} is missing. {}; elsewhere install QEMU 7.2 or newer for x86", QEMU.0, failure.text))
    })?;
    paths::program(QEMU.0).ok_or_else(|| Failure::setup(format!("{} is missing after installing {}", QEMU.0, QEMU.1)))
}

/// Installs Debian packages if that is possible; the error says what to type.
pub fn install(packages: &[&str]) -> Result<(), Failure> {
    let line = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !may_install() {
        return Err(Failure::setup(format!("On Debian, run as root: {line}")));
    }
    eprintln!("installing {}", packages.join(" "));
    with_lists(update_lists, || attempt(apt_get().args(APT_INSTALL).args(packages)))
        .map_err(|failure| Failure::setup(format!("{}; run: {line}", failure.text)))
}

pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(["-q", "-o", "Dpkg::Use-Pty=0"]);
    command
}

/// Runs a command; if it fails, its own words are the error.
pub fn attempt(command: &mut Command) -> Result<(), Failure> {
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
pub fn with_lists<T>(
    update: impl Fn() -> Result<(), Failure>, act: impl Fn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    act().or_else(|_| {
        update()?;
        act()
    })
}

pub fn update_lists() -> Result<(), Failure> {
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
}
