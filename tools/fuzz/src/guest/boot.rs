//! Kernels and initial RAM disks as no linker made them.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::vmm::VmConfig;
use caisson_vmm::Vmm;
use caisson_vmm::boot::multiboot;

use super::fake::Fake;
use super::machine::{FACTS, MIB, bzimage, config};
use crate::edit::{Edit, edit};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    edits: Vec<Edit>,
    length: Option<u16>,
    memory: u8,
    vcpus: u8,
    initrd: u32,
    cmdline: u16,
    raw: Option<&'a [u8]>,
}

/// Boots `base` with the input's changes; all that may happen is a VM or a refusal.
fn boot(data: &[u8], base: Vec<u8>) {
    let Ok(input) = Unstructured::new(data).arbitrary::<Input>() else { return };
    let mut kernel = base;
    match input.raw {
        Some(raw) => kernel = raw.to_vec(),
        None => edit(&mut kernel, &input.edits),
    }
    if let Some(length) = input.length {
        kernel.truncate(length.into());
    }
    let memory = u64::from(input.memory) * 2 * MIB;
    let config =
        VmConfig { memory, vcpus: input.vcpus % 10, cmdline: "x".repeat((input.cmdline % 4096).into()), ..config(1) };
    // Most are short, some longer than memory.
    let initrd = vec![0xa5; (input.initrd as usize & 0xff) << ((input.initrd >> 8) % 18)];
    let fake = Fake::new(memory.min(64 * MIB), config.vcpus);
    if memory > 64 * MIB {
        return;
    }
    if let Ok(vmm) = Vmm::new(fake, &config, &kernel, &initrd, FACTS) {
        let state = &vmm.platform.states[0];
        assert!(state.rip < memory, "it begins outside of memory: {:#x}", state.rip);
    }
}

/// Linux's boot protocol.
pub fn linux(data: &[u8]) {
    boot(data, bzimage(&[0x90; 1024]));
}

/// Multiboot: an ELF file for 32 bits whose header may give addresses, too.
pub fn multiboot(data: &[u8]) {
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0".to_vec();
    file.extend(words(&[1, 0x10_0080, 52, 0, 0]));
    file.extend([52, 0, 32, 0, 2, 0, 40, 0, 0, 0, 0, 0]);
    file.extend(words(&[1, 0, 0x10_0000, 0x10_0000, 0x200, 0x3000, 5, 4096]));
    file.extend(words(&[1, 0, 0x20_0000, 0x20_0000, 0, 0x1000, 6, 4096]));
    // One input in two has the addresses in its header.
    let flags = if data.first().is_some_and(|byte| byte & 1 == 1) { 0x1_0003_u32 } else { 3 };
    let magic = 0x1bad_b002_u32;
    let header = file.len() as u32;
    file.extend(words(&[magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)]));
    file.extend(words(&[0x10_0000 + header, 0x10_0000, 0x10_0200, 0x10_3000, 0x10_0080]));
    file.resize(0x200, 0x90);
    assert!(multiboot::is_multiboot(&file));
    boot(data, file);
}
