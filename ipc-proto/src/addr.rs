//! Addresses and ids. No bare integer crosses an interface.

use crate::wire::Field;

/// Bytes in a page and in a frame: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;
/// 4 KiB pages in a large page (2 MiB).
pub const LARGE_PAGES: u64 = 512;
/// No physical address has more bits (APM volume 2, section 5.1: the architectural limit).
pub const MAX_PHYS_BITS: u32 = 52;

macro_rules! number {
    ($($(#[$meta:meta])* $name:ident($int:ty) < $limit:expr;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(target_os = "none", derive(defmt::Format))]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl Field for $name {
            fn to_word(self) -> u64 { u64::from(self.0) }
            fn from_word(word: u64) -> Option<Self> {
                if word < $limit { <$int>::try_from(word).ok().map(Self) } else { None }
            }
        }
    )* };
}

pub(crate) use number;

number! {
    /// Guest-physical address, in bytes.
    Gpa(u64) < 1 << MAX_PHYS_BITS;
    /// System-physical address, in bytes.
    Spa(u64) < 1 << MAX_PHYS_BITS;
    /// Guest frame number: a [`Gpa`] in pages.
    Gfn(u64) < 1 << (MAX_PHYS_BITS - 12);
    /// System-physical frame number: an [`Spa`] in pages.
    Frame(u64) < 1 << (MAX_PHYS_BITS - 12);
    /// Page number in a service's own address space.
    VPage(u64) < crate::layout::USER_END >> 12;
    /// Index of a physical CPU, from 0 in the order in which the board lists them.
    CpuId(u16) < crate::abi::MAX_CPUS as u64;
    /// A point on the time-stamp counter of the machine; 0 means never.
    Tsc(u64) < u64::MAX;
    /// Proof that the kernel accepted something which takes time; done when the kernel's count covers it.
    Ticket(u64) < u64::MAX;
    /// A write-back batch: table slot in the low 16 bits, generation above.
    BatchId(u32) < 1 << 32;
    /// Whose message is delivered to a service, and who waits for the reply; the sender field of rax. Bit 31 clear: a
    /// service, by its id (slot in bits 15:0, generation in bits 30:16).
    Sender(u32) < 1 << 32;
    /// Invalidation sequence of a VM, as a fault's snapshot carries it.
    Sequence(u64) < u64::MAX;
}

macro_rules! generation_id {
    ($($(#[$meta:meta])* $name:ident;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, zerocopy::FromBytes, zerocopy::IntoBytes,
                 zerocopy::Immutable, zerocopy::KnownLayout)]
        #[cfg_attr(target_os = "none", derive(defmt::Format))]
        #[repr(transparent)]
        pub struct $name(u32);

        impl $name {
            /// The id of table slot `index` in its generation `generation`.
            pub const fn new(index: u16, generation: u16) -> Self {
                Self(index as u32 | (generation as u32) << 16)
            }
            /// The slot in the table.
            pub const fn index(self) -> usize { (self.0 & 0xffff) as usize }
            /// The generation; it moves on each time the slot's holder dies.
            pub const fn generation(self) -> u16 { (self.0 >> 16) as u16 }
            /// The id as a number, for logs.
            pub const fn bits(self) -> u32 { self.0 }
            /// The id with this number.
            pub const fn from_bits(bits: u32) -> Self { Self(bits) }
        }

        impl Field for $name {
            fn to_word(self) -> u64 { u64::from(self.0) }
            fn from_word(word: u64) -> Option<Self> { u32::try_from(word).ok().map(Self) }
        }
    )* };
}

generation_id! {
    /// A service: slot in the manifest's order, and how often it was restarted.
    ServiceId;
    /// A virtual machine: slot in the kernel's table, and how many VMs held it before.
    VmId;
}

/// A vCPU: its VM and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct VcpuId {
    /// The VM that it belongs to.
    pub vm: VmId,
    /// Index in the VM, from 0.
    pub index: u8,
}

impl Field for VcpuId {
    fn to_word(self) -> u64 {
        u64::from(self.vm.bits()) | u64::from(self.index) << 32
    }
    fn from_word(word: u64) -> Option<Self> {
        let index = u8::try_from(word >> 32).ok()?;
        (usize::from(index) < crate::abi::MAX_VCPUS).then_some(Self { vm: VmId::from_bits(word as u32), index })
    }
}

impl Frame {
    /// The address of its first byte.
    pub const fn spa(self) -> Spa {
        Spa(self.0 << 12)
    }
}

impl Spa {
    /// What this address lies in.
    pub const fn frame(self) -> Frame {
        Frame(self.0 >> 12)
    }
}
