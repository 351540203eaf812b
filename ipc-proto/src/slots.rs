//! Where guest memory lies before a guest sees it: regions, gmems, and the slots that show them.

use crate::addr::{MAX_PHYS_BITS, number};
use crate::wire::Field;

number! {
    /// Guest memory by itself: slots say where its VM sees it.
    Region(u16) < 1 << 16;
    /// A slot of a VM, by the number that its vmm chose.
    SlotId(u16) < crate::memory::MAX_SLOTS;
    /// Private guest memory without a host address.
    GmemId(u16) < 1 << 16;
}

macro_rules! place {
    ($($(#[$meta:meta])* $name:ident in $of:ident: $what:ident;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name {
            /// What it lies in.
            pub $of: $what,
            /// How many pages after its beginning; less than 2⁴⁰.
            pub page: u64,
        }

        /// The page in bits 39:0, what it lies in above.
        impl Field for $name {
            fn to_word(self) -> u64 { u64::from(self.$of.0) << PAGE_BITS | self.page }
            fn from_word(word: u64) -> Option<Self> {
                let $of = $what::from_word(word >> PAGE_BITS)?;
                Some(Self { $of, page: word & ((1 << PAGE_BITS) - 1) })
            }
        }
    )* };
}

/// Bits of a page's number in a region or a gmem.
pub const PAGE_BITS: u32 = MAX_PHYS_BITS - 12;

place! {
    /// A host address: what slots show to guests, and what notifications are about.
    HostAddress in region: Region;
    /// A page of a gmem.
    GmemAddress in gmem: GmemId;
}
