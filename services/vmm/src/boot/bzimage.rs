//! The header of a bzImage (boot protocol 2.12 or later), checked.

/// The 64-bit entry point, from where the protected-mode part is loaded.
pub const ENTRY_64: u64 = 0x200;
/// Where the setup header begins in the image and in the boot parameters.
pub const HEADER: usize = 0x1f1;
/// One past the last header field that is read here.
const HEADER_READ: usize = 0x264;

const VERSION_2_12: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// Why an image can't be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Shorter than its header or than the header says.
    Truncated,
    /// No boot flag or header magic: no Linux kernel.
    NotLinux,
    /// Boot protocol older than 2.12.
    TooOld,
    /// No 64-bit entry point, or not loaded high.
    No64Bit,
    /// A number in the header makes no sense.
    Header,
}

/// A kernel image that can be booted.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The setup header, from [`HEADER`] on, as it goes into the boot parameters.
    pub header: &'a [u8],
    /// What is loaded.
    pub protected: &'a [u8],
    /// Bytes that the kernel needs from its load address on until it has read its memory map.
    pub init_size: u64,
    /// The highest address that the initrd may have.
    pub initrd_max: u32,
    /// The longest command line.
    pub cmdline_size: u32,
    preferred: u64,
    alignment: u64,
    relocatable: bool,
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], Reject> {
    image.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Reject::Truncated)
}

impl<'a> Image<'a> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`Reject`].
    pub fn parse(image: &'a [u8]) -> Result<Self, Reject> {
        if image.len() < HEADER_READ {
            return Err(Reject::Truncated);
        }
        let byte = |at| field::<1>(image, at).map(|[byte]| byte);
        let half = |at| field(image, at).map(u16::from_le_bytes);
        let word = |at| field(image, at).map(u32::from_le_bytes);
        let long = |at| field(image, at).map(u64::from_le_bytes);
        if half(0x1fe)? != 0xaa55 || field(image, 0x202)? != *b"HdrS" {
            return Err(Reject::NotLinux);
        }
        if half(0x206)? < VERSION_2_12 {
            return Err(Reject::TooOld);
        }
        if half(0x236)? & XLF_KERNEL_64 == 0 || byte(0x211)? & LOADED_HIGH == 0 {
            return Err(Reject::No64Bit);
        }
        let sectors = match byte(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        // The jump at 0x200 says where the header ends.
        let header_end = 0x202 + usize::from(byte(0x201)?);
        let setup_end = (sectors + 1) * 512;
        let header = image.get(HEADER..header_end.max(HEADER_READ)).ok_or(Reject::Truncated)?;
        let protected = image.get(setup_end..).ok_or(Reject::Truncated)?;
        let (init_size, alignment) = (u64::from(word(0x260)?), u64::from(word(0x230)?));
        let preferred = long(0x258)?;
        if (protected.len() as u64) <= ENTRY_64 {
            return Err(Reject::Truncated);
        }
        let sane = alignment.is_power_of_two()
            && alignment >= 4096
            && (super::place::HIGH..1 << 32).contains(&preferred)
            && init_size >= protected.len() as u64
            && header_end <= 0x290;
        if !sane {
            return Err(Reject::Header);
        }
        Ok(Self {
            header,
            protected,
            init_size,
            initrd_max: word(0x22c)?,
            cmdline_size: word(0x238)?,
            preferred,
            alignment,
            relocatable: byte(0x234)? != 0,
        })
    }

    /// Where to load it in memory that ends at `end`: where it prefers, else as low as it may lie.
    pub fn place(&self, end: u64) -> Option<u64> {
        let lowest = super::place::HIGH.next_multiple_of(self.alignment);
        let fits = |at: &u64| at.saturating_add(self.init_size) <= end;
        Some(self.preferred).filter(fits).or(Some(lowest).filter(|at| self.relocatable && fits(at)))
    }
}
