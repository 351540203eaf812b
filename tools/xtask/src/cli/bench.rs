//! The command line of what is measured.

use clap::{Args, Subcommand};

use super::MachineArgs;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Wall time from QEMU's start to the guest's shell, beside the same guest bare in the same QEMU
    Boot(BenchArgs),
    /// Instructions and wall ticks of each kind of exit, call and message, beside KVM's
    Exits(ExitsArgs),
    /// Instructions of each disk request and each frame of a network, and throughput beside the same guests bare
    Devices(DevicesArgs),
    /// Cache flushes for encrypted VMs under several policies, on traces
    Flushes(FlushesArgs),
    /// Notifications of changed memory on this host: Caisson's way, Linux's and a naive one
    Notifier(NotifierArgs),
}

/// How to measure disk and network.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Instructions are counted by QEMU, in two runs; a difference between them is an error. Throughput is of the wall's clock, the two sides in turn.

Examples:
  cargo xtask bench devices
  cargo xtask bench devices --json --runs 5
  cargo xtask bench devices --book")]
pub struct DevicesArgs {
    /// How often each side's throughput is measured; an odd number has a median of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub runs: u32,
    /// Print JSON
    #[arg(long, conflicts_with = "book")]
    pub json: bool,
    /// Write the table of the book instead
    #[arg(long)]
    pub book: bool,
}

/// How to measure notifications.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The three take turns, and medians are compared. If Caisson's takes a lock, allocates memory, or flushes more than once for an event, the exit
status is 1.

Examples:
  cargo xtask bench notifier
  cargo xtask bench notifier --json --rounds 31
  cargo xtask bench notifier --book")]
pub struct NotifierArgs {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print JSON
    #[arg(long, conflicts_with = "book")]
    pub json: bool,
    /// Write the table of the book instead
    #[arg(long)]
    pub book: bool,
}

/// How to count flushes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Nothing is timed and nothing random: the numbers are the same in each run.

Examples:
  cargo xtask bench flushes
  cargo xtask bench flushes --json --cpus 128
  cargo xtask bench flushes --trace churn --cpus 128 --free 10 --group 8
  cargo xtask bench flushes --book")]
pub struct FlushesArgs {
    /// Only this trace; may be given several times
    #[arg(long, value_name = "NAME", value_parser = ["storm", "churn", "balloon"], conflicts_with = "book")]
    pub trace: Vec<String>,
    /// Only machines with so many CPUs; may be given several times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(16..=512), conflicts_with = "book")]
    pub cpus: Vec<u16>,
    /// Only machines of which so many percent of memory are free; may be given several times
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(0..=90), conflicts_with = "book")]
    pub free: Vec<u64>,
    /// CPUs of a group in the bound, 1 to 8: the more, the closer it is, and the longer it takes, with 8 half an hour of CPU
    /// time for churn on 128 CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8), default_value = "4", conflicts_with = "book")]
    pub group: u8,
    /// Print JSON
    #[arg(long, conflicts_with = "book")]
    pub json: bool,
    /// Write table and plot of the book instead
    #[arg(long)]
    pub book: bool,
}

/// How to measure exits.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
QEMU counts instructions instead of time; a difference between two runs is an error.

Examples:
  cargo xtask bench exits
  cargo xtask bench exits --json
  cargo xtask bench exits --where port-read
  cargo xtask bench exits --where call")]
pub struct ExitsArgs {
    /// Say instead where the instructions go: of cpuid, port-read, msr-write, wbinvd, hypercall or call
    #[arg(long = "where", value_name = "KIND", value_parser = ["cpuid", "port-read", "msr-write", "wbinvd", "hypercall", "call"])]
    pub parts: Option<String>,
    /// How often everything is counted
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How to measure.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench boot
  cargo xtask bench boot --json --runs 9")]
pub struct BenchArgs {
    /// The machine and its guest.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// How often each side boots; an odd number has a median of its own
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub runs: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
