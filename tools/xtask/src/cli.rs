//! The command line.

mod bench;

use std::path::PathBuf;

pub use bench::{Bench, BenchArgs, DevicesArgs, ExitsArgs, FlushesArgs, NotifierArgs};
use caisson_manifest::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Sets up, builds, runs, tests and measures Caisson.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    after_help = "\
Examples:
  cargo xtask run                              a Linux guest's shell on Caisson
  cargo xtask run --cpus 4 --vcpus 4           with four CPUs
  cargo xtask test                             everything that must hold"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install and download what is missing, and say what can't be
    Setup,
    /// Boot Caisson in QEMU and give the terminal to the guest's shell
    Run(RunArgs),
    /// Show what a running machine counts: exits, faults, interrupts, frames, write-backs
    Stats(StatsArgs),
    /// Show how much memory the guests of a running machine have, and change it: balloon and plugged memory
    Memory(MemoryArgs),
    /// Build kernel and bundle, and say how to start them
    Image(MachineArgs),
    /// Check everything that must hold; the last line says how many checks passed and failed
    Test(TestArgs),
    /// Keep guests that may have more memory than there is at work for minutes, change their sizes and kill services meanwhile
    Soak(SoakArgs),
    /// Run seeds of the simulated machine: the kernel's rules and the services under a random scheduler
    Sim(SimArgs),
    /// Search for inputs that break what decodes a guest's, a service's or a file's words
    Fuzz(FuzzArgs),
    /// Run kvm-unit-tests that were built elsewhere, as guests and bare in the same QEMU
    Kut(KutArgs),
    /// Build the book in docs/
    Book,
    /// Count what runs in ring 0; fails if it is too much or unsafe code is outside its place
    Tcb {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// List every file too, the longest first
        #[arg(long)]
        files: bool,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
}

/// What to show of a running machine.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The machine is one that `cargo xtask run` runs in another terminal. Statistics are in KVM's binary format; the book says what each counts.

Exit status: 0 shown, 1 the machine doesn't answer or not as it should, 5 no such machine, VM or vCPU.

Examples:
  cargo xtask stats
  cargo xtask stats --watch --vm web
  cargo xtask stats --json --vcpu 0
  cargo xtask stats --vm 1 --vcpu 0 --raw vcpu0.bin")]
