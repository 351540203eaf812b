//! A Multiboot image of 63 bytes, for machines that need no Linux.

/// First word of the header, and the flag that the header has addresses.
const MAGIC: u32 = 0x1bad_b002;
const ADDRESSES: u32 = 1 << 16;
/// Where it lies.
const AT: u32 = 0x10_0000;

/// Writes "ok" to the serial port if it was entered as Multiboot says, and ends its test with `status`; else it halts.
pub fn image(status: u8) -> Vec<u8> {
    let sum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
    // The header lies at the beginning, the file is all there is, the code follows.
    let header = [MAGIC, ADDRESSES, sum, AT, AT, 0, 0, AT + 32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    // cmp eax, 2badb002; jne to the end; mov dx, 3f8
    image.extend([0x3d, 0x02, 0xb0, 0xad, 0x2b, 0x75, 0x11, 0x66, 0xba, 0xf8, 0x03]);
    for byte in *b"ok\n" {
        // mov al, byte; out dx, al
        image.extend([0xb0, byte, 0xee]);
    }
    // mov al, status; out f4, al; the end: cli; hlt
    image.extend([0xb0, status, 0xe6, 0xf4, 0xfa, 0xf4]);
    image
}

#[cfg(test)]
mod tests {
    use caisson_vmm::boot::multiboot::Image;

    #[test]
    fn it_is_what_the_vmm_boots() {
        let bytes = super::image(3);
        let image = Image::parse(&bytes).unwrap();
        assert_eq!((image.entry, image.end), (0x10_0020, 0x10_0000 + bytes.len() as u64));
        // The jump goes to the CLI.
        assert_eq!(bytes[32 + 7 + usize::from(bytes[38])], 0xfa);
    }
}
