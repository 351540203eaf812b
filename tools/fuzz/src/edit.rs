//! Changes to something valid: what is nearly right gets furthest.

use arbitrary::{Arbitrary, Unstructured};

use crate::guest::act::number;

/// A change.
#[derive(Clone, Debug, Arbitrary)]
pub enum Edit {
    /// A byte.
    Byte(u16, u8),
    /// A number of 2, 4 or 8 bytes near where arithmetic goes wrong.
    Number {
        /// Where.
        at: u16,
        /// How wide: 2 << `size` bytes.
        #[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=2))]
        size: u8,
        /// The number.
        #[arbitrary(with = number)]
        value: u64,
    },
    /// Bytes are taken out.
    Cut(u16, u8),
    /// Bytes are put in.
    Insert(u16, Vec<u8>),
    /// What is here is here once more.
    Repeat(u16, u8),
}

/// Makes the changes.
pub fn edit(bytes: &mut Vec<u8>, edits: &[Edit]) {
    for edit in edits.iter().take(64) {
        let place = |at: u16| usize::from(at).checked_rem(bytes.len()).unwrap_or(0);
        match edit {
            Edit::Byte(at, byte) => {
                let at = place(*at);
                if let Some(target) = bytes.get_mut(at) {
                    *target = *byte;
                }
            }
            Edit::Number { at, size, value } => {
                let at = place(*at);
                let width = 2 << size;
                bytes.iter_mut().skip(at).take(width).zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            Edit::Cut(at, count) => {
                let at = place(*at);
                let end = (at + usize::from(*count)).min(bytes.len());
                bytes.drain(at..end);
            }
            Edit::Insert(at, more) => {
                let at = place(*at);
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Repeat(at, count) => {
                let at = place(*at);
                let piece: Vec<u8> = bytes.iter().skip(at).take((*count).into()).copied().collect();
                bytes.splice(at..at, piece);
            }
        }
    }
}
