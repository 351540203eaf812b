//! Which guests there are, checked before anything is built or booted.

pub mod devices;
mod room;

use std::fs::File;
use std::path::{Path, PathBuf};

use caisson_manifest::plan::MAX_GUESTS;
use caisson_manifest::vm::{self, MAX_DISK, VmFile};
use caisson_manifest::{Size, system::System};
use caisson_proto::switch;
use caisson_proto::vmm::{Encryption, OnReset, Virtio};

use crate::cli::MachineArgs;
use crate::debian;
use crate::failure::{Context, Failure};
use crate::image;
use crate::paths::Paths;

/// The machine's memory for Caisson itself, in bytes.
const RESERVE: u64 = 160 << 20;
/// The machine's memory is given to QEMU in steps of this many bytes.
const STEP: u64 = 16 << 20;

/// One guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// vCPUs.
    pub vcpus: u8,
    /// Memory in bytes.
    pub memory: u64,
    /// Of that, what it is sure to get.
    pub promised: u64,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk. A Multiboot kernel needs none.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// What a reset does.
    pub on_reset: OnReset,
    /// It has the devices of test programs.
    pub test_devices: bool,
    /// How its memory is encrypted.
    pub encryption: Encryption,
    /// The contents of its disk.
    pub disk: Option<PathBuf>,
    /// Its virtio devices.
    pub virtio: Virtio,
    /// The network that its card is in.
    pub network: Option<String>,
    /// The physical CPU of vCPU 0.
    pub first_cpu: u16,
}

impl Guest {
    /// Memory that its vmm needs for its devices, in bytes: what of the disk may be changed, and where that is.
    pub fn own_memory(&self) -> u64 {
        let overlay = self.virtio.disk.map_or(0, |disk| disk.overlay);
        // Four bytes for each page of the largest disk.
        if overlay > 0 { overlay + MAX_DISK / 1024 } else { 0 }
    }
}

/// The machine and its guests, as they will be.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs that run guests.
    pub cpus: u16,
    /// Memory in bytes.
    pub memory: u64,
    /// The guests, in the order of their channels.
    pub guests: Vec<Guest>,
    /// Instructions are counted instead of time.
    pub icount: bool,
}

impl Machine {
    /// CPUs that are added in front and run no guest.
    ///
    /// QEMU changes a flag word of its first CPU from whichever CPU executes FXRSTOR, XRSTOR or FLDENV, without a lock
    /// (`cpu_clear_ignne`). In the same word VMRUN and its exits keep whether nested paging is on, so with several CPUs
    /// a guest on the first one would now and then run without it, or the host with it.
    pub const fn spare_cpus(&self) -> u16 {
        if self.cpus > 1 { 1 } else { 0 }
    }
}

/// Checks every argument and every file that the user named; takes the set-up's files for what wasn't named.
pub fn resolve(paths: &Paths, system: &System, args: &MachineArgs) -> Result<Machine, Failure> {
    let asked = args.cpus.unwrap_or(if args.icount { 1 } else { 2 });
    let cpus = match u16::try_from(asked) {
        Ok(cpus @ 1..) if cpus <= system.max_cpus => cpus,
        _ => {
            let most = system.max_cpus;
            return Err(Failure::setup(format!(
                "--cpus {asked}: board \"{}\" can have 1 to {most} CPUs",
                system.board
            )));
        }
    };
    if args.icount && cpus > 1 {
        return Err(Failure::setup(format!("--icount works with one CPU only, not with --cpus {cpus}; give --cpus 1")));
    }
    let mut files = args.vms.iter().map(|path| vm_file(path)).collect::<Result<Vec<_>, _>>()?;
    if files.is_empty() {
        files.push(VmFile { name: Some("guest".into()), ..VmFile::default() });
    }
    if files.len() > MAX_GUESTS {
        return Err(Failure::setup(format!("{} guests; at most {MAX_GUESTS} can run side by side", files.len())));
    }
    let mut guests: Vec<Guest> = Vec::new();
    for (number, file) in (1..).zip(files) {
        let next = guests.last().map_or(0, |last| last.first_cpu + u16::from(last.vcpus)) % cpus;
        let guest = guest(paths, args, file, number, next)?;
        if guest.first_cpu >= cpus {
            let (name, first) = (&guest.name, guest.first_cpu);
            return Err(Failure::setup(format!(
                "VM \"{name}\" wants to start on CPU {first}, but the machine has {cpus}: give `first-cpu` below that"
            )));
        }
        if guests.iter().any(|other| other.name == guest.name) {
            return Err(Failure::setup(format!("two VMs are named \"{}\"; give each its own `name`", guest.name)));
        }
        guests.push(guest);
    }
    devices::addresses(&guests)?;
    if guests.iter().any(|guest| guest.network.is_some()) && system.service(switch::NAME).is_none() {
        let (board, name) = (&system.board, switch::NAME);
        return Err(Failure::setup(format!("board \"{board}\" has no service \"{name}\": leave out `network`")));
    }
    let memory = machine_memory(args, &guests)?;
    Ok(Machine { cpus, memory, guests, icount: args.icount })
}

fn vm_file(path: &Path) -> Result<VmFile, Failure> {
    let text = std::fs::read_to_string(path).about("read VM file", path)?;
    Ok(VmFile::parse(path, &text)?)
}

/// Guests of this repository that can be named, and their packages.
const EXAMPLES: [(&str, &str); 1] = [("flat", "caisson-guest-flat")];

