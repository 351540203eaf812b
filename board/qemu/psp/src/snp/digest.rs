//! The launch digest: a chain with one PAGE_INFO for each page (56860 section 8.17.2, table 67).

use caisson_proto::addr::Gpa;
use sha2::{Digest, Sha384};

/// What a page is to the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Content that is measured.
    Normal = 1,
    /// A vCPU's save area, measured.
    Vmsa = 2,
    /// Zeros, and measured as such.
    Zero = 3,
    /// Content that isn't measured.
    Unmeasured = 4,
    /// What the processor tells the guest.
    Secrets = 5,
    /// What the hypervisor says that CPUID tells.
    Cpuid = 6,
}

impl PageType {
    /// The type with this number.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            1 => Some(Self::Normal),
            2 => Some(Self::Vmsa),
            3 => Some(Self::Zero),
            4 => Some(Self::Unmeasured),
            5 => Some(Self::Secrets),
            6 => Some(Self::Cpuid),
            _ => None,
        }
    }

    /// Whether its content goes into the digest.
    pub const fn measured(self) -> bool {
        matches!(self, Self::Normal | Self::Vmsa)
    }
}

/// The digest after one more page of 4 KiB. `content` is what of it is hashed, `permissions` those of VMPL 1 to 3.
pub fn extend(digest: &[u8; 48], page_type: PageType, gpa: Gpa, permissions: [u8; 3], content: &[u8]) -> [u8; 48] {
    let contents: [u8; 48] = if page_type.measured() { Sha384::digest(content).into() } else { [0; 48] };
    let [one, two, three] = permissions;
    let mut hash = Sha384::new();
    hash.update(digest);
    hash.update(contents);
    hash.update(0x70u16.to_le_bytes());
    // No image for migration; then the permissions, VMPL 3 first (sev-tool has them the other way round), and a zero.
    hash.update([page_type as u8, 0, three, two, one, 0]);
    hash.update(gpa.0.to_le_bytes());
    hash.finalize().into()
}
