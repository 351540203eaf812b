//! Builds kernel and services for the bare machine and makes the bundle.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use caisson_manifest::bundle::{self, Contents};
use caisson_manifest::image::image;
use caisson_manifest::plan::{Plan, plan};
use caisson_manifest::system::{self, System};
use caisson_proto::switch;
use caisson_proto::vmm::{VmConfig, file};

use crate::cli::{LogLevel, MachineArgs};
use crate::failure::{Context, Failure, Status};
use crate::guests::{self, Guest, Machine};
use crate::machine;
use crate::paths::{Paths, make_folder};
use crate::progress::quietly;
use crate::setup::{self, TARGET};

/// With `--icount` every run is the same: 2026-01-01 as the time.
pub const FIXED_EPOCH: u64 = 1_767_225_600;

/// How services are compiled. The target has no vector registers, so what the secure processor's cryptography has for them
/// can't be compiled; nobody else looks at these words.
const SERVICE_FLAGS: [&str; 5] =
    ["-Crelocation-model=static", "--cfg", "aes_backend=\"soft\"", "--cfg", "polyval_backend=\"soft\""];

/// Everything that a machine is started with.
#[derive(Clone, Debug)]
pub struct Built {
    /// The kernel, for QEMU's -kernel.
    pub kernel: PathBuf,
    /// The bundle's content.
    pub bundle: Vec<u8>,
    /// The services by slot.
    pub services: Vec<Service>,
}

/// A service in its slot.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// For a vmm: the index of its guest.
    pub vm: Option<usize>,
}

/// Reads a manifest; the board's, if no other is named.
pub fn manifest(paths: &Paths, other: Option<&Path>) -> Result<System, Failure> {
    let path = other.map_or_else(|| paths.manifest(), Path::to_owned);
    let text = std::fs::read_to_string(&path).about("read", &path)?;
    Ok(System::parse(&path, &text)?)
}

/// The programs of any machine of a board.
#[derive(Clone, Debug)]
pub struct Programs {
    kernel: PathBuf,
    /// The services' by binary.
    services: HashMap<String, PathBuf>,
}

/// Builds what every machine of a board has in common.
pub fn programs(paths: &Paths, system: &System, log: LogLevel) -> Result<Programs, Failure> {
    setup::toolchain()?;
    Ok(Programs { kernel: kernel(paths, system, log)?, services: services(paths, system, log)? })
}

/// Builds everything for this machine.
pub fn build(paths: &Paths, system: &System, machine: &Machine, log: LogLevel) -> Result<Built, Failure> {
    // What is wrong with the machine is said before anything is built.
    let names: Vec<&str> = machine.guests.iter().map(|guest| guest.name.as_str()).collect();
    plan(system, &names)?;
    assemble(system, machine, &programs(paths, system, log)?)
}

/// Makes this machine's bundle of programs that are built.
pub fn assemble(system: &System, machine: &Machine, programs: &Programs) -> Result<Built, Failure> {
    let names: Vec<&str> = machine.guests.iter().map(|guest| guest.name.as_str()).collect();
    let mut plan = plan(system, &names)?;
    for (vm, guest) in machine.guests.iter().enumerate() {
        plan.add_heap(vm, guest.own_memory())?;
    }
    let Programs { kernel, services: programs } = programs;
    let contents = contents(machine, &plan, programs)?;
    let services = plan
        .services
        .iter()
        .map(|service| Service { name: service.name.clone(), program: programs[&service.bin].clone(), vm: service.vm })
        .collect();
    Ok(Built { kernel: kernel.clone(), bundle: bundle::write(&plan, &contents)?, services })
}

/// `cargo xtask image`: leaves kernel and bundle where they can be taken from.
pub fn leave(paths: &Paths, args: &MachineArgs) -> Result<(), Failure> {
    let system = manifest(paths, args.manifest.as_deref())?;
    let machine = guests::resolve(paths, &system, args)?;
    let built = build(paths, &system, &machine, args.log)?;
    let folder = paths.image();
    make_folder(&folder)?;
    let (kernel, bundle) = (folder.join("caisson-kernel"), folder.join("bundle.bin"));
    std::fs::copy(&built.kernel, &kernel).about("write", &kernel)?;
    std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
    println!("kernel: {}", kernel.display());
    println!("bundle: {}", bundle.display());
    let mut line = machine::arguments(&machine, &kernel, &bundle);
    line.extend(["-serial", "stdio"].map(String::from));
    for (name, port) in [("services", "0xe9"), ("kernel", "0xe8")] {
        line.extend(["-chardev".into(), format!("file,id={name},path={name}.log")]);
        line.extend(["-device".into(), format!("isa-debugcon,iobase={port},chardev={name}")]);
    }
    println!("start: qemu-system-x86_64 {}", line.join(" "));
    Ok(())
}

fn cargo(paths: &Paths, folder: &str, flags: &[&str], log: LogLevel) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    // Its own folder: other flags would otherwise rebuild everything each time.
    command.current_dir(&paths.root).args(["build", "--release", "--target", TARGET]);
    command.arg("--target-dir").arg(paths.target.join(folder));
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    // Line tables alone give gdb no functions by name. Nothing of this is loaded.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "full");
    command.env("DEFMT_LOG", if log == LogLevel::Trace { "trace" } else { "debug" });
    command
}

