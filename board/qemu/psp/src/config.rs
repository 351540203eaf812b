//! What a processor is built with: its machine, its chip, its versions.

/// Security versions of the firmware's parts, as EPYC 9004 lays them out (56860 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tcb {
    /// The boot loader's.
    pub boot_loader: u8,
    /// The operating system's.
    pub tee: u8,
    /// The SNP firmware's.
    pub snp: u8,
    /// The microcode's.
    pub microcode: u8,
}

impl Tcb {
    /// As it stands in reports and buffers.
    pub const fn bytes(self) -> [u8; 8] {
        [self.boot_loader, self.tee, 0, 0, 0, 0, self.snp, self.microcode]
    }

    /// From a buffer; none if a reserved byte is set.
    pub const fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        match bytes {
            [boot_loader, tee, 0, 0, 0, 0, snp, microcode] => Some(Self { boot_loader, tee, snp, microcode }),
            _ => None,
        }
    }

    /// Whether no part is newer than that of `other`.
    pub const fn within(self, other: Self) -> bool {
        self.boot_loader <= other.boot_loader
            && self.tee <= other.tee
            && self.snp <= other.snp
            && self.microcode <= other.microcode
    }
}

/// A version of the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number of the interface.
    pub major: u8,
    /// Minor number of the interface.
    pub minor: u8,
    /// The build.
    pub build: u8,
}

/// The chip.
#[derive(Clone)]
pub struct Chip {
    /// What GET_ID and reports tell.
    pub id: [u8; 64],
    /// What all its keys are derived from. It is as secret as the image that it is in: not at all.
    pub secret: [u8; 32],
    /// CPUID family, extended and base added.
    pub family: u8,
    /// CPUID model, extended and base joined.
    pub model: u8,
    /// CPUID stepping.
    pub stepping: u8,
}

impl core::fmt::Debug for Chip {
    fn fmt(&self, out: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(out, "Chip({:x?}, family {:#x})", &self.id[..8], self.family)
    }
}

/// What a processor is built with.
#[derive(Clone, Debug)]
pub struct Config {
    /// CPUs of the machine, numbered from 0.
    pub cpus: u16,
    /// The lowest ASID of a guest without encrypted state (CPUID 8000_001F EDX).
    pub first_sev_asid: u16,
    /// The highest ASID (CPUID 8000_001F ECX).
    pub last_asid: u16,
    /// Whether two threads share a core.
    pub smt: bool,
    /// The chip.
    pub chip: Chip,
    /// The firmware's version.
    pub version: Version,
    /// The firmware's security versions.
    pub tcb: Tcb,
}

impl Config {
    /// The emulated machine's: the qemu board's ASIDs, an EPYC 9004 by its CPUID, a chip of this number.
    pub fn emulated(cpus: u16, chip: u8) -> Self {
        let mut id = [0; 64];
        id.iter_mut().zip(b"Caisson, emulated chip").for_each(|(to, byte)| *to = *byte);
        let mut secret = *b"emulated, and so not at all secr";
        id[63] = chip;
        secret[31] = chip;
        Self {
            cpus,
            first_sev_asid: 5,
            last_asid: 8,
            smt: false,
            chip: Chip { id, secret, family: 0x19, model: 0x11, stepping: 1 },
            version: Version { major: 1, minor: 57, build: 1 },
            tcb: Tcb { boot_loader: 1, tee: 0, snp: 1, microcode: 1 },
        }
    }
}
