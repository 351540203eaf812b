//! Assembles the guest's initial RAM disk: busybox, its applets as links, and an init that gives the console to
//! a shell. It isn't compressed, because unpacking takes the guest longer than loading it takes the machine.

use std::path::Path;
use std::process::Command;

use cpio::newc::{Builder, trailer};

use crate::failure::{Context, Failure};
use crate::modules::in_order;

/// The beginning of the prompt that [`INIT`] sets.
pub const PROMPT: &str = "guest:";

const INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
insmod /lib/pvpanic.ko 2>/dev/null && insmod /lib/pvpanic-mmio.ko 2>/dev/null
[ -e /sys/bus/acpi/devices/LNRO0005:00 ] && sh /lib/virtio.sh
[ -e /sys/class/net/eth0 ] && sh /lib/network.sh
export PATH=/bin HOME=/root TERM=vt100 PS1='guest:\w# '
cd /root
[ -e start.sh ] && sh start.sh
if [ -e /dev/hvc0 ]; then setsid sh -c 'exec sh < /dev/hvc0 > /dev/hvc0 2>&1'; else setsid cttyhack sh; fi
poweroff -f
"#;

/// Where there is a network, the guest's address in it is 10.0.0.N, of its card's last byte.
const NETWORK: &str = r#"read address < /sys/class/net/eth0/address
ip link set lo up
ip address add 10.0.0.$((0x${address##*:}))/24 dev eth0
ip link set eth0 up
"#;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;

/// Modules of the guest's kernel for virtio's devices: file, and where it is among the kernel's modules. What a kernel has built
/// in is no file.
const VIRTIO: [(&str, &str); 10] = [
    ("virtio", "kernel/drivers/virtio"),
    ("virtio_ring", "kernel/drivers/virtio"),
    ("virtio_mmio", "kernel/drivers/virtio"),
    ("virtio_blk", "kernel/drivers/block"),
    ("virtio_balloon", "kernel/drivers/virtio"),
    ("virtio_mem", "kernel/drivers/virtio"),
    ("virtio_console", "kernel/drivers/char"),
    ("failover", "kernel/net/core"),
    ("net_failover", "kernel/drivers/net"),
    ("virtio_net", "kernel/drivers/net"),
];

/// Modules of the guest's kernel by which it reports a panic: pvpanic's core and its ACPI device.
const MODULES: [&str; 2] = ["pvpanic", "pvpanic-mmio"];
/// Where they are among a kernel's modules.
const MODULE_FOLDER: &str = "kernel/drivers/misc/pvpanic";

/// The archive, in the kernel's "newc" format; `modules` is the folder of the kernel's modules. Another kernel
/// refuses them, and then its panics look like resets.
pub fn assemble(busybox: &Path, modules: &Path) -> Result<Vec<u8>, Failure> {
    let program = std::fs::read(busybox).about("read", busybox)?;
    let applets = Command::new(busybox).arg("--list").output().about("run", busybox)?;
    let mut archive = Archive { bytes: Vec::new(), inode: 1 };
    for folder in ["bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp"] {
        archive.add(Builder::new(folder).mode(FOLDER).nlink(2), b"")?;
    }
    archive.add(Builder::new("dev/console").mode(CONSOLE).rdev_major(5).rdev_minor(1), b"")?;
    archive.add(Builder::new("init").mode(PROGRAM), INIT.as_bytes())?;
    archive.add(Builder::new("bin/busybox").mode(PROGRAM), &program)?;
    for module in MODULES {
        if let Some(content) = unpacked(&modules.join(MODULE_FOLDER), module)? {
            archive.add(Builder::new(&format!("lib/{module}.ko")).mode(PROGRAM), &content)?;
        }
    }
    let mut virtio = Vec::new();
    for (name, folder) in VIRTIO {
        virtio.extend(unpacked(&modules.join(folder), name)?.map(|content| (name, content)));
    }
    // What is plugged is to be used at once, and so that it can be unplugged again.
    let mut script = String::from("echo online_movable > /sys/devices/system/memory/auto_online_blocks\n");
    for (name, content) in in_order(virtio) {
        archive.add(Builder::new(&format!("lib/{name}.ko")).mode(PROGRAM), &content)?;
        script.push_str(&format!("insmod /lib/{name}.ko\n"));
    }
    archive.add(Builder::new("lib/virtio.sh").mode(PROGRAM), script.as_bytes())?;
    archive.add(Builder::new("lib/network.sh").mode(PROGRAM), NETWORK.as_bytes())?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|&name| name != "busybox") {
        archive.add(Builder::new(&format!("bin/{applet}")).mode(LINK), b"busybox")?;
    }
    trailer(archive.bytes).context("can't end the initramfs")
}

/// The archive with a script of root's that the guest runs before its shell.
pub fn with_start(mut archive: Vec<u8>, script: &str) -> Result<Vec<u8>, Failure> {
    // The kernel takes one archive behind the other, where it is aligned.
    archive.resize(archive.len().next_multiple_of(512), 0);
    let mut more = Archive { bytes: Vec::new(), inode: 1 };
    more.add(Builder::new("root/start.sh").mode(PROGRAM), script.as_bytes())?;
    archive.extend(trailer(more.bytes).context("can't end the initramfs")?);
    Ok(archive)
}

/// A kernel's module, unpacked; none if there is no such file.
fn unpacked(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let path = folder.join(format!("{name}.ko"));
    if path.is_file() {
        return std::fs::read(&path).about("read", &path).map(Some);
    }
    let path = folder.join(format!("{name}.ko.xz"));
    if !path.is_file() {
        return Ok(None);
    }
    let packed = std::fs::File::open(&path).about("read", &path)?;
    let mut content = Vec::new();
    let mut reader = lzma_rust2::XzReader::new(std::io::BufReader::new(packed), false);
    std::io::Read::read_to_end(&mut reader, &mut content).about("unpack", &path)?;
    Ok(Some(content))
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, entry: Builder, content: &[u8]) -> Result<(), Failure> {
        let mut writer = entry.ino(self.inode).write(std::mem::take(&mut self.bytes), content.len() as u32);
        self.inode += 1;
        std::io::Write::write_all(&mut writer, content).context("can't write the initramfs")?;
        self.bytes = writer.finish().context("can't write the initramfs")?;
        Ok(())
    }
}