fn built(paths: &Paths, folder: &str, bin: &str) -> PathBuf {
    paths.target.join(folder).join(TARGET).join("release").join(bin)
}

/// Builds the kernel.
pub fn kernel(paths: &Paths, system: &System, log: LogLevel) -> Result<PathBuf, Failure> {
    let flags = ["-Crelocation-model=static", "-Ccode-model=kernel"];
    let mut command = cargo(paths, "kernel", &flags, log);
    command.args(["--package", &system.kernel.package, "--bin", system.kernel.bin()]);
    quietly("building the kernel", &mut command, Status::BadSetup)?;
    Ok(built(paths, "kernel", system.kernel.bin()))
}

/// Builds all services; the programs by binary.
///
/// Those with a heap are built apart from those without: in one call cargo would give each the features of all, and
/// so an allocator to those that mustn't have one.
pub fn services(paths: &Paths, system: &System, log: LogLevel) -> Result<HashMap<String, PathBuf>, Failure> {
    let (heap, plain): (Vec<&system::Service>, Vec<&system::Service>) =
        system.services.iter().partition(|service| service.heap.0 > 0);
    let mut programs = HashMap::new();
    for (what, services) in [("building the services", plain), ("building the services with a heap", heap)] {
        let mut command = cargo(paths, "services", &SERVICE_FLAGS, log);
        let packages: BTreeSet<&str> = services.iter().map(|service| service.package.as_str()).collect();
        let bins: BTreeSet<&str> = services.iter().map(|service| service.bin()).collect();
        if bins.is_empty() {
            continue;
        }
        command.args(packages.iter().flat_map(|package| ["--package", package]));
        command.args(bins.iter().flat_map(|bin| ["--bin", bin]));
        quietly(what, &mut command, Status::BadSetup)?;
        programs.extend(bins.into_iter().map(|bin| (bin.to_owned(), built(paths, "services", bin))));
    }
    Ok(programs)
}

/// Builds a test guest.
pub fn guest(paths: &Paths, package: &str) -> Result<PathBuf, Failure> {
    setup::toolchain()?;
    let mut command = cargo(paths, "guests", &["-Crelocation-model=static"], LogLevel::Info);
    command.args(["--package", package]);
    quietly("building the guest", &mut command, Status::BadSetup)?;
    Ok(built(paths, "guests", package))
}

fn contents(machine: &Machine, plan: &Plan, programs: &HashMap<String, PathBuf>) -> Result<Vec<Contents>, Failure> {
    let mut images = HashMap::new();
    let mut contents = Vec::new();
    for service in &plan.services {
        let path = &programs[&service.bin];
        if !images.contains_key(path) {
            let elf = std::fs::read(path).about("read", path)?;
            images.insert(path, Arc::new(image(&service.bin, &elf)?));
        }
        let files = match service.vm.map(|vm| &machine.guests[vm]) {
            Some(guest) => vm_files(machine, guest)?,
            None if service.name == switch::NAME => {
                let slots = plan.services.iter().map(|service| service.vm);
                vec![guests::devices::ports(&machine.guests, slots).into()]
            }
            None => Vec::new(),
        };
        contents.push(Contents { image: images[path].clone(), files });
    }
    Ok(contents)
}

/// The files of a vmm in the order of `vmm::file`.
fn vm_files(machine: &Machine, guest: &Guest) -> Result<Vec<Arc<[u8]>>, Failure> {
    let read = |path: &Path| -> Result<Arc<[u8]>, Failure> { Ok(std::fs::read(path).about("read", path)?.into()) };
    let mut files: Vec<Arc<[u8]>> = vec![Arc::from([].as_slice()); file::DISK + 1];
    files[file::CONFIG] = config(machine, guest)?.into();
    files[file::KERNEL] = read(&guest.kernel)?;
    if let Some(initrd) = &guest.initrd {
        files[file::INITRD] = read(initrd)?;
    }
    if let Some(disk) = &guest.disk {
        files[file::DISK] = read(disk)?;
    }
    Ok(files)
}

fn config(machine: &Machine, guest: &Guest) -> Result<Vec<u8>, Failure> {
    let mut seed = [0; 32];
    let mut epoch = FIXED_EPOCH;
    if !machine.icount {
        getrandom::fill(&mut seed).context("no random numbers")?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        epoch = now.map_or(FIXED_EPOCH, |since| since.as_secs());
    }
    let config = VmConfig {
        name: guest.name.clone(),
        vcpus: guest.vcpus,
        memory: guest.memory,
        promised: guest.promised,
        cmdline: guest.cmdline.clone(),
        on_reset: guest.on_reset,
        test_devices: guest.test_devices,
        encryption: guest.encryption,
        virtio: guest.virtio,
        first_cpu: machine.spare_cpus() + guest.first_cpu,
        lowest_cpu: machine.spare_cpus(),
        epoch,
        seed,
    };
    postcard::to_allocvec(&config).context("VM configuration")
}
