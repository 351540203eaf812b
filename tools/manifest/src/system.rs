//! `board/*/system.toml`: which services a board runs, in which order they may call each other, and what each
//! may ask of the kernel and of the machine.

use std::path::Path;

use caisson_proto::info::{RingUse, ShareUse};
use serde::Deserialize;

use crate::{Error, Size, check, parse};

/// A board's manifest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct System {
    /// The board's name.
    pub board: String,
    /// Whether services of this board stand in for hardware. Only then `silicon` may be given.
    #[serde(default)]
    pub emulating: bool,
    /// Physical CPUs that this board can have at the most.
    pub max_cpus: u16,
    /// The program of ring 0.
    pub kernel: Program,
    /// The services.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// The rings between them.
    #[serde(rename = "ring", default)]
    pub rings: Vec<Ring>,
    /// Pages that they share.
    #[serde(rename = "share", default)]
    pub shares: Vec<Share>,
}

/// A program of the workspace.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Program {
    /// Its package.
    pub package: String,
    /// Its binary; the package's name if absent.
    pub bin: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Its name: at most 16 bytes; of a service per VM at most 3.
    pub name: String,
    /// The package that it is built from.
    pub package: String,
    /// Its binary; the package's name if absent.
    pub bin: Option<String>,
    /// Its place in the order of calls: they go to a higher number only.
    pub rank: u16,
    /// Whether this is a template: one service for each VM, named `NAME-VM`.
    #[serde(default)]
    pub per_vm: bool,
    /// Services that it may call.
    #[serde(default)]
    pub call: Vec<String>,
    /// Services whose doorbells it may ring. The other ends of its rings needn't be named.
    #[serde(default)]
    pub ring: Vec<String>,
    /// Kernel capabilities: names of `Caps` in lower case.
    #[serde(default)]
    pub kernel: Vec<String>,
    /// I/O ports.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// The ISA interrupt line whose doorbell it gets.
    pub interrupt: Option<u16>,
    /// Stack.
    pub stack: Size,
    /// Heap, for the services that may have one.
    #[serde(default)]
    pub heap: Size,
    /// Milliseconds that one request may take.
    pub budget_ms: u32,
}

/// A range of I/O ports.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// How many.
    pub count: u16,
}

/// A ring, or one for each pair where an end is `per-vm` or `from` names several.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ring {
    /// What it carries.
    pub carries: Carries,
    /// Who writes it.
    pub from: Vec<String>,
    /// Who reads it.
    pub to: String,
}

/// What a ring carries: [`RingUse`] by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Carries {
    /// defmt frames.
    Log,
    /// A guest's console, outward.
    ConsoleOut,
    /// A guest's console, inward.
    ConsoleIn,
    /// Frames that left a VM.
    Reclaimed,
    /// How services ended.
    Notices,
    /// How much memory a VM is to have.
    Resize,
}

impl Carries {
    /// As the records say it.
    pub const fn ring_use(self) -> RingUse {
        match self {
            Self::Log => RingUse::Log,
            Self::ConsoleOut => RingUse::ConsoleOut,
            Self::ConsoleIn => RingUse::ConsoleIn,
            Self::Reclaimed => RingUse::Reclaimed,
            Self::Notices => RingUse::Notices,
            Self::Resize => RingUse::Resize,
        }
    }
}

/// Pages that one service writes and another reads, for good; or as many for each VM where the holder is `per-vm`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Share {
    /// What is in them. How many there are follows from it.
    pub carries: Shares,
    /// Who writes them.
    pub holder: String,
    /// Who reads them; it may ring the holder.
    pub reader: String,
}

/// What shared pages carry: [`ShareUse`] by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Shares {
    /// A VM's statistics.
    Stats,
}

impl Shares {
    /// As the records say it.
    pub const fn share_use(self) -> ShareUse {
        match self {
            Self::Stats => ShareUse::Stats,
        }
    }

    /// Pages that it needs.
    pub const fn pages(self) -> u16 {
        match self {
            Self::Stats => caisson_proto::stats::PAGES as u16,
        }
    }
}

/// The kernel's name, which no service can have.
pub const KERNEL: &str = "kernel";

impl Program {
    /// The name of the binary.
    pub fn bin(&self) -> &str {
        self.bin.as_deref().unwrap_or(&self.package)
    }
}

impl Service {
    /// The name of the binary.
    pub fn bin(&self) -> &str {
        self.bin.as_deref().unwrap_or(&self.package)
    }
}

impl System {
    /// The manifest in `text`, the content of `path`, checked.
    ///
    /// # Errors
    /// [`Error`] with the place for what TOML or the schema refuses, else with the rule that is broken.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let system: Self = parse::toml(path, text)?;
        check::system(&system).map_err(|Error(message)| Error(format!("{}: {message}", path.display())))?;
        Ok(system)
    }

    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }
}