/// The program of such a guest, if one stands in the place of a kernel's file.
fn example(paths: &Paths, kernel: &Path) -> Option<Result<PathBuf, Failure>> {
    let name = kernel.to_str()?.strip_prefix(vm::EXAMPLE)?;
    let package = EXAMPLES.iter().find(|(example, _)| *example == name);
    let there = EXAMPLES.map(|(name, _)| name).join(", ");
    Some(match package {
        Some((_, package)) => image::guest(paths, package),
        None => Err(Failure::setup(format!("there is no example guest \"{name}\"; there is: {there}"))),
    })
}

/// The name of a Debian package that stands in the place of a kernel's file.
fn debians(kernel: &Path) -> Option<&str> {
    kernel.to_str()?.strip_prefix(vm::PACKAGE)
}

fn guest(paths: &Paths, args: &MachineArgs, file: VmFile, number: u8, first_cpu: u16) -> Result<Guest, Failure> {
    let name = file.name.clone().unwrap_or_default();
    vm::check_name(&name)?;
    let vcpus = vm::check_vcpus(&name, file.vcpus.map_or(args.vcpus, u64::from))?;
    let memory = vm::check_memory(&name, file.memory.unwrap_or(args.memory))?;
    let encrypted = file.encryption.is_some_and(|kind| kind != Encryption::None);
    let promised = vm::check_promised(&name, memory, file.promised, encrypted)?;
    let named = file.kernel.clone().or(args.kernel.clone());
    let named = match named.as_deref().and_then(|kernel| example(paths, kernel)) {
        Some(built) => Some(built?),
        None => named,
    };
    let (kernel, initrd) = match (named, file.initrd.clone().or(args.initrd.clone())) {
        (kernel, initrd) if kernel.as_deref().is_none_or(|kernel| debians(kernel).is_some()) => {
            // What is named is looked at before anything is downloaded.
            initrd.iter().try_for_each(|path| File::open(path).map(|_| ()).about("open", path))?;
            let package = kernel.as_deref().and_then(debians).unwrap_or(debian::KERNEL);
            let ours = debian::guest_files(paths, package)?;
            (ours.kernel, Some(initrd.unwrap_or(ours.initramfs)))
        }
        (Some(kernel), Some(initrd)) => (kernel, Some(initrd)),
        // Ours is for Linux.
        (Some(kernel), None) if room::is_multiboot(&kernel)? => (kernel, None),
        (kernel, _) => {
            kernel.iter().try_for_each(|path| File::open(path).map(|_| ()).about("open", path))?;
            let ours = debian::guest_files(paths, debian::KERNEL)?;
            (kernel.unwrap_or(ours.kernel), Some(ours.initramfs))
        }
    };
    let disk = file.disk.clone().or(args.disk.clone());
    let virtio = devices::virtio(&name, number, memory, &file, disk.as_deref())?;
    let guest = Guest {
        name,
        vcpus,
        memory,
        promised,
        kernel,
        initrd,
        cmdline: file.cmdline.unwrap_or_else(|| args.cmdline.clone()),
        on_reset: file.on_reset.unwrap_or(OnReset::Restart),
        test_devices: file.test_devices.unwrap_or(false),
        encryption: file.encryption.unwrap_or_default(),
        disk,
        virtio,
        network: file.network,
        first_cpu: file.first_cpu.unwrap_or(first_cpu),
    };
    if guest.cmdline.len() > 2047 || guest.cmdline.contains('\0') {
        return Err(Failure::setup(format!(
            "VM \"{}\": its command line has {} bytes; at most 2047 fit, and no zero byte",
            guest.name,
            guest.cmdline.len()
        )));
    }
    room::check(&guest)?;
    Ok(guest)
}

/// What guests are sure to have at their start, and what is plugged beside that.
fn sizes(guests: &[Guest]) -> String {
    let promised = Size(guests.iter().map(|guest| guest.promised).sum());
    match guests.iter().filter_map(|guest| guest.virtio.plug).map(|plug| plug.wanted).sum() {
        0 => promised.to_string(),
        plugged => format!("{promised} and {} by `memory-plugged`", Size(plugged)),
    }
}

fn machine_memory(args: &MachineArgs, guests: &[Guest]) -> Result<u64, Failure> {
    let length = |path: &Path| std::fs::metadata(path).map(|data| data.len()).about("look at", path);
    let mut needed = RESERVE;
    for guest in guests {
        // One 512th for nested tables, as much again for the vmm's own.
        let (most, plugged) = guest.virtio.plug.map_or((0, 0), |plug| (plug.most, plug.wanted));
        needed += guest.promised + plugged + (guest.memory + most) / 256 + length(&guest.kernel)?;
        needed += guest.initrd.as_deref().map_or(Ok(0), length)?;
        needed += guest.disk.as_deref().map_or(Ok(0), length)? + guest.own_memory();
    }
    let needed = needed.next_multiple_of(STEP);
    match args.machine_memory {
        None => Ok(needed),
        Some(given) if given.0 >= needed => Ok(given.0),
        Some(given) => Err(Failure::setup(format!(
            "the machine's memory of {given} can't hold {}: give --machine-memory {} or more, or smaller guests",
            match guests {
                [guest] => format!("VM \"{}\" with {}", guest.name, sizes(guests)),
                _ => format!("{} VMs with {} in all", guests.len(), sizes(guests)),
            },
            Size(needed)
        ))),
    }
}
