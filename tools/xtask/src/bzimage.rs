//! Is a file a Linux kernel that the 64-bit boot protocol can start? (Linux, Documentation/x86/boot.rst)

/// Offset and value of the boot sector's signature.
const SECTOR: (usize, u16) = (0x1fe, 0xaa55);
/// "HdrS" at 0x202.
const HEADER: (usize, &[u8]) = (0x202, b"HdrS");
/// Version of the protocol.
const VERSION: usize = 0x206;
/// The first version that says whether there is a 64-bit entry point.
const NEEDED: u16 = 0x020c;
/// Flags; bit 0: there is a 64-bit entry point at 0x200.
const XLOADFLAGS: usize = 0x236;
/// Sectors before the part that is loaded, in 512 bytes and without the first; 0 means 4.
const SETUP_SECTORS: usize = 0x1f1;
/// Length of the part that is loaded, in 16 bytes.
const LOADED: usize = 0x1f4;
/// The highest address that an initrd may have.
const INITRD_MAX: usize = 0x22c;
/// Where the kernel prefers to lie. If it lies lower, it moves itself there.
const PREFERRED: usize = 0x258;
/// Memory that the kernel needs from there on to unpack itself, in bytes.
const INIT_SIZE: usize = 0x260;

/// What xtask wants to know about a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where it lies, in guest-physical memory.
    pub address: u64,
    /// Memory that it needs from there on to unpack itself, in bytes.
    pub init_size: u32,
    /// The highest address that its initrd may have.
    pub initrd_max: u32,
    /// Bytes of the file that its header speaks of.
    pub file: u64,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

/// Checks the beginning of a file.
///
/// # Errors
/// What it is instead of a kernel that can be started.
pub fn check(bytes: &[u8]) -> Result<Kernel, String> {
    let magic = bytes.get(HEADER.0..HEADER.0 + HEADER.1.len());
    if u16_at(bytes, SECTOR.0) != Some(SECTOR.1) || magic != Some(HEADER.1) {
        let looks = match bytes {
            [0x7f, b'E', b'L', b'F', ..] => {
                " It is an ELF file without a Multiboot header: of Linux, take arch/x86/boot/bzImage, not vmlinux."
            }
            [] => " It is empty.",
            _ => "",
        };
        return Err(format!("is no bzImage: the boot sector lacks its marks.{looks}"));
    }
    match u16_at(bytes, VERSION) {
        Some(version) if version >= NEEDED => {}
        version => {
            let version = version.unwrap_or(0);
            return Err(format!(
                "has boot protocol {}.{}; 2.12 or newer is needed (Linux 3.8)",
                version >> 8,
                version & 0xff
            ));
        }
    }
    if u16_at(bytes, XLOADFLAGS).unwrap_or(0) & 1 == 0 {
        return Err("is a 32-bit kernel; one with a 64-bit entry point is needed".into());
    }
    let cut = || "is cut off: it ends within its header".to_owned();
    let sectors = match bytes.get(SETUP_SECTORS).copied().ok_or_else(cut)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let loaded = u64::from(u32_at(bytes, LOADED).ok_or_else(cut)?);
    Ok(Kernel {
        address: field(bytes, PREFERRED).map(u64::from_le_bytes).ok_or_else(cut)?,
        init_size: u32_at(bytes, INIT_SIZE).ok_or_else(cut)?,
        initrd_max: u32_at(bytes, INITRD_MAX).ok_or_else(cut)?,
        file: (sectors + 1) * 512 + loaded * 16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        bytes[0x236] = 1;
        bytes[0x1f1] = 3;
        bytes[0x1f4..0x1f8].copy_from_slice(&128_u32.to_le_bytes());
        bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        bytes[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        bytes[0x260..0x264].copy_from_slice(&0x337_8000_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_kernel_is_known_by_its_header() {
        let kernel = Kernel { address: 16 << 20, init_size: 0x337_8000, initrd_max: 0x7fff_ffff, file: 4096 };
        assert_eq!(check(&good()), Ok(kernel));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let with = |at: usize, value: u8| {
            let mut bytes = good();
            bytes[at] = value;
            check(&bytes).unwrap_err()
        };
        assert!(with(0x1fe, 0).contains("no bzImage") && with(0x202, 0).contains("no bzImage"));
        assert!(with(0x206, 0x0b).contains("boot protocol 2.11"));
        assert!(with(0x236, 0).contains("32-bit kernel"));
        assert!(check(b"\x7fELF").unwrap_err().contains("vmlinux") && check(b"").unwrap_err().contains("empty"));
        assert!(check(&good()[..0x204]).is_err());
        assert!(check(&good()[..0x262]).unwrap_err().contains("cut off"));
    }
}