pub struct StatsArgs {
    /// Only this VM, by number from 1 or by name
    #[arg(long, value_name = "VM")]
    pub vm: Option<String>,
    /// Only this vCPU of each, from 0
    #[arg(long, value_name = "N")]
    pub vcpu: Option<usize>,
    /// Show again each second, with how fast values grow, until the machine ends
    #[arg(long, conflicts_with = "raw")]
    pub watch: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write the blocks as they are to this file, one after the other, and no table
    #[arg(long, value_name = "FILE")]
    pub raw: Option<PathBuf>,
    /// The process id of `cargo xtask run`, if several run
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// How much memory guests are to have.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The machine is one that `cargo xtask run` runs in another terminal. A VM's file says what it can have: `balloon = true`, `memory-max = \"1G\"`.
The command returns when the VM's devices know; the guest then takes its time.

Exit status: 0 done, 1 the machine doesn't answer, 5 no such machine or VM, or it can't have that much.

Examples:
  cargo xtask memory
  cargo xtask memory --vm web --balloon 128M
  cargo xtask memory --vm web --plug 256M --balloon 0")]
pub struct MemoryArgs {
    /// Only this VM, by number from 1 or by name
    #[arg(long, value_name = "VM")]
    pub vm: Option<String>,
    /// The balloon is to hold so much of the guest's memory
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<Size>,
    /// So much of what can be plugged is to be
    #[arg(long, value_name = "SIZE")]
    pub plug: Option<Size>,
    /// The process id of `cargo xtask run`, if several run
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// What to check.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask test
  cargo xtask test --list
  cargo xtask test --only host --only two-guests")]
pub struct TestArgs {
    /// Only this step, or this machine of step qemu; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// List steps and machines
    #[arg(long)]
    pub list: bool,
}

/// How long guests are kept at work.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Three Linux guests write random data, check it again and again and free it, in a machine with less memory than they have, while the sizes of
their balloons and of their plugged memory change and the services memory and notifier are killed. In the end each byte must be as it was
written, and every frame be free. `cargo xtask test --only pressure` is the same for a minute.

Exit status: 0 nothing was lost, 1 something was: the seed and how to do the same again are in the last line.

Examples:
  cargo xtask soak
  cargo xtask soak --minutes 60 --seed 7")]
pub struct SoakArgs {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub minutes: u64,
    /// Says what is changed and who is killed, and when
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
}

/// Which seeds to run.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A seed that breaks a rule is told with what happened before it and the command that replays it; the exit status is 1.
With --mutant it is 1 if the broken rule isn't found.

Examples:
  cargo xtask sim --seeds 10000
  cargo xtask sim --seeds 1 --from 4711
  cargo xtask sim --mutants --seeds 2000
  cargo xtask sim --mutant StolenTurn --seeds 1 --from 3")]
pub struct SimArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// The first
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub from: u64,
    /// Break each rule in turn, and show that it is found within N seeds
    #[arg(long, conflicts_with = "from")]
    pub mutants: bool,
    /// Break this rule, and tell what happened at the first seed that finds it; `none` breaks none, in the same machines
    #[arg(long, value_name = "NAME", conflicts_with = "mutants")]
    pub mutant: Option<String>,
    /// How many at a time; as many as there are CPUs unless given. It changes nothing of what is told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub jobs: Option<u64>,
}

/// What to fuzz.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
With a C++ compiler the search follows coverage (libFuzzer) and keeps what it finds in the target folder; without one it
tries a seeded sequence of inputs. An input that breaks its target is saved, with the command that replays it; the exit
status is 1.

Examples:
  cargo xtask fuzz --list
  cargo xtask fuzz --seconds 600
  cargo xtask fuzz lapic --seconds 60
  cargo xtask fuzz lapic target/fuzz-broken/lapic-crash-1234")]
pub struct FuzzArgs {
    /// Only this target
    #[arg(value_name = "TARGET")]
    pub target: Option<String>,
    /// Run these inputs instead of searching
    #[arg(value_name = "FILE", requires = "target")]
    pub inputs: Vec<PathBuf>,
    /// How long to search, all targets together
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// List the targets
    #[arg(long)]
    pub list: bool,
}

/// Which of kvm-unit-tests to run.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A test that passes bare must pass on Caisson, or skip what a guest isn't shown; if one doesn't, the exit status is 1. Bare it has the time that the list
gives it or 90 s, on Caisson twice that and 300 s at least.

Examples:
  cargo xtask kut ../kvm-unit-tests
  cargo xtask kut ../kvm-unit-tests --only apic --only msr --show")]
pub struct KutArgs {
    /// Their folder: it, or x86/ in it, has unittests.cfg and the images
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Only this entry of the list; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show what the tests print on Caisson
    #[arg(long)]
    pub show: bool,
}

/// The machine and its guests.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// CPUs of the machine, 1 to 8; 2, or 1 with --icount, if not given
    #[arg(long, value_name = "N")]
    pub cpus: Option<u64>,
    /// vCPUs of a guest, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub vcpus: u64,
    /// Memory of a guest
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: Size,
    /// Memory of the machine; what the guests need and a reserve, if not given
    #[arg(long, value_name = "SIZE")]
    pub machine_memory: Option<Size>,
    /// The guest's kernel, a Linux bzImage or a Multiboot image, or debian:PACKAGE; Debian's cloud kernel, if not given
    ///
    /// debian:linux-image-amd64 downloads and unpacks what this metapackage stands for;
    /// debian:linux-image-6.12.*-cloud-amd64 the newest package of that kind. example:flat is a small guest of this
    /// repository.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest's initial RAM disk; one with busybox for Linux, none for others, if not given
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The guest kernel's command line
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE)]
    pub cmdline: String,
    /// The contents of the guest's disk, /dev/vda. The file itself stays as it is: what the guest writes is lost at its end
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// A guest of its own, described by a file; give several for several guests.
    ///
    /// Keys, each optional: name, vcpus, memory = "512M", kernel, initrd (relative to the file), cmdline,
    /// on-reset = "restart" or "stop", test-devices = true, first-cpu, promised = "256M", disk (relative to the file),
    /// disk-overlay = "64M", balloon = true, balloon-target = "64M", memory-max = "1G", memory-plugged = "256M",
    /// virtio-console = true, network = "NAME", encryption = "sev" or "sev-snp" for flat guests. What the file leaves out, the
    /// options here say.
    #[arg(long = "vm", value_name = "FILE.toml")]
    pub vms: Vec<PathBuf>,
    /// Lowest level of log messages to show
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log: LogLevel,
    /// Another manifest than the board's, for tests
    #[arg(long, value_name = "FILE", hide = true)]
    pub manifest: Option<PathBuf>,
    /// Count instructions instead of time: every run is the same. One CPU only
    #[arg(long)]
    pub icount: bool,
}

/// Reads well on a serial console, knows that there is no PCI, ends through the keyboard controller, and reboots
/// at once after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet pci=off reboot=k panic=-1";

/// How to run.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
While it runs: Ctrl-A X leaves, Ctrl-A N shows the next guest, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H helps.
The guest's console is on standard output, everything else on standard error; its last line says how it ended.

Exit status:
  0  every guest powered itself off, or you left
  2  a guest crashed
  3  a service or the kernel faulted
  4  time ran out
  5  a bad argument or set-up
  6  a guest with test devices ended itself with another value than 0
  129, 130, 143  interrupted by SIGHUP, SIGINT (Ctrl-C where the guest doesn't get it) or SIGTERM

Examples:
  cargo xtask run
  cargo xtask run --script commands.txt --timeout 60
  cargo xtask run --vm web.toml --vm db.toml --cpus 4
  cargo xtask run --kernel debian:linux-image-amd64
  cargo xtask run --kernel bzImage --initrd initrd.img --cmdline 'console=ttyS0'")]
pub struct RunArgs {
    /// The machine and its guests.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Type the lines of this file at each guest's prompt, one after the other, then power it off
    ///
    /// Blank lines and lines that begin with # are left out.
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// End after so many seconds, with exit status 4
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Let QEMU wait for a debugger and say how to attach one; at port 1234 if that is free
    #[arg(long)]
    pub gdb: bool,
}

/// A level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What is useful for finding mistakes.
    Debug,
    /// What happens.
    Info,
    /// What shouldn't happen.
    Warn,
    /// What went wrong.
    Error,
    /// Nothing.
    Off,
}
