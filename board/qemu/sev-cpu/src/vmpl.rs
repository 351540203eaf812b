//! What each privilege level of a guest may do with a page: a byte for each in an entry's second word.

use caisson_proto::rmp::Entry;

/// All that a level can be allowed: read, write, execute in user mode, execute in supervisor mode.
pub const ALL: u8 = 0xf;

/// A privilege level; 0 is the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vmpl {
    /// What vouches for the others.
    Zero = 0,
    /// Below it.
    One = 1,
    /// Below that.
    Two = 2,
    /// The lowest.
    Three = 3,
}

impl Vmpl {
    /// The level of this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Zero),
            1 => Some(Self::One),
            2 => Some(Self::Two),
            3 => Some(Self::Three),
            _ => None,
        }
    }
}

/// What a level may do.
pub const fn rights(entry: Entry, vmpl: Vmpl) -> u8 {
    (entry.0[1] >> (8 * vmpl as u32)) as u8
}

/// The entry in which a level may do this.
pub const fn with_rights(entry: Entry, vmpl: Vmpl, rights: u8) -> Entry {
    let [low, high] = entry.0;
    let at = 8 * vmpl as u32;
    Entry([low, high & !(0xff << at) | (rights as u64) << at])
}
