//! The rules by which Linux's own test of this format (tools/testing/selftests/kvm/kvm_binary_stats_test.c) accepts a block.
//!
//! Written from what the test asks, in the order in which it asks it. It reads the id from behind the header and the
//! statistics' values one after the other, wherever a block says that they are: so these have to be there, too. A rule about
//! overlap is the test's: it compares the two parts, not single statistics.

use std::fmt;

use caisson_proto::stats::{Header, base, kind, unit};
use zerocopy::FromBytes;

use crate::read::{DESC_HEAD, desc, piece, text};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The header can be read.
    Header,
    /// The id can be read, behind the header.
    Id,
    /// The id begins with "kvm" and ends before its room does.
    IdText,
    /// Descriptors and values begin behind the header.
    Offsets,
    /// The descriptors end before the values begin, if they come first.
    DescriptorsFirst,
    /// The descriptors can be read.
    Descriptors,
    /// The kind is known.
    Kind,
    /// The unit is known.
    Unit,
    /// The base is known.
    Base,
    /// The exponent isn't negative, but for seconds, where it isn't positive.
    Exponent,
    /// The name ends before its room does.
    Name,
    /// There is a value.
    Size,
    /// A linear histogram has a size of its buckets, nothing else has.
    BucketSize,
    /// The values end before the descriptors begin, if they come first.
    ValuesFirst,
    /// A statistic begins among the values.
    Offset,
    /// All values can be read.
    Values,
}

/// What broke which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub rule: Rule,
    /// The descriptor, counted from 0, where one is concerned.
    pub at: Option<usize>,
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "rule {:?} is broken", self.rule)?;
        self.at.map_or(Ok(()), |at| write!(out, " by descriptor {at}"))
    }
}

impl std::error::Error for Broken {}

/// Judges a block and what can be read behind it: the test fails on what ends too soon.
///
/// # Errors
/// [`Broken`]: the first rule that isn't kept.
pub fn judge(bytes: &[u8]) -> Result<(), Broken> {
    let keeps = |rule, at, so: bool| if so { Ok(()) } else { Err(Broken { rule, at }) };
    let head = |rule| Broken { rule, at: None };
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| head(Rule::Header))?;
    let Header { name_size, num_desc, desc_offset, data_offset, .. } = header;
    let id = piece(rest, 0, name_size.into()).ok_or(head(Rule::Id))?;
    keeps(Rule::IdText, None, id.starts_with(b"kvm") && id.contains(&0))?;
    if num_desc == 0 {
        return Ok(());
    }
    let (descs_at, data_at, least) = (u64::from(desc_offset), u64::from(data_offset), size_of::<Header>() as u64);
    keeps(Rule::Offsets, None, descs_at >= least && data_at >= least)?;
    let each = DESC_HEAD as u64 + u64::from(name_size);
    let descs_len = each * u64::from(num_desc);
    keeps(Rule::DescriptorsFirst, None, descs_at > data_at || descs_at + descs_len <= data_at)?;
    let descs = piece(bytes, descs_at, descs_len).ok_or(head(Rule::Descriptors))?;
    let descs: Vec<_> = descs.chunks_exact(each as usize).filter_map(desc).collect();
    let mut size = 0;
    for (at, (desc, name)) in descs.iter().enumerate() {
        let keeps = |rule, so| keeps(rule, Some(at), so);
        keeps(Rule::Kind, desc.flags & kind::MASK <= kind::LOG)?;
        keeps(Rule::Unit, desc.flags & unit::MASK <= unit::BOOLEAN)?;
        keeps(Rule::Base, desc.flags & base::MASK <= base::TWO)?;
        let exponent = match desc.flags & unit::MASK {
            unit::SECONDS => desc.exponent <= 0,
            unit::BOOLEAN => true,
            _ => desc.exponent >= 0,
        };
        keeps(Rule::Exponent, exponent)?;
        keeps(Rule::Name, text(name).is_some())?;
        keeps(Rule::Size, desc.size != 0)?;
        keeps(Rule::BucketSize, (desc.flags & kind::MASK == kind::LINEAR) == (desc.bucket_size != 0))?;
        size += u64::from(desc.size) * 8;
    }
    keeps(Rule::ValuesFirst, None, data_at >= descs_at || data_at + size <= descs_at)?;
    for (at, (desc, _)) in descs.iter().enumerate() {
        keeps(Rule::Offset, Some(at), u64::from(desc.offset) < size)?;
        let values = piece(bytes, data_at + u64::from(desc.offset), u64::from(desc.size) * 8);
        keeps(Rule::Values, Some(at), values.is_some())?;
    }
    piece(bytes, data_at, size).ok_or(head(Rule::Values)).map(|_| ())
}
