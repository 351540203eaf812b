//! A block's names and values.

use caisson_proto::stats::{Desc, Header, NAME, base, kind, unit};
use zerocopy::FromBytes;

/// Bytes of a descriptor before its name.
pub(crate) const DESC_HEAD: usize = size_of::<Desc>() - NAME;

/// Why bytes are no block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The header isn't whole.
    #[error("{0} bytes are no header, which has 24")]
    Header(usize),
    /// The id isn't there.
    #[error("the id, {size} bytes from {offset} on, isn't among the block's {bytes} bytes")]
    Id {
        /// Where it should begin.
        offset: u32,
        /// How long it should be.
        size: u32,
        /// Bytes in all.
        bytes: usize,
    },
    /// The descriptors aren't there.
    #[error("{count} descriptors from {offset} on aren't among the block's {bytes} bytes")]
    Descriptors {
        /// How many.
        count: u32,
        /// Where they should begin.
        offset: u32,
        /// Bytes in all.
        bytes: usize,
    },
    /// A name or the id is no text that ends with a zero.
    #[error("the {0} is no text with a zero at its end")]
    Text(String),
    /// A descriptor's flags say something unknown.
    #[error("statistic \"{name}\": flags {flags:#x} are of no known kind, unit or base")]
    Flags {
        /// Whose.
        name: String,
        /// The flags.
        flags: u32,
    },
    /// A statistic without values.
    #[error("statistic \"{0}\" has no value")]
    Empty(String),
    /// Values that aren't there.
    #[error("statistic \"{name}\": {size} values from {offset} on aren't among the block's {bytes} bytes")]
    Values {
        /// Whose.
        name: String,
        /// How many.
        size: u16,
        /// Where, in bytes from the first value of the block.
        offset: u32,
        /// Bytes in all.
        bytes: usize,
    },
}

/// What kind of value a statistic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Cumulative,
    /// It grows and shrinks.
    Instant,
    /// The greatest that was seen.
    Peak,
    /// A histogram with buckets of this size.
    Linear(u32),
    /// A histogram of powers of two.
    Log,
}

/// A unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// It is counted.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Ticks of the time-stamp counter.
    Cycles,
    /// 0 or 1.
    Boolean,
}

/// A statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its unit, times `base` to the power of `exponent`.
    pub unit: Unit,
    /// 2 or 10.
    pub base: u8,
    /// See `unit`.
    pub exponent: i16,
    /// One value, or a histogram's buckets.
    pub values: Vec<u64>,
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Whose it is: "kvm-…".
    pub id: String,
    /// Its statistics, in the order of their descriptors.
    pub stats: Vec<Statistic>,
    /// How many bytes the block has: what comes after isn't its.
    pub bytes: usize,
}

impl Block {
    /// The first value of the statistic with this name.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.stats.iter().find(|stat| stat.name == name)?.values.first().copied()
    }
}

/// `len` bytes from `offset` on, if they are there. No sum of these can overflow 64 bits.
pub(crate) fn piece(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(usize::try_from(offset).ok()?..end)
}

/// A text that ends with a zero.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

/// A descriptor with the bytes of its name, which are as many as the header says.
pub(crate) fn desc(bytes: &[u8]) -> Option<(Desc, &[u8])> {
    let (head, name) = bytes.split_at_checked(DESC_HEAD)?;
    let mut whole = [0; size_of::<Desc>()];
    whole[..DESC_HEAD].copy_from_slice(head);
    Some((Desc::read_from_bytes(&whole).ok()?, name))
}

/// The block that these bytes begin with.
///
/// # Errors
/// [`Malformed`]: the first thing that is wrong.
pub fn read(bytes: &[u8]) -> Result<Block, Malformed> {
    let all = bytes.len();
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| Malformed::Header(all))?;
    let Header { name_size, num_desc, id_offset, desc_offset, data_offset, .. } = header;
    let id = piece(bytes, id_offset.into(), name_size.into());
    let id = id.ok_or(Malformed::Id { offset: id_offset, size: name_size, bytes: all })?;
    let each = DESC_HEAD as u64 + u64::from(name_size);
    let descs = piece(bytes, desc_offset.into(), each * u64::from(num_desc));
    let descs = descs.ok_or(Malformed::Descriptors { count: num_desc, offset: desc_offset, bytes: all })?;
    let mut block = Block { id: text(id).ok_or(Malformed::Text("id".into()))?, stats: Vec::new(), bytes: 0 };
    let mut end = u64::from(id_offset) + u64::from(name_size);
    end = end.max(u64::from(desc_offset) + descs.len() as u64).max(size_of::<Header>() as u64);
    for (at, (desc, name)) in descs.chunks_exact(each as usize).filter_map(desc).enumerate() {
        let name = text(name).ok_or_else(|| Malformed::Text(format!("name of descriptor {at}")))?;
        let from = u64::from(data_offset) + u64::from(desc.offset);
        let len = u64::from(desc.size) * 8;
        let Some(values) = piece(bytes, from, len) else {
            return Err(Malformed::Values { name, size: desc.size, offset: desc.offset, bytes: all });
        };
        end = end.max(from + len);
        block.stats.push(statistic(&desc, name, values)?);
    }
    block.bytes = end as usize;
    Ok(block)
}

fn statistic(desc: &Desc, name: String, values: &[u8]) -> Result<Statistic, Malformed> {
    let flags = desc.flags;
    let kind = match flags & kind::MASK {
        kind::CUMULATIVE => Some(Kind::Cumulative),
        kind::INSTANT => Some(Kind::Instant),
        kind::PEAK => Some(Kind::Peak),
        kind::LINEAR => Some(Kind::Linear(desc.bucket_size)),
        kind::LOG => Some(Kind::Log),
        _ => None,
    };
    let unit = match flags & unit::MASK {
        unit::NONE => Some(Unit::None),
        unit::BYTES => Some(Unit::Bytes),
        unit::SECONDS => Some(Unit::Seconds),
        unit::CYCLES => Some(Unit::Cycles),
        unit::BOOLEAN => Some(Unit::Boolean),
        _ => None,
    };
    let base = match flags & base::MASK {
        base::TEN => Some(10),
        base::TWO => Some(2),
        _ => None,
    };
    let (Some(kind), Some(unit), Some(base)) = (kind, unit, base) else { return Err(Malformed::Flags { name, flags }) };
    if values.is_empty() {
        return Err(Malformed::Empty(name));
    }
    let values = values.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    Ok(Statistic { name, kind, unit, base, exponent: desc.exponent, values })
}
