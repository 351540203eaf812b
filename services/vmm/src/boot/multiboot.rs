//! A Multiboot image (Multiboot Specification, version 0.6.96), checked: ELF for 32 bits, or any file whose header
//! says itself where it is to lie.

use alloc::vec::Vec;
use core::fmt;

use object::LittleEndian;
use object::elf::{EM_386, ET_EXEC, FileHeader32, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use super::{mbi, place};

/// First word of the header.
const MAGIC: u32 = 0x1bad_b002;
/// The header lies in so many bytes of the file, at a multiple of 4.
const SEARCHED: usize = 8192;
/// Flags 0 to 15 must be understood: modules at page boundaries, memory information, a video mode. The last isn't
/// given, and the information says so.
const KNOWN: u32 = 7;
/// Flag: the header's addresses say where the file lies, whatever its format.
const ADDRESSES: u32 = 1 << 16;

/// Why an image can't be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// There is no header in the first 8 KiB.
    NoHeader,
    /// The header asks for what no loader of version 1 knows.
    Flags(u32),
    /// It is a 64-bit ELF file, whose header gives no addresses.
    Elf64,
    /// It isn't an ELF program for 32-bit x86, and its header gives no addresses.
    NotElf,
    /// The header or a segment speaks of what is beyond the file's end.
    Truncated,
    /// Addresses in the header contradict each other.
    Addresses,
    /// Nothing is loaded, or the entry point is outside of what is.
    Entry,
    /// It wants to lie at this address, where the boot information or nothing is.
    Place(u64),
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("has no Multiboot header in its first 8 KiB"),
            Self::Flags(flags) => write!(f, "needs a Multiboot loader that knows flags {flags:#x}"),
            Self::Elf64 => {
                f.write_str("is a 64-bit ELF file; Multiboot is for 32-bit ones: convert it with objcopy -O elf32-i386")
            }
            Self::NotElf => f.write_str("has a Multiboot header, but is no ELF program for 32-bit x86"),
            Self::Truncated => f.write_str("is cut off: its header speaks of what is beyond its end"),
            Self::Addresses => f.write_str("has a Multiboot header with addresses that contradict each other"),
            Self::Entry => f.write_str("loads nothing at its entry point"),
            Self::Place(at) => {
                write!(f, "wants to lie at {at:#x}; below 576 KiB and from 1 MiB to 3 GiB there is room")
            }
        }
    }
}

/// A piece of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it lies.
    pub address: u64,
    /// What it begins with; the rest of `bytes` is zero.
    pub contents: &'a [u8],
    /// Bytes in memory.
    pub bytes: u64,
}

/// An image that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Its pieces, none of them empty.
    pub segments: Vec<Segment<'a>>,
    /// Entry point.
    pub entry: u64,
    /// One past the highest byte.
    pub end: u64,
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    image.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// Where the header is, and its flags.
fn header(image: &[u8]) -> Option<(usize, u32)> {
    (0..image.len().min(SEARCHED)).step_by(4).find_map(|at| {
        let (magic, flags, sum) = (word(image, at)?, word(image, at + 4)?, word(image, at + 8)?);
        (magic == MAGIC && magic.wrapping_add(flags).wrapping_add(sum) == 0).then_some((at, flags))
    })
}

/// Whether a file has a header, whatever else is wrong with it.
pub fn is_multiboot(image: &[u8]) -> bool {
    header(image).is_some()
}

impl<'a> Image<'a> {
    /// Reads and checks header and segments.
    ///
    /// # Errors
    /// [`Reject`].
    pub fn parse(image: &'a [u8]) -> Result<Self, Reject> {
        let (at, flags) = header(image).ok_or(Reject::NoHeader)?;
        let unknown = flags & 0xffff & !KNOWN;
        if unknown != 0 {
            return Err(Reject::Flags(unknown));
        }
        let parsed = if flags & ADDRESSES != 0 { by_addresses(image, at)? } else { by_elf(image)? };
        parsed.checked()
    }

    fn checked(self) -> Result<Self, Reject> {
        let around = |segment: &Segment| (segment.address..segment.address + segment.bytes).contains(&self.entry);
        if !self.segments.iter().any(around) {
            return Err(Reject::Entry);
        }
        let bad = self.segments.iter().find(|segment| {
            let end = segment.address + segment.bytes;
            (segment.address < place::HIGH && end > mbi::place::START) || end > crate::ram::LOW_END
        });
        bad.map_or(Ok(()), |segment| Err(Reject::Place(segment.address)))?;
        Ok(self)
    }
}

/// An image whose header, at `at`, has addresses: one piece of the file and zeros after it.
fn by_addresses(image: &[u8], at: usize) -> Result<Image<'_>, Reject> {
    let field = |n: usize| word(image, at + 12 + 4 * n).map(u64::from).ok_or(Reject::Truncated);
    let (header, load, load_end, bss_end, entry) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let before = header.checked_sub(load).ok_or(Reject::Addresses)?;
    let start = (at as u64).checked_sub(before).ok_or(Reject::Addresses)?;
    let rest = image.get(start as usize..).ok_or(Reject::Truncated)?;
    let length = match load_end {
        0 => rest.len() as u64,
        end => end.checked_sub(load).ok_or(Reject::Addresses)?,
    };
    let contents = rest.get(..length as usize).ok_or(Reject::Truncated)?;
    let end = match bss_end {
        0 => load + length,
        end if end >= load + length => end,
        _ => return Err(Reject::Addresses),
    };
    let mut segments = Vec::new();
    if end > load {
        segments.push(Segment { address: load, contents, bytes: end - load });
    }
    Ok(Image { segments, entry, end })
}

fn by_elf(image: &[u8]) -> Result<Image<'_>, Reject> {
    const CLASS: usize = 4;
    const CLASS_64: u8 = 2;
    if image.starts_with(b"\x7fELF") && image.get(CLASS) == Some(&CLASS_64) {
        return Err(Reject::Elf64);
    }
    let header = FileHeader32::<LittleEndian>::parse(image).map_err(|_| Reject::NotElf)?;
    let endian = header.endian().map_err(|_| Reject::NotElf)?;
    if header.e_machine(endian) != EM_386 || header.e_type(endian) != ET_EXEC {
        return Err(Reject::NotElf);
    }
    let mut entry = u64::from(header.e_entry(endian));
    let linked = entry;
    let mut segments = Vec::new();
    for program in header.program_headers(endian, image).map_err(|_| Reject::Truncated)? {
        let (bytes, linked_at) = (u64::from(program.p_memsz(endian)), u64::from(program.p_vaddr(endian)));
        if program.p_type(endian) != PT_LOAD || bytes == 0 {
            continue;
        }
        let contents: &[u8] = program.data(endian, image).map_err(|()| Reject::Truncated)?;
        if contents.len() as u64 > bytes {
            return Err(Reject::Addresses);
        }
        let address = u64::from(program.p_paddr(endian));
        // The entry point is an address of the linker's; the machine begins without paging.
        if (linked_at..linked_at + bytes).contains(&linked) {
            entry = linked - linked_at + address;
        }
        segments.push(Segment { address, contents, bytes });
    }
    let end = segments.iter().map(|segment| segment.address + segment.bytes).max().unwrap_or(0);
    Ok(Image { segments, entry, end })
}
